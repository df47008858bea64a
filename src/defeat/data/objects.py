"""Data sets passed as Python objects."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from defeat.data.dataset import Annotation, DetectionDataset, SplitBuilder, finite, select_classes
from defeat.data.images import MAX_PIXELS, rgb_tensor
from defeat.errors import InputError


@runtime_checkable
class ImagesWithBoxes(Protocol):
    """A data set in the format of torchvision's detectors: `dataset[index]` is `(image, {"boxes", "labels"})`."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: int, /) -> tuple[Any, Any]:
        """Get an image and its annotations."""


class ObjectDataset(DetectionDataset):
    """A user's data set, whose annotations are read and validated once.

    Args:
        source: `source[index]` is `(image, target)`. The image has any type that `rgb_tensor` accepts; the target has
            `boxes` (G, 4), x1 y1 x2 y2 in pixels, and `labels` (G,), integers in 0..K-1; optionally `iscrowd` and
            `difficult`, (G,). It must return the same every time.
        classes: names of the K classes, in the order of the labels.
        split: name of the split.
        max_pixels: most pixels of an image file, see `read_header`.

    Raises:
        InputError: an image or its annotations have another form; the message names the index.
    """

    in_memory = True

    def __init__(
        self, source: ImagesWithBoxes, classes: Sequence[str], split: str = "train", max_pixels: int = MAX_PIXELS
    ) -> None:
        self.source = source
        names = select_classes(tuple(classes), None, type(source).__name__)
        builder = SplitBuilder(names)
        for index in range(len(source)):
            image, target = source[index]
            where = f"{type(source).__name__}[{index}]"
            tensor = _image(image, where, max_pixels)
            size = (int(tensor.shape[-2]), int(tensor.shape[-1]))
            builder.add(where, where, size, _annotations(target, names, where))
        read = builder.finish(type(source).__name__, split, type(source).__name__)
        super().__init__(
            name=read.name,
            split=split,
            classes=names,
            samples=read.samples,
            table=read.table,
            problems=read.problems,
            max_pixels=max_pixels,
        )

    def _image(self, index: int) -> Tensor:
        sample = self.samples[index]
        image = _image(self.source[index][0], sample.name, self.max_pixels)
        if tuple(image.shape[-2:]) != sample.size:
            raise InputError(f"The size of {sample.name} changed to {tuple(image.shape[-2:])} after it was first read.")
        return image

    def identity(self, index: int) -> str:
        """Refuse: changes of such an image can't be detected, so its feature maps can't be cached.

        Raises:
            InputError: always.
        """
        raise InputError("--cache-teacher needs image files: it can't be used with a data set that is a Python object.")


def _image(image: object, where: str, max_pixels: int) -> Tensor:
    """Convert an image to (3, H, W) uint8."""
    try:
        tensor = rgb_tensor(image, max_pixels)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return tensor if tensor.dtype == torch.uint8 else (tensor * 255).round().to(torch.uint8)


def _annotations(target: object, classes: Sequence[str], where: str) -> Iterator[Annotation]:
    if not isinstance(target, Mapping) or not {"boxes", "labels"} <= target.keys():
        raise InputError(
            f"{where}: the target must be a dict with 'boxes' and 'labels', not a {type(target).__name__}."
        )
    boxes = torch.as_tensor(target["boxes"], dtype=torch.float64).reshape(-1, 4).tolist()
    labels = torch.as_tensor(target["labels"]).reshape(-1).tolist()
    if len(boxes) != len(labels):
        raise InputError(f"{where}: {len(boxes)} boxes, but {len(labels)} labels.")
    flags = [_flags(target, name, len(boxes)) for name in ("difficult", "iscrowd")]
    for corners, label, difficult, crowd in zip(boxes, labels, *flags, strict=True):
        finite(corners, where)
        if label != int(label) or not 0 <= label < len(classes):
            raise InputError(
                f"{where}: label {label} is not in 0..{len(classes) - 1}: labels count from 0 in the order of the "
                f"classes ({', '.join(classes[:5])}), without a background."
            )
        yield Annotation((corners[0], corners[1], corners[2], corners[3]), classes[int(label)], difficult, crowd)


def _flags(target: Mapping[str, Any], name: str, count: int) -> list[bool]:
    if name not in target:
        return [False] * count
    return [bool(value) for value in torch.as_tensor(target[name]).reshape(-1).tolist()]
