"""Differences of published configurations, by hand; and torchvision's losses as their limit."""

import math

import pytest
import torch
from torch import nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import AnchorGenerator

from defeat.detector.base import torchvision_targets
from defeat.detector.published import (
    AlignedPooling,
    ExactAnchors,
    LimitedBoxCoder,
    build_anchors,
    one_stage_loss,
    second_stage_loss,
)
from tests.detector.tiny import FITTED_ANCHORS as FAMILIES
from tests.detector.tiny import tiny_batch, tiny_detector, tiny_options

every_family = pytest.mark.parametrize("family", FAMILIES)


def test_exact_anchors_have_the_given_area_and_ratio():
    (anchors,) = ExactAnchors(((10.0, 20.0),), ((0.5, 2.0),)).cell_anchors
    width, height = (anchors[:, 2:] - anchors[:, :2]).unbind(1)
    assert (width * height).tolist() == pytest.approx([100, 400, 100, 400])
    assert (height / width).tolist() == pytest.approx([0.5, 0.5, 2, 2])
    assert torch.equal(anchors.round(), AnchorGenerator(((10.0, 20.0),), ((0.5, 2.0),)).cell_anchors[0])


@pytest.mark.parametrize("exact", [False, True])
def test_exact_strides_do_not_depend_on_the_size_of_the_image(exact):
    # A map of 2 x 3 cells at stride 64 of an image of 128 x 160: inferred are 160 // 3 = 53 pixels between anchors.
    generator = build_anchors(((10.0,),), (64,), rounded=False, exact_strides=exact)
    batch = ImageList(torch.zeros(2, 3, 128, 160), [(128, 160)] * 2)
    first, second = generator(batch, [torch.zeros(2, 1, 2, 3)])
    assert torch.equal(first, second)
    centres = (first[::3, :2] + first[::3, 2:]) / 2
    x = [0, 64, 128] if exact else [0, 53, 106]
    assert centres.tolist() == [[column, row] for row in (0, 64) for column in x]


def test_limited_boxes_shrink_as_much_as_they_can_grow():
    # Width and height 100, of which the logarithm changes by -10 and 10: limits are 1000/16 and its inverse.
    boxes = LimitedBoxCoder((1.0, 1.0, 2.0, 2.0)).decode_single(
        torch.tensor([[0.0, 0.0, -20.0, 20.0]]), torch.tensor([[0.0, 0.0, 100.0, 100.0]])
    )
    assert (boxes[0, 2] - boxes[0, 0]).item() == pytest.approx(1.6, rel=1e-4)
    assert (boxes[0, 3] - boxes[0, 1]).item() == pytest.approx(6250, rel=1e-4)


def ramp(stride, side=64):
    """A feature map whose values are the column indices."""
    cells = side // stride
    return torch.arange(float(cells)).expand(1, 2, cells, cells).clone()


def test_aligned_pooling_is_centred_on_the_box():
    # At stride 4 the box is columns 2 to 5, whose mean is 3.5; pooled to one cell.
    pooling = AlignedPooling((4, 8), output_size=1, sampling_ratio=0)
    pooled = pooling({"0": ramp(4), "1": ramp(8), "2": ramp(16)}, [torch.tensor([[8.0, 8.0, 24.0, 24.0]])], [(64, 64)])
    assert pooled.shape == (1, 2, 1, 1)
    assert pooled.flatten().tolist() == pytest.approx([3.5, 3.5])


def test_aligned_pooling_reads_each_box_from_its_level_and_image():
    # A side of 111 is below twice 56: the first level; 113 is the second. Each level and image has another value.
    values = {(level, image): 10.0 * level + image for level in range(2) for image in range(2)}
    features = {
        str(level): torch.stack([torch.full((1, 64 >> level, 64 >> level), values[level, i]) for i in range(2)])
        for level in range(2)
    }
    boxes = [torch.tensor([[8.0, 8.0, 119.0, 119.0]]), torch.tensor([[8.0, 8.0, 121.0, 121.0], [8.0, 8.0, 20.0, 20.0]])]
    pooled = AlignedPooling((4, 8), 2, 2)(features, boxes, [(256, 256)] * 2)
    assert pooled[:, 0, 0, 0].tolist() == [values[0, 0], values[1, 1], values[0, 1]]


def test_pooling_without_boxes_gives_an_empty_tensor():
    assert AlignedPooling((4,), 7, 2)({"0": ramp(4)}, [torch.zeros(0, 4)], [(64, 64)]).shape == (0, 2, 7, 7)


def second_stage():
    """Two proposals, background first: one of class 1, whose deltas are off by 0.5 in x and 2 in y, one background."""
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
    deltas = torch.zeros(2, 8)
    return logits, deltas, [torch.tensor([1, 0])], [torch.tensor([[0.5, 2.0, 0.0, 0.0], [9.0, 9.0, 9.0, 9.0]])]


def test_second_stage_loss_by_hand():
    # Classes: -ln(3/4) for the object, -ln(1/4) for the background. Boxes: (0.5 + 2) / 2 proposals.
    classification, box = second_stage_loss(*second_stage(), box_loss="l1")
    assert classification.item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    assert box.item() == pytest.approx(1.25)
    # Below 1/9 the smooth loss is squared, above it is |d| - 1/18: (0.5 - 1/18 + 2 - 1/18) / 2.
    assert second_stage_loss(*second_stage())[1].item() == pytest.approx((2.5 - 1 / 9) / 2)


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (0.1, (math.log(4 / 3) + 0.1 * math.log(4)) / 2),
        (0.0, math.log(4 / 3)),  # a weight of zero also excludes negatives from the count
    ],
)
def test_negatives_of_the_second_stage_can_have_less_weight(weight, expected):
    classification, box = second_stage_loss(*second_stage(), negative_weight=weight)
    assert classification.item() == pytest.approx(expected)
    assert box.item() == second_stage_loss(*second_stage())[1].item()


