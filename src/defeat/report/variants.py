"""A matrix of runs, methods times seeds, held against the same student alone."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np

from defeat.errors import InputError
from defeat.evaluation.average_precision import Floats
from defeat.evaluation.bootstrap import SAMPLES, interval_over_images, interval_over_seeds
from defeat.report.gains import Bootstrap, Gain, words
from defeat.report.runs import RunSummary
from defeat.report.verdict import differences, lead_over

INHERITED = "none+inherit"  # the variant that has weights of the teacher, and no other help
SIZES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@dataclass(frozen=True)
class VariantResult:
    """One way to train the student, over all its seeds.

    Attributes:
        name: what it is called, e.g. `none` or `defeat`.
        seeds: the seeds, ascending.
        ap: AP of each seed, 0..100.
        metrics: mean over the seeds of AP and its parts by IoU and size; None where there is no such object.
        per_class: mean AP of each class.
        gain: against the student alone; None for that one itself.
        class_gains: the same for each class, without an interval over seeds.
        gain_over_inherited: against the student that inherits the teacher's weights and has no other help: what the
            terms of a method add; None where that student is not part of the matrix, and for itself.
        gap_closed: part of the teacher's lead over the student alone that was won, in percent; None where the teacher
            leads by less than a point.
        time_ratio: time spent in training over that of the student alone, mean over the seeds.
    """

    name: str
    seeds: tuple[int, ...]
    ap: tuple[float, ...]
    metrics: dict[str, float | None]
    per_class: dict[str, float | None]
    gain: Gain | None = None
    class_gains: dict[str, Gain] | None = None
    gap_closed: float | None = None
    time_ratio: float | None = None
    gain_over_inherited: Gain | None = None

    @property
    def mean(self) -> float:
        """Mean AP over the seeds."""
        return fmean(self.ap)

    def sentence(self, images: int) -> str:
        """What can be said about the gain, in words."""
        gain = self.gain
        if gain is None:
            return f"{self.name}: {self.mean:.1f} AP."
        text = f"{self.name}: {_gain_in_words(gain, images)}."
        if (terms := self.gain_over_inherited) is not None:
            text += f" Over a student that inherits alone: {_gain_in_words(terms, images)}."
        return text


def _gain_in_words(gain: Gain, images: int) -> str:
    """A gain with its intervals, and whether it is significant."""
    text = f"{gain.mean:+.1f} AP"
    parts = []
    if gain.over_seeds is not None:
        parts.append(f"{words(gain.over_seeds)} over {len(gain.by_seed)} seeds")
    if gain.over_images is not None:
        parts.append(f"{words(gain.over_images)} over {images} test images")
    if parts:
        text += f" (95 %: {'; '.join(parts)})"
    if gain.shown:
        return f"{text}: {'a gain' if gain.mean > 0 else 'a loss'}, shown"
    if gain.over_seeds is None:
        return f"{text}: not shown, one seed cannot tell it from chance"
    return f"{text}: not shown"


@dataclass(frozen=True)
class MatrixResult:
    """Methods and seeds side by side.

    Attributes:
        alone: the student alone.
        others: the methods, in the order asked for.
        teacher: figures of the teacher on the same split, 0..100.
        images: number of test images.
        samples: of the bootstrap over images.
        missing: cells that are not finished.
    """

    alone: VariantResult
    others: tuple[VariantResult, ...]
    teacher: dict[str, float | None]
    images: int
    samples: int
    missing: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The same as plain dicts, for JSON."""
        return asdict(self)

    @property
    def best(self) -> VariantResult | None:
        """The method that gained the most; None when there is none."""
        return max(self.others, key=lambda other: other.gain.mean if other.gain else 0.0, default=None)

    @property
    def seeds(self) -> list[int]:
        """All seeds that one of the rows has."""
        return sorted({seed for one in (self.alone, *self.others) for seed in one.seeds})

    def unequal_seeds(self) -> str:
        """A warning where the rows' means are over other seeds; empty where all have the same."""
        if all(other.seeds == self.alone.seeds for other in self.others):
            return ""
        return (
            f"By seed: {', '.join(map(str, self.seeds))}; - stands for a run that is not there. Means of AP are over "
            "other seeds, so compare the gains: each is over the student alone of the same seeds."
        )

    def verdict(self) -> str:
        """The answer in one sentence, for the method that gained the most."""
        best = self.best
        if best is None:
            return f"The student alone reaches {self.alone.mean:.1f} AP; no method stands beside it yet."
        return best.sentence(self.images)


