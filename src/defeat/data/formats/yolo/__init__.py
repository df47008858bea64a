"""YOLO data sets: one label file per image, and the names of the classes in one of these.

- a `data.yaml`, which also names the folders or lists of the splits;
- an `obj.data` of Darknet, with a file of classes and the lists of the splits;
- a `classes.txt` or `obj.names`, where the folders of the images are the splits.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from defeat.data.dataset import DetectionDataset, SplitBuilder, select_classes
from defeat.data.files import hidden_below, is_file, is_hidden, is_image, unknown_split
from defeat.data.formats.yolo.description import Description, is_darknet, keys_of, read_darknet, read_yaml
from defeat.data.formats.yolo.folders import find_folders, label_folders
from defeat.data.formats.yolo.labels import LabelReader
from defeat.data.formats.yolo.paths import ListReader, resolve
from defeat.data.images import read_header
from defeat.data.problems import Problems
from defeat.data.reading.layout import Layout
from defeat.data.reading.pairs import SPLIT_FOLDERS, Pair, Pairs, Unannotated
from defeat.errors import InputError

LOOKED_FOR = (
    "a YOLO folder (data.yaml with 'names' and 'train', an obj.data, or images and label files with a classes.txt)"
)
_FILE_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_YAML_SUFFIXES = (".yaml", ".yml")
_LARGEST_YAML = 10_000_000  # bytes of a file of another name


def find(path: Path, unannotated: Unannotated) -> Layout | None:
    """Find a YOLO data set at a path.

    Args:
        path: a folder, or the file that describes the data set.
        unannotated: what images without a label file are; with `auto`, they are background.

    Raises:
        InputError: the data set can't be used as it is.
    """
    if path.is_file():
        description = _described(path)
    else:
        file = next((path / name for name in _FILE_NAMES if (path / name).is_file()), None)
        description = _find_described(path) if file is None else _described(file)
    if description is None:
        return None
    splits = tuple(sorted(description.splits or description.images))
    origin = description.file.name if description.file.is_file() else "label files and a file of classes"
    return Layout(f"YOLO, {origin}", splits, partial(read, description, unannotated), description.notes)


def read(
    description: Description,
    unannotated: Unannotated,
    split: str,
    classes: Sequence[str] | None,
    problems: Problems,
) -> DetectionDataset:
    """Read a split; classes are in the order of their indices."""
    file, root = description.file, description.root
    valid = description.splits or description.images
    if split not in valid:
        raise unknown_split(file, split, sorted(valid))
    builder = SplitBuilder(select_classes(list(description.names.values()), classes, file), problems)
    images = _list_images(description, split, problems)
    labels = _label_files(description, split, images, unannotated, problems)
    pairs = [Pair(image.relative_to(root).as_posix(), image, labels.get(image)) for image in images]
    chosen = Pairs(root, {split: pairs}, listed=True, annotations=()).chosen(split, unannotated, problems)
    reader = LabelReader(description.names)
    for pair in problems.track(chosen):
        assert pair.image is not None
        with problems.skip_broken_image():
            size = read_header(pair.image, problems.max_pixels).upright
            boxes = [] if pair.annotation is None else reader.read(pair.annotation, size)
            builder.add(pair.image, pair.name, size, boxes)
    problems.notes += reader.notes()
    return builder.finish(root.resolve().name, split, file)


def _described(file: Path) -> Description | None:
    """The data set of a description; where it names only the classes, the images are searched for."""
    if file.suffix.lower() in _YAML_SUFFIXES:
        description = read_yaml(file)
    elif file.suffix.lower() == ".data":
        description = read_darknet(file)
    else:
        return None
    return description if description.splits else find_folders(description.root, description) or description


def _find_described(folder: Path) -> Description | None:
    """The data set of a folder without a description of a usual name."""
    if not folder.is_dir() or _is_coco(folder):
        return None
    file = _other_yaml(folder) or next(filter(is_darknet, _files(folder)), None)
    description = None if file is None else _described(file)
    return (
        description if description is not None and (description.splits or description.images) else find_folders(folder)
    )


def _is_coco(folder: Path) -> bool:
    """Whether a folder has COCO files; data sets in both formats are read as COCO, unless a data.yaml is there."""
    return any(folder.glob("annotations/*.json")) or any(folder.glob("*/_annotations.coco.json"))


def _other_yaml(folder: Path) -> Path | None:
    """The YAML file of a folder that names classes, whatever its own name; preferably one that names splits, too.

    Raises:
        InputError: several name classes and splits.
    """
    files = [file for file in _files(folder) if file.suffix.lower() in _YAML_SUFFIXES]
    keys = {file: keys_of(file) for file in files if file.stat().st_size <= _LARGEST_YAML}
    named = [file for file in keys if "names" in keys[file]]
    described = [file for file in named if keys[file].intersection(SPLIT_FOLDERS)]
    if len(described) > 1:
        raise InputError(
            f"{folder} has {len(described)} YAML files with 'names' and splits: give one of them as the data set, such "
            f"as {described[0]}."
        )
    return next(iter(described or named), None)


def _files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.iterdir()) if file.is_file() and not is_hidden(file.name)]


def _list_images(description: Description, split: str, problems: Problems) -> list[Path]:
    if not description.splits:
        return list(description.images[split])
    images: list[Path] = []
    lists = ListReader(description.root, problems)
    for entry in description.splits[split]:
        path = resolve(description.root, entry, split, description.file, problems.notes)
        if path.is_dir():
            try:
                files = sorted(file for file in path.rglob("*") if is_image(file) and file.is_file())
            except OSError as error:
                raise InputError(f"{path} can't be searched for images: {error}.") from error
            images += [file for file in files if not hidden_below(path, file)]
        elif path.suffix.lower() == ".txt":
            images += lists.read(path)
        else:
            raise InputError(f"{description.file}: {split!r} names {path}, neither a folder nor a .txt list.")
    problems.notes += lists.notes()
    unique = list(dict.fromkeys(images))
    if duplicates := len(images) - len(unique):
        problems.notes.append(f"{duplicates} images listed more than once (each is read once)")
    return unique


def _label_files(
    description: Description, split: str, images: Sequence[Path], unannotated: Unannotated, problems: Problems
) -> dict[Path, Path]:
    """Label files by their image: `labels/a/b.txt` for `images/a/b.jpg`; without a folder `images`, beside it.

    Raises:
        InputError: no image has a label file, and it is not said that this means anything.
    """
    if description.labels:
        return {image: description.labels[image] for image in images if image in description.labels}
    root = description.root
    expected = {
        image: root.joinpath(*label_folders(image.relative_to(root).parent.parts), f"{image.stem}.txt")
        for image in images
    }
    labels = {image: file for image, file in expected.items() if is_file(file)}
    if not labels:
        beside = {image: image.parent / f"{image.stem}.txt" for image in images}
        labels = {image: file for image, file in beside.items() if is_file(file)}
        if labels:
            problems.notes.append(f"{len(labels)} label files beside the images read: there are none in 'labels'")
    if images and not labels and unannotated not in ("background", "drop"):
        raise InputError(
            f"No image of the split {split!r} of {description.file} has a label file, such as {expected[images[0]]}; "
            "with --unannotated background, they contain no object."
        )
    return labels
