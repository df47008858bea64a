"""Merges the folders of a comparison that several machines trained."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from defeat.benchmark.matrix import Cell, Matrix
from defeat.benchmark.report import report
from defeat.benchmark.teacher import TEACHER, TEACHER_DETECTIONS, read_teacher, require_one_teacher
from defeat.files import write_atomically
from defeat.report.variants import MatrixResult


def merge(folders: Sequence[str], out: str, console: Console | None = None) -> MatrixResult | None:
    """Merge the folders that several machines wrote, and report the result.

    Args:
        folders: folders of comparisons with the same settings.
        out: folder to write; finished cells are copied into it, without their checkpoints.
        console: console for messages; None for the standard error stream.

    Returns:
        The result; None if no cell of the baseline is finished.

    Raises:
        InputError: settings, data or teachers of the folders differ, or a folder contains no comparison.
    """
    console = console or Console(stderr=True)
    sources = [Matrix.read(Path(name)) for name in folders]
    require_one_teacher({str(source.folder): read_teacher(source.folder).get("fingerprint") for source in sources})
    merged = Matrix(Path(out), sources[0].settings, dict(sources[0].variants), sources[0].seeds)
    for source in sources:
        merged.join(source, other_machine=True)
    merged.write(other_machine=True)
    for source in sources:
        for cell in source.cells():
            if source.finished(cell) and not merged.finished(cell):
                _copy(cell, source, merged)
        for file in (TEACHER_DETECTIONS, TEACHER):
            if (source.folder / file).is_file() and not (merged.folder / file).exists():
                write_atomically(merged.folder / file, (source.folder / file).read_bytes())
    return report(merged.folder, console)


def _copy(cell: Cell, source: Matrix, merged: Matrix) -> None:
    """Copy a finished cell; its results come last, so that an interrupted copy counts as unfinished."""
    results = source.directory(cell).results
    shutil.copytree(
        source.folder / cell.folder,
        merged.folder / cell.folder,
        ignore=shutil.ignore_patterns("checkpoints", "tensorboard", ".*", results.name),
        dirs_exist_ok=True,
    )
    write_atomically(merged.directory(cell).results, results.read_bytes())
