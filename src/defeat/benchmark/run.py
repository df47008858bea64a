"""Trains the cells of a matrix and reports the result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from signal import SIGINT
from time import perf_counter
from typing import Any

from rich.console import Console

from defeat.assembly.assemble import load_teacher
from defeat.assembly.automatic import Choices, as_begun, choose, is_chosen
from defeat.assembly.estimate import RunCost, estimate_run
from defeat.assembly.run import run
from defeat.assembly.settings import DistillSettings, TrainSettings, gives_boxes
from defeat.benchmark.arguments import BenchArguments, ComparisonSettings
from defeat.benchmark.cluster import require_cluster, train_on_cluster
from defeat.benchmark.jobs import require_jobs, train_in_parallel
from defeat.benchmark.matrix import PLAN, Cell, Matrix, chosen_cells, variants_of
from defeat.benchmark.report import report
from defeat.benchmark.teacher import evaluate_teacher
from defeat.data import DetectionDataset
from defeat.data.loader import training_loader
from defeat.engine.checkpoint import is_writer
from defeat.engine.fit import RunResult
from defeat.engine.lock import LockedError
from defeat.errors import InputError
from defeat.notebook import html_table
from defeat.report.tables import PlannedCell, decimal, duration, print_cells
from defeat.report.variants import MatrixResult
from defeat.signatures import checked_arguments, with_arguments_of

UNFINISHED = 2  # exit code where a cell was refused, as for bad input
PATHS = ("data", "teacher", "out")


@dataclass(frozen=True)
class BenchRun:
    """The outcome of `bench`.

    Attributes:
        result: comparison of the finished cells; None after a plan, when it was stopped, when no cell of the baseline
            is finished, and in every process but the first.
        stopped: whether the user stopped it before its last cell.
        signal: the signal that stopped it.
        unfinished: run directories of requested cells that failed or that another process trains; empty in every
            process but the first.
    """

    result: MatrixResult | None = None
    stopped: bool = False
    signal: int = SIGINT
    unfinished: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """Exit code of the command: as `RunResult.exit_code`, and 2 where a requested cell is unfinished."""
        if self.stopped and is_writer():
            return 128 + self.signal
        return UNFINISHED if self.unfinished else 0

    def _repr_html_(self) -> str:
        if self.result is None:
            return html_table("Comparison without a result", {})
        result, rows = self.result, {"teacher": f"{decimal(self.result.teacher.get('AP'))} AP."}
        for variant in (result.baseline, *result.ranked):
            rows[variant.name] = variant.sentence(result.images).removeprefix(f"{variant.name}: ")
        return html_table(f"Comparison on {result.images} images", rows)


@with_arguments_of(BenchArguments)
def bench(**arguments: Any) -> BenchRun:
    """Train a student with each method and each seed, and compute the gain of each method over the baseline.

    The folder `out` gets a run directory per cell, `bench.json` and `report.html`. Repeat the call to resume: finished
    cells are kept, stopped ones continue from their checkpoint. Several machines can share the work with `cells`, and
    several processes can work in one folder. A cell that fails is named, and the others are trained.

    Returns:
        The result, and which cells are unfinished.

    Raises:
        InputError: an argument, the data, the teacher or the folder is not valid.
    """
    given, template = _settings_of(arguments)
    console = given.console or Console(stderr=True)
    per_method = given.method_options or {}
    variants_of(given.methods, given.ablate, per_method, template.inherit)  # checked before data are read
    choices = _choices(template, console)
    template = choices.applied(template)
    variants = variants_of(given.methods, given.ablate, per_method, template.inherit)
    matrix = Matrix.of(template, variants, given.seeds)
    requested = {(cell.variant, cell.seed) for cell in matrix.cells()}
    matrix.join_existing()  # which may change the numbers of cells
    require_jobs(given.jobs, matrix)
    if given.ray is not None:
        require_cluster(given.ray, given.jobs, matrix)
    cells = matrix.cells()
    if given.cells is None:
        cells = [cell for cell in cells if (cell.variant, cell.seed) in requested]
    else:
        cells = [cells[number - 1] for number in chosen_cells(given.cells, len(cells))]
    for cell in cells:
        matrix.cell_settings(cell)  # invalid settings are refused now, not after hours of training
    if given.ablate == "unlabelled" and template.unlabelled is None:
        raise InputError("--ablate unlabelled needs images without annotations: name their folder with --unlabelled.")
    if (sentence := choices.describe()) and is_writer():
        console.print(f"auto: {sentence}", highlight=False, soft_wrap=True)
    if given.plan:
        _print_plan(matrix, cells, console)
        return BenchRun()
    matrix.write()
    evaluate_teacher(matrix, console)
    return _train_and_report(matrix, cells, given, console)


def _settings_of(arguments: dict[str, Any]) -> tuple[ComparisonSettings, DistillSettings]:
    """Split the arguments of `bench` into its own settings and those of its cells."""
    values = checked_arguments(BenchArguments, arguments)
    for name in PATHS:
        if not isinstance(values[name], str):
            kind = type(values[name]).__name__
            raise InputError(f"{name} must be a path or a name, not a {kind}, because each cell loads it again.")
    if not isinstance(values.get("methods", ""), str):
        raise InputError(
            "methods is a text of names with commas. Give a method of your own a name first: "
            "defeat.methods.METHODS['mine'] = Mine."
        )
    names = {field.name for field in fields(ComparisonSettings)}
    if gives_boxes(values["teacher"], values.get("teacher_taps")):
        raise InputError(
            "bench compares methods, and a teacher that only gives boxes has none: compare a run of `defeat distill` "
            "with one of `defeat train` by `defeat compare`."
        )
    if values.get("then"):
        raise InputError(
            "bench compares methods over equal numbers of epochs, without --then: compare a run in stages with one of "
            "`defeat train` over as many epochs by `defeat compare`."
        )
    own = {name: value for name, value in values.items() if name in names}
    shared = {name: value for name, value in values.items() if name not in names}
    return ComparisonSettings(**own), DistillSettings(**shared)


def _train_and_report(matrix: Matrix, cells: Sequence[Cell], given: ComparisonSettings, console: Console) -> BenchRun:
    signal = _train(matrix, cells, given, console)
    if signal is not None:
        if is_writer():
            console.print("Repeat the command to resume.")
        return BenchRun(stopped=True, signal=signal)
    if not is_writer():
        return BenchRun()  # the first process may still be writing the last cell
    unfinished = tuple(cell.folder for cell in cells if not matrix.finished(cell))
    return BenchRun(report(matrix.folder, console), unfinished=unfinished)


def _choices(template: DistillSettings, console: Console) -> Choices:
    """Values for settings that are `auto`, equal in all cells; an existing comparison keeps its values.

    The learning rate schedule stays `auto`: each cell gets the one that suits it. So does the interval of evaluations.

    Raises:
        InputError: the data or the teacher is not valid.
    """
    if is_chosen(template):
        return Choices()
    folder = Path(template.out)
    if (folder / PLAN).exists():
        return as_begun(template, Matrix.read(folder).settings)
    training = template.source.open(template.split, template.classes, console)
    return choose(template, training, load_teacher(template)).without("schedule", "eval_every")


def _train(matrix: Matrix, cells: Sequence[Cell], given: ComparisonSettings, console: Console) -> int | None:
    """Train the unfinished cells; return the signal with which the user stopped them, if any."""
    unfinished = [cell for cell in cells if not matrix.finished(cell)]
    if given.ray is not None and unfinished:
        return train_on_cluster(matrix, unfinished, given.ray, _steps(matrix, unfinished), console)
    if given.jobs > 1 and len(unfinished) > 1:
        return train_in_parallel(matrix, unfinished, given.jobs, _steps(matrix, unfinished), console)
    stopped = train_cells(matrix, unfinished, console)
    return None if stopped is None else stopped.signal


def train_cells(
    matrix: Matrix, cells: Sequence[Cell], console: Console, notify: Callable[[str], None] | None = None
) -> RunResult | None:
    """Train cells one after the other, except those that are finished or that another process trains.

    Args:
        matrix: the matrix, already written into its folder.
        cells: the cells.
        console: console for the progress of each run.
        notify: called with a sentence per finished or failed cell when several processes train cells.

    Returns:
        The run that the user stopped, if any.
    """
    unfinished = [cell for cell in cells if not matrix.finished(cell)]
    start = perf_counter()
    for index, cell in enumerate(unfinished):
        if matrix.finished(cell) and matrix.one_process_per_cell:  # by another process, in the meantime
            continue
        if is_writer():
            console.rule(f"cell {cell.number} of {len(matrix.cells())}: {cell.variant}, seed {cell.seed}", align="left")
        result = _train_cell(matrix, cell, console, notify)
        if result is None:
            continue
        if not result.finished:
            return result
        accuracy = result.evaluation.metrics["AP"] if result.evaluation else None
        sentence = f"{cell.folder}: AP {accuracy or 0:.1f}"
        if notify is None:
            per_cell = (perf_counter() - start) / (index + 1)
            sentence += f"; {duration(per_cell * (len(unfinished) - index - 1))} left for the other cells"
        if result.writer:
            _say(sentence, console, notify)
    return None


def _train_cell(matrix: Matrix, cell: Cell, console: Console, notify: Callable[[str], None] | None) -> RunResult | None:
    """Train one cell; None where it fails or another process trains it."""
    try:
        return run(matrix.cell_settings(cell), console)
    except LockedError as error:
        if not matrix.one_process_per_cell:
            raise
        if notify is None:
            console.print(f"Skipped: {error}", style="yellow", highlight=False, markup=False)
    except InputError as error:
        if not matrix.one_process_per_cell:
            raise
        _say(f"{cell.folder} failed: {error}", console, notify)
    return None


def _say(sentence: str, console: Console, notify: Callable[[str], None] | None) -> None:
    console.print(sentence, style="yellow" if "failed" in sentence else "", highlight=False, markup=False)
    if notify is not None:
        notify(sentence)


def _steps(matrix: Matrix, cells: Sequence[Cell]) -> dict[str, int]:
    """Optimiser steps per run of each variant, without decoding an image."""
    settings = {cell.variant: matrix.cell_settings(cell) for cell in cells}
    first = next(iter(settings.values()))
    training = first.source.open(first.split, first.classes, Console(quiet=True))
    return {name: variant.steps(_batches(variant, training)) for name, variant in settings.items()}


def _batches(settings: TrainSettings, training: DetectionDataset) -> int:
    """Training batches per epoch; images without annotations are added to them and do not change the number."""
    return len(training_loader(training, batch_size=settings.batch_size, seed=settings.seed, workers=0))


def _print_plan(matrix: Matrix, cells: Sequence[Cell], console: Console) -> None:
    costs: dict[str, RunCost] = {}
    for name in dict.fromkeys(cell.variant for cell in cells):
        console.print(f"measuring {matrix.variants[name].method} ..", highlight=False)
        costs[name] = estimate_run(matrix.cell_settings(Cell(0, name, 0)), console)
    rows = []
    for cell in cells:
        done = matrix.finished(cell)
        begun = not done and matrix.directory(cell).checkpoint.is_file()
        state = "done" if done else "begun" if begun else ""
        cost = costs[cell.variant]
        rows.append(PlannedCell(cell.number, cell.variant, cell.seed, state, cost.seconds, cost.disk_bytes))
    print_cells(rows, Console())
