"""The gain of a method over the baseline, with two 95 % intervals.

AP varies with the seed of a training and with the test images. Both intervals are paired: a method and the baseline
share seed, initial weights, order of the data and test images, so their common variation cancels in the difference.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from defeat.evaluation.average_precision import Floats
from defeat.evaluation.bootstrap import Interval, bootstrap_weights, interval_over_images
from defeat.evaluation.matching import average_precision_of_samples
from defeat.report.runs import RunSummary


@dataclass(frozen=True)
class Gain:
    """AP points of a method above the baseline.

    Attributes:
        mean: mean over all seeds.
        by_seed: gain per seed.
        over_seeds: interval of the mean over seeds (Student's t, paired); None for one seed.
        over_images: interval of the mean over test images (paired bootstrap); None when the runs stored no detections.
    """

    mean: float
    by_seed: tuple[float, ...]
    over_seeds: Interval | None = None
    over_images: Interval | None = None

    @property
    def significant(self) -> bool:
        """Whether neither interval contains zero."""
        intervals = (self.over_seeds, self.over_images)
        return all(interval is not None and not interval.contains_zero for interval in intervals)


def interval_text(interval: Interval) -> str:
    """Format an interval as `-0.3 to +2.7`."""
    return f"{interval.low:+.1f} to {interval.high:+.1f}"


class Bootstrap:
    """Per-class AP of runs on the same bootstrap samples of the test images; each run is computed once.

    Args:
        example: a run evaluated on these images; without its detections there is no bootstrap.
        samples: number of bootstrap samples.
    """

    def __init__(self, example: RunSummary, samples: int) -> None:
        self.images = example.images or 0
        self._weights = bootstrap_weights(len(example.scenes), samples) if example.has_detections else None
        self._cache: dict[str, Floats] = {}

    def gain(self, pairs: Sequence[tuple[RunSummary, RunSummary]]) -> Floats | None:
        """Mean difference in AP points (S, K), second run of each pair minus first; None without detections."""
        if self._weights is None or not all(run.has_detections for pair in pairs for run in pair):
            return None
        differences = [self._precision(run) - self._precision(baseline) for baseline, run in pairs]
        mean: Floats = np.mean(differences, axis=0)
        return 100 * mean

    def accuracy(self, run: RunSummary) -> Interval | None:
        """95 % interval of a run's AP over test images, 0..100; None without detections."""
        if self._weights is None:
            return None
        with np.errstate(invalid="ignore"):
            return interval_over_images(100 * np.nanmean(self._precision(run), axis=1))

    def _precision(self, run: RunSummary) -> Floats:
        key = str(run.folder)
        if key not in self._cache:
            assert self._weights is not None
            self._cache[key] = average_precision_of_samples(run.matches, self._weights)
        return self._cache[key]
