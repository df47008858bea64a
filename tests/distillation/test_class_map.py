"""Classes meet by name: subset, superset, renamed, merged, in every combination of families."""

import math

import pytest
import torch

from defeat.detector import FAMILIES
from defeat.distillation import build_method
from defeat.distillation.class_map import ClassMap, renamed_classes
from defeat.errors import InputError
from defeat.types import Detections
from tests.detector.tiny import CLASSES, tiny_detector
from tests.distillation.made_up import info
from tests.distillation.test_methods import run


def log(*probabilities):
    return torch.tensor([[math.log(one) for one in probabilities]])


def test_the_same_classes_are_taken_as_they_are():
    same, logits, labels = ClassMap(("a", "b"), ("a", "b")), torch.randn(4, 3), torch.tensor([0, 1, 2, -1])
    assert same.identical
    assert same.student_logits(logits) is logits
    assert same.teacher_logits(logits) is logits
    assert same.labels(labels) is labels


def test_another_order_is_brought_into_the_students():
    other = ClassMap(("a", "b"), ("b", "a"))
    assert other.teacher_logits(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[2, 1, 3]]
    assert other.student_logits(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[1, 2, 3]]


def test_probabilities_of_the_shared_classes_and_the_background_are_renormalised():
    # The teacher gives a 0.2, x 0.5, b 0.1 and the background 0.2: without x, 0.4, 0.2 and 0.4 are left.
    some = ClassMap(("b", "a"), ("a", "x", "b"))
    found = some.teacher_logits(log(0.2, 0.5, 0.1, 0.2)).softmax(dim=1)
    assert found[0].tolist() == pytest.approx([0.2, 0.4, 0.4])
    # The student knows b and c beside the teacher's a: a 0.3 and the background 0.1 become 3/4 and 1/4.
    more = ClassMap(("c", "a", "b"), ("a",))
    assert more.student_logits(log(0.2, 0.3, 0.4, 0.1)).softmax(dim=1)[0].tolist() == pytest.approx([0.75, 0.25])


def test_probabilities_of_merged_classes_add_up():
    # car 0.1 and bus 0.3 are both a vehicle: 0.4, beside cat 0.2 and background 0.4.
    merged = ClassMap(("cat", "vehicle"), ("vehicle", "cat", "vehicle"))
    assert merged.pairs == {0: (1,), 1: (0, 2)}
    assert merged.teacher_logits(log(0.1, 0.2, 0.3, 0.4)).softmax(dim=1)[0].tolist() == pytest.approx([0.2, 0.4, 0.4])


def test_by_sigmoid_a_merged_class_is_there_where_any_of_its_parts_is():
    # 1 - (1 - 0.5)(1 - 0.2) = 0.6; the class that is not merged keeps its 0.9.
    merged = ClassMap(("cat", "vehicle"), ("vehicle", "cat", "vehicle"))
    logits = torch.tensor([[0.5, 0.9, 0.2]]).logit()
    assert merged.teacher_logits(logits).sigmoid()[0].tolist() == pytest.approx([0.9, 0.6])


def test_merged_sigmoids_stay_finite_at_any_logit():
    merged = ClassMap(("vehicle",), ("vehicle", "vehicle"))
    found = merged.teacher_logits(torch.tensor([[-80.0, -80.0], [80.0, 80.0], [0.0, -80.0]]))
    # Of two rare events either happens twice as often; of two certain ones, exp(-160) stays out.
    assert found[:, 0].tolist() == pytest.approx([-80 + math.log(2), 160, 0], abs=1e-3)


def test_labels_are_places_among_the_shared_classes():
    some = ClassMap(("x", "b", "a"), ("a", "b"))
    assert some.labels(torch.tensor([0, 1, 2, 3, -1])).tolist() == [-1, 0, 1, 2, -1]


def test_detections_get_the_students_labels_and_foreign_ones_are_left_out():
    some = ClassMap(("a", "b"), ("x", "b", "a"))
    found = Detections(torch.arange(12.0).view(3, 4), torch.tensor([0.9, 0.8, 0.7]), torch.tensor([1, 0, 2]))
    kept = some.detections(found)
    assert kept.labels.tolist() == [1, 0]
    assert kept.scores.tolist() == pytest.approx([0.9, 0.7])
    assert kept.boxes[:, 0].tolist() == [0, 8]


