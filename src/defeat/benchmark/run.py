"""Trains the cells of a matrix, joins what several machines wrote, and reports what they show."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT
from time import perf_counter
from typing import Any

from rich.console import Console

from defeat.assembly.assemble import evaluation_split
from defeat.assembly.automatic import Choices, as_begun, choose, is_chosen
from defeat.assembly.estimate import RunCost, estimate_run
from defeat.assembly.run import run
from defeat.assembly.settings import DistillSettings, TrainSettings
from defeat.benchmark.jobs import require_jobs, train_beside
from defeat.benchmark.matrix import METHODS, NONE, PLAN, Cell, Matrix, chosen, variants_of
from defeat.data import DetectionDataset, class_names, open_dataset
from defeat.data.loader import training_loader
from defeat.detector import load
from defeat.distillation import ClassMap, renamed_classes
from defeat.engine.checkpoint import is_writer
from defeat.engine.devices import training_device
from defeat.engine.fit import RunResult
from defeat.engine.guards import fingerprint
from defeat.engine.lock import LockedError
from defeat.engine.provenance import commit, machine, versions
from defeat.errors import InputError
from defeat.evaluation.detections import save_detections
from defeat.evaluation.splits import detect_split
from defeat.files import write_atomically
from defeat.report.matrix_page import write_matrix
from defeat.report.runs import RunSummary, read_run
from defeat.report.tables import PlannedCell, duration, print_cells, print_matrix
from defeat.report.variants import MatrixResult, compare_variants

UNFINISHED = 2  # as for bad input: one of the cells was refused
RESULT, TEACHER, TEACHER_DETECTIONS = "bench.json", "teacher.json", "teacher.safetensors"


@dataclass(frozen=True)
class BenchRun:
    """What became of a comparison.

    Attributes:
        result: what the finished cells show; None after a plan, when it was stopped, when the student alone is not
            finished yet, and in every process but the first.
        stopped: whether the user stopped it before its last cell.
        signal: how he did.
        unfinished: folders of the cells that were asked for and could not be trained, or that another process trains;
            empty in every process but the first of one run, which alone knows what it has written.
    """

    result: MatrixResult | None = None
    stopped: bool = False
    signal: int = SIGINT
    unfinished: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """What the command ends with: as `RunResult.exit_code`, and 2 where a cell that was asked for is unfinished."""
        if self.stopped and is_writer():
            return 128 + self.signal
        return UNFINISHED if self.unfinished else 0


def bench(
    *,
    methods: str = METHODS,
    seeds: int = 3,
    ablate: str | None = None,
    cells: str | None = None,
    plan: bool = False,
    jobs: int = 1,
    method_options: Mapping[str, Mapping[str, Any]] | None = None,
    console: Console | None = None,
    **options: Any,
) -> BenchRun:
    """Train a student with each method and each seed, and say what each method gained over the student alone.

    The folder `out` gets a run directory for each cell, `bench.json` and `report.html`. What is finished stays, what
    was stopped goes on from its checkpoint: repeat the command. Several machines can share the work with `cells`;
    several processes on one folder leave each other's cells alone. A cell that can't be trained is named, and the
    others go on.

    Args:
        methods: methods separated by commas; with +inherit behind its name (defeat+inherit), the student of a method
            begins with the teacher's neck and head; none is the baseline without a teacher, always part of the matrix.
        seeds: how many seeds: 0, 1, 2 ..
        ablate: instead of methods: regions, to compare what DeFeat's regions teach; balance, to compare fixed weights
            with those of --balance; or unlabelled, to see what the images of --unlabelled add.
        cells: numbers of the cells to train, as --plan counts them, e.g. 3-7 or 1,4; by default all that are asked for.
        plan: print cells, time left and disk space, and train nothing.
        jobs: how many cells to train at a time, each in a process of its own.
        method_options: settings of each method by its name.
        console: where to show progress.
        options: settings of all cells: those of `distill` but for method, seed, resume.

    Raises:
        InputError: an option, the data, the teacher or the folder is not valid.
    """
    console = console or Console(stderr=True)
    template, per_method = DistillSettings(**options), method_options or {}
    variants_of(methods, ablate, per_method, template.inherit)  # refused now, before any data are read
    choices = _choices(template, console)
    template = choices.applied(template)
    matrix = Matrix.of(template, variants_of(methods, ablate, per_method, template.inherit), seeds)
    asked = {(cell.variant, cell.seed) for cell in matrix.cells()}
    matrix.join_written()  # which may number the cells anew
    require_jobs(jobs, matrix)
    every = matrix.cells()
    if cells is None:
        wanted = [cell for cell in every if (cell.variant, cell.seed) in asked]
    else:
        wanted = [every[number - 1] for number in chosen(cells, len(every))]
    for cell in wanted:
        matrix.cell_settings(cell)  # refused now, not after hours of other cells
    if ablate == "unlabelled" and template.unlabelled is None:
        raise InputError("--ablate unlabelled needs images without annotations: name their folder with --unlabelled.")
    if (sentence := choices.describe()) and is_writer():
        console.print(f"auto: {sentence}", highlight=False, soft_wrap=True)
    if plan:
        _print_plan(matrix, wanted, console)
        return BenchRun()
    matrix.write()
    evaluate_teacher(matrix, console)
    signal = _train(matrix, wanted, jobs, console)
    if signal is not None:
        if is_writer():
            console.print("Repeat the command to go on.")
        return BenchRun(stopped=True, signal=signal)
    if not is_writer():
        return BenchRun()  # the first process may still be writing the last cell
    unfinished = tuple(cell.folder for cell in wanted if not matrix.finished(cell))
    return BenchRun(report(matrix.folder, console), unfinished=unfinished)


def _choices(template: DistillSettings, console: Console) -> Choices:
    """What is left to data and teacher, chosen once for all cells; a comparison that is there already has its values.

    Raises:
        InputError: the data or the teacher are not valid.
    """
    if is_chosen(template):
        return Choices()
    folder = Path(template.out)
    if (folder / PLAN).exists():
        return as_begun(template, Matrix.read(folder).settings)
    training = open_dataset(template.data, template.split, template.classes, template.on_bad_data, console)
    return choose(template, training, load(template.teacher, template.teacher_weights))


def evaluate_teacher(matrix: Matrix, console: Console) -> None:
    """Evaluate the teacher on the split that all cells are tested on, once.

    Raises:
        InputError: it is another one than the teacher that the folder began with.
    """
    path, shared = matrix.folder / TEACHER, matrix.settings
    teacher = load(shared["teacher"], shared["teacher_weights"])
    weights = fingerprint(teacher)
    if path.is_file():
        if read_teacher(matrix.folder).get("fingerprint") not in (None, weights):
            raise InputError(
                f"{matrix.folder} was begun with another teacher than {shared['teacher']} is now: its weights have "
                "changed. Give another --out."
            )
        return
    settings = DistillSettings(**shared, out=str(matrix.folder))
    teacher = teacher.to(training_device(settings))
    split = evaluation_split(settings)
    learned = tuple(settings.classes or class_names(settings.data, settings.split, settings.on_bad_data))
    classes = ClassMap(learned, renamed_classes(teacher.info, learned, settings.class_names).classes)
    how = (settings.batch_size, settings.workers, console, classes, settings.on_bad_data)
    found = detect_split(teacher, settings.data, split, *how)
    save_detections(matrix.folder / TEACHER_DETECTIONS, found)
    origin = {"teacher": shared["teacher"], "fingerprint": weights, "split": split}
    figures = found.compute().to_dict() | origin
    write_atomically(path, (json.dumps(figures, indent=2) + "\n").encode())


def read_teacher(folder: Path) -> dict[str, Any]:
    """The teacher's figures in the folder of a comparison.

    Raises:
        InputError: they are not there, or damaged.
    """
    path = folder / TEACHER
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        if isinstance(content["metrics"], dict):
            return content
    except OSError as error:
        raise InputError(f"{path} is missing: repeat `defeat bench` with that folder, which writes it.") from error
    except (ValueError, KeyError, TypeError):
        pass
    raise InputError(f"{path} is damaged; delete it and repeat `defeat bench` with that folder.")


def _train(matrix: Matrix, wanted: Sequence[Cell], jobs: int, console: Console) -> int | None:
    """Train the wanted cells that are not finished; the signal with which the user stopped them, if he did."""
    left = [cell for cell in wanted if not matrix.finished(cell)]
    if jobs > 1 and len(left) > 1:
        return train_beside(matrix, left, jobs, _steps(matrix, left), console)
    stopped = train_cells(matrix, left, console)
    return None if stopped is None else stopped.signal


def train_cells(
    matrix: Matrix, wanted: Sequence[Cell], console: Console, tell: Callable[[str], None] | None = None
) -> RunResult | None:
    """Train those cells that are not finished, and that no other process trains, one after the other.

    Args:
        matrix: written into its folder.
        wanted: the cells.
        console: where to show the progress of each run.
        tell: called with a sentence for each cell that has ended, where other processes train cells beside this one; by
            default it goes to the console.

    Returns:
        The run that the user stopped, if he did.
    """
    left = [cell for cell in wanted if not matrix.finished(cell)]
    began = perf_counter()
    for done, cell in enumerate(left):
        if matrix.finished(cell) and matrix.one_process_per_cell:  # by another process, in the meantime
            continue
        if is_writer():
            console.rule(f"cell {cell.number} of {len(matrix.cells())}: {cell.variant}, seed {cell.seed}", align="left")
        result = _train_cell(matrix, cell, console, tell)
        if result is None:
            continue
        if not result.finished:
            return result
        accuracy = result.evaluation.metrics["AP"] if result.evaluation else None
        sentence = f"{cell.folder}: AP {accuracy or 0:.1f}"
        if tell is None:
            each = (perf_counter() - began) / (done + 1)
            sentence += f"; {duration(each * (len(left) - done - 1))} left for the other cells"
        if result.writer:
            _say(sentence, console, tell)
    return None


def _train_cell(matrix: Matrix, cell: Cell, console: Console, tell: Callable[[str], None] | None) -> RunResult | None:
    """Train one cell; None where it can't be trained, or another process trains it."""
    try:
        return run(matrix.cell_settings(cell), console)
    except LockedError as error:
        if not matrix.one_process_per_cell:
            raise
        if tell is None:
            console.print(f"Left out: {error}", style="yellow", highlight=False, markup=False)
    except InputError as error:
        if not matrix.one_process_per_cell:
            raise
        _say(f"{cell.folder} failed: {error}", console, tell)
    return None


