"""Pair images with annotation files of one image each, wherever a tool puts them.

Annotation files may be beside the images, in a folder of their own, or in a folder per split. Both files of a pair have
the same name up to the suffix; of several such images, the one in the nearest folder is taken.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal, Protocol

from defeat.data.dataset import Annotation, DetectionDataset, SplitBuilder, select_classes
from defeat.data.files import is_image, read_lines, unknown_split, walk
from defeat.data.images import ImageHeader, read_header
from defeat.data.problems import Problems
from defeat.errors import InputError

Unannotated = Literal["auto", "background", "drop", "error"]
RECOGNISED_BY = 10  # files that are looked into, to recognise a format
ALL = "all"  # the split of a data set that has none
SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_LIST_FOLDERS = ("ImageSets/Main", "ImageSets", ".")
_LIST_NAME = re.compile(r"(?P<split>.+?)(?:_list)?")
# A line of a list that says which images contain a class: `000005 -1`.
CLASS_FLAG = re.compile(r"\s+(-1|0|1)$")


@dataclass(frozen=True, slots=True)
class AnnotationFile:
    """Content of an annotation file.

    Attributes:
        file_name: name of the image in the file; may be empty.
        size: height and width of the image in the file, in pixels; None where it is unknown.
        annotations: the objects.
    """

    file_name: str
    size: tuple[int, int] | None
    annotations: list[Annotation]


class Format(Protocol):
    """A format with one annotation file per image.

    Attributes:
        suffix: suffix of its files, in lower case.
    """

    suffix: str

    def recognises(self, path: Path) -> bool:
        """Whether a file with the suffix is of this format."""
        ...

    def parse(self, path: Path) -> AnnotationFile:
        """Read a file; raises InputError where it is broken."""
        ...


@dataclass(frozen=True, slots=True)
class Pair:
    """An image with its annotation file; either may be missing, and both where a list names what does not exist.

    Attributes:
        name: path of the image relative to the data set, or of the annotation file where there is no image.
        image: path of the image.
        annotation: path of the annotation file.
    """

    name: str
    image: Path | None
    annotation: Path | None


@dataclass(frozen=True)
class Pairs:
    """The images and annotation files of a data set.

    Attributes:
        root: folder of the data set.
        splits: pairs of each split, in the order of their lists or names.
        listed: whether lists name the images of each split.
        annotations: all annotation files, also of images in no split.
        ignored: number of files with their suffix that have no image and are not of the format.
    """

    root: Path
    splits: Mapping[str, Sequence[Pair]]
    listed: bool
    annotations: Sequence[Path]
    ignored: int = 0

    def chosen(self, split: str, unannotated: Unannotated, problems: Problems) -> list[Pair]:
        """The pairs of a split, without those that `unannotated` drops.

        Args:
            split: name of the split.
            unannotated: what an image without an annotation file is: `background`, to `drop`, an `error`, or `auto`:
                background where a list names the image, else an error.
            problems: gets a note for each repair.

        Raises:
            InputError: images have no annotation file, and it is not clear what that means.
        """
        pairs = self.splits[split]
        missing = [pair for pair in pairs if pair.image is not None and pair.annotation is None]
        policy = unannotated if unannotated != "auto" else "background" if self.listed else "error"
        if not missing:
            return list(pairs)
        count = f"{len(missing)} of {len(pairs)} images"
        if policy == "error":
            raise InputError(
                f"{self.root}: {count} have no annotation file, such as {missing[0].name}. Say what that means: "
                "--unannotated background (they contain no object) or --unannotated drop."
            )
        if policy == "drop":
            problems.notes.append(f"{count} without an annotation file dropped")
            return [pair for pair in pairs if pair.annotation is not None or pair.image is None]
        problems.notes.append(f"{count} without an annotation file read as background")
        return list(pairs)


def find_pairs(root: Path, form: Format) -> Pairs | None:
    """Find the annotation files and images below a folder.

    Args:
        root: folder of the data set.
        form: format of the annotation files.

    Returns:
        None where there is no annotation file of the format.
    """
    files = list(walk(root))
    annotations = [file for file in files if file.suffix.lower() == form.suffix]
    if not any(form.recognises(file) for file in annotations[:RECOGNISED_BY]):
        return None
    images = [file for file in files if is_image(file)]
    belonging = _belonging(annotations, images, form)
    pairs = _paired(root, belonging, images, form)
    lists = _lists(root, pairs)
    return Pairs(root, lists or _by_folder(root, pairs), bool(lists), belonging, len(annotations) - len(belonging))


def read_pairs(
    pairs: Pairs,
    form: Format,
    unannotated: Unannotated,
    split: str,
    classes: Sequence[str] | None,
    problems: Problems,
) -> DetectionDataset:
    """Read a split.

    Classes are the sorted names in all annotation files, so that labels are equal in all splits. Therefore a broken
    annotation file of any split is a problem.

    Args:
        pairs: the files of the data set.
        form: format of the annotation files.
        unannotated: see `Pairs.chosen`.
        split: name of the split.
        classes: the classes to keep; None for all.
        problems: gets the problems of the files.

    Raises:
        InputError: the split or a class is unknown, or the data has problems.
    """
    if split not in pairs.splits:
        raise unknown_split(pairs.root, split, sorted(pairs.splits))
    contents = {path: parsed(form, path) for path in pairs.annotations}
    available = class_names(contents.values(), pairs.root, problems)
    if pairs.ignored:
        problems.notes.append(f"{pairs.ignored} other {form.suffix} files ignored")
    builder = SplitBuilder(select_classes(available, classes, pairs.root), problems)
    for pair in problems.track(pairs.chosen(split, unannotated, problems)):
        with problems.skip_broken_image():
            add_pair(builder, pair, None if pair.annotation is None else contents[pair.annotation])
    return builder.finish(pairs.root.resolve().name, split, pairs.root)


def class_names(contents: Collection[AnnotationFile | InputError], origin: object, problems: Problems) -> list[str]:
    """Sorted names of the classes in annotation files; a broken file is a problem, of whichever split it is.

    Args:
        contents: contents of the files, or why they are broken.
        origin: the data set, for messages.
        problems: gets the problems of the files.

    Raises:
        InputError: files are broken, and no other names a class.
    """
    names = named_classes(contents, problems)
    if problems.messages and not names:
        raise problems.no_usable_image(origin, "")
    return names


def named_classes(contents: Collection[AnnotationFile | InputError], problems: Problems) -> list[str]:
    """Sorted names of the classes in annotation files; broken files are problems, with `skip` only if there is no name.

    Args:
        contents: contents of the files, or why they are broken.
        problems: gets the problems of the files.
    """
    names = {
        annotation.name
        for content in contents
        if isinstance(content, AnnotationFile)
        for annotation in content.annotations
    }
    for content in contents:
        if isinstance(content, InputError) and not (problems.skip and names):
            problems.add(content)
    return sorted(names)


def parsed(form: Format, path: Path) -> AnnotationFile | InputError:
    """Read an annotation file; the error where it is broken."""
    try:
        return form.parse(path)
    except InputError as error:
        return error


def add_pair(builder: SplitBuilder, pair: Pair, content: AnnotationFile | InputError | None) -> None:
    """Add an image to a split.

    Args:
        builder: gets the image.
        pair: files of the image.
        content: of its annotation file, or why that is broken; None where there is none.

    Raises:
        InputError: a file is broken or missing.
    """
    if isinstance(content, InputError):
        raise content
    if pair.image is None:
        if pair.annotation is None:
            raise InputError(f"A list names {pair.name!r}, which does not exist.")
        raise InputError(f"{pair.annotation} has no image: there is none named {pair.annotation.stem!r}.")
    header = read_header(pair.image, builder.problems.max_pixels)
    size = None if content is None else content.size
    require_size(pair.annotation, size, pair.image, header)
    upright = size is None or size != header.stored
    builder.add(
        pair.image,
        pair.name,
        header.upright if upright else header.stored,
        [] if content is None else content.annotations,
        prefer_upright=upright,
    )


def require_size(annotation: Path | None, size: tuple[int, int] | None, image: Path, header: ImageHeader) -> None:
    """Refuse annotations that are for an image of another size.

    Raises:
        InputError: naming both sizes, and the factor where the image was resized.
    """
    if size is None or size in (header.stored, header.upright):
        return
    (height, width), (real_height, real_width) = size, header.upright
    factor = real_width / width
    resized = abs(height * factor - real_height) < 1
    advice = f": it was resized by {factor:.3g}, so that the boxes no longer fit" if resized else ""
    raise InputError(
        f"{annotation} is for an image of {width:.12g} x {height:.12g} pixels, but {image} has {real_width} x "
        f"{real_height}{advice}."
    )


def _belonging(files: Sequence[Path], images: Sequence[Path], form: Format) -> list[Path]:
    """The annotation files: those with an image of their name, and of the others those of the format."""
    stems = {image.stem for image in images}
    return [file for file in files if file.stem in stems or form.recognises(file)]


def _paired(root: Path, annotations: Sequence[Path], images: Sequence[Path], form: Format) -> list[Pair]:
    by_stem: dict[str, list[Path]] = {}
    for image in images:
        by_stem.setdefault(image.stem, []).append(image)
    pairs: list[Pair] = []
    used: set[Path | None] = set()
    for annotation in annotations:
        stem = annotation.stem if annotation.stem in by_stem else _named_image(form, annotation)
        nearest = _nearest(annotation, by_stem.get(stem, []))
        if nearest in used:
            nearest = None  # it has an annotation file
        used.add(nearest)
        pairs.append(Pair(_relative(root, nearest or annotation), nearest, annotation))
    pairs += [Pair(_relative(root, image), image, None) for image in images if image not in used]
    return sorted(pairs, key=lambda pair: pair.name)


def _named_image(form: Format, annotation: Path) -> str:
    """The name, without suffix, of the image that an annotation file names."""
    content = parsed(form, annotation)
    name = "" if isinstance(content, InputError) else content.file_name
    return PureWindowsPath(name).stem  # which takes the separators of any system


def _nearest(annotation: Path, images: Sequence[Path]) -> Path | None:
    """The image that shares most folders with an annotation file; the first of several."""
    parts = set(annotation.parent.parts)
    in_folder = [image for image in images if image.parent == annotation.parent]
    return max(in_folder or images, key=lambda image: len(parts & set(image.parent.parts)), default=None)


def _by_folder(root: Path, pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    """Splits by folders such as `train` and `valid`; one split for everything where a file is in none of them."""
    splits: dict[str, list[Pair]] = {}
    for pair in pairs:
        split = next((found for path in (pair.image, pair.annotation) if (found := _split_folder(root, path))), None)
        if split is None:
            return {ALL: list(pairs)}
        splits.setdefault(split, []).append(pair)
    return splits


def _split_folder(root: Path, path: Path | None) -> str | None:
    folders = () if path is None else path.relative_to(root).parent.parts
    return next((SPLIT_FOLDERS[name.lower()] for name in folders if name.lower() in SPLIT_FOLDERS), None)


def _lists(root: Path, pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    """The pairs of each list of a split: lines with a name, with or without folders and suffix."""
    known = {}
    for pair in pairs:
        for path in (pair.annotation, pair.image):  # the image's own name wins
            if path is not None:
                known[path.stem] = known[path.name] = known[_relative(root, path)] = pair
    for folder in _LIST_FOLDERS:
        splits: dict[str, list[Pair]] = {}
        for file in sorted((root / folder).glob("*.txt")):
            match = _LIST_NAME.fullmatch(file.stem)
            lines = [line.strip() for line in read_lines(file) if line.strip()]
            listed = [_resolved(line, known) for line in lines]
            if match is None or 2 * sum(pair.image is not None for pair in listed) <= len(listed):
                continue  # a list of classes, or of something else
            splits[SPLIT_FOLDERS.get(match["split"].lower(), match["split"])] = list(dict.fromkeys(listed))
        if splits:
            return splits
    return {}


def _resolved(line: str, known: Mapping[str, Pair]) -> Pair:
    """The pair that a line of a list names; one without files for a line that names none."""
    nothing = Pair(line, None, None)
    if CLASS_FLAG.search(line):
        return nothing
    # PaddleDetection writes the annotation file behind the image.
    for text in (line, line.split()[0]):
        path = PurePosixPath(text.replace("\\", "/"))
        pair = known.get(path.as_posix()) or known.get(path.name) or known.get(path.stem)
        if pair is not None:
            return pair
    return nothing


def _relative(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()
