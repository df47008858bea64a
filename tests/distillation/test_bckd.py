"""BCKD: values derived by hand, and pairs that it refuses."""

import math
from dataclasses import replace

import pytest
import torch

from defeat.distillation import build_method
from defeat.errors import InputError
from tests.distillation.made_up import CLASSES, START, boxed, dense, info, output

ONE_STAGE = {"offers": frozenset({"dense"}), "anchors": "same"}
BOX = torch.tensor([0.0, 0.0, 10.0, 10.0])


def built(teacher=None, **options):
    student = info({8: 1}, **ONE_STAGE)
    return build_method("bckd", student, teacher or student, options)


def predictions(logits, labels, boxes=None):
    return output({8: torch.zeros(1, 1, 1, 1)}, dense=dense(torch.tensor([logits]), torch.tensor([labels]), boxes))


def losses(method, student, teacher):
    return {name: loss.item() for name, loss in method(student, teacher, [boxed()], START).items()}


def test_scores_of_one_half_and_three_quarters():
    # |3/4 - 1/2| times the cross entropy of 1/2 with any target, ln 2; the negative and the ignored anchor don't count.
    student = predictions([[0.0, 0.0], [5.0, 5.0], [-4.0, 4.0]], [0, 2, -1])
    teacher = predictions([[math.log(3), 0.0], [0.0, 0.0], [0.0, 0.0]], [0, 2, -1])
    assert losses(built(box_weight=0.0), student, teacher) == {"head_class": pytest.approx(math.log(2) / 4)}
    assert losses(built(class_weight=3.0, box_weight=0.0), student, teacher)["head_class"] == pytest.approx(
        3 * math.log(2) / 4
    )


def test_boxes_of_half_the_size():
    # The student's box is the left half of the teacher's: IoU and GIoU are 1/2. The second pair is equal.
    half = torch.tensor([0.0, 0.0, 5.0, 10.0])
    student = predictions([[0.0, 0.0]] * 3, [0, 1, 2], torch.stack([half, BOX, half])[None])
    teacher = predictions([[0.0, 0.0]] * 3, [0, 1, 2], torch.stack([BOX, BOX, BOX])[None])
    assert losses(built(class_weight=0.0), student, teacher) == {"head_box": pytest.approx(4 * 0.5 / 2)}


def test_the_student_learns_its_boxes_and_the_teacher_does_not():
    sides = [BOX.clone().repeat(1, 1, 1).requires_grad_() for _ in range(2)]
    shifted = sides[0] + torch.tensor([1.0, 0.0, 1.0, 0.0])
    given = [predictions([[0.0, 0.0]], [0], boxes) for boxes in (shifted, sides[1].detach())]
    sum(built()(*given, [boxed()], START).values()).backward()
    assert sides[0].grad.abs().sum() > 0


def test_agreement_has_no_loss_and_no_gradient_and_a_batch_without_objects_neither():
    logits = torch.tensor([[[1.0, -2.0]]], requires_grad=True)
    same = output({8: torch.zeros(1, 1, 1, 1)}, dense=dense(logits, torch.tensor([[0]]), BOX.repeat(1, 1, 1)))
    result = built()(same, same, [boxed()], START)
    assert [loss.item() for loss in result.values()] == [0, pytest.approx(0, abs=1e-6)]
    result["head_class"].backward()
    assert not logits.grad.any()
    nothing = predictions([[1.0, 2.0]], [2])
    assert losses(built(), nothing, nothing) == {"head_class": 0.0, "head_box": 0.0}


def test_classes_are_matched_by_name():
    teacher = info({8: 1}, **ONE_STAGE, classes=("owl", CLASSES[1]))
    student = predictions([[0.0, 0.0], [0.0, 0.0]], [0, 1])  # the first is of a class that the teacher does not know
    taught = predictions([[9.0, 9.0], [9.0, math.log(3)]], [0, 1])
    assert losses(built(teacher, box_weight=0.0), student, taught)["head_class"] == pytest.approx(math.log(2) / 4)


@pytest.mark.parametrize(
    "changes",
    [{"offers": frozenset({"proposals"})}, {"anchors": "other"}, {"size": 128}, {"activation": "softmax"}],
)
def test_other_pairs_are_refused(changes):
    teacher = replace(info({8: 1}, **ONE_STAGE), **changes)
    with pytest.raises(InputError, match="no dense predictions in common"):
        built(teacher)


def test_without_a_common_class_it_is_refused():
    with pytest.raises(InputError, match="needs a class that both detectors know"):
        built(info({8: 1}, **ONE_STAGE, classes=("owl",)))
