"""The comparison of two detectors."""

from types import SimpleNamespace

import pytest
import torch

from defeat.exporting.parity import Tolerance, matched_detections, measure_latency, measure_parity
from defeat.types import Detections

BOXES = [[0, 0, 10, 10], [20, 20, 40, 40], [5, 5, 15, 25]]


def found(boxes=BOXES, scores=(0.9, 0.8, 0.8), labels=(0, 1, 1)):
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor(scores), torch.tensor(labels).long()
    )


def detector(detections):
    return SimpleNamespace(info=None, predict=lambda images: [detections] * len(images))


def compare(first, second):
    return measure_parity(detector(first), detector(second), [None])


def test_equal_detections_match_in_any_order():
    other = found([BOXES[0], BOXES[2], BOXES[1]])
    parity = compare(found(), other)
    assert parity.matched == 1
    assert parity.detections == 3
    assert (parity.largest_box_difference, parity.largest_score_difference) == (0, 0)


@pytest.mark.parametrize(
    "other",
    [
        found([BOXES[0], BOXES[1], [5, 5, 15, 26]]),  # IoU 20/21
        found(labels=(0, 1, 0)),
        found(scores=(0.9, 0.8, 0.797)),
    ],
    ids=["box", "label", "score"],
)
def test_a_detection_that_differs_is_counted_on_both_sides(other):
    assert compare(found(), other).matched == pytest.approx(4 / 6)


def test_a_missing_detection_lowers_the_share():
    assert compare(found(), found(BOXES[:2], (0.9, 0.8), (0, 1))).matched == pytest.approx(4 / 5)


def test_each_detection_matches_once():
    twice = found([BOXES[0], BOXES[0]], (0.9, 0.9), (0, 0))
    assert len(matched_detections(twice, found(BOXES[:1], (0.9,), (0,)), Tolerance())) == 1


def test_nothing_and_nothing_are_equal():
    nothing = found([], (), ())
    assert compare(nothing, nothing).matched == 1
    assert compare(nothing, found()).matched == 0


def test_a_box_without_an_area_equals_itself():
    line = found([[5, 5, 5, 20]], (0.9,), (0,))
    assert compare(line, line).matched == 1


def test_the_largest_differences_are_those_of_matched_detections():
    other = found([[0, 0, 10, 10.05], BOXES[1], [50, 50, 90, 90]], (0.9, 0.8005, 0.8))
    parity = compare(found(), other)
    assert parity.largest_box_difference == pytest.approx(0.05, abs=1e-5)
    assert parity.largest_score_difference == pytest.approx(0.0005, abs=1e-5)


def test_the_time_of_each_detector_is_measured():
    calls = []
    slow = SimpleNamespace(info=None, predict=lambda images: calls.append(1))
    first, second = measure_latency([detector(found()), slow], [None], repeats=5, warmup=2)
    assert len(calls) == 7
    assert first.median_ms <= first.p95_ms
    assert second.threads == torch.get_num_threads()
