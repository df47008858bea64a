"""What a method gained over the same student alone, and what can be said about it: two 95 % intervals.

Repeating a training with other seeds changes its AP, and so would other test images. Both are looked at in pairs: a
method and the plain training share seed, first weights, order of the data and test images, so what the two have in
common falls out of the difference.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from defeat.evaluation.average_precision import Floats
from defeat.evaluation.bootstrap import Interval, bootstrap_weights
from defeat.evaluation.matching import average_precision_of_samples
from defeat.report.runs import RunSummary


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
