"""Tables of runs, for the terminal and for the HTML report."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from defeat.evaluation.bootstrap import Interval
from defeat.evaluation.evaluator import EvaluationResult
from defeat.exporting import ExportReport
from defeat.inference.profile import Cost
from defeat.report.gains import Gain
from defeat.report.runs import RunSummary
from defeat.report.variants import INHERITED, MatrixResult, VariantResult
from defeat.report.verdict import BASELINE, Verdict, roles, verdicts

UNKNOWN = "n/a"


def decimal(value: float | None, digits: int = 1) -> str:
    """Format a number with `digits` decimals; `n/a` for None."""
    return UNKNOWN if value is None else f"{value:.{digits}f}"


def print_table(console: Console, titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table and an empty line; the first column is text, the others are numbers."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, title in enumerate(titles):
        is_text = index == 0 or title in ("adaptation", "neck: stride x channels")
        table.add_column(title, justify="left" if is_text else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    console.print()


def duration(seconds: float | None) -> str:
    """Format a time as `8 s`, `12 min` or `3 h 05 min`; `n/a` for None."""
    if seconds is None:
        return UNKNOWN
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


@dataclass(frozen=True)
class JudgedRun:
    """A run and the share of the teacher-student gap that it closed, in percent; None where that is unknown."""

    run: RunSummary
    gap_closed: float | None = None


@dataclass(frozen=True)
class Column:
    """A column of figures.

    Attributes:
        title: title with unit.
        value: reads the figure from a run; None where the run did not record it.
        show: formats the figure.
    """

    title: str
    value: Callable[[JudgedRun], float | None]
    show: Callable[[float | None], str] = decimal


def _metric(name: str) -> Callable[[JudgedRun], float | None]:
    return lambda row: row.run.metrics.get(name)


def _percent(value: float | None) -> str:
    return UNKNOWN if value is None else f"{round(value)} %"


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit


COLUMNS = (
    *(Column(name, _metric(name)) for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")),
    Column("VOC AP50", _metric("voc_ap50")),
    Column("gap closed", lambda row: row.gap_closed, _percent),
    Column("params (M)", lambda row: _scaled(row.run.parameters, 1e6), lambda value: decimal(value, 2)),
    Column("GFLOPs", lambda row: row.run.gflops),
    Column("latency (ms)", lambda row: row.run.latency_ms),
    Column("file (MB)", lambda row: _scaled(row.run.model_bytes, 1e6)),
    Column("training", lambda row: row.run.train_seconds, duration),
)
PARTS = ("AP50", "AP75", "APs", "APm", "APl", "training time")  # the second table of a matrix
MOST_COLUMNS = 6  # of the table of gains per class
MOST_CLASSES = 25  # a longer per-class table is not printed
ACCURACY = 8  # number of accuracy columns; the others are costs


@dataclass(frozen=True)
class ComparisonRow:
    """A run in the table.

    Attributes:
        run: the run.
        role: see `verdict.roles`.
        detector: family and backbone.
        cells: text per column of `COLUMNS`.
    """

    run: RunSummary
    role: str
    detector: str
    cells: tuple[str, ...]


def comparison_rows(
    runs: Sequence[RunSummary], judged: Sequence[Verdict] = (), exported: Sequence[RunSummary] = ()
) -> list[ComparisonRow]:
    """One row per run: teachers, baselines, distilled runs, each in the order given, and exported files."""
    closed = {verdict.distilled.folder: verdict.gap_closed for verdict in judged}
    rows = [
        ComparisonRow(
            run=run,
            role=role,
            detector=" ".join(part for part in (run.family, run.backbone) if part) or UNKNOWN,
            cells=tuple(column.show(column.value(JudgedRun(run, closed.get(run.folder)))) for column in COLUMNS),
        )
        for run, role in zip(
            (*runs, *exported), (*roles(runs), *(f"exported ({run.method})" for run in exported)), strict=True
        )
    ]
    order = {"teacher": 0, BASELINE: 1}
    return sorted(rows, key=lambda row: 3 if row.run in exported else order.get(row.role, 2))


def print_comparison(
    runs: Sequence[RunSummary],
    console: Console,
    judged: Sequence[Verdict] | None = None,
    exported: Sequence[RunSummary] = (),
) -> None:
    """Print the table and the verdict on each distilled run.

    On a console too narrow for the table it is split into accuracy and cost.
    """
    judged = verdicts(runs) if judged is None else judged
    rows = comparison_rows(runs, judged, exported)
    whole = _table(rows, COLUMNS)
    if console.measure(whole, options=console.options.update(width=10_000)).maximum <= console.width:
        console.print(whole)
    else:
        console.print(_table(rows, COLUMNS[:ACCURACY], detector=False))
        console.print()
        console.print(_table(rows, COLUMNS[ACCURACY:], role=False))
    for warning in filter(None, (run.warning for run in runs)):
        console.print(Text(warning, style="yellow"))
    for verdict in judged:
        console.print()
        console.print(Text(verdict.sentence, style="bold"))
        if verdict.caution:
            console.print(Text(verdict.caution))


INTERVALS = ("95 % seeds", "95 % images")
WIDEST = 1000  # characters, to measure how wide a table would like to be
OVER_INHERITED = f"over {INHERITED}"  # title of the column with the contribution of the distillation losses


@dataclass(frozen=True)
class PlannedCell:
    """A cell of a comparison with its predicted cost.

    Attributes:
        number: number of the cell.
        variant: name of the variant.
        seed: seed of the run.
        state: `done`, `begun` or empty.
        seconds: predicted time of the whole run.
        disk_bytes: predicted size of the run directory.
    """

    number: int
    variant: str
    seed: int
    state: str
    seconds: float
    disk_bytes: int


def print_cells(cells: Sequence[PlannedCell], console: Console) -> None:
    """Print the cells of a comparison, the time left and the disk space."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("cell", "method", "seed", "state", "time", "disk"):
        table.add_column(title, justify="left" if title in ("method", "state") else "right")
    for cell in cells:
        table.add_row(
            str(cell.number),
            Text(cell.variant),
            str(cell.seed),
            cell.state,
            duration(cell.seconds),
            f"{cell.disk_bytes / 1e6:.0f} MB",
        )
    console.print(table)
    left = [cell for cell in cells if cell.state != "done"]
    seconds, size = sum(cell.seconds for cell in left), sum(cell.disk_bytes for cell in left)
    console.print(
        f"\n{len(left)} of {len(cells)} cells left: about {duration(seconds)} on this machine, {size / 1e9:.1f} GB.",
        highlight=False,
    )


