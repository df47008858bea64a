"""COCO data sets: one JSON file per split or for all images, boxes as `x y width height`, category ids with gaps."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from defeat.data.dataset import DetectionDataset, SplitBuilder, select_classes
from defeat.data.files import hidden_below, unknown_split
from defeat.data.formats.coco.columns import CocoColumns, read_columns
from defeat.data.formats.coco.file import (
    Categories,
    load,
    looks_like_coco,
    read_annotations,
    read_categories,
    uses_category,
)
from defeat.data.formats.coco.images import ImageFolders, ImageReader
from defeat.data.formats.coco.usual import read_usual
from defeat.data.formats.coco.values import notes
from defeat.data.problems import Problems
from defeat.data.reading.layout import Layout
from defeat.data.reading.pairs import ALL, RECOGNISED_BY, SPLIT_FOLDERS
from defeat.errors import InputError, quoted

LOOKED_FOR = (
    "COCO (a JSON file with a list of 'images', or a folder with annotations/instances_SPLIT*.json, "
    "annotations/SPLIT.json, SPLIT/_annotations.coco.json, SPLIT/labels.json, SPLIT.json or one such file)"
)
_SPLIT_FILE = re.compile(r"(?:instances_)?(?P<split>.+?)(?:20\d\d)?")
_NO_LETTER = re.compile(r"[^a-z]+")
# Files of COCO's other tasks.
_OTHER_TASKS = ("captions_", "image_info_", "panoptic_", "person_keypoints_", "stuff_")
_ROBOFLOW = "_annotations.coco.json"
_FIFTYONE = "labels.json"
# Roboflow calls the validation split `valid`.
_ALIASES = {"valid": "val"}
_USUAL_STEMS = (*SPLIT_FOLDERS, Path(_ROBOFLOW).stem, Path(_FIFTYONE).stem, "annotations", "result")
_LISTED = 5  # file names in a message

Content = dict[str, Any] | CocoColumns


@dataclass(frozen=True)
class _Files:
    """Files of a data set.

    Attributes:
        folder: of the data set.
        splits: annotation files by the names of their splits.
        images: folder of the images, where the user named one.
        is_folder: whether the user named the folder; if not, a file in it, and the folder may contain anything.
        notes: what was assumed.
    """

    folder: Path
    splits: Mapping[str, Path]
    images: Path | None
    is_folder: bool = True
    notes: tuple[str, ...] = ()

    def annotation_file(self, split: str) -> Path:
        """Annotation file of a split, given by its short name or the name in the file."""
        if split in self.splits:
            return self.splits[split]
        for file in self.splits.values():
            if split == _full_name(file):
                return file
        raise unknown_split(self.folder, split, sorted(self.splits))

    def image_folders(self, split: str, file: Path) -> ImageFolders:
        """Folders that may contain the images of a split."""
        full = _full_name(file)
        aliases = [name for name, other in SPLIT_FOLDERS.items() if other == split]
        if self.images is not None:
            names = (full, split, *aliases, "images", ".")
            # A file name may begin with the split, so that the folder itself comes first.
            roots = [self.images, *(self.images / name for name in names)]
            return ImageFolders(self.images, tuple(dict.fromkeys(roots)), split, searched=True)
        names = (full, split, f"{split}2017", f"images/{full}", f"images/{split}", "images", ".")
        roots = [*(self.folder / name for name in names), file.parent, file.parent / "data", file.parent / "images"]
        roots += [self.folder / parent / name for name in aliases for parent in (".", "images")]
        roots += [self.folder / name for name in ("data", "JPEGImages")]
        return ImageFolders(self.folder, tuple(dict.fromkeys(roots)), split, searched=self.is_folder)


def find(path: Path, images: str | Path | None = None) -> Layout | None:
    """Find a COCO data set: a JSON file, or a folder with one or several.

    Args:
        path: the file or folder.
        images: folder of the images, where it is in none of the usual places.

    Raises:
        InputError: it is not clear which file to read, or the folder of the images doesn't exist.
    """
    files = _find_files(path, None if images is None else Path(images))
    if files is None:
        return None
    if files.images is not None and not files.images.is_dir():
        raise InputError(f"--images: {files.images} is not a folder.")
    return Layout("COCO", tuple(sorted(files.splits)), partial(_read, files), files.notes)


def _find_files(path: Path, images: Path | None) -> _Files | None:
    if not path.is_dir():
        if not looks_like_coco(path):
            return None
        folder = path.parent.parent if path.parent.name == "annotations" else path.parent
        return _Files(folder, {_split_of(path) or ALL: path}, images, is_folder=False)
    for find_splits in (_usual_splits, _folders_of_splits):
        splits = find_splits(path)
        if splits:
            return _Files(path, splits, images)
    return _files_beside_images(path, images)


def _usual_splits(path: Path) -> dict[str, Path]:
    """Annotation files of COCO and Roboflow, by the shortest unique name of their split."""
    by_name: dict[str, list[Path]] = {}
    for file in _annotation_files(path / "annotations", surely=True):
        match = _SPLIT_FILE.fullmatch(file.stem)
        if match is not None:
            by_name.setdefault(match["split"], []).append(file)
    for file in _visible(path, f"*/{_ROBOFLOW}"):
        by_name.setdefault(_ALIASES.get(file.parent.name, file.parent.name), []).append(file)
    files: dict[str, Path] = {}
    for name, candidates in by_name.items():
        if len(candidates) == 1:
            files[name] = candidates[0]
        else:
            files.update({_full_name(file): file for file in candidates})
    return files


def _folders_of_splits(path: Path) -> dict[str, Path]:
    """Folders of splits with one annotation file in each: `labels.json` of FiftyOne, or any name."""
    files: dict[str, Path] = {}
    for folder in filter(Path.is_dir, _visible(path, "*")):
        split = SPLIT_FOLDERS.get(folder.name.lower())
        candidates = _annotation_files(folder, _FIFTYONE if split is None else "*.json")
        if len(candidates) > 1:
            raise _ambiguous(folder, candidates)
        if candidates:
            name = folder.name if split is None or split in files else split
            files[name] = candidates[0]
    return files


def _files_beside_images(path: Path, images: Path | None) -> _Files | None:
    """Annotation files in the folder itself: one per split, or one for all images."""
    splits: dict[str, Path] = {}
    others: list[Path] = []
    for file in _annotation_files(path):
        split = _split_of(file)
        if split in splits:
            raise _ambiguous(path, [splits[split], file])
        if split is None:
            others.append(file)
        else:
            splits[split] = file
    if splits:
        notes = tuple(f"{quoted(file.name)} is not used (its name is not that of a split)" for file in others)
        return _Files(path, splits, images, notes=notes)
    if len(others) > 1:
        raise _ambiguous(path, others)
    return _Files(path, {ALL: others[0]}, images) if others else None


def _ambiguous(path: Path, files: Sequence[Path]) -> InputError:
    listed = ", ".join(file.name for file in files[:_LISTED]) + (", ..." if len(files) > _LISTED else "")
    return InputError(f"{path} has several COCO files ({listed}): name one of them with --data.")


def _visible(folder: Path, pattern: str) -> list[Path]:
    """Paths in a folder in the order of their names, without what macOS adds."""
    return sorted(path for path in folder.glob(pattern) if not hidden_below(folder, path))


def _annotation_files(folder: Path, pattern: str = "*.json", surely: bool = False) -> list[Path]:
    """COCO files in a folder, which may contain thousands of JSON files of another format.

    Args:
        folder: where to look.
        pattern: of the file names.
        surely: whether a file with the name of a split is COCO whatever it contains, so that it is refused if broken.
    """
    files = [file for file in _visible(folder, pattern) if not file.stem.startswith(_OTHER_TASKS)]
    usual = {file for file in files if file.stem.startswith("instances_") or file.stem.lower() in _USUAL_STEMS}
    others = [file for file in files if file not in usual]
    if not any(looks_like_coco(file) for file in others[:RECOGNISED_BY]):
        others = []
    return [file for file in sorted([*usual, *others]) if (surely and file in usual) or looks_like_coco(file)]


def _split_of(file: Path) -> str | None:
    """Split that a file is named after, such as `instances_val2017`, `train` or `coco_train`; None where it is not."""
    names = {SPLIT_FOLDERS[word] for word in _NO_LETTER.split(file.stem.lower()) if word in SPLIT_FOLDERS}
    if len(names) == 1:
        return names.pop()
    match = _SPLIT_FILE.fullmatch(file.stem)
    return match["split"] if match is not None and file.stem.startswith("instances_") else None


def _full_name(file: Path) -> str:
    in_folder = file.name in (_ROBOFLOW, _FIFTYONE)
    return file.parent.name if in_folder else file.stem.removeprefix("instances_")


def _read(files: _Files, split: str, classes: Sequence[str] | None, problems: Problems) -> DetectionDataset:
    """Read a split; classes are the categories of its file, in the order of their ids."""
    file = files.annotation_file(split)
    folders = files.image_folders(split, file)
    usual = read_usual(file, folders)
    content = load(file) if usual is None else usual.columns
    repairs: Counter[str] = Counter()
    categories = read_categories(_categories_in(content), file, repairs)
    available = categories.classes()
    root = _unused_root(files, file, content, categories) if classes is None else None
    if root is not None:
        available.remove(root)
        problems.notes.append(f"the category {quoted(root)} is not a class (only the supercategory of the others)")
    builder = SplitBuilder(select_classes(available, classes, file), problems)
    if isinstance(content, dict):
        _read_carefully(content, file, folders, categories, builder, repairs)
    else:
        assert usual is not None
        usual.add_to(builder, categories, repairs)
    return builder.finish(files.folder.resolve().name, split, file)


def _read_carefully(
    content: dict[str, Any],
    file: Path,
    folders: ImageFolders,
    categories: Categories,
    builder: SplitBuilder,
    repairs: Counter[str],
) -> None:
    """Read images and annotations one by one, repairing what can be repaired and naming what can't."""
    problems = builder.problems
    reader = ImageReader(folders, file, problems, repairs)
    reader.read(content["images"])
    boxes = read_annotations(content, categories, file, list(reader.images), reader.text_ids, problems, repairs)
    if content["annotations"] is None:
        problems.notes.append("the list of annotations is null (read as empty)")
    problems.notes += notes(repairs)
    for number, image in problems.track(reader.images.items()):
        with problems.skip_broken_image():
            if isinstance(image, InputError):
                raise image
            annotations = boxes[number]
            if isinstance(annotations, InputError):
                raise annotations
            builder.add(
                image.path,
                image.name,
                image.size,
                annotations,
                image_id=number,
                prefer_upright=image.prefer_upright,
            )


