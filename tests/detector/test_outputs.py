"""Order of classes, labels and boxes, by examples derived by hand."""

import pytest
import torch
from torchvision.ops import box_iou

from tests.detector.tiny import CLASSES, images, target, tiny_batch, tiny_detector
from tests.detector.tiny import COMPOSED as FAMILIES

BACKGROUND = len(CLASSES)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("teaches", [False, True])
def test_score_proposals_of_its_own_proposals_gives_their_logits(family, teaches):
    detector = tiny_detector(family).train(not teaches)
    batch = tiny_batch(detector)
    output = detector.forward_teacher(batch) if teaches else detector.forward_train(batch)
    if output.proposals is None:
        assert output.score_proposals is None
        return
    again = output.score_proposals(output.proposals.boxes)
    assert torch.allclose(again, output.proposals.logits, atol=1e-6)
    assert again.requires_grad is not teaches


def test_faster_rcnn_puts_the_background_last():
    detector = tiny_detector("faster_rcnn").train()
    predictor = detector.roi_heads.box_predictor
    with torch.no_grad():
        # torchvision's columns are background, cat, dog, owl: here 10, 1, 2, 3 for every image.
        predictor.cls_score.weight.zero_()
        predictor.cls_score.bias.copy_(torch.tensor([10.0, 1.0, 2.0, 3.0]))
        predictor.bbox_pred.weight.zero_()
        predictor.bbox_pred.bias.copy_(torch.arange(16.0))
    proposals = detector.forward_train(tiny_batch(detector)).proposals
    assert torch.equal(proposals.logits, torch.tensor([1.0, 2.0, 3.0, 10.0]).expand_as(proposals.logits))
    # The first four offsets belong to the background and are dropped.
    expected = torch.arange(4.0, 16.0).view(3, 4)
    assert torch.equal(proposals.deltas, expected.expand_as(proposals.deltas))


@pytest.mark.parametrize("teaches", [False, True])
def test_faster_rcnn_labels_proposals_by_iou(teaches):
    detector = tiny_detector("faster_rcnn").train(not teaches)
    truth = target([[8, 8, 40, 40], [30, 20, 60, 60]], [2, 0])
    batch = detector.prepare(images((64, 64)), [truth])
    proposals = (detector.forward_teacher(batch) if teaches else detector.forward_train(batch)).proposals
    overlap, best = box_iou(proposals.boxes[0], truth.boxes).max(dim=1)
    expected = torch.where(overlap >= 0.5, truth.labels[best], BACKGROUND)
    assert torch.equal(proposals.labels, expected)
    # The objects themselves are always among the proposals.
    assert {0, 2, BACKGROUND} == set(proposals.labels.tolist())


def find(anchors, box):
    """Index of the anchor with these corners."""
    (index,) = (anchors == torch.tensor(box)).all(dim=1).nonzero().flatten().tolist()
    return index


@pytest.mark.parametrize("teaches", [False, True])
def test_retinanet_labels_anchors_by_iou(teaches):
    detector = tiny_detector("retinanet").train(not teaches)
    box = [16.0, 16.0, 48.0, 48.0]  # the anchor of side 32 in the cell (4, 4) of stride 8
    batch = detector.prepare(images((64, 64)), [target([box], [1])])
    dense = (detector.forward_teacher(batch) if teaches else detector.forward_train(batch)).dense
    anchors, labels = dense.anchors[0], dense.labels[0]

    def label(left, top, right, bottom):
        return int(labels[find(anchors, [left, top, right, bottom])])

    assert label(*box) == 1
    # 8 pixels to the right: intersection 24 * 32 = 768, union 2048 - 768 = 1280, IoU 0.6: positive.
    assert label(24, 16, 56, 48) == 1
    # 8 pixels to the right and down: 24 * 24 = 576 over 2048 - 576 = 1472, IoU 0.39: background.
    assert label(24, 24, 56, 56) == BACKGROUND
    # The next larger anchors at the same position have sides 40 and 50: IoU 1024 / 1600 = 0.64 and 1024 / 2500 = 0.41.
    assert label(12, 12, 52, 52) == 1
    assert label(7, 7, 57, 57) == -1
    assert label(-16, -16, 16, 16) == BACKGROUND


def test_retinanet_gives_the_stride_of_every_anchor():
    detector = tiny_detector("retinanet").eval()
    dense = detector.forward_teacher(detector.prepare(images((64, 64)), [target([], [])])).dense
    # 64 x 64 pixels give 8 x 8, 4 x 4, 2 x 2, 1 x 1 and 1 x 1 cells with nine anchors each.
    counts = {stride: int((dense.strides == stride).sum()) for stride in (8, 16, 32, 64, 128)}
    assert counts == {8: 576, 16: 144, 32: 36, 64: 9, 128: 9}
    assert dense.strides.tolist() == sorted(dense.strides.tolist())
    # The smallest anchors of a level have four times the stride as their side.
    sides = (dense.anchors[0, :, 2:] - dense.anchors[0, :, :2]).prod(dim=1).sqrt()
    for stride in counts:
        assert sides[dense.strides == stride].min() == pytest.approx(4 * stride, rel=0.03)


def test_retinanet_boxes_are_anchors_moved_by_deltas():
    detector = tiny_detector("retinanet").eval()
    regression = detector.head.regression_head.bbox_reg
    with torch.no_grad():
        regression.weight.zero_()
        # dx 0.5, dy 0, dw ln 2, dh 0: half a width to the right, and twice as wide.
        regression.bias.copy_(torch.tensor([0.5, 0.0, torch.tensor(2.0).log(), 0.0]).repeat(9))
    dense = detector.forward_teacher(detector.prepare(images((64, 64)), [target([], [])])).dense
    index = find(dense.anchors[0], [16.0, 16.0, 48.0, 48.0])
    # Centre 32 + 16 = 48, width 64.
    assert dense.boxes[0, index].tolist() == pytest.approx([16, 16, 80, 48], abs=1e-4)
    assert dense.deltas[0, index].tolist() == pytest.approx([0.5, 0, 0.693147, 0], abs=1e-5)
