"""Options the way people write them: dashes, `--method.NAME`, flags without a value; one sentence for a mistake."""

import re
from argparse import ArgumentError
from collections.abc import Sequence
from typing import TYPE_CHECKING

from defeat.errors import InputError, unknown_name

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

HIDDEN = {"--command", "--expected", "--detector_options", "--method_options", "--print_config"}
POSITIONAL = {"run", "runs", "images"}
SEVERAL = {"runs", "images"}  # as many as there are words


def command_parser(command: str) -> "ArgumentParser":
    """An empty parser for a command, which shows options the way people write them."""
    from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=False)

    class Dashes(DefaultHelpFormatter):
        def format_help(self) -> str:
            text = super().format_help()
            text = re.sub(r"--(detector|method)_options", r"--\1", text)
            text = re.sub(r"--[a-z][\w.]+", lambda match: match[0].replace("_", "-"), text)
            text = re.sub(
                r"(?<=^usage: ).*?(?=\n\n|\Z)", lambda match: _usage(match[0]), text, count=1, flags=re.DOTALL
            )
            value = r"(?:\[ITEM,\.\.\.\]|[A-Z]+)"
            named = rf"^  --({'|'.join(POSITIONAL)}) {value}(?:, --\w+\+ {value})?"
            text = re.sub(
                named, lambda match: f"  {_positional(match[1])}".ljust(len(match[0])), text, flags=re.MULTILINE
            )
            return re.sub(r" +$", "", text, flags=re.MULTILINE)

    return ArgumentParser(prog=f"defeat {command}", exit_on_error=False, formatter_class=Dashes)


def _usage(text: str) -> str:
    """A usage as people type it: first words without their option, then what is required, and the rest in a word."""
    command = " ".join(text.split()[:2])
    while (without := re.sub(r"\[[^\[\]]*\]", "", text)) != text:  # what stands in brackets can be left out
        text = without
    required = re.findall(r"--([\w.-]+)", text)
    words = [_positional(name) for name in required if name in POSITIONAL]
    words += [f"--{name} {name.upper()}" for name in required if name not in POSITIONAL]
    return " ".join([command, *words, "[OPTIONS]"])


def _positional(name: str) -> str:
    return f"{name.upper()}{' ..' * (name in SEVERAL)}"


def parsed(parser: "ArgumentParser", arguments: Sequence[str]) -> "Namespace":
    """Parse options written with dashes, `--method.NAME` and `--detector.NAME`, and flags without a value.

    Raises:
        InputError: one sentence that names the option.
    """
    known = {flag for action in parser._actions for flag in action.option_strings}
    words: list[str] = []
    for place, word in enumerate(arguments):
        if not word.startswith("--"):
            words.append(word)
            continue
        flag, equals, value = word.partition("=")
        name = re.sub(r"^--(detector|method)\.", r"--\1_options.", flag.replace("-", "_").replace("__", "--", 1))
        if name not in known:
            raise unknown_name("option", flag, _options_like(flag, known))
        words.append(name + equals + value)
        following = arguments[place + 1] if place + 1 < len(arguments) else "--"
        if not equals and _is_switch(parser, name) and following.lower() not in ("true", "false"):
            words.append("true")
    try:
        return parser.parse_args(_recipe_first(words))
    except ArgumentError as error:
        raise InputError(_sentence(str(error))) from error


def _options_like(flag: str, known: set[str]) -> set[str]:
    """The options that stand beside one that is not known: those of the method, of the detector, or all others."""
    groups = {one.partition(".")[0] for one in known if "." in one}  # such as --method_options itself
    written = {_written(one) for one in known - HIDDEN - groups if one.startswith("--") and not one.endswith("+")}
    group = flag.partition(".")[0] + "."
    beside = {one for one in written if one.startswith(group)} if group in flag else set()
    return beside or {one for one in written if "." not in one} or written


def _recipe_first(words: Sequence[str]) -> list[str]:
    """Put --config before all other options: a flag wins over the recipe wherever it stands."""
    recipe: list[str] = []
    rest: list[str] = []
    for place, word in enumerate(words):
        given = word == "--config" or word.startswith("--config=") or (place > 0 and words[place - 1] == "--config")
        (recipe if given else rest).append(word)
    return recipe + rest


def _is_switch(parser: "ArgumentParser", name: str) -> bool:
    action = parser._option_string_actions[name]
    return getattr(action, "_typehint", None) is bool or action.type is bool


def _written(name: str) -> str:
    return re.sub(r"^--(detector|method)_options\.", r"--\1.", name).replace("_", "-")


def _sentence(message: str) -> str:
    """Turn jsonargparse's message into one sentence."""
    missing = re.search(r"required(?: arguments?)?: (.*)", message) or re.search(r'[Kk]ey "(\w+)" is required', message)
    if missing:
        names = [name for name in missing[1].split(", ") if name]
        return f"Missing: {', '.join(_flag(name) for name in names)}."
    key = re.search(r'[Kk]ey "([\w.]+)"', message)
    value = re.search(r"Given value: (.*)|Got value: (.*)", message)
    expected = dict.fromkeys(re.findall(r"Expected (?:a|one of|value to be) (.*?)(?:\. Got|$)", message, re.MULTILINE))
    if key and value:
        kinds = " or ".join(re.sub(r"<class '(\w+)'>|typing\.Literal", r"\1", kind) for kind in expected)
        kinds = kinds.replace("NoneType", "null")
        wanted = f" (expected {kinds})" if kinds else ""
        return f"{_flag(key[1])}: {(value[1] or value[2]).strip()!r} is not valid{wanted}."
    return " ".join(message.split())


def _flag(name: str) -> str:
    return name.upper() if name in POSITIONAL else _written(f"--{name}")
