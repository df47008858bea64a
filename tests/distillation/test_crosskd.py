"""CrossKD: the teacher's head on features of the student, values derived by hand, and pairs that it refuses."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from defeat.distillation import build_method
from defeat.errors import InputError
from defeat.types import Towers
from tests.detector.tiny import images, target, tiny_batch, tiny_detector
from tests.distillation.made_up import START, boxed, dense, info, output
from tests.distillation.test_methods import run

TOWERS = {"offers": frozenset({"dense", "towers"})}
FAMILIES = ("retinanet", "fcos", "gfl")


def built(teacher=None, **options):
    student = info({8: 1}, **TOWERS)
    torch.manual_seed(0)
    return build_method("crosskd", student, teacher or student, options)


def teacher_output(detector, batch):
    return detector.eval().requires_grad_(False).forward_teacher(detector.adopt(batch), {"dense", "towers"})


def made_up(maps, head=None, labels=(0, 2)):
    """An output of two points whose towers are given; its head gives the tower's values as logits of both classes."""
    features = torch.tensor(maps, dtype=torch.float32).view(1, 1, 1, 2)

    def finish(classes, boxes):
        logits = classes[8].flatten(2).transpose(1, 2).expand(-1, -1, 2)
        corners = boxes[8].flatten(2).transpose(1, 2)
        square = torch.cat((torch.zeros(1, 2, 2), corners.expand(-1, -1, 2)), dim=2)
        return dense(logits, torch.tensor([labels]), square)

    towers = Towers({8: features}, {8: features}, head or finish)
    return output({8: features}, dense=towers.finish(towers.classes, towers.boxes), towers=towers)


