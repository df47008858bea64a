"""Progressive teachers: one student, taught by one teacher after the other (Cao et al., MTPD, ICML 2023).

The stages but the last are runs of their own in `stages/1`, `stages/2` ... of the run directory; the last is the run
directory itself. Each begins with the student of the one before, and with new adaptation layers. `stages/config.yaml`
has the settings of the whole.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from defeat.assembly.assemble import load_teacher, record_of
from defeat.assembly.objects import Objects
from defeat.assembly.settings import DistillSettings
from defeat.assembly.students import described_by, with_given_architecture
from defeat.detector import load_detector
from defeat.distillation import find_method
from defeat.engine.checkpoint import RunDirectory, is_writer
from defeat.engine.fit import Completion, RunResult
from defeat.errors import InputError

FOLDER = "stages"
OBJECTS = ("student", "teacher", "method")
SUMS = ("steps", "wall_seconds", "train_seconds")  # figures of `results.json` that are those of all stages together

NO_TEACHER_FILES: dict[str, Any] = dict.fromkeys(
    ("teacher_weights", "teacher_taps", "teacher_description", "teacher_shares")
)  # which belong to the first teacher

Train = Callable[[DistillSettings], RunResult]


@dataclass(frozen=True)
class Stage:
    """What happens in a stage: which teacher, for how many epochs, with which method."""

    teacher: str
    epochs: int | Literal["auto"]
    method: str


def stages_of(settings: DistillSettings) -> list[Stage]:
    """The stages of a run, the first of which is described by `teacher`, `epochs` and `method`."""
    later = len(settings.then)
    lengths: Sequence[int | Literal["auto"]] = settings.then_epochs or [settings.epochs] * later
    methods = settings.then_methods or [settings.method] * later
    first = Stage(settings.teacher, settings.epochs, settings.method)
    return [first, *(Stage(*each) for each in zip(settings.then, lengths, methods, strict=True))]


class Stages:
    """A run in stages.

    Args:
        settings: settings of the whole run, with teachers in `then`.
        given: objects that replace settings.

    Raises:
        InputError: an object is given that only one stage could have, or a method is unknown.
    """

    def __init__(self, settings: DistillSettings, given: Objects | None = None) -> None:
        self.settings = settings
        for name in OBJECTS:
            if getattr(given, name, None) is not None:
                raise InputError(f"then names the teachers of later stages: give {name} as a name, too.")
        self.folder = Path(settings.out) / FOLDER
        for name in settings.then_methods:
            find_method(name)

    def open(self) -> None:
        """Create the folder of the stages, or check that the run which is resumed has the same settings.

        Raises:
            InputError: it has others, a run that is not resumed exists, or a teacher of a later stage can't be loaded,
                which would show after hours.
        """
        for teacher in self.settings.then:
            load_teacher(replace(self.settings, **NO_TEACHER_FILES, teacher=teacher))
        directory, record = RunDirectory(self.folder), record_of(self.settings)
        content = {"command": record.command, **record.values}
        directory.require_free(self.settings.resume)
        if directory.config.is_file():
            directory.require_same(content, record)
        if is_writer():
            directory.write_config(content)

    def announce(self, number: int, console: Console) -> None:
        """Print which stage begins, counted from 0, and its teacher."""
        every = stages_of(self.settings)
        text = f"Stage {number + 1} of {len(every)}: {every[number].teacher}"
        console.print(text, style="bold", highlight=False, markup=False)

    def settings_of(self, number: int) -> DistillSettings:
        """Settings of a stage, counted from 0; those before it are finished."""
        settings, stage = self.settings, stages_of(self.settings)[number]
        out = Path(settings.out) if number == len(settings.then) else self.folder / str(number + 1)
        changes: dict[str, Any] = {
            **asdict(stage),
            "out": str(out),
            "method_options": settings.method_options if stage.method == settings.method else {},
            "resume": settings.resume and RunDirectory(out).resumable,
            "then": [],
            "then_epochs": [],
            "then_methods": [],
        }
        if number == 0:
            return replace(settings, **changes)
        before = str(self.folder / str(number))
        described = described_by(with_given_architecture(settings), load_detector(before).spec)
        changes |= {"weights": before, "inherit": "none", "student_from": None, "width": 1.0} | NO_TEACHER_FILES
        return replace(described, **changes)

    def complete(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """Add the earlier stages to the results of the last: a table of all, and the sums of their cost."""
        earlier = [_results(self.folder / str(number + 1)) for number in range(len(self.settings.then))]
        stages = [*earlier, dict(results)]
        table = [
            {"teacher": stage["teacher"], "method": stage["method"], "epochs": stage["epochs"], "AP": _ap(stage)}
            for stage in stages
        ]
        sums = {name: round(sum(stage[name] or 0 for stage in stages), 1) for name in SUMS}
        return {**results, **sums, "epochs": sum(stage["epochs"] for stage in stages), "stages": table}


def describe(settings: DistillSettings) -> list[str]:
    """The later stages in one sentence each, for the plan."""
    return [
        f"Stage {number}, after this one: {stage.teacher} teaches for {stage.epochs} epochs with {stage.method}."
        for number, stage in enumerate(stages_of(settings)[1:], start=2)
    ]


def _ap(results: Mapping[str, Any]) -> float | None:
    value: float | None = results["metrics"].get("AP")
    return value


def _results(folder: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((folder / "results.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: the results of this stage can't be read.") from error
    return content


def run_in_stages(
    settings: DistillSettings,
    given: Objects | None,
    console: Console,
    train: Train,
    last: Callable[[DistillSettings, Completion], RunResult],
) -> RunResult:
    """Train all stages.

    Args:
        settings: settings of the whole run.
        given: objects that replace settings.
        console: where to print which stage begins.
        train: trains an earlier stage in a run directory of its own.
        last: trains the last stage, and completes its results with the given function.
    """
    stages = Stages(settings, given)
    stages.open()
    for number in range(len(settings.then)):
        stage = stages.settings_of(number)
        if RunDirectory(stage.out).results.is_file():
            continue
        stages.announce(number, console)
        result = train(stage)
        if not result.finished:
            return replace(result, folder=Path(settings.out))
    stages.announce(len(settings.then), console)
    return last(stages.settings_of(len(settings.then)), stages.complete)
