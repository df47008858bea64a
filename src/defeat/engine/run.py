"""Train a detector, alone or with the help of a teacher, into a run directory."""

import inspect
import logging
import warnings
from collections.abc import Callable, Iterator
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
from defeat.engine.assembly import assemble, with_frozen_teacher
from defeat.engine.balance import balanced
from defeat.engine.checkpoint import RunDirectory
from defeat.engine.checkpoint_file import CheckpointFile
from defeat.engine.datamodule import DetectionDataModule
from defeat.engine.duration import LongRunNotice
from defeat.engine.guards import fingerprint, require_same_detections, require_student_alone
from defeat.engine.inheriting import keep
from defeat.engine.loggers import build_loggers
from defeat.engine.logs import Checkpoint, Interrupted, JsonLinesLogger, progress_callback
from defeat.engine.module import DetectionModule
from defeat.engine.provenance import machine, versions
from defeat.engine.recipes import expected
from defeat.engine.selection import Outcome
from defeat.engine.settings import DistillSettings, TrainSettings
from defeat.engine.teacher_cache import open_cache
from defeat.errors import InputError
from defeat.evaluation.detections import save_detections
from defeat.evaluation.evaluator import EvaluationResult
from defeat.files import FULL

LEARNED = 1.0  # AP50 that a detector has to reach to have learned anything
VERIFIED = 4  # images on which the saved model must find what the last evaluation found


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

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
    def exit_code(self) -> int:
        """What a command ends with, as shells count: 128 and the signal, of the process that writes files."""
        # Lightning kills all processes as soon as another one ends with anything but 0.
        return 0 if self.finished or not self.writer else 128 + self.signal


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
    with directory.locked(_notifier(console)):
        directory.require_free(settings)
        return _run(settings, directory, console)


def _run(settings: TrainSettings, directory: RunDirectory, console: Console) -> RunResult:
    began = perf_counter()
    figure = expected(settings.expected)
    parts = assemble(settings, console)
    settings = parts.choices.applied(settings)
    if sentence := parts.choices.describe():
        rank_zero_only(console.print)(f"auto: {sentence}", highlight=False, soft_wrap=True)
    taught_by = None if parts.teacher is None else fingerprint(parts.teacher)
    parts = with_frozen_teacher(parts, settings)
    if isinstance(settings, DistillSettings):
        settings, parts = balanced(settings, parts, console)
    training, evaluation, student = parts.training, parts.evaluation, parts.student
    teacher, method = parts.teacher, parts.method
    checkpoint = directory.open("distill" if method else "train", settings)
    if checkpoint is None:
        keep(parts.inherited, directory.folder)
    cache = None
    if isinstance(settings, DistillSettings) and teacher is not None and method is not None:
        datasets = [one for one in (training, parts.unlabelled) if one is not None]
        cache = open_cache(settings, student, teacher, method, datasets, console)
    module = DetectionModule(student, settings, method, teacher, cache, notify=_notifier(console))
    before = fingerprint(teacher) if teacher is not None else None
    data = DetectionDataModule(training, evaluation, settings, parts.unlabelled)
    stopped = _fit(module, data, directory, checkpoint, console)
    if teacher is not None and fingerprint(teacher) != before:
        raise RuntimeError("The teacher's weights changed during training, which must never happen.")
    outcome = None if stopped else module.outcome()
    if outcome is not None and module.trainer.is_global_zero:
        save_model(outcome.student, directory.folder)
        save_detections(directory.detections, outcome.found)
        results = _results(module, outcome, training, evaluation, module.earlier_seconds + perf_counter() - began)
        results |= {"fingerprint": fingerprint(outcome.student), "teacher_fingerprint": taught_by}
        if parts.inherited is not None:
            results["inherited"] = {"parts": parts.inherited.parts, "parameters": parts.inherited.parameters}
        directory.write_results(results)
        _verify(module, outcome, evaluation)
        if (results["metrics"]["AP50"] or 0.0) < LEARNED:
            console.print(
                f"The detector finds next to nothing (AP50 {results['metrics']['AP50'] or 0.0:.1f}): train for more "
                "--epochs, or with another --lr if the loss rose.",
                style="yellow",
                highlight=False,
            )
        if figure is not None:
            console.print(figure.judge(results["metrics"]), highlight=False)
    how = (not stopped, module.trainer.is_global_zero, stopped or SIGINT)
    return RunResult(directory.folder, module.last_evaluation if outcome is None else outcome.evaluation, *how)


