"""LW-DETR and RF-DETR, from the modules of transformers.

LW-DETR: Chen et al., 2024, arXiv 2406.03459. RF-DETR: Robinson et al., 2025, arXiv 2511.09554.

A plain vision transformer, a projector as neck, no encoder, and a decoder that learns with several groups of queries.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from defeat.detector.backbone import Backbone
from defeat.detector.base import DetectorSpec
from defeat.detector.group_losses import GroupLosses
from defeat.detector.lw_detr_models import (
    GroupedPredictions,
    LWParts,
    lw_configuration,
    lw_taken_apart,
    with_lw_width,
)
from defeat.detector.normalisation import apply_norm
from defeat.detector.options import automatic, bounded, fitted_to_data, require_valid, with_usual_values
from defeat.detector.set_detector import (
    SetDetector,
    corners_in_pixels,
    relative_labels,
    require_family,
    require_size,
    tensor_size,
    with_classes,
)
from defeat.detector.statistics import ObjectStatistics
from defeat.detector.transformers_models import (
    DIVISOR,
    LW_KINDS,
    Checkpoint,
    is_checkpoint,
    model_of,
    plain,
    read_checkpoint,
)
from defeat.detector.weights import IMAGENET_MEAN, IMAGENET_STD
from defeat.errors import InputError
from defeat.settings import AUTO
from defeat.types import Batch, DetectorOutput, Maps, Queries

KINDS = LW_KINDS
QUERIES, LAYERS, GROUPS, LEVELS = 300, 3, 13, "P4"  # of published configurations

Levels = Literal["auto", "P4", "P3+P5", "P3+P4+P5"]
LEVEL_CHOICES: tuple[str, ...] = get_args(Levels)

__all__ = ["KINDS", "LWDETROptions", "RFDETROptions", "build", "from_checkpoint"]


@dataclass(frozen=True)
class RFDETROptions:
    """Options of RF-DETR; the defaults are those of the published configurations.

    `auto` options are derived from the size of the images, or are those of a teacher of the same family, whose weights
    then fit; without data, they are the published ones.
    """

    strides: ClassVar[tuple[int, ...]] = (16,)  # by default
    optimizer: ClassVar[str] = "adamw"  # with which both were published

    queries: int | Literal["auto"] = fitted_to_data(QUERIES, "{} queries", from_teacher=True)
    """Number of object queries of a group, which is the number of predicted boxes per image."""
    decoder_layers: int | Literal["auto"] = fitted_to_data(LAYERS, "{} decoder layers", from_teacher=True)
    """Number of decoder layers."""
    groups: int | Literal["auto"] = fitted_to_data(GROUPS, "{} groups of queries", from_teacher=True)
    """Number of groups of queries in training, each of which learns all objects; time and memory of the decoder are in
    proportion to it. Detections are those of the first."""
    score_thresh: float = bounded(0.01, 0.0, 1.0)
    """Detections with a lower score are dropped."""
    detections_per_img: int = bounded(100, 1)
    """Maximum number of detections per image."""
    antialias: bool = True
    """Whether images are antialiased when they are shrunk (the processor of RF-DETR in transformers: false)."""
    config: dict[str, Any] = field(default_factory=dict, metadata={"hidden": True})
    """Complete configuration of transformers, as a trained detector has it; it takes precedence."""

    def __post_init__(self) -> None:
        """Refuse invalid options."""
        require_valid(self)

    @property
    def neck_strides(self) -> tuple[int, ...]:
        """Strides of the neck's maps."""
        return self.strides

    def fitted(self, statistics: ObjectStatistics, _neck_channels: int) -> "RFDETROptions":
        """Replace `auto` by values derived from the size of the images.

        A query begins at a cell of the neck's maps, so there are no more queries than an image has cells.
        """
        cells = sum((statistics.size // stride) ** 2 for stride in self.neck_strides)
        values: dict[str, Any] = {
            "queries": min(QUERIES, cells),
            "decoder_layers": LAYERS,
            "groups": GROUPS,
            "levels": LEVELS,
        }
        names = automatic(self)
        return replace(self, **{name: value for name, value in values.items() if name in names})


@dataclass(frozen=True)
class LWDETROptions(RFDETROptions):
    """Options of LW-DETR, see `RFDETROptions`."""

    levels: Levels = fitted_to_data(LEVELS, from_teacher=True)
    """Levels of the neck: P4 (stride 16) as in the published detectors tiny to medium, P3+P5 (strides 8 and 32) as in
    large and xlarge."""

    @property
    def neck_strides(self) -> tuple[int, ...]:
        """Strides of the neck's maps."""
        levels = LEVELS if self.levels == AUTO else self.levels
        return tuple(2 ** int(level[1:]) for level in levels.split("+"))


class LWDETR(SetDetector):
    """Groups of object queries, refined by decoder layers that read the maps of a projector, the neck.

    The map of the body is that of several layers of the transformer, along the channels: all that the neck reads.
    """

    def __init__(self, parts: LWParts, backbone: Backbone, spec: DetectorSpec, options: RFDETROptions) -> None:
        """Create it from the parts of a model of transformers.

        Args:
            parts: the model, taken apart.
            backbone: its body and neck.
            spec: description of the detector.
            options: options of the family.
        """
        super().__init__(
            spec,
            backbone,
            parts.head,
            size_divisor=parts.divisor,
            queries=int(parts.config.num_queries),
            score_thresh=options.score_thresh,
            detections_per_img=options.detections_per_img,
        )
        self.antialias = options.antialias
        self.losses = GroupLosses(parts.config)

    def forward_train(self, batch: Batch, negative_weight: float = 1.0) -> DetectorOutput:
        """Compute the losses and the fields that methods read; `queries` and `dense` are those of the first group.

        The losses are `classification`, `box` and `giou`, each summed over the decoder's layers and the cells where
        queries begin, see `GroupLosses`.

        Args:
            batch: images with targets.
            negative_weight: weight of queries without an object in the classification loss, 0 or more.
        """
        assert self.training, "forward_train needs the training mode"
        maps = self.forward_maps(batch)
        output = self._decode(maps)
        labels = [relative_labels(target, batch) for target in batch.training_targets]
        annotated = [target.annotated for target in batch.targets]
        losses = self.losses(output, labels, annotated, negative_weight)
        return self._output(batch, losses, maps, _queries(batch, output), (output.cell_logits, output.cell_boxes))

    def teach(self, batch: Batch, maps: Maps) -> DetectorOutput:
        """Return the feature maps, the predictions at every cell, and the queries of all layers."""
        output = self._decode(maps)
        return self._output(batch, {}, maps, _queries(batch, output), (output.cell_logits, output.cell_boxes))

    def final_predictions(self, maps: Maps) -> tuple[Tensor, Tensor]:
        """Class logits (B, Q, K) and boxes (B, Q, 4) of the last decoder layer."""
        output = self._decode(maps)
        return output.logits[:, -1], output.boxes[:, -1]

    def class_rows(self) -> dict[str, Tensor]:
        """The class layers of the decoder, and of the cells for each group, have a row per class."""
        classes = torch.arange(len(self.info.classes))
        layers = ("head.class_embed.", "head.enc_out_class_embed.")
        return {name: classes for name in self.state_dict() if name.startswith(layers)}

    def _decode(self, maps: Maps) -> GroupedPredictions:
        """Run everything after the neck."""
        levels = [level.float() for level in maps.neck.values()]
        with torch.autocast(levels[0].device.type, enabled=False):
            output: GroupedPredictions = self.head(levels)
        return output


def _queries(batch: Batch, output: GroupedPredictions) -> Queries:
    """Predictions of the first group, which is the only one in eval mode."""
    count = output.logits.shape[2] // output.groups
    logits, boxes = (tensor[:, :, :count].transpose(0, 1) for tensor in (output.logits, output.boxes))
    return Queries(logits, corners_in_pixels(boxes, batch.images), tensor_size(batch.images))


def build(spec: DetectorSpec, weights: str) -> SetDetector:
    """Build a detector from its description.

    Args:
        spec: description of the detector.
        weights: `none`, or weights of the whole detector: a folder written by `save_pretrained`, or `hf:ORG/NAME`.

    Raises:
        InputError: the size or the configuration is not valid, or the weights don't match.
    """
    if weights not in ("none", "auto") and is_checkpoint(weights):
        checkpoint = read_checkpoint(weights, spec.family)
        return with_classes(from_checkpoint(checkpoint), spec, weights, _rebuilt)
    if spec.options.get("config"):
        return _rebuilt(spec)
    if weights != "none":
        raise InputError(
            f"There are no weights of the backbone of {spec.family} alone: give --weights none, or a whole detector, "
            "a run directory, a folder written by save_pretrained, or hf:ORG/NAME."
        )
    require_size(spec, DIVISOR)
    options: Any = with_usual_values(_options_of(spec))
    config = lw_configuration(
        spec.family,
        spec.backbone,
        spec.size,
        spec.neck_channels,
        strides=options.neck_strides,
        queries=options.queries,
        decoder_layers=options.decoder_layers,
        groups=options.groups,
    )
    spec = replace(spec, mean=spec.mean or IMAGENET_MEAN, std=spec.std or IMAGENET_STD)
    return _rebuilt(replace(spec, options={**spec.options, "config": config}))


def _options_of(spec: DetectorSpec) -> RFDETROptions:
    kind = LWDETROptions if spec.family == "lw_detr" else RFDETROptions
    return kind(**spec.options)


def _rebuilt(spec: DetectorSpec) -> LWDETR:
    """Build a detector with random weights from a description with a complete configuration."""
    config = spec.options["config"]
    require_family(spec.family, config)
    if config.get("d_model") != spec.neck_channels:
        config = with_lw_width(config, spec.neck_channels)
        spec = replace(spec, options={**spec.options, "config": config})
    return _detector(lw_taken_apart(model_of(config, spec.classes)), spec)


def _detector(parts: LWParts, spec: DetectorSpec) -> LWDETR:
    require_size(spec, parts.divisor)
    body_channels = {parts.stride: parts.body_channels}
    backbone = Backbone(parts.body, parts.neck, body_channels, parts.neck_channels, IMAGENET_MEAN, IMAGENET_STD)
    backbone.body = apply_norm(backbone.body, spec.norm)
    backbone.freeze_stages(spec.frozen_stages, _stages(parts), spec.backbone)
    return LWDETR(parts, backbone, spec, with_usual_values(_options_of(spec)))


def _stages(parts: LWParts) -> Sequence[str]:
    """Names of the modules that end the stages of the body: its embedding, and each layer of the transformer."""
    transformer: Any = parts.body.get_submodule("backbone")
    return [
        "backbone.embeddings",
        *(f"backbone.encoder.layer.{index}" for index in range(len(transformer.encoder.layer))),
    ]


def from_checkpoint(checkpoint: Checkpoint) -> LWDETR:
    """Make a detector of a trained model of transformers.

    Args:
        checkpoint: the model, of one of `KINDS`.
    """
    model: Any = checkpoint.model
    config = model.config
    parts = lw_taken_apart(model)
    counts = {"queries": config.num_queries, "decoder_layers": config.decoder_layers, "groups": config.group_detr}
    levels = "+".join(f"P{math.log2(stride):g}" for stride in parts.neck_channels)
    of_levels = {"levels": levels} if checkpoint.kind == "lw_detr" and levels in LEVEL_CHOICES else {}
    spec = DetectorSpec(
        family=checkpoint.kind,
        backbone=checkpoint.source,
        classes=checkpoint.classes,
        size=checkpoint.size,
        max_size=checkpoint.size,
        neck_channels=int(config.d_model),
        mean=checkpoint.mean,
        std=checkpoint.std,
        options={**counts, **of_levels, "antialias": checkpoint.antialias, "config": plain(config)},
    )
    return _detector(parts, spec)
