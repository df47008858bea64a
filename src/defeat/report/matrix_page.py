"""The HTML page of a comparison of methods over several seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from defeat.files import write_into
from defeat.report.figures import GainRow, Mark, forest_plot, front, scatter_plot
from defeat.report.html import METRICS, OPEN_CLASSES, recipe_card
from defeat.report.pages import Cell, Table, page, parts, row
from defeat.report.pictures import make_gallery
from defeat.report.runs import RunSummary
from defeat.report.sections import curves_section, gallery_section, mistakes_section, shares_section
from defeat.report.tables import OVER_INHERITED, PARTS, by_seed, decimal, gain_cells, interval_cell
from defeat.report.variants import INHERITED, MatrixResult, VariantResult

NOTE = (
    f"none: the baseline; +inherit: the student starts with the teacher's neck and head. {METRICS} Gap closed: share "
    "of the AP gap between baseline and teacher that the method closed. Training time: relative to the baseline. "
    "Shaded: a significant gain or loss."
)
SHOWN = 5  # methods whose curves and errors are drawn, those with the largest gains
STRONGEST = 40  # per cent of colour in the cell of the heat map with the largest gain, under readable text
OVER_INHERITED_NOTE = (
    f" {OVER_INHERITED.capitalize()}: gain over the student that inherits but is not distilled (95 % interval over "
    "images)."
)


def write_matrix(
    result: MatrixResult,
    runs: Mapping[str, Sequence[RunSummary]],
    teacher: RunSummary | None,
    path: Path,
    command: str,
) -> Path:
    """Write the page of a comparison.

    Args:
        result: result of the comparison.
        runs: finished runs by the name of their variant, including the baseline's.
        teacher: the teacher's run, if it is available.
        path: the HTML file.
        command: the command that reproduces the comparison.

    Returns:
        The path.
    """
    best = result.best
    every = of_one_seed(runs, result.baseline.name)
    drawn = {result.baseline.name, INHERITED, *(other.name for other in result.ranked[:SHOWN])}
    variants = {run.folder: name for name, of_variant in runs.items() for run in of_variant}
    examples = [run for run in every if variants[run.folder] in drawn]
    sections = [
        parts.header("Which method helped?", _setting(result, examples[0])),
        _verdict(result, best),
        parts.titled("Gain over the baseline", _forest(result)),
        _table(result),
        _costs(result),
        _classes(result),
        _left_out(len(every) - len(examples)),
        mistakes_section(examples),
        curves_section(examples),
        shares_section(examples),
    ]
    if best is not None:
        baselines = {run.seed: run for run in runs[result.baseline.name]}
        distilled = next(run for run in runs[best.name] if run.seed in baselines)
        sections.append(gallery_section(make_gallery(distilled, baselines[distilled.seed], teacher)))
    sections += [
        parts.titled("How to reproduce", parts.command_line(command)),
        parts.columns([recipe_card(run) for run in every]),
    ]
    write_into(path.parent, path.name, page("Which method helped?", sections).encode())
    return path


def of_one_seed(runs: Mapping[str, Sequence[RunSummary]], baseline: str) -> list[RunSummary]:
    """The runs of one seed, so that they differ only in the method: the first seed that most variants have.

    Args:
        runs: runs by the name of their variant.
        baseline: name of the baseline's variant, which comes first.
    """
    seeds = [run.seed for run in runs[baseline]]
    chosen = max(seeds, key=lambda seed: sum(run.seed == seed for variant in runs.values() for run in variant))
    names = [baseline, *(name for name in runs if name != baseline)]
    return [run for name in names for run in runs[name] if run.seed == chosen]


def _setting(result: MatrixResult, run: RunSummary) -> str:
    seeds = len(result.baseline.seeds)
    text = (
        f"{Path(run.data).name}, split {run.split}, {result.images} images; {run.family} {run.backbone}, "
        f"{run.epochs} epoch{'s' * (run.epochs != 1)}, {seeds} seed{'s' * (seeds != 1)}."
    )
    if result.missing:
        text += f" Not finished yet: {', '.join(result.missing)}."
    return text


def _verdict(result: MatrixResult, best: VariantResult | None) -> Markup:
    gain = None if best is None else best.gain
    mood = "" if gain is None or not gain.significant else "good" if gain.mean > 0 else "bad"
    facts = [
        (decimal(result.teacher.get("AP")), "AP of the teacher"),
        (decimal(result.baseline.mean), "AP of the baseline"),
    ]
    if best is not None:
        facts.append((decimal(best.mean), f"AP with {best.name}"))
        if best.gap_closed is not None and best.gap_closed > 0:
            facts.append((f"{best.gap_closed:.0f} %", "of the gap to the teacher"))
    caution = (
        "Baseline: the same student trained without a teacher. A gain is significant if neither the 95 % interval over "
        "seeds nor the one over test images contains zero."
    )
    return parts.verdict(mood, result.verdict(), facts, caution)


def _forest(result: MatrixResult) -> Markup:
    rows = [
        GainRow(other.name, gain.mean, gain.by_seed, gain.over_seeds, gain.over_images)
        for other in result.ranked
        if (gain := other.gain) is not None
    ]
    chart = forest_plot(rows)
    if not chart:
        return chart
    note = (
        f"AP points. Dot: mean over seeds; rings: single seeds. Thick line: 95 % interval over test images (paired "
        f"bootstrap, {result.samples} samples). Thin line: 95 % interval over seeds (paired Student's t)."
    )
    return parts.plot([], chart, note)


def _table(result: MatrixResult) -> Markup:
    last = [OVER_INHERITED] if any(other.gain_over_inherited for other in result.others) else []
    note = NOTE + (OVER_INHERITED_NOTE if last else "")
    titles = ("method", "AP", "by seed", "gain", "95 % over seeds", "95 % over images", "gap closed", *last, *PARTS)
    body = [row("teacher", [decimal(result.teacher.get("AP")), *[""] * (5 + len(last)), *_parts(result.teacher), ""])]
    for variant in (result.baseline, *result.ranked):
        gain = variant.gain
        cells = [decimal(variant.mean), by_seed(variant, result)]
        cells += [""] * 4 if gain is None else gain_cells(gain, variant.gap_closed)
        if last:
            added = variant.gain_over_inherited
            cells.append("" if added is None else f"{added.mean:+.1f} ({interval_cell(added.over_images)})")
        time = "" if variant.time_ratio is None else f"{variant.time_ratio:.2f} x"
        significant = gain is not None and gain.significant
        body.append(row(variant.name, [*cells, *_parts(variant.metrics), time], marked=significant))
    remarks = filter(None, (note, result.unequal_seeds(), result.schedules()))
    table = parts.table(Table(titles, body, "sortable", "gain of each method"))
    return parts.remarks(table, list(remarks))


def _parts(metrics: Mapping[str, float | None]) -> list[str]:
    return [decimal(metrics.get(name)) for name in PARTS[:-1]]


def _costs(result: MatrixResult) -> Markup:
    """Gain over training time; empty where no time was measured."""
    marks = [
        Mark(other.name, other.time_ratio, other.gain.mean)
        for other in result.ranked
        if other.gain is not None and other.time_ratio is not None
    ]
    chart = scatter_plot(marks, "training time, relative to the baseline", "gain in AP")
    return parts.costs(chart, [mark.name for mark in front(marks)]) if chart else chart


def _left_out(count: int) -> Markup:
    if not count:
        return Markup()
    return parts.note(
        f"Below: the baseline and the {SHOWN} methods with the largest gains. The run directories of the other {count} "
        "have a report of their own."
    )


def _classes(result: MatrixResult) -> Markup:
    """Gains per class: a heat map of all methods, and the intervals of each method."""
    sections = [_heat_map(result)]
    for other in result.ranked:
        ordered = sorted((other.class_gains or {}).items(), key=lambda item: -item[1].mean)
        rows = [GainRow(name, gain.mean, gain.by_seed, None, gain.over_images) for name, gain in ordered]
        if rows:
            summary = f"{other.name}, {len(rows)} class{'es' * (len(rows) != 1)}"
            shown = other is result.best and len(rows) <= OPEN_CLASSES
            sections.append(parts.collapsed(summary, parts.plot([], forest_plot(rows)), shown))
    return parts.titled("Gain per class", Markup().join(sections)) if any(sections) else Markup()


def _heat_map(result: MatrixResult) -> Markup:
    """Mean gain of each method on each class, in AP points; empty for a single method."""
    columns = [other for other in result.ranked if other.class_gains]
    if len(columns) < 2:
        return Markup()
    gains = [{name: gain.mean for name, gain in (column.class_gains or {}).items()} for column in columns]
    largest = max((abs(gain) for column in gains for gain in column.values()), default=0.0) or 1.0
    body = [row(name, [_heat(column.get(name), largest) for column in gains]) for name in result.baseline.per_class]
    table = Table(("class", *(column.name for column in columns)), body, "heat", "gain of each method on each class")
    return parts.remarks(parts.table(table), ["Mean gain over the baseline, AP points."])


def _heat(gain: float | None, largest: float) -> Cell:
    """A cell with a gain, in the colour of gains or losses, strongest where it is the largest."""
    if gain is None:
        return Cell("n/a")
    side, part = "good" if gain > 0 else "bad", STRONGEST * abs(gain) / largest
    return Cell(f"{gain:+.1f}", style=f"--side:var(--{side});--part:{part:.0f}")
