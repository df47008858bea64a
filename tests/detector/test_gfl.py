"""GFL: assignment and losses equal references written with numpy from the papers, one object at a time."""

import math

import numpy as np
import pytest
import torch

from defeat.detector.families.gfl import Points, assign, distribution_focal_loss, quality_focal_loss
from defeat.detector.points import PaddedTargets
from tests.detector.tiny import CLASSES, images, target, tiny_detector, tiny_options

PER_LEVEL = [96, 24, 6, 2, 1]  # of 64 x 96 pixels


def points():
    """Centres and squares of 8 strides of all points of an image of 64 x 96 pixels."""
    maps = {8 << level: torch.zeros(1, 1, -(-64 // (8 << level)), -(-96 // (8 << level))) for level in range(5)}
    made = Points.of(maps)
    assert made.per_level == PER_LEVEL
    half = 4 * made.strides[:, None]
    return made, torch.cat((made.centres - half, made.centres + half), dim=1)


def iou(first, second):
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return shared / (sum(areas) - shared)


def reference_assignment(centres, squares, boxes, candidates):
    """Algorithm 1 of ATSS, object by object."""
    matched, best = np.full(len(centres), -1), np.full(len(centres), -1.0)
    for index, box in enumerate(boxes):
        middle = np.array([box[0] + box[2], box[1] + box[3]]) / 2
        chosen, first = [], 0
        for count in PER_LEVEL:
            distances = np.linalg.norm(centres[first : first + count] - middle, axis=1)
            chosen += [first + point for point in np.argsort(distances, kind="stable")[:candidates]]
            first += count
        overlaps = np.array([iou(box, squares[point]) for point in chosen])
        threshold = overlaps.mean() + overlaps.std(ddof=1)
        for point, overlap in zip(chosen, overlaps, strict=True):
            x, y = centres[point]
            inside = box[0] < x < box[2] and box[1] < y < box[3]
            if overlap >= threshold and inside and overlap > best[point]:
                matched[point], best[point] = index, overlap
    return matched


@pytest.mark.parametrize("candidates", [4, 9])
def test_assignment_equals_a_reference(candidates):
    made, squares = points()
    # No centre is equally far from two points, so that the candidates do not depend on the order of equal distances.
    boxes = [[3.1, 5.3, 37.0, 40.2], [10.3, 8.1, 30.2, 28.7], [40.7, 2.2, 90.1, 60.9], [1.3, 0.7, 94.0, 63.1]]
    batch = PaddedTargets.of([target(boxes[:2], [0, 1]), target([], []), target(boxes, [0] * 4)], torch.device("cpu"))
    found = assign(made.centres, squares, made.per_level, batch, candidates)
    assert (found[1] == -1).all()
    for row, objects in ((0, boxes[:2]), (2, boxes)):
        expected = reference_assignment(made.centres.numpy(), squares.numpy(), objects, candidates)
        assert found[row].tolist() == expected.tolist()
        assert len(set(found[row].tolist())) > 1


def test_assignment_without_any_object_is_all_background():
    made, squares = points()
    batch = PaddedTargets.of([target([], [])], torch.device("cpu"))
    assert (assign(made.centres, squares, made.per_level, batch, 9) == -1).all()


def test_quality_focal_loss_equals_its_formula():
    # sigma = 1/2 for a logit of 0: with target 1/4, |1/4 - 1/2|^2 ln 2; with target 0, (1/2)^2 ln 2.
    # sigma = 3/4 for ln 3: with target 1, (1/4)^2 ln(4/3). Where score and target agree the loss is 0.
    logits = torch.tensor([0.0, 0.0, math.log(3), math.log(3)])
    found = quality_focal_loss(logits, torch.tensor([0.25, 0.0, 1.0, 0.75]))
    assert found.tolist() == pytest.approx([math.log(2) / 16, math.log(2) / 4, math.log(4 / 3) / 16, 0], abs=1e-7)


def test_quality_focal_loss_is_the_focal_loss_for_targets_of_zero_and_one():
    # Without alpha, the focal loss is (1 - p)^2 (-ln p) for the probability p of the target.
    logits, targets = torch.tensor([-2.0, -0.5, 1.0, 3.0]), torch.tensor([0.0, 1.0, 0.0, 1.0])
    score = logits.sigmoid().numpy()
    probability = np.where(targets.numpy() > 0, score, 1 - score)
    assert quality_focal_loss(logits, targets).tolist() == pytest.approx(
        list((1 - probability) ** 2 * -np.log(probability)), rel=1e-5
    )


def test_distribution_focal_loss_equals_its_formula():
    generator = np.random.default_rng(0)
    logits, targets = generator.normal(size=(3, 4, 6)), np.array([[0.0, 0.3, 4.9, 2.5], [1, 2, 3, 4.2], [0.1] * 4])
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    expected = np.zeros_like(targets)
    for index in np.ndindex(targets.shape):
        lower = math.floor(targets[index])
        share = targets[index] - lower
        at_lower, at_upper = probabilities[index][lower], probabilities[index][lower + 1]
        expected[index] = -(1 - share) * math.log(at_lower) - share * math.log(at_upper)
    found = distribution_focal_loss(torch.tensor(logits), torch.tensor(targets))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)


def test_the_distribution_with_the_lowest_loss_has_the_target_as_its_mean():
    # Equation 7 is lowest at probabilities 0.7 of 2 and 0.3 of 3, whose mean is 2.3.
    logits = torch.zeros(6, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(200):
        optimizer.zero_grad()
        distribution_focal_loss(logits, torch.tensor(2.3)).backward()
        optimizer.step()
    mean = logits.detach().softmax(0) @ torch.arange(6.0)
    assert mean.item() == pytest.approx(2.3, abs=0.05)


def test_boxes_are_the_means_of_their_distributions_in_strides():
    made, _ = points()
    logits = torch.full((1, len(made.centres), 4, 17), -100.0)
    logits[:, :, 0, 1] = logits[:, :, 1, 0] = logits[:, :, 2, 2] = 0
    logits[:, :, 3, 3:5] = 0  # equally probable: 3.5
    boxes = made.decode(logits)[0]
    # The point (8, 8) of stride 8 is in row 1 and column 1 of 12 columns: 8 - 8, 8 - 0, 8 + 16, 8 + 28.
    assert boxes[13].tolist() == pytest.approx([0, 8, 24, 36], abs=1e-4)
    # The point (64, 32) of stride 32 is in row 1 and column 2 of 3, after 96 and 24 points.
    assert boxes[125].tolist() == pytest.approx([32, 32, 128, 144], abs=1e-4)


def test_the_target_of_a_score_is_the_iou_of_the_predicted_box():
    # All points predict 3 strides in each direction, nearly surely; an object that is exactly such a box has quality 1.
    detector = tiny_detector("gfl", norm="frozen").train()
    with torch.no_grad():
        regression = detector.head.regression_head.bbox_reg
        regression.weight.zero_()
        regression.bias.view(4, -1).fill_(-50).select(1, 3).fill_(50)
        logits = detector.head.classification_head.cls_logits
        logits.weight.zero_()
        logits.bias.copy_(torch.tensor([-50.0, 50.0, -50.0]))  # all points say "dog" with a score of 1
    exact, half = [8.0, 8.0, 56.0, 56.0], [8.0, 8.0, 56.0, 32.0]  # around (32, 32); the upper half of it

    def classification(box, negative_weight=0.0):
        batch = detector.prepare(images((64, 64)), [target([box], [1])])
        output = detector.forward_train(batch, negative_weight)
        positive = output.dense.labels[0] == 1
        quality = torch.tensor([iou(box, other) for other in output.dense.boxes[0][positive].tolist()])
        # Cross entropy of a certain "dog" is 50 (1 - quality), times (1 - quality)^2, averaged over the positives.
        return output.losses["classification"].item(), (50 * (1 - quality) ** 3).mean().item()

    for box in (exact, half):
        found, expected = classification(box)
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_detections_are_scored_with_the_class_alone():
    detector = tiny_detector("gfl", options=tiny_options("gfl", score_thresh=0.0)).eval()
    (picture,) = images((64, 64))
    (detections,) = detector.predict([picture])
    dense = detector.forward_teacher(detector.prepare([picture])).dense
    assert detections.scores[0].item() == pytest.approx(dense.logits.sigmoid().max().item())
    assert set(detections.labels.tolist()) <= set(range(len(CLASSES)))
