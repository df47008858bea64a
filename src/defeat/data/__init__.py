"""Data sets: open a path in any supported format as images with targets, labels 0..K-1."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from defeat.data.dataset import DetectionDataset
from defeat.data.demo import DemoDataset
from defeat.data.hold_out import HoldOutBy
from defeat.data.images import MAX_PIXELS
from defeat.data.loader import evaluation_loader, training_loader
from defeat.data.problems import OnBadData
from defeat.data.reading.pairs import Unannotated
from defeat.data.source import DataSource

__all__ = [
    "DataSource",
    "DemoDataset",
    "DetectionDataset",
    "OnBadData",
    "evaluation_loader",
    "open_dataset",
    "split_names",
    "training_loader",
]


def open_dataset(
    path: str | Path,
    split: str,
    classes: Sequence[str] | None = None,
    on_bad_data: OnBadData = "stop",
    console: Console | None = None,
    *,
    unannotated: Unannotated = "auto",
    images: str | Path | None = None,
    hold_out: float | None = None,
    hold_out_by: HoldOutBy = "file",
    max_pixels: int = MAX_PIXELS,
) -> DetectionDataset:
    """Open a split of a data set; annotations are read and validated immediately, images are decoded lazily.

    Args:
        path: a folder or a file in VOC, COCO, YOLO, labelme, VIA or CVAT format, whose layouts docs/data.md lists, or
            `demo` for the embedded data set (`demo:SEED` for other scenes, `demo:SEED:TRAIN` for another number of
            training scenes). VOC folders can be joined: the folder that contains the years, or several folders
            separated by commas. `:split` after a VOC folder selects its split for `train`:
            `VOC2007:trainval,VOC2012:trainval`.
        split: name of the split, e.g. `train`.
        classes: classes to keep, in the order of their labels; None for all.
        on_bad_data: what to do if files are broken or missing: `stop` refuses the data set and names them; `skip`
            skips the affected images, and decodes every image once, so that the same files always give the same images.
        console: where `skip` shows its progress; None for no progress bar.
        unannotated: what images without an annotation file are: `background` (without objects), to `drop`, an `error`,
            or `auto`: background where the layout names the image, as a list of a split does, else an error.
        images: folder of the images, where that is not part of the data set.
        hold_out: share of the images, above 0 and below 1, that becomes the split `val` of a data set without one.
        hold_out_by: what stays together in hold_out: copies of a `file`, a `folder`, or names with one `prefix` before
            a number, such as the frames of a video.
        max_pixels: most pixels of an image file; an image of more is a broken file.

    Raises:
        InputError: unknown format, split or class, or broken or missing files; the message names the file, or the first
            ten.
    """
    folder = None if images is None else str(images)
    source = DataSource(str(path), on_bad_data, unannotated, folder, hold_out, hold_out_by, max_pixels)
    return source.open(split, classes, console)


def split_names(path: str | Path) -> list[str]:
    """Sorted names of the splits of a data set.

    In a part `folder:split`, that split is called `train`, and splits that share images with it are omitted, so that
    every other split is held out.
    """
    return DataSource(str(path)).split_names()
