"""Trains cells in parallel: processes that share the folder of a comparison, with one progress bar."""

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from defeat.benchmark.matrix import Cell, Matrix
from defeat.engine.fit import RunResult
from defeat.errors import InputError

INTERVAL = 0.5  # seconds between updates of the progress bar
MAX_JOBS = 64


def require_jobs(jobs: int, matrix: Matrix) -> None:
    """Check the number of processes.

    Raises:
        InputError: the number is out of range, or each cell is already trained by several processes.
    """
    if not 1 <= jobs <= MAX_JOBS:
        raise InputError(f"--jobs must be from 1 to {MAX_JOBS}, not {jobs}.")
    if jobs > 1 and not matrix.one_process_per_cell:
        raise InputError("--jobs trains cells in parallel, each on one device: leave out --devices and --nodes.")


def train_in_parallel(
    matrix: Matrix, cells: Sequence[Cell], jobs: int, steps: Mapping[str, int], console: Console
) -> int | None:
    """Train cells in several processes.

    Each process trains the next cell that no other process trains, and logs to `job-N.log` in the folder. The CPU cores
    are divided among the processes, unless `OMP_NUM_THREADS` is set.

    Args:
        matrix: the matrix, already written into its folder.
        cells: the cells to train.
        jobs: number of processes.
        steps: steps per run by the name of the variant, for the progress bar.
        console: console for progress.

    Returns:
        The signal with which the user stopped the processes; None if all of them finished.
    """
    context = multiprocessing.get_context("spawn")
    messages: Any = context.SimpleQueue()
    numbers = [cell.number for cell in cells]
    children = [
        context.Process(target=_work, args=(str(matrix.folder), numbers, job, messages))
        for job in range(1, min(jobs, len(cells)) + 1)
    ]
    with _threads(max(1, (os.cpu_count() or 1) // len(children))):
        for child in children:
            child.start()

    def running(console: Console) -> bool:
        child = next((child for child in children if child.is_alive()), children[0])
        child.join(INTERVAL)
        _show(messages, console)
        return any(child.is_alive() for child in children)

    try:
        watch(matrix, cells, steps, running, console)
    except KeyboardInterrupt:
        console.print("Stopping: each run finishes its step and writes a checkpoint ..", highlight=False)
    for child in children:
        _join(child)
    _show(messages, console)
    codes = [child.exitcode or 0 for child in children]
    return next((code - 128 for code in codes if code > 128), None)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Set the number of threads of the processes that are started, unless the user has set `OMP_NUM_THREADS`."""
    if "OMP_NUM_THREADS" in os.environ:
        yield
        return
    os.environ["OMP_NUM_THREADS"] = str(count)
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]


def _join(child: SpawnProcess) -> None:
    """Wait for a process; Ctrl-C reaches the process as well, so it does not end the wait."""
    while True:
        try:
            child.join()
            return
        except KeyboardInterrupt:
            continue


def train_in_process(folder: str, numbers: Sequence[int], log: str, notify: Callable[[str], None]) -> RunResult | None:
    """Train cells in a process of their own, one after the other.

    Args:
        folder: folder of the comparison.
        numbers: numbers of the cells.
        log: name of the file in the folder that gets the output.
        notify: called with a sentence per finished or failed cell.

    Returns:
        The run that the user stopped, if any.
    """
    from defeat.benchmark.run import train_cells

    matrix = Matrix.read(Path(folder))
    cells = [cell for cell in matrix.cells() if cell.number in set(numbers)]
    with (Path(folder) / log).open("a", encoding="utf-8") as file:
        return train_cells(matrix, cells, Console(file=file, width=120), notify)


def _work(folder: str, numbers: Sequence[int], job: int, messages: Any) -> None:
    """Train cells in a process until none is left."""
    stopped = train_in_process(folder, numbers, f"job-{job}.log", messages.put)
    if stopped is not None:
        raise SystemExit(stopped.exit_code)


def watch(
    matrix: Matrix,
    cells: Sequence[Cell],
    steps: Mapping[str, int],
    running: Callable[[Console], bool],
    console: Console,
) -> None:
    """Show progress until all processes that train cells have ended.

    Args:
        matrix: the matrix.
        cells: the cells that they train.
        steps: steps per run by the name of the variant.
        running: waits for a moment, prints messages of the processes, and returns whether any of them still runs.
        console: console for progress.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    total = sum(steps[cell.variant] for cell in cells)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        initial = sum(_steps_done(matrix, cell, steps) for cell in cells)
        task = progress.add_task(f"{len(cells)} runs", total=total - initial, state="")
        while running(progress.console):
            done = sum(_steps_done(matrix, cell, steps) for cell in cells)
            finished = sum(matrix.finished(cell) for cell in cells)
            progress.update(task, completed=done - initial, state=f"{finished} of {len(cells)} runs finished")


def _show(messages: Any, console: Console) -> None:
    while not messages.empty():
        console.print(messages.get(), highlight=False, markup=False)


def _steps_done(matrix: Matrix, cell: Cell, steps: Mapping[str, int]) -> int:
    """Steps in the log of a cell; the last line of a log that is being written may be incomplete."""
    if matrix.finished(cell):
        return steps[cell.variant]
    try:
        lines = matrix.directory(cell).metrics.read_bytes().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return min(int(json.loads(line)["step"]) + 1, steps[cell.variant])
        except (ValueError, KeyError, TypeError):
            continue
    return 0