def _say(sentence: str, console: Console, tell: Callable[[str], None] | None) -> None:
    console.print(sentence, style="yellow" if "failed" in sentence else "", highlight=False, markup=False)
    if tell is not None:
        tell(sentence)


def _steps(matrix: Matrix, wanted: Sequence[Cell]) -> dict[str, int]:
    """Optimiser steps of a run of each variant, without decoding an image."""
    settings = {cell.variant: matrix.cell_settings(cell) for cell in wanted}
    first = next(iter(settings.values()))
    training = open_dataset(first.data, first.split, first.classes, first.on_bad_data, Console(quiet=True))
    return {name: one.steps(_batches(one, training)) for name, one in settings.items()}


def _batches(settings: TrainSettings, training: DetectionDataset) -> int:
    """Training batches of an epoch; images without annotations are mixed into them and add none."""
    return len(training_loader(training, batch_size=settings.batch_size, seed=settings.seed, workers=0))


def report(folder: Path, console: Console) -> MatrixResult | None:
    """Hold the finished cells of a folder against each other, print, and write `bench.json` and `report.html`.

    Raises:
        InputError: the folder holds no comparison, or one of its runs is damaged.
    """
    matrix = Matrix.read(folder)
    cells = matrix.cells()
    missing = [cell.folder for cell in cells if not matrix.finished(cell)]
    variants = {
        name: [read_run(folder / cell.folder) for cell in cells if cell.variant == name and matrix.finished(cell)]
        for name in matrix.variants
    }
    if not variants.get(NONE):
        console.print("The student alone is not finished yet: no gains to report.", highlight=False)
        return None
    teacher = read_teacher(folder)
    _require_one_teacher({str(folder): teacher.get("fingerprint")} | _teachers_of(variants))
    result = compare_variants(variants, teacher["metrics"], alone=NONE, missing=missing)
    trained = {run.folder.name: _origin_of(run) for runs in variants.values() for run in runs}
    origin = {"versions": versions(), "commit": commit(), "machine": machine(), "settings": matrix.settings}
    text = json.dumps(result.to_dict() | origin | {"cells": trained}, indent=2)
    write_atomically(folder / RESULT, (text + "\n").encode())
    print_matrix(result, Console())
    path = write_matrix(result, variants, _teacher_run(matrix), folder / "report.html", matrix.command())
    Console().print(f"\nReport: {path}", highlight=False, soft_wrap=True)
    return result


