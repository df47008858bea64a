"""LW-DETR and RF-DETR of the package transformers: their configurations, and their parts as modules.

A plain vision transformer, most of whose layers attend within windows, is the body; a projector of its maps is the
neck; and there is no encoder. transformers is imported only when one of these detectors is built or loaded.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defeat.detector.cells import cell_centres
from defeat.detector.selection import best_indices
from defeat.detector.transformers_models import plain, require_transformers, size_divisor
from defeat.errors import InputError

PATCH = 16  # pixels, of all but the first published models
NAMES = {  # bodies of published models
    "lw_detr": "vit_192x6 (tiny), vit_192x10 (small), vit_384x10 (medium and large), vit_768x10 (xlarge)",
    "rf_detr": "vit_384x12 (nano to large)",
}
WIDTHS, DEPTHS = range(16, 4097), range(2, 97)
# LW-DETR's published body of ten layers: those with a map, counted from one, and those without windows, from zero.
TEN_LAYERS = ((3, 5, 6, 10), {2, 4, 5, 8})
SCALES = {8: 2.0, 16: 1.0, 32: 0.5}  # of the projector, by stride


@dataclass(frozen=True)
class LWParts:
    """A model, taken apart.

    Attributes:
        body: computes one feature map: those of several layers of a transformer, along the channels.
        neck: computes feature maps by name from that of the body.
        head: everything after the neck.
        stride: stride of the body's map.
        body_channels: its channels.
        neck_channels: channels of the neck's maps by stride.
        divisor: sides of images are multiples of it.
        config: configuration of the model.
    """

    body: nn.Module
    neck: nn.Module
    head: "GroupedHead"
    stride: int
    body_channels: int
    neck_channels: dict[int, int]
    divisor: int
    config: Any


def lw_configuration(
    kind: str,
    backbone: str,
    size: int,
    width: int,
    *,
    strides: Sequence[int],
    queries: int,
    decoder_layers: int,
    groups: int,
) -> dict[str, Any]:
    """Configuration of a model; what is not given here is as in the published ones, or has the default of its kind.

    Args:
        kind: `lw_detr` or `rf_detr`.
        backbone: `vit_CHANNELSxLAYERS`, such as `vit_192x10`.
        size: side of images in pixels, a multiple of 32; RF-DETR has a position embedding for each of their patches.
        width: channels of neck and decoder.
        strides: strides of the neck's maps, of 8, 16 and 32; RF-DETR has 16.
        queries: number of object queries of a group.
        decoder_layers: number of decoder layers.
        groups: number of groups of queries in training.

    Raises:
        InputError: the backbone or the width is not valid, or transformers is missing.
    """
    channels, layers = _channels_and_layers(kind, backbone)
    values: dict[str, Any] = {
        **_of_width(kind, width),
        "decoder_n_points": 2 * len(strides),
        "decoder_layers": decoder_layers,
        "num_queries": queries,
        "group_detr": groups,
        "dropout": 0.0,
    }
    if kind == "rf_detr":
        values["backbone_config"] = _windowed_dino(channels, layers, size)
    else:
        values["backbone_config"] = _windowed_vit(channels, layers, size)
        values["projector_scale_factors"] = [SCALES[stride] for stride in strides]
    return plain(require_transformers(kind).AutoConfig.for_model(kind, **values))


def _channels_and_layers(kind: str, backbone: str) -> tuple[int, int]:
    match = re.fullmatch(r"vit_(\d{1,4})x(\d{1,2})", backbone)
    channels, layers = (int(match[1]), int(match[2])) if match else (0, 0)
    if channels not in WIDTHS or channels % 16 or layers not in DEPTHS:
        raise InputError(
            f"Backbone {backbone!r} is not a transformer of {kind}: give vit_CHANNELSxLAYERS, with a multiple of 16 "
            f"channels and 2 layers or more. Published: {NAMES[kind]}."
        )
    return channels, layers


def _windowed_vit(channels: int, layers: int, size: int) -> dict[str, Any]:
    """Body of LW-DETR: some layers have a map, and attend to the whole image; the others attend within windows."""
    stages = _stages(layers, 3)
    stages, whole = TEN_LAYERS if layers == 10 else (stages, {stage - 1 for stage in stages})
    windows = 4 if size % (4 * PATCH) == 0 else 2  # per side
    return {
        "model_type": "lw_detr_vit",
        "hidden_size": channels,
        "num_hidden_layers": layers,
        "num_attention_heads": 12 if channels % 192 == 0 else channels // math.gcd(channels, 32),
        "num_windows": windows**2,
        "patch_size": PATCH,
        "image_size": size,
        "window_block_indices": [layer for layer in range(layers) if layer not in whole],
        "out_indices": list(stages),
    }


def _windowed_dino(channels: int, layers: int, size: int) -> dict[str, Any]:
    """Body of RF-DETR: DINOv2 with 2 x 2 windows; four layers have a map."""
    return {
        "model_type": "rf_detr_dinov2",
        "hidden_size": channels,
        "num_hidden_layers": layers,
        "num_attention_heads": channels // math.gcd(channels, 64),
        "num_windows": 2,
        "patch_size": PATCH,
        "image_size": size,
        "out_indices": _stages(layers, 4),
        "use_mask_token": False,
    }


def _stages(layers: int, count: int) -> Sequence[int]:
    """Layers, counted from one, at equal distances; the last one is the last layer."""
    return sorted({max(1, layers * part // count) for part in range(1, count + 1)})


def with_lw_width(config: Mapping[str, Any], width: int) -> dict[str, Any]:
    """A configuration with other channels in neck and decoder."""
    return {**config, **_of_width(str(config["model_type"]), width)}


def _of_width(kind: str, width: int) -> dict[str, Any]:
    """Values that follow the channels of neck and decoder: with 256 and 384 channels, those of the published models."""
    if width % 4:
        raise InputError(f"--neck-channels of {kind} must be a multiple of 4, not {width}.")
    return {
        "d_model": width,
        "decoder_ffn_dim": min(2048, 8 * width),
        "decoder_self_attention_heads": width // math.gcd(width, 32),
        "decoder_cross_attention_heads": width // math.gcd(width, 16),
    }


def _kept_positions(embeddings: Any, tokens: Tensor, height: int, width: int) -> Tensor:
    """Position embeddings for an image; without gradient, those of the last size are kept.

    So they are resized once, and an exported file contains the result: ONNX has no such resizing.
    """
    resize = type(embeddings).interpolate_pos_encoding
    if torch.is_grad_enabled():
        resized: Tensor = resize(embeddings, tokens, height, width)
        return resized
    table = embeddings.position_embeddings
    key = (int(height), int(width), table._version, table.data_ptr())
    kept = getattr(embeddings, "kept_positions", None)
    if kept is None or kept[0] != key:
        kept = key, resize(embeddings, tokens, height, width)
        embeddings.kept_positions = kept
    positions: Tensor = kept[1]
    return positions


class WindowedBody(nn.Module):
    """A vision transformer with windows, whose maps of several layers are one, along the channels.

    Images of other sides are padded with zeros on the right and below, to sides that can be divided into windows, and
    to a square where the transformer needs one; the map is that of the image alone.

    Args:
        backbone: the transformer.
        patch: side of its patches in pixels, the stride of its maps.
        divisor: sides that can be divided into windows are multiples of it.
        square: whether it needs a square. In transformers, that of RF-DETR exchanges height and width of windows.
    """

    def __init__(self, backbone: nn.Module, patch: int, divisor: int, square: bool) -> None:
        super().__init__()
        self.backbone, self.patch, self.divisor, self.square = backbone, patch, divisor, square

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute one feature map (B, C, H / patch, W / patch) of images (B, 3, H, W)."""
        height, width = images.shape[-2:]
        lower, right = (-(-side // self.divisor) * self.divisor for side in (height, width))
        if self.square:
            lower = right = max(lower, right)
        maps = self.backbone(F.pad(images, (0, right - width, 0, lower - height))).feature_maps
        rows, columns = (-(-side // self.patch) for side in (height, width))
        return [torch.cat(list(maps), dim=1)[..., :rows, :columns]]


class ProjectorNeck(nn.Module):
    """The projector, which computes each level of the neck from all maps of the transformer.

    Args:
        projector: of the model.
        count: number of maps of the transformer.
    """

    def __init__(self, projector: nn.Module, count: int) -> None:
        super().__init__()
        self.projector, self.count = projector, count

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute feature maps (B, C, H, W), finest first, from the one map of the body."""
        (features,) = maps.values()
        levels = self.projector(features.chunk(self.count, dim=1))
        levels = [levels] if isinstance(levels, Tensor) else levels
        return {str(index): level for index, level in enumerate(levels)}


@dataclass(frozen=True)
class GroupedPredictions:
    """Predictions for a batch. Boxes have centre and size, relative to the batch's tensor. G groups of Q queries.

    Attributes:
        logits: (B, L, G * Q, K) class logits of each decoder layer, the queries of the first group first.
        boxes: (B, L, G * Q, 4) boxes of each decoder layer.
        first_logits: (B, G * Q, K) class logits of the cells where the queries begin.
        first_boxes: (B, G * Q, 4) their boxes.
        cell_logits: (B, N, K) class logits of all cells, of the first group.
        cell_boxes: (B, N, 4) their boxes.
        groups: G.
    """

    logits: Tensor
    boxes: Tensor
    first_logits: Tensor
    first_boxes: Tensor
    cell_logits: Tensor
    cell_boxes: Tensor
    groups: int


class GroupedHead(nn.Module):
    """Decoder with groups of queries, which share its weights and do not see each other (Group DETR, arXiv 2207.13085).

    In training there are several groups, each of which learns all objects; in eval mode there is the first one. A query
    begins with the box of one of the best cells of the neck's maps, and a learned feature.

    Args:
        model: a model of transformers, whose modules it takes.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        inner = model.model
        self.decoder = inner.decoder
        self.enc_output, self.enc_output_norm = inner.enc_output, inner.enc_output_norm
        self.enc_out_class_embed, self.enc_out_bbox_embed = inner.enc_out_class_embed, inner.enc_out_bbox_embed
        self.reference_point_embed, self.query_feat = inner.reference_point_embed, inner.query_feat
        self.class_embed, self.bbox_embed = model.class_embed, model.bbox_embed
        self.queries, self.groups = int(model.config.num_queries), int(model.config.group_detr)

    def forward(self, levels: list[Tensor]) -> GroupedPredictions:
        """Compute predictions from the neck's maps (B, C, H, W), finest first.

        There are no more queries than cells.
        """
        memory = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)  # (B, N, C)
        anchors, inside = cell_anchors([(level.shape[-2], level.shape[-1]) for level in levels], memory)
        groups, count = self.groups if self.training else 1, min(self.queries, len(anchors))
        cells = [self._cells(group, memory * inside, anchors) for group in range(groups)]
        first = [_best(logits, boxes, inside, count) for logits, boxes in cells]
        first_logits, first_boxes = (torch.cat(parts, dim=1) for parts in zip(*first, strict=True))
        rows = torch.arange(self.groups * self.queries, device=memory.device)
        rows = rows.view(self.groups, self.queries)[:groups, :count].flatten()
        features, offsets = self.query_feat(rows), self.reference_point_embed(rows)
        references = refined(first_boxes.detach(), offsets)  # (B, G * Q, 4)
        hidden = self._decoded(features.expand(len(memory), -1, -1), references, memory, levels)
        return GroupedPredictions(
            logits=self.class_embed(hidden).transpose(0, 1),
            boxes=refined(references, self.bbox_embed(hidden)).transpose(0, 1),
            first_logits=first_logits,
            first_boxes=first_boxes,
            cell_logits=cells[0][0],
            cell_boxes=cells[0][1],
            groups=groups,
        )

    def _cells(self, group: int, memory: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (B, N, K) and boxes (B, N, 4) of all cells."""
        features = self.enc_output_norm[group](self.enc_output[group](memory))
        deltas = self.enc_out_bbox_embed[group](features)
        return self.enc_out_class_embed[group](features), refined(anchors, deltas)

    def _decoded(self, features: Tensor, references: Tensor, memory: Tensor, levels: list[Tensor]) -> Tensor:
        """Features of the queries after each layer of the decoder, (L, B, G * Q, C)."""
        shapes = [(level.shape[-2], level.shape[-1]) for level in levels]
        sizes = torch.tensor(shapes, device=memory.device)
        starts = torch.cat([sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]])
        hidden: Tensor = self.decoder(
            inputs_embeds=features,
            reference_points=references,
            spatial_shapes=sizes,
            spatial_shapes_list=shapes,
            level_start_index=starts,
            valid_ratios=memory.new_ones(len(memory), len(levels), 2),
            encoder_hidden_states=memory,
        ).intermediate_hidden_states
        return hidden


def cell_anchors(shapes: Sequence[tuple[int, int]], like: Tensor) -> tuple[Tensor, Tensor]:
    """Box at each cell, with sides of 0.05 on the finest level and twice as much on each coarser one.

    Args:
        shapes: height and width of each level.
        like: tensor with the type and device of the result.

    Returns:
        Centres and sizes (N, 4) relative to the image; and whether the cells predict something, (N, 1): those whose
        centre is nearer to the border than 0.01, or whose box is larger than 0.99, don't, and have empty boxes.
    """
    boxes = []
    for level, (height, width) in enumerate(shapes):
        centres = cell_centres((height, width), like.device).to(like.dtype)
        boxes.append(torch.cat([centres, torch.full_like(centres, 0.05 * 2**level)], dim=1))
    anchors = torch.cat(boxes)
    inside = ((anchors > 0.01) & (anchors < 0.99)).all(dim=1, keepdim=True)
    return anchors * inside, inside


def refined(boxes: Tensor, deltas: Tensor) -> Tensor:
    """Boxes (..., 4), centre and size, moved by deltas (..., 4): shifts relative to the size, and its logarithm."""
    centres, sizes = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centres + deltas[..., :2] * sizes, deltas[..., 2:].exp() * sizes], dim=-1)


def _best(logits: Tensor, boxes: Tensor, inside: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Class logits (B, Q, K) and boxes (B, Q, 4) of the cells with the highest scores."""
    scores = logits.detach().amax(dim=-1).masked_fill(~inside[:, 0], -torch.inf)
    best = best_indices(scores, count)[..., None]  # (B, Q, 1)
    return tuple(  # type: ignore[return-value] # of two
        values.gather(1, best.expand(-1, -1, values.shape[-1])) for values in (logits, boxes)
    )


def lw_taken_apart(model: Any) -> LWParts:
    """Separate a model into body, neck and head, which then own its modules.

    Layers of the transformer behind its last map are dropped: they have no effect, and would have no gradient.

    Args:
        model: an LW-DETR or RF-DETR of `model_of` or `read_checkpoint`; it can't be used afterwards.
    """
    config, holder = model.config, model.model.backbone
    transformer, body_config = holder.backbone, config.backbone_config
    stages = body_config.out_indices
    del transformer.encoder.layer[max(stages) :]
    embeddings = transformer.embeddings
    if isinstance(token := getattr(embeddings, "mask_token", None), nn.Parameter):  # of pretraining only
        del embeddings.mask_token
        embeddings.register_buffer("mask_token", token.detach().clone())
    if hasattr(embeddings, "interpolate_pos_encoding"):
        embeddings.interpolate_pos_encoding = MethodType(_kept_positions, embeddings)
    patch, divisor = int(body_config.patch_size), size_divisor(config)
    scales = getattr(config, "projector_scale_factors", None) or [1.0]
    return LWParts(
        body=WindowedBody(transformer, patch, divisor, square=config.model_type == "rf_detr"),
        neck=ProjectorNeck(holder.projector, len(stages)),
        head=GroupedHead(model),
        stride=patch,
        body_channels=body_config.hidden_size * len(stages),
        neck_channels={round(patch / scale): int(config.d_model) for scale in scales},
        divisor=divisor,
        config=config,
    )
