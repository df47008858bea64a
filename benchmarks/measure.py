"""Shared by the benchmarks: interleaved timings, peak memory in a separate process, and output of results."""

import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.profiler import ProfilerActivity, profile

from defeat.engine.provenance import commit, machine, versions

MakeStep = Callable[..., Callable[[], None]]
Times = npt.NDArray[np.float64]


def interleaved(steps: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median time per step in milliseconds; steps are interleaved, and a first round is a warm-up."""
    return {name: float(np.median(times)) for name, times in rounds(steps, repeats).items()}


def rounds(steps: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Times]:
    """Time per step and round in milliseconds, after a warm-up round.

    The order is random in each round, so that no step always follows the same one and finds its data in caches.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    order = np.random.default_rng(0)
    for repeat in range(repeats + 1):
        for name in order.permutation(list(steps)):
            start = perf_counter()
            steps[name]()
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()
            if repeat:
                seconds[name].append(perf_counter() - start)
    return {name: 1000 * np.asarray(values) for name, values in seconds.items()}


def peak_memory(make_step: MakeStep, *arguments: Any) -> float:
    """Peak memory of tensors in MiB during setup and three steps, in a new process.

    It is reproducible, whereas the resident memory of a process differs by a tenth between equal runs.
    """
    os.environ["KINETO_LOG_LEVEL"] = "6"  # the profiler otherwise reports a missing GPU as an error
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe()
    process = context.Process(target=_send_peak, args=(sender, make_step, arguments))
    process.start()
    value = float(receiver.recv())
    process.join()
    return value


def publish(tables: dict[str, dict[str, float]], work: dict[str, Any], out: Path | None) -> None:
    """Print tables of figures by name, and write them with the workload, machine, versions and commit."""
    for title, table in tables.items():
        print(title.replace("_", " "))
        for name, value in table.items():
            print(f"  {name:58}{value:>10}")
    if out:
        result = {"work": work, **tables, "machine": machine(), "versions": versions(), "commit": commit()}
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _send_peak(pipe: Connection, make_step: MakeStep, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        step = make_step(*arguments)
        for _ in range(3):
            step()
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0:
        pipe.send(torch.cuda.max_memory_allocated() / 2**20)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        watched.export_chrome_trace(str(path))
        events = json.loads(path.read_bytes())["traceEvents"]
    totals = [event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]"]
    pipe.send(max(totals) / 2**20)
