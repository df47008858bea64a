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
from defeat.data.unlabelled import UnlabelledImages, pseudo_labelled_dataset
from defeat.detector import BoxNetwork, TeacherNetwork
from defeat.detector.devices import moved
from defeat.detector.teacher import StoredTeacher, can_predict, gives_detections, has_stored
from defeat.distillation import ClassMap
from defeat.engine.checkpoint import is_writer
from defeat.engine.devices import training_device
from defeat.engine.guards import fingerprint
from defeat.errors import InputError
from defeat.files import write_into
from defeat.types import Detections

FILE = "unlabelled.safetensors"
REGION_SCORE = 0.3  # lowest score of a detection that counts as an object region


def detect_unlabelled(
    settings: DistillSettings, teacher: TeacherNetwork, classes: ClassMap, console: Console, first: int | None = None
) -> DetectionDataset:
    """Run the teacher on images without annotations, or read its detections from the run directory.

    Args:
        settings: settings of the run, with `unlabelled`.
        teacher: a trained detector.
        classes: maps the teacher's classes to the student's.
        console: where to print progress.
        first: number of images to run the teacher on, without writing; None for all, kept in the run directory.

    Returns:
        The images with the teacher's detections, marked as not annotated.

    Raises:
        InputError: the folder holds no image, an image can't be read, the run directory can't be written, or nothing
            would be learned from a teacher that only gives boxes.
    """
    assert settings.unlabelled is not None
    if not gives_detections(teacher):
        raise InputError("--unlabelled needs a teacher that gives detections: this one has only feature maps.")
    images = UnlabelledImages(
        settings.unlabelled, Problems(settings.on_bad_data, console, max_pixels=settings.max_pixels)
    )
    if images.problems:
        note = f"unlabelled: {', '.join(images.problems)}"
        console.print(note, style="yellow", highlight=False, markup=False)
    path = Path(settings.out) / FILE
    key = _key(images, teacher, classes)
    detections = None if first is not None else _read(path, key)
    if detections is None:
        detections = _detect(settings, teacher, classes, images, console, first)
        if first is None and is_writer():
            _write(path, key, detections)
    threshold = min(REGION_SCORE, settings.pseudo_labels or 1.0)
    confident = [_above(of_image, threshold) for of_image in detections]
    certain = sum(int((of_image.scores >= (settings.pseudo_labels or 2)).sum()) for of_image in confident)
    if isinstance(teacher, BoxNetwork) and not certain and first is None:
        raise _nothing_learned(settings, detections)
    if first is None:
        learned = f", of which {certain} are pseudo-labels" if settings.pseudo_labels else ""
        boxes = sum(len(of_image.scores) for of_image in confident)
        console.print(f"unlabelled: {boxes} objects detected in {len(confident)} images{learned}.", highlight=False)
    return pseudo_labelled_dataset(images, classes.student, confident, settings.pseudo_labels)


def _nothing_learned(settings: DistillSettings, detections: Sequence[Detections]) -> InputError:
    best = max((float(of_image.scores.max()) for of_image in detections if len(of_image.scores)), default=None)
    which = "none of a class of the student" if best is None else f"the best has a score of {best:.2f}"
    return InputError(
        f"The teacher gives no box with a score of --pseudo-labels {settings.pseudo_labels:g} in the images of "
        f"{settings.unlabelled} ({which}), so that nothing would be learned from it."
    )


def _above(detections: Detections, threshold: float) -> Detections:
    kept = detections.scores >= threshold
    return Detections(detections.boxes[kept], detections.scores[kept], detections.labels[kept])


def _detect(
    settings: DistillSettings,
    teacher: TeacherNetwork,
    classes: ClassMap,
    images: UnlabelledImages,
    console: Console,
    first: int | None,
) -> list[Detections]:
    count = len(images) if first is None else min(first, len(images))
    if has_stored(teacher):
        return [classes.detections(of_image) for of_image in _stored(teacher, images, count, console)]
    numbers = track(range(count), "Detecting in images without annotations", console=console, transient=True)
    with moved(teacher, training_device(settings)):
        assert can_predict(teacher)
        return [classes.detections(teacher.predict([images[number]])[0].cpu()) for number in islice(numbers, count)]


def _stored(teacher: StoredTeacher, images: UnlabelledImages, count: int, console: Console) -> list[Detections]:
    """Detections that a teacher made before, in the first images; an image that it has not seen has none."""
    stored = teacher.stored(images.names, images.sizes)
    missing = [name for name, detections in zip(images.names, stored, strict=True) if detections is None]
    if len(missing) == len(images):
        raise InputError(
            f"The teacher has no detections of any image in {images.folder}, such as {missing[0]}: are its boxes for "
            "these images? File names must be equal."
        )
    if missing:
        share = f"{len(missing)} of {len(images)} images"
        note = f"unlabelled: the teacher has no detections of {share}, such as {missing[0]}."
        console.print(note, style="yellow", highlight=False, markup=False)
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    return [detections or nothing for detections in stored[:count]]


def _key(images: UnlabelledImages, teacher: TeacherNetwork, classes: ClassMap) -> str:
    """Hash of everything that decides what the teacher detects."""
    text = repr((images.names, images.sizes, classes, fingerprint(teacher)))
    return hashlib.sha256(text.encode()).hexdigest()


def _write(path: Path, key: str, detections: Sequence[Detections]) -> None:
    fields = ("boxes", "scores", "labels")
    parts = {name: torch.cat([getattr(of_image, name) for of_image in detections]) for name in fields}
    parts["counts"] = torch.tensor([len(of_image.scores) for of_image in detections])
    write_into(path.parent, path.name, save(parts, {"key": key}))


def _read(path: Path, key: str) -> list[Detections] | None:
    """Stored detections of the same teacher in the same images; None where there are none."""
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
        parts: dict[str, Tensor] = load_file(path)
        columns = (parts[name].split(parts["counts"].tolist()) for name in ("boxes", "scores", "labels"))
        return [Detections(*row) for row in zip(*columns, strict=True)]
    except (OSError, SafetensorError, KeyError, RuntimeError):
        return None
