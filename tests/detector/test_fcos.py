"""FCOS: losses equal torchvision's on the same predictions; matching and centerness by hand."""

from types import SimpleNamespace

import pytest
import torch
from torchvision.models.detection._utils import BoxLinearCoder
from torchvision.models.detection.fcos import FCOS, FCOSHead

from defeat.detector.base import torchvision_targets
from defeat.detector.families.fcos import centerness_targets, match_points
from defeat.detector.points import PaddedTargets
from tests.detector.tiny import images, target, tiny_detector

BOXES = [[3, 5, 37, 40], [10, 8, 30, 28], [40, 2, 90, 60], [0, 0, 96, 64]]


def batch_of(detector):
    sizes = [(64, 96)] * 3
    targets = [target(BOXES, [0, 1, 2, 1], sizes[0]), target([], [], sizes[1]), target(BOXES[1:3], [2, 0], sizes[2])]
    return detector.prepare(images(*sizes), targets)


def test_losses_are_those_of_torchvision():
    # Other predictions than at first, where all distances are nearly zero.
    detector = tiny_detector("fcos").train()
    torch.nn.init.normal_(detector.head.regression_head.bbox_reg.bias, 3.0, 1.0)
    batch, seen = batch_of(detector), {}
    detector.head.register_forward_hook(lambda module, given, outputs: seen.update(outputs))
    output = detector.forward_train(batch)
    coder = SimpleNamespace(box_coder=BoxLinearCoder())
    head = SimpleNamespace(compute_loss=lambda *given: FCOSHead.compute_loss(coder, *given))
    anchors = [torch.cat([squares(stride, 64, 96) for stride in (8, 16, 32, 64, 128)])] * 3
    core = SimpleNamespace(center_sampling_radius=1.5, head=head)
    expected = FCOS.compute_loss(core, torchvision_targets(batch.targets, 0), seen, anchors, [96, 24, 6, 2, 1])
    names = {"classification": "classification", "box": "bbox_regression", "centerness": "bbox_ctrness"}
    for name, theirs in names.items():
        assert output.losses[name].item() == pytest.approx(expected[theirs].item(), rel=1e-5), name
        assert output.losses[name] > 0
    # The labels for methods are those of the loss: objects of all classes on the first image, none on the second.
    assert set(output.dense.labels[0].tolist()) == {0, 1, 2, 3}
    assert set(output.dense.labels[1].tolist()) == {3}


def squares(stride, height, width):
    """The anchors that torchvision's matching reads: squares around the points of a level."""
    rows, columns = torch.meshgrid(
        torch.arange(-(-height // stride)) * stride, torch.arange(-(-width // stride)) * stride, indexing="ij"
    )
    centres = torch.stack((columns, rows), dim=-1).reshape(-1, 2).float()
    return torch.cat((centres - stride / 2, centres + stride / 2), dim=1)


def matched(points, boxes, lower=0.0, upper=100.0, reach=12.0):
    targets = PaddedTargets.of([target(boxes, [0] * len(boxes))], torch.device("cpu"))
    points = torch.tensor(points, dtype=torch.float32)
    limits = (torch.full((len(points),), limit) for limit in (lower, upper, reach))
    return match_points(points, *limits, targets)[0].tolist()


def test_a_point_belongs_to_the_smallest_object_that_it_is_in_and_near_the_centre_of():
    large, small = [0, 0, 60, 60], [20, 20, 40, 40]
    # (30, 30) is in both; (19, 30) only in the large one, 11 from its centre; (15, 30) is 15 from the centre; (20, 30)
    # is on the side of the small one, so not inside it; (70, 30) is outside.
    points = [[30, 30], [19, 30], [15, 30], [20, 30], [70, 30]]
    assert matched(points, [large, small]) == [1, 0, -1, 0, -1]
    assert matched(points, []) == [-1] * 5


def test_a_level_learns_objects_whose_farthest_side_is_within_its_limits():
    # From (30, 30) the farthest side of a box over 0..60 is 30 away, exclusive at both limits.
    box = [[0, 0, 60, 60]]
    found = [matched([[30, 30]], box, lower, upper) for lower, upper in [(0, 30.1), (0, 30), (29.9, 60), (30, 60)]]
    assert found == [[0], [-1], [0], [-1]]


def test_objects_of_another_image_are_not_matched():
    targets = PaddedTargets.of([target([], []), target([[0, 0, 60, 60]], [0])], torch.device("cpu"))
    limits = (torch.tensor([limit]) for limit in (0.0, 100.0, 12.0))
    assert match_points(torch.tensor([[0.5, 0.5], [30, 30]])[1:], *limits, targets).tolist() == [[-1], [0]]


def test_centerness_is_one_at_the_centre_and_falls_to_the_sides():
    # left 10 of 40, top equals bottom: sqrt(10 / 30) ; and a quarter in both directions: 1 / 3.
    distances = torch.tensor([[5.0, 5, 5, 5], [10, 20, 30, 20], [10, 30, 30, 10]])
    assert centerness_targets(distances).tolist() == pytest.approx([1, (1 / 3) ** 0.5, 1 / 3])


def test_logits_for_methods_are_those_of_the_classes_without_centerness():
    detector = tiny_detector("fcos").eval()
    batch = batch_of(detector)
    before = detector.forward_teacher(batch).dense.logits
    torch.nn.init.constant_(detector.head.regression_head.bbox_ctrness.bias, 5.0)
    assert torch.equal(detector.forward_teacher(batch).dense.logits, before)
