"""Values set to auto: chosen once, written as numbers, and unchanged in a resumed run."""

import io
import json

import pytest
import yaml
from rich.console import Console

from defeat.assembly.assemble import assemble
from defeat.assembly.automatic import as_begun, choose, is_chosen, learning_rate, number_of_epochs
from defeat.assembly.plan import make_plan
from defeat.assembly.run import run
from defeat.benchmark import bench
from defeat.data import open_dataset
from defeat.detector import load
from defeat.distillation import Imitation
from defeat.engine.duration import LongRunNotice, duration_message
from defeat.engine.experiment import Distillation, Experiment
from defeat.errors import InputError
from defeat.report.plan import print_plan
from tests.detector.tiny import FITTED_ANCHORS, SMALLER, WITH_PYRAMID, tiny_detector, tiny_options
from tests.engine.tiny_runs import save_teacher, settings, shared_settings, weights

pytestmark = pytest.mark.usefixtures("small_demo")
every_family = pytest.mark.parametrize("family", WITH_PYRAMID)
fitted_anchors = pytest.mark.parametrize("family", FITTED_ANCHORS)
QUIET = Console(quiet=True)


def left_open(out, family="retinanet", teacher=None, **changes):
    """Settings that leave everything to the data but the widths that make a test slow."""
    options = {name: value for name, value in tiny_options(family).items() if name in SMALLER}
    return settings(
        out, family, teacher, **{"lr": "auto", "neck_channels": "auto", "detector_options": options} | changes
    )


def config(folder):
    return yaml.safe_load((folder / "config.yaml").read_text())


def data():
    return open_dataset("demo", "train", None, "stop", QUIET)


@every_family
def test_a_run_writes_the_chosen_values_to_its_config_and_model_and_prints_them(family, tmp_path):
    shown = io.StringIO()
    run(left_open(tmp_path / "run", family, max_steps=1), Console(file=shown, width=60))
    result, model = config(tmp_path / "run"), json.loads((tmp_path / "run" / "model.json").read_text())
    assert "auto" not in [result["lr"], result["neck_channels"], *result["detector_options"].values()]
    assert result["lr"] == 0.0025  # 0.01 with 8 images, here 2
    assert result["neck_channels"] == model["neck_channels"] == 64
    assert result["detector_options"] == model["options"]
    (line,) = [line for line in shown.getvalue().splitlines() if line.startswith("auto: ")]
    if family in FITTED_ANCHORS:
        sides = result["detector_options"]["anchor_sizes"]
        assert sides == [sides[0] * 2**level for level in range(5)]
        assert f"anchors {' '.join(map(str, sides))} px" in line
    assert line.endswith("; neck 64 channels, lr 0.0025, schedule flat_cosine")


def test_repeating_a_config_measures_nothing_and_gives_the_same_student(tmp_path, monkeypatch):
    run(left_open(tmp_path / "run", max_steps=2), QUIET)
    again = {name: value for name, value in config(tmp_path / "run").items() if name not in ("command", "out")}
    monkeypatch.setattr("defeat.assembly.automatic.object_statistics", None)  # a call would fail
    run(settings(tmp_path / "again", **again), QUIET)
    assert weights(tmp_path / "again") == weights(tmp_path / "run")


@every_family
def test_a_run_with_auto_values_is_resumed_with_the_same_command(family, tmp_path, monkeypatch):
    run(left_open(tmp_path / "run", family, max_steps=2), QUIET)
    before = config(tmp_path / "run")
    monkeypatch.setattr("defeat.assembly.automatic.object_statistics", None)
    assert run(left_open(tmp_path / "run", family, max_steps=2, resume=True), QUIET).finished
    assert config(tmp_path / "run") == before
    with pytest.raises(InputError, match=r"lr was 0.0025 and is 0.5"):
        run(left_open(tmp_path / "run", family, max_steps=2, resume=True, lr=0.5), QUIET)


@pytest.mark.slow
@every_family
@pytest.mark.parametrize("written", ["all", "none"])
def test_an_old_run_with_the_old_defaults_is_resumed_by_the_command_that_does_not_name_them(family, written, tmp_path):
    # Before, the command line wrote all options into config.yaml, and Python those that were given.
    old = tiny_options(family) if written == "all" else {n: v for n, v in tiny_options(family).items() if n in SMALLER}
    given = {"neck_channels": 16, "max_steps": 2}
    run(left_open(tmp_path / "run", family, lr=0.01, detector_options=tiny_options(family), **given), QUIET)
    path = tmp_path / "run" / "config.yaml"
    path.write_text(yaml.safe_dump(config(tmp_path / "run") | {"detector_options": old}))
    assert run(left_open(tmp_path / "run", family, resume=True, max_steps=2), QUIET).finished


