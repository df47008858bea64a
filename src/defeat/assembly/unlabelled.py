"""Images without annotations: the teacher detects their objects once, before training."""

import hashlib
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from defeat.assembly.settings import DistillSettings
from defeat.data import DetectionDataset
from defeat.data.problems import Problems
from defeat.data.unlabelled import UnlabelledImages, taught_dataset
from defeat.detector import TeacherNetwork
from defeat.detector.devices import moved
from defeat.detector.teacher import can_predict
from defeat.distillation import ClassMap
from defeat.engine.checkpoint import is_writer
from defeat.engine.devices import training_device
from defeat.engine.guards import fingerprint
from defeat.errors import InputError
from defeat.files import write_into
from defeat.types import Detections

FILE = "unlabelled.safetensors"
REGION_SCORE = 0.3  # from which on a detection makes a region


def detect_unlabelled(
    settings: DistillSettings, teacher: TeacherNetwork, classes: ClassMap, console: Console, first: int | None = None
) -> DetectionDataset:
    """Let the teacher detect the objects of images without annotations, or read what it found when the run began.

    Args:
        settings: of the run; `unlabelled` is given.
        teacher: a trained detector.
        classes: meets the student's classes with the teacher's.
        console: where to show progress and to say what was found.
        first: look at so many images only, and write nothing; None for all, kept in the run's folder.

    Returns:
        The images with what was found, not annotated.

    Raises:
        InputError: the folder holds no image, one can't be read, or the run's folder can't be written.
    """
    assert settings.unlabelled is not None
    if not can_predict(teacher):
        raise InputError("--unlabelled needs a teacher that gives detections: this one gives maps alone.")
    images = UnlabelledImages(settings.unlabelled, Problems(settings.on_bad_data, console))
    if images.problems:
        said = f"unlabelled: {', '.join(images.problems)}"
        console.print(said, style="yellow", highlight=False, markup=False)
    path = Path(settings.out) / FILE
    key = _key(images, teacher, classes)
    found = None if first is not None else _read(path, key)
    if found is None:
        found = _detect(settings, teacher, classes, images, console, first)
        if first is None and is_writer():
            _write(path, key, found)
    floor = min(REGION_SCORE, settings.pseudo_labels or 1.0)
    kept = [Detections(*(part[one.scores >= floor] for part in (one.boxes, one.scores, one.labels))) for one in found]
    if first is None:
        certain = sum(int((one.scores >= (settings.pseudo_labels or 2)).sum()) for one in kept)
        learned = f", of which {certain} are learned as if annotated" if settings.pseudo_labels else ""
        boxes = sum(len(one.scores) for one in kept)
        console.print(f"unlabelled: {boxes} objects detected in {len(kept)} images{learned}.", highlight=False)
    return taught_dataset(images, classes.student, kept, settings.pseudo_labels)


def _detect(
    settings: DistillSettings,
    teacher: TeacherNetwork,
    classes: ClassMap,
    images: UnlabelledImages,
    console: Console,
    first: int | None,
) -> list[Detections]:
    count = len(images) if first is None else min(first, len(images))
    numbers = track(range(count), "Detecting in images without annotations", console=console, transient=True)
    with moved(teacher, training_device(settings)):
        return [classes.detections(teacher.predict([images[number]])[0].cpu()) for number in islice(numbers, count)]


def _key(images: UnlabelledImages, teacher: TeacherNetwork, classes: ClassMap) -> str:
    """What decides which objects are found."""
    names = [path.relative_to(images.folder).as_posix() for path in images.paths]
    text = repr((names, images.sizes, classes, fingerprint(teacher)))
    return hashlib.sha256(text.encode()).hexdigest()


def _write(path: Path, key: str, found: Sequence[Detections]) -> None:
    parts = {name: torch.cat([getattr(one, name) for one in found]) for name in ("boxes", "scores", "labels")}
    parts["counts"] = torch.tensor([len(one.scores) for one in found])
    write_into(path.parent, path.name, save(parts, {"key": key}))


def _read(path: Path, key: str) -> list[Detections] | None:
    """What was found before, in the same images by the same teacher; None where that is not at hand."""
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
        parts: dict[str, Tensor] = load_file(path)
        columns = (parts[name].split(parts["counts"].tolist()) for name in ("boxes", "scores", "labels"))
        return [Detections(*row) for row in zip(*columns, strict=True)]
    except (OSError, SafetensorError, KeyError, RuntimeError):
        return None
