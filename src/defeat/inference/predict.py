"""A trained detector on somebody's images and videos: pictures with boxes, and a file of detections."""

import glob
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from os.path import commonpath
from pathlib import Path
from time import perf_counter

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from defeat.data.files import IMAGE_SUFFIXES
from defeat.data.images import read_header, read_image
from defeat.detector import Detector, load
from defeat.detector.devices import choose_device
from defeat.errors import InputError
from defeat.files import WriteError, write_atomically, write_into
from defeat.inference.coco_results import Numbers, NumbersOf
from defeat.inference.drawing import beside_each_other, draw_detections
from defeat.inference.videos import VIDEO_SUFFIXES, VideoWriter, frame_count, read_frames

HIDDEN = 2  # frames that a header may count and no player shows


@dataclass
class Predictions:
    """What came of some images and videos.

    Attributes:
        pictures: the files that were drawn.
        skipped: a sentence for each file that could not be read.
        images: number of images and frames that were looked at.
        seconds: time spent in the detectors.
    """

    pictures: list[Path] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    images: int = 0
    seconds: float = 0.0


def predict(
    run: str | Path,
    images: list[str] | str | Path,
    out: str | Path,
    threshold: float = 0.5,
    compare: str | None = None,
    annotations: str | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> Predictions:
    """Detect objects in images and videos, draw them, and write `detections.json` in COCO's form beside the pictures.

    A file that can't be read is named and skipped.

    Args:
        run: run directory, or a torchvision model.
        images: images, videos, folders that are searched for both, or patterns such as 'photos/*.jpg'.
        out: folder for the pictures; made when it is missing.
        threshold: least score of a detection that is drawn, 0..1; the file holds all.
        compare: another run, drawn at the right of the first.
        annotations: COCO file whose numbers of images (by file name) and categories (by name) detections.json is to
            have; by default images count from 1 and categories, in the order of the detector's classes, from 0.
        device: auto (a GPU where there is one), cpu or cuda.
        console: where to show progress; None for none.

    Returns:
        What was drawn and what was skipped.

    Raises:
        InputError: there is no image, no image could be read, or a run is not valid.
    """
    if not 0 <= threshold <= 1:
        raise InputError(f"--threshold must be between 0 and 1, not {threshold}.")
    if compare == "":
        raise InputError("--compare is empty.")
    folder = Path(out)
    root, paths = find_images(images, folder)
    if folder.resolve() == root.resolve():
        raise InputError(
            f"--out {out} is the folder of the images themselves, which would be overwritten; give another."
        )
    chosen = choose_device(device)
    detectors = [load(one).to(chosen) for one in (run, compare) if one is not None]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out} can't be made a folder ({error.strerror}).") from error
    classes = detectors[0].info.classes
    numbers = Numbers(classes) if annotations is None else NumbersOf(annotations, classes)
    work = _Work(detectors, threshold, root, folder, numbers)
    with _progress(console) as bar:
        task = bar.add_task("Detecting", total=len(paths), speed="")
        for path in paths:
            try:
                work.look_at(path, bar, task)
            except WriteError:
                raise
            except InputError as error:
                work.result.skipped.append(str(error))
            bar.advance(task)
    if not work.result.pictures:
        raise InputError(f"No image could be read. {work.result.skipped[0]}")
    write_into(folder, "detections.json", (json.dumps(work.records) + "\n").encode())
    return work.result