def _teachers_of(variants: Mapping[str, Sequence[RunSummary]]) -> dict[str, str]:
    """Fingerprint of the teacher of each distilled run."""
    runs = [run for some in variants.values() for run in some if run.command == "distill"]
    return {str(run.folder): run.teacher_fingerprint for run in runs}


def _require_one_teacher(fingerprints: Mapping[str, str | None]) -> None:
    """Raise InputError where the students of two folders had teachers with different weights, if they recorded it."""
    known = {folder: one for folder, one in fingerprints.items() if one}
    first = next(iter(known), "")
    for folder, one in known.items():
        if one != known[first]:
            raise InputError(
                f"{first} and {folder} belong to teachers with different weights, so their gains can't be compared."
            )


def _origin_of(run: RunSummary) -> dict[str, Any]:
    """Where a cell comes from: it may be another machine and another commit than those of the report."""
    return {
        "method": run.method or NONE,
        "seed": run.seed,
        "AP": run.metrics.get("AP"),
        "steps": run.steps,
        "train_seconds": run.train_seconds,
        "wall_seconds": run.wall_seconds,
        "machine": run.machine,
        "versions": run.versions,
        "commit": run.commit,
    }


def _teacher_run(matrix: Matrix) -> RunSummary | None:
    """The teacher's run; None for a torchvision model, or where the run is no longer there."""
    try:
        return read_run(matrix.settings["teacher"])
    except InputError:
        return None


