"""Runs with several teachers at once, which may know different classes."""

import pytest
import yaml

import defeat
from defeat.assembly import unlabelled as unlabelled_module
from defeat.assembly.plan import make_plan
from defeat.cli import main
from defeat.errors import InputError
from tests.detector.tiny import tiny_detector
from tests.engine.test_resume import stop_after
from tests.engine.test_unlabelled import folder  # noqa: F401 (a fixture)
from tests.engine.tiny_runs import CLASSES, lines, results, save_teacher, settings, tiny_run, weights

pytestmark = pytest.mark.usefixtures("small_demo")
HEADS = {"positive_weight": 1.0, "negative_weight": 1.0}


@pytest.fixture
def teachers(tmp_path):
    """Paths of two teachers: one knows the first four classes, in another order, the other the last three."""
    first = save_teacher(tmp_path / "first", classes=CLASSES[3::-1])
    second = save_teacher(tmp_path / "second", "fcos", classes=CLASSES[3:], size=128, max_size=192)
    return f"{first},{second}"


def test_each_teacher_has_its_terms_and_the_run_is_repeated_and_resumed(teachers, tmp_path, monkeypatch):
    options = {"method_options": HEADS, "epochs": 2, "teacher_shares": [2.0, 1.0]}
    run = tiny_run(tmp_path / "run", teacher=teachers, **options)
    line = next(line for line in lines(run.folder) if "train/loss" in line)
    terms = {name.partition("/")[2] for name in line if name.startswith("train/teacher")}
    assert {name for name in terms if name.startswith("teacher1")} == {
        f"teacher1.{name}" for name in ("neck_object", "neck_background", "head_positive", "head_negative")
    }
    # The second is another kind of detector: its predictions can't be compared.
    assert {name for name in terms if name.startswith("teacher2")} == {
        "teacher2.neck_object",
        "teacher2.neck_background",
    }
    assert results(run.folder)["teacher"] == teachers
    assert results(run.folder)["teacher_kind"] == "2 teachers"
    arguments = ["--config", str(run.folder / "config.yaml"), "--out", str(tmp_path / "again")]
    assert main(["distill", *arguments]) == 0
    assert weights(tmp_path / "again") == weights(run.folder)
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        assert not tiny_run(tmp_path / "stopped", teacher=teachers, **options).finished
    assert tiny_run(tmp_path / "stopped", teacher=teachers, resume=True, **options).finished
    assert weights(tmp_path / "stopped") == weights(run.folder)


def test_the_second_teacher_and_its_share_change_the_student(teachers, tmp_path):
    first = teachers.partition(",")[0]
    runs = [
        tiny_run(tmp_path / name, teacher=given, max_steps=3, **options).folder
        for name, given, options in (
            ("alone", first, {}),
            ("both", teachers, {}),
            ("shares", teachers, {"teacher_shares": [1.0, 3.0]}),
        )
    ]
    assert len({weights(run) for run in runs}) == 3


@pytest.mark.slow
def test_the_student_inherits_from_the_first(teachers, tmp_path):
    first = save_teacher(tmp_path / "same", neck_channels=16)
    both = f"{first},{teachers.partition(',')[2]}"
    run = tiny_run(tmp_path / "run", teacher=both, max_steps=1, inherit="neck+head")
    alone = tiny_run(tmp_path / "alone", teacher=first, max_steps=1, inherit="neck+head")
    assert results(run.folder)["inherited"] == results(alone.folder)["inherited"]


@pytest.mark.slow
def test_unlabelled_images_get_the_boxes_of_both(teachers, folder, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(unlabelled_module, "REGION_SCORE", 0.0)
    run = tiny_run(tmp_path / "run", teacher=teachers, max_steps=2, unlabelled=str(folder))
    assert run.finished


@pytest.mark.slow
def test_in_python_teachers_are_a_list_of_objects_or_paths(teachers, tmp_path):
    given = {name: value for name, value in settings(tmp_path / "a").to_dict().items() if name != "out"}
    given |= {"allow_weak_teacher": True, "max_steps": 2}
    objects = [tiny_detector("retinanet", classes=CLASSES[:4]), tiny_detector("retinanet", seed=1, classes=CLASSES[3:])]
    run = defeat.distill(teacher=objects, method=defeat.methods.DeFeat, out=str(tmp_path / "objects"), **given)
    assert run.finished
    content = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert content["teacher"].count("RetinaNet") == 2
    paths = defeat.distill(teacher=teachers.split(","), out=str(tmp_path / "paths"), **given)
    assert results(paths.folder)["teacher"] == teachers


def test_a_plan_describes_both(teachers, tmp_path):
    plan = make_plan(settings(tmp_path / "run", teacher=teachers))
    assert plan.teacher_kind == "2 teachers"
    assert {name for name in plan.weights if name.startswith("teacher2")} == {
        "teacher2.object_weight",
        "teacher2.background_weight",
    }
    assert plan.classes == {name: [name] for name in CLASSES}
    assert any(note.startswith("teacher 2: ") for note in plan.notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_shares": [1.0]}, "needs a number for each of the 2"),
        ({"teacher_shares": [1.0, 0.0]}, "must be above 0 and finite"),
        ({"balance": 1.0}, "--balance belongs to a single teacher"),
        ({"cache_teacher": "folder"}, "--cache-teacher belongs to a single teacher"),
        ({"teacher_weights": "file"}, "--teacher-weights belongs to a single teacher"),
        ({"teacher": "a,"}, "names of teachers separated by commas"),
        ({"teacher": "a", "teacher_shares": [1.0]}, "belongs to several teachers"),
    ],
)
def test_what_several_teachers_can_not_have_is_refused(changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        settings(tmp_path / "run", **{"teacher": "a,b"} | changes)


def test_a_weak_teacher_among_several_is_refused(teachers, tmp_path):
    with pytest.raises(InputError, match="detects next to nothing"):
        tiny_run(tmp_path / "run", teacher=teachers, allow_weak_teacher=False)


def test_a_method_that_was_built_is_refused(teachers, tmp_path):
    given = {name: value for name, value in settings(tmp_path / "a").to_dict().items() if name != "out"}
    student, teacher = tiny_detector("retinanet", classes=CLASSES), tiny_detector("retinanet", classes=CLASSES)
    method = defeat.methods.DeFeat(student.info, teacher.info)
    with pytest.raises(InputError, match="Several teachers need a method each"):
        defeat.distill(
            teacher=teachers, method=method, out=str(tmp_path / "run"), **given | {"allow_weak_teacher": True}
        )
