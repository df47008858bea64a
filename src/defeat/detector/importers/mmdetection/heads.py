"""The heads of MMDetection: names of their tensors, and the options with which our families compute the same boxes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from defeat.detector.foreign_weights import Source, map_rows
from defeat.detector.importers.mmdetection.config import Config
from defeat.errors import InputError

RATIOS = [0.5, 1.0, 2.0]
STRIDES = [8, 16, 32, 64, 128]
FASTER_RCNN_STRIDES = [4, 8, 16, 32, 64]
ANCHORS = 9  # of RetinaNet, per cell
# Published options of our families; the names of those of the two anchor-based ones are equal.
EXACT = {"round_anchors": False, "exact_strides": True, "limited_shrinking": True, "initialisation": "published"}
UPPER_LEVELS = (
    (r"neck\.fpn_convs\.3\.conv\.(weight|bias)", r"backbone.fpn.extra_blocks.p6.\1"),
    (r"neck\.fpn_convs\.4\.conv\.(weight|bias)", r"backbone.fpn.extra_blocks.p7.\1"),
)
BRANCHES = (("cls_convs", "classification_head"), ("reg_convs", "regression_head"))
# Towers of convolution, group normalisation and ReLU, in a row.
GROUPED_TOWERS = tuple(
    (rf"bbox_head\.{branch}\.{index}\.{layer}\.(weight|bias)", rf"head.{head}.conv.{3 * index + place}.\1")
    for branch, head in BRANCHES
    for index in range(8)
    for place, layer in enumerate(("conv", "gn"))
)


@dataclass(frozen=True)
class Head:
    """An architecture.

    Attributes:
        family: our family.
        layers: names of its classification layer in different versions, which no other one has.
        rules: see `renamed`, for everything but backbone and the first levels of the neck.
        class_count: number of classes of a checkpoint.
        options: options of our family for a checkpoint and its configuration.
        converted: changes the renamed tensors to those of our family.
        grouped: whether it has group normalisation.
    """

    family: str
    layers: tuple[str, ...]
    rules: tuple[tuple[str, str], ...]
    class_count: Callable[[Source], int]
    options: Callable[[Source, Config], dict[str, Any]]
    converted: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    grouped: bool = False

    def recognised(self, source: Source) -> bool:
        """Whether a checkpoint has this architecture."""
        return any(name.rpartition(".")[0] in self.layers for name in source.tensors)


def _faster_rcnn_options(source: Source, config: Config) -> dict[str, Any]:
    config.require("model.rpn_head.anchor_generator.ratios", RATIOS)
    config.require("model.rpn_head.anchor_generator.strides", FASTER_RCNN_STRIDES)
    config.require("model.rpn_head.bbox_coder.target_stds", [1.0] * 4)
    head, pooling = "model.roi_head.bbox_head", "model.roi_head.bbox_roi_extractor"
    config.require(f"{head}.bbox_coder.target_stds", [0.1, 0.1, 0.2, 0.2])
    config.require(f"{pooling}.roi_layer.type", "RoIAlign")
    config.require(f"{pooling}.roi_layer.output_size", 7)
    config.require(f"{pooling}.roi_layer.aligned", True)
    config.require(f"{pooling}.finest_scale", 56)
    scales = config.get("model.rpn_head.anchor_generator.scales", [8])
    if not isinstance(scales, list) or len(scales) != 1:
        raise InputError(f"{source.path}: only one scale of anchors per level works, not {scales}.")
    rpn, rcnn = (_test_config(config, part) for part in ("rpn", "rcnn"))
    threshold = config.number(*_paths(rpn, "nms.iou_threshold", "nms_thr"), default=0.7)
    if threshold != 0.7:
        raise InputError(f"{source.path}: only a threshold of 0.7 in the RPN works, not {threshold}.")
    for path in rcnn:
        config.require(f"{path}.nms.type", "nms")
    for path in rpn:
        config.require(f"{path}.nms_across_levels", False)
    return {
        **EXACT,
        "anchor_sizes": [scales[0] * stride for stride in FASTER_RCNN_STRIDES],
        "aligned_pooling": True,
        "smallest_proposal": 1e-9,
        "sampling_ratio": config.number(
            f"{pooling}.roi_layer.sampling_ratio", f"{pooling}.roi_layer.sample_num", default=0
        ),
        "box_loss": "l1",
        "box_representation_size": int(source.tensor("roi_head.bbox_head.fc_cls.weight").shape[-1]),
        "rpn_pre_nms_top_n_test": config.number(*_paths(rpn, "nms_pre"), default=1000),
        "rpn_post_nms_top_n_test": config.number(*_paths(rpn, "max_per_img", "max_num"), default=1000),
        "box_score_thresh": config.number(*_paths(rcnn, "score_thr"), default=0.05),
        "box_nms_thresh": config.number(*_paths(rcnn, "nms.iou_threshold", "nms.iou_thr"), default=0.5),
        "box_detections_per_img": config.number(*_paths(rcnn, "max_per_img"), default=100),
    }


def _faster_rcnn(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The background is the last class there and the first one here; it has no box there."""
    predictor = "roi_heads.box_predictor"
    map_rows(state, f"{predictor}.cls_score", lambda rows: rows.roll(1, 0))
    map_rows(state, f"{predictor}.bbox_pred", lambda rows: torch.cat([torch.zeros_like(rows[:4]), rows]))
    return state