def merge(folders: Sequence[str], out: str, console: Console | None = None) -> MatrixResult | None:
    """Join what several machines wrote into one folder, and report it.

    Args:
        folders: folders of comparisons with the same settings.
        out: the folder to write; finished cells are copied into it, without their checkpoints.
        console: where to show progress.

    Raises:
        InputError: the settings, the data or the teachers of two folders differ, or a folder holds no comparison.
    """
    console = console or Console(stderr=True)
    sources = [Matrix.read(Path(name)) for name in folders]
    _require_one_teacher({str(one.folder): read_teacher(one.folder).get("fingerprint") for one in sources})
    joined = Matrix(Path(out), sources[0].settings, dict(sources[0].variants), sources[0].seeds)
    for source in sources:
        joined.join(source, elsewhere=True)
    joined.write(elsewhere=True)
    for source in sources:
        for cell in source.cells():
            if source.finished(cell) and not joined.finished(cell):
                results = source.directory(cell).results
                shutil.copytree(
                    source.folder / cell.folder,
                    joined.folder / cell.folder,
                    ignore=shutil.ignore_patterns("checkpoints", "tensorboard", ".*", results.name),
                    dirs_exist_ok=True,
                )
                # The file that makes it a finished run comes last: a copy that is cut short is made again.
                write_atomically(joined.directory(cell).results, results.read_bytes())
        for file in (TEACHER_DETECTIONS, TEACHER):
            if (source.folder / file).is_file() and not (joined.folder / file).exists():
                write_atomically(joined.folder / file, (source.folder / file).read_bytes())
    return report(joined.folder, console)


def _print_plan(matrix: Matrix, wanted: Sequence[Cell], console: Console) -> None:
    costs: dict[str, RunCost] = {}
    for name in dict.fromkeys(cell.variant for cell in wanted):
        variant = matrix.variants[name]
        console.print(f"measuring {variant.method} ..", highlight=False)
        costs[name] = estimate_run(matrix.cell_settings(Cell(0, name, 0)), console)
    rows = []
    for cell in wanted:
        done = matrix.finished(cell)
        half = not done and matrix.directory(cell).checkpoint.is_file()
        state = "done" if done else "begun" if half else ""
        cost = costs[cell.variant]
        rows.append(PlannedCell(cell.number, cell.variant, cell.seed, state, cost.seconds, cost.disk_bytes))
    print_cells(rows, Console())