def print_matrix(result: MatrixResult, console: Console) -> None:
    """Print gains, metrics, per-class gains and a sentence per variant."""
    parts = Table(box=None, header_style="bold", pad_edge=False)
    parts.add_column("method", overflow="fold")
    for title in PARTS:
        parts.add_column(title, justify="right", no_wrap=True)
    parts.add_row("teacher", *(decimal(result.teacher.get(name)) for name in PARTS[:-1]))
    for variant in (result.baseline, *result.ranked):
        time = "" if variant.time_ratio is None else f"{variant.time_ratio:.2f} x"
        parts.add_row(Text(variant.name), *(decimal(variant.metrics.get(name)) for name in PARTS[:-1]), time)
    classes = _class_table(result, console)
    for table in (_gain_table(result, console), parts, *([classes] if classes.row_count else [])):
        console.print(table)
        console.print()
    for remark in filter(None, (result.unequal_seeds(), result.schedules())):
        console.print(f"{remark}\n", highlight=False)
    for variant in result.ranked:
        significant = variant.gain is not None and variant.gain.significant
        console.print(Text(variant.sentence(result.images), style="bold" if significant else ""))
    if result.missing:
        console.print(f"\nNot finished yet: {', '.join(result.missing)}", style="yellow", highlight=False)


def _gain_table(result: MatrixResult, console: Console) -> Table:
    """Gains of all variants, without the columns that a narrow console has no space for."""
    titles = ["AP", "by seed", "gain", *INTERVALS, "gap closed"]
    over_inherited = {other.name: other.gain_over_inherited for other in result.others}
    titles += [OVER_INHERITED] * any(over_inherited.values())
    rows = {"teacher": [decimal(result.teacher.get("AP"))]}
    for variant in (result.baseline, *result.ranked):
        cells = [] if variant.gain is None else gain_cells(variant.gain, variant.gap_closed)
        if (gain := over_inherited.get(variant.name)) is not None:
            cells.append(f"{gain.mean:+.1f}")
        rows[variant.name] = [decimal(variant.mean), by_seed(variant, result), *cells]
    for dropped in ((), ("by seed",), ("by seed", *INTERVALS)):  # the sentences below have the intervals
        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column("method", overflow="fold")
        kept = [index for index, title in enumerate(titles) if title not in dropped]
        for index in kept:
            table.add_column(titles[index], justify="right", no_wrap=True)
        for name, cells in rows.items():
            table.add_row(Text(name), *(cells[index] for index in kept if index < len(cells)))
        if _fits(table, console):
            break
    return table


def _fits(table: Table, console: Console) -> bool:
    """Whether a console is wide enough to print a table without folding a cell."""
    return Measurement.get(console, console.options.update_width(WIDEST), table).maximum <= console.width


def _class_table(result: MatrixResult, console: Console) -> Table:
    """Gain per class of the best variants, as many as fit."""
    for columns in range(MOST_COLUMNS, 0, -1):
        table = _class_columns(result, columns)
        if _fits(table, console):
            break
    return table


