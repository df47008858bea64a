"""Every recipe is parsed, built and trained for two steps; results are compared with published figures."""

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
from defeat.detector.options import with_usual_values
from defeat.distillation import method_defaults
from defeat.errors import InputError
from defeat.report.recipes import commands
from tests.data.folders import coco_content, voc_object, write_coco, write_image, write_voc
from tests.detector.tiny import SMALLER, tiny_options
from tests.engine.tiny_runs import lines, save_teacher

RECIPES = Path(__file__).parents[1] / "recipes"
every_recipe = pytest.mark.parametrize("name", recipe_files())


def settings(name, *arguments):
    """Settings of a recipe, with the required options that it leaves out."""
    command = "distill" if "method" in read_recipe(find_recipe(name)) else "train"
    options = ["--config", name, "--data", "demo", "--out", "never-written", "--weights", "none", *arguments]
    if command == "distill":
        options += ["--teacher", "never-read"]
    if "backbone" not in read_recipe(find_recipe(name)):
        options += ["--backbone", "resnet18"]
    return run_settings(options, command)


def test_there_is_a_recipe_for_each_row_of_the_published_table():
    figures = {
        name: figure.value
        for name, path in recipe_files().items()
        if (figure := expected(read_recipe(path).get("expected"))) and name.startswith("voc/")
    }
    rows = [81.70, 82.27, 81.59, 81.83, 80.97, 80.76, 80.66, 80.52, 81.04, 81.17, 82.04]
    assert sorted(figures.values()) == sorted(rows)


def test_the_tables_of_the_readme_agree_with_the_recipes():
    text = (RECIPES / "README.md").read_text()
    rows = {row.split("`")[1]: row for row in text.splitlines() if row.startswith("| `")}
    for name, path in recipe_files().items():
        figure = expected(read_recipe(path).get("expected"))
        assert (name in rows) == (figure is not None), name
        if figure is not None:
            assert f"| {figure.value:.2f} |" in rows[name] or f"| {figure.value:.1f} |" in rows[name]


@every_recipe
def test_recipe_is_parsed_and_built(name):
    parsed = settings(name)
    with torch.device("meta"):
        detector = build_student(parsed, ("cat", "dog"))
    assert detector.info.family == parsed.detector
    assert detector.info.size == parsed.size


def test_distilling_recipes_have_the_published_settings():
    parsed = settings("voc/r101_r50_defeat")
    method = {"object_weight": 3, "background_weight": 12, "positive_weight": 0, "negative_weight": 0, "scale": "none"}
    method["head_average"] = "group"
    options = method_defaults("defeat") | parsed.method_options
    assert {name: options[name] for name in method} == method
    assert (parsed.lr, parsed.grad_clip, parsed.batch_size, parsed.devices) == (0.01, 35, 8, 2)
    assert settings("coco/retinanet_r152_r50_defeat_2x").epochs == 24
    assert settings("coco/faster_rcnn_r152_r50_defeat_1x").method_options["backbone_strides"] == (16, 32)


@every_recipe
def test_a_published_recipe_has_no_automatic_settings(name):
    parsed = settings(name)
    values = [parsed.lr, parsed.neck_channels, *parsed.detector_options.values()]
    assert ("auto" in values) == name.startswith("small/")
    if name.startswith("coco/") or name.startswith("voc/"):
        defaults = asdict(with_usual_values(make_options(parsed.detector, {})))
        changed = {"rpn_post_nms_top_n_train", "box_loss", "round_anchors", "aligned_pooling", "sampling_ratio"}
        changed |= {"initialisation", "loss_average", "p6_activation"}
        assert {name: value for name, value in parsed.detector_options.items() if name not in changed} == {
            name: value for name, value in defaults.items() if name not in changed
        }
        assert parsed.neck_channels == 256


def write_data(folder, name):
    """Write a tiny data set in the format of a recipe, with the classes `cat` and `dog`; return its path."""
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
    parsed = settings(name)
    spec = {"backbone": "resnet18", "classes": ("cat", "dog"), "neck_channels": 256}
    teacher = save_teacher(tmp_path / "teacher", parsed.detector, **spec)
    tiny = tiny_options(parsed.detector)
    options = parsed.detector_options | {name: tiny[name] for name in SMALLER if name in tiny}
    small = {"devices": 1, "batch_size": 2, "size": 64, "max_size": 96, "epochs": 2, "max_steps": 2, "log_every": 1}
    distillation = {"teacher": str(teacher), "allow_weak_teacher": True} if hasattr(parsed, "teacher") else {}
    local = {
        "data": write_data(tmp_path / "data", name),
        "out": str(tmp_path / "run"),
        "workers": 0,
        "accelerator": "cpu",
    }
    reduced = replace(parsed, **small, **distillation, **local, detector_options=options)
    assert run(reduced).finished
    steps = [line for line in lines(tmp_path / "run") if "train/loss" in line]
    assert len(steps) == 2
    terms = {"train/neck_object", "train/neck_background"} if "_defeat" in name else set()
    assert terms <= steps[0].keys()


