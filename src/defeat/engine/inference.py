"""A trained detector on a whole split."""

from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from defeat.data import open_dataset
from defeat.data.loader import evaluation_loader
from defeat.detector import Detector, load
from defeat.engine.checkpoint import RunDirectory
from defeat.engine.detections import save_detections
from defeat.engine.evaluate import EvaluationResult, Evaluator
from defeat.errors import InputError


def evaluate(
    run: str | Path,
    data: str | None = None,
    split: str | None = None,
    batch_size: int = 8,
    workers: int = 2,
    device: str = "auto",
    detections: str | None = None,
    console: Console | None = None,
) -> EvaluationResult:
    """Evaluate a trained detector: COCO's and PASCAL VOC's average precision.

    Args:
        run: run directory, or a torchvision model such as `torchvision:retinanet_resnet50_fpn`.
        data: folder of a data set; by default the one that the run was trained on.
        split: split to evaluate on; by default the one that the run was evaluated on, else test.
        batch_size: images at a time.
        workers: processes that load images.
        device: auto (a GPU where there is one), cpu or cuda.
        detections: file to write all detections and annotations to (safetensors), as `detections.safetensors` of a run.
        console: where to show progress; None for none.

    Raises:
        InputError: run or data are not valid, or share no class.
    """
    detector = load(run).to(choose_device(device))
    if data is None or split is None:
        directory = None if str(run).startswith("torchvision:") else RunDirectory(run)
        trained_on = directory.read_config().get("data") if directory else None
        known = directory.evaluated_split() if directory and data in (None, trained_on) else None
        split = split or known or "test"
        data = data or trained_on
    if data is None:
        raise InputError("Name the data to evaluate on with --data.")
    evaluator = detect_split(detector, data, split, batch_size, workers, console)
    if detections is not None:
        save_detections(Path(detections), evaluator)
    return evaluator.compute()


def detect_split(
    detector: Detector, data: str, split: str, batch_size: int, workers: int, console: Console | None = None
) -> Evaluator:
    """Detect the objects of a whole split, with the detector's own classes.

    Raises:
        InputError: the data are not valid, or lack one of the detector's classes.
    """
    dataset = open_dataset(data, split, detector.info.classes)
    evaluator = Evaluator(detector.info.classes)
    loader = evaluation_loader(dataset, batch_size=batch_size, workers=workers)
    for images, targets in track(loader, "Evaluating", console=console, disable=console is None, transient=True):
        evaluator.update([found.cpu() for found in detector.predict(images)], targets)
    return evaluator


def choose_device(device: str) -> torch.device:
    """Turn `auto` into a GPU where there is one, else the CPU.

    Raises:
        InputError: the device does not exist here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError("--device cuda: no CUDA device was found; use --device cpu.")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise InputError(f"--device {device}: give auto, cpu or cuda.") from error


def wait_for(device: torch.device) -> None:
    """An accelerator works in the background: a clock must wait for it."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
