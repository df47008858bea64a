"""YOLO data sets without a description: images, label files of the same names, and a file with the classes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from defeat.data.files import absolute, is_file, is_image, walk
from defeat.data.formats.yolo.description import Description, read_names
from defeat.data.formats.yolo.labels import is_label_file
from defeat.data.formats.yolo.paths import ListReader
from defeat.data.problems import Problems
from defeat.data.reading.pairs import ALL, RECOGNISED_BY, SPLIT_FOLDERS
from defeat.errors import InputError

NAMES_FILES = ("classes.txt", "obj.names", "classes.names", "_darknet.labels")
_BEGINNING = 65536  # bytes of a JSON file that are looked into
_JSON_KEYS = (b'"images"', b'"annotations"', b'"shapes"', b'"regions"')  # of COCO, labelme and VIA


def find_folders(root: Path, described: Description | None = None) -> Description | None:
    """Find the images and label files below a folder.

    Args:
        root: the folder.
        described: the classes, where a description names them.

    Returns:
        None where there are no label files, or where there are other annotation files and no classes.

    Raises:
        InputError: the label files can't be used, because their classes or images are not clear.
    """
    root = absolute(root)
    files = [file for file in walk(root) if is_file(file)]
    images = [file for file in files if is_image(file)]
    texts = [file for file in files if file.suffix.lower() == ".txt" and file.name not in NAMES_FILES]
    labels, paired = _pair_by_name(root, images, texts)
    filled = (file for file in dict.fromkeys(labels.values()) if file.stat().st_size)
    example = next(filter(is_label_file, islice(filled, RECOGNISED_BY)), None)
    if example is None:
        return None
    if described is None:
        described = _named(root, files)
    if described is None:
        if any(map(_is_other_annotation, files)):
            return None
        raise _without_names(root, files, example)
    others = _require_one_format(root, files, images, labels)
    splits, notes = _splits(root, images)
    lists, ignored = _lists(root, set(labels.values()), texts)
    return replace(
        described,
        splits=lists,
        images={} if lists else splits,
        labels=labels,
        notes=(*described.notes, *others, *paired, *_unused(labels, texts), *ignored, *(() if lists else notes)),
    )


def label_folders(folders: Sequence[str]) -> list[str]:
    """Folders of the label files of images in these: `labels` for the last `images`."""
    replaced = list(folders)
    if "images" in replaced:
        last = len(replaced) - 1 - replaced[::-1].index("images")
        replaced[last] = "labels"
    return replaced


def _pair_by_name(root: Path, images: Iterable[Path], texts: Iterable[Path]) -> tuple[dict[Path, Path], list[str]]:
    """Label files by their image: in the folder where they belong, else of the same name in the nearest one; and notes.

    Raises:
        InputError: a label file may belong to several images.
    """
    by_stem: dict[str, list[Path]] = {}
    for image in images:
        by_stem.setdefault(image.stem, []).append(image)
    available, labels = set(texts), dict[Path, Path]()
    for image in (image for group in by_stem.values() for image in group):
        folder = root.joinpath(*label_folders(image.relative_to(root).parent.parts))
        expected = (folder / f"{image.stem}.txt", image.with_suffix(".txt"))
        label = next((file for file in expected if file in available), None)
        if label is not None:
            labels[image] = label
    count = 0
    for label in sorted(available - set(labels.values())):
        candidates = [image for image in by_stem.get(label.stem, ()) if image not in labels]
        if candidates and is_label_file(label) and (nearest := _nearest(root, label, candidates)) is not None:
            labels[nearest] = label
            count += 1
    return labels, [f"{count} label files read for images of the same name in other folders"] if count else []


def _nearest(root: Path, label: Path, images: Sequence[Path]) -> Path | None:
    """The image that shares most folders with a label file, of those that are in no other split."""
    split = _split_folder(root, label)
    parts = set(label.relative_to(root).parent.parts)
    shared = {
        image: len(parts & set(image.relative_to(root).parent.parts))
        for image in images
        if split is None or _split_folder(root, image) in (None, split)
    }
    most = max(shared.values(), default=0)
    nearest = [image for image, count in shared.items() if count == most]
    if len(nearest) > 1:
        raise InputError(
            f"{label} may belong to {nearest[0]} or to {nearest[1]}: move it beside its image, or into a folder "
            "'labels' beside the folder 'images'."
        )
    return nearest[0] if nearest else None


def _split_folder(root: Path, file: Path) -> str | None:
    folders = file.relative_to(root).parent.parts
    return next((SPLIT_FOLDERS[name.lower()] for name in folders if name.lower() in SPLIT_FOLDERS), None)


def _splits(root: Path, images: Sequence[Path]) -> tuple[dict[str, list[Path]], list[str]]:
    """Images by folders such as `train` and `valid`; one split where an image is in none of them; and notes."""
    splits: dict[str | None, list[Path]] = {}
    for image in images:
        splits.setdefault(_split_folder(root, image), []).append(image)
    rest = splits.get(None, [])
    if not rest:
        return {split: sorted(files) for split, files in splits.items() if split is not None}, []
    notes = [f"{len(rest)} of {len(images)} images are in no folder of a split: all are one split"]
    return {ALL: sorted(images)}, notes if len(rest) < len(images) else []


def _lists(root: Path, labels: set[Path], texts: Iterable[Path]) -> tuple[dict[str, list[str]], list[str]]:
    """Lists of the images of each split, such as `train.txt`, in the folder itself; and notes."""
    lists: dict[str, list[str]] = {}
    ignored = []
    for file in texts:
        split = SPLIT_FOLDERS.get(file.stem.lower())
        if split is None or file.parent != root or file in labels:
            continue
        if ListReader(root, Problems()).begins_with_image(file):
            lists.setdefault(split, []).append(file.name)
        else:
            ignored.append(f"{file.name} ignored: it begins with no name of an image")
    return lists, ignored


def _named(root: Path, files: Iterable[Path]) -> Description | None:
    """The classes in the files that name them; several must agree, as far as they go."""
    named = [file for file in files if file.name in NAMES_FILES or file.suffix.lower() == ".names"]
    if not named:
        return None
    contents = {file: read_names(file) for file in named}
    longest = max(named, key=lambda file: len(contents[file]))
    for file, names in contents.items():
        if any(contents[longest][index] != name for index, name in names.items()):
            raise InputError(f"{file} and {longest} name different classes: leave the one that the label files follow.")
    shorter = sum(len(names) < len(contents[longest]) for names in contents.values())
    notes = [f"{shorter} of {len(named)} files of classes are shorter than {longest.relative_to(root).as_posix()!r}"]
    return Description(root, root, contents[longest], notes=tuple(notes if shorter else ()))


def _without_names(root: Path, files: Iterable[Path], example: Path) -> InputError:
    text = f"{root} has YOLO label files, such as {example.relative_to(root)}, but nothing names their classes"
    inner = next((file for file in files if file.name in ("data.yaml", "data.yml", "dataset.yaml")), None)
    if inner is not None:
        return InputError(f"{text}, except {inner}: give that file as the data set.")
    return InputError(f"{text}: write a classes.txt with one name in each line, in the order of their indices.")


def _is_other_annotation(file: Path) -> bool:
    """Whether a file may contain annotations of another format."""
    if file.suffix.lower() == ".xml":
        return True
    if file.suffix.lower() != ".json":
        return False
    try:
        with file.open("rb") as stream:
            beginning = stream.read(_BEGINNING)
    except OSError:
        return False
    return any(key in beginning for key in _JSON_KEYS)


def _require_one_format(
    root: Path, files: Iterable[Path], images: Iterable[Path], labels: Mapping[Path, Path]
) -> list[str]:
    """Notes on files of VOC and labelme beside the label files.

    Raises:
        InputError: an image has such a file and no label file, so that its objects would be lost.
    """
    stems = {image.stem for image in images}
    others = {file.stem: file for file in files if file.suffix.lower() in (".xml", ".json") and file.stem in stems}
    missing = next((image for image in images if image not in labels and image.stem in others), None)
    if missing is not None:
        raise InputError(
            f"{root} has annotation files of two formats: {missing} has {others[missing.stem]}, but no label file of "
            "YOLO. Move the files of one format to another folder."
        )
    return [f"{len(others)} .xml or .json files ignored: the label files of YOLO are read"] if others else []


def _unused(labels: Mapping[Path, Path], texts: Iterable[Path]) -> list[str]:
    """Notes on label files that belong to no image."""
    used = set(labels.values())
    folders = {file.parent for file in used}
    count = sum(file not in used and file.parent in folders and is_label_file(file) for file in texts)
    return [f"{count} label files without an image ignored"] if count else []
