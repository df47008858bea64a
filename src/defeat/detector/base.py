"""The contract that every detector keeps, and the preparation of images that all share."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.transforms.v2 import functional as transforms

from defeat.data.images import rgb_tensor
from defeat.detector.description import (
    COLOUR,
    NAMES,
    POSITIVE_COLOUR,
    SETTINGS,
    SIDE,
    name_of,
    ruled,
    whole_number,
)
from defeat.detector.teacher import FOLD, HEAD, INHERIT, MAPS, PREDICT, PROPOSALS
from defeat.types import Batch, Detections, DetectorInfo, DetectorOutput, Maps, Target


@dataclass(frozen=True)
class DetectorSpec:
    """Everything that is needed to build a detector again; what `model.json` holds.

    Attributes:
        family: name of the family.
        backbone: name of the backbone.
        classes: names of the K classes, in the order of the labels.
        size: short side of an image after resizing, in pixels.
        max_size: upper limit of the long side, in pixels.
        norm: `bn`, `syncbn`, `bn_eval`, `frozen` or `gn`.
        neck_channels: channels of the feature pyramid.
        frozen_stages: stages of the backbone that are not trained.
        mean: mean of R, G, B that the detector subtracts, for values in 0..1; None for what the backbone expects.
        std: standard deviation of R, G, B that it divides by.
        options: settings of the family that differ from its defaults.
    """

    family: str = ruled(name_of("detector"))
    backbone: str = ruled(name_of("backbone"))
    classes: tuple[str, ...] = ruled(NAMES)
    size: int = ruled(SIDE, default=800)
    max_size: int = ruled(SIDE, default=1333)
    norm: str = ruled(name_of("normalisation"), default="bn")
    neck_channels: int = ruled(whole_number(1, 8192, "a number of channels from 1 to 8192"), default=256)
    frozen_stages: int = ruled(whole_number(0, 99, "a number of stages, 0 or more"), default=0)
    mean: tuple[float, ...] | None = ruled(COLOUR, default=None)
    std: tuple[float, ...] | None = ruled(POSITIVE_COLOUR, default=None)
    options: dict[str, Any] = ruled(SETTINGS, default_factory=dict)


class Detector(nn.Module, ABC):
    """A detector: prepares images, computes its losses, and predicts.

    Three methods with one meaning each, instead of one `forward` that changes with the mode:

    - `forward_train(batch)`: losses and everything that a distillation method may read, with gradient.
    - `forward_teacher(batch)`: the same without losses, without gradient, in eval mode.
    - `predict(images)`: detections in pixels of the original images.

    Attributes:
        spec: what the detector was built from.
        info: what others need to know about it.
        backbone: gives the maps of body and pyramid, by stride each, for normalised images.
        antialias: whether images are smoothed when they shrink (torchvision's own detectors don't).
    """

    spec: DetectorSpec
    info: DetectorInfo
    backbone: nn.Module
    antialias: bool = True

    @property
    def capabilities(self) -> frozenset[str]:
        """What it can do as a teacher, see `defeat.detector.teacher`."""
        own = {PREDICT, MAPS, FOLD, HEAD, INHERIT}
        return frozenset(own | ({PROPOSALS} if PROPOSALS in self.info.offers else set()))

    @abstractmethod
    def forward_train(self, batch: Batch, negative_weight: float = 1.0) -> DetectorOutput:
        """Compute losses and features for a batch of this detector's own `prepare`.

        Args:
            batch: images with targets.
            negative_weight: weight of negative anchors and proposals in the losses of classification, 0 or more.
        """

    def forward_maps(self, batch: Batch) -> Maps:
        """Compute the maps of backbone and neck for a batch, by stride."""
        return Maps(*self.backbone(self.normalise(batch)))

    @torch.no_grad()
    def forward_teacher(
        self, batch: Batch, reads: Collection[str] | None = None, maps: Maps | None = None
    ) -> DetectorOutput:
        """Compute what a student may learn from, for a batch of this detector's own `adopt`.

        Args:
            batch: images with targets.
            reads: fields of the output that will be read, beside `valid`; None for all. Others may be missing.
            maps: what `forward_maps` gave for the same batch, when that is known already.
        """
        maps = maps or self.forward_maps(batch)
        if reads is not None and not self.info.offers & set(reads):
            return DetectorOutput({}, maps.backbone, maps.neck, valid_cells(batch, maps.by_stride), scale=batch.scale)
        return self.teach(batch, maps)

    @abstractmethod
    def teach(self, batch: Batch, maps: Maps) -> DetectorOutput:
        """Add what `info.offers` names to the maps of a batch: the rest of `forward_teacher`, without gradient."""

    @abstractmethod
    def forward_predict(self, batch: Batch) -> list[Detections]:
        """Detect objects in a prepared batch, in pixels of the original images; in eval mode."""

    def part_of(self, name: str) -> str:
        """The part that a tensor of the state dict belongs to: `backbone`, `neck` or `head`."""
        if name.startswith("backbone."):
            return "neck" if name.startswith("backbone.fpn.") else "backbone"
        return "head"

    @abstractmethod
    def class_rows(self) -> dict[str, Tensor]:
        """Say which rows of the head belong to which class.

        Returns:
            For each tensor of the state dict with rows of classes, by its name: (rows,) int64, the label 0..K-1 of each
            row, K for the background, -1 for a row that belongs to no class.
        """

    def body_parameters(self) -> list[nn.Parameter]:
        """All weights of the backbone's body, trained or not: everything before the neck."""
        return list(self.backbone.get_submodule("body").parameters())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def prepare(self, images: Sequence[Tensor], targets: Sequence[Target] | None = None) -> Batch:
        """Resize images so that the short side has `info.size` times `Target.scale` pixels, and pad them to one tensor.

        Args:
            images: RGB images, each (3, H, W), uint8 in 0..255 or float32 in 0..1.
            targets: their annotations in pixels of these images; difficult and crowd boxes are left out, but for those
                of images that are not annotated.
        """
        originals = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        scales = [target.scale for target in targets or ()] or [1.0] * len(originals)
        scaled = list(zip(originals, scales, strict=True))
        sizes = [self.resized_size(*size, scale) for size, scale in scaled]
        padded = [self.padded_size(*size, scale) for size, scale in scaled]
        height, width = (max(sides) for sides in zip(*padded, strict=True))
        tensor = torch.zeros(len(images), 3, height, width, device=self.device)
        for row, image, size in zip(tensor, images, sizes, strict=True):
            row[:, : size[0], : size[1]] = self._resize(image.to(self.device), size)
        kept = [target.trainable() if target.annotated else target for target in targets or ()]
        resized = [target.resized(size).to(self.device) for target, size in zip(kept, sizes, strict=False)]
        return Batch(tensor, sizes, resized, originals, len(self.info.classes))

    def adopt(self, batch: Batch) -> Batch:
        """Take over a batch that another detector prepared, so that both look at the same pixels.

        Where the two work at different sizes, the batch is resized by the ratio of their short sides; where they work
        at the same, the batch is taken as it is, whatever the scales of its images.
        """
        height, _width = batch.sizes[0]
        original_height, original_width = batch.original_sizes[0]
        drawn = batch.targets[0].scale if batch.targets else 1.0
        scale = self.resized_size(original_height, original_width, drawn)[0] / height
        if abs(scale - 1) < 1e-2:
            return batch
        sizes = [(max(1, round(h * scale)), max(1, round(w * scale))) for h, w in batch.sizes]
        divisor = self.info.size_divisor
        full = (round(batch.images.shape[-2] * scale), round(batch.images.shape[-1] * scale))
        images = F.interpolate(batch.images, size=full, mode="bilinear", antialias=scale < 1)
        images = F.pad(images, (0, -full[1] % divisor, 0, -full[0] % divisor))
        targets = [target.resized(size) for target, size in zip(batch.targets, sizes, strict=False)]
        return Batch(images, sizes, targets, batch.original_sizes, batch.classes, scale)

    def predict(self, images: object) -> list[Detections]:
        """Detect objects; what is found in an image does not depend on the images beside it.

        Images are seen together only where they are padded to the same size. Padding to that of a larger neighbour
        would change the maps near the border, and AP would depend on the batch size (by half a point on small images).

        Args:
            images: a list of RGB images of any size, or one image: path of a file, PIL image, array (H, W, 3) of uint8,
                or tensor (3, H, W), uint8 in 0..255 or floating in 0..1.

        Returns:
            Detections of each image, best first, in pixels of that image; a list also for one image.

        Raises:
            InputError: something is not an image, or a file can't be read.
        """
        tensors = [rgb_tensor(image) for image in (images if isinstance(images, list | tuple) else [images])]
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(tensors):
            groups.setdefault(self.padded_size(*image.shape[-2:]), []).append(index)
        found: dict[int, Detections] = {}
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                for group in groups.values():
                    detections = self.forward_predict(self.prepare([tensors[index] for index in group]))
                    found |= dict(zip(group, detections, strict=True))
        finally:
            self.train(training)
        return [found[index] for index in range(len(tensors))]

    def resized_size(self, height: int, width: int, scale: float = 1.0) -> tuple[int, int]:
        """Height and width that an image of this height, width and `Target.scale` has after resizing."""
        longest = self.info.max_size * min(1.0, scale)
        return resized_size(height, width, round(self.info.size * scale), longest)

    def padded_size(self, height: int, width: int, scale: float = 1.0) -> tuple[int, ...]:
        """Height and width that an image has after resizing and its own padding."""
        divisor = self.info.size_divisor
        return tuple(-(-side // divisor) * divisor for side in self.resized_size(height, width, scale))

    def normalise(self, batch: Batch) -> Tensor:
        """Subtract the mean and divide by the deviation; padding is zero afterwards. (B, 3, H, W).

        On a processor the result lies in memory with its channels last, and so does every map that follows from it:
        convolutions are a quarter faster there.
        """
        mean = batch.images.new_tensor(self.info.mean)[:, None, None]
        std = batch.images.new_tensor(self.info.std)[:, None, None]
        images = (batch.images - mean) / std
        if images.device.type == "cpu":
            images = images.contiguous(memory_format=torch.channels_last)
        for row, (height, width) in zip(images, batch.sizes, strict=True):
            row[:, height:] = 0
            row[:, :, width:] = 0
        return images

    def _resize(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        if self.antialias:
            image = transforms.resize(image, list(size), antialias=True)
        resized: Tensor = transforms.to_dtype(image, torch.float32, scale=True)
        if not self.antialias:
            resized = F.interpolate(resized[None], size=size, mode="bilinear", align_corners=False)[0]
        return resized


def resized_size(height: int, width: int, size: int, max_size: float) -> tuple[int, int]:
    """Height and width of an image whose short side becomes `size`, or whose long side `max_size`, if that is less."""
    scale = min(size / min(height, width), max_size / max(height, width))
    return max(1, int(height * scale)), max(1, int(width * scale))


def valid_cells(batch: Batch, maps: dict[int, Tensor]) -> dict[int, Tensor]:
    """Mark the cells of each map that lie on an image and not on padding.

    Args:
        batch: what the maps were computed from.
        maps: (B, C, H, W) by stride.

    Returns:
        (B, H, W) bool by stride; a cell is valid when its upper left corner is inside the image.
    """
    sizes = torch.tensor(batch.sizes, device=batch.images.device)  # (B, 2)
    valid = {}
    for stride, level in maps.items():
        rows = torch.arange(level.shape[-2], device=level.device) * stride < sizes[:, :1]  # (B, H)
        columns = torch.arange(level.shape[-1], device=level.device) * stride < sizes[:, 1:]  # (B, W)
        valid[stride] = rows[:, :, None] & columns[:, None, :]
    return valid


def describe_anchors(strides: Iterable[int], generator: AnchorGenerator) -> str:
    """Everything that decides which anchors a detector has on a given image; equal texts mean equal anchors."""
    return f"{list(strides)} {generator.sizes} {generator.aspect_ratios} {type(generator).__name__}"


def torchvision_targets(targets: Sequence[Target], first_label: int) -> list[dict[str, Tensor]]:
    """Write targets the way torchvision's parts read them, with labels that count from `first_label`."""
    return [{"boxes": target.boxes, "labels": target.labels + first_label} for target in targets]
