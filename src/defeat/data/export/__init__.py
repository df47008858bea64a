"""Write a data set in another layout, so that this package and other programs read it."""

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

from rich.console import Console
from rich.markup import escape
from rich.progress import track

from defeat.data.dataset import Annotation, DetectionDataset
from defeat.data.export.images import ImageWriter
from defeat.data.export.layouts import AnnotationWriter, CocoWriter, ExportedImage, VocWriter, YoloWriter
from defeat.data.files import is_hidden
from defeat.errors import InputError, quoted, unknown_name

ExportLayout = Literal["coco", "yolo", "voc"]

_WRITERS: dict[ExportLayout, type[CocoWriter | YoloWriter | VocWriter]] = {
    "coco": CocoWriter,
    "yolo": YoloWriter,
    "voc": VocWriter,
}


def export_dataset(
    splits: Mapping[str, DetectionDataset],
    folder: str | Path,
    layout: ExportLayout,
    *,
    links: bool = False,
    console: Console | None = None,
) -> list[str]:
    """Write the splits of a data set in a layout.

    Boxes are kept to 0.001 pixels. Image files are copied byte for byte; images in memory are written as PNG. The
    classes are those of all splits, in the order of the first split. The folder appears when everything is written.

    Args:
        splits: the splits by their names.
        folder: the new data set: an empty folder, or one that doesn't exist.
        layout: `coco`, `yolo` or `voc`.
        links: whether to make hard links to the image files instead of copies, where the file system can. A program
            that changes a linked image changes the original.
        console: where to show progress; None for nowhere.

    Returns:
        What the layout can't express and what was changed, one phrase each.

    Raises:
        InputError: the layout is unknown, the folder is not empty or can't be written, an image can't be read, or the
            layout can't express the names of the splits or classes.
    """
    if layout not in _WRITERS:
        raise unknown_name("layout", layout, get_args(ExportLayout))
    _require_splits(splits)
    classes = tuple(dict.fromkeys(name for dataset in splits.values() for name in dataset.classes))
    target = _new_folder(folder)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    # Before the first file is written, a writer refuses what its layout can't express.
    writer: AnnotationWriter = _WRITERS[layout](temporary, classes, list(splits))
    if layout == "voc" and not any(len(dataset.table.labels) for dataset in splits.values()):
        raise InputError("A data set without objects can't be written as VOC, which names the classes at the objects.")
    images = _Images(splits, temporary, writer, links)
    with _renamed_at_end(temporary, target):
        for split, dataset in splits.items():
            (temporary / writer.image_folder(split)).mkdir(parents=True, exist_ok=True)
            writer.write(split, images.write(split, dataset, console))
        writer.finish()
    return [*_class_notes(splits, classes), *writer.notes(), *images.notes()]


class _Images:
    """Writes the images of all splits.

    Args:
        splits: the splits by their names.
        root: folder of the new data set.
        writer: says where the images are.
        links: see `export_dataset`.
    """

    def __init__(
        self, splits: Mapping[str, DetectionDataset], root: Path, writer: AnnotationWriter, links: bool
    ) -> None:
        self._writer = writer
        self._files = ImageWriter(root, links=links, reads_upright=writer.reads_upright)
        self._names: dict[object, str] = {}  # of images in the one folder of all splits
        paths = Counter(
            path
            for dataset in splits.values()
            if not dataset.in_memory
            for path in {sample.path for sample in dataset.samples}
        )
        self._repeated = 0 if writer.is_shared else sum(count > 1 for count in paths.values())

    def write(self, split: str, dataset: DetectionDataset, console: Console | None) -> Iterator[ExportedImage]:
        """Write the images of a split, one at each step."""
        folder = self._writer.image_folder(split)
        indices: Iterable[int] = range(len(dataset))
        if console is not None:
            indices = track(indices, f"Writing {escape(split)}", len(dataset), console=console, transient=True)
        written: set[str] = set()
        for index in indices:
            sample, annotations = dataset.samples[index], _annotations(dataset, index)
            # In layouts with one folder, an image of several splits with the same objects is one file.
            key = (sample.path, sample.size, sample.prefer_upright, tuple(annotations))
            name = None if dataset.in_memory else self._names.get(key)
            if name is None or name in written:
                name = self._files.write(dataset, index, folder)
            if self._writer.is_shared and not dataset.in_memory:
                self._names[key] = name
            written.add(name)
            yield ExportedImage(name, sample.image_id, sample.size, annotations)

    def notes(self) -> list[str]:
        """A phrase for each kind of change."""
        repeated = [f"{self._repeated} images are in several splits (each has a copy)"] if self._repeated else []
        return [*self._files.notes(), *repeated]


def _annotations(dataset: DetectionDataset, index: int) -> list[Annotation]:
    target = dataset.target(index)
    rows = zip(
        target.boxes.tolist(), target.labels.tolist(), target.difficult.tolist(), target.crowd.tolist(), strict=True
    )
    return [
        Annotation((box[0], box[1], box[2], box[3]), dataset.classes[label], difficult, crowd)
        for box, label, difficult, crowd in rows
    ]


def _require_splits(splits: Mapping[str, DetectionDataset]) -> None:
    if not splits:
        raise InputError("There is no split to export.")
    for name, dataset in splits.items():
        is_file_name = name.isprintable() and name == name.strip() and not set(name) & set('<>:"/\\|?*')
        if not name or not is_file_name or is_hidden(name):
            raise InputError(f"The split {quoted(name)} can't be exported: its name must be a valid name of a file.")
        if not len(dataset):
            raise InputError(f"The split {name!r} contains no image to export.")


def _new_folder(folder: str | Path) -> Path:
    """The absolute path of a folder that is empty or doesn't exist.

    Raises:
        InputError: it is something else, or can't be replaced at the end.
    """
    path = Path(os.path.realpath(folder))
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(f"{folder} is not an empty folder: name a new one.")
        if path.exists() and (path.is_mount() or path == Path.cwd()):
            raise InputError(f"{folder} is the current folder or a mount point: name a new folder in it.")
    except OSError as error:
        raise _not_written(folder, error) from error
    return path


@contextmanager
def _renamed_at_end(temporary: Path, folder: Path) -> Iterator[None]:
    """Create a temporary folder, which gets its name at the end, and is removed after an error.

    Raises:
        InputError: a folder can't be created or renamed.
    """
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process
    try:
        temporary.mkdir(parents=True)
        yield
        if folder.exists():
            folder.rmdir()  # it was empty; not every system replaces an empty folder
        temporary.rename(folder)
    except OSError as error:
        raise _not_written(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _not_written(folder: str | Path, error: OSError) -> InputError:
    return InputError(f"{folder} can't be written ({error.strerror or error}).")


def _class_notes(splits: Mapping[str, DetectionDataset], classes: Sequence[str]) -> list[str]:
    if all(dataset.classes == classes for dataset in splits.values()):
        return []
    return [f"the splits have different classes: each is written with all {len(classes)}"]
