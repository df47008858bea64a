"""Train a detector, with or without a teacher, and write the run directory."""

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

from defeat.detector import load_detector, save_model
from defeat.engine.checkpoint import RunDirectory
from defeat.engine.checkpoint_file import CheckpointFile
from defeat.engine.datamodule import DetectionDataModule
from defeat.engine.duration import LongRunNotice
from defeat.engine.experiment import Experiment
from defeat.engine.guards import fingerprint, require_same_detections, require_student_only
from defeat.engine.length import changed_length
from defeat.engine.loggers import build_loggers
from defeat.engine.logs import Checkpoint, Interrupted, JsonLinesLogger, progress_callback
from defeat.engine.module import DetectionModule
from defeat.engine.provenance import machine, versions
from defeat.engine.selection import Outcome
from defeat.engine.teacher_cache import open_cache
from defeat.errors import InputError, first_line
from defeat.evaluation.detections import save_detections
from defeat.evaluation.evaluator import EvaluationResult
from defeat.files import DISK_FULL
from defeat.notebook import html_table

Completion = Callable[[Mapping[str, Any]], dict[str, Any]]

MIN_AP50 = 1.0  # below it, a warning says that the detector has learned nothing
VERIFIED_IMAGES = 4  # on which the saved model must repeat the detections of the last evaluation


@dataclass(frozen=True)
class RunResult:
    """Result of a run.

    Attributes:
        folder: the run directory.
        evaluation: metrics of the saved weights on the evaluation split; if the run is not finished, the last
            evaluation.
        finished: false if the user stopped the run, which can then be resumed.
        writer: whether this is the process that writes files.
        signal: signal with which the user stopped a run that is not finished.
    """

    folder: Path
    evaluation: EvaluationResult | None
    finished: bool
    writer: bool = True
    signal: int = SIGINT

    @property
    def metrics(self) -> dict[str, float | None]:
        """Metrics on the evaluation split by name, 0..100; empty for a run without evaluation."""
        return {} if self.evaluation is None else self.evaluation.metrics

    def _repr_html_(self) -> str:
        metrics = {name: f"{value:.1f}" for name, value in self.metrics.items() if isinstance(value, float)}
        return html_table(f"Run in {self.folder}" + ("" if self.finished else ", not finished"), metrics)

    @property
    def exit_code(self) -> int:
        """Exit code of a command: 0 if finished, else 128 plus the signal, in the process that writes files."""
        # Lightning kills all processes as soon as one of the others ends with a code other than 0.
        return 0 if self.finished or not self.writer else 128 + self.signal


def fit(
    experiment: Experiment,
    directory: RunDirectory,
    console: Console,
    *,
    start_time: float | None = None,
    start_files: Mapping[str, Mapping[str, Any]] | None = None,
    complete: Completion = dict,
) -> RunResult:
    """Train, evaluate and save a student.

    Args:
        experiment: what to train, and how.
        directory: the run directory, which this process has locked.
        console: where to show progress.
        start_time: time from which `wall_seconds` is measured, by `time.perf_counter`; by default now.
        start_files: JSON files to write into the run directory before the first step, content by file name; a run that
            is resumed from a checkpoint has them already.
        complete: completes the content of `results.json`.

    Raises:
        InputError: the directory can't be written, or a loss is not finite.
    """
    start_time = perf_counter() if start_time is None else start_time
    checkpoint = directory.open(experiment.record)
    changed = None if checkpoint is None else changed_length(directory, experiment)
    if checkpoint is None:
        for name, content in (start_files or {}).items():
            directory.write_json(name, content)
    cache = open_cache(experiment, console)
    distillation = experiment.distillation
    before = None if distillation is None else fingerprint(distillation.teacher)
    module = DetectionModule(experiment, directory.folder, cache, notifier(console), changed)
    stop_signal = _train(module, DetectionDataModule(experiment), directory, checkpoint, console)
    if distillation is not None and fingerprint(distillation.teacher) != before:
        raise RuntimeError("The teacher's weights changed during training, which must never happen.")
    outcome = None if stop_signal else module.outcome()
    if outcome is not None and module.trainer.is_global_zero:
        seconds = module.earlier_seconds + perf_counter() - start_time
        _finish(module, outcome, directory, console, seconds, complete)
    return RunResult(
        directory.folder,
        evaluation=module.last_evaluation if outcome is None else outcome.evaluation,
        finished=not stop_signal,
        writer=module.trainer.is_global_zero,
        signal=stop_signal or SIGINT,
    )


