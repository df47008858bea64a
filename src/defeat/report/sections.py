"""Sections of the page that explain a comparison: error types, training curves, pictures."""

from collections.abc import Sequence
from html import escape

import numpy as np

from defeat.evaluation.average_precision import Floats
from defeat.evaluation.mistakes import KINDS, find_mistakes
from defeat.evaluation.operating_points import Curve, best_f1, confusion_matrix, precision_recall
from defeat.report.figures import SHADES, Line, legend, line_chart
from defeat.report.pictures import Gallery, Strip
from defeat.report.runs import RunSummary
from defeat.report.tables import decimal

MOST_CONFUSED = 25  # classes of a confusion matrix that can be read

KIND_WORDS = {
    "classification": "good box, wrong class",
    "localisation": "right class, inaccurate box",
    "both": "wrong class and inaccurate box",
    "duplicate": "second detection of an object",
    "background": "detection without an object",
    "missed": "object without a detection",
}


def bar(value: float | None, percent: float, shade: int, digits: int = 1) -> str:
    """A figure with a bar of `percent` of the full length, in the colour of a series."""
    style = f"--part:{percent:.1f}%;--line:var(--series-{shade % SHADES})"
    return f'<div class="bar"><i style="{style}"></i><span>{decimal(value, digits)}</span></div>'


def mistakes_section(runs: Sequence[RunSummary]) -> str:
    """A row per error type, a column per run with stored detections; empty without such runs."""
    columns = [(run, find_mistakes(run.scenes, len(run.per_class))) for run in runs if run.has_detections]
    if not columns:
        return ""
    largest = max((cost for _, mistakes in columns for cost in mistakes.cost.values()), default=0.0) or 1.0
    heads = '<th scope="col">error</th>' + "".join(f'<th scope="col">{escape(run.name)}</th>' for run, _ in columns)
    body = []
    for kind in KINDS:
        cells = []
        for shade, (_, mistakes) in enumerate(columns):
            cost, count = mistakes.cost[kind], mistakes.count[kind]
            cells.append(f'<td title="{count} errors">{bar(cost, 100 * cost / largest, shade)}</td>')
        label = f'<th scope="row">{kind}<small>{KIND_WORDS[kind]}</small></th>'
        body.append(f"<tr>{label}{''.join(cells)}</tr>")
    return (
        "<h2>Error types</h2>"
        f'<div class="card scroll"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
        '<p class="soft">AP50 points lost to each error type: the gain if all errors of that type, and no others, were '
        "corrected (TIDE, Bolya et al., ECCV 2020). The losses do not add up to 100 - AP50.</p>"
    )


def operating_section(runs: Sequence[RunSummary]) -> str:
    """Per run with stored detections: precision over recall, the best threshold of each class, the confusion matrix."""
    cards = [_operating_card(run) for run in runs if run.has_detections]
    if not cards:
        return ""
    return (
        '<h2>Thresholds</h2><p class="soft">At IoU 0.5. Threshold: the score from which detections of a class have '
        "the highest F1, the harmonic mean of precision and recall, on these test images; "
        "<code>defeat predict RUN IMAGES --threshold auto</code> draws with it.</p>" + "".join(cards)
    )


def _operating_card(run: RunSummary) -> str:
    names, curves = list(run.per_class), [precision_recall(matches) for matches in run.matches]
    points = [best_f1(curve) for curve in curves]
    drawn = sorted(range(len(names)), key=lambda label: -len(curves[label].scores))[:SHADES]
    lines = [Line(names[label], _points(curves[label]), shade) for shade, label in enumerate(sorted(drawn))]
    heads = "".join(f'<th scope="col">{title}</th>' for title in ("class", "threshold", "precision", "recall", "F1"))
    body = []
    for name, point in zip(names, points, strict=True):
        figures = ("n/a",) * 4 if point is None else (point.threshold, point.precision, point.recall, point.f1)
        cells = "".join(f"<td>{figure if isinstance(figure, str) else f'{figure:.2f}'}</td>" for figure in figures)
        body.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    table = f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    more = f'<p class="soft">The {SHADES} classes with most detections.</p>' if len(names) > SHADES else ""
    chart = line_chart(lines, "recall", "precision")
    thresholds = np.array([1.1 if point is None else point.threshold for point in points])
    return (
        f'<details class="card"><summary>{escape(run.name)}</summary><div class="columns"><div>{legend(lines)}{chart}'
        f"{more}</div>{table}</div>{_confusion(run, thresholds)}</details>"
    )


