"""Real-time detection transformers: RT-DETR, RT-DETR v2, D-FINE and DEIMv2, from the modules of transformers.

RT-DETR: Zhao et al., CVPR 2024, arXiv 2304.08069. RT-DETR v2: Lv et al., 2024, arXiv 2407.17140. D-FINE: Peng et al.,
ICLR 2025, arXiv 2410.13842. DEIMv2: Huang et al., 2025, arXiv 2509.20787.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from defeat.detector.backbone import Backbone, parameters_up_to, timm_body
from defeat.detector.base import DetectorSpec
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
from defeat.detector.set_losses import SetLosses
from defeat.detector.statistics import ObjectStatistics
from defeat.detector.transformers_models import (
    DIVISOR,
    RT_KINDS,
    Checkpoint,
    Parts,
    configuration,
    is_checkpoint,
    model_of,
    plain,
    read_checkpoint,
    taken_apart,
    with_width,
)
from defeat.detector.weights import find_weights
from defeat.errors import InputError
from defeat.types import Batch, DetectorOutput, Maps, Queries

KINDS = RT_KINDS
STRIDES = (8, 16, 32)
QUERIES = 300  # of published configurations

__all__ = ["KINDS", "DETROptions", "build", "from_checkpoint"]


@dataclass(frozen=True)
class DETROptions:
    """Options of the family; the defaults are those of the published configurations.

    `auto` options are derived from the size of the images; without data, they are the published ones.
    """

    strides: ClassVar[tuple[int, ...]] = STRIDES
    optimizer: ClassVar[str] = "adamw"  # with which all of them were published

    queries: int | Literal["auto"] = fitted_to_data(QUERIES, "{} queries")
    """Number of object queries, which is the number of predicted boxes per image."""
    decoder_layers: int | Literal["auto"] = fitted_to_data(6, "{} decoder layers", from_teacher=True)
    """Number of decoder layers."""
    denoising: int = bounded(100, 0)
    """Number of denoising queries in training, which exist for annotated objects with noise; 0 for none."""
    score_thresh: float = bounded(0.01, 0.0, 1.0)
    """Detections with a lower score are dropped."""
    detections_per_img: int = bounded(100, 1)
    """Maximum number of detections per image."""
    config: dict[str, Any] = field(default_factory=dict, metadata={"hidden": True})
    """Complete configuration of transformers, as a trained detector has it; it takes precedence."""

    def __post_init__(self) -> None:
        """Refuse invalid options."""
        require_valid(self)

    def fitted(self, statistics: ObjectStatistics, neck_channels: int) -> "DETROptions":
        """Replace `auto` by values derived from the size of the images and the width of the encoder.

        A query begins at a cell of the encoder's maps, so there are no more queries than an image has cells. A narrow
        decoder has three layers, as that of the smallest published models.
        """
        values: dict[str, Any] = {
            "queries": min(QUERIES, sum((statistics.size // stride) ** 2 for stride in STRIDES)),
            "decoder_layers": 6 if neck_channels > 128 else 3,
        }
        names = automatic(self)
        return replace(self, **{name: value for name, value in values.items() if name in names})


class DETR(SetDetector):
    """A set of object queries, refined by decoder layers; the encoder's maps are the neck."""

    def __init__(self, parts: Parts, backbone: Backbone, spec: DetectorSpec, options: DETROptions) -> None:
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
            size_divisor=DIVISOR,
            queries=int(parts.config.num_queries),
            score_thresh=options.score_thresh,
            detections_per_img=options.detections_per_img,
        )
        self.losses = SetLosses(parts.config, parts.loss)
        self.queries, self.layers = int(parts.config.num_queries), int(parts.config.decoder_layers)

    def forward_train(self, batch: Batch, negative_weight: float = 1.0) -> DetectorOutput:
        """Compute the losses and the fields that methods read.

        The losses are `classification`, `box`, `giou` and `denoising`, and where sides are distributions, `corners` and
        `corner_distillation`, each summed over the decoder's layers and the encoder.

        Args:
            batch: images with targets.
            negative_weight: weight of queries without an object in the classification loss, 0 or more.
        """
        assert self.training, "forward_train needs the training mode"
        maps = self.forward_maps(batch)
        labels = [relative_labels(target, batch) for target in batch.training_targets]
        output = self._decode(maps, labels)
        annotated = [target.annotated for target in batch.targets]
        losses = self.losses(output, labels, annotated, negative_weight)
        # Distributed training needs a gradient for every weight: without objects there is no denoising, and
        # transformers leaves out the classes of one of D-FINE's layers.
        losses["classification"] = losses["classification"] + 0 * output.intermediate_logits.sum()
        if (embedding := getattr(self.head, "denoising_class_embed", None)) is not None:
            losses["denoising"] = losses["denoising"] + 0 * embedding.weight.sum()
        return self._output(batch, losses, maps, self._queries(batch, output), _cells(output))

    def teach(self, batch: Batch, maps: Maps) -> DetectorOutput:
        """Return the feature maps, the encoder's predictions at every cell, and the queries of all layers."""
        decoder = self.head.get_submodule("decoder")
        training = decoder.training
        decoder.training = True  # of this module only: D-FINE predicts classes in all of its layers
        try:
            output = self._decode(maps)
        finally:
            decoder.training = training
        return self._output(batch, {}, maps, self._queries(batch, output), _cells(output))

    def final_predictions(self, maps: Maps) -> tuple[Tensor, Tensor]:
        """Class logits (B, Q, K) and boxes (B, Q, 4) of the last decoder layer."""
        output = self._decode(maps)
        return output.intermediate_logits[:, -1], output.intermediate_reference_points[:, -1]

    def class_rows(self) -> dict[str, Tensor]:
        """Class layers of encoder and decoder have a row per class; so has the embedding of denoising, and one more."""
        classes = torch.arange(len(self.info.classes))
        rows = {}
        for name in self.state_dict():
            layer = name.rpartition(".")[0]
            if layer == "head.enc_score_head" or layer.startswith("head.decoder.class_embed."):
                rows[name] = classes
            elif layer == "head.denoising_class_embed":
                rows[name] = torch.cat([classes, torch.tensor([len(classes)])])
        return rows

    def _decode(self, maps: Maps, labels: list[dict[str, Tensor]] | None = None) -> Any:
        """Run everything after the encoder; with labels, denoising queries come first."""
        head: Any = self.head
        levels = [level.float() for level in maps.neck.values()]
        cells = sum(level.shape[-2] * level.shape[-1] for level in levels)
        head.config.num_queries = min(self.queries, cells)
        head.encoder.maps = levels
        try:
            with torch.autocast(levels[0].device.type, enabled=False):
                return head(None, inputs_embeds=levels[0], labels=labels)
        finally:
            head.encoder.maps = []
            head.config.num_queries = self.queries

    def _queries(self, batch: Batch, output: Any) -> Queries:
        count = output.enc_topk_logits.shape[1]  # queries before the last ones are those of denoising
        logits, boxes = (
            tensor[:, -self.layers :, -count:].transpose(0, 1)  # D-FINE has an initial prediction before the layers
            for tensor in (output.intermediate_logits, output.intermediate_reference_points)
        )
        corners = output.intermediate_predicted_corners
        if isinstance(corners, Tensor):
            corners = corners[:, -self.layers :, -count:].transpose(0, 1).unflatten(-1, (4, -1))
        else:
            corners = None
        return Queries(logits, corners_in_pixels(boxes, batch.images), tensor_size(batch.images), corners)


