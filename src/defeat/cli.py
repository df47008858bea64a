"""The command line: a table from command to typed function; jsonargparse turns signatures into options.

Nothing heavy is imported before a command is known, so that help comes at once.
"""

import itertools
import json
import signal
import sys
import traceback
from argparse import SUPPRESS
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from defeat.errors import InputError, unknown_name
from defeat.options import POSITIONAL, SEVERAL, command_parser, parsed

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from defeat.engine.settings import TrainSettings

USAGE, FAULT, INTERRUPTED, TERMINATED = 2, 1, 130, 143


def train(parser: "ArgumentParser", arguments: Sequence[str]) -> int:
    """Train a detector."""
    return _run(parser, arguments, "train")


def distill(parser: "ArgumentParser", arguments: Sequence[str]) -> int:
    """Train a student with the help of a teacher."""
    return _run(parser, arguments, "distill")


def plan(parser: "ArgumentParser", arguments: Sequence[str]) -> int:
    """Say what distill would do and cost, without training."""
    settings = run_settings(parser, arguments, "distill")
    from rich.console import Console

    from defeat.engine.settings import DistillSettings
    from defeat.report.plan import make_plan, print_plan

    assert isinstance(settings, DistillSettings)
    print_plan(make_plan(settings), Console())
    return 0


def evaluate(parser: "ArgumentParser", arguments: Sequence[str]) -> int:
    """Evaluate a trained detector."""
    from rich.console import Console

    from defeat.inference.evaluate import evaluate as function
    from defeat.report.tables import print_evaluation

    result = function(**_arguments(parser, arguments, function), console=Console(stderr=True))
    print_evaluation(result, Console())
    return 0


def predict(parser: "ArgumentParser", arguments: Sequence[str]) -> int:
    """Detect objects in images and draw them."""
    from rich.console import Console

    from defeat.inference.predict import predict as function

    given = _arguments(parser, arguments, function)
    result = function(**given, console=Console(stderr=True))
    count, rate = len(result.pictures), result.images / max(result.seconds, 1e-9)
    written = f"{count} picture{'s' * (count != 1)} and detections.json are in {given['out']}"
    sys.stdout.write(f"{written} ({rate:.1f} images a second)\n")
    for sentence in result.skipped:
        sys.stderr.write(f"defeat: skipped: {sentence}\n")
    return USAGE if result.skipped else 0


def compare(parser: "ArgumentParser", arguments: Sequence[str]) -> int:
    """Compare finished runs: did distillation help?"""
    from defeat.report.compare import compare as function

    function(**_arguments(parser, arguments, function))
    return 0


def bench(parser: "ArgumentParser", arguments: Sequence[str]) -> int:
    """Compare methods over several seeds: what is each worth?"""
    from defeat import benchmark as package

    if any(word.partition("=")[0] == "--merge" for word in arguments):
        parser.add_argument("--merge", nargs="+", help="folders that other machines wrote", required=True)
        parser.add_argument("--out", type=str, help="folder to write", required=True)
        given = parsed(parser, arguments)
        package.merge(given.merge, given.out)
        return 0
    options, per_method = bench_options(parser, arguments)
    return package.bench(**options, method_options=per_method).exit_code


def methods(parser: "ArgumentParser", arguments: Sequence[str]) -> int:
    """List the distillation methods: papers, needs, defaults."""
    from rich.console import Console

    from defeat.report.methods import print_methods

    parsed(parser, arguments)
    print_methods(Console())
    return 0


def recipes(parser: "ArgumentParser", arguments: Sequence[str]) -> int:
    """List the recipes: published figures and the commands that repeat them."""
    from rich.console import Console

    from defeat.report.recipes import print_recipes

    parsed(parser, arguments)
    print_recipes(Console())
    return 0


def demo(parser: "ArgumentParser", arguments: Sequence[str]) -> int:
    """The whole story on the embedded data, in minutes."""
    from defeat.demo import demo as function

    function(**_arguments(parser, arguments, function))
    return 0


