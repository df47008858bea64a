"""Checkpoints of Detectron2: Faster R-CNN and RetinaNet on ResNets with a feature pyramid."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.models import get_model_weights

from defeat.detector.backbone import CAFFE
from defeat.detector.base import DetectorSpec
from defeat.detector.foreign_weights import Imported, Source, map_rows, renamed, resnet_of
from defeat.errors import InputError, unknown_name

NAME = "Detectron2"
SIZE = (800, 1333)
ANCHORS = 9  # of RetinaNet, per cell: three sizes, each with three ratios
RATIOS = (0.5, 1.0, 2.0)
PIXELS = ((103.53, 116.28, 123.675), (1.0, 1.0, 1.0))  # mean and standard deviation of B, G, R in 0..255
DETECTORS = {"faster_rcnn": "roi_heads.box_predictor.cls_score.weight", "retinanet": "head.cls_score.weight"}
EXACT = {"round_anchors": False, "exact_strides": True, "antialias": False}


def _stages(fpn_offset: int) -> list[tuple[str, str]]:
    """Rules for the stages of the body, and for the levels of the neck, whose first is 2 or 3."""
    rules = []
    for stage in range(2, 6):
        body = rf"backbone\.bottom_up\.res{stage}\.(\d+)\."
        layer = rf"backbone.body.layer{stage - 1}.\1."
        rules += [
            (body + r"conv(\d)\.weight", layer + r"conv\2.weight"),
            (body + r"conv(\d)\.norm\.(.*)", layer + r"bn\2.\3"),
            (body + r"shortcut\.weight", layer + "downsample.0.weight"),
            (body + r"shortcut\.norm\.(.*)", layer + r"downsample.1.\2"),
        ]
        for old, new in (("lateral", "inner_blocks"), ("output", "layer_blocks")):
            name = rf"backbone\.fpn_{old}{stage}\.(weight|bias)"
            rules.append((name, rf"backbone.fpn.{new}.{stage - fpn_offset}.0.\1"))
    return rules


STEM = [
    (r"backbone\.bottom_up\.stem\.conv1\.weight", "backbone.body.conv1.weight"),
    (r"backbone\.bottom_up\.stem\.conv1\.norm\.(.*)", r"backbone.body.bn1.\1"),
    (r"pixel_mean|pixel_std|(?:proposal_generator\.)?anchor_generator\.cell_anchors\.\d+", ""),
]
RULES = {
    "faster_rcnn": [
        *STEM,
        *_stages(2),
        (r"proposal_generator\.rpn_head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
        (r"proposal_generator\.rpn_head\.objectness_logits\.(weight|bias)", r"rpn.head.cls_logits.\1"),
        (r"proposal_generator\.rpn_head\.anchor_deltas\.(weight|bias)", r"rpn.head.bbox_pred.\1"),
        (r"roi_heads\.box_head\.fc1\.(weight|bias)", r"roi_heads.box_head.fc6.\1"),
        (r"roi_heads\.box_head\.fc2\.(weight|bias)", r"roi_heads.box_head.fc7.\1"),
        (r"roi_heads\.box_predictor\.(cls_score|bbox_pred)\.(weight|bias)", r"roi_heads.box_predictor.\1.\2"),
    ],
    "retinanet": [
        *STEM,
        *_stages(3),
        (r"backbone\.top_block\.(p6|p7)\.(weight|bias)", r"backbone.fpn.extra_blocks.\1.\2"),
        *(
            (rf"head\.{old}_subnet\.{2 * index}\.(weight|bias)", rf"head.{new}.conv.{index}.0.\1")
            for old, new in (("cls", "classification_head"), ("bbox", "regression_head"))
            for index in range(8)
        ),
        (r"head\.cls_score\.(weight|bias)", r"head.classification_head.cls_logits.\1"),
        (r"head\.bbox_pred\.(weight|bias)", r"head.regression_head.bbox_reg.\1"),
    ],
}


def recognised(names: Sequence[str]) -> bool:
    """Whether these are names of Detectron2's tensors."""
    return any(name.startswith("backbone.bottom_up.") for name in names)


