"""Run a target under atheris, save every finding and continue: see fuzz/README.md."""

import argparse
import hashlib
import json
import os
import resource
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from random import Random
from typing import Any

import atheris

HERE = Path(__file__).resolve().parent
INSTRUMENTED = {
    "voc": ["defeat.data", "defusedxml"],
    "coco": ["defeat.data", "json"],
    "yolo": ["defeat.data", "yaml"],
    "model": ["defeat.detector", "json"],
}
STRUCTURED = ("coco", "model")  # inputs that start with JSON
CPU_SECONDS = 5
MEMORY = 2 << 30  # bytes in addition to those at the start


class TooSlow(BaseException):
    """An input that takes too long; a BaseException, so that the tested code does not catch it."""


def main(name: str) -> None:
    """Fuzz a target for the given time."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--findings", type=Path, default=Path(tempfile.gettempdir()) / "defeat-findings")
    options = parser.parse_args()
    with atheris.instrument_imports(include=INSTRUMENTED[name], enable_loader_override=False):
        from fuzz.targets import CORPUS, TARGETS, run
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
    files = [f"-dict={HERE / 'dictionaries' / name}.txt", f"-artifact_prefix={findings.folder}/", str(CORPUS / name)]
    arguments = [sys.argv[0], *limits, "-len_control=10", "-print_final_stats=1", *files]
    mutator = {"custom_mutator": mutate_json} if name in STRUCTURED else {}
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


ODD: list[Any] = [None, True, False, -1, 0, 1, 2, 1.5, 1e308, float("nan"), float("inf"), 10**9, 10**18, 10**400]
ODD += ["", "x", "x" * 300, "..", "../a", "/", "a\0b", "\ud800", "a\nb", "cat", "a.png", [], {}, [[]], [0, 0, 9, 9]]


def mutate_json(data: bytes, size: int, seed: int) -> bytes:
    """Change one value of a JSON document, or bytes if the input is not JSON."""
    random = Random(seed)  # noqa: S311
    head, separator, rest = data.partition(b"\n=====\n")
    if rest and random.random() < 0.5:
        return (head + separator + _changed(rest, size, random))[:size]
    return (_changed(head, size, random) + separator + rest)[:size]


def _changed(data: bytes, size: int, random: Random) -> bytes:
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        tree = None
    if not isinstance(tree, dict | list) or random.random() < 0.3:
        return bytes(atheris.Mutate(data, size))
    try:
        for _ in range(random.choice((1, 1, 1, 2, 4))):
            _change_one(tree, random)
        return json.dumps(tree).encode()
    except RecursionError:
        return bytes(atheris.Mutate(data, size))


def _change_one(tree: Any, random: Random) -> None:
    positions = list(_positions(tree))
    if not positions:
        return
    container, key = random.choice(positions)
    action = random.randrange(5)
    if action == 0 and isinstance(container, dict):
        del container[key]
    elif action == 1 and isinstance(container, list):
        container.insert(key, container[key])
    elif action == 2:
        other, other_key = random.choice(positions)
        container[key] = json.loads(json.dumps(other[other_key]))
    elif action == 3 and isinstance(container, dict):
        _, other_key = random.choice(positions)
        container[str(other_key)] = json.loads(json.dumps(random.choice(ODD)))
    else:
        container[key] = json.loads(json.dumps(random.choice(ODD)))


def _positions(tree: Any) -> Any:
    """Container and key of every value in a tree."""
    keys: Any = tree.keys() if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from _positions(tree[key])
