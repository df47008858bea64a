"""State dicts of torchvision's Faster R-CNN, RetinaNet and FCOS, on any of its ResNets with a feature pyramid."""

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torchvision.models import get_model_weights

from defeat.detector.base import DetectorSpec
from defeat.detector.foreign_weights import COUNTER, Imported, Source, map_rows, renamed, resnet_of
from defeat.errors import InputError, unknown_name

NAME = "torchvision"
CLASSES = "head.classification_head.cls_logits"
ANCHORS = 9  # of RetinaNet, per cell
SIZE = (800, 1333)
# By architecture: our family, and a layer that only it has.
DETECTORS = {
    "fasterrcnn_resnet50_fpn": ("faster_rcnn", "roi_heads.box_head.fc6.weight"),
    "fcos_resnet50_fpn": ("fcos", "head.regression_head.bbox_ctrness.weight"),
    "retinanet_resnet50_fpn_v2": ("retinanet", "head.classification_head.conv.0.1.weight"),
    "retinanet_resnet50_fpn": ("retinanet", CLASSES + ".weight"),
}


def recognised(names: Sequence[str]) -> bool:
    """Whether these are names of torchvision's tensors."""
    return any(name.startswith("backbone.body.") for name in names)


def read(source: Source) -> Imported:
    """Describe a state dict as a detector of ours.

    torchvision's class 0 is the background. One-stage detectors have a row for it, too, which is never detected here,
    and left out.

    Args:
        source: the file.

    Raises:
        InputError: it is another detector than given, or has parts that our families don't have.
    """
    name = _architecture(source)
    family = DETECTORS[name][0]
    state, origins = renamed(source, [(r"(.*\.(?:inner_blocks|layer_blocks)\.\d+)\.(weight|bias)", r"\1.0.\2"), *_KEEP])
    if family == "faster_rcnn":
        count = source.rows("roi_heads.box_predictor.cls_score.weight") - 1
    else:
        per_cell = ANCHORS if family == "retinanet" else 1
        rows = source.rows(CLASSES + ".weight")
        count = rows // per_cell - 1

        def without_background(tensor: Tensor) -> Tensor:
            kept: Tensor = tensor.unflatten(0, (per_cell, -1))[:, 1:].flatten(0, 1)
            return kept

        if rows % per_cell == 0:
            map_rows(state, CLASSES, without_background)
    frozen = not any(name.endswith(COUNTER) for name in source.tensors)
    short, long = source.size or SIZE[0], source.max_size
    spec = DetectorSpec(
        family,
        resnet_of(state, source.path, "pytorch"),
        source.names(count, _published_classes(name, count)),
        size=short,
        max_size=long or round(short * SIZE[1] / SIZE[0]),
        norm="frozen" if frozen else "bn",
        neck_channels=_neck_channels(source),
        options=_options(name, source),
    )
    notes = [f"Assumed are torchvision's usual anchors and thresholds, and an input of {spec.size} x {spec.max_size}."]
    if source.classes is None:
        notes.append("The classes are those of COCO as torchvision numbers them; give others with --classes.")
    return Imported(spec, state, origins, tuple(notes))


_KEEP = ((r"((?:backbone|rpn|roi_heads|head)\..*)", r"\1"),)


def _architecture(source: Source) -> str:
    detector = next((name for name, (_, layer) in DETECTORS.items() if layer in source.tensors), None)
    if "roi_heads.box_head.0.0.weight" in source.tensors:
        raise InputError(
            f"{source.path} is torchvision's fasterrcnn_resnet50_fpn_v2, whose layers this library can't save: give "
            f"--teacher torchvision:fasterrcnn_resnet50_fpn_v2 --teacher-weights {source.path} instead of importing it."
        )
    if source.detector is not None and source.detector not in DETECTORS:
        raise unknown_name("torchvision detector", source.detector, DETECTORS)
    if detector is None:
        raise InputError(f"{source.path} is none of torchvision's {', '.join(DETECTORS)}.")
    if source.detector not in (None, detector):
        raise InputError(f"{source.path} is a {detector}, not a {source.detector}.")
    return detector


def _neck_channels(source: Source) -> int:
    old = "backbone.fpn.inner_blocks.0.weight"  # of torchvision before 0.13
    return source.rows(old if old in source.tensors else "backbone.fpn.inner_blocks.0.0.weight")


def _options(name: str, source: Source) -> dict[str, Any]:
    options: dict[str, Any] = {"antialias": False}
    if name.startswith("retinanet"):
        options["head_norm"] = "gn" if name.endswith("v2") else "none"
        p6 = source.tensor("backbone.fpn.extra_blocks.p6.weight")
        options["p6_source"] = "neck" if p6.shape[0] == p6.shape[1] else "body"
    if name.startswith("fasterrcnn"):
        options["box_representation_size"] = source.rows("roi_heads.box_head.fc6.weight")
    return options


def _published_classes(name: str, count: int) -> tuple[str, ...] | None:
    """Names of the published classes, without the background, where there are as many; gaps are numbered."""
    categories = list(get_model_weights(name).DEFAULT.meta["categories"])[1:]
    if len(categories) != count:
        return None
    return tuple(
        f"{category} {number}" if re.match("N/A", category) else category
        for number, category in enumerate(categories, start=1)
    )
