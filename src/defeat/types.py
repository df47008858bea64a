"""Data types shared by all packages, with the shapes of their tensors.

Letters: B images of a batch, C channels, H W height and width, N anchors or points, R proposals (of the whole batch),
K classes, G ground-truth boxes of an image. Boxes are `x1 y1 x2 y2` in pixels, origin at the upper left corner of the
image, `x2` and `y2` exclusive: a box over the whole image is `0 0 width height`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from defeat.errors import InputError


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise InputError(f"Conversion to {name} needs a package that is not installed: pip install {name}.") from error


@dataclass(frozen=True)
class Target:
    """The annotations of one image.

    Attributes:
        boxes: (G, 4) float32, inside the image, with a positive width and height.
        labels: (G,) int64 in 0..K-1.
        difficult: (G,) bool; excluded from the loss and ignored by the metrics. In an unannotated image: a detection
            of the teacher below the confidence threshold.
        crowd: (G,) bool; the box contains a group of objects (COCO's `iscrowd`); treated like a difficult box.
        image_id: unique number of the image in its split.
        size: height and width of the image in pixels.
        annotated: whether the boxes are ground truth. If not, they are detections of a teacher: regions use all of
            them, a detector learns from those that are not difficult, and the rest of the image is ignored.
        view: index of the augmented view; 0 is the original image.
        scale: additional resize factor in a detector's `prepare`, above 0: the short side becomes `scale` times
            `info.size`; the long side still has at most `info.max_size` pixels.
    """

    boxes: Tensor
    labels: Tensor
    difficult: Tensor
    crowd: Tensor
    image_id: int
    size: tuple[int, int]
    annotated: bool = True
    view: int = 0
    scale: float = 1.0

    @classmethod
    def empty(cls, image_id: int, size: tuple[int, int]) -> "Target":
        """Create the target of an image without objects."""
        flags = torch.zeros(0, dtype=torch.bool)
        return cls(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), flags, flags, image_id, size)

    def trainable(self) -> "Target":
        """Remove difficult and crowd boxes."""
        return self.select(~(self.difficult | self.crowd))

    def select(self, keep: Tensor) -> "Target":
        """Select the boxes for which `keep`, (G,) bool, is true."""
        return replace(
            self,
            boxes=self.boxes[keep],
            labels=self.labels[keep],
            difficult=self.difficult[keep],
            crowd=self.crowd[keep],
        )

    def resized(self, size: tuple[int, int]) -> "Target":
        """Scale the boxes to an image resized to `size` (height, width)."""
        height_ratio, width_ratio = size[0] / self.size[0], size[1] / self.size[1]
        scale = self.boxes.new_tensor([width_ratio, height_ratio, width_ratio, height_ratio])
        return replace(self, boxes=self.boxes * scale, size=size)

    def to(self, device: torch.device) -> "Target":
        """Move all tensors to `device`."""
        return replace(
            self,
            boxes=self.boxes.to(device),
            labels=self.labels.to(device),
            difficult=self.difficult.to(device),
            crowd=self.crowd.to(device),
        )


@dataclass(frozen=True)
class Detections:
    """Detections of one image, sorted by descending score.

    Attributes:
        boxes: (D, 4) float32, pixels of the original image.
        scores: (D,) float32 in 0..1.
        labels: (D,) int64 in 0..K-1.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def cpu(self) -> "Detections":
        """Move all tensors to the CPU; boxes and scores become float32."""
        return Detections(self.boxes.float().cpu(), self.scores.float().cpu(), self.labels.cpu())

    def to_supervision(self, classes: Sequence[str] | None = None) -> Any:
        """Convert to `supervision.Detections`.

        Args:
            classes: names of the K classes, such as `detector.info.classes`; they become the data `class_name`.

        Raises:
            InputError: the package supervision is not installed.
        """
        supervision = _package("supervision")
        own = self.cpu()
        names = None if classes is None else [classes[label] for label in own.labels.tolist()]
        return supervision.Detections(
            xyxy=own.boxes.numpy(),
            confidence=own.scores.numpy(),
            class_id=own.labels.numpy(),
            data={} if names is None else {"class_name": names},
        )

    def to_fiftyone(self, classes: Sequence[str], size: tuple[int, int]) -> Any:
        """Convert to `fiftyone.Detections`, whose boxes are fractions of the image.

        Args:
            classes: names of the K classes, such as `detector.info.classes`.
            size: height and width of the image in pixels.

        Raises:
            InputError: the package fiftyone is not installed.
        """
        fiftyone = _package("fiftyone")
        height, width = size
        own = self.cpu()
        rows = zip(own.boxes.tolist(), own.scores.tolist(), own.labels.tolist(), strict=True)
        return fiftyone.Detections(
            detections=[
                fiftyone.Detection(
                    label=classes[label],
                    bounding_box=[x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height],
                    confidence=score,
                )
                for (x1, y1, x2, y2), score, label in rows
            ]
        )


@dataclass(frozen=True)
class Batch:
    """Images and targets prepared by a detector.

    Attributes:
        images: (B, 3, H, W) float32 RGB in 0..1, not normalised, zero on padding.
        sizes: valid height and width of each image in `images`; padding is at the right and the bottom.
        targets: boxes of each image in pixels of `images`; for annotated images only the trainable boxes. Empty list
            if there are no annotations.
        original_sizes: height and width of each image before resizing.
        classes: K, the number of classes of the labels in `targets`: the student's, also in a teacher's batch.
        scale: rows of pixels of this batch per row of the original batch (1 unless a teacher resized it).
        stretch: the same ratio of columns, divided by `scale` (1 unless a teacher changed the aspect ratio).
    """

    images: Tensor
    sizes: list[tuple[int, int]]
    targets: list[Target]
    original_sizes: list[tuple[int, int]]
    classes: int
    scale: float = 1.0
    stretch: float = 1.0

    @property
    def training_targets(self) -> list[Target]:
        """Targets of the detector's own loss: for unannotated images only the confident boxes of the teacher."""
        return [target if target.annotated else target.trainable() for target in self.targets]


@dataclass(frozen=True)
class Maps:
    """Feature maps of a batch.

    Attributes:
        backbone: feature maps of the backbone by stride, (B, C, H, W).
        neck: feature maps of the neck by stride, (B, C, H, W).
    """

    backbone: dict[int, Tensor]
    neck: dict[int, Tensor]

    @property
    def by_stride(self) -> dict[int, Tensor]:
        """One feature map per stride; the neck has precedence."""
        return {**self.backbone, **self.neck}


DecodeBoxes = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class DensePredictions:
    """Predictions of a one-stage head, an RPN or the encoder of a DETR at every anchor or point.

    Attributes:
        logits: (B, N, K) class logits (sigmoid), or (B, N, K+1) (softmax), background last; an RPN has K = 1, the
            objectness.
        decode: computes some of the boxes, with gradient: for (P,) int64 indices of images and (P,) of predictions,
            (P, 4) boxes in pixels of the batch.
        labels: (B, N) int64: class of the matched ground-truth box, K for background, -1 for ignored; K is that of the
            batch's annotations, which can differ from that of the logits.
        strides: (N,) int64, stride of the level of each prediction.
        anchors: (B, N, 4) anchors in pixels of the batch; None for a head without anchors.
        deltas: (B, N, 4) predicted offsets from the anchors; None for a head without anchors.
        distributions: (B, N, 4, M) logits of the distribution of the distance to each side, left, top, right, bottom;
            None for a head without them.
        squares: (N, 4) squares of eight strides around the points, in pixels of the batch, which stand for anchors;
            only with `distributions`.
    """

    logits: Tensor
    decode: DecodeBoxes
    labels: Tensor
    strides: Tensor
    anchors: Tensor | None = None
    deltas: Tensor | None = None
    distributions: Tensor | None = None
    squares: Tensor | None = None

    @property
    def boxes(self) -> Tensor:
        """(B, N, 4) all boxes in pixels of the batch, without gradient."""
        images, count = self.labels.shape
        image = torch.arange(images, device=self.labels.device).repeat_interleave(count)
        index = torch.arange(count, device=self.labels.device).repeat(images)
        with torch.no_grad():
            return self.decode(image, index).view(images, count, 4)


@dataclass(frozen=True)
class Proposals:
    """Proposals classified by the second stage of a two-stage detector.

    Attributes:
        boxes: one (R_i, 4) tensor per image, in pixels of the batch, without gradient; R is the sum of all R_i.
        labels: (R,) int64 in 0..K-1, K for background, -1 for ignored; K is that of the batch's annotations.
        logits: (R, K+1) class logits (softmax), background last.
        deltas: (R, K, 4) box offsets per class.
        decode: computes some of the boxes, with gradient: for (P,) int64 indices of proposals and (P,) labels, (P, 4)
            boxes in pixels of the batch.
    """

    boxes: list[Tensor]
    labels: Tensor
    logits: Tensor
    deltas: Tensor
    decode: DecodeBoxes


@dataclass(frozen=True)
class Queries:
    """Predictions of the object queries of a DETR, for each of the L layers of its decoder; the last is the final one.

    Queries that exist only in training, such as those of denoising, are left out.

    Attributes:
        logits: (L, B, Q, K) class logits (sigmoid).
        boxes: (L, B, Q, 4) boxes in pixels of the batch, with gradient.
        size: height and width of the tensor of the batch, in pixels.
        corners: (L, B, Q, 4, bins) logits of the distribution of each side's offset, left, top, right, bottom; None
            for a detector without them.
    """

    logits: Tensor
    boxes: Tensor
    size: tuple[int, int]
    corners: Tensor | None = None


ScoreProposals = Callable[[list[Tensor]], Tensor]
FinishHead = Callable[[dict[int, Tensor], dict[int, Tensor]], DensePredictions]


@dataclass(frozen=True)
class Towers:
    """Feature maps inside a dense head, before the last convolution of each of its two branches.

    Attributes:
        classes: maps of the classification branch by stride, (B, C, H, W).
        boxes: maps of the regression branch by stride, (B, C, H, W).
        finish: computes the predictions from maps of another detector instead, which take the place of `classes` and
            `boxes` and have their shapes; with a gradient for these maps, also where the head is frozen.
    """

    classes: dict[int, Tensor]
    boxes: dict[int, Tensor]
    finish: FinishHead


@dataclass(frozen=True)
class DetectorOutput:
    """Everything that a distillation method may read, in the same form for all families.

    Attributes:
        losses: weighted scalar losses of the detector itself; empty for a teacher.
        backbone: feature maps of the backbone by stride, (B, C, H, W).
        neck: feature maps of the neck by stride, (B, C, H, W).
        valid: (B, H, W) bool by stride of neck and backbone, false on padding.
        dense: predictions at anchors or points; None if the family has none.
        proposals: classified proposals; None if the family has none.
        score_proposals: computes class logits (R, K+1), background last, of any boxes (one (R_i, 4) tensor per image,
            in pixels of this output's batch) on these feature maps; None if the family has no proposals.
        queries: predictions of object queries; None if the family has none.
        towers: feature maps inside the head; None if the family has no head with towers of convolutions.
        detections: final detections of a teacher for each image, in pixels of this output's batch, if a method reads
            them.
        scale: rows of pixels of this output's batch per row of the student's batch.
        stretch: the same ratio of columns, divided by `scale`; 1 where the aspect ratio is the same.
        members: the outputs of several teachers, of which this is the first; empty for a single one.
    """

    losses: dict[str, Tensor]
    backbone: dict[int, Tensor]
    neck: dict[int, Tensor]
    valid: dict[int, Tensor]
    dense: DensePredictions | None = None
    proposals: Proposals | None = None
    score_proposals: ScoreProposals | None = None
    queries: Queries | None = None
    towers: Towers | None = None
    detections: list[Detections] | None = None
    scale: float = 1.0
    stretch: float = 1.0
    members: tuple["DetectorOutput", ...] = ()


@dataclass(frozen=True)
class DetectorInfo:
    """Properties of a detector that other packages may use.

    Attributes:
        family: name of the family, e.g. `retinanet`.
        classes: names of the K classes, in the order of the labels.
        neck: channels of the neck's feature maps by stride.
        backbone: channels of the backbone's feature maps by stride.
        size: short side of an image after resizing, in pixels. 0, only for a teacher without an input size:
            a `TappedTeacher`, which takes the student's batch without resizing, or one that only gives boxes.
        max_size: upper limit of the long side, in pixels; 0 if `size` is 0.
        size_divisor: the padded height and width are multiples of this.
        mean: mean of R, G, B that the detector subtracts, for values in 0..1.
        std: standard deviation of R, G, B that it divides by.
        activation: `softmax` or `sigmoid`, applied to class logits to get scores.
        background: `last` if the last column of the class logits is the background, else `none`.
        offers: optional fields of `DetectorOutput` that the family fills.
        anchors: description of the anchors of `dense`; equal descriptions mean equal anchors.
        square: whether images are stretched to a square of side `size`, instead of keeping their aspect ratio.
        bins: number of values of the distributions in `dense`; 0 where boxes are no distributions.
    """

    family: str
    classes: tuple[str, ...]
    neck: dict[int, int]
    backbone: dict[int, int]
    size: int
    max_size: int
    size_divisor: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    activation: str
    background: str
    offers: frozenset[str] = field(default_factory=frozenset)
    anchors: str = ""
    square: bool = False
    bins: int = 0


@dataclass(frozen=True)
class Progress:
    """Progress of a training run, the input of schedules.

    Attributes:
        step: completed optimiser steps.
        steps: optimiser steps of the whole run, at least 1.
        epoch: completed epochs.
        epochs: epochs of the whole run, at least 1.
    """

    step: int
    steps: int
    epoch: int = 0
    epochs: int = 1

    @property
    def fraction(self) -> float:
        """Completed fraction of the run, 0..1."""
        return min(1.0, self.step / max(1, self.steps))