def test_a_flag_overrides_the_recipe():
    arguments = ["--config", "small/retinanet", "--data", "demo", "--out", "never-written", "--size", "96"]
    assert run_settings(arguments, "train").size == 96
    assert run_settings(arguments, "train").epochs == 12


def test_an_unknown_recipe_suggests_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'voc/r50_bn_lr001'"):
        find_recipe("voc/r50_bn_lr01")
    with pytest.raises(InputError, match="does not exist"):
        find_recipe("mine/recipe.yaml")


def write(path, content):
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_recipe_overrides_what_it_extends(tmp_path):
    write(tmp_path / "base.yaml", {"lr": 1, "size": 5, "detector_options": {"a": 1, "b": 2}})
    write(tmp_path / "middle.yaml", {"extends": "base.yaml", "lr": 2, "detector_options": {"b": 3}})
    recipe = read_recipe(write(tmp_path / "mine.yaml", {"extends": "middle.yaml", "size": 6}))
    assert recipe == {"lr": 2, "size": 6, "detector_options": {"a": 1, "b": 3}}


def test_the_later_of_several_extended_recipes_overrides_the_earlier(tmp_path):
    write(tmp_path / "first.yaml", {"lr": 1, "size": 5, "method_options": {"a": 1, "b": 2}})
    write(tmp_path / "second.yaml", {"lr": 2, "method_options": {"b": 3}})
    recipe = read_recipe(write(tmp_path / "mine.yaml", {"extends": ["first.yaml", "second.yaml"], "size": 6}))
    assert recipe == {"lr": 2, "size": 6, "method_options": {"a": 1, "b": 3}}


def test_merging_does_not_modify_its_arguments():
    base, changes = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert merged(base, changes) == {"a": {"b": 1, "c": 2}}
    assert (base, changes) == ({"a": {"b": 1}}, {"a": {"c": 2}})


@pytest.mark.parametrize(
    ("text", "message"),
    [("extends: a.yaml\n", "extends itself"), ("- 1\n", "does not contain settings"), ("a: [\n", "can't be read")],
)
def test_a_broken_recipe_is_refused_with_one_sentence(text, message, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_recipe(tmp_path / "a.yaml")
    assert "\n" not in str(caught.value)


def test_an_incomplete_published_figure_is_refused():
    with pytest.raises(InputError, match="needs metric, value, tolerance and source"):
        expected({"metric": "AP", "value": 3})
    assert expected({}) is None
    assert expected(None) is None


def test_an_incomplete_published_figure_stops_a_run_before_it_starts(tmp_path):
    parsed = settings("small/retinanet", "--out", str(tmp_path / "run"))
    incomplete = replace(parsed, expected={"metric": "AP"})
    with pytest.raises(InputError, match="needs metric, value, tolerance and source"):
        run(incomplete)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("ap", "message"),
    [
        (81.6, "The recipe expects AP 82 within 0.5 (somebody): reached, with 81.60."),
        (82.5, "reached, with 82.50"),
        (81.4, "not reached, with 81.40"),
        (82.6, "not reached, with 82.60"),
        (None, "the run has no such figure"),
    ],
)
def test_a_run_is_compared_with_the_published_figure(ap, message):
    assert message in Expected("AP", 82.0, 0.5, "somebody").judge({"AP": ap})


def test_a_run_of_a_recipe_with_a_figure_reports_whether_it_reached_it(small_demo, tmp_path, capsys):
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
    arguments = ["--config", str(path), "--data", "demo", "--max-steps", "1", *out]
    assert run(run_settings(arguments, "train")).finished
    assert "The recipe expects AP 99 within 1 (nobody): not reached" in " ".join(capsys.readouterr().err.split())


def test_commands_of_a_recipe_are_for_several_devices_and_for_one():
    multiple, single = commands("voc/r101_r50_defeat", read_recipe(find_recipe("voc/r101_r50_defeat")))
    assert multiple == (
        "defeat distill --config voc/r101_r50_defeat --data VOC2007:trainval,VOC2012:trainval --teacher RUN "
        "--out runs/voc_r101_r50_defeat"
    )
    assert single == f"{multiple} --devices 1 --batch-size 16"