def read(source: Source) -> Imported:
    """Describe a checkpoint as a detector of ours.

    Args:
        source: the checkpoint.

    Raises:
        InputError: it is another detector, or has parts that our families don't have.
    """
    family = _family(source)
    _require_usual_anchors(source, family)
    state, origins = renamed(source, RULES[family])
    style = "pytorch" if source.style == "pytorch" else "caffe"
    backbone = resnet_of(state, source.path, style)
    if "backbone.body.conv1.weight" in state:
        state["backbone.body.conv1.weight"] = state["backbone.body.conv1.weight"].flip(1)  # from B, G, R
    mean, std = (
        tuple(float(value) / 255 for value in source.tensors.get(name, torch.tensor(usual)).flatten().flip(0))
        for name, usual in zip(("pixel_mean", "pixel_std"), PIXELS, strict=True)
    )
    if family == "faster_rcnn":
        count, options = _faster_rcnn(source, state)
        first = "backbone.fpn_lateral2.weight"
    else:
        count, options = _retinanet(source, state)
        first = "backbone.fpn_lateral3.weight"
    short = source.size or SIZE[0]
    categories = get_model_weights("retinanet_resnet50_fpn").DEFAULT.meta["categories"][1:]
    coco = tuple(name for name in categories if name != "N/A")
    spec = DetectorSpec(
        family,
        backbone,
        source.names(count, coco if count == len(coco) else None, f" (a checkpoint of {NAME} never does)"),
        size=short,
        max_size=source.max_size or round(short * SIZE[1] / SIZE[0]),
        norm="frozen",
        neck_channels=source.rows(first),
        mean=mean,
        std=std,
        options={**EXACT, **options},
    )
    notes = [f"Assumed is an input in the order B, G, R, short side {spec.size}, as in {NAME}'s model zoo."]
    if backbone.endswith(CAFFE) and source.style == "auto":
        notes.append("Assumed is a ResNet with STRIDE_IN_1X1, as in the zoo; give --style pytorch where it is not.")
    if source.classes is None:
        notes.append("The classes are the 80 of COCO; give others with --classes.")
    return Imported(spec, state, origins, tuple(notes))


def _family(source: Source) -> str:
    if source.detector is not None and source.detector not in DETECTORS:
        raise unknown_name(f"detector of {NAME}", source.detector, DETECTORS)
    if any(".mask_head." in name or ".keypoint_head." in name for name in source.tensors):
        raise InputError(f"{source.path} also predicts masks or keypoints; only detectors of boxes can be imported.")
    family = next((family for family, layer in DETECTORS.items() if layer in source.tensors), None)
    if family is None:
        raise InputError(f"{source.path} is none of {NAME}'s {', '.join(DETECTORS)} with a feature pyramid.")
    if source.detector not in (None, family):
        raise InputError(f"{source.path} is a {family}, not a {source.detector}.")
    return family


def _require_usual_anchors(source: Source, family: str) -> None:
    """Refuse other anchors than those of the model zoo; newer checkpoints don't contain them."""
    stored = sorted(
        (int(name.rpartition(".")[2]), anchors) for name, anchors in source.tensors.items() if ".cell_anchors." in name
    )
    octaves = 3 if family == "retinanet" else 1
    for level, anchors in stored:
        sides = [32 * 2.0 ** (level + octave / 3) for octave in range(octaves)]
        shapes = [(side / ratio**0.5, side * ratio**0.5) for side in sides for ratio in RATIOS]
        usual = torch.tensor([(-width / 2, -height / 2, width / 2, height / 2) for width, height in shapes])
        if anchors.shape != usual.shape or not torch.allclose(anchors, usual, atol=1e-2):
            raise InputError(f"{source.path} has other anchors than {NAME}'s model zoo, which can't be imported.")


def _faster_rcnn(source: Source, state: dict[str, Tensor]) -> tuple[int, dict[str, Any]]:
    """Number of classes and options; the background is the last class there, without a box, and the first one here."""
    predictor = "roi_heads.box_predictor"
    map_rows(state, f"{predictor}.cls_score", lambda rows: rows.roll(1, 0))
    map_rows(state, f"{predictor}.bbox_pred", lambda rows: torch.cat([torch.zeros_like(rows[:4]), rows]))
    options = {
        "aligned_pooling": True,
        "smallest_proposal": 1e-9,
        "sampling_ratio": 0,
        "box_loss": "l1",
        "box_representation_size": source.rows("roi_heads.box_head.fc1.weight"),
    }
    return source.rows(DETECTORS["faster_rcnn"]) - 1, options


def _retinanet(source: Source, state: dict[str, Tensor]) -> tuple[int, dict[str, Any]]:
    """Number of classes and options; anchors of a cell are in the order of sizes there, and of ratios here."""

    def by_ratio(rows: Tensor) -> Tensor:
        if len(rows) % ANCHORS:
            return rows
        ordered: Tensor = rows.unflatten(0, (3, 3, -1)).transpose(0, 1).flatten(0, 2)
        return ordered

    for layer in ("classification_head.cls_logits", "regression_head.bbox_reg"):
        map_rows(state, f"head.{layer}", by_ratio)
    options = {"p6_source": "body", "loss_average": "batch", "head_norm": "none", "detections_per_img": 100}
    return source.rows(DETECTORS["retinanet"]) // ANCHORS, options
