"""The command line: a table of commands, whose options are derived from signatures and dataclasses.

Nothing slow is imported before the command is known, so that --help is fast.
"""

import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from defeat.errors import InputError, unknown_name

if TYPE_CHECKING:
    from defeat.assembly.settings import TrainSettings

USAGE, INTERNAL, INTERRUPTED, TERMINATED = 2, 1, 130, 143


def train(arguments: Sequence[str]) -> int:
    """Train a detector."""
    return _run(arguments, "train")


def distill(arguments: Sequence[str]) -> int:
    """Train a student with the help of a teacher."""
    return _run(arguments, "distill")


def plan(arguments: Sequence[str]) -> int:
    """Show what distill would do and cost, without training."""
    settings = run_settings(arguments, "distill", "plan")
    from rich.console import Console

    from defeat.assembly.plan import make_plan
    from defeat.assembly.settings import DistillSettings
    from defeat.report.plan import print_plan

    assert isinstance(settings, DistillSettings)
    print_plan(make_plan(settings), Console())
    return 0


def evaluate(arguments: Sequence[str]) -> int:
    """Evaluate a trained detector."""
    from rich.console import Console

    from defeat.inference.evaluate import evaluate as function
    from defeat.report.tables import print_evaluation

    result = function(**_keywords("evaluate", arguments), console=Console(stderr=True))
    print_evaluation(result, Console())
    return 0


def predict(arguments: Sequence[str]) -> int:
    """Detect objects in images and draw them."""
    from rich.console import Console

    from defeat.inference.predict import predict as function

    keywords = _keywords("predict", arguments)
    result = function(**keywords, console=Console(stderr=True))
    count, rate = len(result.pictures), result.images / max(result.seconds, 1e-9)
    written = f"{count} picture{'s' * (count != 1)} and detections.json are in {keywords['out']}"
    sys.stdout.write(f"{written} ({rate:.1f} images per second)\n")
    if result.ignored:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in result.ignored.items())
        sys.stderr.write(f"defeat: ignored files that are neither images nor videos: {kinds}\n")
    for sentence in result.skipped:
        sys.stderr.write(f"defeat: skipped: {sentence}\n")
    return USAGE if result.skipped else 0


def compare(arguments: Sequence[str]) -> int:
    """Compare finished runs: did distillation help?"""
    from defeat.report.compare import compare as function

    function(**_keywords("compare", arguments))
    return 0


def bench(arguments: Sequence[str]) -> int:
    """Compare methods over several seeds: which one helps?"""
    from defeat import benchmark

    values, method_options = bench_settings(arguments)
    if (folders := values.pop("merge", None)) is not None:
        benchmark.merge(folders, values["out"])
        return 0
    return benchmark.bench(**values, method_options=method_options).exit_code


def data(arguments: Sequence[str]) -> int:
    """Show what a data set contains: splits, classes, sizes, problems, images that splits share."""
    from rich.console import Console

    from defeat.report.data import describe_data, print_data

    keywords = _keywords("data", arguments)
    print_data(describe_data(**keywords, console=Console(stderr=True)), Console())
    if keywords.get("out"):
        sys.stderr.write(f"Page: {keywords['out']}\n")
    return 0


def import_checkpoint(arguments: Sequence[str]) -> int:
    """Turn a detector of another tool into a run directory."""
    from defeat.detector.importers import import_checkpoint as function

    imported = function(**_keywords("import", arguments))
    info = imported.detector.info
    for note in imported.notes:
        sys.stderr.write(f"defeat: {note}\n")
    sys.stdout.write(
        f"{imported.folder} contains the {info.family} of {imported.tool} with {len(info.classes)} classes: "
        f"`defeat evaluate {imported.folder} --data PATH` shows whether it detects what it should.\n"
    )
    return 0


def export(arguments: Sequence[str]) -> int:
    """Export a trained detector to ONNX, OpenVINO or TorchScript, and check that it detects the same."""
    from rich.console import Console

    from defeat.exporting import export as function
    from defeat.report.tables import print_export

    report = function(**_keywords("export", arguments), console=Console(stderr=True))
    print_export(report, Console())
    return 0


def push(arguments: Sequence[str]) -> int:
    """Publish the student of a run on the Hugging Face hub, with a model card."""
    from defeat.publishing import push as function

    function(**_keywords("push", arguments))
    return 0


def profile(arguments: Sequence[str]) -> int:
    """Measure what predictions cost: time by batch and threads, FLOPs, memory."""
    from rich.console import Console

    from defeat.inference.profile import profile as function
    from defeat.report.tables import print_costs

    print_costs(function(**_keywords("profile", arguments), console=Console(stderr=True)), Console())
    return 0


def taps(arguments: Sequence[str]) -> int:
    """List the feature maps of your own network, for --teacher-taps."""
    from defeat.inference.taps import print_taps

    print_taps(**_keywords("taps", arguments))
    return 0


def methods(arguments: Sequence[str]) -> int:
    """List the distillation methods, or describe one: paper, arithmetic, options."""
    from rich.console import Console

    from defeat.command_options import OptionsOfCode
    from defeat.report.methods import print_method, print_methods

    name = _keywords("methods", arguments).get("name")
    if name is None:
        print_methods(Console())
        return 0
    options = OptionsOfCode().of_method(name)
    print_method(name, {option.flag: (option.default, option.help) for option in options}, Console())
    return 0


def recipes(arguments: Sequence[str]) -> int:
    """List the recipes: published figures and the commands that reproduce them."""
    from rich.console import Console

    from defeat.report.recipes import print_recipes

    _keywords("recipes", arguments)
    print_recipes(Console())
    return 0