def _retinanet_options(source: Source, config: Config) -> dict[str, Any]:
    anchors = "model.bbox_head.anchor_generator"
    config.require(f"{anchors}.ratios", RATIOS)
    config.require(f"{anchors}.strides", STRIDES)
    config.require(f"{anchors}.scales_per_octave", 3)
    config.require("model.bbox_head.bbox_coder.target_stds", [1.0] * 4)
    base = config.number(f"{anchors}.octave_base_scale", default=4)
    return {
        **EXACT,
        "anchor_sizes": [base * stride for stride in STRIDES],
        "p6_source": "body" if _extra_convs(source, config, "on_input") == "on_input" else "neck",
        "p6_activation": _activation(config, default=False),
        "loss_average": "batch",
        "head_norm": "none",
        **_selection(config, nms=0.5),
    }


def _fcos_options(source: Source, config: Config) -> dict[str, Any]:
    config.require("model.bbox_head.strides", STRIDES)
    _extra_convs(source, config, "on_output", refuse_others=True)
    head = "model.bbox_head"
    return {
        "points": "centres",
        "score": "product",
        "level_scales": True,
        "distances": "linear" if config.get(f"{head}.norm_on_bbox", False) else "exponential",
        "centerness_branch": "boxes" if config.get(f"{head}.centerness_on_reg", False) else "classes",
        "center_sampling_radius": config.number(f"{head}.center_sample_radius", default=1.5),
        "p6_activation": _activation(config, default=True),
        **_selection(config, nms=0.5),
    }


def _gfl_options(source: Source, config: Config) -> dict[str, Any]:
    anchors = "model.bbox_head.anchor_generator"
    config.require(f"{anchors}.strides", STRIDES)
    config.require(f"{anchors}.center_offset", 0.0)
    _extra_convs(source, config, "on_output", refuse_others=True)
    reg_max = source.rows("bbox_head.gfl_reg.weight") // 4 - 1
    values = source.tensors.get("bbox_head.integral.project")
    if values is not None and not torch.equal(values, torch.linspace(0, reg_max, reg_max + 1)):
        raise InputError(f"{source.path}: bbox_head.integral.project is not 0 to {reg_max}; other values don't work.")
    return {
        "reg_max": reg_max,
        "anchor_scale": float(config.number(f"{anchors}.octave_base_scale", default=8)),
        "p6_activation": _activation(config, default=False),
        **_selection(config, nms=0.6),
    }


def _with_towers(state: dict[str, Tensor], scales: str) -> dict[str, Tensor]:
    """Join the factors of the levels, and give convolutions before group normalisation a bias of zero."""
    factors = [state.pop(f"scales.{level}", None) for level in range(len(STRIDES))]
    present = [factor for factor in factors if factor is not None]
    if len(present) == len(STRIDES):
        state[scales] = torch.stack([factor.reshape(()) for factor in present])
    for _, head in BRANCHES:
        for index in range(0, 24, 3):
            weight = state.get(f"head.{head}.conv.{index}.weight")
            if weight is not None:
                state.setdefault(f"head.{head}.conv.{index}.bias", weight.new_zeros(len(weight)))
    return state


def _extra_convs(source: Source, config: Config, usual: str, refuse_others: bool = False) -> str:
    """Where the convolution of P6 has its input: `on_input` (the body) or `on_output` (the neck).

    Raises:
        InputError: elsewhere, or where it must not.
    """
    value = config.get("model.neck.add_extra_convs", usual)
    if value is True:  # the older form has its own option for the input
        on_input = config.get("model.neck.extra_convs_on_inputs", True)
        value = "on_input" if on_input else "on_output"
    if value not in ("on_input", "on_output") or (refuse_others and value != usual):
        raise InputError(f"{source.path}: the neck's add_extra_convs is {value}; only {usual} works for this detector.")
    p6 = source.tensor("neck.fpn_convs.3.conv.weight")
    body = source.tensor("neck.lateral_convs.2.conv.weight").shape[1]
    if p6.ndim == 4 and body != p6.shape[0]:  # the number of channels tells
        value = "on_input" if p6.shape[1] == body else "on_output"
    return str(value)


def _activation(config: Config, default: bool) -> bool:
    return bool(config.get("model.neck.relu_before_extra_convs", False if config.content else default))


