"""Every option of every command, with values that it can't have: found from the typed signatures, not listed."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from defeat.cli import bench_options, run_settings
from defeat.demo import demo
from defeat.detector import FAMILIES
from defeat.distillation import METHODS
from defeat.inference.evaluate import evaluate
from defeat.inference.predict import predict
from defeat.options import command_parser
from tests.detector.tiny import BACKBONE

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

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
NO_SETTINGS = {"help", "config", "command", "expected", "print_config", "detector_options", "method_options", "merge"}


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


def options(parser: "ArgumentParser") -> dict[str, Any]:
    """Type of each setting of a parser by its name."""
    found = {}
    for action in parser._actions:
        kind = getattr(action, "_typehint", None) or action.type
        for name in action.option_strings:
            if name.startswith("--") and not name.endswith("+") and kind and name.strip("-") not in NO_SETTINGS:
                found[name] = kind
    return found


def cases() -> Iterator[Case]:
    """Every option of every command, once, with each of its values."""
    seen: set[str] = set()

    def of(command: str, words: list[str], parser: "ArgumentParser", known: Collection[str]) -> Iterator[Case]:
        for name, kind in options(parser).items():
            if name not in known:
                seen.add(name)
                flag = name.replace("_options.", ".").replace("_", "-")
                for what, value in values(kind).items():
                    yield Case(command, tuple(words), flag, what, value)

    for family in FAMILIES:
        words = [*TRAIN, "--detector", family]
        run_settings(parser := command_parser("train"), words, "train")
        yield from of("train", words, parser, set(seen))
    for method in METHODS:
        words = [*DISTILL, "--method", method]
        run_settings(parser := command_parser("distill"), words, "distill")
        yield from of("distill", words, parser, {name for name in seen if not name.startswith("--method_options")})
    bench_options(parser := command_parser("bench"), DISTILL)
    own = {name for name in options(parser) if "." not in name} - seen | {"--out"}
    yield from of("bench", [*DISTILL, "--plan"], parser, options(parser).keys() - own)
    for command, (function, words) in OTHERS.items():
        parser = command_parser(command)
        parser.add_function_arguments(function, as_positional=False, skip={"console", "run", "images"})
        yield from of(command, words, parser, ())
