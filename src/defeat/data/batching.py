"""Transfer of batches from worker processes: packed into a few tensors.

Every tensor from a worker uses a file descriptor as long as it exists. Five per image would exhaust the usual limit of
1024; five per batch do not.
"""

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from defeat.errors import InputError
from defeat.types import Target

Images = list[Tensor]
Targets = list[Target]
Key = TypeVar("Key")


@dataclass(frozen=True)
class PackedBatch:
    """Images and targets of a batch in a few tensors.

    Attributes:
        pixels: (sum of 3 H W,) uint8, concatenated images.
        boxes: (G, 4) float32 of all images.
        labels: (G,) int64.
        flags: (2, G) bool: difficult, crowd.
        sizes: height and width of each image.
        counts: number of boxes of each image.
        image_ids: `Target.image_id` of each image.
        annotated: `Target.annotated` of each image.
        views: `Target.view` of each image.
        scales: `Target.scale` of each image.
    """

    pixels: Tensor
    boxes: Tensor
    labels: Tensor
    flags: Tensor
    sizes: list[tuple[int, int]]
    counts: list[int]
    image_ids: list[int]
    annotated: list[bool]
    views: list[int]
    scales: list[float]

    def pin_memory(self) -> "PackedBatch":
        """Copy the pixels to page-locked memory; called by the DataLoader."""
        return replace(self, pixels=self.pixels.pin_memory())

    def unpack(self) -> tuple[Images, Targets]:
        """Images (3, H, W) and their targets, as views."""
        flat = torch.split(self.pixels, [3 * height * width for height, width in self.sizes])
        images = [pixels.view(3, *size) for pixels, size in zip(flat, self.sizes, strict=True)]
        boxes, labels = torch.split(self.boxes, self.counts), torch.split(self.labels, self.counts)
        difficult, crowd = (torch.split(flag, self.counts) for flag in self.flags)
        per_image = (self.image_ids, self.sizes, self.annotated, self.views, self.scales)
        return images, [Target(*row) for row in zip(boxes, labels, difficult, crowd, *per_image, strict=True)]


def pack(items: list[tuple[Tensor, Target] | InputError]) -> PackedBatch | InputError:
    """Pack the images of a batch; an error among the items is returned instead of the batch."""
    samples = []
    for item in items:
        if isinstance(item, InputError):
            return item
        samples.append(item)
    images, targets = [image for image, _ in samples], [target for _, target in samples]
    assert all(tuple(image.shape) == (3, *target.size) for image, target in samples)
    flags = [torch.stack([target.difficult, target.crowd]) for target in targets]
    return PackedBatch(
        pixels=torch.cat([image.reshape(-1) for image in images]),
        boxes=torch.cat([target.boxes for target in targets]),
        labels=torch.cat([target.labels for target in targets]),
        flags=torch.cat(flags, dim=1),
        sizes=[target.size for target in targets],
        counts=[len(target.labels) for target in targets],
        image_ids=[target.image_id for target in targets],
        annotated=[target.annotated for target in targets],
        views=[target.view for target in targets],
        scales=[target.scale for target in targets],
    )


class ErrorsAsItems(Dataset[tuple[Tensor, Target] | InputError]):
    """A data set that returns an InputError instead of raising it.

    The DataLoader would wrap an exception of a worker process in a traceback and lose its readable message.
    """

    def __init__(self, dataset: Dataset[tuple[Tensor, Target]]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: Key) -> tuple[Tensor, Target] | InputError:
        """Get an item, or the error that it raised."""
        try:
            return self.dataset[index]
        except InputError as error:
            return error
