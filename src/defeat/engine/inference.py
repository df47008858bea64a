"""A trained detector on a whole split."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from defeat.data import OnBadData, class_names, open_dataset
from defeat.data.loader import evaluation_loader
from defeat.detector import Detector, load
from defeat.distillation import ClassMap, renamed_classes
from defeat.distillation.class_map import listed
from defeat.engine.checkpoint import RunDirectory
from defeat.engine.detections import save_detections
from defeat.engine.evaluate import EvaluationResult, Evaluator
from defeat.engine.settings import MOST_WORKERS, TrainSettings, at_least, option, read_class_map
from defeat.errors import InputError
from defeat.types import DetectorInfo


def evaluate(
    run: str | Path,
    data: str | None = None,
    split: str | None = None,
    batch_size: int = 8,
    workers: int = 2,
    device: str = "auto",
    class_map: str | None = None,
    detections: str | None = None,
    on_bad_data: OnBadData = "stop",
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
        class_map: YAML file with a line `detector's class: class of the data` for each class that the two call by
            different names; the detector is then evaluated on the classes that both know.
        detections: file to write all detections and annotations to (safetensors), as `detections.safetensors` of a run.
        on_bad_data: where files of the data are broken or missing: stop, and list them; or skip the images that they
            are about, and count them, after decoding all images once.
        console: where to show progress; None for none.

    Raises:
        InputError: run or data are not valid, or share no class.
    """
    at_least("batch_size", batch_size, 1)
    at_least("workers", workers, 0, MOST_WORKERS)
    for name, value in {"data": data, "split": split, "class_map": class_map, "detections": detections}.items():
        if value == "":
            raise InputError(f"{option(name)} is empty.")
    if detections is not None and (Path(detections).is_dir() or not Path(detections).parent.is_dir()):
        raise InputError(f"--detections {detections} can't be written: name a file in a folder that is there.")
    detector = load(run).to(choose_device(device))
    if data is None or split is None:
        directory = None if str(run).startswith("torchvision:") else RunDirectory(run)
        trained_on = directory.read_config().get("data") if directory else None
        known = directory.evaluated_split() if directory and data in (None, trained_on) else None
        split = split or known or "test"
        data = data or trained_on
    if data is None:
        raise InputError("Name the data to evaluate on with --data.")
    classes = None
    if class_map is not None:
        classes = shared_classes(detector.info, class_names(data, split, on_bad_data), read_class_map(class_map))
    evaluator = detect_split(detector, data, split, batch_size, workers, console, classes, on_bad_data)
    if detections is not None:
        save_detections(Path(detections), evaluator)
    return evaluator.compute()


def shared_classes(info: DetectorInfo, found: Sequence[str], names: Mapping[str, str | None]) -> ClassMap:
    """Meet the classes of data with those of a detector, and leave out what the detector does not know.

    Raises:
        InputError: a name is unknown, or no class is shared.
    """
    known = renamed_classes(info, found, names).classes
    shared = tuple(name for name in found if name in known)
    if not shared:
        raise InputError(
            f"The detector knows none of the classes of the data ({listed(found)}); it knows {listed(info.classes)}."
        )
    return ClassMap(shared, known)


def detect_split(
    detector: Detector,
    data: str,
    split: str,
    batch_size: int,
    workers: int,
    console: Console | None = None,
    classes: ClassMap | None = None,
    on_bad_data: OnBadData = "stop",
) -> Evaluator:
    """Detect the objects of a whole split.

    Args:
        detector: the detector, on the device to use.
        data: path of the data set.
        split: its split.
        batch_size: images at a time.
        workers: processes that load images.
        console: where to show progress; None for none.
        classes: meets the classes to look for with the detector's; by default they are its own.
        on_bad_data: see `open_dataset`.

    Raises:
        InputError: the data are not valid, or lack one of the classes.
    """
    classes = classes or ClassMap(detector.info.classes, detector.info.classes)
    dataset = open_dataset(data, split, classes.student, on_bad_data, console)
    if on_bad_data == "skip" and console is not None and (problems := dataset.report()) is not None:
        console.print(f"{split}: {problems}", style="yellow", highlight=False, markup=False)
    evaluator = Evaluator(classes.student)
    loader = evaluation_loader(dataset, batch_size=batch_size, workers=workers)
    for images, targets in track(loader, "Evaluating", console=console, disable=console is None, transient=True):
        evaluator.update([classes.detections(found.cpu()) for found in detector.predict(images)], targets)
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
    found = re.fullmatch(r"cpu|cuda(?::(\d{1,3}))?", device)
    if not found:
        raise InputError(f"--device {device}: give auto, cpu or cuda.")
    if found[1] and int(found[1]) >= torch.cuda.device_count():
        raise InputError(f"--device {device}: there are {torch.cuda.device_count()} CUDA devices, counted from 0.")
    return torch.device(device)


def training_device(settings: TrainSettings) -> torch.device:
    """Where a run trains, for what is computed before it begins: of several GPUs that of this process."""
    if settings.accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def moved(detector: Detector, device: torch.device) -> Iterator[None]:
    """Put a detector on a device for a while."""
    before = detector.device
    detector.to(device)
    try:
        yield
    finally:
        detector.to(before)


def wait_for(device: torch.device) -> None:
    """An accelerator works in the background: a clock must wait for it."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
