"""Small detectors for tests, with few channels and small images."""

from collections.abc import Sequence
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

from defeat.detector import FAMILIES as ALL_FAMILIES
from defeat.detector import Detector, DetectorSpec, build, family_options
from defeat.detector.transformers_models import KINDS, LW_KINDS
from defeat.types import Target

CLASSES = ("cat", "dog", "owl")
needs_transformers = pytest.mark.skipif(
    find_spec("transformers") is None, reason="transformers is missing: it is in the extra of that name"
)
YOLO = "yolo9"
LARGER = {YOLO: "yolo9_s", "yolox": "yolox_t"}  # the next larger backbone of each YOLO


def _has_libreyolo() -> bool:
    """Whether libreyolo is installed, and its OpenCV finds the libraries of the system; importing it takes seconds."""
    try:
        import cv2  # noqa: F401
    except ImportError:
        return False
    return find_spec("libreyolo") is not None


needs_libreyolo = pytest.mark.skipif(
    not _has_libreyolo(), reason="libreyolo (extra yolo) is missing or incomplete (apt install libgl1)"
)
# Composed of torchvision's parts: with anchors or proposals, and with the aspect ratio of the image.
COMPOSED = tuple(family for family in ALL_FAMILIES if family not in (*KINDS, *LARGER))
QUICK_KIND = "d_fine"  # the only family of transformers in the fast tests


def of_transformers(kind: str, quick: str = QUICK_KIND) -> Any:
    """A family of transformers as a parameter of a test: slow unless it is `quick`."""
    return pytest.param(kind, marks=[needs_transformers, *[pytest.mark.slow] * (kind != quick)])


# Families whose backbones are transformers of their own.
TRANSFORMERS = dict.fromkeys(LW_KINDS, "vit_32x3")
# Families with one backbone, whose neck has no width to choose.
FIXED_BACKBONES = {"ssdlite": "mobilenet_v3_large", YOLO: "yolo9_t", "yolox": "yolox_n"}
FIXED_BACKBONES = {name: backbone for name, backbone in FIXED_BACKBONES.items() if name in ALL_FAMILIES}
STRETCHING = {"ssdlite"}  # composed families that resize images to a square
KEEPING = [name for name in COMPOSED if name not in STRETCHING]
WITH_PYRAMID = [name for name in COMPOSED if name not in FIXED_BACKBONES]
# Families whose anchors follow the data.
FITTED_ANCHORS = [
    family for family in COMPOSED if "anchor_sizes" in {field.name for field in fields(family_options(family))}
]
_FIRST = ("faster_rcnn", "retinanet")  # of which all whole runs and pairs are fast tests
_OF_YOLO = [pytest.param(family, marks=[needs_libreyolo, pytest.mark.slow]) for family in LARGER]
FAMILIES = [*COMPOSED, *map(of_transformers, KINDS), *_OF_YOLO]
FAMILIES_IN_RUNS = [  # whole runs take seconds each
    *_FIRST,
    *[pytest.param(family, marks=pytest.mark.slow) for family in COMPOSED if family not in _FIRST],
    *[of_transformers(kind, "") for kind in KINDS],
    *_OF_YOLO,
]


def pairs_of_families() -> list[Any]:
    """Pairs of student and teacher: all of composed families; of those of transformers, some.

    Pairs of other families than the first two are slow.
    """
    pairs: list[Any] = [
        pytest.param(student, teacher, marks=[] if {student, teacher} <= {*_FIRST} else pytest.mark.slow)
        for student in COMPOSED
        for teacher in COMPOSED
    ]
    marks = [needs_transformers, pytest.mark.slow]
    mixed = [(QUICK_KIND, "rt_detr"), ("rt_detr", "retinanet"), ("faster_rcnn", QUICK_KIND), ("deimv2", "rt_detr_v2")]
    mixed += [("lw_detr", "lw_detr"), ("rf_detr", "lw_detr"), ("lw_detr", "retinanet"), ("retinanet", "rf_detr")]
    mixed += [("d_fine", "rf_detr"), ("rf_detr", "rt_detr")]
    of_yolo = [(YOLO, YOLO), (YOLO, "retinanet"), ("fcos", YOLO)]
    of_yolo += [("yolox", YOLO), ("retinanet", "yolox")]
    pairs += [pytest.param(*pair, marks=[needs_libreyolo, pytest.mark.slow]) for pair in of_yolo]
    return pairs + [pytest.param(*pair, marks=marks) for pair in mixed]


