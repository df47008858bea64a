"""Train a detector, with the help of a teacher or without: from settings to a finished run directory."""

from time import perf_counter
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from defeat.assembly.assemble import assemble, with_frozen_teacher
from defeat.assembly.balance import balanced
from defeat.assembly.inheriting import keep
from defeat.assembly.objects import Objects
from defeat.assembly.recipes import expected
from defeat.assembly.settings import TrainSettings
from defeat.engine.checkpoint import RunDirectory
from defeat.engine.fit import RunResult, fit, notifier


def run(settings: TrainSettings, console: Console | None = None, given: Objects | None = None) -> RunResult:
    """Carry out a run.

    Args:
        settings: `DistillSettings` for a student with a teacher, else `TrainSettings`.
        console: where to show progress.
        given: objects that take the place of words.

    Raises:
        InputError: something about the settings, the data or the folder is not valid.
    """
    console = console or Console(stderr=True)
    directory = RunDirectory(settings.out)
    with directory.locked(notifier(console)):
        directory.require_free(settings.resume)
        return _run(settings, directory, console, given)


def _run(settings: TrainSettings, directory: RunDirectory, console: Console, given: Objects | None) -> RunResult:
    began = perf_counter()
    figure = expected(settings.expected)
    assembly = assemble(settings, console, given=given)
    if sentence := assembly.choices.describe():
        rank_zero_only(console.print)(f"auto: {sentence}", highlight=False, soft_wrap=True)
    experiment = balanced(assembly, with_frozen_teacher(assembly.experiment), console)
    lessons = assembly.lessons
    facts: dict[str, Any] = {}
    if lessons is not None:
        facts["inherited"] = {"parts": lessons.inherited.parts, "parameters": lessons.inherited.parameters}

    def opened(resumed: bool) -> None:
        if lessons is not None and not resumed:
            keep(lessons.inherited, directory.folder)

    result = fit(experiment, directory, console, began, opened, facts)
    if figure is not None and result.writer and result.finished and result.evaluation is not None:
        console.print(figure.judge(result.evaluation.metrics), highlight=False)
    return result
