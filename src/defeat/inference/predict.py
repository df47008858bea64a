"""Detects objects in images and videos: pictures with boxes, and a file with the detections."""

import glob
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from os.path import commonpath
from pathlib import Path
from time import perf_counter
from typing import Literal

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from defeat.data.files import IMAGE_SUFFIXES, walk
from defeat.data.images import MAX_PIXELS, read_header, read_image
from defeat.data.problems import grouped
from defeat.detector import load
from defeat.detector.devices import choose_device
from defeat.detector.teacher import Predictor
from defeat.engine.checkpoint import RunDirectory
from defeat.errors import InputError
from defeat.evaluation.detections import read_detections
from defeat.evaluation.matching import match_scenes
from defeat.evaluation.operating_points import best_points
from defeat.files import WriteError, write_atomically, write_into
from defeat.inference.coco_results import Numbers, NumbersOf
from defeat.inference.drawing import draw_detections, side_by_side
from defeat.inference.videos import VIDEO_SUFFIXES, VideoWriter, frame_count, read_frames
from defeat.settings import at_least

USUAL = 0.5  # threshold of a class of which nothing is known
HIDDEN = 2  # frames that a header may count although no player shows them


@dataclass
class Predictions:
    """The result of `predict`.

    Attributes:
        pictures: the written pictures and videos.
        skipped: a sentence per file that could not be read; one for all images of a format whose decoder is missing.
        ignored: number of files of the given folders that are no images or videos, by suffix.
        images: number of processed images and frames.
        seconds: time spent in the detectors.
    """

    pictures: list[Path] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    ignored: dict[str, int] = field(default_factory=dict)
    images: int = 0
    seconds: float = 0.0


def predict(
    run: str | Path,
    images: list[str] | str | Path,
    out: str | Path,
    threshold: float | Literal["auto"] = 0.5,
    compare: str | None = None,
    annotations: str | None = None,
    device: str = "auto",
    max_pixels: int = MAX_PIXELS,
    console: Console | None = None,
) -> Predictions:
    """Detect objects in images and videos, draw them, and write `detections.json` in COCO's results format.

    Files that can't be read are skipped and reported.

    Args:
        run: run directory, a torchvision model, or a file written by `defeat export`.
        images: images, videos, folders of both, or patterns such as 'photos/*.jpg'.
        out: folder for the pictures and detections.json; created if it is missing.
        threshold: least score of a drawn detection, 0..1, or auto: for each class the score with the best F1 on the
            images on which the run was evaluated. detections.json contains all detections.
        compare: another run, drawn to the right of the first.
        annotations: COCO annotation file whose ids of images (by file name) and categories (by name) detections.json
            uses; by default images count from 1, and categories from 0 in the order of the detector's classes.
        device: auto (a GPU if there is one), cpu or cuda.
        max_pixels: most pixels of an image, width times height; larger images are skipped.
        console: console for progress; None for no progress.

    Returns:
        The written and the skipped files.

    Raises:
        InputError: there is no image, no image could be read, or a run is not valid.
    """
    if threshold != "auto" and not 0 <= threshold <= 1:
        raise InputError(f"--threshold must be between 0 and 1, not {threshold}.")
    at_least("max_pixels", max_pixels, 1)
    if compare == "":
        raise InputError("--compare is empty.")
    folder = Path(out)
    root, paths = find_images(images, folder)
    if folder.resolve() == root.resolve():
        raise InputError(
            f"--out {out} is the folder of the images themselves, which would be overwritten; give another."
        )
    torch_device = choose_device(device)
    sources = [source for source in (run, compare) if source is not None]
    detectors = [load(source).to(torch_device) for source in sources]
    thresholds: list[float | Tensor] = [
        best_thresholds(source, len(detector.info.classes)) if threshold == "auto" else threshold
        for source, detector in zip(sources, detectors, strict=True)
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out} can't be created ({error.strerror}).") from error
    classes = detectors[0].info.classes
    numbers = Numbers(classes) if annotations is None else NumbersOf(annotations, classes)
    work = _Work(detectors, thresholds, root, folder, numbers, max_pixels)
    errors: list[InputError] = []
    with _progress(console) as bar:
        task = bar.add_task("Detecting", total=len(paths), speed="")
        for path in paths:
            try:
                work.process(path, bar, task)
            except WriteError:
                raise
            except InputError as error:
                errors.append(error)
            bar.advance(task)
    work.result.skipped = grouped(errors)
    if not work.result.pictures:
        raise InputError(f"No image could be read. {work.result.skipped[0]}")
    write_into(folder, "detections.json", (json.dumps(work.records) + "\n").encode())
    work.result.ignored = ignored_files([images] if isinstance(images, str | Path) else images, folder)
    return work.result