def categories_of(path: Path, split: str) -> tuple[Path, dict[int, str]] | None:
    """Annotation file of a split and the names of its categories by id; None where the data is not COCO.

    Args:
        path: a data set.
        split: name of the split; another one is read if there is none of this name.

    Raises:
        InputError: the file is not valid.
    """
    files = _find_files(path, None)
    if files is None:
        return None
    file = files.splits.get(split) or files.splits[min(files.splits)]
    content = read_columns(file) or load(file)
    return file, read_categories(_categories_in(content), file, Counter()).names


def _unused_root(files: _Files, file: Path, content: Content, categories: Categories) -> str | None:
    """The category above all others, if no annotation of any split has it."""
    root = categories.root
    if root is None or _uses_category(content, categories, root):
        return None
    for other in files.splits.values():
        if other != file:
            content = read_columns(other) or load(other)
            if _uses_category(content, read_categories(_categories_in(content), other, Counter()), root):
                return None
    return root


def _categories_in(content: Content) -> list[Any]:
    categories: list[Any] = content["categories"] if isinstance(content, dict) else content.categories
    return categories


def _uses_category(content: Content, categories: Categories, name: str) -> bool:
    """Whether an annotation of a file is of a category, given by its name."""
    if isinstance(content, dict):
        return uses_category(content, categories, name)
    return content.uses({number for number, other in categories.names.items() if other == name})
