"""Train a detector, alone or with the help of a teacher, into a run directory."""

import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console

from defeat.data import DetectionDataset, open_dataset, split_names
from defeat.detector import Detector, DetectorSpec, build, load, save_model
from defeat.distillation import Method, build_method
from defeat.engine.checkpoint import RunDirectory
from defeat.engine.datamodule import DetectionDataModule
from defeat.engine.detections import save_detections
from defeat.engine.evaluate import EvaluationResult
from defeat.engine.guards import fingerprint, require_able_teacher
from defeat.engine.logs import Checkpoint, Interrupted, JsonLinesLogger, progress_callback
from defeat.engine.module import DetectionModule
from defeat.engine.provenance import commit, machine, versions
from defeat.engine.recipes import expected
from defeat.engine.settings import DistillSettings, TrainSettings
from defeat.errors import InputError

TEACHER_SAMPLE = 48  # images on which the teacher must show that it detects something


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        folder: the run directory.
        evaluation: figures on the evaluation split after the last epoch.
        finished: false when the user stopped the run, which can then be resumed.
        writer: whether this process is the one of all that writes files.
    """

    folder: Path
    evaluation: EvaluationResult | None
    finished: bool
    writer: bool = True


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
    began = perf_counter()
    console = console or Console(stderr=True)
    check_devices(settings)
    figure = expected(settings.expected)
    training = open_dataset(settings.data, settings.split, settings.classes)
    evaluation = open_dataset(settings.data, evaluation_split(settings), training.classes)
    for dataset in (training, evaluation):
        if (problems := dataset.report()) is not None:
            console.print(f"{dataset.split}: {problems}", style="yellow", highlight=False)
    student = build_student(settings, training.classes)
    teacher, method = None, None
    if isinstance(settings, DistillSettings):
        teacher = load(settings.teacher, settings.teacher_weights)
        method = pair(student, teacher, settings, console)
        if not settings.allow_weak_teacher:
            sample = min(TEACHER_SAMPLE, len(training))
            images = [training[index * len(training) // sample] for index in range(sample)]
            require_able_teacher(teacher, training.classes, images)
    directory = RunDirectory(settings.out)
    checkpoint = directory.open("distill" if method else "train", settings)
    module = DetectionModule(student, settings, method, teacher)
    before = fingerprint(teacher) if teacher is not None else None
    data = DetectionDataModule(training, evaluation, settings)
    finished = _fit(module, data, directory, checkpoint, console)
    if teacher is not None and fingerprint(teacher) != before:
        raise RuntimeError("The teacher's weights changed during training, which must never happen.")
    if finished and module.trainer.is_global_zero:
        assert module.last_found is not None
        save_model(student, directory.folder)
        save_detections(directory.detections, module.last_found)
        results = _results(module, training, evaluation, perf_counter() - began)
        directory.write_results(results)
        if figure is not None:
            console.print(figure.judge(results["metrics"]), highlight=False)
    return RunResult(directory.folder, module.last_evaluation, finished, module.trainer.is_global_zero)


def check_devices(settings: TrainSettings) -> None:
    """Refuse devices that are not there, before anything is read or written.

    Raises:
        InputError: naming the option.
    """
    found = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    on_cpu = settings.accelerator == "cpu" or (settings.accelerator == "auto" and found == 0)
    if settings.accelerator == "gpu" and found == 0:
        raise InputError("--accelerator gpu: no GPU was found; give --accelerator cpu, or auto.")
    if settings.devices != "auto" and settings.devices < 1:
        raise InputError(f"--devices must be 1 or more, or auto, not {settings.devices}.")
    if not on_cpu and settings.devices != "auto" and settings.devices > found:
        raise InputError(f"--devices {settings.devices}: only {found} found; a larger --batch-size keeps the batch.")
    if on_cpu and settings.norm == "syncbn" and settings.devices not in (1, "auto"):
        raise InputError("--norm syncbn needs GPUs when there are several devices; give bn, bn_eval, frozen or gn.")
    if on_cpu and settings.precision == "16-mixed":
        raise InputError("--precision 16-mixed needs a GPU; give 32-true or bf16-mixed.")


def evaluation_split(settings: TrainSettings) -> str:
    """The split to evaluate on: as asked, else `val` if there is one, else `test`.

    Raises:
        InputError: there is neither.
    """
    if settings.eval_split is not None:
        return settings.eval_split
    names = split_names(settings.data)
    for name in ("val", "test"):
        if name in names and name != settings.split:
            return name
    found = f"only {', '.join(names)}" if names else "no split at all"
    raise InputError(f"{settings.data} has {found}: name a split to evaluate on with --eval-split.")


def build_student(settings: TrainSettings, classes: tuple[str, ...]) -> Detector:
    """Build the detector that the settings describe; the same seed gives the same first weights."""
    torch.manual_seed(settings.seed)
    spec = DetectorSpec(
        family=settings.detector,
        backbone=settings.backbone,
        classes=classes,
        size=settings.size,
        max_size=settings.long_side,
        norm=settings.norm,
        neck_channels=settings.neck_channels,
        frozen_stages=settings.frozen_stages,
        options=settings.detector_options,
    )
    return build(spec, settings.weights)


def pair(student: Detector, teacher: Detector, settings: DistillSettings, console: Console) -> Method:
    """Build the method for the two; its first weights depend on the seed, and draw from no other random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        method = build_method(settings.method, student.info, teacher.info, settings.method_options)
    for note in method.notes:
        console.print(note, style="yellow", highlight=False)
    return method


def _fit(
    module: DetectionModule,
    data: DetectionDataModule,
    directory: RunDirectory,
    checkpoint: Path | None,
    console: Console,
) -> bool:
    settings = module.settings
    saver = Checkpoint(directory.folder)
    with _quiet(), saver.interruptible():
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
            callbacks=[progress_callback(console), saver],
            logger=[
                TensorBoardLogger(directory.folder, name="", version="tensorboard"),
                JsonLinesLogger(directory.metrics),
            ],
            default_root_dir=directory.folder,
        )
        try:
            trainer.fit(module, data, ckpt_path=checkpoint, weights_only=False if checkpoint else None)
            if module.evaluated_step != trainer.global_step:  # --max-steps may end a run between two evaluations
                trainer.validate(module, data, verbose=False)
        except Interrupted:
            console.print(f"Stopped. Go on with the same command and --resume: {directory.folder}", highlight=False)
            return False
    return True


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
    module: DetectionModule, training: DetectionDataset, evaluation: DetectionDataset, seconds: float
) -> dict[str, Any]:
    settings, figures = module.settings, module.last_evaluation
    assert figures is not None
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
        "data_fingerprint": f"{training.fingerprint()[:16]}-{evaluation.fingerprint()[:16]}",
        "classes": list(training.classes),
        "metrics": figures.metrics,
        "per_class": figures.per_class,
        "images": figures.images,
        "objects": figures.objects,
        "parameters": sum(parameter.numel() for parameter in module.student.parameters()),
        "model_bytes": (Path(settings.out) / "model.safetensors").stat().st_size,
        "size": settings.size,
        "epochs": settings.epochs,
        "steps": module.trainer.global_step,
        "seed": settings.seed,
        "wall_seconds": round(seconds, 1),
        "train_seconds": round(sum(module.step_seconds), 1),
        "step_ms_median": None if step is None else round(1000 * step, 1),
        "versions": versions(),
        "commit": commit(),
        "machine": machine(),
    }
