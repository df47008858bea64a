"""A student begins with its teacher's neck and head, as far as they fit, and nothing else changes."""

import pytest
import torch

from defeat.detector import FAMILIES
from defeat.detector.families.retinanet import from_torchvision
from defeat.distillation import ClassMap
from defeat.distillation.inheritance import inherit, inherited_parts
from defeat.errors import InputError
from tests.detector.tiny import CLASSES, tiny_batch, tiny_detector, tiny_options

every_family = pytest.mark.parametrize("family", FAMILIES)


def pair(family, teacher_classes=CLASSES, **teacher):
    student = tiny_detector(family, seed=0)
    return student, tiny_detector(family, seed=1, backbone="resnet18", classes=teacher_classes, **teacher)


def inherited(student, teacher, choice="neck+head"):
    return inherit(student, teacher, ClassMap(student.info.classes, teacher.info.classes), choice)


@every_family
def test_all_tensors_of_neck_and_head_with_equal_names_and_shapes_are_taken(family):
    student, teacher = pair(family)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    result = inherited(student, teacher)
    taken = 0
    for name, value in student.state_dict().items():
        theirs = teacher.state_dict().get(name)
        part = student.part_of(name)
        # Lateral layers of the neck read the body's channels, which differ between the two backbones.
        fits = part != "backbone" and theirs is not None and theirs.shape == value.shape
        lateral = (
            "inner_blocks" in name
            and student.state_dict()[name.replace("bias", "weight")].shape[1:]
            != (teacher.state_dict()[name.replace("bias", "weight")].shape[1:])
        )
        expected = theirs if fits and not lateral else before[name]
        assert torch.equal(value, expected), name
        taken += fits and not lateral
    assert result.tensors == taken > 10
    assert {name.split(".")[2] for name in result.left_out} == {"inner_blocks"}
    assert all("its shape is" in reason for reason in result.left_out.values())


@every_family
def test_the_neck_alone_may_be_taken(family):
    student, teacher = pair(family)
    before = {name: value.clone() for name, value in student.state_dict().items() if student.part_of(name) == "head"}
    assert inherited(student, teacher, "neck").parts == ("neck",)
    assert all(torch.equal(student.state_dict()[name], value) for name, value in before.items())
    assert torch.equal(student.backbone.fpn.layer_blocks[0][0].weight, teacher.backbone.fpn.layer_blocks[0][0].weight)


@every_family
def test_a_student_with_the_same_backbone_that_takes_all_gives_the_teachers_predictions(family):
    # A student with the teacher's body and all that it can inherit is the teacher.
    teacher = tiny_detector(family, seed=1).eval()
    student = tiny_detector(family, seed=0).eval()
    student.backbone.body.load_state_dict(teacher.backbone.body.state_dict())
    result = inherited(student, teacher)
    assert result.parameters == result.outside
    assert not result.left_out
    image = torch.rand(3, 64, 80)
    for ours, theirs in zip(student.predict([image]), teacher.predict([image]), strict=True):
        assert torch.equal(ours.boxes, theirs.boxes)
        assert torch.equal(ours.scores, theirs.scores)


@every_family
def test_classes_in_another_order_take_their_own_rows(family):
    # The teacher knows the same classes, in another order, and one more: of the shared ones both must say the same.
    theirs = ("owl", "fox", "cat", "dog")
    options = {"options": tiny_options(family, score_thresh=0.0, box_score_thresh=0.0)}
    teacher = tiny_detector(family, seed=1, classes=theirs, **options).eval()
    student = tiny_detector(family, seed=0, **options).eval()
    student.backbone.body.load_state_dict(teacher.backbone.body.state_dict())
    classes = ClassMap(student.info.classes, theirs)
    assert not inherit(student, teacher, classes, "neck+head").left_out
    batch = tiny_batch(student)
    ours, others = (one.forward_teacher(one.adopt(batch)) for one in (student, teacher))
    if family == "retinanet":
        assert torch.equal(ours.dense.logits, others.dense.logits[..., [2, 3, 0]])
    else:
        boxes = ours.proposals.boxes
        logits, reference = ours.score_proposals(boxes), others.score_proposals(boxes)
        assert torch.equal(logits, reference[:, [2, 3, 0, 4]])  # the background is last


