"""Compares a matrix of runs, methods times seeds, with the baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np

from defeat.errors import InputError
from defeat.evaluation.average_precision import Floats
from defeat.evaluation.bootstrap import SAMPLES, interval_over_images, interval_over_seeds
from defeat.report.gains import Bootstrap, Gain, interval_text
from defeat.report.runs import RunSummary
from defeat.report.verdict import differences, teacher_gap

INHERITED = "none+inherit"  # the variant that inherits weights of the teacher and has no distillation losses
SIZES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@dataclass(frozen=True)
class VariantResult:
    """One way to train the student, over all its seeds.

    Attributes:
        name: name of the variant, e.g. `none` or `defeat+inherit`.
        seeds: the seeds, ascending.
        ap: AP per seed, 0..100.
        metrics: mean over seeds of AP, AP50, AP75, APs, APm and APl, 0..100; None where there is no such object.
        per_class: mean over seeds of per-class AP, 0..100.
        gain: gain over the baseline; None for the baseline.
        class_gains: the same per class.
        gain_over_inherited: gain over `none+inherit`, the contribution of the distillation losses; None for itself,
            and where the matrix has no such variant.
        gap_closed: share of the teacher-student gap, in percent; None where the gap is below one AP point.
        time_ratio: training time over that of the baseline, mean over seeds.
        schedule: the learning rate schedule; empty where it is not recorded.
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
    schedule: str = ""

    @property
    def mean(self) -> float:
        """Mean AP over the seeds."""
        return fmean(self.ap)

    def sentence(self, images: int) -> str:
        """The gain in words."""
        if self.gain is None:
            return f"{self.name}: {self.mean:.1f} AP."
        text = f"{self.name}: {_gain_in_words(self.gain, images)}."
        if self.gain_over_inherited is not None:
            text += f" Over {INHERITED}: {_gain_in_words(self.gain_over_inherited, images)}."
        return text


def _gain_in_words(gain: Gain, images: int) -> str:
    """A gain with its intervals, and whether it is significant."""
    text = f"{gain.mean:+.1f} AP"
    parts = []
    if gain.over_seeds is not None:
        parts.append(f"{interval_text(gain.over_seeds)} over {len(gain.by_seed)} seeds")
    if gain.over_images is not None:
        parts.append(f"{interval_text(gain.over_images)} over {images} test images")
    if parts:
        text += f" (95 %: {'; '.join(parts)})"
    if gain.significant:
        return f"{text}: a significant {'gain' if gain.mean > 0 else 'loss'}"
    if gain.over_seeds is None:
        return f"{text}: not significant, one seed gives no interval over seeds"
    return f"{text}: not significant"


