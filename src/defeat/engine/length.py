"""Resume a run with another length than it was begun with, where that changes none of its steps so far."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from defeat.distillation import Method
from defeat.engine.checkpoint import RunDirectory, is_writer
from defeat.engine.experiment import Experiment
from defeat.engine.optimisation import LENGTH, OptimisationSettings, rate_factor, warmup_of
from defeat.errors import InputError
from defeat.settings import option
from defeat.types import Progress


@dataclass(frozen=True)
class ChangedLength:
    """A run that is resumed with other values of the settings in `LENGTH`.

    Attributes:
        directory: the run directory, whose `config.yaml` still has the earlier length.
        before: settings with which the run was begun.
        now: settings with which it is resumed.
        patient: whether AP lowers the learning rate, instead of milestones.
        method: the method of a distillation, whose weights may depend on the length as well; None without.
        only_last: whether only the last epoch is evaluated.
    """

    directory: RunDirectory
    before: OptimisationSettings
    now: OptimisationSettings
    patient: bool = False
    method: Method | None = None
    only_last: bool = False

    @property
    def options(self) -> str:
        """The changed settings as options of the command line."""
        was, now = length_of(self.before), length_of(self.now)
        changed = {name: value for name, value in now.items() if value != was[name]}
        texts = (
            f"without {option(name)}" if value is None else f"with {option(name)} {value}"
            for name, value in changed.items()
        )
        return " and ".join(texts)

    def require_same_past(self, checkpoint: Mapping[str, Any], epoch_batches: int) -> None:
        """Refuse the new length, unless a run begun with it would have trained the same steps so far.

        Args:
            checkpoint: the checkpoint to resume from.
            epoch_batches: batches per epoch.

        Raises:
            InputError: why not, and how to continue.
        """
        epoch_steps = self.now.epoch_steps(epoch_batches)
        done, steps = int(checkpoint["global_step"]), self.now.steps(epoch_steps)
        refused = f"{self.directory.folder} can't be resumed {self.options}"
        if steps < done:
            raise InputError(f"{refused}: it has trained {done} steps already, and would end after {steps}.")
        if self.only_last and _ends_before_evaluation(checkpoint, epoch_batches):
            raise InputError(
                f"{refused}, because it was stopped before its last evaluation: resume it first as it was begun."
            )
        if (difference := self._rate_difference(done, epoch_steps)) is not None:
            raise InputError(f"{refused}: {difference} {self._advice(done, epoch_steps)}")
        if (difference := self._method_difference(done, epoch_steps)) is not None:
            raise InputError(f"{refused}: {difference} {self._new_run}")

    def record(self, step: int, goes_on: bool) -> str | None:
        """Write the new length into the run directory; results so far get another name, since the run goes on.

        Args:
            step: optimiser steps so far.
            goes_on: whether the run trains further steps.

        Returns:
            Where the results so far are, in a sentence; None where the run has no results.
        """
        if not is_writer():
            return None
        self.directory.write_config(self.directory.read_config() | length_of(self.now))
        if not goes_on or not self.directory.results.exists():
            return None
        kept = self.directory.results.with_name(f"results-at-step-{step}.json")
        self.directory.results.rename(kept)
        return f"The finished run goes on from step {step}; its results so far are in {kept.name}."

    @property
    def _new_run(self) -> str:
        return (
            f"Begin a new run with its student instead: --weights {self.directory.folder}, and another --out without "
            "--resume."
        )

    def _rate_difference(self, done: int, epoch_steps: int, now: OptimisationSettings | None = None) -> str | None:
        """The first step so far whose learning rate would have been another one; None if there is none."""
        now = now or self.now
        taught = self.method is not None
        was = rate_factor(self.before, self.before.steps(epoch_steps), self.patient, taught)
        would_be = rate_factor(now, now.steps(epoch_steps), self.patient, taught)
        step = next((step for step in range(done) if was(step) != would_be(step)), None)
        if step is None:
            return None
        lr = now.number("lr")
        return (
            f"the learning rate depends on the length of the run, and would have been {lr * would_be(step):.3g} "
            f"instead of {lr * was(step):.3g} in step {step + 1} of the {done} so far."
        )

    def _advice(self, done: int, epoch_steps: int) -> str:
        """How to continue, where the learning rate was another one: with the same warm-up, if only that differs."""
        warmup = warmup_of(self.before, self.before.steps(epoch_steps))
        if self._rate_difference(done, epoch_steps, replace(self.now, warmup_steps=warmup)) is None:
            return f"Give --warmup-steps {warmup}, the warm-up that it had."
        return self._new_run

    def _method_difference(self, done: int, epoch_steps: int) -> str | None:
        """That the method's schedule would have been another one in a step so far; None if it would not."""
        if self.method is None:
            return None
        for step in range(done):
            was, would_be = (
                Progress(step, settings.steps(epoch_steps), step // epoch_steps, settings.number_of_epochs)
                for settings in (self.before, self.now)
            )
            if self.method.schedule(was) != self.method.schedule(would_be):
                return f"the method's decay and warm-up depend on the length of the run, and differ in step {step + 1}."
        return None


def length_of(settings: OptimisationSettings) -> dict[str, int | None]:
    """The settings in `LENGTH`, by name."""
    return {name: getattr(settings, name) for name in LENGTH}


def changed_length(directory: RunDirectory, experiment: Experiment) -> ChangedLength | None:
    """The change of a resumed run's length; None if it has the length that it was begun with.

    Raises:
        InputError: the run's settings can't be read.
    """
    recorded, now = experiment.record.recorded(directory.read_config()), experiment.optimisation
    values = {name: recorded[name] for name in LENGTH if name in recorded}
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | None):
            raise InputError(f"{directory.config} is not valid: {name} is {value!r}.")
    if all(value == getattr(now, name) for name, value in values.items()):
        return None
    selection, distillation = experiment.selection, experiment.distillation
    return ChangedLength(
        directory,
        replace(now, **values),
        now,
        patient=selection.patience is not None,
        method=None if distillation is None else distillation.method,
        only_last=selection.evaluation_interval == 0,
    )


def reopen_epoch(checkpoint: Mapping[str, Any], epoch_batches: int) -> None:
    """Let a checkpoint continue the epoch within which `max_steps` ended its run, and which Lightning counts as whole.

    Args:
        checkpoint: is changed.
        epoch_batches: batches per epoch.
    """
    loop = checkpoint["loops"]["fit_loop"]
    batches = loop["epoch_loop.batch_progress"]["total"]["processed"]
    for counts in (loop["epoch_progress"]["total"], loop["epoch_progress"]["current"]):
        if counts["processed"] * epoch_batches > batches:
            counts["processed"] -= 1


def _ends_before_evaluation(checkpoint: Mapping[str, Any], epoch_batches: int) -> bool:
    """Whether a checkpoint was written after the last step of an epoch, and before the evaluation at its end."""
    loop = checkpoint["loops"]["fit_loop"]
    batches, epochs = loop["epoch_loop.batch_progress"]["total"], loop["epoch_progress"]["current"]
    return bool(batches["processed"] % epoch_batches == 0 and epochs["processed"] < epochs["started"])