def losses(method, student, teacher):
    return {name: loss.item() for name, loss in method(student, teacher, [boxed()], START).items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_rest_of_the_head_gives_the_predictions_of_the_whole_head(family):
    detector = tiny_detector(family)
    given = teacher_output(detector, tiny_batch(detector.train()))
    repeated = given.towers.finish(given.towers.classes, given.towers.boxes)
    torch.testing.assert_close(repeated.logits, given.dense.logits)
    torch.testing.assert_close(repeated.boxes, given.dense.boxes)
    assert torch.equal(repeated.labels, given.dense.labels)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_affine_copy_of_the_teachers_features_has_no_loss(family):
    teacher = tiny_detector(family)
    if family == "fcos":
        nn.init.ones_(teacher.head.regression_head.bbox_reg.bias)  # boxes without an area have no IoU with themselves
    batch = tiny_batch(teacher.train())
    given = teacher_output(teacher, batch)
    copies = [
        {stride: 3 * level + 7 for stride, level in maps.items()} for maps in (given.towers.classes, given.towers.boxes)
    ]
    student = replace(given, towers=Towers(*copies, given.towers.finish))
    method = build_method("crosskd", teacher.info, teacher.info, {})
    terms = method(student, given, batch.targets, START)
    assert {name: loss.item() for name, loss in terms.items()} == {
        "head_class": pytest.approx(0, abs=1e-4),
        "head_box": pytest.approx(0, abs=1e-4),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_the_students_towers_learn_and_the_teachers_head_does_not(family):
    student, teacher = tiny_detector(family), tiny_detector("gfl", seed=1, neck_channels=32)
    method = build_method("crosskd", student.info, teacher.info, {})
    sum(run(method, student, teacher).values()).backward()
    for branch in (student.head.classification_head, student.head.regression_head):
        # The first layer of a tower learns, the layer that predicts does not: it has no part in the loss.
        first, *_, last = [layer for layer in branch.modules() if isinstance(layer, nn.Conv2d)]
        assert first.weight.grad.abs().sum() > 0
        assert last.weight.grad is None
    assert all(weight.grad is None for weight in teacher.parameters())
    assert all(weight.grad.abs().sum() > 0 for weight in method.parameters() if weight.ndim > 1)


def test_scores_and_boxes_by_hand():
    # The student's maps are the teacher's in reverse, so that each point gets the value of the other. The first point
    # is positive: sides of 1 against 4 pixels; IoU and GIoU are 1/16.
    student, teacher = made_up([1.0, 4.0]), made_up([4.0, 1.0])
    scores = [1 / (1 + math.exp(-value)) for value in (1.0, 4.0)]
    low, high = scores

    def cost(own, other):
        return abs(other - own) * -(other * math.log(own) + (1 - other) * math.log(1 - own))

    given = losses(built(), student, teacher)
    # Two classes at each of two points, over one positive point.
    assert given["head_class"] == pytest.approx(2 * (cost(low, high) + cost(high, low)), rel=1e-4)
    assert given["head_box"] == pytest.approx(1 - 1 / 16, rel=1e-4)


def test_ignored_points_have_no_loss_and_a_batch_without_positive_points_is_divided_by_one():
    student, teacher = made_up([1.0, 4.0], labels=(-1, -1)), made_up([4.0, 1.0], labels=(-1, -1))
    assert losses(built(), student, teacher) == {"head_class": 0.0, "head_box": 0.0}
    positive, negative = (
        losses(built(box_weight=0.0), made_up([1.0, 4.0], labels=labels), made_up([4.0, 1.0], labels=labels))
        for labels in ((0, 2), (2, 2))
    )
    assert positive == negative


def test_weights():
    student, teacher = made_up([1.0, 4.0]), made_up([4.0, 1.0])
    usual, twice = (losses(built(class_weight=weight), student, teacher)["head_class"] for weight in (1.0, 2.0))
    assert twice == pytest.approx(2 * usual)
    assert losses(built(class_weight=0.0), student, teacher).keys() == {"head_box"}
    assert built().weights == {"class_weight": 1.0, "box_weight": 1.0}
    assert built(info({8: 1}, **TOWERS, bins=17)).weights["box_weight"] == 4.0


def test_the_teacher_may_see_larger_images_and_know_other_classes():
    student = tiny_detector("retinanet")
    teacher = tiny_detector("fcos", size=128, max_size=192, classes=("owl", "bee"))
    method = build_method("crosskd", student.info, teacher.info, {})
    terms = run(method, student, teacher)
    assert all(loss.isfinite() and loss > 0 for loss in terms.values())


def test_a_layer_adapts_other_channels_only():
    assert not list(built().parameters())
    other = built(info({8: 3}, **TOWERS), box_weight=0.0)
    assert [name for name, _ in other.named_parameters()] == ["adaptation.classes.weight", "adaptation.classes.bias"]


@pytest.mark.parametrize("changes", [{"offers": frozenset({"dense"})}, {"neck": {16: 1}}])
def test_other_pairs_are_refused(changes):
    with pytest.raises(InputError, match="no such heads in common"):
        built(info(**{"neck": {8: 1}} | TOWERS | changes))


def test_padding_does_not_change_the_statistics():
    # The same image alone and beside a wider one, which pads it: its own share of the loss has the same features.
    detector = tiny_detector("retinanet")
    alone = detector.train().prepare(images((64, 64)), [target([[8, 8, 40, 40]], [0], (64, 64))])
    given = teacher_output(detector, alone)
    wider = {stride: nn.functional.pad(level, (0, level.shape[-1])) for stride, level in given.towers.classes.items()}
    valid = {stride: nn.functional.pad(cells, (0, cells.shape[-1])) for stride, cells in given.valid.items()}
    output_with_padding = replace(given, valid=valid, towers=Towers(wider, wider, given.towers.finish))
    method = build_method("crosskd", detector.info, detector.info, {})
    own = {stride: level + 100 for stride, level in wider.items()}
    result = method._restandardised("classes", own, output_with_padding)
    for stride, level in given.towers.classes.items():
        torch.testing.assert_close(result[stride][..., : level.shape[-1]], level, atol=1e-3, rtol=1e-3)
