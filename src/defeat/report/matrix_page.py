"""The page of a comparison of methods over several seeds."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from defeat.files import write_into
from defeat.report.figures import GainRow, forest_plot
from defeat.report.html import OPEN_CLASSES, page, recipe_card
from defeat.report.pictures import make_gallery
from defeat.report.runs import RunSummary
from defeat.report.sections import curves_section, gallery_section, mistakes_section, shares_section
from defeat.report.tables import OVER_INHERITED, PARTS, by_seed, decimal, gain_cells, interval
from defeat.report.variants import MatrixResult, VariantResult


def write_matrix(
    result: MatrixResult,
    runs: Mapping[str, Sequence[RunSummary]],
    teacher: RunSummary | None,
    path: Path,
    command: str,
) -> Path:
    """Write the page of a comparison.

    Args:
        result: what the runs show.
        runs: finished runs of each variant by its name, the student alone among them.
        teacher: the teacher's run, when it is at hand.
        path: the HTML file.
        command: how to repeat the comparison.

    Returns:
        The path.
    """
    best = result.best
    shown = of_one_seed(runs, result.alone.name)
    alone = shown[0]
    sections = [
        f'<header><h1>Which method helped?</h1><p class="soft">{_setting(result, alone)}</p></header>',
        _verdict(result, best),
        "<h2>Gain over the student alone</h2>",
        _forest(result),
        _table(result),
        _classes(result),
        mistakes_section(shown),
        curves_section(shown),
        shares_section(shown),
    ]
    if best is not None:
        of_seed = {run.seed: run for run in runs[result.alone.name]}
        distilled = next(run for run in runs[best.name] if run.seed in of_seed)
        sections.append(gallery_section(make_gallery(distilled, of_seed[distilled.seed], teacher)))
    sections += [
        f"<h2>How to repeat it</h2><pre>{escape(command)}</pre>",
        '<div class="columns">' + "".join(recipe_card(run) for run in shown) + "</div>",
    ]
    write_into(path.parent, path.name, page("Which method helped?", sections).encode())
    return path


def of_one_seed(runs: Mapping[str, Sequence[RunSummary]], alone: str) -> list[RunSummary]:
    """The runs of the seed that most variants have (of several the first), so that they differ in the method alone.

    Args:
        runs: of each variant by its name.
        alone: name of the student alone, which comes first.
    """
    seeds = [run.seed for run in runs[alone]]
    most = max(seeds, key=lambda seed: sum(run.seed == seed for some in runs.values() for run in some))
    names = [alone, *(name for name in runs if name != alone)]
    return [run for name in names for run in runs[name] if run.seed == most]


def _setting(result: MatrixResult, run: RunSummary) -> str:
    seeds = len(result.alone.seeds)
    text = (
        f"{Path(run.data).name}, split {run.split}, {result.images} images; {run.family} {run.backbone}, "
        f"{run.epochs} epochs, {seeds} seed{'s' * (seeds != 1)}."
    )
    if result.missing:
        text += f" Not finished yet: {', '.join(result.missing)}."
    return escape(text)


def _verdict(result: MatrixResult, best: VariantResult | None) -> str:
    gain = None if best is None else best.gain
    mood = "" if gain is None or not gain.shown else "good" if gain.mean > 0 else "bad"
    facts = [
        (decimal(result.teacher.get("AP")), "AP of the teacher"),
        (decimal(result.alone.mean), "AP of the student alone"),
    ]
    if best is not None:
        facts.append((decimal(best.mean), f"AP with {best.name}"))
        if best.gap_closed is not None and best.gap_closed > 0:
            facts.append((f"{best.gap_closed:.0f} %", "of the gap to the teacher"))
    cells = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in facts)
    return (
        f'<section class="card verdict {mood}"><p>{escape(result.verdict())}</p><div class="facts">{cells}</div>'
        '<p class="caution">Shown means that neither the 95 % interval over seeds nor the one over test images holds '
        "zero.</p></section>"
    )


def _forest(result: MatrixResult) -> str:
    rows = [
        GainRow(other.name, gain.mean, gain.by_seed, gain.over_seeds, gain.over_images)
        for other in result.others
        if (gain := other.gain) is not None
    ]
    chart = forest_plot(rows)
    if not chart:
        return ""
    return (
        f'<div class="card plot">{chart}<p class="soft">AP points. Thick: 95 % over test images (paired bootstrap, '
        f"{result.samples} samples). Thin: 95 % over seeds (Student's t, paired). Rings: single seeds.</p></div>"
    )


def _table(result: MatrixResult) -> str:
    last = [OVER_INHERITED] if any(other.gain_over_inherited for other in result.others) else []
    titles = ("method", "AP", "by seed", "gain", "95 % over seeds", "95 % over images", "gap closed", *last, *PARTS)
    heads = "".join(f'<th scope="col">{escape(title)}</th>' for title in titles)
    body = [_row("teacher", [decimal(result.teacher.get("AP")), *[""] * (5 + len(last)), *_parts(result.teacher), ""])]
    for variant in (result.alone, *result.others):
        gain = variant.gain
        cells = [decimal(variant.mean), by_seed(variant, result)]
        cells += [""] * 4 if gain is None else gain_cells(gain, variant.gap_closed)
        if last:
            terms = variant.gain_over_inherited
            cells.append("" if terms is None else f"{terms.mean:+.1f} ({interval(terms.over_images)})")
        time = "" if variant.time_ratio is None else f"{variant.time_ratio:.2f} x"
        body.append(_row(variant.name, [*cells, *_parts(variant.metrics), time], gain is not None and gain.shown))
    unequal = result.unequal_seeds()
    return (
        f'<div class="card scroll"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
        + (f'<p class="soft">{escape(unequal)}</p>' if unequal else "")
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


def _classes(result: MatrixResult) -> str:
    best, parts = result.best, []
    for other in sorted(result.others, key=lambda other: other is not best):
        ordered = sorted((other.class_gains or {}).items(), key=lambda item: -item[1].mean)
        rows = [GainRow(name, gain.mean, gain.by_seed, None, gain.over_images) for name, gain in ordered]
        shown = " open" if other is best and len(rows) <= OPEN_CLASSES else ""
        if rows:
            words = f"{other.name}, {len(rows)} class{'es' * (len(rows) != 1)}"
            chart = f'<div class="card plot">{forest_plot(rows)}</div>'
            parts.append(f"<details{shown}><summary>{escape(words)}</summary>{chart}</details>")
    return f"<h2>Gain of each class</h2>{''.join(parts)}" if parts else ""