@dataclass
class _Work:
    """Detectors, and what they found so far."""

    detectors: Sequence[Detector]
    threshold: float
    root: Path
    folder: Path
    numbers: Numbers
    result: Predictions = field(default_factory=Predictions)
    records: list[dict[str, object]] = field(default_factory=list)
    taken: set[Path] = field(default_factory=set)

    def look_at(self, path: Path, bar: Progress, task: TaskID) -> None:
        """Draw one file.

        Raises:
            InputError: it can't be read, or has no folder to go to.
        """
        relative = path.relative_to(self.root)
        name, target = relative.as_posix(), self.folder / relative
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{path}: {target.parent} can't be made a folder ({error.strerror}).") from error
        if path.suffix.lower() in VIDEO_SUFFIXES:
            self._video(path, name, self._place(target, ".mp4"), bar)
        else:
            image = read_image(path, read_header(path).upright, prefer_upright=True)
            drawn = to_pil_image(self._drawn(image, name))
            content = BytesIO()
            drawn.save(content, "JPEG", quality=92)
            place = self._place(target, ".jpg")
            write_atomically(place, content.getvalue())
            self.result.pictures.append(place)
        rate = self.result.images / max(self.result.seconds, 1e-9)
        bar.update(task, speed=f"{rate:.1f} images/s")

    def _place(self, target: Path, suffix: str) -> Path:
        """Where a picture goes: a.jpg beside a.png, or a.avi beside a.mp4, gets a name that is free."""
        place = target.with_suffix(suffix)
        while place in self.taken:
            target = target.with_name(target.name + suffix)
            place = target
        self.taken.add(place)
        return place

    def _video(self, path: Path, name: str, target: Path, bar: Progress) -> None:
        expected, count = frame_count(path), 0
        task = bar.add_task(name, total=expected, speed="")
        writer: VideoWriter | None = None
        try:
            for frame, rate in read_frames(path):
                drawn = self._drawn(frame, name, frame=count)
                writer = writer or VideoWriter(target, rate, (drawn.shape[-2], drawn.shape[-1]))
                writer.add(drawn)
                count += 1
                bar.advance(task)
        finally:
            if writer is not None:
                writer.close()
                self.result.pictures.append(target)
            bar.remove_task(task)
        if expected is not None and count < expected - max(HIDDEN, expected // 50):
            raise InputError(f"{path} breaks off: {count} of its {expected} frames could be read.")

    def _drawn(self, image: Tensor, name: str, **beside: object) -> Tensor:
        number = self.numbers.image(self.result.images + 1, name)
        begin = perf_counter()
        found = [detector.predict([image])[0].cpu() for detector in self.detectors]
        self.result.seconds += perf_counter() - begin
        self.result.images += 1
        self.records += ({**one, **beside} for one in self.numbers.records(number, name, found[0]))
        return beside_each_other(
            [
                draw_detections(image, one, detector.info.classes, self.threshold)
                for one, detector in zip(found, self.detectors, strict=True)
            ]
        )


def _progress(console: Console | None) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    speed = TextColumn("{task.fields[speed]}")
    return Progress(*columns, speed, console=console, disable=console is None, transient=True)


def find_images(source: Sequence[str] | str | Path, leave_out: Path | None = None) -> tuple[Path, list[Path]]:
    """The images and videos that a user means, in order, and the folder that their names are relative to.

    Args:
        source: images, videos, folders and patterns.
        leave_out: a folder below which nothing is looked at, because results are written there.

    Raises:
        InputError: there is none.
    """
    if isinstance(source, str | Path):
        return _found(source, leave_out)
    if not source:
        raise InputError("Name images, videos, a folder or a pattern.")
    if len(source) == 1:
        return _found(source[0], leave_out)
    several = [_found(one, leave_out) for one in source]
    paths = dict.fromkeys(path.absolute() for _, found in several for path in found)
    return Path(commonpath([root.absolute() for root, _ in several])), list(paths)


def _found(source: str | Path, leave_out: Path | None) -> tuple[Path, list[Path]]:
    path = Path(source)
    if path.is_file():
        return path.parent, [path]
    known = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    if path.is_dir():
        found = sorted(one for one in path.rglob("*") if one.suffix.lower() in known and one.is_file())
        found = _without(found, path, leave_out)
        if not found:
            raise InputError(f"{path} holds no image or video ({', '.join(sorted(known))}).")
        return path, found
    if not glob.has_magic(str(source)):
        raise InputError(
            f"{path} does not exist; give an image, a video, a folder or a pattern such as 'photos/*.jpg'."
        )
    root = Path(*_before_magic(path))
    found = sorted(Path(one) for one in glob.glob(str(source), recursive=True) if Path(one).is_file())
    found = _without(found, root, leave_out)
    if not found:
        raise InputError(f"No file fits the pattern {str(source)!r}.")
    return root, found


def _without(found: list[Path], root: Path, leave_out: Path | None) -> list[Path]:
    """Without what lies below a folder inside `root`: the results of an earlier time."""
    inside = None if leave_out is None else leave_out.resolve()
    if inside is None or not inside.is_relative_to(root.resolve()) or inside == root.resolve():
        return found
    return [path for path in found if not path.resolve().is_relative_to(inside)]


def _before_magic(path: Path) -> Iterator[str]:
    for part in path.parent.parts:
        if glob.has_magic(part):
            return
        yield part
