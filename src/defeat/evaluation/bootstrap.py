"""Confidence intervals of 95 %: Student's t over seeds, the bootstrap over images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
import numpy.typing as npt

from defeat.evaluation.average_precision import Floats

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