def demo(arguments: Sequence[str]) -> int:
    """Distil a small detector on drawn scenes and show the gain, in minutes."""
    from defeat.demo import demo as function

    function(**_keywords("demo", arguments))
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "data": data,
    "train": train,
    "distill": distill,
    "plan": plan,
    "evaluate": evaluate,
    "predict": predict,
    "compare": compare,
    "bench": bench,
    "import": import_checkpoint,
    "export": export,
    "push": push,
    "profile": profile,
    "taps": taps,
    "methods": methods,
    "recipes": recipes,
    "demo": demo,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: arguments after `defeat`; None for those of the process.

    Returns:
        0: success; 1: internal error; 2: wrong usage or bad input, after a one-line message; 130: stopped by Ctrl-C;
        143: stopped by SIGTERM.
    """
    with _terminable():
        return _main(arguments)


@contextmanager
def _terminable() -> Iterator[None]:
    """Raise SystemExit on SIGTERM, so that child processes and files are cleaned up."""

    def leave(*_: Any) -> None:
        raise SystemExit(TERMINATED)

    try:
        previous = signal.signal(signal.SIGTERM, leave)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _main(arguments: Sequence[str] | None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if not given or given[0] in ("-h", "--help"):
            sys.stdout.write(overview())
            return 0 if given else USAGE
        if given[0] == "--version":
            from defeat import __version__

            sys.stdout.write(f"defeat {__version__}\n")
            return 0
        if given[0] not in COMMANDS:
            raise unknown_name("command", given[0], COMMANDS)
        if {"-h", "--help"} & set(given[1:]) and not any(text.startswith("--config") for text in given[1:]):
            from defeat.command_options import help_command

            help_command(given[0], _description(given[0]), given[1:]).parser().print_help()
            return 0
        return COMMANDS[given[0]](given[1:])
    except InputError as error:
        sys.stderr.write(f"defeat: {error}\n")
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as stop:  # --help of a command, or SIGTERM
        return stop.code if isinstance(stop.code, int) else INTERNAL
    except Exception:
        traceback.print_exc()
        sys.stderr.write("defeat: internal error; please report it with the lines above.\n")
        return INTERNAL


def overview() -> str:
    """What `defeat --help` prints."""
    lines = [f"  {name:10}{function.__doc__}\n" for name, function in COMMANDS.items()]
    return (
        "usage: defeat COMMAND [OPTIONS]\n\n"
        "Make an object detector smaller with the help of a larger one.\n\n"
        f"commands:\n{''.join(lines)}\n"
        "`defeat COMMAND --help` lists the options of a command.\n"
    )


def _run(arguments: Sequence[str], command: str) -> int:
    settings = run_settings(arguments, command)
    from defeat.assembly.run import run
    from defeat.report.compare import report_run

    result = run(settings)
    if not result.finished:
        if result.writer:
            sys.stderr.write("Resume with the same command and --resume.\n")
        return result.exit_code
    if result.writer:
        report_run(result.folder)
    return 0


def _description(command: str) -> str:
    return COMMANDS[command].__doc__ or ""


def _keywords(command: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Parse the keyword arguments of the function of a command."""
    from defeat.command_options import all_options
    from defeat.options import Command

    return Command(command, _description(command), all_options(command, arguments)).read(arguments)


def run_settings(arguments: Sequence[str], command: str, shown: str | None = None) -> "TrainSettings":
    """Parse the settings of `train` or `distill`, including those of the chosen detector and method.

    Args:
        arguments: the arguments after the command.
        command: `train` or `distill`.
        shown: name of the command in the help, if different.

    Raises:
        InputError: an option is unknown, missing or not valid.
    """
    from defeat.assembly.settings import settings_class
    from defeat.command_options import all_options
    from defeat.options import Command

    recipe = _recipe(arguments)
    if recipe.pop("command", command) != command:
        raise InputError(f"The file of --config belongs to another command than `defeat {command}`.")
    options = all_options(command, arguments, recipe)
    name = shown or command
    values = Command(name, _description(name), options, recipes=True).read(arguments, recipe)
    groups = dict.fromkeys(option.group for option in options if option.group not in ("", "detector", "method"))
    of_parts = {f"{group}.{key}": value for group in groups for key, value in values.pop(group, {}).items()}
    if of_parts:
        values["method_options"] = of_parts
    return settings_class(command)(**values)


def bench_settings(arguments: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parse the arguments of `bench`: those of the comparison and its cells, and options of each method by its name.

    Raises:
        InputError: an option is unknown, missing or not valid.
    """
    from defeat.benchmark.matrix import CELL_SETTINGS
    from defeat.command_options import all_options
    from defeat.options import Command

    dropped = {*CELL_SETTINGS, "command"} - {"out"}
    recipe = {name: value for name, value in _recipe(arguments).items() if name not in dropped}
    options = all_options("bench", arguments, recipe)
    merging = Command("bench", options=[option for option in options if option.name == "merge"]).peek(arguments)
    if merging:  # needs no data and no teacher
        options = [option for option in options if option.name in ("merge", "out")]
    values = Command("bench", _description("bench"), options, recipes=True).read(arguments, recipe)
    names = dict.fromkeys(option.group for option in options if option.group not in ("", "detector"))
    return values, {name: values.pop(name, {}) for name in names}


def _recipe(arguments: Sequence[str]) -> dict[str, Any]:
    """The merged content of all --config files; later files take precedence."""
    from defeat.assembly.recipes import find_recipe, merged, read_recipe
    from defeat.options import config_files

    content: dict[str, Any] = {}
    for name in config_files(arguments):
        content = merged(content, read_recipe(find_recipe(name)))
    return content


if __name__ == "__main__":
    sys.exit(main())
