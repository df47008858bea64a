"""The comparison as one self-contained HTML file: no network, no other file."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from defeat.errors import InputError
from defeat.files import write_into
from defeat.report.pages import Row, Table, bar, page, parts, row
from defeat.report.pictures import Gallery, example_strips, make_gallery
from defeat.report.runs import RunSummary
from defeat.report.sections import (
    curves_section,
    errors_section,
    gallery_section,
    mistakes_section,
    operating_section,
    shares_section,
    stages_section,
    trade_off_section,
)
from defeat.report.tables import COLUMNS, UNKNOWN, ComparisonRow, comparison_rows, decimal
from defeat.report.verdict import Verdict, teacher_of, verdicts

OPEN_CLASSES = 25  # a longer list of classes is collapsed
METRICS = (
    "AP: COCO average precision over IoU thresholds 0.50 to 0.95, in percent. AP50, AP75: at one IoU threshold. APs, "
    "APm, APl: of small, medium and large objects."
)


def write_report(
    runs: Sequence[RunSummary],
    path: str | Path,
    judged: Sequence[Verdict] | None = None,
    exported: Sequence[RunSummary] = (),
) -> Path:
    """Write the report of some runs.

    Args:
        runs: at least one run.
        path: the HTML file; its folder is created if it is missing.
        judged: the verdicts on these runs, if they are known already.
        exported: exported files, which appear in the table of accuracy and cost.

    Returns:
        The path.

    Raises:
        ValueError: `runs` is empty.
        InputError: the file can't be written.
    """
    if not runs:
        raise ValueError("Expected at least one run to report on.")
    path = Path(path)
    write_into(path.parent, path.name, render(runs, judged, exported).encode())
    return path


def render(
    runs: Sequence[RunSummary], judged: Sequence[Verdict] | None = None, exported: Sequence[RunSummary] = ()
) -> str:
    """Render the whole page, with everything that comes from a run escaped."""
    judged = verdicts(runs) if judged is None else judged
    rows = comparison_rows(runs, judged, exported)
    ordered = [row.run for row in rows if row.run not in exported]
    sections = [
        _header(ordered),
        *(_verdict(verdict) for verdict in judged),
        _comparison(rows),
        stages_section(ordered),
        trade_off_section([row.run for row in rows]),
        _classes(ordered),
        mistakes_section(ordered),
        operating_section(ordered),
        curves_section(ordered),
        shares_section(ordered),
        *_pictures(runs, judged),
        parts.titled("How to reproduce", parts.columns([recipe_card(run) for run in ordered])),
    ]
    return page(_title(ordered), sections)


def _pictures(runs: Sequence[RunSummary], judged: Sequence[Verdict]) -> list[Markup]:
    """Pictures of each distilled run; without one, a few test images of the first run."""
    if judged:
        return [
            gallery_section(make_gallery(verdict.distilled, verdict.baseline, teacher_of(verdict.distilled, runs)))
            for verdict in judged
        ]
    try:
        strips, errors = example_strips(runs[0])
    except InputError as error:
        return [gallery_section(Gallery(note=f"No pictures: {error}"))]
    return [parts.strips("Test images", "", strips), *([errors_section(errors, runs[0].name)] if errors else [])]


def _title(runs: Sequence[RunSummary]) -> str:
    return "Did distillation help?" if any(run.command == "distill" for run in runs) else "Trained detectors"


def _header(runs: Sequence[RunSummary]) -> Markup:
    tests = sorted({f"{Path(run.data).name or 'unknown data'}, split {run.split or 'unknown'}" for run in runs})
    warnings = [run.warning for run in runs if run.warning]
    return parts.header(_title(runs), f"Measured on {'; '.join(tests)}.", warnings)


def _verdict(verdict: Verdict) -> Markup:
    unclear = verdict.over_images is not None and verdict.over_images.contains_zero
    mood = "" if verdict.gain is None or unclear or abs(verdict.gain) < 0.05 else "good" if verdict.gain > 0 else "bad"
    return parts.verdict(mood, verdict.sentence, _facts(verdict), verdict.caution)


def _facts(verdict: Verdict) -> list[tuple[str, str]]:
    facts = []
    if verdict.gain is not None:
        facts.append((f"{verdict.gain:+.1f}", "AP points from distillation"))
    if verdict.gap_closed is not None:
        facts.append((f"{verdict.gap_closed:.0f} %", "of the gap to the teacher"))
    if verdict.teacher is not None:
        for attribute, label in (("latency_ms", "faster than the teacher"), ("parameters", "fewer parameters")):
            large, small = getattr(verdict.teacher, attribute), getattr(verdict.distilled, attribute)
            if large and small and large > small:
                facts.append((f"{large / small:.1f}x", label))
    return facts


def _comparison(rows: Sequence[ComparisonRow]) -> Markup:
    heads = ("run", *(column.title for column in COLUMNS))
    body = [row(of.run.name, of.cells, (of.role, of.detector), of.run.command == "distill") for of in rows]
    note = (
        f"{METRICS} VOC AP50: area under PASCAL VOC's precision-recall curve. Baseline: the same student trained "
        "without a teacher. Gap closed: share of the AP gap between baseline and teacher that distillation closed. A "
        f"multiply-add counts as two FLOPs. Latency: median per image{_measured([of.run for of in rows])}. {UNKNOWN}: "
        "not recorded, or no such object."
    )
    table = parts.table(Table(heads, body, "sortable", "accuracy and cost of each run"))
    return parts.titled("Accuracy and cost", table, below=note)


def _measured(runs: Sequence[RunSummary]) -> str:
    conditions = dict.fromkeys(run.measured for run in runs if run.measured)
    return f" ({'; '.join(conditions)})" if conditions else ""


def _classes(runs: Sequence[RunSummary]) -> Markup:
    names = list(dict.fromkeys(name for run in runs for name in run.per_class))
    if not names:
        return Markup()
    body = [_class_row(name, [run.per_class.get(name, {}).get("AP") for run in runs]) for name in names]
    table = parts.table(Table(("class", *(run.name for run in runs)), body, "sortable", "AP per class"))
    collapsed = parts.collapsed(f"{len(names)} classes", table, len(names) <= OPEN_CLASSES)
    return parts.titled("AP per class", collapsed)


def _class_row(name: str, values: Sequence[float | None]) -> Row:
    percents = [0.0 if value is None else min(100.0, max(0.0, value)) for value in values]
    both = enumerate(zip(values, percents, strict=True))
    return row(name, [bar(decimal(value), percent, shade) for shade, (value, percent) in both])


def recipe_card(run: RunSummary) -> Markup:
    """The command that reproduces a run, and where it comes from."""
    config = run.folder / "stages" / "config.yaml" if run.stages else run.folder / "config.yaml"
    command = shlex.join(["defeat", run.command or "train", "--config", str(config), "--out", f"{run.name}-again"])
    facts = {
        "data": run.data,
        "data fingerprint": run.data_fingerprint,
        "seed": run.seed,
        "epochs": run.epochs,
        "steps": run.steps,
        "image size": run.size,
        "teacher": " ".join(filter(None, (run.teacher, run.teacher_kind and f"({run.teacher_kind})"))),
        "commit": run.commit,
        "versions": _pairs(run.versions),
        "machine": _pairs(run.machine),
    }
    if run.command != "distill":
        del facts["teacher"]
    listed = [(name, UNKNOWN if value in (None, "") else str(value)) for name, value in facts.items()]
    return parts.recipe(run.name, command, listed)


def _pairs(values: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
