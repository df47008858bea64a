"""Every option of every command, with values that it can't have: found from the typed signatures, not listed."""

from collections.abc import Iterator
from typing import Any, get_args

from defeat.cli import bench_options, run_settings
from defeat.detector import FAMILIES
from defeat.distillation import METHODS
from defeat.options import command_parser
from tests.detector.tiny import BACKBONE

HUGE = "9" * 30
# What is given besides the option in question.
DATA = ["--data", "demo", "--out", "never-written"]
SMALL = ["--backbone", BACKBONE, "--weights", "none", "--size", "64", "--neck-channels", "16", "--accelerator", "cpu"]
TEACHER = ["--teacher", "never-read"]
HEADS = {"classification": "--method.class-weight"}


def values(kind: Any) -> dict[str, str]:
    """Texts that a setting of this type can't have, or that deserve a thought, by what they are."""
    inner = set(get_args(kind)) or {kind}
    if bool in inner:
        return {"wrong type": "maybe", "negative": "-1", "huge": HUGE}
    if float in inner:
        return {"wrong type": "word", "negative": "-1", "zero": "0", "huge": "1e30", "NaN": "nan", "infinite": "inf"}
    if int in inner:
        return {"wrong type": "word", "fraction": "0.5", "negative": "-1", "zero": "0", "huge": HUGE}
    if str(kind).startswith("typing.Literal"):
        return {"unknown": "word", "negative": "-1", "empty": ""}
    if any(word in str(kind) for word in ("list", "tuple", "Sequence")):
        return {"wrong type": "{a: 1}", "negative": "[-1]", "huge": f"[{HUGE}]", "nested": "[[1]]"}
    return {"empty": ""}


def options(parser: Any) -> Iterator[tuple[str, Any]]:
    """Name and type of each option of a parser."""
    for action in parser._actions:
        flags = [flag for flag in action.option_strings if flag.startswith("--") and not flag.endswith("+")]
        kind = getattr(action, "_typehint", None) or action.type
        hidden = ("help", "config", "command", "expected", "print_config", "merge", "plan")
        if flags and kind is not None and flags[0].lstrip("-") not in (*hidden, "detector_options", "method_options"):
            yield flags[0], kind


def cases() -> Iterator[tuple[str, list[str], str, str, str]]:
    """Command, other words, flag, what the value is, and the value."""

    def of(command: str, words: list[str], parser: Any, skip: set[str] = frozenset()) -> Iterator[Any]:
        for name, kind in options(parser):
            if name not in skip:
                seen.add(name)
                flag = name.replace("_options", "", 1).replace("_", "-") if "." in name else name.replace("_", "-")
                for what, value in values(kind).items():
                    yield command, [word for word in words], flag, what, value

    seen: set[str] = set()
    for family in FAMILIES:
        words = [*DATA, *SMALL, "--detector", family]
        run_settings(parser := command_parser("train"), words, "train")
        yield from of("train", words, parser, set(seen))
    for method in METHODS:
        words = [*DATA, *SMALL, *TEACHER, "--method", method]
        run_settings(parser := command_parser("distill"), words, "distill")
        yield from of("distill", words, parser, {name for name in seen if "method_options" not in name})
    words = [*DATA, *SMALL, *TEACHER]
    bench_options(parser := command_parser("bench"), words)
    yield from of(
        "bench",
        [*words, "--plan"],
        parser,
        {name for name in seen if name != "--out"} | {name for name, _ in options(parser) if "." in name},
    )
