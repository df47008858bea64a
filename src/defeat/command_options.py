"""The options of each command, from the code, or from a table of what the code has.

Reading them from the code imports PyTorch, which takes seconds. The help only shows them: it reads `options.json`,
which `python -m defeat.command_options` writes and a test compares with the code.
"""

import collections
import json
import pathlib
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, replace
from functools import cached_property
from importlib import import_module
from inspect import formatannotation
from pathlib import Path
from typing import Any, Protocol, get_type_hints

from defeat.options import Command, Option, options_of
from defeat.settings import INHERIT, PLUS, field_docs

TABLE = Path(__file__).with_name("options.json")
FUNCTIONS = {
    "evaluate": "defeat.inference.evaluate:evaluate",
    "predict": "defeat.inference.predict:predict",
    "compare": "defeat.report.compare:compare",
    "data": "defeat.report.data:describe_data",
    "import": "defeat.detector.importers:import_checkpoint",
    "export": "defeat.exporting:export",
    "push": "defeat.publishing:push",
    "profile": "defeat.inference.profile:profile",
    "taps": "defeat.inference.taps:print_taps",
    "demo": "defeat.demo:demo",
}
TRAINING = ("train", "distill", "plan", "bench")  # commands with options of detectors, and with --config
COMMANDS = ("train", "distill", "bench", *FUNCTIONS, "methods", "recipes")  # `plan` has the options of `distill`
NAMES = vars(typing) | {"collections": collections, "pathlib": pathlib, "typing": typing}  # in types of options
CHOOSING = ("detector", "method", "methods", "ablate")  # options that add others


class OptionSource(Protocol):
    """Where the options of commands come from."""

    @property
    def methods(self) -> Collection[str]:
        """Names of the methods."""

    def of_command(self, command: str) -> list[Option]:
        """Options of a command, without those of detectors and methods."""

    def of_detector(self, family: str) -> list[Option]:
        """Options of a detector family, in the group `detector`."""

    def of_method(self, method: str, group: str = "method") -> list[Option]:
        """Options of a method, in a group."""

    def ablated(self, ablation: str) -> list[str]:
        """Names of the methods of an ablation; empty where the name is unknown."""


class OptionsOfCode:
    """Options from signatures, dataclasses and their docstrings."""

    @property
    def methods(self) -> Collection[str]:
        """See `OptionSource`."""
        from defeat.distillation import METHODS

        return METHODS

    def of_command(self, command: str) -> list[Option]:
        """See `OptionSource`."""
        if command in TRAINING:
            return self._of_training(command)
        if command == "methods":
            text = "A method to describe in full, with its arithmetic and its options."
            return [Option("name", str | None, None, text)]
        if command not in FUNCTIONS:
            return []
        module, _, name = FUNCTIONS[command].partition(":")
        function: Callable[..., Any] = getattr(import_module(module), name)
        return options_of(function, skip={"console"})

    def of_detector(self, family: str) -> list[Option]:
        """See `OptionSource`."""
        from defeat.detector import family_options

        return options_of(family_options(family), "detector")

    def of_method(self, method: str, group: str = "method") -> list[Option]:
        """See `OptionSource`."""
        from defeat.distillation import find_method

        return options_of(find_method(method), group, skip={"student", "teacher"})

    def ablated(self, ablation: str) -> list[str]:
        """See `OptionSource`."""
        from defeat.benchmark.matrix import ABLATIONS

        return [variant.method for variant in ABLATIONS.get(ablation, {}).values()]

    @staticmethod
    def _of_training(command: str) -> list[Option]:
        from defeat.assembly.settings import DistillSettings, TrainSettings

        if command != "bench":
            kind = TrainSettings if command == "train" else DistillSettings
            return options_of(kind, skip={"detector_options", "method_options"})
        from defeat.benchmark.arguments import BenchArguments, ComparisonSettings
        from defeat.benchmark.matrix import CELL_SETTINGS

        own = options_of(ComparisonSettings, skip={"console", "method_options"})
        merge = "Instead of training, merge the folders that other machines wrote into --out."
        own.append(Option("merge", list[str] | None, None, merge))
        docs = field_docs(BenchArguments)
        of_cells = options_of(DistillSettings, skip={*CELL_SETTINGS, "detector_options"} - {"out"})
        options = [replace(option, section="options") for option in own]
        return options + [replace(option, help=docs.get(option.name, option.help)) for option in of_cells]