def _selection(config: Config, nms: float) -> dict[str, Any]:
    """Options of the selection of detections."""
    test = ["model.test_cfg", "test_cfg"]
    for path in test:
        config.require(f"{path}.nms.type", "nms")
    return {
        "score_thresh": config.number(*_paths(test, "score_thr"), default=0.05),
        "nms_thresh": config.number(*_paths(test, "nms.iou_threshold", "nms.iou_thr"), default=nms),
        "detections_per_img": config.number(*_paths(test, "max_per_img"), default=100),
        "topk_candidates": config.number(*_paths(test, "nms_pre"), default=1000),
    }


def _test_config(config: Config, part: str) -> list[str]:
    """Paths of the settings of a stage in prediction."""
    return [f"model.test_cfg.{part}", f"test_cfg.{part}"]


def _paths(starts: list[str], *ends: str) -> list[str]:
    return [f"{start}.{end}" for start in starts for end in ends]


HEADS = {
    "faster_rcnn": Head(
        "faster_rcnn",
        ("roi_head.bbox_head.fc_cls",),
        (
            (r"neck\.fpn_convs\.3\.conv\.(weight|bias)", r"backbone.fpn.layer_blocks.3.0.\1"),
            (r"rpn_head\.rpn_conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
            (r"rpn_head\.rpn_cls\.(weight|bias)", r"rpn.head.cls_logits.\1"),
            (r"rpn_head\.rpn_reg\.(weight|bias)", r"rpn.head.bbox_pred.\1"),
            (r"roi_head\.bbox_head\.shared_fcs\.0\.(weight|bias)", r"roi_heads.box_head.fc6.\1"),
            (r"roi_head\.bbox_head\.shared_fcs\.1\.(weight|bias)", r"roi_heads.box_head.fc7.\1"),
            (r"roi_head\.bbox_head\.fc_cls\.(weight|bias)", r"roi_heads.box_predictor.cls_score.\1"),
            (r"roi_head\.bbox_head\.fc_reg\.(weight|bias)", r"roi_heads.box_predictor.bbox_pred.\1"),
        ),
        lambda source: source.rows("roi_head.bbox_head.fc_cls.weight") - 1,
        _faster_rcnn_options,
        _faster_rcnn,
    ),
    "retinanet": Head(
        "retinanet",
        ("bbox_head.retina_cls",),
        (
            *UPPER_LEVELS,
            *(
                (rf"bbox_head\.{branch}\.(\d+)\.conv\.(weight|bias)", rf"head.{head}.conv.\1.0.\2")
                for branch, head in BRANCHES
            ),
            (r"bbox_head\.retina_cls\.(weight|bias)", r"head.classification_head.cls_logits.\1"),
            (r"bbox_head\.retina_reg\.(weight|bias)", r"head.regression_head.bbox_reg.\1"),
        ),
        lambda source: source.rows("bbox_head.retina_cls.weight") // ANCHORS,
        _retinanet_options,
        lambda state: state,
    ),
    "fcos": Head(
        "fcos",
        ("bbox_head.conv_cls", "bbox_head.fcos_cls"),  # the second in the first releases of version 2
        (
            *UPPER_LEVELS,
            *GROUPED_TOWERS,
            (r"bbox_head\.(?:conv|fcos)_cls\.(weight|bias)", r"head.classification_head.cls_logits.\1"),
            (r"bbox_head\.(?:conv|fcos)_reg\.(weight|bias)", r"head.regression_head.bbox_reg.\1"),
            (r"bbox_head\.(?:conv|fcos)_centerness\.(weight|bias)", r"head.regression_head.bbox_ctrness.\1"),
            (r"bbox_head\.scales\.(\d+)\.scale", r"scales.\1"),
        ),
        lambda source: source.rows(f"bbox_head.{_fcos_prefix(source)}_cls.weight"),
        _fcos_options,
        lambda state: _with_towers(state, "head.scales"),
        grouped=True,
    ),
    "gfl": Head(
        "gfl",
        ("bbox_head.gfl_cls",),
        (
            *UPPER_LEVELS,
            *GROUPED_TOWERS,
            (r"bbox_head\.gfl_cls\.(weight|bias)", r"head.classification_head.cls_logits.\1"),
            (r"bbox_head\.gfl_reg\.(weight|bias)", r"head.regression_head.bbox_reg.\1"),
            (r"bbox_head\.scales\.(\d+)\.scale", r"scales.\1"),
            (r"bbox_head\.integral\.project", ""),  # the whole numbers from 0 to reg_max
        ),
        lambda source: source.rows("bbox_head.gfl_cls.weight"),
        _gfl_options,
        lambda state: _with_towers(state, "head.regression_head.scales"),
        grouped=True,
    ),
}


def _fcos_prefix(source: Source) -> str:
    return "conv" if "bbox_head.conv_cls.weight" in source.tensors else "fcos"
