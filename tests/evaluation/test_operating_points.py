"""Thresholds, precision-recall curves and confusion matrices, by hand and against scikit-learn's definitions."""

import numpy as np
import pytest

from defeat.evaluation.average_precision import Scene
from defeat.evaluation.matching import match_scenes
from defeat.evaluation.operating_points import best_f1, best_points, confusion_matrix, precision_recall

BOX, NEAR, FAR, OTHER = [0, 0, 10, 10], [0, 0, 10, 8], [50, 50, 60, 60], [80, 80, 90, 90]


def scene(detections, objects, number=0, difficult=()):
    """Detections as (box, score, label), objects as (box, label)."""
    boxes = np.array([row[0] for row in detections], dtype=float).reshape(-1, 4)
    true_boxes = np.array([row[0] for row in objects], dtype=float).reshape(-1, 4)
    flags = np.zeros(len(objects), dtype=bool)
    marked = flags.copy()
    marked[list(difficult)] = True
    return Scene(
        number,
        (100, 100),
        boxes,
        np.array([row[1] for row in detections], dtype=float),
        np.array([row[2] for row in detections], dtype=np.int64),
        true_boxes,
        np.array([row[1] for row in objects], dtype=np.int64),
        marked,
        flags,
    )


def curve(scenes, classes=1):
    return precision_recall(match_scenes(scenes, classes)[0])


def test_a_curve_has_a_point_per_score():
    # Correct at 0.9, wrong at 0.8, correct at 0.5 twice: equal scores are kept or left out together. Five objects.
    first = scene([(BOX, 0.9, 0), (FAR, 0.8, 0), (OTHER, 0.5, 0)], [(BOX, 0), (OTHER, 0), ([30, 30, 40, 40], 0)])
    second = scene([(NEAR, 0.5, 0)], [(BOX, 0), (FAR, 0)], number=1)
    given = curve([first, second])
    assert given.scores.tolist() == [0.9, 0.8, 0.5]
    assert given.precision.tolist() == pytest.approx([1, 1 / 2, 3 / 4])
    assert given.recall.tolist() == pytest.approx([1 / 5, 1 / 5, 3 / 5])
    point = best_f1(given)
    assert (point.precision, point.recall) == (pytest.approx(3 / 4), pytest.approx(3 / 5))
    assert point.f1 == pytest.approx(2 * 0.75 * 0.6 / 1.35)
    assert point.threshold == pytest.approx(0.25)  # half-way from 0.5 to no detection at all


def test_the_threshold_keeps_exactly_the_detections_of_the_best_point():
    generator = np.random.default_rng(0)
    detections, objects = [], []
    for number in range(40):
        corner = 2.0 * number
        box = [corner, corner, corner + 1, corner + 1]
        objects.append((box, 0))
        detections.append((box if generator.random() < 0.6 else [0, 99, 1, 100], generator.random(), 0))
    matches = match_scenes([scene(detections, objects)], 1)[0]
    point = best_f1(precision_recall(matches))
    f1 = {}
    for threshold in [0.0, *matches.scores]:
        kept = matches.scores >= threshold
        correct = int((matches.correct[0] & kept).sum())
        f1[threshold] = 2 * correct / (kept.sum() + len(objects))
    assert point.f1 == pytest.approx(max(f1.values()))
    kept = matches.scores >= point.threshold
    assert 2 * (matches.correct[0] & kept).sum() / (kept.sum() + len(objects)) == pytest.approx(point.f1)


def test_classes_without_objects_or_correct_detections_have_no_threshold():
    nothing = scene([(BOX, 0.9, 1)], [(FAR, 2)])
    assert best_points(match_scenes([nothing], 3)) == [None, None, None]
    assert not len(curve([scene([], [])]).scores)


def test_a_confusion_matrix_by_hand():
    # A cat as a dog, a dog as itself, a dog with a detection below the threshold, a detection without an object.
    detections = [(BOX, 0.9, 1), (FAR, 0.8, 1), (OTHER, 0.7, 0), ([30, 30, 40, 40], 0.2, 1)]
    objects = [(BOX, 0), (FAR, 1), ([30, 30, 40, 40], 1)]
    counts = confusion_matrix([scene(detections, objects)], np.array([0.5, 0.5]))
    assert counts.tolist() == [[0, 1, 0], [0, 1, 1], [1, 0, 0]]


def test_an_object_is_detected_once_and_difficult_objects_do_not_count():
    twice = scene([(BOX, 0.9, 0), (NEAR, 0.8, 0)], [(BOX, 0)])
    assert confusion_matrix([twice], np.array([0.5])).tolist() == [[1, 0], [1, 0]]
    ignored = scene([(BOX, 0.9, 0)], [(BOX, 0)], difficult=[0])
    assert confusion_matrix([ignored, scene([], [])], np.array([0.5])).tolist() == [[0, 0], [0, 0]]
