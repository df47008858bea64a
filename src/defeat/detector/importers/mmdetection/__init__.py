"""Checkpoints of MMDetection 2 and 3: Faster R-CNN, RetinaNet, FCOS and GFL on ResNets with a feature pyramid.

What the weights don't tell, such as the style of the ResNet, is read from the configuration that the checkpoint
contains, or else is as in the configurations of MMDetection's model zoo.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from defeat.detector.backbone import CAFFE
from defeat.detector.base import DetectorSpec
from defeat.detector.foreign_weights import Imported, Source, renamed, resnet_of
from defeat.detector.importers.mmdetection.config import Config
from defeat.detector.importers.mmdetection.heads import HEADS, Head
from defeat.errors import InputError, unknown_name

NAME = "MMDetection"
RULES = (  # of backbone and neck, for all architectures
    (r"backbone\.((?:conv1|bn1|layer\d)\..*)", r"backbone.body.\1"),
    (r"neck\.lateral_convs\.(\d+)\.conv\.(weight|bias)", r"backbone.fpn.inner_blocks.\1.0.\2"),
    (r"neck\.fpn_convs\.([0-2])\.conv\.(weight|bias)", r"backbone.fpn.layer_blocks.\1.0.\2"),
)
# Mean and standard deviation of the input in 0..255, and whether they are those of B, G, R.
IMAGENET = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375], False)
CAFFE_PIXELS = {
    "fcos": ([102.9801, 115.9465, 122.7717], [1.0, 1.0, 1.0], True),
    "": ([103.53, 116.28, 123.675], [1.0, 1.0, 1.0], True),
}
SIZE = (800, 1333)
GROUPS = 32  # of group normalisation in heads


def recognised(names: Sequence[str]) -> bool:
    """Whether these are names of MMDetection's tensors."""
    return any(name.startswith(("bbox_head.", "rpn_head.", "roi_head.", "neck.")) for name in names)


def read(source: Source) -> Imported:
    """Describe a checkpoint as a detector of ours.

    Args:
        source: the checkpoint.

    Raises:
        InputError: it is from MMDetection 1, or has parts that our families don't have.
    """
    meta = source.content.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    _require_version(source, meta)
    config = _config(source, meta)
    head = _head(source)
    config.require("model.backbone.type", "ResNet")
    config.require("model.neck.type", "FPN")
    state, origins = renamed(source, [*RULES, *head.rules])
    style = _style(source, config)
    backbone = resnet_of(state, source.path, style)
    mean, std, reverse = _pixels(source, config, head.family, style)
    if reverse:
        conv = "backbone.body.conv1.weight"
        if conv in state:
            state[conv] = state[conv].flip(1)
        mean, std = mean[::-1], std[::-1]
    neck = source.rows("neck.lateral_convs.0.conv.weight")
    if head.grouped:
        config.require("model.bbox_head.norm_cfg.type", "GN")
        config.require("model.bbox_head.norm_cfg.num_groups", GROUPS)
        if neck < 2 * GROUPS:
            raise InputError(f"{source.path}: heads of {neck} channels in {GROUPS} groups can't be imported.")
    size = _size(source, config)
    spec = DetectorSpec(
        head.family,
        backbone,
        source.names(head.class_count(source), _classes(meta)),
        size=size[0],
        max_size=size[1],
        norm=_norm(config, backbone),
        neck_channels=neck,
        mean=tuple(value / 255 for value in mean),
        std=tuple(value / 255 for value in std),
        options={"antialias": False, **head.options(source, config)},
    )
    return Imported(spec, head.converted(state), origins, _notes(config, spec, style))


def _require_version(source: Source, meta: Mapping[str, Any]) -> None:
    """Refuse checkpoints of MMDetection 1, whose layers have other names, or other anchors under the same names."""
    version = str(meta.get("mmdet_version", ""))
    names = source.tensors
    old = version.startswith(("0.", "1."))
    if not re.match(r"\d", version):
        old = "bbox_head.fc_cls.weight" in names or "bbox_head.fcos_cls.weight" in names
    if old:
        raise InputError(
            f"{source.path} is a checkpoint of MMDetection 1, which has other anchors and another order of classes: "
            "train it with version 2 or 3, or convert it with the tools of MMDetection 2."
        )


