"""A student inherits its teacher's neck and head, as far as they fit, and nothing else changes."""

import pytest
import torch

from defeat.detector.families.retinanet import from_torchvision
from defeat.distillation import ClassMap
from defeat.distillation.inheritance import inherit, inherited_parts
from defeat.errors import InputError
from tests.detector.tiny import CLASSES, FIXED_BACKBONES, tiny_batch, tiny_detector, tiny_options
from tests.detector.tiny import COMPOSED as FAMILIES

every_family = pytest.mark.parametrize("family", FAMILIES)


def pair(family, teacher_classes=CLASSES, **teacher):
    student = tiny_detector(family, seed=0)
    return student, tiny_detector(family, seed=1, backbone="resnet18", classes=teacher_classes, **teacher)


def inherited(student, teacher, choice="neck+head"):
    return inherit(student, teacher, ClassMap(student.info.classes, teacher.info.classes), choice)


@every_family
def test_all_tensors_of_neck_and_head_with_equal_names_and_shapes_are_inherited(family):
    student, teacher = pair(family)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    result = inherited(student, teacher)
    count = 0
    for name, value in student.state_dict().items():
        teacher_value = teacher.state_dict().get(name)
        part = student.part_of(name)
        # Lateral layers of the neck read the body's channels, which differ between the two backbones.
        fits = part != "backbone" and teacher_value is not None and teacher_value.shape == value.shape
        lateral = (
            "inner_blocks" in name
            and student.state_dict()[name.replace("bias", "weight")].shape[1:]
            != (teacher.state_dict()[name.replace("bias", "weight")].shape[1:])
        )
        expected = teacher_value if fits and not lateral else before[name]
        assert torch.equal(value, expected), name
        count += fits and not lateral
    assert result.tensors == count > 10
    assert {name.split(".")[2] for name in result.left_out} == (
        set() if family in FIXED_BACKBONES else {"inner_blocks"}
    )
    assert all("its shape is" in reason for reason in result.left_out.values())


@every_family
def test_only_the_neck_may_be_inherited(family):
    student, teacher = pair(family)
    before_all = {name: value.clone() for name, value in student.state_dict().items()}
    before = {name: value for name, value in before_all.items() if student.part_of(name) == "head"}
    assert inherited(student, teacher, "neck").parts == ("neck",)
    assert all(torch.equal(student.state_dict()[name], value) for name, value in before.items())
    neck = [name for name in before_all if student.part_of(name) == "neck" and "inner_blocks" not in name]
    assert neck
    assert all(torch.equal(student.state_dict()[name], teacher.state_dict()[name]) for name in neck)


@every_family
def test_a_student_with_the_same_backbone_that_inherits_all_gives_the_teachers_predictions(family):
    # A student with the teacher's body that inherits everything else is the teacher.
    teacher = tiny_detector(family, seed=1).eval()
    student = tiny_detector(family, seed=0).eval()
    student.backbone.body.load_state_dict(teacher.backbone.body.state_dict())
    result = inherited(student, teacher)
    assert result.parameters == result.outside
    assert not result.left_out
    image = torch.rand(3, 64, 80)
    for of_student, of_teacher in zip(student.predict([image]), teacher.predict([image]), strict=True):
        assert torch.equal(of_student.boxes, of_teacher.boxes)
        assert torch.equal(of_student.scores, of_teacher.scores)


@every_family
def test_classes_in_another_order_get_their_own_rows(family):
    # The teacher has the same classes, in another order, and one more: predictions of the shared ones must be equal.
    teacher_classes = ("owl", "fox", "cat", "dog")
    options = {"options": tiny_options(family, score_thresh=0.0, box_score_thresh=0.0)}
    teacher = tiny_detector(family, seed=1, classes=teacher_classes, **options).eval()
    student = tiny_detector(family, seed=0, **options).eval()
    student.backbone.body.load_state_dict(teacher.backbone.body.state_dict())
    classes = ClassMap(student.info.classes, teacher_classes)
    assert not inherit(student, teacher, classes, "neck+head").left_out
    batch = tiny_batch(student)
    of_student, of_teacher = (detector.forward_teacher(detector.adopt(batch)) for detector in (student, teacher))
    if of_student.dense is not None:
        columns = [2, 3, 0] + [4] * (student.info.background == "last")
        expected = of_teacher.dense.logits[..., columns]
        # Layers with other numbers of rows may round differently.
        assert (of_student.dense.logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    else:
        boxes = of_student.proposals.boxes
        logits, reference = of_student.score_proposals(boxes), of_teacher.score_proposals(boxes)
        torch.testing.assert_close(logits, reference[:, [2, 3, 0, 4]])  # the background is last


@every_family
def test_a_class_unknown_to_the_teacher_keeps_its_initialisation_and_merged_ones_get_the_mean(family):
    teacher = tiny_detector(family, seed=1, classes=("big dog", "small dog", "cat"))
    student = tiny_detector(family, seed=0)
    names = student.class_rows()
    before = {name: student.state_dict()[name].clone() for name in names}
    classes = ClassMap(student.info.classes, ("dog", "dog", "cat"))
    inherit(student, teacher, classes, "neck+head")
    for name, labels in names.items():
        student_tensor, teacher_tensor = student.state_dict()[name], teacher.state_dict()[name]
        big_dog, small_dog, teacher_cat = (teacher_tensor[teacher.class_rows()[name] == label] for label in (0, 1, 2))
        owl, dog, cat = (labels == label for label in (2, 1, 0))
        assert torch.equal(student_tensor[owl], before[name][owl])
        assert torch.equal(student_tensor[cat], teacher_cat)
        torch.testing.assert_close(student_tensor[dog], (big_dog + small_dog) / 2)


def test_rows_of_a_torchvision_model_with_labels_from_one_are_matched():
    from torchvision.models.detection import retinanet_resnet50_fpn

    core = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)
    teacher = from_torchvision(core, CLASSES, "retinanet_resnet50_fpn")
    student = tiny_detector("retinanet", seed=0, neck_channels=256)
    inherited(student, teacher)
    logits = core.head.classification_head.cls_logits
    expected = logits.weight.detach().unflatten(0, (-1, 4))[:, 1:]  # column 0 belongs to no class
    weight = student.head.classification_head.cls_logits.weight.detach().unflatten(0, (-1, 3))
    assert torch.equal(weight, expected)


def test_a_head_with_other_layer_widths_inherits_what_fits_and_reports_the_rest():
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
def test_nothing_is_inherited_from_a_teacher_with_another_neck(family):
    # A head trained for other channels, behind a new neck, gave a student of 0 AP.
    student, teacher = pair(family, neck_channels=24)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    result = inherited(student, teacher, "auto")
    assert (result.parts, result.tensors) == ((), 0)
    fixed = family in FIXED_BACKBONES
    assert ("--neck-channels 24" in result.reason) is not fixed
    assert all(torch.equal(student.state_dict()[name], value) for name, value in before.items())
    widths = "128, 256, 480, 512, 672" if fixed else "24"
    with pytest.raises(InputError, match=f"--inherit neck is not possible: the teacher's neck has {widths} channels"):
        inherited(student, teacher, "neck")


def test_auto_depends_on_the_pair():
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