def _finish(
    module: DetectionModule,
    outcome: Outcome,
    directory: RunDirectory,
    console: Console,
    seconds: float,
    complete: Completion,
) -> None:
    """Save the results of a run and verify the saved model."""
    evaluation, distillation = module.experiment.evaluation, module.experiment.distillation
    save_model(outcome.student, directory.folder)
    directory.metrics.touch()  # a run of fewer steps than --log-every, without an evaluation, has no line in it
    if outcome.evaluator is not None:
        save_detections(directory.detections, outcome.evaluator)
    teacher_fingerprint = None if distillation is None else distillation.fingerprint
    results = _results(module, outcome, seconds)
    results |= {"fingerprint": fingerprint(outcome.student), "teacher_fingerprint": teacher_fingerprint}
    directory.write_results(complete(results))
    require_student_only(directory.folder, outcome.student)
    saved = load_detector(module.folder)
    if fingerprint(saved) != results["fingerprint"]:
        raise RuntimeError("The weights of the saved model are not those of the student.")
    if outcome.evaluator is None or evaluation is None:
        return
    images = evaluation.evenly_spaced(VERIFIED_IMAGES)
    detected = saved.to(module.trainer.strategy.root_device).predict([image for image, _ in images])
    evaluated = [outcome.evaluator.detections(target.image_id) for _, target in images]
    require_same_detections([of_image.cpu() for of_image in detected], evaluated)
    accuracy = results["metrics"]["AP50"]
    if accuracy is not None and accuracy < MIN_AP50:
        console.print(
            f"The detector detects next to nothing (AP50 {accuracy:.1f}): train for more "
            "--epochs, or with another --lr if the loss rose.",
            style="yellow",
            highlight=False,
        )


def notifier(console: Console) -> Callable[[str], None]:
    """A function that prints a message, in the first of several processes only."""

    @rank_zero_only
    def notify(message: str) -> None:
        console.print(message, style="yellow", highlight=False)

    return notify


def _train(
    module: DetectionModule,
    data: DetectionDataModule,
    directory: RunDirectory,
    checkpoint: Path | None,
    console: Console,
) -> int:
    """Train and evaluate; returns the signal with which the user stopped the run, or 0."""
    experiment = module.experiment
    devices, optimisation, logs = experiment.devices, experiment.optimisation, experiment.logging
    log = JsonLinesLogger(directory.metrics)
    saver = Checkpoint(directory.folder, logs.checkpoint_every, log)
    with _lightning_silenced(), saver.interruptible(console), _readable_errors(directory):
        trainer = Trainer(
            accelerator=devices.accelerator,
            devices=devices.devices,
            num_nodes=devices.nodes,
            precision=devices.precision,
            max_epochs=optimisation.number_of_epochs,
            max_steps=-1 if optimisation.max_steps is None else optimisation.max_steps,
            gradient_clip_val=optimisation.grad_clip or None,
            accumulate_grad_batches=optimisation.accumulate,
            check_val_every_n_epoch=experiment.selection.evaluation_interval or optimisation.number_of_epochs,
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
        # With max_steps, Lightning would continue an epoch that has ended, and end the next one after its first batch.
        trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]
        try:
            trainer.fit(module, data, ckpt_path=checkpoint)
            # --max-steps may end a run between two evaluations; a resumed run has only the metrics of the last one.
            log.quiet = module.evaluated_step == trainer.global_step
            if experiment.evaluation is not None and (not log.quiet or module.last_evaluator is None):
                trainer.validate(module, data, verbose=False)
        except Interrupted:
            console.print(f"Stopped; the checkpoint is in {directory.folder}.", highlight=False)
            return saver.signal
    return 0


@contextmanager
def _readable_errors(directory: RunDirectory) -> Iterator[None]:
    """Turn errors of the machine into messages that say what to do."""
    resume = "Only the steps since the last checkpoint are lost: continue with --resume."
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise InputError(
            f"A process that loads images died ({first_line(error)}); if memory ran out, give fewer --workers. {resume}"
        ) from error
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise InputError(f"{directory.folder} can't be written ({error.strerror}). Make room. {resume}") from error


@contextmanager
def _lightning_silenced() -> Iterator[None]:
    """Suppress Lightning's messages about choices that this project makes on purpose."""
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
    """Content of `results.json`."""
    experiment, step_seconds, metrics = module.experiment, module.median_step(), outcome.evaluation
    training, evaluation, values = experiment.training, experiment.evaluation, experiment.record.values
    fingerprints = [dataset.fingerprint()[:16] for dataset in (training, evaluation) if dataset is not None]
    point, optimisation = outcome.point, experiment.optimisation
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
        "data_fingerprint": "-".join(fingerprints),
        "classes": list(training.classes),
        "metrics": {} if metrics is None else metrics.metrics,
        "per_class": {} if metrics is None else metrics.per_class,
        "images": 0 if metrics is None else metrics.images,
        "objects": 0 if metrics is None else metrics.objects,
        "parameters": sum(parameter.numel() for parameter in outcome.student.parameters()),
        "model_bytes": (module.folder / "model.safetensors").stat().st_size,
        "size": outcome.student.info.size,
        "epochs": experiment.optimisation.number_of_epochs,
        "steps": module.trainer.global_step,
        "images_per_step": optimisation.batch_size * optimisation.accumulate * module.trainer.world_size,
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
        "step_ms_median": None if step_seconds is None else round(1000 * step_seconds, 1),
        "versions": versions(),
        "commit": ", ".join(module.commits) or None,
        "machine": machine(),
    }