COMMANDS: dict[str, Callable[["ArgumentParser", Sequence[str]], int]] = {
    "train": train,
    "distill": distill,
    "plan": plan,
    "evaluate": evaluate,
    "predict": predict,
    "compare": compare,
    "bench": bench,
    "methods": methods,
    "recipes": recipes,
    "demo": demo,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: words after `defeat`; None for those of the process.

    Returns:
        0 done; 2 wrong usage or bad input, after one readable line; 1 a fault of this program; 130 stopped by Ctrl-C,
        143 by SIGTERM.
    """
    with _terminable():
        return _main(arguments)


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the program as an exception does, with what belongs to it."""

    def leave(*_: Any) -> None:
        raise SystemExit(TERMINATED)

    try:
        before = signal.signal(signal.SIGTERM, leave)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _main(arguments: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if not words or words[0] in ("-h", "--help"):
            sys.stdout.write(overview())
            return 0 if words else USAGE
        if words[0] == "--version":
            from importlib.metadata import version

            sys.stdout.write(f"defeat {version('defeat')}\n")
            return 0
        if words[0] not in COMMANDS:
            raise unknown_name("command", words[0], COMMANDS)
        return COMMANDS[words[0]](command_parser(words[0]), words[1:])
    except InputError as error:
        sys.stderr.write(f"defeat: {error}\n")
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as stop:  # --help of a command, or SIGTERM
        return stop.code if isinstance(stop.code, int) else FAULT
    except Exception:
        traceback.print_exc()
        sys.stderr.write("defeat: this is a fault of the program; please report it with the lines above.\n")
        return FAULT


def overview() -> str:
    """What `defeat --help` prints."""
    lines = [f"  {name:10}{function.__doc__}\n" for name, function in COMMANDS.items()]
    return (
        "usage: defeat COMMAND [OPTIONS]\n\n"
        "Make an object detector smaller with the help of a larger one.\n\n"
        f"commands:\n{''.join(lines)}\n"
        "`defeat COMMAND --help` lists the options of a command.\n"
    )


def _run(parser: "ArgumentParser", arguments: Sequence[str], command: str) -> int:
    settings = run_settings(parser, arguments, command)
    from defeat.engine.run import run
    from defeat.report.compare import report_run

    result = run(settings)
    if not result.finished:
        if result.writer:
            sys.stderr.write("Go on with the same command and --resume.\n")
        return result.exit_code
    if result.writer:
        report_run(result.folder)
    return 0


def run_settings(parser: "ArgumentParser", arguments: Sequence[str], command: str) -> "TrainSettings":
    """Parse the settings of `train` or `distill`, with those of the detector and the method that they choose.

    Raises:
        InputError: an option is unknown, missing or not valid.
    """
    from defeat.detector import family_options
    from defeat.distillation import find_method
    from defeat.engine.settings import DistillSettings, TrainSettings

    kind = DistillSettings if command == "distill" else TrainSettings
    parser.add_argument(
        "--config", action="config", help="recipe or config.yaml, by path or name; every option can stand in it"
    )
    parser.add_argument("--command", help=SUPPRESS, type=str)  # stands in every config.yaml
    parser.add_argument("--expected", help=SUPPRESS, type=dict, default={})  # stands in recipes
    parser.add_class_arguments(kind, skip={"detector_options", "method_options", "expected"})
    arguments, recipes = _with_recipes(arguments)
    chosen = _chosen(arguments, recipes)
    parser.add_class_arguments(family_options(chosen.get("detector", kind.detector)), "detector_options")
    if kind is DistillSettings:
        method = find_method(chosen.get("method", DistillSettings.method))
        parser.add_class_arguments(method, "method_options", skip={"student", "teacher"})
    given = parsed(parser, arguments).as_dict()
    if given.pop("command") not in (None, command):
        raise InputError(f"The file of --config belongs to another command than `defeat {command}`.")
    del given["config"]
    return kind(**given)


def bench_options(parser: "ArgumentParser", arguments: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parse the options of `bench`: its own with those of all cells, and those of each method by its name.

    Raises:
        InputError: an option is unknown, missing or not valid.
    """
    from defeat.benchmark import bench as function
    from defeat.benchmark.matrix import ABLATIONS, INHERIT, METHODS, OWN
    from defeat.detector import family_options
    from defeat.distillation import METHODS as KNOWN
    from defeat.engine.settings import DistillSettings

    own = {*OWN} - {"out"}
    parser.add_argument("--config", action="config", help="recipe, by path or name; its method and seed are left out")
    parser.add_argument("--merge", nargs="+", help="with --out alone: join the folders that other machines wrote")
    # jsonargparse follows `**options` to the settings that they become.
    parser.add_function_arguments(function, skip={*own, "console", "method_options", "detector_options"})
    actions = parser._option_string_actions
    actions["--out"].help = "folder of the comparison: a run directory a cell, bench.json, report.html"
    actions["--eval_split"].help = "split to test all cells on; by default test if there is one, else val"
    arguments, recipes = _with_recipes(arguments, leave_out={*own, "command"})
    chosen = _chosen(arguments, recipes)
    parser.add_class_arguments(family_options(chosen.get("detector", DistillSettings.detector)), "detector_options")
    asked = _value(arguments, "--methods") or METHODS
    if ablation := _value(arguments, "--ablate"):
        asked = ",".join(variant.method for variant in ABLATIONS.get(ablation, {}).values())
    methods = dict.fromkeys(word.strip().removesuffix(INHERIT) for word in asked.split(","))
    names = [name for name in methods if name in KNOWN]
    for name in names:
        parser.add_class_arguments(KNOWN[name], name, skip={"student", "teacher"})
    given = parsed(parser, arguments).as_dict()
    del given["config"], given["merge"]
    return given, {name: given.pop(name) for name in names}


def _value(arguments: Sequence[str], flag: str) -> str | None:
    """The value of an option that has to be known before all others are parsed; None where it is not given."""
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--") else [word])]
    return next((value for name, value in reversed(list(itertools.pairwise(words))) if name == flag), None)


def _with_recipes(arguments: Sequence[str], leave_out: Collection[str] = ()) -> tuple[list[str], list[dict[str, Any]]]:
    """Put the content of each recipe where its name stands, without some settings, and give the contents beside."""
    from defeat.engine.recipes import find_recipe, read_recipe

    words: list[str] = []
    recipes: list[dict[str, Any]] = []
    rest = iter(arguments)
    for word in rest:
        flag, equals, value = word.partition("=")
        if flag != "--config":
            words.append(word)
            continue
        content = read_recipe(find_recipe(value if equals else next(rest, "")))
        recipes.append({name: value for name, value in content.items() if name not in leave_out})
        words.append(f"--config={json.dumps(recipes[-1])}")
    return words, recipes


def _chosen(arguments: Sequence[str], recipes: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Which detector and method are asked for: their options have to be known before all others are parsed."""
    chosen: dict[str, str] = {}
    for recipe in recipes:
        chosen |= {name: str(recipe[name]) for name in ("detector", "method") if recipe.get(name)}
    for name in ("detector", "method"):
        if value := _value(arguments, f"--{name}"):
            chosen[name] = value
    return chosen


def _arguments(parser: "ArgumentParser", arguments: Sequence[str], function: Callable[..., Any]) -> dict[str, Any]:
    parser.add_function_arguments(function, as_positional=False, skip={"console"})
    names = [name for name in function.__annotations__ if name in POSITIONAL]
    return dict(parsed(parser, _named(names, arguments)).as_dict())


def _named(names: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """Give the words that stand before the first option their names."""
    count = next((place for place, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    words, rest = list(arguments[:count]), list(arguments[count:])
    if names and names[-1] in SEVERAL and len(words) >= len(names):
        words[len(names) - 1 :] = [json.dumps(words[len(names) - 1 :])]
    if len(words) > len(names):
        raise InputError(f"Unexpected argument {words[len(names)]!r}.")
    return [f"--{name}={word}" for name, word in zip(names, words, strict=False)] + rest


if __name__ == "__main__":
    sys.exit(main())
