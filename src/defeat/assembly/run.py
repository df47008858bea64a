"""Train a detector, with or without a teacher: from settings to a finished run directory."""

from dataclasses import asdict
from time import perf_counter
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from defeat.assembly import inheriting
from defeat.assembly.assemble import assemble, with_frozen_teacher
from defeat.assembly.balance import balanced
from defeat.assembly.objects import Objects
from defeat.assembly.recipes import expected
from defeat.assembly.settings import TrainSettings
from defeat.assembly.stages import run_in_stages
from defeat.engine.checkpoint import RunDirectory
from defeat.engine.fit import Completion, RunResult, fit, notifier


def run(settings: TrainSettings, console: Console | None = None, given: Objects | None = None) -> RunResult:
    """Train a detector.

    Args:
        settings: `DistillSettings` for distillation, else `TrainSettings`.
        console: where to print progress.
        given: objects that replace settings.

    Raises:
        InputError: the settings, the data or the run directory is not valid.
    """
    console = console or Console(stderr=True)
    directory = RunDirectory(settings.out)
    with directory.locked(notifier(console)):
        directory.require_free(settings.resume)
        if (named := settings.distillation) is not None and named.then:
            return run_in_stages(
                named,
                given,
                console,
                train=lambda stage: run(stage, console, given),
                last=lambda stage, complete: _run(stage, directory, console, given, complete),
            )
        return _run(settings, directory, console, given)


def _run(
    settings: TrainSettings,
    directory: RunDirectory,
    console: Console,
    given: Objects | None,
    complete: Completion = dict,
) -> RunResult:
    start_time = perf_counter()
    figure = expected(settings.expected)
    assembly = assemble(settings, console, given=given)
    if sentence := assembly.choices.describe():
        rank_zero_only(console.print)(f"auto: {sentence}", highlight=False, soft_wrap=True)
    experiment = balanced(assembly, with_frozen_teacher(assembly.experiment), console)
    lessons = assembly.lessons
    start_files: dict[str, dict[str, Any]] = {}
    extra_results: dict[str, Any] = {}
    if assembly.training_images_evaluated is not None:
        extra_results["training_images_evaluated"] = assembly.training_images_evaluated
    if lessons is not None:
        inherited = lessons.inherited
        start_files[inheriting.FILE] = asdict(inherited)
        extra_results["teacher_kind"] = lessons.kind
        extra_results["inherited"] = {"parts": inherited.parts, "parameters": inherited.parameters}
    result = fit(
        experiment,
        directory,
        console,
        start_time=start_time,
        start_files=start_files,
        complete=lambda results: complete({**results, **extra_results}),
    )
    if figure is not None and result.writer and result.finished and result.evaluation is not None:
        console.print(figure.judge(result.evaluation.metrics), highlight=False)
    return result
