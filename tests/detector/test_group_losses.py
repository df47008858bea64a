"""Losses of groups of queries, by values derived by hand, and where scores and boxes are extreme."""

import math
from dataclasses import replace

import pytest
import torch

from defeat.detector.group_losses import GroupLosses
from defeat.detector.lw_detr_models import GroupedPredictions
from tests.detector.tiny import needs_transformers

pytestmark = needs_transformers  # with which scipy is installed, for the assignment


class Settings:
    """Weights and costs of a configuration."""

    focal_alpha = 0.25
    class_cost, bbox_cost, giou_cost = 2, 5, 2
    class_loss_coefficient, bbox_loss_coefficient, giou_loss_coefficient = 1, 5, 2
    auxiliary_loss = True


def predictions(logits, boxes, groups=1):
    """The same predictions (B, Q, K) of the only layer and the cells."""
    nothing = torch.zeros(len(logits), 0, 0)
    return GroupedPredictions(logits[:, None], boxes[:, None], logits, boxes, nothing, nothing, groups)


def test_losses_are_those_derived_by_hand():
    # One object of class 1; query 0 is shifted by half of its width, query 1 is far away. All scores are 1/2.
    logits = torch.zeros(1, 2, 3, requires_grad=True)
    boxes = torch.tensor([[[0.6, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]]])
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}]
    losses = GroupLosses(Settings)(predictions(logits, boxes), labels, [True])
    # The positive entry costs log 2 whatever its target, and each of the five others (1/2)^2 log 2; in two terms.
    assert losses["classification"].item() == pytest.approx(2 * math.log(2) * (1 + 5 / 4), rel=1e-5)
    # L1: 0.1 times 5. The boxes share half of their width: IoU = 0.5 / 1.5, and the hull is their union: GIoU = IoU.
    assert losses["box"].item() == pytest.approx(2 * 5 * 0.1, rel=1e-5)
    assert losses["giou"].item() == pytest.approx(2 * 2 * (1 - 1 / 3), rel=1e-4)
    losses["classification"].backward()
    # d/dx of the cross entropy is s - t, with t = (1/2)^0.25 (1/3)^0.75.
    quality = 0.5**0.25 * (1 / 3) ** 0.75
    assert logits.grad[0, 0, 1].item() == pytest.approx(2 * (0.5 - quality), rel=1e-4)
    # d/dx of s^2 log(1 + e^x) is 2 s^2 (1 - s) log(1 + e^x) + s^3 = (log 2) / 4 + 1/8.
    assert logits.grad[0, 1, 1].item() == pytest.approx(2 * (math.log(2) / 4 + 1 / 8), rel=1e-4)


def test_each_group_learns_every_object_and_the_sum_is_divided_by_all():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 3, generator=generator)
    boxes = torch.rand(2, 4, 4, generator=generator) * 0.3 + 0.2
    labels = [{"class_labels": torch.tensor([1, 2]), "boxes": boxes[0, :2] + 0.05}]
    labels.append({"class_labels": torch.tensor([0]), "boxes": boxes[1, 3:] + 0.02})
    alone = GroupLosses(Settings)(predictions(logits, boxes), labels, [True] * 2)
    twice = predictions(logits.repeat(1, 2, 1), boxes.repeat(1, 2, 1), groups=2)
    grouped = GroupLosses(Settings)(twice, labels, [True] * 2)
    for name, loss in alone.items():
        assert grouped[name].item() == pytest.approx(loss.item(), rel=1e-5), name
    # Without groups, the second half would be background.
    as_one = GroupLosses(Settings)(replace(twice, groups=1), labels, [True] * 2)
    assert as_one["classification"].item() != pytest.approx(2 * alone["classification"].item(), rel=1e-3)


def test_losses_are_finite_for_scores_of_zero_and_one_and_boxes_without_area():
    logits = torch.tensor([[[200.0, -200.0, 0.0], [-200.0, 200.0, 0.0]]], requires_grad=True)
    boxes = torch.zeros(1, 2, 4, requires_grad=True)
    labels = [{"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}]
    losses = GroupLosses(Settings)(predictions(logits, boxes), labels, [True])
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert logits.grad.isfinite().all()
    assert boxes.grad.isfinite().all()


def test_the_target_of_small_objects_is_their_overlap():
    # Sides of 0.0005 of the image: 0.3 pixels of 640. Equal boxes have an IoU of 1, so t = (1/2)^0.25.
    logits = torch.zeros(1, 1, 1, requires_grad=True)
    box = torch.tensor([[0.5, 0.5, 0.0005, 0.0005]])
    labels = [{"class_labels": torch.tensor([0]), "boxes": box}]
    GroupLosses(Settings)(predictions(logits, box[None]), labels, [True])["classification"].backward()
    assert logits.grad.item() == pytest.approx(2 * (0.5 - 0.5**0.25), rel=1e-3)
