"""The report of a comparison: `bench.json`, `report.html` and the tables in the terminal."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from defeat.benchmark.matrix import NONE, Matrix
from defeat.benchmark.teacher import read_teacher, require_one_teacher, teacher_run
from defeat.engine.provenance import commit, machine, versions
from defeat.files import write_atomically
from defeat.report.matrix_page import write_matrix
from defeat.report.runs import RunSummary, read_run
from defeat.report.tables import print_matrix
from defeat.report.variants import MatrixResult, compare_variants

RESULT = "bench.json"


def report(folder: Path, console: Console) -> MatrixResult | None:
    """Compare the finished cells of a folder, print the result, and write `bench.json` and `report.html`.

    Returns:
        The result; None as long as no cell of the baseline is finished.

    Raises:
        InputError: the folder contains no comparison, or one of its runs is damaged.
    """
    matrix = Matrix.read(folder)
    cells = matrix.cells()
    missing = [cell.folder for cell in cells if not matrix.finished(cell)]
    variants = {
        name: [read_run(folder / cell.folder) for cell in cells if cell.variant == name and matrix.finished(cell)]
        for name in matrix.variants
    }
    if not variants.get(NONE):
        console.print("The baseline is not finished yet: no gains to report.", highlight=False)
        return None
    teacher = read_teacher(folder)
    require_one_teacher({str(folder): teacher.get("fingerprint")} | _teachers_of(variants))
    result = compare_variants(variants, teacher["metrics"], baseline=NONE, missing=missing)
    runs = {run.folder.name: _origin_of(run) for variant in variants.values() for run in variant}
    origin = {"versions": versions(), "commit": commit(), "machine": machine(), "settings": matrix.settings}
    text = json.dumps(result.to_dict() | origin | {"cells": runs}, indent=2)
    write_atomically(folder / RESULT, (text + "\n").encode())
    print_matrix(result, Console())
    path = write_matrix(result, variants, teacher_run(matrix), folder / "report.html", matrix.command())
    Console().print(f"\nReport: {path}", highlight=False, soft_wrap=True)
    return result


def _teachers_of(variants: Mapping[str, Sequence[RunSummary]]) -> dict[str, str]:
    """Fingerprint of the teacher of each distilled run, by run directory."""
    runs = [run for variant in variants.values() for run in variant if run.command == "distill"]
    return {str(run.folder): run.teacher_fingerprint for run in runs}


def _origin_of(run: RunSummary) -> dict[str, Any]:
    """Where a cell was trained, which may be another machine and commit than those of the report."""
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
