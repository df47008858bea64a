"""The HTML page of a comparison of methods over several seeds."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from defeat.files import write_into
from defeat.report.figures import GainRow, Mark, forest_plot, front, scatter_plot
from defeat.report.html import METRICS, OPEN_CLASSES, page, recipe_card
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
        f'<header><h1>Which method helped?</h1><p class="soft">{_setting(result, examples[0])}</p></header>',
        _verdict(result, best),
        "<h2>Gain over the baseline</h2>",
        _forest(result),
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
        f"<h2>How to reproduce</h2><pre>{escape(command)}</pre>",
        '<div class="columns">' + "".join(recipe_card(run) for run in every) + "</div>",
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
        f"{run.epochs} epochs, {seeds} seed{'s' * (seeds != 1)}."
    )
    if result.missing:
        text += f" Not finished yet: {', '.join(result.missing)}."
    return escape(text)


def _verdict(result: MatrixResult, best: VariantResult | None) -> str:
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
    cells = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in facts)
    return (
        f'<section class="card verdict {mood}"><p>{escape(result.verdict())}</p><div class="facts">{cells}</div>'
        '<p class="caution">Baseline: the same student trained without a teacher. A gain is significant if neither the '
        "95 % interval over seeds nor the one over test images contains zero.</p></section>"
    )


def _forest(result: MatrixResult) -> str:
    rows = [
        GainRow(other.name, gain.mean, gain.by_seed, gain.over_seeds, gain.over_images)
        for other in result.ranked
        if (gain := other.gain) is not None
    ]
    chart = forest_plot(rows)
    if not chart:
        return ""
    return (
        f'<div class="card plot">{chart}<p class="soft">AP points. Dot: mean over seeds; rings: single seeds. Thick '
        f"line: 95 % interval over test images (paired bootstrap, {result.samples} samples). Thin line: 95 % interval "
        "over seeds (paired Student's t).</p></div>"
    )


def _table(result: MatrixResult) -> str:
    last = [OVER_INHERITED] if any(other.gain_over_inherited for other in result.others) else []
    note = NOTE + (OVER_INHERITED_NOTE if last else "")
    titles = ("method", "AP", "by seed", "gain", "95 % over seeds", "95 % over images", "gap closed", *last, *PARTS)
    heads = "".join(f'<th scope="col">{escape(title)}</th>' for title in titles)
    body = [_row("teacher", [decimal(result.teacher.get("AP")), *[""] * (5 + len(last)), *_parts(result.teacher), ""])]
    for variant in (result.baseline, *result.ranked):
        gain = variant.gain
        cells = [decimal(variant.mean), by_seed(variant, result)]
        cells += [""] * 4 if gain is None else gain_cells(gain, variant.gap_closed)
        if last:
            added = variant.gain_over_inherited
            cells.append("" if added is None else f"{added.mean:+.1f} ({interval_cell(added.over_images)})")
        time = "" if variant.time_ratio is None else f"{variant.time_ratio:.2f} x"
        significant = gain is not None and gain.significant
        body.append(_row(variant.name, [*cells, *_parts(variant.metrics), time], significant))
    remarks = filter(None, (result.unequal_seeds(), result.schedules()))
    return (
        f'<div class="card scroll"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
        f'<p class="soft">{note}</p>' + "".join(f'<p class="soft">{escape(remark)}</p>' for remark in remarks)
    )


def _row(name: str, cells: Sequence[str], marked: bool = False) -> str:
    kind = ' class="distilled"' if marked else ""
    return (
        f'<tr{kind}><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
    )


def _parts(metrics: Mapping[str, float | None]) -> list[str]:
    return [decimal(metrics.get(name)) for name in PARTS[:-1]]


def _costs(result: MatrixResult) -> str:
    """Gain over training time; empty where no time was measured."""
    marks = [
        Mark(other.name, other.time_ratio, other.gain.mean)
        for other in result.ranked
        if other.gain is not None and other.time_ratio is not None
    ]
    chart = scatter_plot(marks, "training time, relative to the baseline", "gain in AP")
    if not chart:
        return ""
    names = "".join(f"<li>{escape(mark.name)}</li>" for mark in front(marks))
    return (
        f'<h2>Gain and cost</h2><div class="card plot">{chart}<p class="soft">AP points over training time. Numbered: '
        f"the methods than which none is both cheaper and better.</p><ol>{names}</ol></div>"
    )


def _left_out(count: int) -> str:
    if not count:
        return ""
    return (
        f'<p class="soft">Below: the baseline and the {SHOWN} methods with the largest gains. The run directories of '
        f"the other {count} have a report of their own.</p>"
    )


def _classes(result: MatrixResult) -> str:
    """Gains per class: a heat map of all methods, and the intervals of each method."""
    parts = [_heat_map(result)]
    for other in result.ranked:
        ordered = sorted((other.class_gains or {}).items(), key=lambda item: -item[1].mean)
        rows = [GainRow(name, gain.mean, gain.by_seed, None, gain.over_images) for name, gain in ordered]
        shown = " open" if other is result.best and len(rows) <= OPEN_CLASSES else ""
        if rows:
            summary = f"{other.name}, {len(rows)} class{'es' * (len(rows) != 1)}"
            chart = f'<div class="card plot">{forest_plot(rows)}</div>'
            parts.append(f"<details{shown}><summary>{escape(summary)}</summary>{chart}</details>")
    return f"<h2>Gain per class</h2>{''.join(parts)}" if any(parts) else ""


def _heat_map(result: MatrixResult) -> str:
    """Mean gain of each method on each class, in AP points; empty for a single method."""
    columns = [other for other in result.ranked if other.class_gains]
    if len(columns) < 2:
        return ""
    gains = [{name: gain.mean for name, gain in (column.class_gains or {}).items()} for column in columns]
    largest = max((abs(gain) for column in gains for gain in column.values()), default=0.0) or 1.0
    heads = "".join(f'<th scope="col">{escape(column.name)}</th>' for column in columns)
    body = []
    for name in result.baseline.per_class:
        cells = []
        for column in gains:
            gain = column.get(name)
            if gain is None:
                cells.append("<td>n/a</td>")
                continue
            side = "good" if gain > 0 else "bad"
            part = STRONGEST * abs(gain) / largest
            cells.append(f'<td style="--side:var(--{side});--part:{part:.0f}">{gain:+.1f}</td>')
        body.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
    return (
        f'<div class="card scroll"><table class="heat"><thead><tr><th scope="col">class</th>{heads}</tr></thead>'
        f'<tbody>{"".join(body)}</tbody></table></div><p class="soft">Mean gain over the baseline, AP points.</p>'
    )
