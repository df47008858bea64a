"""What the YOLO families share: a network of LibreYOLO with predictions at points of strides 8, 16 and 32.

Letters of shapes: B images, N points of all levels, K classes, G objects (the largest number in an image of the batch).
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from defeat.detector.backbone import Backbone
from defeat.detector.base import Detector, DetectorSpec, info_of, output_of
from defeat.detector.libreyolo_models import Checkpoint, Parts, is_checkpoint, read_checkpoint
from defeat.detector.normalisation import apply_norm
from defeat.detector.options import automatic, bounded, fitted_to_data, require_valid
from defeat.detector.points import SQUARE, Assignment, PaddedTargets, assign_objects, fitted_candidates
from defeat.detector.selection import BOXES, SCORES, Raw, Selection, by_level, dense_candidates, select_dense
from defeat.detector.statistics import ObjectStatistics
from defeat.errors import InputError
from defeat.types import Batch, DensePredictions, Detections, DetectorOutput, Maps

STRIDES = (8, 16, 32)
USUAL_NECK = 256  # the default of --neck-channels, which has no effect
GREY = 114 / 255  # value of padding, as published

Options = TypeVar("Options", bound="YOLOOptions")
Built = TypeVar("Built", bound="YOLODetector")


@dataclass(frozen=True)
class YOLOOptions:
    """Options that the families share; the defaults are those of LibreYOLO's evaluation.

    `auto` options are derived from size and objects of the training data.
    """

    strides: ClassVar[tuple[int, ...]] = STRIDES
    pyramid: ClassVar[bool] = False

    score_thresh: float = bounded(0.001, 0.0, 1.0)
    """Detections with a lower score are dropped."""
    nms_thresh: float = bounded(0.6, 0.0, 1.0)
    """IoU threshold of non-maximum suppression."""
    detections_per_img: int = bounded(300, 1)
    """Maximum number of detections per image."""
    topk_candidates: int | Literal["auto"] = fitted_to_data(1000, "{} candidates per level")
    """Maximum number of candidates per level before non-maximum suppression."""

    def __post_init__(self) -> None:
        """Refuse invalid options."""
        require_valid(self)

    def fitted(self: Options, statistics: ObjectStatistics, neck_channels: int) -> Options:
        """Replace `auto` by values derived from the data; `neck_channels` has no effect."""
        if "topk_candidates" not in automatic(self):
            return self
        return replace(self, topk_candidates=fitted_candidates(statistics))


class YOLOBackbone(Backbone):
    """Body and path aggregation network, which has other channels at each stride.

    Args:
        parts: the network.
        white: value of a white pixel in its input; black is 0.
    """

    def __init__(self, parts: Parts, white: float) -> None:
        body_channels = dict(zip(STRIDES, parts.body_channels, strict=True))
        neck_channels = dict(zip(STRIDES, parts.neck_channels, strict=True))
        super().__init__(parts.body, parts.neck, body_channels, neck_channels, (0.0,) * 3, (1 / white,) * 3)


@dataclass(frozen=True)
class Predictions:
    """Predictions at the points of all levels.

    Attributes:
        logits: (B, N, K), of the score of each class.
        boxes: (B, N, 4), pixels of the batch.
        strides: (N,) int64.
        distributions: (B, N, 4, M), logits of the distances of the sides; None where a box is predicted directly.
        own: what else the family needs for its losses.
    """

    logits: Tensor
    boxes: Tensor
    strides: Tensor
    distributions: Tensor | None = None
    own: Any = None


class YOLODetector(Detector):
    """A one-stage detector without anchors: a score per class and a box at every point."""

    padding = GREY
    head: Callable[[list[Tensor]], list[Tensor]]  # outputs (B, C, H, W) of all levels

    def __init__(self, backbone: Backbone, head: nn.Module, spec: DetectorSpec, options: Any, **more: Any) -> None:
        """Create it from its parts.

        Args:
            backbone: feature maps at strides 8, 16 and 32.
            head: the predictions.
            spec: description of the detector.
            options: options of the family, without `auto`.
            more: what `info_of` takes of the family.
        """
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.options = options
        self.selection = Selection.of(options)
        self.spec = spec
        self.info = info_of(
            spec, backbone, activation="sigmoid", background="none", offers=frozenset({"dense"}), **more
        )

    @abstractmethod
    def predictions(self, images: Tensor, maps: Maps) -> Predictions:
        """Predictions for (B, 3, H, W) images, given their feature maps."""

    @abstractmethod
    def match(self, predictions: Predictions, targets: PaddedTargets) -> tuple[Tensor, Tensor]:
        """Assign objects to points.

        Returns:
            (B, N) int64, index of the object of each point, -1 for background; and what the losses need of it.
        """

    @abstractmethod
    def losses(
        self, predictions: Predictions, assignment: Assignment, quality: Tensor, negative_weight: float
    ) -> dict[str, Tensor]:
        """Losses by name; unknown background is ignored.

        Args:
            predictions: of the batch.
            assignment: of the training targets.
            quality: the second result of `match`.
            negative_weight: weight of background.
        """

    @abstractmethod
    def scores(self, output: Tensor) -> Tensor:
        """Scores (B, H*W, K) of the output of the head on a level."""

    @abstractmethod
    def boxes(self, output: Tensor, stride: int) -> Tensor:
        """Boxes (B, H*W, 4) in pixels, likewise, for any size of the image."""

    def forward_train(self, batch: Batch, negative_weight: float = 1.0) -> DetectorOutput:
        """Compute the losses and the fields that methods read."""
        assert self.training, "forward_train needs the training mode"
        maps = self.forward_maps(batch)
        predictions = self.predictions(batch.images, maps)
        qualities: list[Tensor] = []

        def match(targets: PaddedTargets) -> Tensor:
            matched, quality = self.match(predictions, targets)
            qualities.append(quality)
            return matched

        everything, training = assign_objects(batch, match)
        losses = self.losses(predictions, training, qualities[-1], negative_weight)
        return self._output(batch, losses, maps, predictions, everything)

    def teach(self, batch: Batch, maps: Maps) -> DetectorOutput:
        """Return the feature maps and the predictions at every point."""
        predictions = self.predictions(batch.images, maps)
        everything, _ = assign_objects(batch, lambda targets: self.match(predictions, targets)[0])
        return self._output(batch, {}, maps, predictions, everything)

    def raw(self, images: Tensor, sizes: list[tuple[int, int]], maps: Maps | None = None) -> Raw:
        """Scores and boxes at the points of each level."""
        neck = (maps or Maps(*self.backbone(images))).neck
        outputs = self.head(list(neck.values()))
        boxes = [self.boxes(output, stride) for output, stride in zip(outputs, STRIDES, strict=True)]
        return by_level(STRIDES, **{SCORES: [self.scores(output) for output in outputs], BOXES: boxes})

    def decode(self, raw: Raw, sizes: list[tuple[int, int]]) -> list[Detections]:
        """Select the detections, in pixels of the batch; those of which nothing is inside the image are left out."""
        return [_with_area(detections) for detections in select_dense(raw, sizes, self.selection)]

    def candidates(self, raw: Raw) -> tuple[Tensor, Tensor]:
        """Boxes and scores at all points."""
        return dense_candidates(raw)

    def _output(
        self,
        batch: Batch,
        losses: dict[str, Tensor],
        maps: Maps,
        predictions: Predictions,
        assignment: Assignment,
    ) -> DetectorOutput:
        return output_of(
            batch,
            maps,
            losses,
            dense=DensePredictions(
                logits=predictions.logits,
                decode=lambda image, index: predictions.boxes[image, index],
                labels=assignment.labels(batch.classes),
                strides=predictions.strides,
                distributions=predictions.distributions,
                squares=torch.cat([_squares(level, stride) for stride, level in maps.neck.items()]),
            ),
        )


def _with_area(detections: Detections) -> Detections:
    kept = (detections.boxes[:, 2:] > detections.boxes[:, :2]).all(dim=1)
    return Detections(detections.boxes[kept], detections.scores[kept], detections.labels[kept])


def points_of(level: Tensor, stride: int, offset: float = 0.5) -> Tensor:
    """(H*W, 2) x and y of the points of a map (B, C, H, W) in pixels; `offset` is their place in a cell, 0..1."""
    y, x = ((torch.arange(side, device=level.device) + offset) * stride for side in level.shape[-2:])
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack((columns.flatten(), rows.flatten()), dim=1)


def strides_of(outputs: list[Tensor]) -> Tensor:
    """(N,) int64 stride of each point of the outputs (B, C, H, W) of all levels."""
    device = outputs[0].device
    counts = torch.tensor([output.shape[-2] * output.shape[-1] for output in outputs], device=device)
    return torch.tensor(STRIDES, device=device).repeat_interleave(counts)


def _squares(level: Tensor, stride: int) -> Tensor:
    """(H*W, 4) squares around the points of a map (B, C, H, W), in pixels."""
    points, half = points_of(level, stride), SQUARE * stride / 2
    return torch.cat((points - half, points + half), dim=1)


def prepare_backbone(backbone: Backbone, spec: DetectorSpec, stages: tuple[str, ...]) -> None:
    """Apply the normalisation and the frozen stages of a description; `stages` are the last modules of each."""
    backbone.body = apply_norm(backbone.body, spec.norm)
    if spec.norm == "bn_eval":
        backbone.freeze_statistics(backbone.body.modules())
    backbone.freeze_stages(spec.frozen_stages, stages, spec.backbone)


def build_yolo(spec: DetectorSpec, weights: str, built: Callable[[DetectorSpec], Built]) -> Built:
    """Build a detector from its description.

    Args:
        spec: with a backbone of the family, and the default number of neck channels.
        weights: `none` or `auto` for random weights, as there are none of the backbone alone; or a checkpoint of
            LibreYOLO, whose weights are kept but for the rows of other classes.
        built: builds a detector of the family with random weights.

    Raises:
        InputError: unknown backbone, other number of neck channels, or weights that do not match.
    """
    if spec.neck_channels != USUAL_NECK:
        raise InputError(
            f"--neck-channels {spec.neck_channels}: its backbone fixes the widths of {spec.family}; leave the option "
            "out."
        )
    if weights in ("none", "auto"):
        return built(spec)
    if not is_checkpoint(weights):
        raise InputError(f"--weights {weights} is not a checkpoint of LibreYOLO; give one, or 'none'.")
    checkpoint = read_checkpoint(weights)
    if checkpoint.backbone != spec.backbone:
        raise InputError(
            f"--weights {weights} is a {checkpoint.backbone}, not a {spec.backbone}: give --detector "
            f"{checkpoint.family} --backbone {checkpoint.backbone}."
        )
    return _with_classes(load_yolo(checkpoint, weights, built), spec, weights, built)


def load_yolo(checkpoint: Checkpoint, source: str | Path, built: Callable[[DetectorSpec], Built]) -> Built:
    """Load a trained detector of LibreYOLO.

    Args:
        checkpoint: its content.
        source: its path, for messages.
        built: builds a detector of its family with random weights.

    Raises:
        InputError: its tensors are not those of its architecture.
    """
    spec = DetectorSpec(
        family=checkpoint.family,
        backbone=checkpoint.backbone,
        classes=checkpoint.classes,
        size=checkpoint.size,
        max_size=checkpoint.size,
        options=dict(checkpoint.options),
    )
    detector = built(spec)
    try:
        detector.load_state_dict(dict(checkpoint.state))
    except RuntimeError as error:
        raise InputError(f"{source} has not the tensors of {checkpoint.backbone}.") from error
    return detector


def _with_classes(trained: Built, spec: DetectorSpec, source: str, built: Callable[[DetectorSpec], Built]) -> Built:
    """A detector for other classes with all other weights of a trained one; rows of equal classes are kept."""
    detector = built(replace(spec, options={**spec.options, **trained.spec.options}))
    kept = detector.copy_weights(trained)
    if len(kept) < len(spec.classes):
        detector.notes = (
            f"{source}: all weights are kept but those of the classes; {len(kept)} of {len(spec.classes)} classes have "
            "the checkpoint's, and the others start anew.",
        )
    return detector
