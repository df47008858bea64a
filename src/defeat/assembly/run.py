"""Train a detector, with the help of a teacher or without: from settings to a finished run directory."""

import inspect
from time import perf_counter
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from defeat.assembly.assemble import assemble, with_frozen_teacher
from defeat.assembly.balance import balanced
from defeat.assembly.inheriting import keep
from defeat.assembly.recipes import expected
from defeat.assembly.settings import DistillSettings, TrainSettings
from defeat.engine.checkpoint import RunDirectory
from defeat.engine.fit import RunResult, fit, notifier


def train(**options: Any) -> RunResult:
    """Train a detector; the options are the fields of `TrainSettings`.

    Raises:
        InputError: an option, the data or the run directory is not valid.
    """
    return run(TrainSettings(**options))


def distill(**options: Any) -> RunResult:
    """Train a student with the help of a teacher; the options are the fields of `DistillSettings`.

    Raises:
        InputError: an option, the data, the teacher, the pair or the run directory is not valid.
    """
    return run(DistillSettings(**options))


# So that help() and editors show the options.
train.__signature__ = inspect.signature(TrainSettings)  # type: ignore[attr-defined]
distill.__signature__ = inspect.signature(DistillSettings)  # type: ignore[attr-defined]


def run(settings: TrainSettings, console: Console | None = None) -> RunResult:
    """Carry out a run.

    Args:
        settings: `DistillSettings` for a student with a teacher, else `TrainSettings`.
        console: where to show progress.

    Raises:
        InputError: something about the settings, the data or the folder is not valid.
    """
    console = console or Console(stderr=True)
    directory = RunDirectory(settings.out)
    with directory.locked(notifier(console)):
        directory.require_free(settings.resume)
        return _run(settings, directory, console)


def _run(settings: TrainSettings, directory: RunDirectory, console: Console) -> RunResult:
    began = perf_counter()
    figure = expected(settings.expected)
    assembly = assemble(settings, console)
    if sentence := assembly.choices.describe():
        rank_zero_only(console.print)(f"auto: {sentence}", highlight=False, soft_wrap=True)
    experiment = balanced(assembly, with_frozen_teacher(assembly.experiment), console)
    lessons, facts = assembly.lessons, {}
    if lessons is not None:
        facts["inherited"] = {"parts": lessons.inherited.parts, "parameters": lessons.inherited.parameters}

    def opened(resumed: bool) -> None:
        if lessons is not None and not resumed:
            keep(lessons.inherited, directory.folder)

    result = fit(experiment, directory, console, began, opened, facts)
    if figure is not None and result.writer and result.finished and result.evaluation is not None:
        console.print(figure.judge(result.evaluation.metrics), highlight=False)
    return result
