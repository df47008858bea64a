"""The comparison of runs as a table, for the terminal and the HTML report alike."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from defeat.engine.evaluate import EvaluationResult
from defeat.report.runs import RunSummary
from defeat.report.verdict import roles, verdicts

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
class Column:
    """A column of figures.

    Attributes:
        title: what stands above it, with the unit.
        value: reads the figure from a run; None where the run does not know it.
        show: writes the figure.
    """

    title: str
    value: Callable[[RunSummary], float | None]
    show: Callable[[float | None], str] = decimal


def _metric(name: str) -> Callable[[RunSummary], float | None]:
    return lambda run: run.metrics.get(name)


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit


COLUMNS = (
    *(Column(name, _metric(name)) for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")),
    Column("VOC AP50", _metric("voc_ap50")),
    Column("params (M)", lambda run: _scaled(run.parameters, 1e6), lambda value: decimal(value, 2)),
    Column("GFLOPs", lambda run: run.gflops),
    Column("latency (ms)", lambda run: run.latency_ms),
    Column("file (MB)", lambda run: _scaled(run.model_bytes, 1e6)),
    Column("training", lambda run: run.train_seconds, duration),
)
ACCURACY = 7  # the first columns say how good a detector is, the others what it costs


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


def comparison_rows(runs: Sequence[RunSummary]) -> list[ComparisonRow]:
    """A row a run: teachers first, then students alone, then distilled ones, each in the order given."""
    rows = [
        ComparisonRow(
            run=run,
            role=role,
            detector=" ".join(part for part in (run.family, run.backbone) if part) or UNKNOWN,
            cells=tuple(column.show(column.value(run)) for column in COLUMNS),
        )
        for run, role in zip(runs, roles(runs), strict=True)
    ]
    order = {"teacher": 0, "student alone": 1}
    return sorted(rows, key=lambda row: order.get(row.role, 2))


def print_comparison(runs: Sequence[RunSummary], console: Console) -> None:
    """Print the table and, below it, what can be said about each distilled run.

    A console too narrow for the whole table gets two: accuracy, then cost.
    """
    rows = comparison_rows(runs)
    whole = _table(rows, COLUMNS)
    if console.measure(whole, options=console.options.update(width=10_000)).maximum <= console.width:
        console.print(whole)
    else:
        console.print(_table(rows, COLUMNS[:ACCURACY], detector=False))
        console.print()
        console.print(_table(rows, COLUMNS[ACCURACY:], role=False))
    for verdict in verdicts(runs):
        console.print()
        console.print(Text(verdict.sentence, style="bold"))
        if verdict.caution:
            console.print(Text(verdict.caution))


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
