"""The command line: a table from command to function; signatures and dataclasses become options.

Nothing heavy is imported before a command is known, so that help comes at once.
"""

import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from defeat.errors import InputError, unknown_name

if TYPE_CHECKING:
    from defeat.assembly.settings import TrainSettings
    from defeat.options import Option

USAGE, FAULT, INTERRUPTED, TERMINATED = 2, 1, 130, 143


def train(words: Sequence[str]) -> int:
    """Train a detector."""
    return _run(words, "train")


def distill(words: Sequence[str]) -> int:
    """Train a student with the help of a teacher."""
    return _run(words, "distill")


def plan(words: Sequence[str]) -> int:
    """Say what distill would do and cost, without training."""
    settings = run_settings(words, "distill", "plan")
    from rich.console import Console

    from defeat.assembly.plan import make_plan
    from defeat.assembly.settings import DistillSettings
    from defeat.report.plan import print_plan

    assert isinstance(settings, DistillSettings)
    print_plan(make_plan(settings), Console())
    return 0


def evaluate(words: Sequence[str]) -> int:
    """Evaluate a trained detector."""
    from rich.console import Console

    from defeat.inference.evaluate import evaluate as function
    from defeat.report.tables import print_evaluation

    result = function(**_arguments("evaluate", words, function), console=Console(stderr=True))
    print_evaluation(result, Console())
    return 0


def predict(words: Sequence[str]) -> int:
    """Detect objects in images and draw them."""
    from rich.console import Console

    from defeat.inference.predict import predict as function

    given = _arguments("predict", words, function)
    result = function(**given, console=Console(stderr=True))
    count, rate = len(result.pictures), result.images / max(result.seconds, 1e-9)
    written = f"{count} picture{'s' * (count != 1)} and detections.json are in {given['out']}"
    sys.stdout.write(f"{written} ({rate:.1f} images a second)\n")
    for sentence in result.skipped:
        sys.stderr.write(f"defeat: skipped: {sentence}\n")
    return USAGE if result.skipped else 0


def compare(words: Sequence[str]) -> int:
    """Compare finished runs: did distillation help?"""
    from defeat.report.compare import compare as function

    function(**_arguments("compare", words, function))
    return 0


def bench(words: Sequence[str]) -> int:
    """Compare methods over several seeds: what is each worth?"""
    from defeat import benchmark as package

    options, per_method = bench_settings(words)
    if (folders := options.pop("merge", None)) is not None:
        package.merge(folders, options["out"])
        return 0
    return package.bench(**options, method_options=per_method).exit_code


def taps(words: Sequence[str]) -> int:
    """List where a network of your own has maps that can be distilled."""
    from defeat.inference.taps import print_taps

    print_taps(**_arguments("taps", words, print_taps))
    return 0


def methods(words: Sequence[str]) -> int:
    """List the distillation methods: papers, needs, defaults."""
    from rich.console import Console

    from defeat.report.methods import print_methods

    _arguments("methods", words)
    print_methods(Console())
    return 0


def recipes(words: Sequence[str]) -> int:
    """List the recipes: published figures and the commands that repeat them."""
    from rich.console import Console

    from defeat.report.recipes import print_recipes

    _arguments("recipes", words)
    print_recipes(Console())
    return 0


def demo(words: Sequence[str]) -> int:
    """The whole story on the embedded data, in minutes."""
    from defeat.demo import demo as function

    function(**_arguments("demo", words, function))
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "distill": distill,
    "plan": plan,
    "evaluate": evaluate,
    "predict": predict,
    "compare": compare,
    "bench": bench,
    "taps": taps,
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
        return COMMANDS[words[0]](words[1:])
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


def _run(words: Sequence[str], command: str) -> int:
    settings = run_settings(words, command)
    from defeat.assembly.run import run
    from defeat.report.compare import report_run

    result = run(settings)
    if not result.finished:
        if result.writer:
            sys.stderr.write("Go on with the same command and --resume.\n")
        return result.exit_code
    if result.writer:
        report_run(result.folder)
    return 0


def _description(command: str) -> str:
    return COMMANDS[command].__doc__ or ""


def _arguments(command: str, words: Sequence[str], function: Callable[..., Any] | None = None) -> dict[str, Any]:
    """What a function is called with."""
    from defeat.options import Command, options_of

    options = [] if function is None else options_of(function, skip={"console"})
    return Command(command, _description(command), options).read(words)


