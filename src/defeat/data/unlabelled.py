"""Images without annotations: found in a folder, and made a data set by what a teacher detected in them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from defeat.data.dataset import BoxTable, DetectionDataset, Sample
from defeat.data.files import IMAGE_SUFFIXES, is_image
from defeat.data.images import read_header, read_image
from defeat.data.problems import Problems
from defeat.errors import InputError
from defeat.types import Detections


class UnlabelledImages:
    """The images of a folder and of the folders in it, in the order of their names.

    Args:
        folder: where they are.
        problems: takes note of images that can't be read, and decides what becomes of them.

    Attributes:
        folder: where they are.
        paths: each image.
        sizes: height and width of each as it is shown, in pixels.
        problems: images that were left out, a phrase where there are any.

    Raises:
        InputError: there is no such folder, no image in it, or an image can't be read.
    """

    def __init__(self, folder: str | Path, problems: Problems | None = None) -> None:
        problems = problems or Problems()
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"{folder} is no folder: --unlabelled takes a folder of images.")
        found = sorted(path for path in self.folder.rglob("*") if is_image(path) and path.is_file())
        self.paths: list[Path] = []
        self.sizes: list[tuple[int, int]] = []
        for path in problems.track(found):
            with problems.of_an_image():
                size = read_header(path).upright
                if problems.decode:
                    read_image(path, size, prefer_upright=True)
                self.paths.append(path)
                self.sizes.append(size)
        problems.require_none(folder)
        if not self.paths:
            looked_for = f"looked for {', '.join(IMAGE_SUFFIXES)} in it and below"
            raise problems.nothing_left(folder, f"{folder} holds no image; {looked_for}.")
        self.problems = problems.report(len(self.paths))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        """An image, (3, H, W) uint8 RGB."""
        return read_image(self.paths[index], self.sizes[index], prefer_upright=True)


def taught_dataset(
    images: UnlabelledImages, classes: Sequence[str], found: Sequence[Detections], certain: float | None
) -> DetectionDataset:
    """Make a data set of images and what a teacher detected in the first of them.

    Args:
        images: the images.
        classes: names of the student's classes.
        found: what the teacher detected, with the student's labels; the data set ends with the last of them.
        certain: score from which on a box is one to learn from; the others, and all for None, are difficult.
    """
    samples, first = [], 0
    for number, (path, size, one) in enumerate(zip(images.paths, images.sizes, found, strict=False)):
        name = path.relative_to(images.folder).as_posix()
        samples.append(Sample(str(path), name, number, size, True, first, first + len(one.labels)))
        first += len(one.labels)
    scores = torch.cat([one.scores for one in found])
    return DetectionDataset(
        name=str(images.folder),
        split="unlabelled",
        classes=classes,
        samples=samples,
        table=BoxTable(
            boxes=torch.cat([one.boxes for one in found]),
            labels=torch.cat([one.labels for one in found]),
            difficult=scores < certain if certain is not None else torch.ones_like(scores, dtype=torch.bool),
            crowd=torch.zeros_like(scores, dtype=torch.bool),
        ),
        annotated=False,
    )