def test_settings_missing_in_a_config_have_their_old_defaults(tmp_path):
    result = as_begun(left_open(tmp_path), {"detector_options": "no map", "lr": None})
    assert result.numbers == {"neck_channels": 256, "lr": 0.01, "schedule": "step"}
    assert as_begun(left_open(tmp_path, eval_every="auto"), {}).numbers["eval_every"] == 1
    assert "eval_every" not in as_begun(left_open(tmp_path, eval_every="auto"), {"eval_every": "auto"}).numbers
    assert result.options == {}
    assert result.describe() == ""


@pytest.mark.parametrize(("size", "channels"), [(800, 256), (512, 256), (511, 128), (256, 128), (255, 64), (64, 64)])
def test_the_neck_follows_the_size(size, channels, tmp_path):
    given = left_open(tmp_path, size=size, max_size=None)
    assert choose(given, data()).numbers["neck_channels"] == channels


@pytest.mark.parametrize(
    ("change", "epochs"),
    [
        ({}, 75),  # 4 steps per epoch
        ({"accumulate": 4}, 100),
        ({"batch_size": 1}, 38),
        ({"patience": 2, "eval_every": 1}, 375),
        ({"max_steps": 50}, 13),
        ({"max_steps": 3}, 1),
        ({"quantise": "int8"}, 12),
    ],
)
def test_the_epochs_give_enough_steps(change, epochs, tmp_path):
    chosen = choose(left_open(tmp_path, epochs="auto", **change), data())
    assert chosen.numbers["epochs"] == epochs
    assert f"{epochs} epoch{'s' * (epochs > 1)}" in chosen.describe()


@pytest.mark.parametrize(("epoch_steps", "epochs"), [(1, 100), (10, 30), (20, 15), (24, 13), (25, 12), (5000, 12)])
def test_a_small_data_set_is_trained_for_three_hundred_steps(epoch_steps, epochs, tmp_path):
    assert number_of_epochs(left_open(tmp_path, epochs="auto", max_steps=None), epoch_steps) == epochs


@pytest.mark.parametrize(
    ("evaluated", "change", "interval"),
    [
        (0, {}, 1),
        (2, {"epochs": 60}, 1),  # a quarter of the 8 training images
        (10, {"epochs": 60}, 5),
        (10, {"epochs": 12}, 3),  # four evaluations
        (10, {"epochs": 3}, 1),
        (10, {"epochs": 60, "patience": 2}, 1),
    ],
)
def test_evaluations_take_an_eighth_of_the_time(evaluated, change, interval, tmp_path):
    given = left_open(tmp_path, eval_every="auto", **change)
    training = data()
    assert len(training) == 8
    assert choose(given, training, evaluated_images=evaluated).numbers["eval_every"] == interval


@pytest.mark.parametrize(("family", "others"), [("retinanet", "faster_rcnn"), ("faster_rcnn", "retinanet")])
def test_a_student_has_the_neck_of_its_teacher_and_the_head_where_families_are_equal(family, others, tmp_path):
    own = load(save_teacher(tmp_path / "own", family, options=tiny_options(family, box_representation_size=24)))
    foreign = load(save_teacher(tmp_path / "foreign", others))
    given = left_open(tmp_path, family, tmp_path / "own", detector_options={})
    assert choose(given, data(), own).numbers["neck_channels"] == 24
    assert choose(given, data(), foreign).numbers["neck_channels"] == 24
    name, theirs = {"retinanet": ("head_norm", "none"), "faster_rcnn": ("box_representation_size", 24)}[family]
    assert choose(given, data(), own).options[name] == theirs
    assert choose(given, data(), foreign).options[name] != theirs


@fitted_anchors
def test_a_student_has_the_anchors_of_its_teacher_where_family_and_size_are_equal(family, tmp_path):
    options = tiny_options(family, anchor_sizes=[7, 14, 28, 56, 112])
    teacher = load(save_teacher(tmp_path / "teacher", family, options=options))

    def anchors(**changes):
        given = left_open(tmp_path, family, tmp_path / "teacher", **changes)
        return list(choose(given, data(), teacher).options["anchor_sizes"])

    assert anchors() == [7, 14, 28, 56, 112]
    baseline = left_open(tmp_path, family, size=96, max_size=160)
    fitted = list(choose(baseline, data()).options["anchor_sizes"])
    assert anchors(size=96, max_size=160) == fitted != [7, 14, 28, 56, 112]


