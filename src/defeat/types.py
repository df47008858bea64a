"""The shapes of everything that flows through the project, defined once.

Letters: B images of a batch, C channels, H W height and width, N anchors or points, R proposals (of the whole batch),
K classes, G ground-truth boxes of an image. Boxes are `x1 y1 x2 y2` in pixels, origin at the upper left corner of the
image, `x2` and `y2` exclusive: a box over the whole image is `0 0 width height`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Target:
    """The annotations of one image.

    Attributes:
        boxes: (G, 4) float32, inside the image, with a positive width and height.
        labels: (G,) int64 in 0..K-1.
        difficult: (G,) bool; such a box is kept out of the loss, and the metrics neither demand nor punish it. In an
            image that is not annotated: a box that a teacher is not certain of.
        crowd: (G,) bool; the box holds a group of objects (COCO's `iscrowd`); treated like a difficult one.
        image_id: the image's number, unique in its split.
        size: height and width in pixels of the image that the boxes belong to.
        annotated: whether somebody marked all objects. If not, the boxes are what a teacher detected: regions follow
            all of them, a detector learns from those that are not difficult, and the rest of the image is undecided.
        view: which of an augmentation's views of the image this is; 0 is the image as it is in its file.
        scale: by how much a detector's `prepare` makes the image larger than otherwise, above 0: its short side gets
            `info.size` times this; its long side still has at most `info.max_size` pixels.
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
        """Annotations of an image without objects."""
        nothing = torch.zeros(0, dtype=torch.bool)
        return cls(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), nothing, nothing, image_id, size)

    def trainable(self) -> "Target":
        """The same target without its difficult and crowd boxes."""
        return self.kept(~(self.difficult | self.crowd))

    def kept(self, keep: Tensor) -> "Target":
        """The same target with only those boxes for which `keep`, (G,) bool, is true."""
        return replace(
            self,
            boxes=self.boxes[keep],
            labels=self.labels[keep],
            difficult=self.difficult[keep],
            crowd=self.crowd[keep],
        )

    def resized(self, size: tuple[int, int]) -> "Target":
        """The same target for the image resized to `size` (height, width)."""
        height_ratio, width_ratio = size[0] / self.size[0], size[1] / self.size[1]
        scale = self.boxes.new_tensor([width_ratio, height_ratio, width_ratio, height_ratio])
        return replace(self, boxes=self.boxes * scale, size=size)

    def to(self, device: torch.device) -> "Target":
        """The same target with its tensors on `device`."""
        return replace(
            self,
            boxes=self.boxes.to(device),
            labels=self.labels.to(device),
            difficult=self.difficult.to(device),
            crowd=self.crowd.to(device),
        )