def _config(source: Source, meta: Mapping[str, Any]) -> Config:
    text = source.config if source.config is not None else meta.get("cfg", meta.get("config"))
    return Config.of(text, str(source.path)) if isinstance(text, str) else Config({}, str(source.path))


def _head(source: Source) -> Head:
    """The architecture, recognised from a tensor that only it has."""
    if any(name.startswith("mask_head.") or ".mask_head." in name for name in source.tensors):
        raise InputError(f"{source.path} also predicts masks; only detectors of boxes can be imported.")
    family = next((family for family, head in HEADS.items() if head.recognised(source)), None)
    if source.detector is not None:
        if source.detector not in HEADS:
            raise unknown_name(f"detector of {NAME}", source.detector, HEADS)
        if family not in (None, source.detector):
            raise InputError(f"{source.path} is a {family}, not a {source.detector}.")
    if family is None:
        layers = sorted({name.rpartition(".")[0] for name in source.tensors if "head." in name})
        raise InputError(
            f"{source.path} is none of {NAME}'s {', '.join(HEADS)}: its head has the layers {', '.join(layers[:5])}."
        )
    return HEADS[family]


def _style(source: Source, config: Config) -> str:
    config.require("model.backbone.style", "pytorch", "caffe")
    return source.style if source.style != "auto" else str(config.get("model.backbone.style", "pytorch"))


def _pixels(source: Source, config: Config, family: str, style: str) -> tuple[list[float], list[float], bool]:
    """Mean and standard deviation in 0..255, and whether the network's input is B, G, R."""
    usual = CAFFE_PIXELS.get(family, CAFFE_PIXELS[""]) if style == "caffe" else IMAGENET
    given = config.first("img_norm_cfg", "model.data_preprocessor")
    if not isinstance(given, Mapping) or "mean" not in given:
        return usual
    mean, std = (_colour(source, given.get(name, usual[place])) for place, name in enumerate(("mean", "std")))
    rgb = given.get("to_rgb", given.get("bgr_to_rgb", True))
    return mean, std, not rgb


def _colour(source: Source, values: Any) -> list[float]:
    if not isinstance(values, list) or len(values) != 3 or not all(type(value) in (int, float) for value in values):
        raise InputError(f"{source.path}: mean and std of its configuration must be three numbers each.")
    return [float(value) for value in values]


def _size(source: Source, config: Config) -> tuple[int, int]:
    short, long = config.input_size() or SIZE
    if source.size is not None:
        short, long = source.size, round(source.size * long / short)
    return short, source.max_size or long


def _norm(config: Config, backbone: str) -> str:
    """Batch normalisation with fixed statistics; `caffe` style was trained with fixed weights of it, too."""
    config.require("model.backbone.norm_cfg.type", "BN", "SyncBN")
    trained = config.get("model.backbone.norm_cfg.requires_grad", not backbone.endswith(CAFFE))
    return "bn_eval" if trained else "frozen"


def _classes(meta: Mapping[str, Any]) -> Sequence[str] | None:
    dataset = meta.get("dataset_meta")
    dataset = dataset if isinstance(dataset, Mapping) else {}
    names = dataset.get("classes", dataset.get("CLASSES", meta.get("CLASSES")))
    if isinstance(names, str):
        return [names]
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        return names
    return None


def _notes(config: Config, spec: DetectorSpec, style: str) -> tuple[str, ...]:
    if config.content:
        return ()
    return (
        f"The checkpoint contains no configuration. Assumed is that of {NAME}'s model zoo: {spec.family}, ResNet of "
        f"style {style}, input {spec.size} x {spec.max_size}. Give the file that {NAME} wrote beside it with "
        "--tool-config where it differs.",
    )
