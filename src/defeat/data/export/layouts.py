"""Annotations of a data set in the layouts COCO, YOLO and VOC, as the readers of this package expect them."""

import html
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import yaml

from defeat.data.dataset import Annotation
from defeat.data.reading.pairs import SPLIT_FOLDERS
from defeat.errors import InputError, quoted
from defeat.files import WriteError

_YOLO_SPLITS = ("train", "val", "test")
_YEAR = re.compile(r".+20\d\d")  # the reader of COCO removes the year of `val2017`
_NOT_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_DIGITS = 5  # decimals of a pixel
# In pixels: VOC's corners include both ends, so that a box of one pixel has equal corners, which readers drop.
_LEAST_VOC_EXTENT = 1.001
_TOLERANCE = 1e-3  # in pixels: smaller changes are not counted
_LISTED = 5  # names in a note


@dataclass(frozen=True, slots=True)
class ExportedImage:
    """An image whose file is written.

    Attributes:
        file_name: name of the file in the folder of the images.
        image_id: unique number in the split.
        size: height and width in pixels.
        annotations: its objects, with boxes inside the image.
    """

    file_name: str
    image_id: int
    size: tuple[int, int]
    annotations: Sequence[Annotation]


class AnnotationWriter(Protocol):
    """Writes the annotations of a data set in one layout.

    Attributes:
        reads_upright: whether readers always apply the EXIF orientation of an image, see `ImageWriter`.
        is_shared: whether the images of all splits are in one folder.
    """

    reads_upright: ClassVar[bool]
    is_shared: ClassVar[bool]

    def image_folder(self, split: str) -> str:
        """Folder of the images of a split, relative to the root."""
        ...

    def write(self, split: str, images: Iterable[ExportedImage]) -> None:
        """Write the annotations of a split."""
        ...

    def finish(self) -> None:
        """Write what belongs to all splits."""
        ...

    def notes(self) -> list[str]:
        """What the layout can't express, one phrase each."""
        ...


class CocoWriter:
    """`annotations/instances_SPLIT.json`, and the images in `SPLIT/`.

    Args:
        root: folder of the new data set.
        classes: names of the K classes; their ids are 1..K.
        splits: names of the splits.
    """

    reads_upright: ClassVar[bool] = False
    is_shared: ClassVar[bool] = False

    def __init__(self, root: Path, classes: Sequence[str], splits: Sequence[str]) -> None:
        self._root = root
        self._ids = {name: number for number, name in enumerate(classes, 1)}
        self._splits = splits
        self._counts: Counter[str] = Counter()

    def image_folder(self, split: str) -> str:
        """The folder of the split."""
        return split

    def write(self, split: str, images: Iterable[ExportedImage]) -> None:
        """Write the JSON file of a split."""
        entries: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for image in images:
            height, width = image.size
            entries.append({"id": image.image_id, "file_name": image.file_name, "width": width, "height": height})
            for annotation in image.annotations:
                self._counts["difficult flags lost (COCO has none)"] += annotation.difficult
                annotations.append(self._annotation(annotation, len(annotations) + 1, image.image_id))
        content = {
            "images": entries,
            "annotations": annotations,
            "categories": [{"id": number, "name": name} for name, number in self._ids.items()],
        }
        _write(self._root / "annotations" / f"instances_{split}.json", json.dumps(content))

    def finish(self) -> None:
        """Nothing: every file is of one split."""

    def notes(self) -> list[str]:
        """Lost flags, and splits that are read under another name."""
        years = [quoted(split) for split in self._splits if _YEAR.fullmatch(split)]
        renamed = [f"the year in the names of splits may be left out by readers: {', '.join(years)}"] if years else []
        return [*_phrases(self._counts), *renamed]

    def _annotation(self, annotation: Annotation, number: int, image_id: int) -> dict[str, Any]:
        x1, y1, x2, y2 = annotation.corners
        return {
            "id": number,
            "image_id": image_id,
            "category_id": self._ids[annotation.name],
            "bbox": [round(value, _DIGITS) for value in (x1, y1, x2 - x1, y2 - y1)],
            "area": round((x2 - x1) * (y2 - y1), _DIGITS),
            "segmentation": [],
            "iscrowd": int(annotation.crowd),
        }


