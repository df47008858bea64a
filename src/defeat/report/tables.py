"""The comparison of runs as a table, for the terminal and the HTML report alike."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from defeat.evaluation.bootstrap import Interval
from defeat.evaluation.evaluator import EvaluationResult
from defeat.report.gains import Gain
from defeat.report.runs import RunSummary
from defeat.report.variants import MatrixResult, VariantResult
from defeat.report.verdict import Verdict, roles, verdicts

UNKNOWN = "n/a"


def decimal(value: float | None, digits: int = 1) -> str:
    """A number with so many decimals; `n/a` for None."""
    return UNKNOWN if value is None else f"{value:.{digits}f}"


def duration(seconds: float | None) -> str:
    """A time as a person says it: `8 s`, `12 min`, `3 h 05 min`; `n/a` for None."""
    if seconds is None:
        return UNKNOWN
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


@dataclass(frozen=True)
class Judged:
    """A run, and the part of its teacher's lead that distillation won, in percent; None where that is not known."""

    run: RunSummary
    gap_closed: float | None = None


@dataclass(frozen=True)
class Column:
    """A column of figures.

    Attributes:
        title: what stands above it, with the unit.
        value: reads the figure from a run; None where the run does not know it.
        show: writes the figure.
    """

    title: str
    value: Callable[[Judged], float | None]
    show: Callable[[float | None], str] = decimal


def _metric(name: str) -> Callable[[Judged], float | None]:
    return lambda one: one.run.metrics.get(name)


def _percent(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.0f} %"


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit


COLUMNS = (
    *(Column(name, _metric(name)) for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")),
    Column("VOC AP50", _metric("voc_ap50")),
    Column("gap closed", lambda one: one.gap_closed, _percent),
    Column("params (M)", lambda one: _scaled(one.run.parameters, 1e6), lambda value: decimal(value, 2)),
    Column("GFLOPs", lambda one: one.run.gflops),
    Column("latency (ms)", lambda one: one.run.latency_ms),
    Column("file (MB)", lambda one: _scaled(one.run.model_bytes, 1e6)),
    Column("training", lambda one: one.run.train_seconds, duration),
)
PARTS = ("AP50", "AP75", "APs", "APm", "APl", "training time")  # the second table of a matrix
MOST_CLASSES = 25  # more are not printed
ACCURACY = 8  # the first columns say how good a detector is, the others what it costs


@dataclass(frozen=True)
class ComparisonRow:
    """A run in the table.

    Attributes:
        run: the run.
        role: `teacher`, `student alone` or `distilled (METHOD)`.
        detector: family and backbone.
        cells: what stands in each of `COLUMNS`.
    """

    run: RunSummary
    role: str
    detector: str
    cells: tuple[str, ...]


def comparison_rows(runs: Sequence[RunSummary], judged: Sequence[Verdict] = ()) -> list[ComparisonRow]:
    """A row a run: teachers first, then students alone, then distilled ones, each in the order given."""
    closed = {one.distilled.folder: one.gap_closed for one in judged}
    rows = [
        ComparisonRow(
            run=run,
            role=role,
            detector=" ".join(part for part in (run.family, run.backbone) if part) or UNKNOWN,
            cells=tuple(column.show(column.value(Judged(run, closed.get(run.folder)))) for column in COLUMNS),
        )
        for run, role in zip(runs, roles(runs), strict=True)
    ]
    order = {"teacher": 0, "student alone": 1}
    return sorted(rows, key=lambda row: order.get(row.role, 2))


def print_comparison(runs: Sequence[RunSummary], console: Console, judged: Sequence[Verdict] | None = None) -> None:
    """Print the table and, below it, what can be said about each distilled run.

    A console too narrow for the whole table gets two: accuracy, then cost.
    """
    judged = verdicts(runs) if judged is None else judged
    rows = comparison_rows(runs, judged)
    whole = _table(rows, COLUMNS)
    if console.measure(whole, options=console.options.update(width=10_000)).maximum <= console.width:
        console.print(whole)
    else:
        console.print(_table(rows, COLUMNS[:ACCURACY], detector=False))
        console.print()
        console.print(_table(rows, COLUMNS[ACCURACY:], role=False))
    for verdict in judged:
        console.print()
        console.print(Text(verdict.sentence, style="bold"))
        if verdict.caution:
            console.print(Text(verdict.caution))


OVER_INHERITED = "over none+inherit"  # title of the column of what the terms add


@dataclass(frozen=True)
class PlannedCell:
    """A cell of a comparison, before it is trained.

    Attributes:
        number: of the cell.
        variant: how the student is trained.
        seed: of everything random.
        state: `done`, `begun` or nothing.
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
    """Print what a comparison would train, how long that takes and how much it writes."""
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
    """Print the methods side by side: what they gained, where and at what cost, and what can be said about each."""
    gains = Table(box=None, header_style="bold", pad_edge=False)
    parts = Table(box=None, header_style="bold", pad_edge=False)
    terms = {other.name: other.gain_over_inherited for other in result.others}
    last = (OVER_INHERITED,) if any(terms.values()) else ()
    for table, titles in (
        (gains, ("AP", "by seed", "gain", "95 % seeds", "95 % images", "gap closed", *last)),
        (parts, PARTS),
    ):
        table.add_column("method", overflow="fold")
        for title in titles:
            table.add_column(title, justify="right", no_wrap=title != "by seed")
    gains.add_row("teacher", decimal(result.teacher.get("AP")))
    parts.add_row("teacher", *(decimal(result.teacher.get(name)) for name in PARTS[:-1]))
    for variant in (result.alone, *result.others):
        found = [] if variant.gain is None else gain_cells(variant.gain, variant.gap_closed)
        if (added := terms.get(variant.name)) is not None:
            found.append(f"{added.mean:+.1f}")
        gains.add_row(Text(variant.name), decimal(variant.mean), by_seed(variant, result), *found)
        time = "" if variant.time_ratio is None else f"{variant.time_ratio:.2f} x"
        parts.add_row(Text(variant.name), *(decimal(variant.metrics.get(name)) for name in PARTS[:-1]), time)
    classes = _class_table(result)
    for table in (gains, parts, *([classes] if classes.row_count else [])):
        console.print(table)
        console.print()
    if unequal := result.unequal_seeds():
        console.print(f"{unequal}\n", highlight=False)
    for variant in result.others:
        shown = variant.gain is not None and variant.gain.shown
        console.print(Text(variant.sentence(result.images), style="bold" if shown else ""))
    if result.missing:
        console.print(f"\nNot finished yet: {', '.join(result.missing)}", style="yellow", highlight=False)


def _class_table(result: MatrixResult) -> Table:
    """What each method gained on each class; empty where the classes are too many to read."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("gain of class", overflow="fold")
    gains = {other.name: other.class_gains or {} for other in result.others}
    for name in gains:
        table.add_column(Text(name), justify="right")
    names = [name for name in result.alone.per_class if any(name in found for found in gains.values())]
    for name in names if len(names) <= MOST_CLASSES else ():
        cells = (f"{found[name].mean:+.1f}" if name in found else UNKNOWN for found in gains.values())
        table.add_row(Text(name), *cells)
    return table


def by_seed(variant: VariantResult, result: MatrixResult) -> str:
    """AP of each seed of the matrix, `-` for one that the variant lacks."""
    found = dict(zip(variant.seeds, variant.ap, strict=True))
    return " ".join(decimal(found[seed]) if seed in found else "-" for seed in result.seeds)


def gain_cells(gain: Gain, gap_closed: float | None) -> list[str]:
    """Gain, both intervals and the part of the gap, as they stand in the terminal and on the page."""
    return [f"{gain.mean:+.1f}", interval(gain.over_seeds), interval(gain.over_images), _percent(gap_closed)]


def interval(found: Interval | None) -> str:
    """An interval as `-0.3 .. +2.7`; `n/a` for None."""
    return UNKNOWN if found is None else f"{found.low:+.1f} .. {found.high:+.1f}"


def print_evaluation(result: EvaluationResult, console: Console) -> None:
    """Print the figures of a split, of the whole and of each class."""
    console.print(f"{result.images} images, {result.objects} objects", highlight=False)
    table = Table(box=None, header_style="bold", pad_edge=False)
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "voc07_ap50", "voc_ap50")
    table.add_column("class", overflow="fold")
    for name in names:
        table.add_column(name, justify="right")
    rows: list[tuple[str, Mapping[str, float | None]]] = [("all", result.metrics), *result.per_class.items()]
    for title, figures in rows:
        shown = [decimal(figures[name]) if name in figures else "" for name in names]
        table.add_row(Text(title, style="bold" if title == "all" else ""), *shown)
    console.print(table)


def _table(
    rows: Sequence[ComparisonRow], columns: Sequence[Column], *, role: bool = True, detector: bool = True
) -> Table:
    """A table of some columns; names are `Text`, because a name may hold what rich reads as markup."""
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
        words = [row.run.name, *([row.role] if role else []), *([row.detector] if detector else [])]
        table.add_row(*(Text(word) for word in words), *row.cells[first : first + len(columns)])
    return table
