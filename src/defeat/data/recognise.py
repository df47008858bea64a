"""Recognise the format and layout of a data set. A format is a module with `find`, and a line here."""

from collections.abc import Callable
from pathlib import Path

from defeat.data import demo
from defeat.data.formats import coco, cvat, labelme, via, voc, yolo
from defeat.data.reading.layout import Layout
from defeat.data.reading.pairs import Unannotated
from defeat.data.reading.unread import explain
from defeat.errors import InputError


def recognise(source: str | Path, images: str | Path | None = None, unannotated: Unannotated = "auto") -> Layout:
    """Find the files of a data set, without reading its annotations.

    Args:
        source: see `open_dataset`.
        images: folder of the images, where that is not part of the data set.
        unannotated: what images without an annotation file are.

    Raises:
        InputError: the data set doesn't exist, or its format is not recognised.
    """
    text = str(source)
    name = demo.parse_name(text)
    if name is not None:
        return Layout("drawn scenes", tuple(sorted(demo.SPLITS)), lambda split, classes, _: name.open(split, classes))
    if not text.strip():
        raise InputError("The path of the data set is empty.")
    if Path(text).exists():
        return _recognise_path(Path(text), images, unannotated)
    parts = [part for piece in text.split(",") for part in _voc_parts(piece.strip())]
    folders = [part.folder.resolve() for part in parts]
    if len(set(folders)) < len(folders):
        raise InputError(f"{text} names the same folder twice.")
    return voc.joined(parts, unannotated)


def _recognise_path(path: Path, images: str | Path | None, unannotated: Unannotated) -> Layout:
    finders: list[Callable[[], Layout | None]] = [
        lambda: voc.find_standard(path, unannotated),
        lambda: yolo.find(path, unannotated),
        lambda: coco.find(path, images),
        lambda: voc.find_pairs_of(path, unannotated),
        lambda: labelme.find(path, unannotated),
        lambda: via.find(path, images),
        lambda: cvat.find(path, images),
    ]
    layout = next((layout for find in finders if (layout := find()) is not None), None)
    if layout is None:
        raise InputError(explain(path, [module.LOOKED_FOR for module in (voc, yolo, coco, labelme, via, cvat)]))
    return layout


def _voc_parts(piece: str) -> list[voc.VocPart]:
    """VOC folders of one part of a joined path: `folder` or `folder:split`."""
    folder, train = Path(piece), None
    if not folder.exists() and ":" in piece:
        name, train = piece.rsplit(":", 1)
        folder = Path(name)
    if not piece or not folder.exists():
        raise InputError(f"There is no data set at {piece!r}: no such file or folder.")
    folders = voc.find_folders(folder)
    if not folders:
        raise InputError(
            f"{folder} is not a VOC folder; only VOC folders can be joined by commas or followed by ':split'."
        )
    return [voc.VocPart(found, train) for found in folders]