def _class_columns(result: MatrixResult, columns: int) -> Table:
    """Gain per class of the best variants; without rows where there are more than `MOST_CLASSES` classes."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("gain per class", overflow="fold")
    gains = {other.name: other.class_gains or {} for other in result.ranked[:columns]}
    for name in gains:
        table.add_column(Text(name), justify="right")
    names = [name for name in result.baseline.per_class if any(name in per_class for per_class in gains.values())]
    for name in names if len(names) <= MOST_CLASSES else ():
        cells = (f"{per_class[name].mean:+.1f}" if name in per_class else UNKNOWN for per_class in gains.values())
        table.add_row(Text(name), *cells)
    return table


def by_seed(variant: VariantResult, result: MatrixResult) -> str:
    """AP per seed of the matrix, `-` for a seed that the variant lacks."""
    ap = dict(zip(variant.seeds, variant.ap, strict=True))
    return " ".join(decimal(ap[seed]) if seed in ap else "-" for seed in result.seeds)


def gain_cells(gain: Gain, gap_closed: float | None) -> list[str]:
    """Gain, interval over seeds, interval over images, gap closed."""
    return [f"{gain.mean:+.1f}", interval_cell(gain.over_seeds), interval_cell(gain.over_images), _percent(gap_closed)]


def interval_cell(interval: Interval | None) -> str:
    """Format an interval as `-0.3 .. +2.7`; `n/a` for None."""
    return UNKNOWN if interval is None else f"{interval.low:+.1f} .. {interval.high:+.1f}"


def print_evaluation(result: EvaluationResult, console: Console) -> None:
    """Print the metrics of a split, overall and per class."""
    console.print(f"{result.images} images, {result.objects} objects", highlight=False)
    table = Table(box=None, header_style="bold", pad_edge=False)
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "voc07_ap50", "voc_ap50")
    table.add_column("class", overflow="fold")
    for name in names:
        table.add_column(name, justify="right")
    rows: list[tuple[str, Mapping[str, float | None]]] = [("all", result.metrics), *result.per_class.items()]
    for title, figures in rows:
        cells = [decimal(figures[name]) if name in figures else "" for name in names]
        table.add_row(Text(title, style="bold" if title == "all" else ""), *cells)
    console.print(table)


def _table(
    rows: Sequence[ComparisonRow], columns: Sequence[Column], *, role: bool = True, detector: bool = True
) -> Table:
    """A table of some columns; names are `Text`, so that rich reads no markup in them."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("run", overflow="fold")
    if role:
        table.add_column("role", overflow="fold")
    if detector:
        table.add_column("detector", overflow="fold")
    for column in columns:
        table.add_column(column.title, justify="right", no_wrap=True)
    first = COLUMNS.index(columns[0])
    for row in rows:
        names = [row.run.name, *([row.role] if role else []), *([row.detector] if detector else [])]
        table.add_row(*(Text(name) for name in names), *row.cells[first : first + len(columns)])
    return table


def print_costs(costs: Sequence[Cost], console: Console) -> None:
    """Print the result of `defeat profile`: times, and what does not depend on threads."""
    times = [
        (
            Path(cost.source).name,
            str(cost.batch),
            str(cost.threads),
            decimal(cost.median_ms),
            decimal(cost.p95_ms),
            decimal(cost.images_per_second),
        )
        for cost in costs
    ]
    print_table(console, ("run or file", "batch", "threads", "ms", "ms, p95", "images/s"), times)
    first = {cost.source: cost for cost in reversed(costs)}
    sizes = [
        (
            Path(source).name,
            decimal(_scaled(first[source].parameters, 1e6), 2),
            decimal(first[source].gflops),
            decimal(_scaled(first[source].file_bytes, 1e6)),
            decimal(_scaled(first[source].memory_bytes, 1e6), 0),
        )
        for source in dict.fromkeys(cost.source for cost in costs)
    ]
    print_table(console, ("run or file", "params (M)", "GFLOPs", "file (MB)", "memory (MB)"), sizes)
    places = dict.fromkeys(f"{cost.size[1]} x {cost.size[0]} pixels on {cost.device}" for cost in costs)
    console.print(f"Images of {', '.join(places)}; {UNKNOWN}: not known.", highlight=False)


def print_export(report: ExportReport, console: Console) -> None:
    """Print what `defeat export` wrote, and how it compares with the detector."""
    about = report.description
    sides = " x ".join("any" if side is None else str(side) for side in (about.batch, 3, about.height, about.width))
    megabytes = report.bytes / 1e6
    console.print(f"{report.file}: {about.precision}, {megabytes:.1f} MB, input {sides}", highlight=False)
    if report.warning:
        console.print(report.warning, style="yellow", highlight=False)
    parity = report.parity
    if parity is None:
        console.print("Not compared with the detector.", highlight=False)
        return
    console.print(
        f"{parity.matched:.1%} of {parity.detections:.0f} detections in {parity.images} images of {report.split} are "
        f"equal; they differ by at most {parity.largest_box_difference:.2g} px and "
        f"{parity.largest_score_difference:.1g} in score.",
        highlight=False,
    )
    assert report.latency is not None
    assert report.latency_before is not None
    rows = [
        [name, decimal(ap), decimal(latency.median_ms), decimal(latency.p95_ms)]
        for name, ap, latency in (
            ("detector", report.ap_before, report.latency_before),
            ("file", report.ap, report.latency),
        )
    ]
    titles = ["", "AP", "ms per image", "ms, 95th percentile"]
    shown = range(4) if report.ap is not None else (0, 2, 3)
    print_table(console, [titles[index] for index in shown], [[row[index] for index in shown] for row in rows])
