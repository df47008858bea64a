"""How alike the detections of two detectors are, and how long they take."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch
from torch import Tensor
from torchvision.ops import box_iou

from defeat.detector.teacher import Predictor
from defeat.evaluation.profile import percentile_95
from defeat.types import Detections


@dataclass(frozen=True)
class Tolerance:
    """When two detections of a class are the same.

    Attributes:
        iou: least IoU of their boxes, 0..1.
        score: largest difference of their scores, 0..1.
        share: least share of equal detections with which two detectors are equal, 0..1.
    """

    iou: float = 0.99
    score: float = 1e-3
    share: float = 0.99


@dataclass(frozen=True)
class Parity:
    """Equality of the detections of two detectors over images.

    Attributes:
        images: number of images.
        detections: number of detections of both, over two.
        matched: share of detections that the other detector has as well, 0..1; 1 without detections.
        largest_box_difference: of equal detections, in pixels.
        largest_score_difference: of equal detections.
    """

    images: int
    detections: float
    matched: float
    largest_box_difference: float
    largest_score_difference: float


def measure_parity(
    first: Predictor, second: Predictor, images: Sequence[Tensor], tolerance: Tolerance = Tolerance()
) -> Parity:
    """Compare two detectors.

    Detections are matched, not compared by rank: equal scores may come in any order.

    Args:
        first: a detector.
        second: another one.
        images: RGB, each (3, H, W) uint8.
        tolerance: when detections are the same.
    """
    total, matched, boxes, scores = 0, 0, [0.0], [0.0]
    for image in images:
        (mine,), (theirs,) = first.predict([image]), second.predict([image])
        total += len(mine.boxes) + len(theirs.boxes)
        pairs = matched_detections(mine, theirs, tolerance)
        matched += 2 * len(pairs)
        if len(pairs):
            here, there = pairs.unbind(1)
            boxes.append(float((mine.boxes[here] - theirs.boxes[there]).abs().max()))
            scores.append(float((mine.scores[here] - theirs.scores[there]).abs().max()))
    return Parity(len(images), total / 2, matched / total if total else 1.0, max(boxes), max(scores))


def matched_detections(mine: Detections, theirs: Detections, tolerance: Tolerance) -> Tensor:
    """Pairs of equal detections of an image, each at most once; those with the largest IoU first.

    Returns:
        (P, 2) int64, indices into both.
    """
    iou = box_iou(mine.boxes.double(), theirs.boxes.double())  # (D, E)
    # A box without an area has no IoU, also with itself.
    same = (mine.boxes[:, None] - theirs.boxes[None]).abs().amax(dim=2) < 1e-2
    iou = torch.where(same, 1.0, iou)
    equal = (iou >= tolerance.iou) & (mine.labels[:, None] == theirs.labels[None])
    difference = (mine.scores[:, None] - theirs.scores[None]).abs()
    equal &= difference <= tolerance.score
    candidates = equal.nonzero()  # (P', 2)
    order = (iou - difference)[equal].argsort(descending=True)
    pairs, left, right = [], set(), set()
    for here, there in candidates[order].tolist():
        if here not in left and there not in right:
            left.add(here)
            right.add(there)
            pairs.append((here, there))
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)


@dataclass(frozen=True)
class Latency:
    """Wall time of a prediction of one image, from its pixels to the detections.

    Attributes:
        median_ms: median in milliseconds.
        p95_ms: 95th percentile in milliseconds.
        threads: threads that the CPU may use.
    """

    median_ms: float
    p95_ms: float
    threads: int


def measure_latency(
    detectors: Sequence[Predictor], images: Sequence[Tensor], repeats: int = 40, warmup: int = 3
) -> list[Latency]:
    """Measure detectors in turn, so that other work of the machine slows all of them.

    Args:
        detectors: what to measure.
        images: RGB, each (3, H, W) uint8; at least one.
        repeats: timed predictions of each.
        warmup: predictions of each before the first timed one.
    """
    seconds: list[list[float]] = [[] for _ in detectors]
    for repeat in range(warmup + repeats):
        image = images[repeat % len(images)]
        for detector, times in zip(detectors, seconds, strict=True):
            begin = perf_counter()
            detector.predict([image])
            if repeat >= warmup:
                times.append(perf_counter() - begin)
    threads = torch.get_num_threads()
    return [Latency(1000 * median(times), 1000 * percentile_95(times), threads) for times in seconds]