def compare_variants(
    variants: Mapping[str, Sequence[RunSummary]],
    teacher: Mapping[str, float | None],
    alone: str = "none",
    samples: int = SAMPLES,
    missing: Sequence[str] = (),
) -> MatrixResult:
    """Hold each variant against the student alone, seed by seed.

    Args:
        variants: finished runs of each variant by its name; seeds that the student alone lacks are left out.
        teacher: figures of the teacher on the same split, 0..100.
        alone: name of the student alone.
        samples: of the bootstrap over images, 1000 or more.
        missing: cells that are not finished, to be named.

    Raises:
        InputError: there is no run of the student alone, or a run differs from it in more than the distillation.
    """
    plain = {run.seed: run for run in variants.get(alone, ())}
    if not plain:
        raise InputError(f"No run of the student alone ({alone}) is finished: there is nothing to compare with.")
    first = next(iter(plain.values()))
    bootstrap = Bootstrap(first, samples)
    inherited = {run.seed: run for run in variants.get(INHERITED, ())}
    results = []
    for name, runs in variants.items():
        pairs = _pairs(plain, runs)
        if not pairs:
            continue
        for one, other in pairs:
            if different := differences(other, one):
                raise InputError(f"{other.name} and {one.name} can't be compared: {', '.join(different)}.")
        result = _variant(name, pairs, teacher.get("AP"), bootstrap, name == alone)
        if name not in (alone, INHERITED) and (others := _pairs(inherited, runs)):
            result = replace(result, gain_over_inherited=_gain(others, bootstrap.gain(others)))
        results.append(result)
    return MatrixResult(
        alone=next(result for result in results if result.name == alone),
        others=tuple(result for result in results if result.name != alone),
        teacher=dict(teacher),
        images=bootstrap.images,
        samples=samples,
        missing=tuple(missing),
    )


def _pairs(
    baseline: Mapping[int | None, RunSummary], runs: Sequence[RunSummary]
) -> list[tuple[RunSummary, RunSummary]]:
    """Each run with the baseline of its seed, where there is one, in the order of the seeds."""
    return [(baseline[run.seed], run) for run in sorted(runs, key=lambda run: run.seed or 0) if run.seed in baseline]


def _gain(pairs: Sequence[tuple[RunSummary, RunSummary]], samples: Floats | None) -> Gain:
    """What the second run of each pair gains on average, given the bootstrap's (S, K) of it."""
    by_seed = tuple(_ap(run) - _ap(baseline) for baseline, run in pairs)
    over_images = None if samples is None else interval_over_images(np.nanmean(samples, axis=1))
    return Gain(fmean(by_seed), by_seed, interval_over_seeds(by_seed), over_images)


def _variant(
    name: str,
    pairs: Sequence[tuple[RunSummary, RunSummary]],
    teacher_ap: float | None,
    bootstrap: Bootstrap,
    is_alone: bool,
) -> VariantResult:
    runs = [run for _, run in pairs]
    classes = list(runs[0].per_class)
    result = VariantResult(
        name=name,
        seeds=tuple(run.seed or 0 for run in runs),
        ap=tuple(_ap(run) for run in runs),
        metrics={key: _mean([run.metrics.get(key) for run in runs]) for key in SIZES},
        per_class={label: _mean([run.per_class[label].get("AP") for run in runs]) for label in classes},
    )
    if is_alone:
        return result
    samples = bootstrap.gain(pairs)
    gain = _gain(pairs, samples)
    lead = lead_over(fmean(_ap(alone) for alone, _ in pairs), teacher_ap)
    ratios = [
        run.train_seconds / alone.train_seconds for alone, run in pairs if run.train_seconds and alone.train_seconds
    ]
    return VariantResult(
        **{field: getattr(result, field) for field in ("name", "seeds", "ap", "metrics", "per_class")},
        gain=gain,
        class_gains=_class_gains(classes, pairs, samples),
        gap_closed=None if lead is None else 100 * gain.mean / lead,
        time_ratio=fmean(ratios) if ratios else None,
    )


def _class_gains(
    classes: Sequence[str], pairs: Sequence[tuple[RunSummary, RunSummary]], samples: Floats | None
) -> dict[str, Gain]:
    gains = {}
    for label, name in enumerate(classes):
        found = [(alone.per_class[name].get("AP"), run.per_class[name].get("AP")) for alone, run in pairs]
        ahead = tuple(after - before for before, after in found if before is not None and after is not None)
        if ahead:
            over_images = None if samples is None else interval_over_images(samples[:, label])
            gains[name] = Gain(fmean(ahead), ahead, interval_over_seeds(ahead), over_images)
    return gains


def _ap(run: RunSummary) -> float:
    value = run.metrics.get("AP")
    if value is None:
        raise InputError(f"{run.folder}: its AP is not known, the test split has no object.")
    return value


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
