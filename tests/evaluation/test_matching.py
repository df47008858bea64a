"""The average precision of a sample of images equals a full evaluation of its images."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from defeat.evaluation import matching
from defeat.evaluation.average_precision import Scene, coco_average_precision
from defeat.evaluation.matching import (
    assign,
    average_precision_of_images,
    average_precision_of_samples,
    match_scenes,
)
from defeat.types import Detections, Target

CLASSES = 3


def random_scene(generator: torch.Generator, image_id: int) -> Scene:
    """Objects detected with an error, twice, with a wrong class or not at all; some are crowds or difficult.

    Scores are equal across images, but not within an image, where COCO's AP would depend on their order.
    """
    count = int(torch.randint(0, 7, (1,), generator=generator))
    corners = 200 * torch.rand(count, 2, generator=generator)
    boxes = torch.cat([corners, corners + 10 + 120 * torch.rand(count, 2, generator=generator)], dim=1)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    kinds = torch.randint(8, (count,), generator=generator)
    moved = boxes.repeat(3, 1) + 5 * torch.randn(3 * count, 4, generator=generator)
    predicted = torch.where(torch.rand(3 * count, generator=generator) < 0.8, labels.repeat(3), 0)
    scores = (1 + torch.randperm(3 * count, generator=generator)) / 20
    keep = (moved[:, 2:] > moved[:, :2]).all(dim=1)
    order = scores[keep].argsort(descending=True, stable=True)
    detections = Detections(moved[keep][order], scores[keep][order], predicted[keep][order])
    return Scene.from_image(detections, Target(boxes, labels, kinds == 0, kinds == 1, image_id, (400, 400)))


@pytest.fixture(scope="module")
def scenes():
    generator = torch.Generator().manual_seed(0)
    return [random_scene(generator, number) for number in range(25)]


def repeated(scenes, weights):
    """The data set that contains each image as often as its weight says."""
    copies = [scene for scene, times in zip(scenes, weights, strict=True) for _ in range(times)]
    return [replace(scene, image_id=number) for number, scene in enumerate(copies)]


def test_samples_equal_a_full_evaluation_of_duplicated_images(scenes):
    weights = np.random.default_rng(0).multinomial(len(scenes), [1 / len(scenes)] * len(scenes), size=20)
    precision = average_precision_of_samples(match_scenes(scenes, CLASSES), weights)
    for row, sample in zip(precision, weights, strict=True):
        whole = coco_average_precision(repeated(scenes, sample), CLASSES)
        assert row.tolist() == pytest.approx([metrics["AP"] for metrics in whole.per_class], abs=1e-12)
        assert np.nanmean(row) == pytest.approx(whole.overall["AP"], abs=1e-12)


def test_every_image_once_is_the_average_precision_of_all(scenes):
    precision = average_precision_of_samples(match_scenes(scenes, CLASSES), np.ones((1, len(scenes)), dtype=np.int64))
    assert np.nanmean(precision) == pytest.approx(coco_average_precision(scenes, CLASSES).overall["AP"], abs=1e-12)
    assert 0.1 < np.nanmean(precision) < 0.9


def test_many_samples_are_computed_in_pieces_of_bounded_size(scenes, monkeypatch):
    matches = match_scenes(scenes, CLASSES)
    weights = np.random.default_rng(1).integers(0, 3, size=(30, len(scenes)))
    whole = average_precision_of_samples(matches, weights)
    monkeypatch.setattr(matching, "NUMBERS_AT_ONCE", 300)
    assert np.array_equal(average_precision_of_samples(matches, weights), whole, equal_nan=True)


def test_a_sample_without_the_class_gives_nan(scenes):
    without = [number for number, scene in enumerate(scenes) if not (scene.true_labels == 2).any()]
    weights = np.zeros((1, len(scenes)), dtype=np.int64)
    weights[0, without] = 1
    precision = average_precision_of_samples(match_scenes(scenes, CLASSES), weights)[0]
    assert np.isnan(precision[2])
    assert not np.isnan(precision[0])


def test_the_average_precision_of_an_image_is_that_of_a_data_set_of_one(scenes):
    matches = match_scenes(scenes, CLASSES)
    single = average_precision_of_samples(matches, np.eye(len(scenes), dtype=np.int64))
    precision = average_precision_of_images(matches)
    for row, of_image in zip(single, precision, strict=True):
        assert (np.isnan(row).all() and np.isnan(of_image)) or of_image == pytest.approx(np.nanmean(row))
    assert np.isnan(precision).any()
    assert (precision > 0).any()


def test_a_detection_is_assigned_to_the_free_object_with_the_largest_iou():
    objects = np.array([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 12.0]])
    boxes = np.array([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 10.0]])
    # IoU 1 with the first, 100/120 = 0.83 with the second: the second detection gets the second object at 0.5 and none
    # at 0.9; the third gets none at either.
    assigned, on_crowd = assign(boxes, objects, np.zeros((0, 4)), np.array([0.5, 0.9]))
    assert assigned.tolist() == [[0, 1, -1], [0, -1, -1]]
    assert not on_crowd.any()


def test_any_number_of_detections_may_lie_on_a_crowd():
    crowd = np.array([[0.0, 0.0, 100.0, 100.0]])
    boxes = np.array([[0.0, 0.0, 10.0, 10.0], [95.0, 0.0, 105.0, 10.0], [200.0, 0.0, 210.0, 10.0]])
    # All, half and none of the detection's area is inside.
    assigned, on_crowd = assign(boxes, np.zeros((0, 4)), crowd, np.array([0.5, 0.75]))
    assert (assigned == -1).all()
    assert on_crowd.tolist() == [[True, True, False], [True, False, False]]