def _cells(output: Any) -> tuple[Tensor, Tensor]:
    """Class logits (B, N, K) and boxes (B, N, 4) at the encoder's cells."""
    return output.enc_outputs_class, output.enc_outputs_coord_logits.detach().sigmoid()


def build(spec: DetectorSpec, weights: str) -> SetDetector:
    """Build a detector from its description.

    Args:
        spec: description of the detector.
        weights: weights of the backbone (see `find_weights`); or of the whole detector: a folder written by
            `save_pretrained`, or `hf:ORG/NAME`.

    Raises:
        InputError: the size or the configuration is not valid, or the weights don't match.
    """
    require_size(spec, DIVISOR)
    if weights not in ("none", "auto") and is_checkpoint(weights):
        checkpoint = read_checkpoint(weights, spec.family)
        return with_classes(from_checkpoint(checkpoint), spec, weights, _rebuilt)
    options: Any = with_usual_values(DETROptions(**spec.options))
    if options.config:
        return _configured(spec, options)
    body, channels, _, mean, std = timm_body(spec.backbone, STRIDES, find_weights(spec.backbone, weights))
    timm_network: Any = body
    indices = timm_network.feature_info.out_indices
    config = configuration(
        spec.family,
        spec.backbone,
        indices,
        list(channels.values()),
        spec.neck_channels,
        queries=options.queries,
        decoder_layers=options.decoder_layers,
        denoising=options.denoising,
    )
    pixels = (mean, std) if weights != "none" else ((0.0,) * 3, (1.0,) * 3)  # as published, without a pretrained body
    spec = replace(spec, mean=spec.mean or tuple(pixels[0]), std=spec.std or tuple(pixels[1]))
    spec = replace(spec, options={**spec.options, "config": config})
    return _configured(spec, replace(options, config=config), body)