@every_family
def test_a_class_that_the_teacher_does_not_know_begins_as_usual_and_merged_ones_take_the_mean(family):
    teacher = tiny_detector(family, seed=1, classes=("big dog", "small dog", "cat"))
    student = tiny_detector(family, seed=0)
    names = student.class_rows()
    before = {name: student.state_dict()[name].clone() for name in names}
    classes = ClassMap(student.info.classes, ("dog", "dog", "cat"))
    inherit(student, teacher, classes, "neck+head")
    for name, rows in names.items():
        ours, theirs = student.state_dict()[name], teacher.state_dict()[name]
        their_rows = teacher.class_rows()[name]
        owl, dog, cat = (rows == label for label in (2, 1, 0))
        assert torch.equal(ours[owl], before[name][owl])
        assert torch.equal(ours[cat], theirs[their_rows == 2])
        torch.testing.assert_close(ours[dog], (theirs[their_rows == 0] + theirs[their_rows == 1]) / 2)


def test_rows_of_a_torchvision_model_which_counts_classes_from_one_are_found():
    from torchvision.models.detection import retinanet_resnet50_fpn

    core = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)
    teacher = from_torchvision(core, CLASSES, "retinanet_resnet50_fpn")
    student = tiny_detector("retinanet", seed=0, neck_channels=256)
    inherited(student, teacher)
    logits = core.head.classification_head.cls_logits
    theirs = logits.weight.detach().unflatten(0, (-1, 4))[:, 1:]  # column 0 belongs to no class
    ours = student.head.classification_head.cls_logits.weight.detach().unflatten(0, (-1, 3))
    assert torch.equal(ours, theirs)


def test_a_head_with_wider_layers_takes_what_fits_and_says_what_does_not():
    options = tiny_options("faster_rcnn") | {"box_representation_size": 24}
    student, teacher = pair("faster_rcnn", options=options)
    result = inherited(student, teacher)
    assert {name for name in result.left_out if name.startswith("roi_heads")} == {
        f"roi_heads.{layer}.{kind}"
        for layer in ("box_head.fc6", "box_head.fc7", "box_predictor.cls_score", "box_predictor.bbox_pred")
        for kind in ("weight", "bias")
    }
    assert torch.equal(student.rpn.head.cls_logits.weight, teacher.rpn.head.cls_logits.weight)


@every_family
def test_nothing_is_taken_from_a_teacher_with_another_neck(family):
    # A head that had learned to read other channels, behind a new neck, is what a student of 0 AP is made of.
    student, teacher = pair(family, neck_channels=24)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    result = inherited(student, teacher, "auto")
    assert (result.parts, result.tensors) == ((), 0)
    assert "--neck-channels 24" in result.reason
    assert all(torch.equal(student.state_dict()[name], value) for name, value in before.items())
    with pytest.raises(InputError, match="--inherit neck can't be done: the teacher's neck has 24 channels"):
        inherited(student, teacher, "neck")


def test_what_auto_takes_depends_on_the_pair():
    student = tiny_detector("retinanet").info
    assert inherited_parts(student, tiny_detector("retinanet", backbone="resnet18").info, "auto") == (
        ("neck", "head"),
        "",
    )
    others = tiny_options("retinanet", anchor_sizes=(8, 16, 32, 64, 128))
    parts, reason = inherited_parts(student, tiny_detector("retinanet", options=others).info, "auto")
    assert parts == ("neck",)
    assert "anchors" in reason
    parts, reason = inherited_parts(student, tiny_detector("faster_rcnn").info, "auto")
    assert parts == ()
    assert "the teacher is a faster_rcnn and the student a retinanet" in reason
    assert inherited_parts(student, tiny_detector("retinanet").info, "none") == ((), "")
    with pytest.raises(InputError, match="Did you mean 'neck'"):
        inherited_parts(student, student, "nek")
