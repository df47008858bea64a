"""Trains a detector, with the help of a teacher or without, into a run directory."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from signal import SIGINT
from time import perf_counter
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from defeat.data import DetectionDataset
from defeat.detector import load, save_model
from defeat.engine.checkpoint import RunDirectory
from defeat.engine.checkpoint_file import CheckpointFile
from defeat.engine.datamodule import DetectionDataModule
from defeat.engine.duration import LongRunNotice
from defeat.engine.experiment import Experiment
from defeat.engine.guards import fingerprint, require_same_detections, require_student_alone
from defeat.engine.loggers import build_loggers
from defeat.engine.logs import Checkpoint, Interrupted, JsonLinesLogger, progress_callback
from defeat.engine.module import DetectionModule
from defeat.engine.provenance import machine, versions
from defeat.engine.selection import Outcome
from defeat.engine.teacher_cache import open_cache
from defeat.errors import InputError
from defeat.evaluation.detections import save_detections
from defeat.evaluation.evaluator import EvaluationResult
from defeat.files import FULL

LEARNED = 1.0  # AP50 that a detector has to reach to have learned anything
VERIFIED = 4  # images on which the saved model must find what the last evaluation found


@dataclass(frozen=True)
class RunResult:
    """Result of a run.

    Attributes:
        folder: the run directory.
        evaluation: figures on the evaluation split of the weights that were kept; of a run that is not finished, of the
            last evaluation.
        finished: false when the user stopped the run, which can then be resumed.
        writer: whether this process is the one of all that writes files.
        signal: how the user stopped a run that is not finished.
    """

    folder: Path
    evaluation: EvaluationResult | None
    finished: bool
    writer: bool = True
    signal: int = SIGINT

    @property
    def metrics(self) -> dict[str, float | None]:
        """Figures on the evaluation split by name, 0..100; empty for a run without evaluation."""
        return {} if self.evaluation is None else self.evaluation.metrics

    @property
    def exit_code(self) -> int:
        """What a command ends with, as shells count: 128 and the signal, of the process that writes files."""
        # Lightning kills all processes as soon as another one ends with anything but 0.
        return 0 if self.finished or not self.writer else 128 + self.signal


def fit(
    experiment: Experiment,
    directory: RunDirectory,
    console: Console,
    began: float | None = None,
    opened: Callable[[bool], None] = lambda resumed: None,
    facts: Mapping[str, Any] | None = None,
) -> RunResult:
    """Train, evaluate and save a student.

    Args:
        experiment: what to train, and how.
        directory: the run directory, which this process has locked.
        console: where to show progress.
        began: when the run began, by `time.perf_counter`; by default now.
        opened: called once the directory is open, with whether the run goes on from a checkpoint.
        facts: what else `results.json` shall say.

    Raises:
        InputError: the directory can't be written, or a loss is not finite.
    """
    began = perf_counter() if began is None else began
    checkpoint = directory.open(experiment.record)
    opened(checkpoint is not None)
    cache = open_cache(experiment, console)
    distillation = experiment.distillation
    before = None if distillation is None else fingerprint(distillation.teacher)
    module = DetectionModule(experiment, directory.folder, cache, notify=notifier(console))
    stopped = _fit(module, DetectionDataModule(experiment), directory, checkpoint, console)
    if distillation is not None and fingerprint(distillation.teacher) != before:
        raise RuntimeError("The teacher's weights changed during training, which must never happen.")
    outcome = None if stopped else module.outcome()
    if outcome is not None and module.trainer.is_global_zero:
        seconds = module.earlier_seconds + perf_counter() - began
        _finish(module, outcome, directory, console, seconds, dict(facts or {}))
    how = (not stopped, module.trainer.is_global_zero, stopped or SIGINT)
    return RunResult(directory.folder, module.last_evaluation if outcome is None else outcome.evaluation, *how)


def _finish(
    module: DetectionModule,
    outcome: Outcome,
    directory: RunDirectory,
    console: Console,
    seconds: float,
    facts: dict[str, Any],
) -> None:
    """Save what came of a run, and look at it once more."""
    evaluation, distillation = module.experiment.evaluation, module.experiment.distillation
    save_model(outcome.student, directory.folder)
    if outcome.found is not None:
        save_detections(directory.detections, outcome.found)
    taught_by = None if distillation is None else distillation.fingerprint
    results = _results(module, outcome, seconds)
    results |= {"fingerprint": fingerprint(outcome.student), "teacher_fingerprint": taught_by}
    directory.write_results(results | facts)
    require_student_alone(directory.folder, outcome.student)
    if outcome.found is None or evaluation is None:
        return
    _verify(module, outcome, evaluation)
    if (results["metrics"]["AP50"] or 0.0) < LEARNED:
        console.print(
            f"The detector finds next to nothing (AP50 {results['metrics']['AP50'] or 0.0:.1f}): train for more "
            "--epochs, or with another --lr if the loss rose.",
            style="yellow",
            highlight=False,
        )


def notifier(console: Console) -> Callable[[str], None]:
    """Shows a sentence once, however many processes have something to say."""

    @rank_zero_only
    def notify(sentence: str) -> None:
        console.print(sentence, style="yellow", highlight=False)

    return notify


def _verify(module: DetectionModule, outcome: Outcome, evaluation: DetectionDataset) -> None:
    """Make sure that the saved model is the student that was evaluated."""
    assert outcome.found is not None
    saved = load(module.folder).to(module.trainer.strategy.root_device)
    images = evaluation.spread(VERIFIED)
    found = [detections.cpu() for detections in saved.predict([image for image, _ in images])]
    require_same_detections(found, [outcome.found.found(target.image_id) for _, target in images])


def _fit(
    module: DetectionModule,
    data: DetectionDataModule,
    directory: RunDirectory,
    checkpoint: Path | None,
    console: Console,
) -> int:
    """Train and evaluate; gives back the signal with which the user stopped it, or 0."""
    experiment = module.experiment
    devices, optimisation, logs = experiment.devices, experiment.optimisation, experiment.logging
    log = JsonLinesLogger(directory.metrics)
    saver = Checkpoint(directory.folder, logs.checkpoint_every, log)
    with _quiet(), saver.interruptible(console), _explained(directory):
        trainer = Trainer(
            accelerator=devices.accelerator,
            devices=devices.devices,
            num_nodes=devices.nodes,
            precision=devices.precision,
            max_epochs=optimisation.epochs,
            max_steps=-1 if optimisation.max_steps is None else optimisation.max_steps,
            gradient_clip_val=optimisation.grad_clip or None,
            check_val_every_n_epoch=experiment.selection.eval_every or optimisation.epochs,
            limit_val_batches=0 if experiment.evaluation is None else 1.0,
            log_every_n_steps=logs.log_every,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=console.is_terminal,
            enable_model_summary=False,
            callbacks=[progress_callback(console), saver, LongRunNotice()],
            logger=[*build_loggers(logs, directory.folder, experiment.record.values), log],
            plugins=[CheckpointFile(module)],
            default_root_dir=directory.folder,
        )
        # Lightning would end a run at SIGTERM without a checkpoint.
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        try:
            trainer.fit(module, data, ckpt_path=checkpoint)
            # --max-steps may end a run between two evaluations; a resumed one has the figures of the last, no more.
            log.quiet = module.evaluated_step == trainer.global_step
            if experiment.evaluation is not None and (not log.quiet or module.last_found is None):
                trainer.validate(module, data, verbose=False)
        except Interrupted:
            console.print(f"Stopped; its checkpoint is in {directory.folder}.", highlight=False)
            return saver.signal
    return 0


@contextmanager
def _explained(directory: RunDirectory) -> Iterator[None]:
    """Say in a sentence what a user can do about what the machine did to a run."""
    goes_on = "Only the steps since the last checkpoint are lost: go on with --resume."
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise InputError(
            f"A process that loads images died ({str(error).splitlines()[0].rstrip('.')}); when memory ran out, give "
            f"fewer --workers. {goes_on}"
        ) from error
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise InputError(f"{directory.folder} can't be written ({error.strerror}). Make room. {goes_on}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what Lightning says about choices that this project makes on purpose."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for text in (
            ".*does not have many workers.*",
            ".*ended before the epoch ended and your dataloader is not resumable.*",
            ".*The number of training batches.*",
            ".*Checkpoint directory.*exists and is not empty.*",
            ".*lr_scheduler.step.*",
            ".*LeafSpec.*",
            ".*in eval mode at the start of training.*",  # frozen or held normalisation
            ".*sync_dist=True.*",
            ".*is deprecated.*",
        ):
            warnings.filterwarnings("ignore", message=text)
        try:
            yield
        finally:
            logger.setLevel(level)


def _results(module: DetectionModule, outcome: Outcome, seconds: float) -> dict[str, Any]:
    experiment, step, figures = module.experiment, module.median_step(), outcome.evaluation
    training, evaluation, values = experiment.training, experiment.evaluation, experiment.record.values
    prints = [one.fingerprint()[:16] for one in (training, evaluation) if one is not None]
    point = outcome.point
    return {
        "command": experiment.record.command,
        "name": module.folder.name,
        "family": outcome.student.info.family,
        "backbone": outcome.student.spec.backbone,
        "method": values.get("method"),
        "teacher": values.get("teacher"),
        "data": values.get("data", training.name),
        "split": None if evaluation is None else evaluation.split,
        "on_bad_data": values.get("on_bad_data", "stop"),
        "data_fingerprint": "-".join(prints),
        "classes": list(training.classes),
        "metrics": {} if figures is None else figures.metrics,
        "per_class": {} if figures is None else figures.per_class,
        "images": 0 if figures is None else figures.images,
        "objects": 0 if figures is None else figures.objects,
        "parameters": sum(parameter.numel() for parameter in outcome.student.parameters()),
        "model_bytes": (module.folder / "model.safetensors").stat().st_size,
        "size": outcome.student.info.size,
        "epochs": experiment.optimisation.epochs,
        "steps": module.trainer.global_step,
        "ended": module.ended(),
        "kept": {
            "rule": experiment.selection.keep,
            "epoch": None if point is None else point.epoch,
            "step": None if point is None else point.step,
        },
        "curve": [asdict(point) for point in module.selection.curve],
        "seed": experiment.optimisation.seed,
        "wall_seconds": round(seconds, 1),
        "train_seconds": round(sum(module.step_seconds), 1),
        "step_ms_median": None if step is None else round(1000 * step, 1),
        "versions": versions(),
        "commit": ", ".join(module.commits) or None,
        "machine": machine(),
    }
