"""Classes are matched by name: subset, superset, renamed, merged, for every family."""

import math

import pytest
import torch

from defeat.distillation import build_method
from defeat.distillation.class_map import ClassMap, renamed_classes
from defeat.errors import InputError
from defeat.types import Detections
from tests.detector.tiny import CLASSES, tiny_detector
from tests.detector.tiny import COMPOSED as FAMILIES
from tests.distillation.made_up import info
from tests.distillation.test_methods import run


def log(*probabilities):
    return torch.tensor([[math.log(probability) for probability in probabilities]])


def test_equal_classes_leave_logits_and_labels_unchanged():
    same, logits, labels = ClassMap(("a", "b"), ("a", "b")), torch.randn(4, 3), torch.tensor([0, 1, 2, -1])
    assert same.identical
    assert same.student_logits(logits) is logits
    assert same.teacher_logits(logits) is logits
    assert same.labels(labels) is labels


def test_another_order_is_converted_to_the_students():
    other = ClassMap(("a", "b"), ("b", "a"))
    assert other.teacher_logits(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[2, 1, 3]]
    assert other.student_logits(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[1, 2, 3]]


def test_probabilities_of_the_shared_classes_and_the_background_are_renormalised():
    # The teacher gives a 0.2, x 0.5, b 0.1 and the background 0.2: without x, 0.4, 0.2 and 0.4 are left.
    some = ClassMap(("b", "a"), ("a", "x", "b"))
    probabilities = some.teacher_logits(log(0.2, 0.5, 0.1, 0.2)).softmax(dim=1)
    assert probabilities[0].tolist() == pytest.approx([0.2, 0.4, 0.4])
    # The student knows b and c in addition to the teacher's a: a 0.3 and the background 0.1 become 3/4 and 1/4.
    more = ClassMap(("c", "a", "b"), ("a",))
    assert more.student_logits(log(0.2, 0.3, 0.4, 0.1)).softmax(dim=1)[0].tolist() == pytest.approx([0.75, 0.25])


def test_probabilities_of_merged_classes_add_up():
    # car 0.1 and bus 0.3 are both a vehicle: 0.4; cat has 0.2 and the background 0.4.
    merged = ClassMap(("cat", "vehicle"), ("vehicle", "cat", "vehicle"))
    assert merged.pairs == {0: (1,), 1: (0, 2)}
    assert merged.teacher_logits(log(0.1, 0.2, 0.3, 0.4)).softmax(dim=1)[0].tolist() == pytest.approx([0.2, 0.4, 0.4])


def test_with_sigmoid_a_merged_class_is_present_where_any_of_its_parts_is():
    # 1 - (1 - 0.5)(1 - 0.2) = 0.6; the class that is not merged keeps its 0.9.
    merged = ClassMap(("cat", "vehicle"), ("vehicle", "cat", "vehicle"))
    logits = torch.tensor([[0.5, 0.9, 0.2]]).logit()
    assert merged.teacher_logits(logits).sigmoid()[0].tolist() == pytest.approx([0.9, 0.6])


def test_merged_sigmoids_stay_finite_at_any_logit():
    merged = ClassMap(("vehicle",), ("vehicle", "vehicle"))
    logits = merged.teacher_logits(torch.tensor([[-80.0, -80.0], [80.0, 80.0], [0.0, -80.0]]))
    # Two rare events: either happens twice as often. Two certain ones: neither happens with probability exp(-160).
    assert logits[:, 0].tolist() == pytest.approx([-80 + math.log(2), 160, 0], abs=1e-3)


def test_labels_are_indices_among_the_shared_classes():
    some = ClassMap(("x", "b", "a"), ("a", "b"))
    assert some.labels(torch.tensor([0, 1, 2, 3, -1])).tolist() == [-1, 0, 1, 2, -1]