BACKBONE = "mobilenetv3_small_050"
SMALLER = {"box_representation_size": 16, "box_batch_size_per_image": 16, "rpn_batch_size_per_image": 16}
# Values of options that are derived from the data by default.
USUAL = {"anchor_sizes": [32, 64, 128, 256, 512], "topk_candidates": 1000, "head_norm": "none"}
USUAL |= {"rpn_pre_nms_top_n_train": 2000, "rpn_post_nms_top_n_train": 2000}
USUAL |= {"rpn_pre_nms_top_n_test": 1000, "rpn_post_nms_top_n_test": 1000}
SMALLER |= {"queries": 20, "decoder_layers": 2, "denoising": 10, "groups": 2}
UNSELECTIVE = {"score_thresh": 0.0, "box_score_thresh": 0.0}


def with_backbones(backbones: Sequence[str]) -> list[tuple[str, str]]:
    """All pairs of a family and a backbone that it can have."""
    pairs = [(family, backbone) for family in WITH_PYRAMID for backbone in backbones]
    return pairs + [pair for pair in FIXED_BACKBONES.items() if pair[0] in COMPOSED]


def tiny_options(family: str, **more: Any) -> dict[str, Any]:
    """The given options that the family has, with torchvision's values instead of derived ones."""
    known = {field.name for field in fields(family_options(family))}
    return {name: value for name, value in {**USUAL, **SMALLER, **more}.items() if name in known}


def tiny_detector(family: str, backbone: str = BACKBONE, *, seed: int = 0, weights: str = "none", **spec: Any):
    """A detector with short side 64, long side 96 and 16 neck channels.

    SSDlite, YOLOv9 and YOLOX have sides of 64 and widths of their own: for any other number than 16, SSDlite has half
    the channels at stride 32, and the others are the next larger ones.
    """
    settings: dict[str, Any] = {"classes": CLASSES, "size": 64, "max_size": 96, "neck_channels": 16}
    settings["options"] = tiny_options(family)
    settings |= spec
    backbone = TRANSFORMERS.get(family, backbone)
    if family in FIXED_BACKBONES:
        backbone = FIXED_BACKBONES[family]
        if settings.pop("neck_channels") != 16:
            if family in LARGER:
                backbone = LARGER[family]
            else:
                settings["options"] = {"reduced_tail": True} | settings["options"]
    torch.manual_seed(seed)
    detector: Detector = build(DetectorSpec(family, backbone, **settings), weights)
    if family in FIXED_BACKBONES and weights == "none":
        _fit_statistics(detector)
    return detector


@torch.no_grad()
def _fit_statistics(detector: Detector) -> None:
    """Give batch normalisation the statistics of a few images: with its initial ones, features would vanish.

    The images have two sizes, unless they are stretched to one.
    """

    def fit(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3), correction=0)
        norm.running_var.copy_(variance)
        norm.running_mean.copy_(mean)

    norms = [module for module in detector.modules() if getattr(module, "running_var", None) is not None]
    hooks = [norm.register_forward_pre_hook(fit) for norm in norms]
    training = detector.training
    sizes = [(64, 64), (64, 64 if detector.info.square else 96)] * 4
    detector.eval().forward_teacher(detector.prepare(images(*sizes)))
    detector.train(training)
    for hook in hooks:
        hook.remove()


def keep_statistics(detector: Any) -> Any:
    """Let all batch normalisation use its running statistics: that of an encoder is not part of `norm`."""
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    return detector


def images(*sizes: tuple[int, int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]


def target(
    boxes: Sequence[Sequence[float]],
    labels: Sequence[int],
    size: tuple[int, int] = (64, 64),
    difficult: Sequence[int] = (),
    crowd: Sequence[int] = (),
) -> Target:
    count = len(boxes)
    return Target(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        difficult=torch.tensor([index in difficult for index in range(count)], dtype=torch.bool),
        crowd=torch.tensor([index in crowd for index in range(count)], dtype=torch.bool),
        image_id=0,
        size=size,
    )


def tiny_batch(detector: Detector, objects: bool = True):
    """Three images of two sizes; the last one has no objects, and without `objects` none has."""
    sizes = [(64, 64), (64, 96), (64, 64)]
    targets = [
        target([[8, 8, 40, 40], [30, 20, 60, 60]], [0, 1]),
        target([[20, 4, 90, 60]], [2], (64, 96)),
        target([], []),
    ]
    if not objects:
        targets = [target([], [], size) for size in sizes]
    return detector.prepare(images(*sizes), targets)
