"""What happens in a step: the student's losses, the teacher's view of the same pixels, and their sum."""

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
from defeat.engine.checkpoint_file import ABOUT, FORMAT
from defeat.engine.experiment import Experiment
from defeat.engine.failed_step import keep_step
from defeat.engine.gradients import measure_pulls
from defeat.engine.guards import FirstSteps, LossWatch, PullWatch, require_finite
from defeat.engine.optimisation import build_optimizer, build_schedule
from defeat.engine.provenance import commit
from defeat.engine.selection import CurvePoint, Outcome, Selection
from defeat.engine.step import step_losses, total_loss
from defeat.engine.teacher_cache import TeacherCache
from defeat.errors import InputError
from defeat.evaluation.evaluator import EvaluationResult, Evaluator
from defeat.types import DetectorOutput, Progress, Target

Images = tuple[list[Tensor], list[Target]]
GRADIENT_POINTS = 50  # of a run


class DetectionModule(LightningModule):
    """Trains a student, alone or with a teacher.

    Every step draws its random numbers from a seed of its own, made from the run's seed, the step and the process: so a
    resumed run repeats the same draws, and what a teacher draws never shifts what the student draws.

    Args:
        experiment: what is trained, and how; the teacher stays outside the module tree, so that no checkpoint, copy or
            mode switch ever touches it.
        folder: the run directory.
        cache: what the teacher has computed before, if that is kept.
        notify: called with a sentence that the user should read while the run goes on.
    """

    def __init__(
        self,
        experiment: Experiment,
        folder: Path,
        cache: TeacherCache | None = None,
        notify: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__()
        student, distillation = experiment.student, experiment.distillation
        self.student = student
        self.method = None if distillation is None else distillation.method
        self.folder = folder
        self.cache = cache
        decay = experiment.optimisation.ema
        self.average = None if decay is None else StudentAverage(student, decay)
        self._outside = (experiment,)
        self.first_steps = None if distillation is None else FirstSteps(distillation.method)
        self.loss_watch, self.pull_watch, self.notify = LossWatch(), PullWatch(), notify
        self.evaluator = Evaluator(student.info.classes)
        self.last_evaluation: EvaluationResult | None = None
        self.last_found: Evaluator | None = None  # what that evaluation is of
        self.evaluated_step: int | None = None
        self.selection = Selection(experiment.selection.keep == "best", experiment.selection.patience)
        self.step_seconds: list[float] = []
        self.earlier_seconds = 0.0  # of the parts of a run that was stopped and resumed
        self.commits = [found] if (found := commit()) else []  # of all parts; asked before the sources can change
        self._began = self._step_began = perf_counter()

    @property
    def experiment(self) -> Experiment:
        """What is trained, and how."""
        return self._outside[0]

    @property
    def teacher(self) -> TeacherNetwork | None:
        """The teacher, if there is one."""
        return None if self.experiment.distillation is None else self.experiment.distillation.teacher

    @property
    def evaluated(self) -> Detector:
        """What is evaluated and saved: the student, or the average of its weights."""
        return self.student if self.average is None else self.average.student

    def on_fit_start(self) -> None:
        """Put the teacher where the student is."""
        if self.teacher is not None:
            self.teacher.to(self.device)

    def on_train_epoch_start(self) -> None:
        """Tell the sampler the epoch: Lightning looks for samplers of images only, not of batches."""
        loader: Any = self.trainer.train_dataloader
        loader.batch_sampler.set_epoch(self.current_epoch)

    def on_train_batch_start(self, batch: Images, batch_idx: int) -> None:
        """Give the step its own seed."""
        self._step_began = perf_counter()
        torch.manual_seed(self._seed())

    def training_step(self, batch: Images, batch_idx: int) -> Tensor:
        """Compute and log every loss term; give back their sum."""
        prepared = self.student.prepare(*batch)
        output, terms = step_losses(self.student, prepared, self.progress, self.experiment.distillation, self.cache)
        losses = output.losses | terms
        self._require_finite(losses, batch)
        if self.first_steps is not None:
            self.first_steps.look(terms, output, prepared.targets)
        if sentence := self.loss_watch.look(float(total_loss(output.losses).detach()), self.global_step):
            self.notify(sentence)
        total = total_loss(losses)
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=len(batch[0]))
        scalars: dict[str, Any] = {f"train/{name}": loss.detach() for name, loss in losses.items()}
        scalars["train/lr"] = self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]
        if terms and self._measures_gradients():
            scalars |= self._pulls(terms, output)
        self.log_dict(scalars, batch_size=len(batch[0]))
        return total

    def _require_finite(self, losses: dict[str, Tensor], batch: Images) -> None:
        try:
            require_finite(losses, self.global_step, [target.image_id for target in batch[1]])
        except InputError as error:
            about = (self.progress, self.student.info.classes, self._seed(), self.global_rank)
            weights = {name: one for name, one in self.state_dict().items() if not name.startswith(PREFIX)}
            kept = keep_step(self.folder, weights, batch, *about)
            raise InputError(f"{error} To look into it: {kept} holds this step, defeat.replay computes it.") from None

    def _seed(self) -> int:
        """The seed of this step's random numbers."""
        return step_seed(self.experiment.optimisation.seed, self.global_step, self.global_rank)

    def _pulls(self, terms: dict[str, Tensor], output: DetectorOutput) -> dict[str, float]:
        """How hard the terms pull, to be logged; the user is told when that is much for a while."""
        pulls = measure_pulls(terms, output)
        if sentence := self.pull_watch.look(pulls.together, self.global_step):
            self.notify(sentence)
        return {f"gradient/{name}": ratio for name, ratio in pulls.terms.items()}

    def _measures_gradients(self) -> bool:
        """Whether this step is one of the few, among those that are logged, in which gradients are compared."""
        logged = self.experiment.logging.log_every
        every = logged * max(1, self.progress.steps // (GRADIENT_POINTS * logged))
        return (self.global_step + 1) % every == 0

    @property
    def progress(self) -> Progress:
        """Where the run stands."""
        steps = int(self.trainer.estimated_stepping_batches)
        return Progress(self.global_step, steps, self.current_epoch, self.trainer.max_epochs or 1)

    def on_train_batch_end(self, outputs: Any, batch: Images, batch_idx: int) -> None:
        """Keep the time that the step took."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.step_seconds.append(perf_counter() - self._step_began)

    def on_train_end(self) -> None:
        """A run may be shorter than what counts as its first steps."""
        if self.first_steps is not None and not self.first_steps.done:
            self.first_steps.judge()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what was seen so far: a resumed run takes as long as all of its parts, and comes from their code."""
        checkpoint[ABOUT] = {"format": FORMAT} | self._conditions()
        checkpoint["commits"] = list(self.commits)
        checkpoint["evaluated_step"] = self.evaluated_step
        checkpoint["first_steps"] = None if self.first_steps is None else self.first_steps.state()
        checkpoint["watches"] = [dict(vars(watch)) for watch in (self.loss_watch, self.pull_watch)]
        checkpoint["selection"] = self.selection.state()
        checkpoint["step_seconds"] = list(self.step_seconds)
        checkpoint["wall_seconds"] = self.earlier_seconds + perf_counter() - self._began

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over what was seen so far.

        Raises:
            InputError: the checkpoint is of other data or another number of processes.
        """
        self._require_same(checkpoint)
        if (seen := checkpoint.get("first_steps")) is None:
            self.first_steps = None
        elif self.first_steps is not None:
            self.first_steps.restore(seen)
        for watch, state in zip((self.loss_watch, self.pull_watch), checkpoint.get("watches", []), strict=False):
            vars(watch).update(state)
        if "selection" in checkpoint:
            self.selection.restore(checkpoint["selection"], self.student.info.classes)
        self.trainer.should_stop = self.selection.over
        self.commits = list(dict.fromkeys([*checkpoint.get("commits", []), *self.commits]))
        self.evaluated_step = checkpoint.get("evaluated_step")
        self.step_seconds = list(checkpoint.get("step_seconds", []))
        self.earlier_seconds = checkpoint.get("wall_seconds", 0.0)

    def _conditions(self) -> dict[str, Any]:
        """What settings can't show, and what must not change within a run."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        found: dict[str, Any] = {"training images": data.fingerprint, "processes": self.trainer.world_size}
        return found

    def _require_same(self, checkpoint: dict[str, Any]) -> None:
        now, begun = self._conditions(), checkpoint.get(ABOUT, {})
        changed = [
            f"{name} (were {begun[name]}, are {now[name]})" for name in now if begun.get(name, now[name]) != now[name]
        ]
        if changed:
            raise InputError(f"{self.folder} can't be resumed with other {'; other '.join(changed)}.")

    def validation_step(self, batch: Images, batch_idx: int) -> None:
        """Detect objects and keep what was found, in the full precision of the model that will be saved."""
        images, targets = batch
        with torch.autocast(self.device.type, enabled=False):
            found = self.evaluated.predict(images)
        self.evaluator.update([one.cpu() for one in found], targets)

    def on_validation_epoch_end(self) -> None:
        """Log AP over the images of all processes, each counted once."""
        self.evaluator.merge(gather(self.evaluator.state(), self.trainer.world_size))
        self.last_found, self.last_evaluation = self.evaluator, self.evaluator.compute()
        self.evaluated_step = self.global_step
        self.evaluator = Evaluator(self.student.info.classes)
        metrics = {f"val/{name}": value for name, value in self.last_evaluation.metrics.items() if value is not None}
        self.log_dict(metrics, rank_zero_only=False)
        self.log("AP", metrics.get("val/AP", 0.0), prog_bar=True, logger=False)
        self._select(self.last_evaluation, self.last_found)

    def _select(self, evaluation: EvaluationResult, found: Evaluator) -> None:
        """Take in an evaluation; all processes have the same figures, and decide the same."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        step = self.global_step
        accuracies = (evaluation.metrics["AP"], evaluation.metrics["AP50"])
        point = CurvePoint(round(step / max(1, data.epoch_steps()), 3), step, *accuracies)
        sentence = self.selection.look(point, self.evaluated, evaluation, found)
        if sentence is not None and step < data.steps():
            self.notify(sentence)
        self.trainer.should_stop = self.trainer.should_stop or self.selection.over

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """As the settings ask for; see `engine/optimisation.py`."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        settings = self.experiment.optimisation
        optimizer = build_optimizer(self.student, self.method, settings)
        falls = None if self.selection.patience is None else lambda: self.selection.falls
        schedule = build_schedule(optimizer, settings, data.steps(), falls)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def optimizer_step(self, *arguments: Any, **more: Any) -> None:
        """Take a step, and take its weights into their average: a checkpoint behind it has both."""
        super().optimizer_step(*arguments, **more)
        if self.average is not None:
            self.average.update_parameters(self.student)

    def outcome(self) -> Outcome:
        """What the run reports and saves, once it is over: the student of the last evaluation, or of the best."""
        if (best := self.selection.best) is not None:
            self.evaluated.load_state_dict(best.weights)
            return Outcome(self.evaluated, best.point, best.evaluation, best.found)
        if self.last_evaluation is None:
            return Outcome(self.evaluated)
        return Outcome(self.evaluated, self.selection.curve[-1], self.last_evaluation, self.last_found)

    def ended(self) -> dict[str, Any]:
        """After how many epochs and steps the run ended, and why: `epochs`, `max_steps` or `patience`."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        step, whole = self.global_step, self.experiment.optimisation.epochs * data.epoch_steps()
        reason = "epochs" if step >= whole else "max_steps" if step >= data.steps() else "patience"
        return {"epoch": round(step / max(1, data.epoch_steps()), 3), "step": step, "reason": reason}

    def save_student(self, folder: Path) -> None:
        """Write the student that the run would report if it ended now."""
        best = self.selection.best
        save_model(self.evaluated, folder, None if best is None else best.weights)

    def median_step(self) -> float | None:
        """Median time of a step in seconds, data loading excluded; None before the first."""
        return median(self.step_seconds) if self.step_seconds else None


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of a step's random numbers, of 63 bits: other steps, processes and runs get unrelated ones."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) & (2**64 - 1)
    mixed = ((mixed ^ (mixed >> 31)) * 0xD6E8FEB86659FD93) & (2**64 - 1)
    return (mixed ^ (mixed >> 32)) & (2**63 - 1)


def gather(state: Any, processes: int) -> Sequence[Any]:
    """The states of the other processes, in all processes; empty when there is only one."""
    if processes == 1:
        return []
    states: list[Any] = [None] * processes
    torch.distributed.all_gather_object(states, state)
    own = torch.distributed.get_rank()
    return [other for rank, other in enumerate(states) if rank != own]
