"""Sections of the page that explain a comparison: kinds of mistakes, what the terms did in training, pictures."""

from collections.abc import Sequence
from html import escape

from defeat.evaluation.mistakes import KINDS, find_mistakes
from defeat.report.figures import SHADES, Line, legend, line_chart
from defeat.report.pictures import Gallery, Strip
from defeat.report.runs import RunSummary
from defeat.report.tables import decimal

KIND_WORDS = {
    "classification": "found, but with the wrong class",
    "localisation": "the right class, but its box fits badly",
    "both": "wrong class and badly fitting box",
    "duplicate": "an object found twice",
    "background": "nothing is there",
    "missed": "an object that nothing found",
}


def bar(value: float | None, percent: float, shade: int) -> str:
    """A figure behind a bar of so many percent of the full length, in the colour of a series."""
    style = f"--part:{percent:.1f}%;--line:var(--series-{shade % SHADES})"
    return f'<div class="bar"><i style="{style}"></i><span>{decimal(value)}</span></div>'


def mistakes_section(runs: Sequence[RunSummary]) -> str:
    """A row for each kind of mistake, a column for each run that kept its detections; empty when none did."""
    found = [(run, find_mistakes(run.scenes, len(run.per_class))) for run in runs if run.has_detections]
    if not found:
        return ""
    largest = max((cost for _, mistakes in found for cost in mistakes.cost.values()), default=0.0) or 1.0
    heads = '<th scope="col">mistake</th>' + "".join(f'<th scope="col">{escape(run.name)}</th>' for run, _ in found)
    body = []
    for kind in KINDS:
        cells = []
        for shade, (_, mistakes) in enumerate(found):
            cost, count = mistakes.cost[kind], mistakes.count[kind]
            cells.append(f'<td title="{count} mistakes">{bar(cost, 100 * cost / largest, shade)}</td>')
        label = f'<th scope="row">{kind}<small>{KIND_WORDS[kind]}</small></th>'
        body.append(f"<tr>{label}{''.join(cells)}</tr>")
    return (
        "<h2>What kind of mistakes</h2>"
        f'<div class="card scroll"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
        '<p class="soft">AP50 points that would be won if all mistakes of a kind were put right, and nothing else '
        "(kinds as in TIDE, Bolya et al., ECCV 2020). The costs do not add up to what is missing.</p>"
    )


def curves_section(runs: Sequence[RunSummary]) -> str:
    """AP over the epochs, if it was measured more than once, of all runs in one chart, and the loss terms of each."""
    accuracy = [Line(run.name, run.curve("val/AP"), shade) for shade, run in enumerate(runs)]
    evaluated_often = any(len(line.points) > 1 for line in accuracy)
    chart = line_chart(accuracy, "epoch", "AP") if evaluated_often else ""
    parts = [f'<h2>AP over epochs</h2><div class="card plot">{legend(accuracy)}{chart}</div>'] if chart else []
    losses = []
    for run in runs:
        terms = sorted({key for line in run.log for key in line if key.startswith("train/")} - {"train/lr"})
        lines = [Line(term.removeprefix("train/"), run.curve(term, "step"), shade) for shade, term in enumerate(terms)]
        if chart := line_chart(lines, "step", "loss"):
            losses.append(f'<div class="card"><h3>{escape(run.name)}</h3>{legend(lines)}{chart}</div>')
    if losses:
        parts.append("<h2>Losses</h2>")
        parts.append('<p class="soft">The sum of a distilled run holds the terms of distillation too.</p>')
        parts.append(f'<div class="columns">{"".join(losses)}</div>')
    return "\n".join(parts)


def shares_section(runs: Sequence[RunSummary]) -> str:
    """How much of the loss and of the gradient distillation had during training; empty when no run logged it."""
    cards = []
    for run in runs:
        terms = sorted({key.partition("/")[2] for line in run.log for key in line if key.startswith("gradient/")})
        if not terms:
            continue
        pulls = [Line(term, run.curve(f"gradient/{term}", "step"), shade) for shade, term in enumerate(terms)]
        share = Line("share of the loss", loss_share(run, terms), len(terms))
        charts = (
            line_chart([share], "step", "distillation in the loss (%)"),
            line_chart(pulls, "step", "gradient, detector's own = 1"),
        )
        titles = (
            "Part of the whole loss that is distillation, in percent",
            "Gradient at the neck, the detector's own = 1",
        )
        for title, lines, chart in zip(titles, ([share], pulls), charts, strict=True):
            if chart:
                cards.append(f'<div class="card"><h3>{escape(run.name)}</h3><p>{title}</p>{legend(lines)}{chart}</div>')
    if not cards:
        return ""
    return (
        "<h2>What distillation weighed in training</h2>"
        '<p class="soft">A term that pulls several times as hard as the detector itself drowns it; one near zero does '
        f'nothing.</p><div class="columns">{"".join(cards)}</div>'
    )


def loss_share(run: RunSummary, terms: Sequence[str]) -> list[tuple[float, float]]:
    """Percent of the whole loss that the terms are, over the steps."""
    points = []
    for line in run.log:
        total = line.get("train/loss")
        if total and "step" in line:
            points.append((line["step"], 100 * sum(line.get(f"train/{term}", 0.0) for term in terms) / total))
    return points


def gallery_section(gallery: Gallery) -> str:
    """The pictures."""
    parts = []
    if gallery.note:
        parts.append(f'<p class="soft">{escape(gallery.note)}</p>')
    helped = (
        ("Where it helped the most", "Test images with the largest gain of the distilled student.")
        if gallery.compared
        else ("Where it does best", "Test images with the highest AP; what distillation gained there is not known.")
    )
    for title, words, strips in (
        (*helped, gallery.helped),
        ("Where it hurt the most", "Test images with the largest loss.", gallery.hurt),
        (
            "What the method looks at",
            "Left the region that it treats apart, each level in its own colour; then the places where the student's "
            "maps put their energy elsewhere than the teacher's, on one scale: the less colour, the more alike.",
            gallery.inside,
        ),
    ):
        if strips:
            parts.append(f'<h2>{title}</h2><p class="soft">{words}</p>{"".join(strip_card(strip) for strip in strips)}')
    return "\n".join(parts)


def strip_card(strip: Strip) -> str:
    """One image, seen in several ways."""
    panels = "".join(
        f'<figure><img src="{panel.source}" alt="{escape(panel.title)}, {escape(strip.caption)}" loading="lazy">'
        f"<figcaption>{escape(panel.title)}</figcaption></figure>"
        for panel in strip.panels
    )
    return f'<div class="card strip"><h3>{escape(strip.caption)}</h3><div class="panels">{panels}</div></div>'
