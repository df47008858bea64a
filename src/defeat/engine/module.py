"""The Lightning module of a run: training steps, evaluations, and the state in checkpoints."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
import torch.distributed
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from defeat.detector import Detector, TeacherNetwork, save_model
from defeat.engine.averaging import PREFIX, StudentAverage
from defeat.engine.checkpoint_file import FORMAT, METADATA
from defeat.engine.experiment import Experiment
from defeat.engine.failed_step import save_step
from defeat.engine.gradients import measure_gradient_ratios
from defeat.engine.guards import FirstSteps, GradientWatch, LossWatch, require_finite
from defeat.engine.length import ChangedLength, reopen_epoch
from defeat.engine.optimisation import build_optimizer, build_schedule
from defeat.engine.provenance import commit
from defeat.engine.quantisation import SimulatedInt8
from defeat.engine.selection import CurvePoint, Outcome, Selection
from defeat.engine.step import step_losses, total_loss
from defeat.engine.teacher_cache import TeacherCache
from defeat.errors import InputError
from defeat.evaluation.evaluator import EvaluationResult, Evaluator
from defeat.types import DetectorOutput, Progress, Target

Images = tuple[list[Tensor], list[Target]]
GRADIENT_POINTS = 50  # measurements of gradients per run


class DetectionModule(LightningModule):
    """Trains a student, with or without a teacher.

    Every step has its own random seed, made from the run's seed, the step and the process: a resumed run draws the same
    random numbers, and the teacher's random numbers never shift the student's.

    Args:
        experiment: what is trained, and how; the teacher stays outside the module tree, so that checkpoints, copies and
            mode switches never affect it.
        folder: the run directory.
        cache: stored feature maps of the teacher; None to compute them in each step.
        notify: called with messages for the user.
        changed_length: change of the length of a resumed run; None without.
    """

    def __init__(
        self,
        experiment: Experiment,
        folder: Path,
        cache: TeacherCache | None = None,
        notify: Callable[[str], None] = lambda _: None,
        changed_length: ChangedLength | None = None,
    ) -> None:
        super().__init__()
        student, distillation = experiment.student, experiment.distillation
        self.student = student
        self.method = None if distillation is None else distillation.method
        self.folder = folder
        self.cache = cache
        self.changed_length = changed_length
        decay = experiment.optimisation.ema
        self.average = None if decay is None else StudentAverage(student, decay)
        self.int8 = SimulatedInt8(student) if experiment.optimisation.quantise == "int8" else None
        self._outside = (experiment,)  # a tuple hides the teacher from the module tree
        self.first_steps = None if distillation is None else FirstSteps(distillation.method)
        self.loss_watch, self.gradient_watch, self.notify = LossWatch(), GradientWatch(), notify
        self.evaluator = Evaluator(student.info.classes)
        self.last_evaluation: EvaluationResult | None = None
        self.last_evaluator: Evaluator | None = None  # the detections of that evaluation
        self.evaluated_step: int | None = None
        self.selection = Selection(experiment.selection.keep == "best", experiment.selection.patience)
        self.step_seconds: list[float] = []
        self.earlier_seconds = 0.0  # before the run was resumed
        self.commits = [source] if (source := commit()) else []  # of all parts; read before the sources can change
        self._began = self._step_began = perf_counter()
        self._batch_of_step = 0

    @property
    def experiment(self) -> Experiment:
        """The experiment."""
        return self._outside[0]

    @property
    def teacher(self) -> TeacherNetwork | None:
        """The teacher, if there is one."""
        return None if self.experiment.distillation is None else self.experiment.distillation.teacher

    @property
    def evaluated(self) -> Detector:
        """The detector that is evaluated and saved: the student, or the average of its weights."""
        return self.student if self.average is None else self.average.student

    def on_fit_start(self) -> None:
        """Move the teacher to the student's device."""
        if self.teacher is not None:
            self.teacher.to(self.device)

    def on_train_start(self) -> None:
        """Set the learning rate of the next step, which the checkpoint has from the earlier length of the run."""
        if self.changed_length is None or self.selection.patience is not None:
            return
        schedule: Any = self.lr_schedulers()
        for group, rate, factor in zip(
            schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
        ):
            group["lr"] = rate * factor(schedule.last_epoch)

    def on_train_epoch_start(self) -> None:
        """Set the epoch of the batch sampler, which Lightning does for samplers of images only."""
        loader: Any = self.trainer.train_dataloader
        loader.batch_sampler.set_epoch(self.current_epoch)

    def on_train_batch_start(self, batch: Images, batch_idx: int) -> None:
        """Seed the random numbers of the batch."""
        self._batch_of_step = batch_idx % self.experiment.optimisation.accumulate
        if self._batch_of_step == 0:
            self._step_began = perf_counter()
        torch.manual_seed(self._seed())

    def training_step(self, batch: Images, batch_idx: int) -> Tensor:
        """Compute and log every loss term; returns their sum."""
        prepared = self.student.prepare(*batch)
        distillation = self.experiment.distillation
        output, terms = step_losses(self.student, prepared, self.progress, distillation, self.cache, self.int8)
        losses = output.losses | terms
        self._require_finite(losses, batch)
        if self.first_steps is not None:
            self.first_steps.update(terms, output, prepared.targets)
        if message := self.loss_watch.update(float(total_loss(output.losses).detach()), self.global_step):
            self.notify(message)
        total = total_loss(losses)
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=len(batch[0]))
        scalars: dict[str, Any] = {f"train/{name}": loss.detach() for name, loss in losses.items()}
        scalars["train/lr"] = self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]
        if terms and self._measures_gradients():
            scalars |= self._gradient_ratios(terms, output)
        self.log_dict(scalars, batch_size=len(batch[0]))
        return self._averaged(total, batch_idx)

    def _averaged(self, loss: Tensor, batch: int) -> Tensor:
        """A loss for the mean over the batches of its step; Lightning always divides by the full number of batches."""
        every, batches = self.experiment.optimisation.accumulate, int(self.trainer.num_training_batches)
        first = batch - batch % every
        size = min(every, batches - first)
        return loss if size == every else loss * (every / size)

    def _require_finite(self, losses: dict[str, Tensor], batch: Images) -> None:
        try:
            require_finite(losses, self.global_step, [target.image_id for target in batch[1]])
        except InputError as error:
            weights = {name: value for name, value in self.state_dict().items() if not name.startswith(PREFIX)}
            path = save_step(
                self.folder, weights, batch, self.progress, self.student.info.classes, self._seed(), self.global_rank
            )
            raise InputError(f"{error} To debug it: {path} contains this step, defeat.replay computes it.") from None

    def _seed(self) -> int:
        """The random seed of this batch."""
        settings = self.experiment.optimisation
        batch = self.global_step * settings.accumulate + self._batch_of_step
        return step_seed(settings.seed, batch, self.global_rank)

    def _gradient_ratios(self, terms: dict[str, Tensor], output: DetectorOutput) -> dict[str, float]:
        """Gradient ratios of the terms, to be logged; notifies the user if they stay large."""
        ratios = measure_gradient_ratios(terms, output)
        if message := self.gradient_watch.update(ratios.together, self.global_step):
            self.notify(message)
        return {f"gradient/{name}": ratio for name, ratio in ratios.terms.items()}

    def _measures_gradients(self) -> bool:
        """Whether gradients are compared in this step: in a few of the logged steps."""
        logged = self.experiment.logging.log_every
        every = logged * max(1, self.progress.steps // (GRADIENT_POINTS * logged))
        return (self.global_step + 1) % every == 0

    @property
    def progress(self) -> Progress:
        """Current step and epoch of the run."""
        steps = int(self.trainer.estimated_stepping_batches)
        return Progress(self.global_step, steps, self.current_epoch, self.trainer.max_epochs or 1)

    def on_train_batch_end(self, outputs: Any, batch: Images, batch_idx: int) -> None:
        """Record the duration of a step, once all its batches are done."""
        if not self.ends_step(batch_idx):
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.step_seconds.append(perf_counter() - self._step_began)

    def ends_step(self, batch: int) -> bool:
        """Whether an optimiser step follows a batch of the epoch, counted from 0."""
        return (batch + 1) % self.experiment.optimisation.accumulate == 0 or bool(self.trainer.is_last_batch)

    def on_train_end(self) -> None:
        """Check the first steps of a run that is shorter than them."""
        if self.first_steps is not None and not self.first_steps.done:
            self.first_steps.check()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state of guards, selection, times and commits to the checkpoint."""
        checkpoint[METADATA] = {"format": FORMAT} | self._conditions()
        checkpoint["commits"] = list(self.commits)
        checkpoint["evaluated_step"] = self.evaluated_step
        checkpoint["first_steps"] = None if self.first_steps is None else self.first_steps.state()
        checkpoint["watches"] = [dict(vars(watch)) for watch in (self.loss_watch, self.gradient_watch)]
        checkpoint["selection"] = self.selection.state()
        checkpoint["step_seconds"] = list(self.step_seconds)
        checkpoint["wall_seconds"] = self.earlier_seconds + perf_counter() - self._began

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the state of guards, selection, times and commits.

        Raises:
            InputError: the checkpoint belongs to other data or another number of processes, or the run can't be resumed
                with another length.
        """
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self._require_same_conditions(checkpoint)
        if self.changed_length is not None:
            self.changed_length.require_same_past(checkpoint, data.epoch_batches())
            reopen_epoch(checkpoint, data.epoch_batches())
        if (first_steps := checkpoint.get("first_steps")) is None:
            self.first_steps = None
        elif self.first_steps is not None:
            self.first_steps.restore(first_steps)
        for watch, state in zip((self.loss_watch, self.gradient_watch), checkpoint.get("watches", []), strict=False):
            vars(watch).update(state)
        if "selection" in checkpoint:
            self.selection.restore(checkpoint["selection"], self.student.info.classes)
        self.trainer.should_stop = self.selection.over
        self.commits = list(dict.fromkeys([*checkpoint.get("commits", []), *self.commits]))
        self.evaluated_step = checkpoint.get("evaluated_step")
        self.step_seconds = list(checkpoint.get("step_seconds", []))
        self.earlier_seconds = checkpoint.get("wall_seconds", 0.0)
        if self.changed_length is not None:
            self._change_length(self.changed_length, checkpoint["global_step"], data.steps())

    def _change_length(self, change: ChangedLength, step: int, steps: int) -> None:
        """Record the new length of a run that is resumed after a step."""
        goes_on = step < steps and not self.selection.over
        if (message := change.record(step, goes_on)) is not None:
            self.notify(message)
        if self.selection.over and step < steps:
            self.notify("AP had stopped improving, so that --patience ended this run: it does not go on.")

    def _conditions(self) -> dict[str, Any]:
        """Conditions that are not settings and must not change within a run."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        conditions: dict[str, Any] = {"training images": data.fingerprint, "processes": self.trainer.world_size}
        return conditions

    def _require_same_conditions(self, checkpoint: dict[str, Any]) -> None:
        now, before = self._conditions(), checkpoint.get(METADATA, {})
        changed = [
            f"{name} (were {before[name]}, are {now[name]})" for name in now if before.get(name, now[name]) != now[name]
        ]
        if changed:
            raise InputError(f"{self.folder} can't be resumed with other {'; other '.join(changed)}.")

    def validation_step(self, batch: Images, batch_idx: int) -> None:
        """Detect objects and collect the detections, in the full precision of the saved model."""
        images, targets = batch
        with torch.autocast(self.device.type, enabled=False):
            detections = self.evaluated.predict(images)
        self.evaluator.update([of_image.cpu() for of_image in detections], targets)

    def on_validation_epoch_end(self) -> None:
        """Log AP over the images of all processes, each counted once."""
        self.evaluator.merge(gather(self.evaluator.state(), self.trainer.world_size))
        self.last_evaluator, self.last_evaluation = self.evaluator, self.evaluator.compute()
        self.evaluated_step = self.global_step
        self.evaluator = Evaluator(self.student.info.classes)
        metrics = {f"val/{name}": value for name, value in self.last_evaluation.metrics.items() if value is not None}
        self.log_dict(metrics, rank_zero_only=False)
        self.log("AP", metrics.get("val/AP", 0.0), prog_bar=True, logger=False)
        self._select(self.last_evaluation, self.last_evaluator)

    def _select(self, evaluation: EvaluationResult, evaluator: Evaluator) -> None:
        """Process an evaluation; all processes have the same metrics, and decide the same."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        step = self.global_step
        accuracies = (evaluation.metrics["AP"], evaluation.metrics["AP50"])
        point = CurvePoint(round(step / max(1, data.epoch_steps()), 3), step, *accuracies)
        message = self.selection.update(point, self.evaluated, evaluation, evaluator)
        if message is not None and step < data.steps():
            self.notify(message)
        self.trainer.should_stop = self.trainer.should_stop or self.selection.over

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimiser and learning rate schedule; see `engine/optimisation.py`."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        settings = self.experiment.optimisation
        optimizer = build_optimizer(self.student, self.method, settings)
        falls = None if self.selection.patience is None else lambda: self.selection.falls
        schedule = build_schedule(optimizer, settings, data.steps(), falls, taught=self.method is not None)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def optimizer_step(self, *arguments: Any, **keywords: Any) -> None:
        """Take a step and update the average of the weights, so that a checkpoint after the step has both."""
        super().optimizer_step(*arguments, **keywords)
        if self.average is not None:
            self.average.update_parameters(self.student)

    def outcome(self) -> Outcome:
        """The student that the run reports and saves: that of the last evaluation, or of the best."""
        if (best := self.selection.best) is not None:
            self.evaluated.load_state_dict(best.weights)
            return Outcome(self.evaluated, best.point, best.evaluation, best.evaluator)
        if self.last_evaluation is None:
            return Outcome(self.evaluated)
        return Outcome(self.evaluated, self.selection.curve[-1], self.last_evaluation, self.last_evaluator)

    def ended(self) -> dict[str, Any]:
        """Epoch and step at which the run ended, and the reason: `epochs`, `max_steps` or `patience`."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        step, all_steps = self.global_step, self.experiment.optimisation.number_of_epochs * data.epoch_steps()
        reason = "epochs" if step >= all_steps else "max_steps" if step >= data.steps() else "patience"
        return {"epoch": round(step / max(1, data.epoch_steps()), 3), "step": step, "reason": reason}

    def save_student(self, folder: Path) -> None:
        """Write the student that the run would report if it ended now."""
        best = self.selection.best
        save_model(self.evaluated, folder, None if best is None else best.weights)

    def median_step(self) -> float | None:
        """Median duration of a step in seconds, without data loading; None before the first step."""
        return median(self.step_seconds) if self.step_seconds else None


def step_seed(seed: int, step: int, rank: int) -> int:
    """The random seed of a step, 63 bits; those of other steps, processes and runs are unrelated."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) & (2**64 - 1)
    mixed = ((mixed ^ (mixed >> 31)) * 0xD6E8FEB86659FD93) & (2**64 - 1)
    return (mixed ^ (mixed >> 32)) & (2**63 - 1)


def gather(state: Any, processes: int) -> Sequence[Any]:
    """The states of the other processes, returned in all processes; empty for a single process."""
    if processes == 1:
        return []
    states: list[Any] = [None] * processes
    torch.distributed.all_gather_object(states, state)
    own_rank = torch.distributed.get_rank()
    return [other for rank, other in enumerate(states) if rank != own_rank]