@dataclass(frozen=True)
class MatrixResult:
    """The result of a comparison.

    Attributes:
        baseline: the student without a teacher.
        others: the other variants, in the order of the matrix.
        teacher: metrics of the teacher on the same split, 0..100.
        images: number of test images.
        samples: number of bootstrap samples over images.
        missing: folders of unfinished cells.
    """

    baseline: VariantResult
    others: tuple[VariantResult, ...]
    teacher: dict[str, float | None]
    images: int
    samples: int
    missing: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain dicts, for JSON."""
        return asdict(self)

    @property
    def ranked(self) -> list[VariantResult]:
        """The other variants, that with the largest gain first."""
        return sorted(self.others, key=lambda other: -(other.gain.mean if other.gain else 0.0))

    @property
    def best(self) -> VariantResult | None:
        """The variant with the largest gain; None without other variants."""
        return next(iter(self.ranked), None)

    @property
    def seeds(self) -> list[int]:
        """All seeds of the matrix that have a finished run."""
        return sorted({seed for variant in (self.baseline, *self.others) for seed in variant.seeds})

    def unequal_seeds(self) -> str:
        """A warning where variants have different seeds; empty where all have the same."""
        if all(other.seeds == self.baseline.seeds for other in self.others):
            return ""
        return (
            f"By seed: {', '.join(map(str, self.seeds))}; - marks a missing run. The mean APs are over different "
            "seeds, so compare the gains: each is over the baseline of the same seeds."
        )

    def schedules(self) -> str:
        """The learning rate schedules, where variants have different ones; else empty."""
        names: dict[str, list[str]] = {}
        for variant in (self.baseline, *self.others):
            names.setdefault(variant.schedule, []).append(variant.name)
        if len(names) < 2:
            return ""
        parts = (f"{schedule} for {', '.join(variants)}" for schedule, variants in names.items())
        return f"Learning rate schedules: {'; '.join(parts)}. Each has the one with which such students do better."

    def verdict(self) -> str:
        """The result in one sentence, for the variant with the largest gain."""
        best = self.best
        if best is None:
            return f"The baseline reaches {self.baseline.mean:.1f} AP; no other method has a finished run yet."
        return best.sentence(self.images)


def baseline_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """The baseline in the content of a `bench.json`; version 0.1 wrote it under the key `alone`."""
    baseline: dict[str, Any] = content["baseline"] if "baseline" in content else content["alone"]
    return baseline


def compare_variants(
    variants: Mapping[str, Sequence[RunSummary]],
    teacher: Mapping[str, float | None],
    baseline: str = "none",
    samples: int = SAMPLES,
    missing: Sequence[str] = (),
) -> MatrixResult:
    """Compare each variant with the baseline, seed by seed.

    Args:
        variants: finished runs by the name of their variant; seeds without a baseline are left out.
        teacher: metrics of the teacher on the same split, 0..100.
        baseline: name of the baseline's variant.
        samples: bootstrap samples over images, 1000 or more.
        missing: folders of unfinished cells.

    Raises:
        InputError: there is no run of the baseline, or a run differs from it in more than the distillation.
    """
    baselines = {run.seed: run for run in variants.get(baseline, ())}
    if not baselines:
        raise InputError(f"No run of the baseline ({baseline}) is finished: there is nothing to compare with.")
    bootstrap = Bootstrap(next(iter(baselines.values())), samples)
    inherited = {run.seed: run for run in variants.get(INHERITED, ())}
    results = []
    for name, runs in variants.items():
        pairs = _pairs(baselines, runs)
        if not pairs:
            continue
        for reference, run in pairs:
            if different := differences(run, reference):
                raise InputError(f"{run.name} and {reference.name} can't be compared: {', '.join(different)}.")
        result = _variant(name, pairs, teacher.get("AP"), bootstrap, name == baseline)
        if name not in (baseline, INHERITED) and (inherited_pairs := _pairs(inherited, runs)):
            result = replace(result, gain_over_inherited=_gain(inherited_pairs, bootstrap.gain(inherited_pairs)))
        results.append(result)
    return MatrixResult(
        baseline=next(result for result in results if result.name == baseline),
        others=tuple(result for result in results if result.name != baseline),
        teacher=dict(teacher),
        images=bootstrap.images,
        samples=samples,
        missing=tuple(missing),
    )


def _pairs(
    baseline: Mapping[int | None, RunSummary], runs: Sequence[RunSummary]
) -> list[tuple[RunSummary, RunSummary]]:
    """Each run with the baseline of its seed, where there is one, ordered by seed."""
    return [(baseline[run.seed], run) for run in sorted(runs, key=lambda run: run.seed or 0) if run.seed in baseline]


def _gain(pairs: Sequence[tuple[RunSummary, RunSummary]], samples: Floats | None) -> Gain:
    """Mean gain of the second run of each pair, given its bootstrap samples (S, K)."""
    by_seed = tuple(_ap(run) - _ap(baseline) for baseline, run in pairs)
    over_images = None if samples is None else interval_over_images(np.nanmean(samples, axis=1))
    return Gain(fmean(by_seed), by_seed, interval_over_seeds(by_seed), over_images)


def _variant(
    name: str,
    pairs: Sequence[tuple[RunSummary, RunSummary]],
    teacher_ap: float | None,
    bootstrap: Bootstrap,
    is_baseline: bool,
) -> VariantResult:
    runs = [run for _, run in pairs]
    classes = list(runs[0].per_class)
    result = VariantResult(
        name=name,
        seeds=tuple(run.seed or 0 for run in runs),
        ap=tuple(_ap(run) for run in runs),
        metrics={key: _mean([run.metrics.get(key) for run in runs]) for key in SIZES},
        per_class={label: _mean([run.per_class[label].get("AP") for run in runs]) for label in classes},
        schedule=str(runs[0].settings.get("schedule", "")),
    )
    if is_baseline:
        return result
    samples = bootstrap.gain(pairs)
    gain = _gain(pairs, samples)
    gap = teacher_gap(fmean(_ap(baseline) for baseline, _ in pairs), teacher_ap)
    ratios = [
        run.train_seconds / baseline.train_seconds
        for baseline, run in pairs
        if run.train_seconds and baseline.train_seconds
    ]
    return replace(
        result,
        gain=gain,
        class_gains=_class_gains(classes, pairs, samples),
        gap_closed=None if gap is None else 100 * gain.mean / gap,
        time_ratio=fmean(ratios) if ratios else None,
    )


def _class_gains(
    classes: Sequence[str], pairs: Sequence[tuple[RunSummary, RunSummary]], samples: Floats | None
) -> dict[str, Gain]:
    gains = {}
    for label, name in enumerate(classes):
        values = [(baseline.per_class[name].get("AP"), run.per_class[name].get("AP")) for baseline, run in pairs]
        by_seed = tuple(after - before for before, after in values if before is not None and after is not None)
        if by_seed:
            over_images = None if samples is None else interval_over_images(samples[:, label])
            gains[name] = Gain(fmean(by_seed), by_seed, interval_over_seeds(by_seed), over_images)
    return gains


def _ap(run: RunSummary) -> float:
    value = run.metrics.get("AP")
    if value is None:
        raise InputError(f"{run.folder}: its AP is unknown, because the test split has no objects.")
    return value


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