def _rebuilt(spec: DetectorSpec) -> DETR:
    """Build a detector with random weights from a description with a complete configuration."""
    options: Any = with_usual_values(DETROptions(**spec.options))
    return _configured(spec, options)


def _configured(spec: DetectorSpec, options: DETROptions, body: nn.Module | None = None) -> DETR:
    """Build a detector from a complete configuration; its weights are random but for those of a body, if given."""
    config = options.config
    require_family(spec.family, config)
    if config.get("encoder_hidden_dim") != spec.neck_channels:
        config = with_width(config, spec.neck_channels)
        spec = replace(spec, options={**spec.options, "config": config})
    parts = taken_apart(model_of(config, spec.classes))
    if body is not None:
        parts.body.load_state_dict(body.state_dict())
    return _detector(parts, spec, options)


def _detector(parts: Parts, spec: DetectorSpec, options: DETROptions) -> DETR:
    strides = tuple(int(stride) for stride in parts.config.feat_strides)
    body_channels = dict(zip(strides, parts.body_channels, strict=False))
    neck_channels = dict.fromkeys(strides, int(parts.config.encoder_hidden_dim))
    backbone = Backbone(parts.body, parts.neck, body_channels, neck_channels, (0.0,) * 3, (1.0,) * 3)
    backbone.body = apply_norm(backbone.body, spec.norm)
    if spec.norm == "bn_eval":
        backbone.freeze_statistics(backbone.body.modules())
    stages = _stages(backbone.body)
    if not 0 <= spec.frozen_stages <= len(stages):
        raise InputError(f"--frozen-stages {spec.frozen_stages}: {spec.backbone} has {len(stages)} stages.")
    backbone.freeze(list(parameters_up_to(backbone.body, stages[: spec.frozen_stages])))
    return DETR(parts, backbone, spec, options)


def _stages(body: nn.Module) -> Sequence[str]:
    """Names of the stages of a timm network; none of another one."""
    features: Any = getattr(body, "feature_info", None)
    if features is None:
        return []
    return [str(entry["module"]) for entry in features.info]


def from_checkpoint(checkpoint: Checkpoint) -> DETR:
    """Make a detector of a trained model of transformers.

    Args:
        checkpoint: the model, of one of `KINDS`.
    """
    model: Any = checkpoint.model
    config = model.config
    spec = DetectorSpec(
        family=config.model_type,
        backbone=checkpoint.source,
        classes=checkpoint.classes,
        size=checkpoint.size,
        max_size=checkpoint.size,
        norm="frozen" if config.freeze_backbone_batch_norms else "bn",
        neck_channels=int(config.encoder_hidden_dim),
        mean=checkpoint.mean,
        std=checkpoint.std,
        options={"config": plain(config)},
    )
    options: Any = with_usual_values(DETROptions(**spec.options))
    return _detector(taken_apart(model), spec, options)