def rpn_losses(**attributes):
    """Losses of one positive anchor, off by 0.5 and 2, and one negative, both with an objectness of 3/4."""
    network = tiny_detector("faster_rcnn").train().rpn
    for name, value in attributes.items():
        setattr(network, name, value)
    deltas = torch.zeros(2, 4)
    targets = [torch.tensor([[0.5, 2.0, 0.0, 0.0], [7.0, 7.0, 7.0, 7.0]])]
    objectness, box = network.compute_loss(torch.full((2, 1), math.log(3)), deltas, [torch.tensor([1.0, 0.0])], targets)
    return objectness.item(), box.item()


def test_losses_of_the_proposal_network_by_hand():
    both = (math.log(4 / 3) + math.log(4)) / 2
    assert rpn_losses() == pytest.approx((both, (2.5 - 1 / 9) / 2))
    assert rpn_losses(box_loss="l1") == pytest.approx((both, 1.25))
    lighter = (math.log(4 / 3) + 0.2 * math.log(4)) / 2
    assert rpn_losses(negative_weight=0.2) == pytest.approx((lighter, (2.5 - 1 / 9) / 2))


def one_stage(objects=True):
    detector = tiny_detector("retinanet").train()
    batch = tiny_batch(detector, objects)
    maps = detector.forward_maps(batch)
    head, anchors = detector.head(list(maps.neck.values())), detector._anchors(batch.images, batch.sizes, maps)
    matched = detector._match(batch.targets, anchors)
    targets = torchvision_targets(batch.targets, 0)
    given = (head["cls_logits"], head["bbox_regression"], targets, anchors, matched, detector.box_coder)
    return detector, head, given


@pytest.mark.parametrize("objects", [True, False])
def test_one_stage_losses_averaged_over_images_are_torchvisions(objects):
    detector, head, given = one_stage(objects)
    expected = detector.head.compute_loss(given[2], head, given[3], given[4])
    classification, box = one_stage_loss(*given)
    assert classification.item() == pytest.approx(expected["classification"].item(), rel=1e-5)
    assert box.item() == pytest.approx(expected["bbox_regression"].item(), rel=1e-5, abs=1e-9)


def test_one_stage_losses_averaged_over_the_batch_weight_images_by_their_positives():
    _, _, given = one_stage()
    logits, deltas, targets, anchors, matched, coder = given
    each = [
        one_stage_loss(logits[i : i + 1], deltas[i : i + 1], targets[i : i + 1], anchors[i : i + 1], matched[i : i + 1],
                       coder)
        for i in range(len(matched))
    ]  # fmt: skip
    counts = [max(1, int((index >= 0).sum())) for index in matched]
    positives = sum(int((index >= 0).sum()) for index in matched)
    for found, parts in zip(one_stage_loss(*given, "batch"), zip(*each, strict=True), strict=True):
        expected = sum(part.item() * count for part, count in zip(parts, counts, strict=True)) / positives
        assert found.item() == pytest.approx(expected, rel=1e-5)


def test_negatives_of_one_stage_losses_can_have_less_weight():
    _, _, given = one_stage()
    full, none, half = (one_stage_loss(*given, negative_weight=weight)[0].item() for weight in (1.0, 0.0, 0.5))
    assert 0 < none < full
    assert half == pytest.approx((full + none) / 2, rel=1e-5)


@every_family
def test_negative_weights_lower_only_classification_losses(family):
    detector = tiny_detector(family).train()
    losses = []
    for weight in (1.0, 0.25):
        torch.manual_seed(0)
        losses.append(detector.forward_train(tiny_batch(detector), weight).losses)
    for name, full in losses[0].items():
        lower = losses[1][name].item()
        assert lower < full.item() if name in ("objectness", "classification") else lower == pytest.approx(full.item())


@every_family
def test_a_detector_with_published_options_trains_and_predicts(family):
    options = tiny_options(
        family,
        box_loss="l1",
        round_anchors=False,
        aligned_pooling=True,
        sampling_ratio=0,
        initialisation="published",
        loss_average="batch",
    )
    detector = tiny_detector(family, options=options, norm="bn_eval").train()
    losses = detector.forward_train(tiny_batch(detector)).losses
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert len(detector.predict([torch.zeros(3, 64, 64, dtype=torch.uint8)])) == 1
    assert detector.info.anchors != tiny_detector(family).info.anchors
    # Xavier: a uniform distribution of deviation sqrt(2 / (in + out)), here of 16 channels and 3 x 3 cells.
    layer = detector.backbone.fpn.layer_blocks[0][0]
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / (2 * 16 * 9)), rel=0.1)
    assert layer.bias.abs().max() == 0


def test_the_second_stage_can_be_initialised_as_published():
    options = tiny_options("faster_rcnn", initialisation="published") | {"box_representation_size": 64}
    heads = tiny_detector("faster_rcnn", options=options).roi_heads
    assert heads.box_predictor.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.2)
    assert heads.box_predictor.bbox_pred.weight.std().item() == pytest.approx(0.001, rel=0.2)
    expected = math.sqrt(2 / (16 * 49 + 64))
    assert heads.box_head.fc6.weight.std().item() == pytest.approx(expected, rel=0.05)


@every_family
def test_bn_eval_trains_affine_weights_but_not_statistics(family):
    detector = tiny_detector(family, norm="bn_eval").train()
    norms = [module for module in detector.backbone.body.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms]
    sum(detector.forward_train(tiny_batch(detector)).losses.values()).backward()
    assert norms
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True))
    assert any(norm.weight.grad is not None and norm.weight.grad.abs().sum() > 0 for norm in norms)
