"""Trains cells on a Ray cluster: one task per cell. A cell whose worker or node is lost continues on another one.

All nodes see the folder of the comparison at the same path, so that a cell's checkpoint is found wherever it continues.
"""

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from signal import SIGINT
from typing import Any

from rich.console import Console

from defeat.benchmark.jobs import INTERVAL, train_in_process, watch
from defeat.benchmark.matrix import Cell, Matrix
from defeat.engine.lock import RunLock
from defeat.errors import InputError, first_line, missing_package

ATTEMPTS = 5  # to train a cell whose worker is lost
ANSWER = 10.0  # seconds within which a cluster must answer
SILENT = {"log_to_driver": False, "logging_level": "ERROR"}


def require_cluster(address: str, jobs: int, matrix: Matrix) -> None:
    """Check that cells can be trained on a cluster.

    Raises:
        InputError: Ray is not installed, or an option contradicts it.
    """
    if not address.strip():
        raise InputError("--ray needs the address of a cluster, auto or local.")
    if jobs > 1:
        raise InputError("--ray trains as many cells at a time as the cluster has room for: leave out --jobs.")
    if not matrix.one_process_per_cell:
        raise InputError("--ray trains each cell on one device: leave out --devices and --nodes.")
    _ray()


def train_on_cluster(
    matrix: Matrix, cells: Sequence[Cell], address: str, steps: Mapping[str, int], console: Console
) -> int | None:
    """Train cells on the nodes of a Ray cluster.

    A task has a GPU, if the cluster has any, and a CPU core for itself and each worker that loads images. Each process
    logs to `ray-HOST-PID.log` in the folder.

    Args:
        matrix: the matrix, already written into its folder.
        cells: the cells to train.
        address: of the cluster; `auto` for the one of this machine, `local` to start one.
        steps: steps per run by the name of the variant, for the progress bar.
        console: console for progress.

    Returns:
        The signal with which the user stopped the tasks; None if all of them ended.

    Raises:
        InputError: there is no such cluster.
    """
    with _connected(address):
        tasks = _Tasks(matrix, _resources(matrix.settings["workers"], matrix.settings["accelerator"]))
        for cell in cells:
            tasks.start(cell)
        try:
            watch(matrix, cells, steps, tasks.running, console)
        except KeyboardInterrupt:
            console.print("Stopping: each run finishes its step and writes a checkpoint ..", highlight=False)
            tasks.cancel()
            return SIGINT
        return tasks.signal


class _Tasks:
    """The tasks that have not ended.

    Attributes:
        signal: the signal that stopped a run on its node, if any.
    """

    def __init__(self, matrix: Matrix, resources: dict[str, float]) -> None:
        self.ray, self.matrix = _ray(), matrix
        self.train = self.ray.remote(max_retries=0, **resources)(train_cell)
        self.cells: dict[Any, tuple[Cell, int]] = {}  # by task, with the number of the attempt
        self.signal: int | None = None

    def start(self, cell: Cell, attempt: int = 1) -> None:
        """Start the task of a cell; it waits until a node has room for it."""
        self.cells[self.train.remote(str(self.matrix.folder), cell.number)] = (cell, attempt)

    def running(self, console: Console) -> bool:
        """Wait for a moment, and process the tasks that ended; returns whether any is left."""
        ended, _ = self.ray.wait(list(self.cells), num_returns=len(self.cells), timeout=INTERVAL)
        for task in ended:
            cell, attempt = self.cells.pop(task)
            for message in self._result(task, cell, attempt):
                console.print(message, highlight=False, markup=False)
        return bool(self.cells)

    def _result(self, task: Any, cell: Cell, attempt: int) -> list[str]:
        """Messages of a task that ended; where its worker was lost, the cell is started again."""
        try:
            messages, signal = self.ray.get(task)
        except self.ray.exceptions.RayTaskError as error:
            return [f"{cell.folder} failed: {error.cause!r}"]
        except self.ray.exceptions.RayError as error:
            reason = f"{cell.folder}: its worker was lost ({type(error).__name__})"
            if attempt == ATTEMPTS:
                return [f"{reason} {ATTEMPTS} times."]
            _remove_lock_of_lost_worker(self.matrix, cell)
            self.start(cell, attempt + 1)
            return [f"{reason}; it continues on another one."]
        self.signal = self.signal or signal
        return list(messages)

    def cancel(self) -> None:
        """Stop all tasks, and wait until each has written its checkpoint."""
        for task in self.cells:
            self.ray.cancel(task)
        while self.cells:
            ended, _ = self.ray.wait(list(self.cells), timeout=INTERVAL)
            for task in ended:
                del self.cells[task]


def train_cell(folder: str, number: int) -> tuple[list[str], int | None]:
    """Train a cell in a worker of the cluster.

    Args:
        folder: folder of the comparison.
        number: number of the cell.

    Returns:
        Sentences on its result, and the signal that stopped it, if any.
    """
    messages: list[str] = []
    stopped = train_in_process(folder, [number], _log(socket.gethostname(), os.getpid()), messages.append)
    return messages, None if stopped is None else stopped.signal


def _log(host: str, pid: int) -> str:
    return f"ray-{host}-{pid}.log"


def _remove_lock_of_lost_worker(matrix: Matrix, cell: Cell) -> None:
    """Remove the lock of a cell's run directory if a worker of this comparison left it.

    Another host could not check whether that worker still runs; the cluster says that it does not.
    """
    lock = RunLock(matrix.directory(cell).folder)
    if (owner := lock.owner()) is not None and (matrix.folder / _log(*owner)).exists():
        lock.path.unlink(missing_ok=True)


def _resources(workers: int, accelerator: str) -> dict[str, float]:
    """What a task needs, at most what the largest node has."""
    nodes = [node["Resources"] for node in _ray().nodes() if node["Alive"]]
    gpus = accelerator != "cpu" and any(node.get("GPU", 0) >= 1 for node in nodes)
    rooms = [node.get("CPU", 0) for node in nodes if not gpus or node.get("GPU", 0) >= 1]
    return {"num_cpus": min(1 + workers, max(rooms, default=1)), "num_gpus": int(gpus)}


@contextmanager
def _connected(address: str) -> Iterator[None]:
    """Connect to a cluster, unless the process is connected already."""
    ray = _ray()
    if ray.is_initialized():
        yield
        return
    if address == "local":  # a cluster that nobody else sees reports its use to nobody
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        _require_answer(address)
        ray.init(address, **SILENT, **({"include_dashboard": False} if address == "local" else {}))
    except (ValueError, RuntimeError, OSError, OverflowError) as error:
        reason = first_line(error)
        raise InputError(
            f"--ray {address}: there is no such cluster ({reason}); `ray start --head` starts one, and --ray local one "
            "for this command."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Raise OSError if nothing answers at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), ANSWER).close()


def _ray() -> Any:
    """The package Ray.

    Raises:
        InputError: it is not installed.
    """
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise missing_package("--ray", "ray", "ray") from error
    return ray
