"""Minimise the corpus of a target, keeping only inputs that add coverage: `python -m fuzz.minimise voc`."""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from fuzz.contract import CORPUS, run
from fuzz.targets import TARGETS

Step = tuple[str, int, int]


def main(name: str) -> None:
    """Delete inputs that add no line transition to those of smaller inputs; seeds are kept."""
    target, known, count = TARGETS[name], set[Step](), 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        target.prepare(folder)
        # Seeds first, then the smallest.
        inputs = sorted((CORPUS / name).iterdir(), key=lambda path: (not _is_seed(path), path.stat().st_size))
        for path in inputs:
            steps: set[Step] = set()
            with _steps(steps):
                run(target, folder, path.read_bytes())
            if steps <= known and not _is_seed(path):
                path.unlink()
            else:
                count += 1
            known |= steps
    print(f"{name}: kept {count} of {len(inputs)} inputs, {len(known)} line transitions")


def _is_seed(path: Path) -> bool:
    return path.name.startswith("seed_")


@contextmanager
def _steps(steps: set[Step]) -> Iterator[None]:
    """Record each transition from a line to the next within a function of the project."""

    def enter(frame: FrameType, _event: str, _argument: Any) -> Any:
        file = frame.f_code.co_filename
        if "/defeat/" not in file and "/yaml/" not in file:
            return None
        before = [0]

        def step(frame: FrameType, event: str, _argument: Any) -> Any:
            if event == "line":
                steps.add((file, before[0], frame.f_lineno))
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