def run_settings(words: Sequence[str], command: str, shown: str | None = None) -> "TrainSettings":
    """Read the settings of `train` or `distill`, with those of the detector and the method that they choose.

    Args:
        words: what stands behind the command.
        command: whose settings they are.
        shown: the command that the help speaks of, where that is another.

    Raises:
        InputError: an option is unknown, missing or not valid.
    """
    from defeat.assembly.settings import DistillSettings, TrainSettings
    from defeat.options import Command

    recipe = _recipe(words)
    if recipe.pop("command", command) != command:
        raise InputError(f"The file of --config belongs to another command than `defeat {command}`.")
    options = run_options(words, command, recipe)
    values = Command(shown or command, _description(shown or command), options, recipes=True).read(words, recipe)
    return (DistillSettings if command == "distill" else TrainSettings)(**values)


def run_options(words: Sequence[str], command: str, recipe: Mapping[str, Any]) -> list["Option"]:
    """All options of `train` or `distill`, given the words that choose detector and method."""
    from defeat.assembly.settings import DistillSettings, TrainSettings
    from defeat.detector import family_options
    from defeat.distillation import find_method
    from defeat.options import Command, options_of

    kind = DistillSettings if command == "distill" else TrainSettings
    every = options_of(kind)
    choosing = [one for one in every if one.name in ("detector", "method")]
    chosen = {one.name: one.default for one in choosing}
    chosen |= {name: recipe[name] for name in chosen if recipe.get(name)}
    chosen |= Command(command, options=choosing).first_look(words)
    options = [one for one in every if one.name not in ("detector_options", "method_options")]
    options += options_of(family_options(str(chosen["detector"])), "detector")
    if kind is DistillSettings:
        options += options_of(find_method(str(chosen["method"])), "method", skip={"student", "teacher"})
    return options


def bench_settings(words: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the options of `bench`: its own with those of all cells, and those of each method by its name.

    Raises:
        InputError: an option is unknown, missing or not valid.
    """
    from defeat.benchmark.matrix import OWN
    from defeat.options import Command

    dropped = {*OWN, "command"} - {"out"}
    recipe = {name: value for name, value in _recipe(words).items() if name not in dropped}
    options = bench_options(words, recipe)
    merging = Command("bench", options=[one for one in options if one.name == "merge"]).first_look(words)
    if merging:  # needs no data and no teacher
        options = [one for one in options if one.name in ("merge", "out")]
    values = Command("bench", _description("bench"), options, recipes=True).read(words, recipe)
    names = dict.fromkeys(one.group for one in options if one.group not in ("", "detector"))
    return values, {name: values.pop(name) for name in names}


def bench_options(words: Sequence[str], recipe: Mapping[str, Any]) -> list["Option"]:
    """All options of `bench`, given the words that choose detector and methods."""
    from defeat.assembly.settings import DistillSettings
    from defeat.benchmark import bench as function
    from defeat.benchmark.matrix import ABLATIONS, INHERIT, METHODS, OWN
    from defeat.detector import family_options
    from defeat.distillation import METHODS as KNOWN
    from defeat.options import Command, Option, options_of

    merge = "instead of training: join the folders that other machines wrote into --out"
    own = [*options_of(function, skip={"console", "method_options", "options"})]
    own.append(Option("merge", list[str] | None, None, merge))
    cells = options_of(DistillSettings, skip={*OWN, "detector_options"} - {"out"})
    help_of = {
        "out": "folder of the comparison: a run directory per cell, bench.json, report.html",
        "eval_split": "split to test all cells on; by default test if there is one, else val",
    }
    options = own + [replace(one, help=help_of.get(one.name, one.help)) for one in cells]
    choosing = [one for one in options if one.name in ("detector", "methods", "ablate")]
    chosen = {"methods": METHODS, "detector": DistillSettings.detector, "ablate": ""}
    chosen |= {name: str(recipe[name]) for name in chosen if recipe.get(name)}
    chosen |= Command("bench", options=choosing).first_look(words)
    options += options_of(family_options(chosen["detector"]), "detector")
    asked = chosen["methods"]
    if chosen["ablate"]:
        asked = ",".join(variant.method for variant in ABLATIONS.get(chosen["ablate"], {}).values())
    names = dict.fromkeys(word.strip().removesuffix(INHERIT) for word in asked.split(","))
    for name in names:
        if name in KNOWN:
            options += options_of(KNOWN[name], name, skip={"student", "teacher"})
    return options


def _recipe(words: Sequence[str]) -> dict[str, Any]:
    """The content of all files that --config names, the later ones on top."""
    from defeat.assembly.recipes import find_recipe, merged, read_recipe
    from defeat.options import config_files

    content: dict[str, Any] = {}
    for name in config_files(words):
        content = merged(content, read_recipe(find_recipe(name)))
    return content


if __name__ == "__main__":
    sys.exit(main())