def test_names_are_changed_before_they_meet():
    teacher = info({8: 1}, classes=("car", "bus", "person", "dog"))
    names = {"car": "vehicle", "bus": "vehicle", "dog": None}
    known = renamed_classes(teacher, ("dog", "vehicle", "person"), names)
    assert known.classes == ("vehicle", "vehicle", "person", "")
    assert ClassMap(("dog", "vehicle", "person"), known.classes).pairs == {1: (0, 1), 2: (2,)}


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ({"cra": "person"}, "Unknown class of the teacher 'cra'. Did you mean 'car'"),
        ({"car": "persn"}, "Unknown class of the student 'persn'. Did you mean 'person'"),
    ],
)
def test_names_that_nobody_has_are_refused(names, says):
    with pytest.raises(InputError, match=says):
        renamed_classes(info({8: 1}, classes=("car", "bus")), ("person", "dog"), names)


def test_what_does_not_meet_is_said_with_the_nearest_name():
    assert ClassMap(("cat", "dog"), ("cat", "dog")).describe() == []
    assert ClassMap(("cat", "motorbike", "owl"), ("cat", "motorcycle", "boat")).describe() == [
        "The teacher does not know motorbike, owl: annotations alone teach what they are.",
        "The student does not know the teacher's motorcycle, boat.",
        "Of the teacher's classes motorcycle may be motorbike: if so, say it with --class-map.",
    ]
    assert ClassMap(("cat",), ("ship",)).describe() == ["The teacher's classes (ship) are none of the student's (cat)."]


HEADS = {"positive_weight": 1.0, "negative_weight": 1.0, "object_weight": 0.0, "background_weight": 0.0}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("teacher_classes", "names"),
    [
        (("cat", "dog"), {}),
        ((*CLASSES, "boat", "car"), {}),
        (("owl", "cat", "dog"), {}),
        (("katze", "hund", "eule"), {"katze": "cat", "hund": "dog", "eule": "owl"}),
        (("tabby", "siamese", "dog", "boat"), {"tabby": "cat", "siamese": "cat"}),
    ],
    ids=["subset", "superset", "order", "renamed", "merged"],
)
def test_head_terms_of_teachers_with_other_classes_teach_the_student(family, teacher_classes, names):
    student, teacher = tiny_detector(family), tiny_detector(family, seed=1, classes=teacher_classes)
    known = renamed_classes(teacher.info, student.info.classes, names)
    losses = run(build_method("defeat", student.info, known, HEADS), student, teacher)
    assert losses.keys() == {"head_positive", "head_negative"}
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in student.backbone.fpn.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_teacher_that_only_numbers_the_classes_otherwise_gives_the_same_losses(family):
    # Both teachers have the same weights, but for the order of the columns of their last layer.
    student, teacher = tiny_detector(family), tiny_detector(family, seed=1)
    plain = run(build_method("defeat", student.info, teacher.info, HEADS), student, teacher)
    turned = tiny_detector(family, seed=1, classes=("owl", "cat", "dog"))
    old, new = teacher.state_dict(), turned.state_dict()
    order = [2, 0, 1]
    for name in [name for name in old if "cls_" in name and name.startswith(("head", "roi_heads"))]:
        per_class = old[name].unflatten(0, (-1, 3)) if family == "retinanet" else old[name]
        if family == "retinanet":
            new[name] = per_class[:, order].flatten(0, 1)
        else:  # torchvision keeps the background first
            new[name] = per_class[[0, *(1 + place for place in order)]]
    turned.load_state_dict(new)
    again = run(build_method("defeat", student.info, turned.info, HEADS), student, turned)
    for name, loss in plain.items():
        assert again[name].item() == pytest.approx(loss.item(), rel=1e-4), name


@pytest.mark.parametrize("family", FAMILIES)
def test_classes_without_any_in_common_are_an_error_for_head_terms_only(family):
    student, teacher = tiny_detector(family), tiny_detector(family, seed=1, classes=("ship", "plane"))
    with pytest.raises(InputError, match=r"none of the student's classes.*--class-map"):
        build_method("defeat", student.info, teacher.info, HEADS)
    losses = run(build_method("defeat", student.info, teacher.info, {}), student, teacher)
    assert losses.keys() == {"neck_object", "neck_background"}
