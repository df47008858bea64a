"""Keeps of a target's corpus the inputs that reach lines that smaller ones do not: `python -m fuzz.minimise voc`."""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from fuzz.targets import CORPUS, TARGETS, run

Step = tuple[str, int, int]


def main(name: str) -> None:
    """Visit the inputs from the smallest on, and delete those that reach no step between two lines of their own."""
    target, known, kept = TARGETS[name], set[Step](), 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        target.prepare(folder)
        # Seeds first, then the smallest.
        inputs = sorted((CORPUS / name).iterdir(), key=lambda one: (not _is_seed(one), one.stat().st_size))
        for path in inputs:
            found: set[Step] = set()
            with _steps(found):
                run(target, folder, path.read_bytes())
            if found <= known and not _is_seed(path):
                path.unlink()
            else:
                kept += 1
            known |= found
    print(f"{name}: kept {kept} of {len(inputs)} inputs, {len(known)} steps between lines")


def _is_seed(path: Path) -> bool:
    return path.name.startswith("seed_")


@contextmanager
def _steps(found: set[Step]) -> Iterator[None]:
    """Note each step from a line to the next within a function of the project."""

    def enter(frame: FrameType, _event: str, _argument: Any) -> Any:
        file = frame.f_code.co_filename
        if "/defeat/" not in file and "/yaml/" not in file:
            return None
        before = [0]

        def step(frame: FrameType, event: str, _argument: Any) -> Any:
            if event == "line":
                found.add((file, before[0], frame.f_lineno))
                before[0] = frame.f_lineno
            return step

        return step

    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(None)


if __name__ == "__main__":
    main(sys.argv[1])
