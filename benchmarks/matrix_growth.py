"""Measure how the cost of a comparison's result and page grows with methods and seeds.

    python -m benchmarks.matrix_growth BASELINE DISTILLED [--sizes 1x2 3x3 15x5] [--out FILE]

BASELINE and DISTILLED are finished run directories of one comparison, repeated under other names and seeds: the
figures of the page mean nothing, but it has the runs, detections and pictures of METHODSxSEEDS runs. Each size is
measured in a new process: CPU seconds of intervals and page, its memory beyond the libraries, and the size of the page.
"""

import argparse
import multiprocessing
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time

import torch

from benchmarks.class_growth import peak_memory
from benchmarks.measure import publish
from defeat.report.matrix_page import write_matrix
from defeat.report.runs import RunSummary, read_run
from defeat.report.variants import compare_variants


def repeated(baseline: Path, distilled: Path, methods: int, seeds: int, folder: Path) -> dict[str, list[RunSummary]]:
    """Runs by the name of their variant; in the folder, each has a link to its run directory."""
    sources = {"none": baseline} | {f"method{number}+inherit": distilled for number in range(methods)}
    runs: dict[str, list[RunSummary]] = {}
    for name, source in sources.items():
        read = read_run(source)
        runs[name] = []
        for seed in range(seeds):
            link = folder / f"{name}-seed{seed}"
            link.symlink_to(source.resolve())
            settings = read.settings | {"seed": seed}
            runs[name].append(replace(read, name=link.name, folder=link, seed=seed, settings=settings))
    return runs


def _measure(pipe: Connection, baseline: Path, distilled: Path, methods: int, seeds: int) -> None:
    torch.set_num_threads(1)
    with TemporaryDirectory() as name:
        runs = repeated(baseline, distilled, methods, seeds, Path(name))
        before, start = peak_memory(), process_time()
        result = compare_variants(runs, {"AP": None})
        intervals = process_time() - start
        size = write_matrix(result, runs, None, Path(name) / "report.html", "defeat bench").stat().st_size
    pipe.send((intervals, process_time() - start - intervals, peak_memory() - before, size / 1e6))


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("baseline", type=Path)
    parser.add_argument("distilled", type=Path)
    parser.add_argument("--sizes", nargs="+", default=["1x2", "3x3", "15x5"], help="methods x seeds")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    given = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    names = ("intervals, CPU seconds", "page, CPU seconds", "memory, MiB", "page, MB")
    tables: dict[str, dict[str, float]] = {name: {} for name in names}
    for size in given.sizes:
        methods, seeds = map(int, size.split("x"))
        receiver, sender = context.Pipe()
        process = context.Process(target=_measure, args=(sender, given.baseline, given.distilled, methods, seeds))
        process.start()
        for name, value in zip(names, receiver.recv(), strict=True):
            tables[name][f"{methods} methods, {seeds} seeds"] = round(value, 1)
        process.join()
    images = read_run(given.baseline).images
    publish(tables, {"sizes": given.sizes, "images": images}, given.out)


if __name__ == "__main__":
    main()
