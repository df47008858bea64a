"""95 % confidence intervals: Student's t over seeds, bootstrap over images."""

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
    def contains_zero(self) -> bool:
        """Whether the interval contains zero, that is, the difference is not significant."""
        return self.low <= 0 <= self.high


def interval_over_seeds(values: Sequence[float]) -> Interval | None:
    """Student's t interval of the mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    freedom = len(values) - 1
    point = T_POINTS[freedom - 1] if freedom <= len(T_POINTS) else 1.960 + 2.45 / freedom  # good to 0.001 from 31 on
    half = point * stdev(values) / math.sqrt(len(values))
    mean = fmean(values)
    return Interval(mean - half, mean + half)


def interval_over_images(samples: Floats) -> Interval:
    """The middle 95 % of the (S,) values of a bootstrap, ignoring NaN."""
    low, high = np.nanpercentile(samples, [2.5, 97.5])
    return Interval(float(low), float(high))


def bootstrap_weights(images: int, samples: int = SAMPLES, seed: int = 0) -> npt.NDArray[np.int64]:
    """Number of times that each image is drawn in each bootstrap sample of a test set: (S, I)."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=samples)
