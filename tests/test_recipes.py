"""Every recipe is parsed, built and trained for two steps; and figures are judged."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml

from defeat.assembly.assemble import build_student
from defeat.assembly.recipes import Expected, expected, find_recipe, merged, read_recipe, recipe_files
from defeat.assembly.run import run
from defeat.cli import run_settings
from defeat.detector import make_options
from defeat.detector.options import settled
from defeat.errors import InputError
from defeat.report.recipes import commands
from tests.data.folders import coco_content, voc_object, write_coco, write_image, write_voc
from tests.detector.tiny import SMALLER, tiny_options
from tests.engine.tiny_runs import lines, save_teacher

RECIPES = Path(__file__).parents[1] / "recipes"
every_recipe = pytest.mark.parametrize("name", recipe_files())


def settings(name, *more):
    command = "distill" if "method" in read_recipe(find_recipe(name)) else "train"
    given = ["--config", name, "--data", "demo", "--out", "never-written", "--weights", "none", *more]
    if command == "distill":
        given += ["--teacher", "never-read"]
    if "backbone" not in read_recipe(find_recipe(name)):
        given += ["--backbone", "resnet18"]
    return run_settings(given, command)


def test_there_is_a_recipe_for_each_row_of_the_published_table():
    figures = {
        name: figure.value
        for name, path in recipe_files().items()
        if (figure := expected(read_recipe(path).get("expected"))) and name.startswith("voc/")
    }
    rows = [81.70, 82.27, 81.59, 81.83, 80.97, 80.76, 80.66, 80.52, 81.04, 81.17, 82.04]
    assert sorted(figures.values()) == sorted(rows)


def test_the_table_of_recipes_says_what_the_recipes_say():
    text = (RECIPES / "README.md").read_text()
    rows = {row.split("`")[1]: row for row in text.splitlines() if row.startswith("| `")}
    for name, path in recipe_files().items():
        figure = expected(read_recipe(path).get("expected"))
        assert (name in rows) == (figure is not None), name
        if figure is not None:
            assert f"| {figure.value:.2f} |" in rows[name] or f"| {figure.value:.1f} |" in rows[name]


@every_recipe
def test_recipe_is_parsed_and_built(name):
    found = settings(name)
    with torch.device("meta"):
        detector = build_student(found, ("one", "two"))
    assert detector.info.family == found.detector
    assert detector.info.size == found.size


def test_distilling_recipes_are_as_published():
    found = settings("voc/r101_r50_defeat")
    method = {"object_weight": 3, "background_weight": 12, "positive_weight": 0, "negative_weight": 0, "scale": "none"}
    method["head_average"] = "group"
    assert {name: found.method_options[name] for name in method} == method
    assert (found.lr, found.grad_clip, found.batch_size, found.devices) == (0.01, 35, 8, 2)
    assert settings("coco/retinanet_r152_r50_defeat_2x").epochs == 24
    assert settings("coco/faster_rcnn_r152_r50_defeat_1x").method_options["backbone_strides"] == (16, 32)


@every_recipe
def test_a_published_recipe_leaves_nothing_to_the_data(name):
    found = settings(name)
    values = [found.lr, found.neck_channels, *found.detector_options.values()]
    assert ("auto" in values) == name.startswith("small/")
    if name.startswith("coco/") or name.startswith("voc/"):
        usual = asdict(settled(make_options(found.detector, {})))
        own = {"rpn_post_nms_top_n_train", "box_loss", "round_anchors", "aligned_pooling", "sampling_ratio"}
        own |= {"initialisation", "loss_average"}
        assert {n: v for n, v in found.detector_options.items() if n not in own} == {
            n: v for n, v in usual.items() if n not in own
        }
        assert found.neck_channels == 256


def stand_in(folder, name):
    """A data set of the format that a recipe was made for, with the classes `cat` and `dog`."""
    if name.startswith("voc/"):
        objects = voc_object("cat", (3, 3, 30, 25)) + voc_object("dog", (10, 5, 38, 28))
        write_voc(folder / "VOC2007", {"trainval": {"a": objects, "b": objects}, "test": {"c": objects}})
        write_voc(folder / "VOC2012", {"trainval": {"d": objects, "e": voc_object("dog", (4, 4, 20, 20))}})
        return f"{folder / 'VOC2007'}:trainval,{folder / 'VOC2012'}:trainval"
    content = coco_content()
    for split in ("train", "val"):
        write_coco(folder, content, f"annotations/instances_{split}2017.json")
        for image in content["images"]:
            write_image(folder / f"{split}2017" / image["file_name"])
    return str(folder)


@pytest.mark.slow
@every_recipe
def test_recipe_trains_two_steps_at_a_reduced_size(name, tmp_path):
    given = settings(name)
    teacher = save_teacher(tmp_path / "teacher", given.detector, backbone="resnet18", classes=("cat", "dog"))
    tiny = tiny_options(given.detector)
    options = given.detector_options | {name: tiny[name] for name in SMALLER if name in tiny}
    small = {"devices": 1, "batch_size": 2, "size": 64, "max_size": 96, "epochs": 2, "max_steps": 2, "log_every": 1}
    taught = {"teacher": str(teacher), "allow_weak_teacher": True} if hasattr(given, "teacher") else {}
    where = {
        "data": stand_in(tmp_path / "data", name),
        "out": str(tmp_path / "run"),
        "workers": 0,
        "accelerator": "cpu",
    }
    found = replace(given, **small, **taught, **where, detector_options=options)
    assert run(found).finished
    steps = [line for line in lines(tmp_path / "run") if "train/loss" in line]
    assert len(steps) == 2
    terms = {"train/neck_object", "train/neck_background"} if "_defeat" in name else set()
    assert terms <= steps[0].keys()


def test_a_flag_wins_over_the_recipe():
    given = ["--config", "small/retinanet", "--data", "demo", "--out", "never-written", "--size", "96"]
    assert run_settings(given, "train").size == 96
    assert run_settings(given, "train").epochs == 12


def test_an_unknown_recipe_suggests_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'voc/r50_bn_lr001'"):
        find_recipe("voc/r50_bn_lr01")
    with pytest.raises(InputError, match="there is no such file"):
        find_recipe("mine/recipe.yaml")


def write(path, content):
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_recipe_takes_over_what_it_extends_and_changes_it(tmp_path):
    write(tmp_path / "far.yaml", {"lr": 1, "size": 5, "detector_options": {"a": 1, "b": 2}})
    write(tmp_path / "near.yaml", {"extends": "far.yaml", "lr": 2, "detector_options": {"b": 3}})
    found = read_recipe(write(tmp_path / "mine.yaml", {"extends": "near.yaml", "size": 6}))
    assert found == {"lr": 2, "size": 6, "detector_options": {"a": 1, "b": 3}}


def test_of_several_extended_recipes_the_later_changes_the_earlier(tmp_path):
    write(tmp_path / "first.yaml", {"lr": 1, "size": 5, "method_options": {"a": 1, "b": 2}})
    write(tmp_path / "second.yaml", {"lr": 2, "method_options": {"b": 3}})
    found = read_recipe(write(tmp_path / "mine.yaml", {"extends": ["first.yaml", "second.yaml"], "size": 6}))
    assert found == {"lr": 2, "size": 6, "method_options": {"a": 1, "b": 3}}


def test_merging_leaves_both_sides_as_they_were():
    base, changes = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert merged(base, changes) == {"a": {"b": 1, "c": 2}}
    assert (base, changes) == ({"a": {"b": 1}}, {"a": {"c": 2}})


@pytest.mark.parametrize(
    ("text", "says"),
    [("extends: a.yaml\n", "extends itself"), ("- 1\n", "does not hold settings"), ("a: [\n", "can't be read")],
)
def test_a_broken_recipe_is_one_sentence(text, says, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match=says) as caught:
        read_recipe(tmp_path / "a.yaml")
    assert "\n" not in str(caught.value)


def test_a_figure_that_is_not_complete_is_refused():
    with pytest.raises(InputError, match="needs metric, value, tolerance and source"):
        expected({"metric": "AP", "value": 3})
    assert expected({}) is None
    assert expected(None) is None


def test_a_figure_that_is_not_complete_stops_a_run_before_it_begins(tmp_path):
    found = settings("small/retinanet", "--out", str(tmp_path / "run"))
    found = replace(found, expected={"metric": "AP"})
    with pytest.raises(InputError, match="needs metric, value, tolerance and source"):
        run(found)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (81.6, "The recipe expects AP 82 within 0.5 (somebody): reached, with 81.60."),
        (82.5, "reached, with 82.50"),
        (81.4, "not reached, with 81.40"),
        (82.6, "not reached, with 82.60"),
        (None, "the run has no such figure"),
    ],
)
def test_a_run_is_held_against_the_figure(found, says):
    assert says in Expected("AP", 82.0, 0.5, "somebody").judge({"AP": found})


def test_a_run_from_a_recipe_with_a_figure_says_whether_it_came_within(small_demo, tmp_path, capsys):
    path = write(
        tmp_path / "mine.yaml",
        {
            "extends": str(RECIPES / "small/retinanet.yaml"),
            "backbone": "resnet18",
            "size": 64,
            "max_size": 96,
            "neck_channels": 16,
            "expected": {"metric": "AP", "value": 99.0, "tolerance": 1.0, "source": "nobody"},
        },
    )
    out = ["--out", str(tmp_path / "run"), "--weights", "none", "--workers", "0", "--accelerator", "cpu"]
    given = ["--config", str(path), "--data", "demo", "--max-steps", "1", *out]
    assert run(run_settings(given, "train")).finished
    assert "The recipe expects AP 99 within 1 (nobody): not reached" in " ".join(capsys.readouterr().err.split())


def test_commands_of_a_recipe_for_several_devices_and_for_one():
    several, one = commands("voc/r101_r50_defeat", read_recipe(find_recipe("voc/r101_r50_defeat")))
    assert several == (
        "defeat distill --config voc/r101_r50_defeat --data VOC2007:trainval,VOC2012:trainval --teacher RUN "
        "--out runs/voc_r101_r50_defeat"
    )
    assert one == f"{several} --devices 1 --batch-size 16"
