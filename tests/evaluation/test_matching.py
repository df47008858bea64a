"""The average precision of samples of images equals a full evaluation of the images that they hold."""

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
    """Objects found with an error, twice, in a wrong class or not at all; crowds and difficult boxes among them.

    Scores are equal across images, but not within one: there COCO's own figure depends on their order.
    """
    count = int(torch.randint(0, 7, (1,), generator=generator))
    corners = 200 * torch.rand(count, 2, generator=generator)
    boxes = torch.cat([corners, corners + 10 + 120 * torch.rand(count, 2, generator=generator)], dim=1)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    kinds = torch.randint(8, (count,), generator=generator)
    moved = boxes.repeat(3, 1) + 5 * torch.randn(3 * count, 4, generator=generator)
    guessed = torch.where(torch.rand(3 * count, generator=generator) < 0.8, labels.repeat(3), 0)
    scores = (1 + torch.randperm(3 * count, generator=generator)) / 20
    keep = (moved[:, 2:] > moved[:, :2]).all(dim=1)
    order = scores[keep].argsort(descending=True, stable=True)
    found = Detections(moved[keep][order], scores[keep][order], guessed[keep][order])
    return Scene.of(found, Target(boxes, labels, kinds == 0, kinds == 1, image_id, (400, 400)))


@pytest.fixture(scope="module")
def scenes():
    generator = torch.Generator().manual_seed(0)
    return [random_scene(generator, number) for number in range(25)]


def repeated(scenes, weights):
    """The data set that holds each image as often as its weight says."""
    copies = [scene for scene, times in zip(scenes, weights, strict=True) for _ in range(times)]
    return [replace(scene, image_id=number) for number, scene in enumerate(copies)]


def test_samples_equal_a_full_evaluation_of_duplicated_images(scenes):
    weights = np.random.default_rng(0).multinomial(len(scenes), [1 / len(scenes)] * len(scenes), size=20)
    found = average_precision_of_samples(match_scenes(scenes, CLASSES), weights)
    for row, sample in zip(found, weights, strict=True):
        whole = coco_average_precision(repeated(scenes, sample), CLASSES)
        assert row.tolist() == pytest.approx([figures["AP"] for figures in whole.per_class], abs=1e-12)
        assert np.nanmean(row) == pytest.approx(whole.overall["AP"], abs=1e-12)


def test_every_image_once_is_the_average_precision_of_all(scenes):
    found = average_precision_of_samples(match_scenes(scenes, CLASSES), np.ones((1, len(scenes)), dtype=np.int64))
    assert np.nanmean(found) == pytest.approx(coco_average_precision(scenes, CLASSES).overall["AP"], abs=1e-12)
    assert 0.1 < np.nanmean(found) < 0.9


def test_many_samples_are_computed_in_pieces_of_bounded_size(scenes, monkeypatch):
    matches = match_scenes(scenes, CLASSES)
    weights = np.random.default_rng(1).integers(0, 3, size=(30, len(scenes)))
    whole = average_precision_of_samples(matches, weights)
    monkeypatch.setattr(matching, "NUMBERS_AT_ONCE", 300)
    assert np.array_equal(average_precision_of_samples(matches, weights), whole, equal_nan=True)


def test_a_sample_without_the_class_has_no_figure(scenes):
    without = [number for number, scene in enumerate(scenes) if not (scene.true_labels == 2).any()]
    weights = np.zeros((1, len(scenes)), dtype=np.int64)
    weights[0, without] = 1
    found = average_precision_of_samples(match_scenes(scenes, CLASSES), weights)[0]
    assert np.isnan(found[2])
    assert not np.isnan(found[0])


def test_the_figure_of_an_image_is_that_of_a_data_set_of_one(scenes):
    matches = match_scenes(scenes, CLASSES)
    alone = average_precision_of_samples(matches, np.eye(len(scenes), dtype=np.int64))
    found = average_precision_of_images(matches)
    for row, figure in zip(alone, found, strict=True):
        assert (np.isnan(row).all() and np.isnan(figure)) or figure == pytest.approx(np.nanmean(row))
    assert np.isnan(found).any()
    assert (found > 0).any()


def test_a_detection_takes_the_free_object_that_it_fits_best():
    objects = np.array([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 12.0]])
    boxes = np.array([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 10.0]])
    # IoU 1 with the first, 100/120 = 0.83 with the second: at 0.5 the second detection takes the second object, at 0.9
    # it finds none; the third finds none at either.
    found, on_crowd = assign(boxes, objects, np.zeros((0, 4)), np.array([0.5, 0.9]))
    assert found.tolist() == [[0, 1, -1], [0, -1, -1]]
    assert not on_crowd.any()


def test_any_number_of_detections_may_lie_on_a_crowd():
    crowd = np.array([[0.0, 0.0, 100.0, 100.0]])
    boxes = np.array([[0.0, 0.0, 10.0, 10.0], [95.0, 0.0, 105.0, 10.0], [200.0, 0.0, 210.0, 10.0]])
    # Inside by all, by half, by nothing of the detection.
    found, on_crowd = assign(boxes, np.zeros((0, 4)), crowd, np.array([0.5, 0.75]))
    assert (found == -1).all()
    assert on_crowd.tolist() == [[True, True, False], [True, False, False]]