def _notifier(console: Console) -> Callable[[str], None]:
    """Shows a sentence once, however many processes have something to say."""

    @rank_zero_only
    def notify(sentence: str) -> None:
        console.print(sentence, style="yellow", highlight=False)

    return notify


def _verify(module: DetectionModule, outcome: Outcome, evaluation: DetectionDataset) -> None:
    """Make sure that the saved model is the student that was evaluated."""
    folder = Path(module.settings.out)
    require_student_alone(folder, outcome.student)
    saved = load(folder).to(module.trainer.strategy.root_device)
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
    settings = module.settings
    log = JsonLinesLogger(directory.metrics)
    saver = Checkpoint(directory.folder, settings.checkpoint_every, log)
    with _quiet(), saver.interruptible(console), _explained(directory):
        trainer = Trainer(
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.nodes,
            precision=settings.precision,
            max_epochs=settings.epochs,
            max_steps=-1 if settings.max_steps is None else settings.max_steps,
            gradient_clip_val=settings.grad_clip or None,
            check_val_every_n_epoch=settings.eval_every or settings.epochs,
            log_every_n_steps=settings.log_every,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=console.is_terminal,
            enable_model_summary=False,
            callbacks=[progress_callback(console), saver, LongRunNotice()],
            logger=[*build_loggers(settings), log],
            plugins=[CheckpointFile(module)],
            default_root_dir=directory.folder,
        )
        # Lightning would end a run at SIGTERM without a checkpoint.
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        try:
            trainer.fit(module, data, ckpt_path=checkpoint)
            # --max-steps may end a run between two evaluations; a resumed one has the figures of the last, no more.
            log.quiet = module.evaluated_step == trainer.global_step
            if not log.quiet or module.last_found is None:
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


def _results(
    module: DetectionModule,
    outcome: Outcome,
    training: DetectionDataset,
    evaluation: DetectionDataset,
    seconds: float,
) -> dict[str, Any]:
    settings, figures = module.settings, outcome.evaluation
    distilled = isinstance(settings, DistillSettings)
    step = module.median_step()
    return {
        "command": "distill" if distilled else "train",
        "name": Path(settings.out).name,
        "family": settings.detector,
        "backbone": settings.backbone,
        "method": settings.method if isinstance(settings, DistillSettings) else None,
        "teacher": settings.teacher if isinstance(settings, DistillSettings) else None,
        "data": settings.data,
        "split": evaluation.split,
        "on_bad_data": settings.on_bad_data,
        "data_fingerprint": f"{training.fingerprint()[:16]}-{evaluation.fingerprint()[:16]}",
        "classes": list(training.classes),
        "metrics": figures.metrics,
        "per_class": figures.per_class,
        "images": figures.images,
        "objects": figures.objects,
        "parameters": sum(parameter.numel() for parameter in outcome.student.parameters()),
        "model_bytes": (Path(settings.out) / "model.safetensors").stat().st_size,
        "size": settings.size,
        "epochs": settings.epochs,
        "steps": module.trainer.global_step,
        "ended": module.ended(),
        "kept": {"rule": settings.keep, "epoch": outcome.point.epoch, "step": outcome.point.step},
        "curve": [asdict(point) for point in module.selection.curve],
        "seed": settings.seed,
        "wall_seconds": round(seconds, 1),
        "train_seconds": round(sum(module.step_seconds), 1),
        "step_ms_median": None if step is None else round(1000 * step, 1),
        "versions": versions(),
        "commit": ", ".join(module.commits) or None,
        "machine": machine(),
    }
