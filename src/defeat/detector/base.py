"""The interface of all detectors, and the preparation of images that they share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.models.detection.transform import resize_boxes

from defeat.data.images import MAX_PIXELS, rgb_tensor
from defeat.detector.backbone import Backbone
from defeat.detector.description import (
    COLOUR,
    NAMES,
    POSITIVE_COLOUR,
    SETTINGS,
    SHARE,
    SIDE,
    default_max_size,
    integer,
    name_of,
    validated,
)
from defeat.detector.preparation import (
    fill_padding,
    input_size,
    normalised,
    padding_colour,
    resized_batch,
    resized_image,
    rounded_up,
)
from defeat.detector.selection import Raw, Selection
from defeat.detector.teacher import MAPS, PREDICT
from defeat.notebook import html_table
from defeat.types import Batch, DecodeBoxes, Detections, DetectorInfo, DetectorOutput, Maps, Target


@dataclass(frozen=True)
class DetectorSpec:
    """Everything that is needed to rebuild a detector; the content of `model.json`.

    Attributes:
        family: name of the family.
        backbone: name of the backbone.
        classes: names of the K classes, in the order of the labels.
        size: short side of an image after resizing, in pixels.
        max_size: upper limit of the long side in pixels.
        norm: `bn`, `syncbn`, `bn_eval`, `frozen` or `gn`.
        neck_channels: channels of the feature pyramid.
        frozen_stages: number of stages of the backbone that are not trained.
        mean: mean of R, G, B that the detector subtracts, for values in 0..1; None for that of the backbone's weights.
        std: standard deviation of R, G, B that it divides by.
        options: options of the family that differ from its defaults.
        width: share of the channels of the backbone's body, 0.1..1, see `defeat.detector.slimming`.
    """

    family: str = validated(name_of("detector"))
    backbone: str = validated(name_of("backbone"))
    classes: tuple[str, ...] = validated(NAMES)
    size: int = validated(SIDE, default=800)
    max_size: int = validated(SIDE, default=default_max_size(800))
    norm: str = validated(name_of("normalisation"), default="bn")
    neck_channels: int = validated(integer(1, 8192, "a number of channels from 1 to 8192"), default=256)
    frozen_stages: int = validated(integer(0, 99, "a number of stages, 0 or more"), default=0)
    mean: tuple[float, ...] | None = validated(COLOUR, default=None)
    std: tuple[float, ...] | None = validated(POSITIVE_COLOUR, default=None)
    options: dict[str, Any] = validated(SETTINGS, default_factory=dict)
    width: float = validated(SHARE, added=True, default=1.0)


class Detector(nn.Module, ABC):
    """A detector: prepares images, computes its losses, and predicts.

    Three methods with one meaning each, instead of one `forward` that changes with the mode:

    - `forward_train(batch)`: losses and everything that a distillation method may read, with gradient.
    - `forward_teacher(batch)`: the same without losses, without gradient, in eval mode.
    - `predict(images)`: detections in pixels of the original images.

    Attributes:
        spec: description from which the detector was built.
        info: its properties.
        backbone: computes feature maps of backbone and neck by stride, for normalised images.
        antialias: whether images are antialiased when they are shrunk (false for torchvision's detectors).
        notes: sentences for the user on how it was built.
        padding: value of padding in R, G and B, 0..1, before the normalisation; None for the mean, which becomes zero.
        selection: how detections are selected from candidates.
    """

    spec: DetectorSpec
    info: DetectorInfo
    backbone: nn.Module
    antialias: bool = True
    notes: tuple[str, ...] = ()
    padding: float | None = None
    selection: Selection

    @property
    def capabilities(self) -> frozenset[str]:
        """Its capabilities as a teacher, see `defeat.detector.teacher`."""
        return frozenset({PREDICT, MAPS})

    @abstractmethod
    def forward_train(self, batch: Batch, negative_weight: float = 1.0) -> DetectorOutput:
        """Compute losses and features for a batch of this detector's `prepare`.

        Args:
            batch: images with targets.
            negative_weight: weight of negative anchors and proposals in the classification losses, 0 or more.
        """

    def forward_maps(self, batch: Batch) -> Maps:
        """Compute feature maps of backbone and neck for a batch, by stride."""
        return Maps(*self.backbone(self.normalise(batch)))

    @torch.no_grad()
    def forward_teacher(
        self, batch: Batch, reads: Collection[str] | None = None, maps: Maps | None = None
    ) -> DetectorOutput:
        """Compute the output that a student learns from, for a batch of this detector's `adopt`.

        Args:
            batch: images with targets.
            reads: fields of the output that will be read, besides `valid`; None for all but `detections`. Others may be
                missing.
            maps: result of `forward_maps` for the same batch, if already computed.
        """
        maps = maps or self.forward_maps(batch)
        if reads is None:
            return self.teach(batch, maps)
        output = self.teach(batch, maps) if self.info.offers & set(reads) else output_of(batch, maps)
        if "detections" not in reads:
            return output
        raw = self.raw(self.normalise(batch), batch.sizes, maps)
        return replace(output, detections=self.decode(raw, batch.sizes))

    @abstractmethod
    def teach(self, batch: Batch, maps: Maps) -> DetectorOutput:
        """Compute the fields in `info.offers` from the feature maps of a batch, for `forward_teacher`."""

    @abstractmethod
    def raw(self, images: Tensor, sizes: list[tuple[int, int]], maps: Maps | None = None) -> Raw:
        """Compute the outputs of the network from which `decode` selects the detections; in eval mode.

        Both can be traced, so that an exporter needs to know no family.

        Args:
            images: (B, 3, H, W), normalised and padded, see `normalise`.
            sizes: valid height and width of each image.
            maps: feature maps of the images, if already computed.
        """

    @abstractmethod
    def decode(self, raw: Raw, sizes: list[tuple[int, int]]) -> list[Detections]:
        """Select the detections of each image, in pixels of the batch and sorted by score.

        Args:
            raw: result of `raw`.
            sizes: valid height and width of each image.
        """

    def candidates(self, raw: Raw) -> tuple[Tensor, Tensor] | None:
        """All candidates of `raw` before any selection, for exported files without non-maximum suppression.

        Returns:
            Boxes (B, N, 4) in pixels of the batch and scores (B, N, K) in 0..1, from which `selection` selects; None
            for a family with proposals of its own.
        """
        return None

    def forward_predict(self, batch: Batch) -> list[Detections]:
        """Detect objects in a prepared batch, in pixels of the original images; in eval mode."""
        decoded = self.decode(self.raw(self.normalise(batch), batch.sizes), batch.sizes)
        return [
            replace(detections, boxes=resize_boxes(detections.boxes, list(size), list(original)))
            for detections, size, original in zip(decoded, batch.sizes, batch.original_sizes, strict=True)
        ]

    def part_of(self, name: str) -> str:
        """Part of a tensor of the state dict: `backbone`, `neck` or `head`."""
        if name.startswith("backbone."):
            return "neck" if name.startswith("backbone.fpn.") else "backbone"
        return "head"

    @abstractmethod
    def class_rows(self) -> dict[str, Tensor]:
        """Classes of the rows of the head.

        Returns:
            By name, for each tensor of the state dict with one or more rows per class: (rows,) int64, the label 0..K-1
            of each row, K for the background, -1 for a row without class.
        """

    @torch.no_grad()
    def copy_weights(self, trained: "Detector") -> list[str]:
        """Take all weights of a detector that differs in its classes only, with the rows of the classes of both.

        Returns:
            The classes of both; the rows of the others are unchanged.
        """
        labels = {name: label for label, name in enumerate(trained.info.classes)}
        kept = [name for name in self.info.classes if name in labels]
        state, rows = self.state_dict(), self.class_rows()
        for name, tensor in trained.state_dict().items():
            if name not in rows:
                state[name].copy_(tensor)
                continue
            for kept_class in kept:
                state[name][self.info.classes.index(kept_class)] = tensor[labels[kept_class]]
        return kept

    def body_parameters(self) -> list[nn.Parameter]:
        """All parameters before the neck, trainable or not."""
        return list(self.backbone.get_submodule("body").parameters())

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    def prepare(self, images: Sequence[Tensor], targets: Sequence[Target] | None = None) -> Batch:
        """Resize images to a short side of `info.size` times `Target.scale` pixels, and pad them to one tensor.

        If `info.square` is true, each image becomes a square of about this side.

        Args:
            images: RGB images, each (3, H, W), uint8 in 0..255 or float32 in 0..1.
            targets: their annotations in pixels of these images; difficult and crowd boxes are removed, except those of
                unannotated images.
        """
        originals = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        scales = [target.scale for target in targets or ()] or [1.0] * len(originals)
        scaled = list(zip(originals, scales, strict=True))
        sizes = [self.resized_size(*size, scale) for size, scale in scaled]
        padded = [self.padded_size(*size, scale) for size, scale in scaled]
        height, width = (max(sides) for sides in zip(*padded, strict=True))
        tensor = torch.zeros(len(images), 3, height, width, device=self.device)
        for row, image, size in zip(tensor, images, sizes, strict=True):
            row[:, : size[0], : size[1]] = resized_image(image.to(self.device), size, self.antialias)
        trainable = [target.trainable() if target.annotated else target for target in targets or ()]
        resized = [target.resized(size).to(self.device) for target, size in zip(trainable, sizes, strict=False)]
        return Batch(tensor, sizes, resized, originals, len(self.info.classes))

    def adopt(self, batch: Batch) -> Batch:
        """Convert a batch that another detector prepared, so that both see the same pixels.

        If their input sizes differ, the batch is resized by the ratio of the short sides; else it is unchanged. If one
        of them stretches images, height and width have a ratio each.
        """
        return resized_batch(self.info, batch)

    def _repr_html_(self) -> str:
        parameters = sum(parameter.numel() for parameter in self.parameters())
        rows = {
            "classes": ", ".join(self.info.classes),
            "size": f"{self.info.size} pixels",
            "parameters": f"{parameters / 1e6:.1f} M",
            "strides": ", ".join(str(stride) for stride in self.info.neck),
        }
        return html_table(f"Detector of the family {self.info.family}", rows)

    def predict(self, images: object, max_pixels: int = MAX_PIXELS) -> list[Detections]:
        """Detect objects; the detections of an image do not depend on other images.

        Only images that are padded to the same size form a batch. More padding would change the feature maps near the
        border, so that AP would depend on the batch size (by half a point on small images).

        Args:
            images: a list of RGB images of any size, or one image: path of a file, PIL image, array (H, W, 3) of uint8,
                or tensor (3, H, W), uint8 in 0..255 or floating-point in 0..1.
            max_pixels: most pixels of a file, width times height.

        Returns:
            Detections of each image in pixels of that image, sorted by score; a list also for one image.

        Raises:
            InputError: an item is not an image, or a file can't be read.
        """
        tensors = [
            rgb_tensor(image, max_pixels) for image in (images if isinstance(images, list | tuple) else [images])
        ]
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(tensors):
            groups.setdefault(self.padded_size(*image.shape[-2:]), []).append(index)
        by_index: dict[int, Detections] = {}
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                for group in groups.values():
                    detections = self.forward_predict(self.prepare([tensors[index] for index in group]))
                    by_index |= dict(zip(group, detections, strict=True))
        finally:
            self.train(training)
        return [by_index[index] for index in range(len(tensors))]

    def resized_size(self, height: int, width: int, scale: float = 1.0) -> tuple[int, int]:
        """Height and width of an image after resizing, for its `Target.scale`."""
        return input_size(self.info, height, width, scale)

    def padded_size(self, height: int, width: int, scale: float = 1.0) -> tuple[int, ...]:
        """Height and width of an image after resizing and padding, in a batch of its own."""
        return tuple(rounded_up(side, self.info.size_divisor) for side in self.resized_size(height, width, scale))

    def normalise(self, batch: Batch) -> Tensor:
        """Subtract the mean and divide by the standard deviation; padding is `self.padding`. (B, 3, H, W).

        On CPU the result, and so every feature map, has channels-last memory format, which makes convolutions a quarter
        faster.
        """
        images = normalised(batch.images, self.info)
        if images.device.type == "cpu":
            images = images.contiguous(memory_format=torch.channels_last)
        fill_padding(images, batch.sizes, padding_colour(self.info, self.padding))
        return images


def info_of(spec: DetectorSpec, backbone: Backbone, **properties: Any) -> DetectorInfo:
    """Properties of a detector; those that its description and its backbone don't tell are given."""
    given: dict[str, Any] = {"max_size": spec.max_size, "size_divisor": 32} | properties
    return DetectorInfo(
        family=spec.family,
        classes=spec.classes,
        neck=backbone.neck_channels,
        backbone=backbone.body_channels,
        size=spec.size,
        mean=spec.mean or backbone.mean,
        std=spec.std or backbone.std,
        **given,
    )


def output_of(batch: Batch, maps: Maps, losses: dict[str, Tensor] | None = None, **fields: Any) -> DetectorOutput:
    """The output for a batch.

    Args:
        batch: input of the feature maps.
        maps: feature maps of the batch.
        losses: of the detector itself; None for a teacher.
        **fields: optional fields of `DetectorOutput`.
    """
    return DetectorOutput(
        losses=losses or {},
        backbone=maps.backbone,
        neck=maps.neck,
        valid=valid_cells(batch, maps.by_stride),
        scale=batch.scale,
        stretch=batch.stretch,
        **fields,
    )


def valid_cells(batch: Batch, maps: dict[int, Tensor]) -> dict[int, Tensor]:
    """Mark the cells of each feature map that are inside the image, not on padding.

    Args:
        batch: input of the feature maps.
        maps: feature maps (B, C, H, W) by stride.

    Returns:
        (B, H, W) bool by stride; a cell is valid if its upper left corner is inside the image.
    """
    sizes = torch.tensor(batch.sizes, device=batch.images.device)  # (B, 2)
    valid = {}
    for stride, level in maps.items():
        rows = torch.arange(level.shape[-2], device=level.device) * stride < sizes[:, :1]  # (B, H)
        columns = torch.arange(level.shape[-1], device=level.device) * stride < sizes[:, 1:]  # (B, W)
        valid[stride] = rows[:, :, None] & columns[:, None, :]
    return valid


def decoding(decode: Callable[[Tensor, Tensor], Tensor], offsets: Tensor, anchors: Tensor) -> DecodeBoxes:
    """The `decode` of `DensePredictions` for anchors that all images of a batch share.

    Args:
        decode: computes boxes (P, 4) from offsets (P, 4) and anchors (P, 4).
        offsets: (B, N, 4).
        anchors: (N, 4).
    """
    return lambda image, index: decode(offsets[image, index], anchors[index])


def describe_anchors(strides: Iterable[int], generator: AnchorGenerator) -> str:
    """Describe everything that determines the anchors of an image; equal texts mean equal anchors."""
    kind = f"{type(generator).__name__}{' rounded' * getattr(generator, 'rounded', False)}"
    return f"{list(strides)} {generator.sizes} {generator.aspect_ratios} {kind}"


def anchors_per_level(neck: Mapping[int, Tensor], generator: Any) -> list[int]:
    """Number of anchors of each feature map (B, C, H, W) of the neck."""
    per_cell = generator.num_anchors_per_location()
    return [level.shape[-2] * level.shape[-1] * n for level, n in zip(neck.values(), per_cell, strict=True)]


def torchvision_targets(targets: Sequence[Target], first_label: int) -> list[dict[str, Tensor]]:
    """Convert targets to the format of torchvision, with labels that start at `first_label`."""
    return [{"boxes": target.boxes, "labels": target.labels + first_label} for target in targets]
