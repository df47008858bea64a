"""The plan predicts what the run does, and refuses what cannot work."""

import json
from io import StringIO

import pytest
from rich.console import Console

from defeat.assembly.plan import make_plan
from defeat.cli import main
from defeat.detector import family_options
from defeat.errors import InputError
from defeat.report.plan import print_plan
from tests.detector.tiny import pairs_of_families
from tests.engine.tiny_runs import CLASSES, results, save_teacher, settings, tiny_run

pytestmark = pytest.mark.usefixtures("small_demo")
QUIET = Console(quiet=True)


def printed(made):
    output = StringIO()
    print_plan(made, Console(file=output, width=200))
    return output.getvalue()


@pytest.mark.parametrize(("family", "teacher_family"), pairs_of_families())
def test_a_plan_describes_data_pair_levels_and_classes(family, teacher_family, tmp_path):
    teacher = save_teacher(tmp_path / "teacher", teacher_family, size=128, max_size=192)
    made = make_plan(settings(tmp_path / "run", family, teacher, method_options={"background_weight": 2.0}), QUIET)
    assert [(one.split, one.images) for one in made.data] == [("train", 8), ("val", 4)]
    assert made.data[0].boxes == sum(made.data[0].per_class.values()) > 0
    assert (made.teacher.family, made.teacher.size, made.student.size) == (teacher_family, 128, 64)
    assert min(made.teacher.parameters, made.student.parameters, made.teacher.gflops, made.student.gflops) > 0
    if family == teacher_family:
        assert made.teacher.gflops > made.student.gflops
    assert made.classes == {name: [name] for name in CLASSES}
    strides, of_teacher = family_options(family).strides, family_options(teacher_family).strides
    shared = [stride for stride in strides if stride in of_teacher]
    channels = [(stride, made.student.neck[stride], made.teacher.neck[stride]) for stride in shared]
    assert [(one.stride, one.channels, one.teacher_channels) for one in made.levels] == channels
    assert made.weights == {"object_weight": 32.0, "background_weight": 2.0}
    assert made.pulls.keys() == {"neck_object", "neck_background"} < made.losses.keys()
    assert all(value > 0 for value in made.pulls.values())
    assert made.step_seconds > 0
    assert made.run_seconds > made.epoch_seconds > 0
    assert made.memory_bytes > 1e8
    left_out = [note for note in made.notes if "left out" in note]
    assert len(left_out) == (shared != list(strides))
    text = printed(made)
    for word in (
        "neck_background",
        f"teacher: {teacher_family}",
        "6 of 6 shared: cross, disc",
        "object_weight 32",
        *left_out,
    ):
        assert word in text, word


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_plan_names_the_kernel_of_the_adaptation_layers(kernel, tmp_path):
    chosen = {"adaptation_kernel": kernel}
    teacher = save_teacher(tmp_path / "teacher")
    made = make_plan(settings(tmp_path / "run", "retinanet", teacher, method_options=chosen), QUIET)
    assert {one.kernel for one in made.levels} == {kernel}
    assert f"{kernel} x {kernel} convolution" in printed(made)


def test_a_plan_is_written_and_the_run_takes_as_many_steps(tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    options = {"epochs": 2, "batch_size": 3}
    made = make_plan(settings(tmp_path / "run", "retinanet", teacher, **options), QUIET)
    written = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert written["steps"] == made.steps
    assert written["levels"][0]["teacher_channels"] == 24
    folder = tiny_run(tmp_path / "run", teacher=teacher, **options).folder  # the plan does not count as a run
    assert results(folder)["steps"] == made.steps
    # The prediction of the disk space is right within a factor of three.
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert 0.3 < size / made.disk_bytes < 3
    with pytest.raises(InputError, match="already contains a run"):
        make_plan(settings(tmp_path / "run", "retinanet", teacher, **options), QUIET)


def test_renamed_and_missing_classes_are_part_of_the_plan(tmp_path):
    names = {"kreuz": "cross", "kreuzchen": "cross"}
    teacher = save_teacher(tmp_path / "teacher", classes=("kreuz", "disc", "kreuzchen", "haus"))
    made = make_plan(settings(tmp_path / "run", "retinanet", teacher, class_map=names), QUIET)
    assert made.classes["cross"] == ["kreuz", "kreuzchen"]
    assert made.classes["disc"] == ["disc"]
    assert made.classes["ring"] == []
    text = printed(made)
    assert "2 of 6 shared: cross (the teacher's kreuz + kreuzchen), disc" in text
    assert "does not know ring, square, star, triangle" in text
    assert "does not know the teacher's haus" in text


@pytest.mark.slow
def test_a_balanced_plan_shows_the_weights_of_the_run_and_writes_nothing_else(tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    given = settings(tmp_path / "run", "retinanet", teacher, balance=0.5)
    made = make_plan(given, QUIET)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["plan.json"]
    tiny_run(tmp_path / "run", teacher=teacher, balance=0.5, max_steps=1)
    assert json.loads((tmp_path / "run" / "balance.json").read_text())["after"] == made.weights


def test_strong_gradients_and_a_split_used_twice_are_reported(tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    loud = make_plan(settings(tmp_path / "run", "retinanet", teacher), QUIET)
    assert loud.together > 3  # of untrained networks
    assert sum("try --balance 1" in note for note in loud.notes) == 1
    same = settings(tmp_path / "same", "retinanet", teacher, eval_split="train", method_options={"object_weight": 1e-9})
    assert sum("evaluated on its own training images" in note for note in make_plan(same, QUIET).notes) == 1


def test_what_cannot_work_is_one_sentence(tmp_path, capsys):
    teacher = save_teacher(tmp_path / "teacher", classes=("ship", "plane"))
    words = ["plan", "--data", "demo", "--backbone", "mobilenetv3_small_050", "--weights", "none", "--size", "64"]
    words += ["--teacher", str(teacher), "--out", str(tmp_path / "run"), "--method.positive-weight", "1"]
    words += ["--allow-weak-teacher"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "none of the student's classes" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_plan_gives_the_cost_of_neck_widths(tmp_path):
    teacher = save_teacher(tmp_path / "teacher", neck_channels=16)
    made = make_plan(settings(tmp_path / "plan", teacher=teacher), Console(quiet=True))
    wide, narrow = made.necks
    assert (wide.channels, narrow.channels) == (16, 8)
    assert wide.parameters == made.student.parameters > narrow.parameters
    assert wide.gflops > narrow.gflops > 0
    assert wide.latency_ms > 0
    assert narrow.latency_ms > 0


def test_a_plan_has_both_accuracies_of_a_teacher_that_was_trained_here(tmp_path):
    teacher = tiny_run(tmp_path / "teacher", max_steps=1).folder
    content = results(teacher)
    (teacher / "results.json").write_text(json.dumps(content | {"metrics": content["metrics"] | {"AP50": 12.5}}))
    made = make_plan(settings(tmp_path / "run", teacher=teacher, allow_weak_teacher=True), QUIET)
    assert made.teacher_evaluated_ap50 == 12.5
    assert "12.5 on the images that its own run was evaluated on" in printed(made)
    (teacher / "results.json").unlink()
    made = make_plan(settings(tmp_path / "other", teacher=teacher, allow_weak_teacher=True), QUIET)
    assert made.teacher_evaluated_ap50 is None
    assert "its own run" not in printed(made)
