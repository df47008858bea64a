"""Run a target under atheris, save every finding and continue: see fuzz/README.md."""

import argparse
import hashlib
import os
import resource
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import atheris

from fuzz.mutations import mutate_folder, mutate_parts

HERE = Path(__file__).resolve().parent
INSTRUMENTED = {
    "voc": ["defeat.data", "defusedxml"],
    "coco": ["defeat.data", "json"],
    "yolo": ["defeat.data", "yaml"],
    "model": ["defeat.detector", "json"],
    "results": ["defeat.data.results", "defeat.data.files", "json"],
    "exported": ["defeat.detector.exported", "defeat.detector.description", "json"],
    "voc_folders": ["defeat.data"],
    "coco_folders": ["defeat.data"],
    "yolo_folders": ["defeat.data"],
    "labelme": ["defeat.data"],
    "via": ["defeat.data"],
    "cvat": ["defeat.data"],
}
# Mutators of targets that are not whole folders.
MUTATORS = dict.fromkeys(("voc", "coco", "model", "results", "exported"), mutate_parts)
BYTES_ONLY = ("yolo",)
CPU_SECONDS = 5
MEMORY = 2 << 30  # bytes in addition to those at the start


class TooSlow(BaseException):
    """An input that takes too long; a BaseException, so that the tested code does not catch it."""


def main() -> None:
    """Fuzz a target for the given time."""
    parser = argparse.ArgumentParser(prog="python -m fuzz")
    parser.add_argument("target", choices=INSTRUMENTED)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--findings", type=Path, default=Path(tempfile.gettempdir()) / "defeat-findings")
    options = parser.parse_args()
    name = options.target
    with atheris.instrument_imports(include=INSTRUMENTED[name], enable_loader_override=False):
        from fuzz.contract import CORPUS, run
        from fuzz.targets import TARGETS
    target = TARGETS[name]
    memory = Path("/dev/shm")  # noqa: S108 # in memory, if available
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-", dir=memory if memory.is_dir() else None))
    target.prepare(folder)
    findings = Findings(options.findings / name)
    signal.signal(signal.SIGVTALRM, _too_slow)
    _limit_memory()

    def test_one_input(data: bytes) -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
        try:
            run(target, folder, data)
        except (Exception, TooSlow) as error:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            findings.add(data, error)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)

    # A hang is detected by its CPU time; the timeout is for a hang within a library.
    limits = [f"-max_total_time={options.seconds}", "-max_len=4096", "-timeout=300", "-rss_limit_mb=6000"]
    dictionary = f"-dict={HERE / 'dictionaries' / name}.txt"
    files = [dictionary, f"-artifact_prefix={findings.folder}/", str(CORPUS / name)]
    arguments = [sys.argv[0], *limits, "-len_control=10", "-print_final_stats=1", *files]
    mutator = {} if name in BYTES_ONLY else {"custom_mutator": MUTATORS.get(name, mutate_folder)}
    atheris.Setup(arguments, test_one_input, internal_libfuzzer=True, **mutator)
    atheris.Fuzz()


class Findings:
    """Saves one input per kind of failure: type of the exception and position where it was raised."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, data: bytes, error: BaseException) -> None:
        """Write input and traceback, unless this kind of failure is known."""
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "defeat" in frame.filename]
        position = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "nowhere"
        detail = f"{error}" if isinstance(error, AssertionError) else ""
        kind = f"{type(error).__name__} at {position} {detail}"
        if kind in self.known:
            return
        self.known.add(kind)
        name = hashlib.sha256(kind.encode()).hexdigest()[:12]
        (self.folder / f"{name}.input").write_bytes(data)
        (self.folder / f"{name}.txt").write_text("".join(traceback.format_exception(error)), errors="replace")
        print(f"FINDING {kind}: {str(error)[:200]!a} ({name})", file=sys.stderr, flush=True)


def _too_slow(*_: Any) -> None:
    raise TooSlow(f"more than {CPU_SECONDS} s")


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