class OptionTable:
    """Options from a table.

    Args:
        content: what `table` returned.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.content = content

    @cached_property
    def methods(self) -> Collection[str]:
        """See `OptionSource`."""
        names: Collection[str] = self.content["methods"].keys()
        return names

    def of_command(self, command: str) -> list[Option]:
        """See `OptionSource`; KeyError where it is missing."""
        return _options(self.content["commands"]["distill" if command == "plan" else command])

    def of_detector(self, family: str) -> list[Option]:
        """See `OptionSource`; KeyError where it is missing."""
        return _options(self.content["detectors"][family])

    def of_method(self, method: str, group: str = "method") -> list[Option]:
        """See `OptionSource`; KeyError where it is missing."""
        options = _options(self.content["methods"][method])
        return [replace(option, group=group, section=f"{group} options") for option in options]

    def ablated(self, ablation: str) -> list[str]:
        """See `OptionSource`."""
        names: list[str] = self.content["ablations"].get(ablation, [])
        return names


def all_options(
    command: str,
    arguments: Sequence[str],
    recipe: Mapping[str, Any] | None = None,
    source: OptionSource | None = None,
) -> list[Option]:
    """All options of a command, given the arguments that choose detector and methods.

    Args:
        command: name of the command.
        arguments: arguments after the command.
        recipe: values of files of --config.
        source: None for the code.

    Raises:
        InputError: an argument names an unknown detector or method.
    """
    source = source or OptionsOfCode()
    options = source.of_command(command)
    if command not in TRAINING:
        return options
    choosing = [option for option in options if option.name in CHOOSING]
    chosen = {option.name: str(option.default or "") for option in choosing}
    chosen |= {name: str(recipe[name]) for name in chosen if recipe and recipe.get(name)}
    chosen |= Command(command, options=choosing).peek(arguments)
    options += source.of_detector(chosen["detector"])
    if "method" in chosen:
        parts = chosen["method"].split(PLUS)
        for part in parts:
            options += source.of_method(part, part if len(parts) > 1 else "method")
    if "methods" in chosen:  # each in a group of its own name
        named = chosen["methods"].split(",")
        if chosen["ablate"]:
            named = source.ablated(chosen["ablate"])
        listed = (part for name in named for part in name.strip().removesuffix(INHERIT).split(PLUS))
        for part in dict.fromkeys(listed):
            if part in source.methods:
                options += source.of_method(part, part)
    return options


def help_command(command: str, description: str, arguments: Sequence[str]) -> Command:
    """A command with the options that its help shows, from the table where that has them.

    Raises:
        InputError: an argument names an unknown detector or method.
    """
    try:
        source = OptionTable(json.loads(TABLE.read_text(encoding="utf-8")))
        options = all_options(command, arguments, source=source)
    except (OSError, ValueError, KeyError):  # the code has the sentence
        options = all_options(command, arguments)
    return Command(command, description, options, recipes=command in TRAINING)


def table() -> dict[str, Any]:
    """The options that the code has, for JSON."""
    from defeat.benchmark.matrix import ABLATIONS
    from defeat.detector import FAMILIES

    code = OptionsOfCode()
    return {
        "commands": {name: _plain(code.of_command(name)) for name in COMMANDS},
        "detectors": {name: _plain(code.of_detector(name)) for name in FAMILIES},
        "methods": {name: _plain(code.of_method(name)) for name in code.methods},
        "ablations": {name: code.ablated(name) for name in ABLATIONS},
    }


def _plain(options: Sequence[Option]) -> list[dict[str, Any]]:
    """Options for JSON."""
    rows = []
    for option in options:
        row = vars(option) | {"kind": formatannotation(option.kind)}
        if option.default is MISSING:
            del row["default"]
        rows.append(row)
    content: list[dict[str, Any]] = json.loads(json.dumps(rows))
    return content


def _options(rows: Sequence[Mapping[str, Any]]) -> list[Option]:
    """The reverse of `_plain`."""
    kinds = type("Kinds", (), {"__annotations__": {str(index): row["kind"] for index, row in enumerate(rows)}})
    hints = get_type_hints(kinds, NAMES)
    return [Option(**{"default": MISSING, **row, "kind": hints[str(index)]}) for index, row in enumerate(rows)]


def main() -> None:
    """Write the table."""
    TABLE.write_text(json.dumps(table(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
