"""Unannotated images: read from a folder, and turned into a data set with pseudo-labels of a teacher."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from defeat.data.dataset import DetectionDataset
from defeat.data.files import IMAGE_SUFFIXES, is_image
from defeat.data.images import read_header, read_image
from defeat.data.problems import Problems
from defeat.data.tables import BoxTable, Sample
from defeat.errors import InputError
from defeat.types import Detections


def image_paths(folder: str | Path) -> list[Path]:
    """The images of a folder and its subfolders, sorted."""
    return sorted(path for path in Path(folder).rglob("*") if is_image(path) and path.is_file())


class UnlabelledImages:
    """The images of a folder and its subfolders, sorted by path.

    Args:
        folder: folder of the images.
        problems: collects images that can't be read.

    Attributes:
        folder: folder of the images.
        paths: path of each image.
        sizes: height and width of each image in pixels, with its EXIF orientation applied.
        max_pixels: most pixels of an image, see `read_header`.
        problems: a phrase about skipped images, if there are any.

    Raises:
        InputError: the folder does not exist or contains no image, or an image can't be read.
    """

    def __init__(self, folder: str | Path, problems: Problems | None = None) -> None:
        problems = problems or Problems()
        self.folder = Path(folder)
        self.max_pixels = problems.max_pixels
        if not self.folder.is_dir():
            raise InputError(f"{folder} is not a folder: --unlabelled expects a folder of images.")
        candidates = image_paths(self.folder)
        self.paths: list[Path] = []
        self.sizes: list[tuple[int, int]] = []
        for path in problems.track(candidates):
            with problems.skip_broken_image():
                size = read_header(path, self.max_pixels).upright
                if problems.decode:
                    read_image(path, size, True, self.max_pixels)
                self.paths.append(path)
                self.sizes.append(size)
        problems.require_none(folder)
        if not self.paths:
            looked_for = f"looked for {', '.join(IMAGE_SUFFIXES)} in it and its subfolders"
            raise problems.no_usable_image(folder, f"{folder} contains no image; {looked_for}.")
        self.problems = problems.report(len(self.paths))

    @property
    def names(self) -> list[str]:
        """Path of each image relative to the folder."""
        return [path.relative_to(self.folder).as_posix() for path in self.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        """Read an image, (3, H, W) uint8 RGB."""
        return read_image(self.paths[index], self.sizes[index], True, self.max_pixels)


def pseudo_labelled_dataset(
    images: UnlabelledImages, classes: Sequence[str], detections: Sequence[Detections], min_score: float | None
) -> DetectionDataset:
    """Combine images with a teacher's detections in the first of them.

    Args:
        images: the images.
        classes: names of the student's classes.
        detections: the teacher's detections with the student's labels; determines the number of images.
        min_score: boxes with a lower score are marked difficult, so that they are not learned; None for all boxes.
    """
    samples, first = [], 0
    rows = zip(images.paths, images.names, images.sizes, detections, strict=False)
    for number, (path, name, size, boxes) in enumerate(rows):
        samples.append(Sample(str(path), name, number, size, True, first, first + len(boxes.labels)))
        first += len(boxes.labels)
    scores = torch.cat([boxes.scores for boxes in detections])
    return DetectionDataset(
        name=str(images.folder),
        split="unlabelled",
        classes=classes,
        samples=samples,
        table=BoxTable(
            boxes=torch.cat([boxes.boxes for boxes in detections]),
            labels=torch.cat([boxes.labels for boxes in detections]),
            difficult=scores < min_score if min_score is not None else torch.ones_like(scores, dtype=torch.bool),
            crowd=torch.zeros_like(scores, dtype=torch.bool),
        ),
        annotated=False,
        max_pixels=images.max_pixels,
    )
