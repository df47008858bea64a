"""Students with the architecture of another detector, and fewer channels."""

import pytest
import torch
from rich.console import Console

from defeat.assembly.plan import make_plan
from defeat.assembly.students import build_student, with_given_architecture
from defeat.detector import load
from defeat.errors import InputError
from tests.engine.test_resume import stop_after
from tests.engine.tiny_runs import CLASSES, results, save_teacher, tensors, tiny_run, weights
from tests.engine.tiny_runs import settings as tiny_settings

pytest.importorskip("torch_pruning", reason="torch-pruning is missing: it is in the extra slim")
pytestmark = pytest.mark.usefixtures("small_demo")
# What the architecture of another detector determines has its default.
OPEN = {"detector": "faster_rcnn", "backbone": "resnet50", "size": 800, "max_size": None, "neck_channels": "auto"}
OPEN |= {"detector_options": {}, "weights": "auto"}


def given(teacher, **changes):
    return OPEN | {"student_from": str(teacher)} | changes


@pytest.mark.parametrize("width", [1.0, 0.5])
def test_the_student_starts_with_the_weights_of_the_detector(tmp_path, width):
    teacher = save_teacher(tmp_path / "teacher")
    settings = with_given_architecture(tiny_settings(tmp_path / "run", **given(teacher, width=width)))
    student, trained = build_student(settings, CLASSES), load(teacher)
    assert settings.detector == "retinanet"
    assert student.info.anchors == trained.info.anchors
    state = trained.state_dict()
    for name, tensor in student.state_dict().items():
        if width == 1 or not name.startswith(("backbone.body", "backbone.fpn.inner_blocks")):
            assert torch.equal(tensor, state[name]), name
    assert (student.spec.width, student.spec.classes) == (width, CLASSES)


def test_options_that_repeat_those_of_the_detector_are_accepted(tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    options = {"anchor_sizes": (32, 64, 128, 256, 512)}  # a tuple here, a list in the file
    changes = {"detector": "retinanet", "detector_options": options, "backbone": "mobilenetv3_small_050"}
    settings = with_given_architecture(tiny_settings(tmp_path / "run", **given(teacher, **changes)))
    assert list(settings.detector_options["anchor_sizes"]) == [32, 64, 128, 256, 512]


def test_rows_of_the_head_follow_the_names_of_the_classes(tmp_path):
    teacher = save_teacher(tmp_path / "teacher", classes=("disc", "moon", "cross"))
    settings = with_given_architecture(tiny_settings(tmp_path / "run", **given(teacher)))
    student, trained = build_student(settings, CLASSES), load(teacher)
    name = "head.classification_head.cls_logits.bias"
    mine, theirs = (
        detector.state_dict()[name].reshape(-1, classes) for detector, classes in ((student, 6), (trained, 3))
    )
    assert torch.equal(mine[:, CLASSES.index("disc")], theirs[:, 0])
    assert torch.equal(mine[:, CLASSES.index("cross")], theirs[:, 2])


@pytest.mark.slow
def test_a_narrower_student_is_trained_resumed_and_continued(tmp_path, monkeypatch):
    teacher = save_teacher(tmp_path / "teacher")
    settings = given(teacher, width=0.5)
    whole = tiny_run(tmp_path / "whole", teacher=teacher, **settings)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        tiny_run(tmp_path / "stopped", teacher=teacher, **settings)
    resumed = tiny_run(tmp_path / "stopped", teacher=teacher, resume=True, **settings)
    assert weights(resumed.folder) == weights(whole.folder)
    student = load(whole.folder)
    assert student.spec.width == 0.5
    assert results(whole.folder)["parameters"] == sum(parameter.numel() for parameter in student.parameters())
    assert results(whole.folder)["inherited"]["parts"] == []
    options = {"neck_channels": 24, "weights": str(whole.folder), "max_steps": 1}
    continued = tiny_run(tmp_path / "continued", teacher=teacher, **options)
    shapes = {name: tensor.shape for name, tensor in tensors(whole.folder).items()}
    assert {name: tensor.shape for name, tensor in tensors(continued.folder).items()} == shapes


def test_the_plan_shows_the_narrower_student(tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    settings = tiny_settings(tmp_path / "plan", teacher=teacher, **given(teacher, width=0.5))
    plan = make_plan(settings, Console(quiet=True))
    assert plan.student.parameters < 0.5 * plan.teacher.parameters
    assert plan.inherited == [f"Nothing is inherited: the student starts with the weights of {teacher}."]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "resnet18"}, r"determines --backbone \(mobilenetv3_small_050\): leave it out"),
        ({"size": 320}, r"determines --size \(64\): leave it out"),
        ({"detector_options": {"rpn_nms_thresh": 0.3}}, "Unknown option of retinanet 'rpn_nms_thresh'"),
        ({"detector": "retinanet", "detector_options": {"score_thresh": 0.3}}, r"--detector.score-thresh \(0.05\)"),
        ({"weights": "none"}, "leave out --weights"),
        ({"student_from": "nowhere"}, "nowhere is not a run directory"),
        ({"width": 0.01}, "--width must be 0.1 or more"),
    ],
)
def test_contradictions_are_refused(tmp_path, changes, message):
    teacher = save_teacher(tmp_path / "teacher")
    with pytest.raises(InputError, match=message):
        tiny_run(tmp_path / "run", teacher=teacher, **given(teacher, **changes))