def test_the_rate_follows_the_images_of_all_devices(tmp_path):
    assert (learning_rate(8), learning_rate(16), learning_rate(1)) == (0.01, 0.02, 0.00125)
    assert (learning_rate(8, "adamw"), learning_rate(32, "adamw")) == (2e-4, 4e-4)
    assert left_open(tmp_path, devices=4, nodes=2).processes == 8
    assert choose(left_open(tmp_path, devices=4, nodes=2), data()).numbers["lr"] == 0.02
    assert left_open(tmp_path, devices="auto", nodes=2).processes == 2  # on a CPU


def test_given_values_are_not_chosen(tmp_path):
    given = settings(tmp_path, schedule="step")
    assert is_chosen(given)
    assert not is_chosen(left_open(tmp_path))
    assert not is_chosen(settings(tmp_path, schedule="step", lr="auto"))
    assert not is_chosen(settings(tmp_path))
    parts = assemble(given, QUIET)
    assert parts.choices.to_dict() == {}
    assert parts.choices.describe() == ""


def test_a_plan_shows_and_writes_the_chosen_values(tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    made = make_plan(left_open(tmp_path / "run", teacher=teacher), QUIET)
    written = json.loads((tmp_path / "run" / "plan.json").read_text())["chosen"]
    assert (written["neck_channels"], written["lr"]) == (24, 0.0025)
    assert written["anchor_sizes"] == [32, 64, 128, 256, 512]  # the teacher's
    shown = io.StringIO()
    print_plan(made, Console(file=shown, width=200))
    assert "chosen for this data: anchors 32 64 128 256 512 px" in shown.getvalue()


@pytest.mark.slow
def test_a_comparison_chooses_once_for_all_cells(tmp_path, monkeypatch):
    teacher = save_teacher(tmp_path / "teacher", neck_channels=16)
    given = shared_settings(left_open(tmp_path / "m", teacher=teacher, size=96, max_size=160, max_steps=1))
    assert bench(methods="defeat", seeds=1, console=QUIET, **given).exit_code == 0
    shared = yaml.safe_load((tmp_path / "m" / "bench.yaml").read_text())["settings"]
    chosen = [shared[name] for name in ("lr", "neck_channels", "detector_options")]
    assert chosen[:2] == [0.0025, 16]
    for cell in ("none-seed0", "defeat-seed0"):
        result = config(tmp_path / "m" / cell)
        assert [result[name] for name in ("lr", "neck_channels", "detector_options")] == chosen
    monkeypatch.setattr("defeat.assembly.automatic.object_statistics", None)
    assert bench(methods="fgfi", seeds=1, console=QUIET, **given).exit_code == 0
    assert config(tmp_path / "m" / "fgfi-seed0")["detector_options"] == chosen[2]


def test_a_long_training_reports_faster_options_after_a_few_steps(tmp_path, monkeypatch):
    monkeypatch.setattr("defeat.engine.duration.LONG", 1e-3)
    shown = io.StringIO()
    run(settings(tmp_path / "run", epochs=4), Console(file=shown, width=500))
    (line,) = [line for line in shown.getvalue().splitlines() if "will take about" in line]
    assert "on this CPU; faster: --backbone tf_efficientnet_lite0" in line
    assert "--size" not in line  # 64 pixels are few


def test_a_short_training_reports_no_duration(tmp_path):
    shown = io.StringIO()
    run(settings(tmp_path / "run", epochs=4), Console(file=shown, width=500))
    assert "will take" not in shown.getvalue()
    assert not LongRunNotice().done


def test_faster_options_follow_from_the_settings(tmp_path):
    large = Experiment(tiny_detector("retinanet", size=800), data(), workers=2)
    assert duration_message(2040, large, 0.5) == (
        "This training will take about 34 minutes on this CPU; faster: --size 384, --backbone tf_efficientnet_lite0, "
        "--workers 5, fewer --epochs, a GPU."
    )
    student = tiny_detector("retinanet", backbone="tf_efficientnet_lite0")
    taught = Experiment(student, data(), distillation=Distillation(student, Imitation(student.info, student.info)))
    assert "about 2.5 hours" in duration_message(9000, taught)
    assert "faster: --cache-teacher FOLDER, fewer --epochs, a GPU." in duration_message(9000, taught)
