"""Data sets: a path becomes images with their targets, labels 0..K-1, whatever the format."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from defeat.data import coco, demo, voc, yolo
from defeat.data.dataset import DetectionDataset
from defeat.data.demo import DemoDataset
from defeat.data.loader import evaluation_loader, training_loader
from defeat.data.problems import OnBadData, Problems
from defeat.errors import InputError

__all__ = [
    "DemoDataset",
    "DetectionDataset",
    "OnBadData",
    "class_names",
    "evaluation_loader",
    "open_dataset",
    "split_names",
    "training_loader",
]


@dataclass(frozen=True)
class _Source:
    """A recognised data set: its splits, and the way to read one of them."""

    split_names: Callable[[], list[str]]
    read: Callable[[str, Sequence[str] | None, Problems], DetectionDataset]


def open_dataset(
    path: str | Path,
    split: str,
    classes: Sequence[str] | None = None,
    on_bad_data: OnBadData = "stop",
    console: Console | None = None,
) -> DetectionDataset:
    """Open a split of a data set; annotations are read and checked at once, images are decoded when asked for.

    Args:
        path: a VOC, COCO or YOLO folder, a YOLO YAML file, or `demo` for the embedded data set (`demo:SEED` for other
            scenes, `demo:SEED:TRAIN` for another number of training scenes). VOC folders can be joined: the folder that
            holds the years, or several folders with commas between them. A VOC folder may be followed by `:split`, the
            one to use where `train` is asked for: `VOC2007:trainval,VOC2012:trainval`.
        split: name of the split, e.g. `train`.
        classes: the classes to keep, in the order of their labels; all of the data set when None.
        on_bad_data: what to do when files are broken or missing: `stop` refuses the data set and names them; `skip`
            leaves out the images that they are about, and decodes every image once to find those whose pixels are
            broken, so that the same files always give the same images.
        console: where `skip` shows its progress; None for none.

    Raises:
        InputError: the format is not recognised, there is no such split or class, or files are broken or missing: the
            message names the one, or the first ten of them.
    """
    return _recognise(path).read(split, classes, Problems(on_bad_data, console))


def class_names(path: str | Path, split: str, on_bad_data: OnBadData = "stop") -> tuple[str, ...]:
    """The classes of a split, in the order of their labels, without decoding an image; see `open_dataset`."""
    return _recognise(path).read(split, None, Problems(on_bad_data, decode=False)).classes


def split_names(path: str | Path) -> list[str]:
    """The splits of the data set at `path`, sorted.

    Where a part is given as `folder:split`, that split is called `train`, and those that share images with it are left
    out: nothing that is listed beside `train` was trained on.
    """
    return _recognise(path).split_names()


def _recognise(path: str | Path) -> _Source:
    text = str(path)
    drawn = demo.parse_name(text)
    if drawn is not None:
        return _Source(lambda: sorted(demo.SPLITS), lambda split, classes, _: drawn.open(split, classes))
    if not text.strip():
        raise InputError("The path of the data set is empty.")
    if Path(text).exists():
        return _recognise_one(Path(text))
    pieces = [piece.strip() for piece in text.split(",")]
    parts = [part for piece in pieces for part in _voc_parts(piece)]
    folders = [part.folder.resolve() for part in parts]
    if len(set(folders)) < len(folders):
        raise InputError(f"{text} names the same folder twice.")
    return _voc_source(parts)


def _recognise_one(path: Path) -> _Source:
    folders = voc.find_folders(path)
    if folders:
        return _voc_source([voc.VocPart(folder) for folder in folders])
    file = yolo.find_file(path)
    if file is not None:
        return _Source(lambda: yolo.split_names(file), partial(yolo.read, file))
    if coco.split_names(path):
        return _Source(lambda: coco.split_names(path), partial(coco.read, path))
    raise InputError(
        f"{path} is no data set of a known format; looked for {voc.LOOKED_FOR}, {yolo.LOOKED_FOR} and "
        f"{coco.LOOKED_FOR}."
    )


def _voc_source(parts: list[voc.VocPart]) -> _Source:
    return _Source(lambda: voc.split_names(parts), partial(voc.read, parts))


def _voc_parts(piece: str) -> list[voc.VocPart]:
    """The VOC folders of one piece of a joined path: `folder` or `folder:split`."""
    folder, train = Path(piece), None
    if not folder.exists() and ":" in piece:
        head, train = piece.rsplit(":", 1)
        folder = Path(head)
    if not piece or not folder.exists():
        raise InputError(f"There is no data set at {piece!r}: no such file or folder.")
    folders = voc.find_folders(folder)
    if not folders:
        raise InputError(f"{folder} is no VOC folder; only those can be joined by commas or be followed by ':split'.")
    return [voc.VocPart(found, train) for found in folders]