def _points(curve: Curve) -> list[tuple[float, float]]:
    """Precision over recall."""
    return list(zip(curve.recall.tolist(), curve.precision.tolist(), strict=True))


def _confusion(run: RunSummary, thresholds: Floats) -> str:
    """The confusion matrix at the best thresholds; empty where there are too many classes to read it."""
    names = list(run.per_class)
    if len(names) > MOST_CONFUSED:
        return ""
    counts = confusion_matrix(run.scenes, thresholds)
    totals = counts.sum(axis=1, keepdims=True).clip(min=1)
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in (*names, "not detected"))
    body = []
    for label, name in enumerate((*names, "no object")):
        cells = []
        for column, (count, total) in enumerate(zip(counts[label], totals[label].repeat(len(names) + 1), strict=True)):
            side = "good" if column == label else "bad"
            part = 0 if label == len(names) else round(40 * count / total)
            cells.append(f'<td style="--side:var(--{side});--part:{part}">{count or ""}</td>')
        body.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
    return (
        '<h3>What the objects of each class are detected as</h3><div class="scroll"><table class="heat"><thead><tr>'
        f'<th scope="col">annotated</th>{heads}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )


def curves_section(runs: Sequence[RunSummary]) -> str:
    """AP over epochs of all runs in one chart, if it was measured more than once, and the loss terms of each run."""
    accuracy = [Line(run.name, run.curve("val/AP"), shade) for shade, run in enumerate(runs)]
    evaluated_often = any(len(line.points) > 1 for line in accuracy)
    chart = line_chart(accuracy, "epoch", "AP") if evaluated_often else ""
    parts = [f'<h2>AP over epochs</h2><div class="card plot">{legend(accuracy)}{chart}</div>'] if chart else []
    losses = []
    for run in runs:
        terms = sorted({key for line in run.log for key in line if key.startswith("train/")} - {"train/lr"})
        names = ["total" if term == "train/loss" else term.removeprefix("train/") for term in terms]
        curves = [run.curve(term, "step") for term in terms]
        lines = [Line(name, curve, shade) for shade, (name, curve) in enumerate(zip(names, curves, strict=True))]
        if chart := line_chart(lines, "step", "loss"):
            losses.append(f'<div class="card"><h3>{escape(run.name)}</h3>{legend(lines)}{chart}</div>')
    if losses:
        parts.append("<h2>Losses</h2>")
        parts.append('<p class="soft">The total loss of a distilled run includes the distillation losses.</p>')
        parts.append(f'<div class="columns">{"".join(losses)}</div>')
    return "\n".join(parts)


def stages_section(runs: Sequence[RunSummary]) -> str:
    """The stages of runs with teachers one after the other, with the AP at the end of each; empty without such runs."""
    heads = "".join(f'<th scope="col">{title}</th>' for title in ("run", "stage", "teacher", "method", "epochs", "AP"))
    body = []
    for run in runs:
        for number, stage in enumerate(run.stages, start=1):
            texts = (number, stage["teacher"], stage["method"], stage["epochs"], decimal(stage["AP"]))
            cells = "".join(f"<td>{escape(str(text))}</td>" for text in texts)
            body.append(f'<tr><th scope="row">{escape(run.name)}</th>{cells}</tr>')
    if not body:
        return ""
    return (
        f'<h2>Stages</h2><div class="card scroll"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(body)}</tbody>'
        "</table></div>"
    )


def trade_off_section(runs: Sequence[RunSummary]) -> str:
    """AP over latency, a point per run and exported file; empty for less than two of them."""
    known = [run for run in runs if run.latency_ms is not None and run.metrics.get("AP") is not None]
    if len(known) < 2:
        return ""
    points = [
        Line(run.name, [(run.latency_ms or 0.0, run.metrics.get("AP") or 0.0)], shade)
        for shade, run in enumerate(known)
    ]
    chart = line_chart(points, "latency (ms)", "AP")
    return f'<h2>AP over latency</h2><div class="card plot">{legend(points)}{chart}</div>'


def shares_section(runs: Sequence[RunSummary]) -> str:
    """Share of the distillation losses in the total loss and in the gradient; empty when no run logged it."""
    cards = []
    for run in runs:
        terms = sorted({key.partition("/")[2] for line in run.log for key in line if key.startswith("gradient/")})
        if not terms:
            continue
        gradients = [Line(term, run.curve(f"gradient/{term}", "step"), shade) for shade, term in enumerate(terms)]
        share = Line("distillation losses", loss_share(run, terms), len(terms))
        charts = (
            line_chart([share], "step", "share of the total loss (%)"),
            line_chart(gradients, "step", "relative gradient"),
        )
        titles = (
            "Share of the distillation losses in the total loss (%)",
            "Gradient norm at the neck, relative to that of the detector's own losses",
        )
        for title, lines, chart in zip(titles, ([share], gradients), charts, strict=True):
            if chart:
                cards.append(f'<div class="card"><h3>{escape(run.name)}</h3><p>{title}</p>{legend(lines)}{chart}</div>')
    if not cards:
        return ""
    return (
        "<h2>Strength of the distillation losses</h2>"
        '<p class="soft">A loss whose gradient is several times that of the detector\'s own losses dominates the '
        f'training; one near zero has no effect.</p><div class="columns">{"".join(cards)}</div>'
    )


def loss_share(run: RunSummary, terms: Sequence[str]) -> list[tuple[float, float]]:
    """Share of some loss terms in the total loss, in percent, by step."""
    points = []
    for line in run.log:
        total = line.get("train/loss")
        if total and "step" in line:
            points.append((line["step"], 100 * sum(line.get(f"train/{term}", 0.0) for term in terms) / total))
    return points


def gallery_section(gallery: Gallery) -> str:
    """The pictures of a report as HTML."""
    parts = []
    if gallery.note:
        parts.append(f'<p class="soft">{escape(gallery.note)}</p>')
    helped = (
        ("Largest AP gains", "Test images with the largest AP gain over the baseline.")
        if gallery.compared
        else ("Highest AP", "Test images with the highest AP; without a baseline, the gain is unknown.")
    )
    for title, text, strips in (
        (*helped, gallery.helped),
        ("Largest AP drops", "Test images with the largest AP drop below the baseline.", gallery.hurt),
        (
            "Regions and features",
            "Left: the region that the method weights separately, one colour per pyramid level. Right: the difference "
            "between the feature maps of student and teacher, all on one scale; less colour means more similar.",
            gallery.inside,
        ),
    ):
        if strips:
            parts.append(f'<h2>{title}</h2><p class="soft">{text}</p>{"".join(strip_card(strip) for strip in strips)}')
    return "\n".join(parts)


def strip_card(strip: Strip) -> str:
    """The pictures of one image as HTML."""
    panels = "".join(
        f'<figure><img src="{panel.source}" alt="{escape(panel.title)}, {escape(strip.caption)}" loading="lazy">'
        f"<figcaption>{escape(panel.title)}</figcaption></figure>"
        for panel in strip.panels
    )
    return f'<div class="card strip"><h3>{escape(strip.caption)}</h3><div class="panels">{panels}</div></div>'