def test_detections_get_the_students_labels_and_foreign_ones_are_left_out():
    some = ClassMap(("a", "b"), ("x", "b", "a"))
    detections = Detections(torch.arange(12.0).view(3, 4), torch.tensor([0.9, 0.8, 0.7]), torch.tensor([1, 0, 2]))
    relabelled = some.detections(detections)
    assert relabelled.labels.tolist() == [1, 0]
    assert relabelled.scores.tolist() == pytest.approx([0.9, 0.7])
    assert relabelled.boxes[:, 0].tolist() == [0, 8]


def test_names_are_changed_before_they_are_matched():
    teacher = info({8: 1}, classes=("car", "bus", "person", "dog"))
    names = {"car": "vehicle", "bus": "vehicle", "dog": None}
    renamed = renamed_classes(teacher, ("dog", "vehicle", "person"), names)
    assert renamed.classes == ("vehicle", "vehicle", "person", "")
    assert ClassMap(("dog", "vehicle", "person"), renamed.classes).pairs == {1: (0, 1), 2: (2,)}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"cra": "person"}, "Unknown class of the teacher 'cra'. Did you mean 'car'"),
        ({"car": "persn"}, "Unknown class of the student 'persn'. Did you mean 'person'"),
    ],
)
def test_unknown_names_are_refused(names, message):
    with pytest.raises(InputError, match=message):
        renamed_classes(info({8: 1}, classes=("car", "bus")), ("person", "dog"), names)


def test_unmatched_classes_are_reported_with_the_nearest_name():
    assert ClassMap(("cat", "dog"), ("cat", "dog")).describe() == []
    assert ClassMap(("cat", "motorbike", "owl"), ("cat", "motorcycle", "boat")).describe() == [
        "The teacher does not know motorbike, owl: only annotations teach these classes.",
        "The student does not know the teacher's motorcycle, boat.",
        "If these are the same classes, give --class-map '{motorcycle: motorbike}'.",
    ]
    assert ClassMap(("no", "T 90"), ("NO", "t-90")).describe()[-1] == (
        """If these are the same classes, give --class-map '{"NO": "no", "t-90": T 90}'."""
    )
    assert ClassMap(("cat",), ("ship",)).describe() == [
        "The teacher has none of the student's classes (cat), but ship."
    ]


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
    renamed = renamed_classes(teacher.info, student.info.classes, names)
    losses = run(build_method("defeat", student.info, renamed, HEADS), student, teacher)
    assert losses.keys() == {"head_positive", "head_negative"}
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in student.backbone.fpn.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_teacher_with_another_order_of_classes_gives_the_same_losses(family):
    # Both teachers have the same weights, except for the order of the columns of their last layer.
    student, teacher = tiny_detector(family), tiny_detector(family, seed=1)
    plain = run(build_method("defeat", student.info, teacher.info, HEADS), student, teacher)
    reordered = tiny_detector(family, seed=1, classes=("owl", "cat", "dog"))
    old, new = teacher.state_dict(), reordered.state_dict()
    order = [2, 0, 1]
    for name, labels in teacher.class_rows().items():
        new[name] = old[name].clone()
        for label, source in enumerate(order):
            new[name][labels == label] = old[name][labels == source]
    reordered.load_state_dict(new)
    again = run(build_method("defeat", student.info, reordered.info, HEADS), student, reordered)
    for name, loss in plain.items():
        assert again[name].item() == pytest.approx(loss.item(), rel=1e-4), name


@pytest.mark.parametrize("family", FAMILIES)
def test_classes_without_any_in_common_are_an_error_for_head_terms_only(family):
    student, teacher = tiny_detector(family), tiny_detector(family, seed=1, classes=("ship", "plane"))
    with pytest.raises(InputError, match=r"none of the student's classes.*--class-map"):
        build_method("defeat", student.info, teacher.info, HEADS)
    losses = run(build_method("defeat", student.info, teacher.info, {}), student, teacher)
    assert losses.keys() == {"neck_object", "neck_background"}