@dataclass
class _Work:
    """The detectors, and their results so far."""

    detectors: Sequence[Predictor]
    thresholds: Sequence[float | Tensor]
    root: Path
    folder: Path
    numbers: Numbers
    max_pixels: int = MAX_PIXELS
    result: Predictions = field(default_factory=Predictions)
    records: list[dict[str, object]] = field(default_factory=list)
    written: set[Path] = field(default_factory=set)

    def process(self, path: Path, bar: Progress, task: TaskID) -> None:
        """Detect and draw the objects of one file.

        Raises:
            InputError: the file can't be read, or the folder for its picture can't be created.
        """
        relative = path.relative_to(self.root)
        name, target = relative.as_posix(), self.folder / relative
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{path}: the folder {target.parent} can't be created ({error.strerror}).") from error
        if path.suffix.lower() in VIDEO_SUFFIXES:
            self._video(path, name, self._unique(target, ".mp4"), bar)
        else:
            image = read_image(path, read_header(path, self.max_pixels).upright, True, self.max_pixels)
            picture = to_pil_image(self._drawn(image, name))
            content = BytesIO()
            picture.save(content, "JPEG", quality=92)
            target = self._unique(target, ".jpg")
            write_atomically(target, content.getvalue())
            self.result.pictures.append(target)
        rate = self.result.images / max(self.result.seconds, 1e-9)
        bar.update(task, speed=f"{rate:.1f} images/s")

    def _unique(self, target: Path, suffix: str) -> Path:
        """Path of a picture; a suffix is added where two files, such as a.jpg and a.png, have the same one."""
        path = target.with_suffix(suffix)
        while path in self.written:
            target = target.with_name(target.name + suffix)
            path = target
        self.written.add(path)
        return path

    def _video(self, path: Path, name: str, target: Path, bar: Progress) -> None:
        expected, count = frame_count(path), 0
        task = bar.add_task(name, total=expected, speed="")
        writer: VideoWriter | None = None
        try:
            for frame, rate in read_frames(path):
                picture = self._drawn(frame, name, frame=count)
                writer = writer or VideoWriter(target, rate, (picture.shape[-2], picture.shape[-1]))
                writer.add(picture)
                count += 1
                bar.advance(task)
        finally:
            if writer is not None:
                writer.close()
                self.result.pictures.append(target)
            bar.remove_task(task)
        if expected is not None and count < expected - max(HIDDEN, expected // 50):
            raise InputError(f"{path} is truncated: {count} of its {expected} frames could be read.")

    def _drawn(self, image: Tensor, name: str, **extra: object) -> Tensor:
        image_id = self.numbers.image(self.result.images + 1, name)
        start = perf_counter()
        detections = [detector.predict([image])[0].cpu() for detector in self.detectors]
        self.result.seconds += perf_counter() - start
        self.result.images += 1
        self.records += ({**record, **extra} for record in self.numbers.records(image_id, name, detections[0]))
        pictures = [
            draw_detections(image, boxes, detector.info.classes, threshold)
            for boxes, detector, threshold in zip(detections, self.detectors, self.thresholds, strict=True)
        ]
        return side_by_side(pictures)


def best_thresholds(run: str | Path, classes: int) -> Tensor:
    """The score with the best F1 of each class, (K,), on the images on which a run was evaluated.

    A class without a correct detection there has 0.5.

    Args:
        run: run directory.
        classes: K.

    Raises:
        InputError: it is no run directory, or its stored detections are missing or damaged.
    """
    directory = RunDirectory(run)
    if not directory.config.is_file():
        raise InputError(f"--threshold auto needs a run directory, and {run} is none: give a number.")
    points = best_points(match_scenes(read_detections(directory.detections), classes))
    return torch.tensor([USUAL if point is None else point.threshold for point in points])


def _progress(console: Console | None) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    speed = TextColumn("{task.fields[speed]}")
    return Progress(*columns, speed, console=console, disable=console is None, transient=True)


def find_images(source: Sequence[str] | str | Path, leave_out: Path | None = None) -> tuple[Path, list[Path]]:
    """List images and videos in order.

    Args:
        source: images, videos, folders and patterns.
        leave_out: a folder to skip, because results are written there.

    Returns:
        The folder to which names are relative, and the files.

    Raises:
        InputError: there are no files.
    """
    if isinstance(source, str | Path):
        return _find(source, leave_out)
    if not source:
        raise InputError("Give images, videos, a folder or a pattern.")
    if len(source) == 1:
        return _find(source[0], leave_out)
    results = [_find(part, leave_out) for part in source]
    paths = dict.fromkeys(path.absolute() for _, files in results for path in files)
    return Path(commonpath([root.absolute() for root, _ in results])), list(paths)


def _find(source: str | Path, leave_out: Path | None) -> tuple[Path, list[Path]]:
    path = Path(source)
    if path.is_file():
        return path.parent, [path]
    suffixes = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    if path.is_dir():
        files = sorted(file for file in walk(path) if file.suffix.lower() in suffixes)
        files = _outside(files, path, leave_out)
        if not files:
            raise InputError(f"{path} contains no image or video ({', '.join(sorted(suffixes))}).")
        return path, files
    if not glob.has_magic(str(source)):
        raise InputError(
            f"{path} does not exist; give an image, a video, a folder or a pattern such as 'photos/*.jpg'."
        )
    root = Path(*_before_magic(path))
    files = sorted(Path(name) for name in glob.glob(str(source), recursive=True) if Path(name).is_file())
    files = _outside(files, root, leave_out)
    if not files:
        raise InputError(f"No file matches the pattern {str(source)!r}.")
    return root, files


def ignored_files(sources: Sequence[str | Path], leave_out: Path) -> dict[str, int]:
    """Number of files of the given folders that are no images or videos, by suffix, without hidden ones.

    Args:
        sources: files, folders and patterns.
        leave_out: folder of the results.
    """
    suffixes = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    counts: Counter[str] = Counter()
    for folder in (Path(source) for source in sources if Path(source).is_dir()):
        others = [file for file in walk(folder) if file.suffix.lower() not in suffixes]
        counts.update(file.suffix.lower() or "without suffix" for file in _outside(others, folder, leave_out))
    return dict(counts.most_common())


def _outside(files: list[Path], root: Path, leave_out: Path | None) -> list[Path]:
    """Leave out the files of a folder inside `root`: the results of an earlier call."""
    inside = None if leave_out is None else leave_out.resolve()
    if inside is None or not inside.is_relative_to(root.resolve()) or inside == root.resolve():
        return files
    return [file for file in files if not file.resolve().is_relative_to(inside)]


def _before_magic(path: Path) -> Iterator[str]:
    """Leading parts of a pattern without wildcards."""
    for part in path.parent.parts:
        if glob.has_magic(part):
            return
        yield part