class YoloWriter:
    """`data.yaml`, the images in `images/SPLIT/` and a label file for each in `labels/SPLIT/`.

    Args:
        root: folder of the new data set.
        classes: names of the classes, in the order of their indices.
        splits: names of the splits.

    Raises:
        InputError: a split can't be named train, val or test.
    """

    reads_upright: ClassVar[bool] = True
    is_shared: ClassVar[bool] = False

    def __init__(self, root: Path, classes: Sequence[str], splits: Sequence[str]) -> None:
        self._root = root
        self._classes = classes
        self._indices = {name: index for index, name in enumerate(classes)}
        self._keys = _yolo_splits(splits)
        self._counts: Counter[str] = Counter()

    def image_folder(self, split: str) -> str:
        """The folder of the split in `images`."""
        return f"images/{self._keys[split]}"

    def write(self, split: str, images: Iterable[ExportedImage]) -> None:
        """Write the label files of a split; that of an image without objects is empty."""
        folder = self._root / "labels" / self._keys[split]
        for image in images:
            lines = [self._line(annotation, image.size) for annotation in image.annotations]
            _write(folder / f"{Path(image.file_name).stem}.txt", "".join(f"{line}\n" for line in lines))

    def finish(self) -> None:
        """Write the description."""
        content = {
            **{key: f"images/{key}" for key in _YOLO_SPLITS if key in self._keys.values()},
            "nc": len(self._classes),
            "names": dict(enumerate(self._classes)),
        }
        is_printable = all(name.isprintable() for name in self._classes)
        _write(self._root / "data.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=is_printable))

    def notes(self) -> list[str]:
        """Lost flags, and splits with another name."""
        renamed = [f"the split {split!r} is written as {key!r}" for split, key in self._keys.items() if split != key]
        return [*_phrases(self._counts), *renamed]

    def _line(self, annotation: Annotation, size: tuple[int, int]) -> str:
        self._counts["difficult flags lost (YOLO has none)"] += annotation.difficult
        self._counts["crowd flags lost (YOLO has none)"] += annotation.crowd
        height, width = size
        x1, y1, x2, y2 = annotation.corners
        values = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        return " ".join([str(self._indices[annotation.name]), *(f"{value:.10f}" for value in values)])


class VocWriter:
    """`Annotations/`, `JPEGImages/` and `ImageSets/Main/SPLIT.txt`.

    Args:
        root: folder of the new data set.
        classes: names of the classes.
        splits: names of the splits.

    Raises:
        InputError: the name of a class can't be written.
    """

    reads_upright: ClassVar[bool] = False
    is_shared: ClassVar[bool] = True

    def __init__(self, root: Path, classes: Sequence[str], splits: Sequence[str]) -> None:
        for name in classes:
            if not name or name != name.strip() or _NOT_XML.search(name):
                raise InputError(
                    f"The class {quoted(name)} can't be written as VOC: it is empty, or has control characters or "
                    "spaces at its ends. Export as COCO or YOLO."
                )
        self._root = root
        self._classes = classes
        self._splits = splits
        self._used: set[str] = set()
        self._counts: Counter[str] = Counter()

    def image_folder(self, split: str) -> str:
        """The folder of all images."""
        return "JPEGImages"

    def write(self, split: str, images: Iterable[ExportedImage]) -> None:
        """Write the annotation files of the images of a split, and the list of them."""
        stems = []
        for image in images:
            stems.append(Path(image.file_name).stem)
            _write(self._root / "Annotations" / f"{stems[-1]}.xml", self._annotation_file(image))
        _write(self._root / "ImageSets/Main" / f"{split}.txt", "".join(f"{stem}\n" for stem in stems))

    def finish(self) -> None:
        """Nothing: every file is of one image or one split."""

    def notes(self) -> list[str]:
        """Changed boxes and flags, lost classes, and whether the order of the classes changes."""
        notes = _phrases(self._counts)
        lost = [name for name in self._classes if name not in self._used]
        if lost:
            names = ", ".join(lost[:_LISTED]) + (", ..." if len(lost) > _LISTED else "")
            notes.append(f"{len(lost)} classes without an object lost (VOC has no list of classes): {names}")
        kept = [name for name in self._classes if name in self._used]
        if kept != sorted(kept):
            notes.append("the order of the classes is lost (VOC has no list of classes): they are read sorted by name")
        return notes

    def _annotation_file(self, image: ExportedImage) -> str:
        height, width = image.size
        return "\n".join(
            [
                "<annotation>",
                "\t<folder>JPEGImages</folder>",
                f"\t<filename>{html.escape(image.file_name, quote=False)}</filename>",
                f"\t<size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
                "\t<segmented>0</segmented>",
                *(self._object(annotation) for annotation in image.annotations),
                "</annotation>\n",
            ]
        )

    def _object(self, annotation: Annotation) -> str:
        self._used.add(annotation.name)
        self._counts["crowd flags written as difficult (VOC has none)"] += annotation.crowd
        x1, y1, x2, y2 = annotation.corners
        (x1, x2), (y1, y2) = _at_least_a_pixel(x1, x2), _at_least_a_pixel(y1, y2)
        changed = max(abs(new - old) for new, old in zip((x1, y1, x2, y2), annotation.corners, strict=True))
        self._counts["boxes widened to one pixel (VOC has no smaller ones)"] += changed > _TOLERANCE
        # Corners count from 1 and include both ends.
        corners = {"xmin": x1 + 1, "ymin": y1 + 1, "xmax": x2, "ymax": y2}
        box = "".join(f"<{key}>{_shortest(value)}</{key}>" for key, value in corners.items())
        return "\n".join(
            [
                "\t<object>",
                f"\t\t<name>{html.escape(annotation.name, quote=False)}</name>",
                "\t\t<pose>Unspecified</pose>",
                "\t\t<truncated>0</truncated>",
                f"\t\t<difficult>{int(annotation.difficult or annotation.crowd)}</difficult>",
                f"\t\t<bndbox>{box}</bndbox>",
                "\t</object>",
            ]
        )


def _yolo_splits(splits: Sequence[str]) -> dict[str, str]:
    """The key of each split in `data.yaml`; the only split of another name is for training.

    Raises:
        InputError: two splits would have one key.
    """
    keys = {split: SPLIT_FOLDERS.get(split.lower(), "train") for split in splits}
    for key in keys.values():
        same = [split for split in splits if keys[split] == key]
        if len(same) > 1:
            raise InputError(
                f"YOLO has the splits train, val and test: {' and '.join(map(repr, same))} would both be {key}. "
                "Export fewer splits, or as COCO or VOC."
            )
    return keys


def _at_least_a_pixel(start: float, end: float) -> tuple[float, float]:
    extent = end - start
    if extent >= _LEAST_VOC_EXTENT:
        return start, end
    margin = (_LEAST_VOC_EXTENT - extent) / 2
    return start - margin, end + margin


def _shortest(value: float) -> str:
    """A number without needless zeros: many programs read integers only."""
    return f"{value:.{_DIGITS}f}".rstrip("0").rstrip(".")


def _phrases(counts: Counter[str]) -> list[str]:
    return [f"{count} {phrase}" for phrase, count in counts.items() if count]


def _write(path: Path, text: str) -> None:
    content = text.encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise WriteError(path, len(content), error) from error
