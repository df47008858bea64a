"""All options of all commands with invalid values, derived from the typed signatures."""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from defeat.command_options import all_options
from defeat.demo import demo
from defeat.detector import FAMILIES
from defeat.distillation import METHODS
from defeat.inference.evaluate import evaluate
from defeat.inference.predict import predict
from defeat.options import Option, options_of
from tests.detector.tiny import BACKBONE

HUGE = "9" * 30
# Further arguments.
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
    """A command with an invalid or unusual value of an option."""

    command: str
    arguments: tuple[str, ...]
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
    """Invalid or unusual values of a setting of this type, by kind."""
    inner = set(get_args(kind)) or {kind}
    if bool in inner:
        return {"wrong type": "maybe", "negative": "-1", "huge": HUGE}
    if float in inner:
        return {"wrong type": "word", "negative": "-1", "zero": "0", "huge": "1e30", "NaN": "nan", "infinite": "inf"}
    if int in inner:
        return {"wrong type": "word", "fraction": "0.5", "negative": "-1", "zero": "0", "huge": HUGE}
    if get_origin(kind) is Literal:
        return {"unknown": "word", "negative": "-1", "empty": ""}
    if any(get_origin(part) in (list, tuple) for part in (kind, *inner)):
        return {"wrong type": "{a: 1}", "negative": "[-1]", "huge": f"[{HUGE}]", "nested": "[[1]]"}
    return {"empty": ""}


def options(all_options: Iterable[Option]) -> dict[str, Any]:
    """Type of each setting by its flag."""
    settings = [option for option in all_options if not option.positional and option.name not in NO_SETTINGS]
    return {option.flag: option.kind for option in settings}


def cases() -> Iterator[Case]:
    """Every option of every command once, with each of its values."""
    seen: set[str] = set()

    def of_command(
        command: str, arguments: list[str], command_options: Iterable[Option], known: Collection[str]
    ) -> Iterator[Case]:
        for flag, kind in options(command_options).items():
            if flag not in known:
                seen.add(flag)
                for what, value in values(kind).items():
                    yield Case(command, tuple(arguments), flag, what, value)

    for family in FAMILIES:
        arguments = [*TRAIN, "--detector", family]
        yield from of_command("train", arguments, all_options("train", arguments), set(seen))
    for method in METHODS:
        arguments = [*DISTILL, "--method", method]
        known = {flag for flag in seen if not flag.startswith("--method.")}
        yield from of_command("distill", arguments, all_options("distill", arguments), known)
    command_options = all_options("bench", DISTILL)
    new = {flag for flag in options(command_options) if "." not in flag} - seen | {"--out"}
    yield from of_command("bench", [*DISTILL, "--plan"], command_options, options(command_options).keys() - new)
    for command, (function, arguments) in OTHERS.items():
        yield from of_command(command, arguments, options_of(function, skip={"console"}), ())
