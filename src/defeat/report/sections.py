"""Sections of the page that explain a comparison: error types, training curves, pictures."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from defeat.evaluation.average_precision import Floats
from defeat.evaluation.mistakes import KINDS, find_mistakes
from defeat.evaluation.operating_points import Curve, best_f1, confusion_matrix, precision_recall
from defeat.report.figures import Line, line_chart
from defeat.report.pages import SHADES, Cell, Table, bar, parts, row
from defeat.report.pictures import THRESHOLD, Gallery, Strip
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
MISTAKES = (
    "AP50 points lost to each error type: the gain if all errors of that type, and no others, were corrected (TIDE, "
    "Bolya et al., ECCV 2020). The losses do not add up to 100 - AP50."
)
STRENGTH = (
    "At the neck, methods that help have had gradients of 6 to 25 times those of the detector's own losses. Above 100, "
    "a loss may outweigh them; near zero, it has no effect."
)
DRAWN = f"Detections with a score of at least {THRESHOLD} are drawn; AP counts those with lower scores, too."
INSIDE = (
    "Left: the region that the method weights separately, one colour per pyramid level. Right: the difference between "
    "the feature maps of student and teacher, all on one scale; less colour means more similar."
)


def mistakes_section(runs: Sequence[RunSummary]) -> Markup:
    """A row per error type, a column per run with stored detections; empty without such runs."""
    columns = [(run, find_mistakes(run.scenes, len(run.per_class))) for run in runs if run.has_detections]
    if not columns:
        return Markup()
    largest = max((cost for _, mistakes in columns for cost in mistakes.cost.values()), default=0.0) or 1.0
    body = []
    for kind in KINDS:
        cells = []
        for shade, (_, mistakes) in enumerate(columns):
            cost, count = mistakes.cost[kind], mistakes.count[kind]
            cells.append(Cell(bar(decimal(cost), 100 * cost / largest, shade), f"{count} errors"))
        body.append(row(kind, cells, (KIND_WORDS[kind],)))
    table = Table(("error", *(run.name for run, _ in columns)), body, label="AP50 points lost to each error type")
    return parts.titled("Error types", parts.table(table), below=MISTAKES)


def operating_section(runs: Sequence[RunSummary]) -> Markup:
    """Per run with stored detections: precision over recall, the best threshold of each class, the confusion matrix."""
    cards = [_operating_card(run) for run in runs if run.has_detections]
    return parts.thresholds(cards) if cards else Markup()


def _operating_card(run: RunSummary) -> Markup:
    names, curves = list(run.per_class), [precision_recall(matches) for matches in run.matches]
    points = [best_f1(curve) for curve in curves]
    drawn = sorted(range(len(names)), key=lambda label: -len(curves[label].scores))[:SHADES]
    lines = [Line(names[label], _points(curves[label]), shade) for shade, label in enumerate(sorted(drawn))]
    body = []
    for name, point in zip(names, points, strict=True):
        figures = None if point is None else (point.threshold, point.precision, point.recall, point.f1)
        body.append(row(name, ["n/a"] * 4 if figures is None else [f"{figure:.2f}" for figure in figures]))
    heads = ("class", "threshold", "precision", "recall", "F1")
    table = Table(heads, body, "sortable", f"best threshold of each class, {run.name}")
    more = f"The {SHADES} classes with most detections." if len(names) > SHADES else ""
    thresholds = np.array([1.1 if point is None else point.threshold for point in points])
    chart = line_chart(lines, "recall", "precision")
    return parts.threshold_card(run.name, lines, chart, more, table, _confusion(run, thresholds))


def _points(curve: Curve) -> list[tuple[float, float]]:
    """Precision over recall."""
    return list(zip(curve.recall.tolist(), curve.precision.tolist(), strict=True))


def _confusion(run: RunSummary, thresholds: Floats) -> Table | None:
    """The confusion matrix at the best thresholds; None where there are too many classes to read it."""
    names = list(run.per_class)
    if len(names) > MOST_CONFUSED:
        return None
    counts = confusion_matrix(run.scenes, thresholds)
    totals = counts.sum(axis=1, keepdims=True).clip(min=1)
    body = []
    for label, name in enumerate((*names, "no object")):
        cells = []
        for column, (count, total) in enumerate(zip(counts[label], totals[label].repeat(len(names) + 1), strict=True)):
            side = "good" if column == label else "bad"
            part = 0 if label == len(names) else round(40 * count / total)
            cells.append(Cell(str(count or ""), style=f"--side:var(--{side});--part:{part}"))
        body.append(row(name, cells))
    return Table(("annotated", *names, "not detected"), body, "heat", f"confusion matrix, {run.name}")


def curves_section(runs: Sequence[RunSummary]) -> Markup:
    """AP over epochs of all runs in one chart, if it was measured more than once, and the loss terms of each run."""
    accuracy = [Line(run.name, run.accuracies or run.curve("val/AP"), shade) for shade, run in enumerate(runs)]
    evaluated_often = any(len(line.points) > 1 for line in accuracy)
    chart = line_chart(accuracy, "epoch", "AP") if evaluated_often else ""
    losses = []
    for run in runs:
        terms = sorted({key for line in run.log for key in line if key.startswith("train/")} - {"train/lr"})
        names = ["total" if term == "train/loss" else term.removeprefix("train/") for term in terms]
        curves = [run.curve(term, "step") for term in terms]
        lines = [Line(name, curve, shade) for shade, (name, curve) in enumerate(zip(names, curves, strict=True))]
        if drawn := line_chart(lines, "step", "loss"):
            losses.append((run.name, "", lines, drawn))
    note = "The total loss of a distilled run includes the distillation losses."
    return Markup("\n").join(
        [
            *([parts.titled("AP over epochs", parts.plot(accuracy, chart))] if chart else []),
            *([parts.titled("Losses", parts.charts(losses), note)] if losses else []),
        ]
    )


def stages_section(runs: Sequence[RunSummary]) -> Markup:
    """The stages of runs with teachers one after the other, with the AP at the end of each; empty without such runs."""
    body = []
    for run in runs:
        for number, stage in enumerate(run.stages, start=1):
            figures = (number, stage["teacher"], stage["method"], stage["epochs"], decimal(stage["AP"]))
            body.append(row(run.name, map(str, figures)))
    if not body:
        return Markup()
    table = Table(("run", "stage", "teacher", "method", "epochs", "AP"), body, label="stages")
    return parts.titled("Stages", parts.table(table))


def trade_off_section(runs: Sequence[RunSummary]) -> Markup:
    """AP over latency, a point per run and exported file; empty for less than two of them."""
    known = [run for run in runs if run.latency_ms is not None and run.metrics.get("AP") is not None]
    if len(known) < 2:
        return Markup()
    points = [
        Line(run.name, [(run.latency_ms or 0.0, run.metrics.get("AP") or 0.0)], shade)
        for shade, run in enumerate(known)
    ]
    return parts.titled("AP over latency", parts.plot(points, line_chart(points, "latency (ms)", "AP")))


def shares_section(runs: Sequence[RunSummary]) -> Markup:
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
                cards.append((run.name, title, lines, chart))
    if not cards:
        return Markup()
    return parts.titled("Strength of the distillation losses", parts.charts(cards), STRENGTH)


def loss_share(run: RunSummary, terms: Sequence[str]) -> list[tuple[float, float]]:
    """Share of some loss terms in the total loss, in percent, by step."""
    points = []
    for line in run.log:
        total = line.get("train/loss")
        if total and "step" in line:
            points.append((line["step"], 100 * sum(line.get(f"train/{term}", 0.0) for term in terms) / total))
    return points


def gallery_section(gallery: Gallery) -> Markup:
    """The pictures of a report as HTML."""
    helped = (
        ("Largest AP gains", f"Test images with the largest AP gain over the baseline. {DRAWN}")
        if gallery.compared
        else ("Highest AP", f"Test images with the highest AP; without a baseline, the gain is unknown. {DRAWN}")
    )
    groups = (
        (*helped, gallery.helped),
        ("Largest AP drops", "Test images with the largest AP drop below the baseline.", gallery.hurt),
        ("Regions and features", INSIDE, gallery.inside),
    )
    rendered = [parts.strips(title, text, strips) for title, text, strips in groups if strips]
    if gallery.errors:
        rendered.append(errors_section(gallery.errors, "the distilled student"))
    return parts.gallery(gallery.note, rendered)


def errors_section(strips: Sequence[Strip], whose: str) -> Markup:
    """Images with errors, which can be filtered by class and error type."""
    classes = sorted({name for strip in strips for _, name, _ in strip.errors})
    return parts.errors(strips, whose, KINDS, classes, THRESHOLD)