@dataclass(frozen=True)
class Detections:
    """What a detector found in one image, best first.

    Attributes:
        boxes: (D, 4) float32, pixels of the original image.
        scores: (D,) float32 in 0..1.
        labels: (D,) int64 in 0..K-1.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def cpu(self) -> "Detections":
        """The same detections in the memory of the CPU, in float32."""
        return Detections(self.boxes.float().cpu(), self.scores.float().cpu(), self.labels.cpu())


@dataclass(frozen=True)
class Batch:
    """What a detector's own preparation makes of images and targets.

    Attributes:
        images: (B, 3, H, W) float32 RGB in 0..1, not normalised, zero on the padding.
        sizes: valid height and width of each image in `images`; the rest is padding at the right and the bottom.
        targets: the boxes of each image, in pixels of `images`; of annotated images the trainable ones alone. Empty
            list when there are none to learn from.
        original_sizes: height and width of each image before it was resized: the way back.
        classes: K, how many classes the labels of `targets` count: the student's, in a teacher's batch too.
        scale: pixels of this batch per pixel of the batch that it was made from (1 unless a teacher resized it).
    """

    images: Tensor
    sizes: list[tuple[int, int]]
    targets: list[Target]
    original_sizes: list[tuple[int, int]]
    classes: int
    scale: float = 1.0

    @property
    def learned(self) -> list[Target]:
        """Of each image the boxes that a detector learns; of one that is not annotated what a teacher is certain of."""
        return [target if target.annotated else target.trainable() for target in self.targets]


@dataclass(frozen=True)
class Maps:
    """The feature maps of a batch.

    Attributes:
        backbone: maps of the backbone by stride, (B, C, H, W).
        neck: maps of the neck by stride, (B, C, H, W).
    """

    backbone: dict[int, Tensor]
    neck: dict[int, Tensor]

    @property
    def by_stride(self) -> dict[int, Tensor]:
        """One map of each stride."""
        return {**self.backbone, **self.neck}


@dataclass(frozen=True)
class DensePredictions:
    """Predictions at every anchor or point of an image: a one-stage head or an RPN.

    Attributes:
        logits: (B, N, K) class logits (sigmoid); an RPN has K = 1, the objectness.
        boxes: (B, N, 4) decoded boxes in pixels of the batch, without gradient.
        labels: (B, N) int64: the class of the matched ground-truth box, K where there is none, -1 where undecided; K is
            that of the batch's annotations, which may be another than that of the logits.
        strides: (N,) int64, the stride of the level that each prediction belongs to.
        anchors: (B, N, 4) anchors in pixels of the batch, where the head has any.
        deltas: (B, N, 4) predicted offsets from the anchors, where the head has any.
    """

    logits: Tensor
    boxes: Tensor
    labels: Tensor
    strides: Tensor
    anchors: Tensor | None = None
    deltas: Tensor | None = None


@dataclass(frozen=True)
class Proposals:
    """The boxes that the second stage of a two-stage detector classified.

    Attributes:
        boxes: one (R_i, 4) tensor an image, pixels of the batch, without gradient; R is the sum of all R_i.
        labels: (R,) int64 in 0..K-1, K for background, -1 where undecided; K is that of the batch's annotations.
        logits: (R, K+1) class logits (softmax), background last.
        deltas: (R, K, 4) box offsets of each class.
    """

    boxes: list[Tensor]
    labels: Tensor
    logits: Tensor
    deltas: Tensor


ScoreProposals = Callable[[list[Tensor]], Tensor]


@dataclass(frozen=True)
class DetectorOutput:
    """Everything that a distillation method may read, in one shape whatever the family.

    Attributes:
        losses: scalar losses of the detector itself, already weighted; empty when it ran as a teacher.
        backbone: maps of the backbone by stride, (B, C, H, W).
        neck: maps of the neck by stride, (B, C, H, W).
        valid: by stride of the neck and the backbone, (B, H, W) bool, false on padding.
        dense: predictions at anchors or points, when the family offers them.
        proposals: classified proposals, when the family offers them.
        score_proposals: gives the class logits (R, K+1), background last, of any boxes (one (R_i, 4) tensor an image,
            in pixels of this output's batch) on these maps; when the family offers proposals.
        scale: pixels of this output's batch per pixel of the student's batch.
    """

    losses: dict[str, Tensor]
    backbone: dict[int, Tensor]
    neck: dict[int, Tensor]
    valid: dict[int, Tensor]
    dense: DensePredictions | None = None
    proposals: Proposals | None = None
    score_proposals: ScoreProposals | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class DetectorInfo:
    """What others need to know about a detector without looking inside.

    Attributes:
        family: name of the family, e.g. `retinanet`.
        classes: names of the K classes, in the order of the labels.
        neck: channels of the neck's maps by stride.
        backbone: channels of the backbone's maps by stride.
        size: length of an image's short side after resizing, in pixels.
        max_size: upper limit of the long side, in pixels.
        size_divisor: the padded height and width are multiples of this.
        mean: mean of R, G, B that the detector subtracts, for values in 0..1.
        std: standard deviation of R, G, B that it divides by.
        activation: `softmax` or `sigmoid`, what turns class logits into scores.
        background: `last` when the class logits hold a background column, else `none`.
        offers: the optional fields of `DetectorOutput` that the family fills.
        anchors: a description of the anchors that `dense` belongs to; equal descriptions mean equal anchors.
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


@dataclass(frozen=True)
class Progress:
    """Where a training stands: what schedules are made of.

    Attributes:
        step: optimiser steps done.
        steps: optimiser steps of the whole run, at least 1.
        epoch: epochs done.
        epochs: epochs of the whole run, at least 1.
    """

    step: int
    steps: int
    epoch: int = 0
    epochs: int = 1

    @property
    def fraction(self) -> float:
        """Part of the run that is done, 0..1."""
        return min(1.0, self.step / max(1, self.steps))
