"""Annotation files that describe many images each: find the images, and read them as a split.

Names in such files are never used as paths beyond the data set: an image that is not where its name says is looked up
by the last part of its name among the images of the data set.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from defeat.data.dataset import DetectionDataset, SplitBuilder, select_classes
from defeat.data.files import is_file, is_image, leaves_folder, unknown_split, walk
from defeat.data.problems import Problems
from defeat.data.reading.pairs import ALL, SPLIT_FOLDERS, AnnotationFile, Pair, add_pair, named_classes
from defeat.data.reading.shapes import dropped_shapes
from defeat.errors import InputError


@dataclass(frozen=True)
class ListedImage:
    """An image that an annotation file describes.

    Attributes:
        where: names its entry in messages.
        file: the annotation file.
        file_name: name of the image in the file.
        content: its size and objects, or why they are broken.
        subset: folder of the image, below the folders that file names are relative to; may be empty.
        dropped: kinds of the shapes that were dropped because they have no area.
        rotated: number of rotated boxes, which became the upright boxes around them.
    """

    where: str
    file: Path
    file_name: str
    content: AnnotationFile | InputError
    subset: str = ""
    dropped: Sequence[str] = ()
    rotated: int = 0

    @property
    def is_background(self) -> bool:
        """Whether no shape is drawn in the image."""
        return isinstance(self.content, AnnotationFile) and not self.content.annotations and not self.dropped


class ImageFolders:
    """Where the images of a data set are.

    Args:
        root: folder of the data set.
        folders: folders that file names may be relative to, the first has precedence.
        images: folder of the images that the user named, which has precedence.

    Attributes:
        root: folder of the data set.
        folders: all folders that file names may be relative to.
        by_last_part: names of images that were found only by the last part of their path.
    """

    def __init__(self, root: Path, folders: Sequence[Path], images: str | Path | None = None) -> None:
        self.root = root
        self.folders = list(dict.fromkeys([*([] if images is None else [Path(images)]), *folders]))
        self.by_last_part: set[str] = set()
        self._searched = root if images is None else Path(images)

    def find(self, image: ListedImage) -> Path:
        """Find an image.

        Raises:
            InputError: it doesn't exist, or several images have its name.
        """
        name = image.file_name.replace("\\", "/")
        names = [text for text in (f"{image.subset}/{name}", name) if not leaves_folder(text)]
        if PurePosixPath(name).name:
            for path in (folder / text for text in names for folder in self.folders):
                if is_file(path):
                    return path
        candidates = self._by_name.get(PurePosixPath(name).name, ())
        if not candidates:
            looked_in = ", ".join(map(str, self.folders))
            raise InputError(f"{image.where}: the image {image.file_name!r} does not exist; looked in {looked_in}.")
        if len(candidates) > 1:
            raise InputError(
                f"{image.where}: the image {image.file_name!r} may be {candidates[0]} or {candidates[1]}: put it where "
                "its name says."
            )
        self.by_last_part.add(image.file_name)
        return candidates[0]

    @cached_property
    def _by_name(self) -> Mapping[str, Sequence[Path]]:
        """All images of the data set by the last part of their path."""
        images: dict[str, list[Path]] = {}
        for file in walk(self._searched):
            if is_image(file):
                images.setdefault(file.name, []).append(file)
        return images


def split_of(root: Path, file: Path) -> str:
    """The split that an annotation file is for, by its folders or else by a part of its name such as `train`."""
    parts = [*reversed(file.relative_to(root).parent.parts), *file.stem.replace("-", "_").replace(".", "_").split("_")]
    return next((SPLIT_FOLDERS[part.lower()] for part in parts if part.lower() in SPLIT_FOLDERS), ALL)


def files_of_splits(root: Path, files: Sequence[Path], kind: str) -> dict[str, Path]:
    """The annotation file of each split.

    Raises:
        InputError: two files are for the same split, or one is for everything and another for a split.
    """
    splits: dict[str, Path] = {}
    for file in files:
        split = split_of(root, file)
        if split in splits or (splits and ALL in (split, *splits)):
            other = splits.get(split, next(iter(splits.values())))
            raise InputError(
                f"{other} and {file} are both {kind}, and it is not clear which is for which split: keep one, or put "
                "each into a folder such as train or val."
            )
        splits[split] = file
    return splits


def read_listed(
    splits: Mapping[str, Sequence[ListedImage]],
    folders: ImageFolders,
    split: str,
    classes: Sequence[str] | None,
    problems: Problems,
) -> DetectionDataset:
    """Read a split; classes are the sorted names in all splits, so that labels are equal in all of them.

    Args:
        splits: the images of each split.
        folders: where the images are.
        split: name of the split.
        classes: the classes to keep; None for all.
        problems: gets the problems of the files.

    Raises:
        InputError: the split or a class is unknown, or the data has problems.
    """
    root = folders.root
    if split not in splits:
        raise unknown_split(root, split, sorted(splits))
    images = [image for listed in splits.values() for image in listed]
    available = named_classes([image.content for image in images], problems)
    if not available:
        raise _no_class(root, images, problems)
    builder = SplitBuilder(select_classes(available, classes, root), problems)
    pairs = _pairs(splits[split], folders, problems)
    problems.notes += _notes(splits[split], folders)
    for image, pair in problems.track(pairs):
        with problems.skip_broken_image():
            add_pair(builder, pair, image.content)
    return builder.finish(root.resolve().name, split, root)


def _notes(images: Sequence[ListedImage], folders: ImageFolders) -> list[str]:
    background = sum(image.is_background for image in images)
    counts = (
        (background, f"of {len(images)} images without a shape read as background"),
        (sum(image.rotated for image in images), "rotated boxes replaced by the upright boxes around them"),
        (len(folders.by_last_part), "images found by their names alone, in other folders"),
    )
    phrases = [f"{count} {phrase}" for count, phrase in counts if count]
    return [*dropped_shapes(kind for image in images for kind in image.dropped), *phrases]


def _no_class(root: Path, images: Sequence[ListedImage], problems: Problems) -> InputError:
    dropped = dropped_shapes(kind for image in images for kind in image.dropped)
    if dropped and not problems.messages:
        return InputError(f"{root} contains no object: {dropped[0]}.")
    return problems.no_usable_image(root, f"{root} defines no classes: none of its {len(images)} images has an object.")


def _pairs(images: Sequence[ListedImage], folders: ImageFolders, problems: Problems) -> list[tuple[ListedImage, Pair]]:
    """The images of a split with their paths; an image that is listed twice is broken: each lacks the other's boxes."""
    owners: dict[str, list[tuple[ListedImage, Path]]] = {}
    for image in images:
        with problems.skip_broken_image():
            if isinstance(image.content, InputError) and not image.file_name:
                raise image.content
            path = folders.find(image)
            owners.setdefault(os.path.abspath(path), []).append((image, path))
    pairs = []
    for entries in owners.values():
        image, path = entries[0]
        if len(entries) > 1:
            error = InputError(f"{image.where}: the image {image.file_name!r} is listed {len(entries)} times.")
            problems.add(error)
            problems.skipped += len(entries)
            continue
        pairs.append((image, Pair(_name(path, folders), path, image.file)))
    return sorted(pairs, key=lambda pair: pair[1].name)


def _name(path: Path, folders: ImageFolders) -> str:
    """Path relative to the data set, or to the folder of the images where that is elsewhere."""
    for folder in (folders.root, *folders.folders):
        if path.is_relative_to(folder):
            return path.relative_to(folder).as_posix()
    return path.name
