"""Every option of every command, with values that it can't have: found from the typed signatures, not listed."""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from defeat.cli import bench_options, run_options
from defeat.demo import demo
from defeat.detector import FAMILIES
from defeat.distillation import METHODS
from defeat.inference.evaluate import evaluate
from defeat.inference.predict import predict
from defeat.options import Option, options_of
from tests.detector.tiny import BACKBONE

HUGE = "9" * 30
# What is given besides the option in question.
SMALL = ["--backbone", BACKBONE, "--weights", "none", "--size", "64", "--neck-channels", "16", "--accelerator", "cpu"]
TRAIN = ["--data", "demo", "--out", "never-written", *SMALL]
DISTILL = [*TRAIN, "--teacher", "teacher"]
OTHERS: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "evaluate": (evaluate, ["teacher", "--data", "demo", "--split", "test", "--device", "cpu"]),
    "predict": (predict, ["teacher", "picture.png", "--out", "drawn", "--device", "cpu"]),
    "demo": (demo, ["--out", "never-written"]),
}
NO_SETTINGS = {"expected", "merge"}


@dataclass(frozen=True)
class Case:
    """A command with an option that has a value which deserves a thought."""

    command: str
    words: tuple[str, ...]
    flag: str
    what: str
    value: str

    @property
    def name(self) -> str:
        """The option without its dashes and group."""
        return self.flag.rpartition(".")[2].strip("-")

    def __str__(self) -> str:
        return f"{self.command} {self.flag} {self.what}"


def values(kind: Any) -> dict[str, str]:
    """Texts that a setting of this type can't have, or that deserve a thought, by what they are."""
    inner = set(get_args(kind)) or {kind}
    if bool in inner:
        return {"wrong type": "maybe", "negative": "-1", "huge": HUGE}
    if float in inner:
        return {"wrong type": "word", "negative": "-1", "zero": "0", "huge": "1e30", "NaN": "nan", "infinite": "inf"}
    if int in inner:
        return {"wrong type": "word", "fraction": "0.5", "negative": "-1", "zero": "0", "huge": HUGE}
    if get_origin(kind) is Literal:
        return {"unknown": "word", "negative": "-1", "empty": ""}
    if any(get_origin(one) in (list, tuple) for one in (kind, *inner)):
        return {"wrong type": "{a: 1}", "negative": "[-1]", "huge": f"[{HUGE}]", "nested": "[[1]]"}
    return {"empty": ""}


def options(found: Iterable[Option]) -> dict[str, Any]:
    """Type of each setting by its flag."""
    return {one.flag: one.kind for one in found if not one.positional and one.name not in NO_SETTINGS}


def cases() -> Iterator[Case]:
    """Every option of every command, once, with each of its values."""
    seen: set[str] = set()

    def of(command: str, words: list[str], found: Iterable[Option], known: Collection[str]) -> Iterator[Case]:
        for flag, kind in options(found).items():
            if flag not in known:
                seen.add(flag)
                for what, value in values(kind).items():
                    yield Case(command, tuple(words), flag, what, value)

    for family in FAMILIES:
        words = [*TRAIN, "--detector", family]
        yield from of("train", words, run_options(words, "train", {}), set(seen))
    for method in METHODS:
        words = [*DISTILL, "--method", method]
        known = {flag for flag in seen if not flag.startswith("--method.")}
        yield from of("distill", words, run_options(words, "distill", {}), known)
    found = bench_options(DISTILL, {})
    own = {flag for flag in options(found) if "." not in flag} - seen | {"--out"}
    yield from of("bench", [*DISTILL, "--plan"], found, options(found).keys() - own)
    for command, (function, words) in OTHERS.items():
        yield from of(command, words, options_of(function, skip={"console"}), ())
