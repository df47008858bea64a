"""What a method gained over the same student alone, and what can be said about it: two 95 % intervals.

Repeating a training with other seeds changes its AP, and so would other test images. Both are looked at in pairs: a
method and the plain training share seed, first weights, order of the data and test images, so what the two have in
common falls out of the difference.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
import numpy.typing as npt

from defeat.engine.average_precision import Floats
from defeat.engine.matching import average_precision_of_samples
from defeat.report.runs import RunSummary

SAMPLES = 2000  # of a bootstrap
# 97.5 % points of Student's t for 1, 2 .. 30 degrees of freedom.
T_POINTS = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True)
class Interval:
    """A 95 % interval, in AP points."""

    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        """Whether no change at all is among the plausible values."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True)
class Gain:
    """AP points of a method above the same student alone.

    Attributes:
        mean: over all seeds.
        by_seed: of each seed.
        over_seeds: where the mean lies if the training is repeated with other seeds (Student's t, paired); None for one
            seed.
        over_images: where it lies if the test set is drawn anew (paired bootstrap over its images); None when the runs
            kept no detections.
    """

    mean: float
    by_seed: tuple[float, ...]
    over_seeds: Interval | None = None
    over_images: Interval | None = None

    @property
    def shown(self) -> bool:
        """Whether the gain, or the loss, stands against other seeds and other images alike."""
        intervals = (self.over_seeds, self.over_images)
        return all(interval is not None and not interval.holds_zero for interval in intervals)


def interval_over_seeds(values: Sequence[float]) -> Interval | None:
    """Student's interval of the mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    freedom = len(values) - 1
    point = T_POINTS[freedom - 1] if freedom <= len(T_POINTS) else 1.960 + 2.45 / freedom  # good to 0.001 from 31 on
    half = point * stdev(values) / math.sqrt(len(values))
    mean = fmean(values)
    return Interval(mean - half, mean + half)


def interval_over_images(samples: Floats) -> Interval:
    """The middle 95 % of the (S,) figures of a bootstrap, those that are not numbers left out."""
    low, high = np.nanpercentile(samples, [2.5, 97.5])
    return Interval(float(low), float(high))


def bootstrap_weights(images: int, samples: int = SAMPLES, seed: int = 0) -> npt.NDArray[np.int64]:
    """How often each of so many images is drawn when a test set of the same size is drawn anew: (S, I)."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=samples)


def words(interval: Interval) -> str:
    """An interval as `-0.3 to +2.7`."""
    return f"{interval.low:+.1f} to {interval.high:+.1f}"


class Bootstrap:
    """AP of each class of a run on the same samples of the test images, each run computed once.

    Args:
        example: a run that was tested on these images; without its detections there is no bootstrap.
        samples: number of samples.
    """

    def __init__(self, example: RunSummary, samples: int) -> None:
        self.images = example.images or 0
        self._weights = bootstrap_weights(len(example.scenes), samples) if example.has_detections else None
        self._known: dict[str, Floats] = {}

    def gain(self, pairs: Sequence[tuple[RunSummary, RunSummary]]) -> Floats | None:
        """AP points (S, K) that the second run of each pair is ahead, on average; None without detections."""
        if self._weights is None or not all(run.has_detections for pair in pairs for run in pair):
            return None
        ahead: Floats = np.mean([self._precision(run) - self._precision(alone) for alone, run in pairs], axis=0)
        return 100 * ahead

    def _precision(self, run: RunSummary) -> Floats:
        key = str(run.folder)
        if key not in self._known:
            assert self._weights is not None
            self._known[key] = average_precision_of_samples(run.matches, self._weights)
        return self._known[key]
