"""The comparison as one self-contained HTML file: no network, no script, no other file."""

import shlex
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from defeat.errors import InputError
from defeat.files import write_into
from defeat.report.pictures import Gallery, example_strips, make_gallery
from defeat.report.runs import RunSummary
from defeat.report.sections import (
    bar,
    curves_section,
    gallery_section,
    mistakes_section,
    operating_section,
    shares_section,
    stages_section,
    strip_card,
    trade_off_section,
)
from defeat.report.tables import COLUMNS, UNKNOWN, ComparisonRow, comparison_rows
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
        "<h2>Accuracy and cost</h2>",
        _comparison(rows),
        stages_section(ordered),
        trade_off_section([row.run for row in rows]),
        _classes(ordered),
        mistakes_section(ordered),
        operating_section(ordered),
        curves_section(ordered),
        shares_section(ordered),
        *_pictures(runs, judged),
        "<h2>How to reproduce</h2>",
        '<div class="columns">' + "".join(recipe_card(run) for run in ordered) + "</div>",
    ]
    return page(_title(ordered), sections)


def page(title: str, sections: Sequence[str]) -> str:
    """Render a page of HTML sections under a plain-text title."""
    style = files("defeat.report").joinpath("style.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


def _pictures(runs: Sequence[RunSummary], judged: Sequence[Verdict]) -> list[str]:
    """Pictures of each distilled run; without one, a few test images of the first run."""
    if judged:
        return [
            gallery_section(make_gallery(verdict.distilled, verdict.baseline, teacher_of(verdict.distilled, runs)))
            for verdict in judged
        ]
    try:
        strips = example_strips(runs[0])
    except InputError as error:
        return [gallery_section(Gallery(note=f"No pictures: {error}"))]
    cards = "".join(strip_card(strip) for strip in strips)
    return [f"<h2>Test images</h2>{cards}"]


def _title(runs: Sequence[RunSummary]) -> str:
    return "Did distillation help?" if any(run.command == "distill" for run in runs) else "Trained detectors"


def _header(runs: Sequence[RunSummary]) -> str:
    tests = sorted({f"{Path(run.data).name or 'unknown data'}, split {run.split or 'unknown'}" for run in runs})
    warnings = "".join(f'<p class="caution">{escape(run.warning)}</p>' for run in runs if run.warning)
    measured = f'<p class="soft">Measured on {escape("; ".join(tests))}.</p>'
    return f"<header><h1>{escape(_title(runs))}</h1>{measured}{warnings}</header>"


def _verdict(verdict: Verdict) -> str:
    unclear = verdict.over_images is not None and verdict.over_images.contains_zero
    mood = "" if verdict.gain is None or unclear or abs(verdict.gain) < 0.05 else "good" if verdict.gain > 0 else "bad"
    facts = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in _facts(verdict))
    return (
        f'<section class="card verdict {mood}"><p>{escape(verdict.sentence)}</p>'
        + (f'<div class="facts">{facts}</div>' if facts else "")
        + (f'<p class="caution">{escape(verdict.caution)}</p>' if verdict.caution else "")
        + "</section>"
    )


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


def _comparison(rows: Sequence[ComparisonRow]) -> str:
    heads = "".join(f'<th scope="col">{escape(title)}</th>' for title in ("run", *(column.title for column in COLUMNS)))
    body = []
    for row in rows:
        kind = ' class="distilled"' if row.run.command == "distill" else ""
        label = (
            f'<th scope="row">{escape(row.run.name)}<small>{escape(row.role)}</small>'
            f"<small>{escape(row.detector)}</small></th>"
        )
        body.append(f"<tr{kind}>{label}" + "".join(f"<td>{escape(cell)}</td>" for cell in row.cells) + "</tr>")
    return (
        f'<div class="card scroll"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
        f'<p class="soft">{METRICS} VOC AP50: area under PASCAL VOC\'s precision-recall curve. Baseline: the '
        "same student trained without a teacher. Gap closed: share of the AP gap between baseline and teacher that "
        "distillation closed. A multiply-add counts as two FLOPs. "
        f"Latency: median per image{_measured([row.run for row in rows])}. {UNKNOWN}: not recorded, or no such "
        "object.</p>"
    )


def _measured(runs: Sequence[RunSummary]) -> str:
    conditions = dict.fromkeys(run.measured for run in runs if run.measured)
    return f" ({escape('; '.join(conditions))})" if conditions else ""


def _classes(runs: Sequence[RunSummary]) -> str:
    names = list(dict.fromkeys(name for run in runs for name in run.per_class))
    if not names:
        return ""
    heads = '<th scope="col">class</th>' + "".join(f'<th scope="col">{escape(run.name)}</th>' for run in runs)
    body = []
    for name in names:
        bars = (_bar(run.per_class.get(name, {}).get("AP"), shade) for shade, run in enumerate(runs))
        body.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(bars)}</tr>')
    shown = " open" if len(names) <= OPEN_CLASSES else ""
    return (
        f"<h2>AP per class</h2><details{shown}><summary>{len(names)} classes</summary>"
        f'<div class="card scroll"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
        "</details>"
    )


def _bar(value: float | None, shade: int) -> str:
    percent = 0.0 if value is None else min(100.0, max(0.0, value))
    return f"<td>{bar(value, percent, shade)}</td>"


def recipe_card(run: RunSummary) -> str:
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
    shown = ((name, UNKNOWN if value in (None, "") else str(value)) for name, value in facts.items())
    listed = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>"
        for name, value in shown
        if name != "teacher" or run.command == "distill"
    )
    return f'<section class="card"><h3>{escape(run.name)}</h3><pre>{escape(command)}</pre><dl>{listed}</dl></section>'


def _pairs(values: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
