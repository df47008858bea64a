"""Detectors: build from a description, load from a run, a file or torchvision."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from defeat.detector import libreyolo_models
from defeat.detector.base import Detector, DetectorSpec
from defeat.detector.boxes import BoxFunction, BoxNetwork, BoxTeacher, PredictedBoxes, StoredBoxes
from defeat.detector.description import default_max_size
from defeat.detector.ensemble import TeacherEnsemble, first_of
from defeat.detector.exported import ExportedDetector, is_exported, load_exported
from defeat.detector.families import detr, faster_rcnn, fcos, gfl, lw_detr, retinanet, ssdlite, yolo9, yolox
from defeat.detector.foreign_files import refusal
from defeat.detector.hub import downloaded
from defeat.detector.libreyolo_files import load_libreyolo
from defeat.detector.model_files import load_model, save_model
from defeat.detector.normalisation import Norm
from defeat.detector.pretrained import load_torchvision, torchvision_name
from defeat.detector.taps import TappedTeacher, candidate_taps
from defeat.detector.teacher import Teacher
from defeat.detector.transformers_models import is_checkpoint, read_checkpoint
from defeat.errors import InputError, unknown_name
from defeat.settings import AUTO

__all__ = [
    "FAMILIES",
    "BoxFunction",
    "BoxNetwork",
    "BoxTeacher",
    "Detector",
    "DetectorSpec",
    "ExportedDetector",
    "MapsNetwork",
    "PredictedBoxes",
    "StoredBoxes",
    "TappedTeacher",
    "Teacher",
    "TeacherEnsemble",
    "TeacherNetwork",
    "build",
    "candidate_taps",
    "family_options",
    "first_of",
    "load",
    "load_detector",
    "make_options",
    "save_model",
]

MapsNetwork = Detector | TappedTeacher  # a teacher that has feature maps
TeacherNetwork = MapsNetwork | TeacherEnsemble | BoxNetwork  # any teacher; all are an nn.Module

# A family is a file with `build(spec, weights)` and an options dataclass, and an entry here.
FAMILIES = {
    "faster_rcnn": (faster_rcnn.build, faster_rcnn.FasterRCNNOptions),
    "fcos": (fcos.build, fcos.FCOSOptions),
    "gfl": (gfl.build, gfl.GFLOptions),
    "retinanet": (retinanet.build, retinanet.RetinaNetOptions),
    "yolo9": (yolo9.build, yolo9.YOLO9Options),
    "yolox": (yolox.build, yolox.YOLOXOptions),
    "ssdlite": (ssdlite.build, ssdlite.SSDliteOptions),
    **dict.fromkeys(detr.KINDS, (detr.build, detr.DETROptions)),
    "lw_detr": (lw_detr.build, lw_detr.LWDETROptions),
    "rf_detr": (lw_detr.build, lw_detr.RFDETROptions),
}


def family_options(family: str) -> Any:
    """Dataclass of a family's options.

    Raises:
        InputError: the family is unknown.
    """
    if family not in FAMILIES:
        raise unknown_name("detector", family, FAMILIES)
    return FAMILIES[family][1]


def make_options(family: str, values: Mapping[str, Any]) -> Any:
    """Create a family's options; missing values are its defaults.

    Raises:
        InputError: unknown family or option, or invalid value.
    """
    kind = family_options(family)
    valid = {field.name for field in fields(kind)}
    for name in values:
        if name not in valid:
            raise unknown_name(f"option of {family}", name, valid)
    return kind(**values)


def build(
    detector: DetectorSpec | str,
    weights: str = "auto",
    *,
    backbone: str = "resnet50",
    classes: Sequence[str] = (),
    size: int = 800,
    max_size: int | None = None,
    norm: Norm = "bn",
    neck_channels: int = 256,
    frozen_stages: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Detector:
    """Build a detector; options that would be derived from training data are those of torchvision.

    Args:
        detector: name of a family such as `retinanet`, with the keywords below, or a complete description, which
            replaces the keywords.
        weights: initial weights of the backbone: `auto` (an installed package if there is one, else a download),
            `none`, or the path of a file; for a detector of transformers also those of a whole trained one, see `load`.
        backbone: name of the backbone.
        classes: names of the K classes, in the order of the labels.
        size: short side of an image after resizing, in pixels.
        max_size: upper limit of the long side in pixels; None for 5/3 of the short side.
        norm: normalisation of the backbone.
        neck_channels: channels of the feature pyramid.
        frozen_stages: number of stages of the backbone that are not trained.
        options: options of the family that differ from its defaults.

    Raises:
        InputError: unknown family, backbone or option, or weights that do not match.
    """
    if isinstance(detector, str):
        numbers = (size, max_size or default_max_size(size), norm, neck_channels, frozen_stages)
        detector = DetectorSpec(detector, backbone, tuple(classes), *numbers, options=dict(options or {}))
    given = {name: value for name, value in detector.options.items() if value != AUTO}
    spec = replace(detector, classes=tuple(detector.classes), options=given)
    make_options(spec.family, spec.options)
    if not spec.classes:
        raise InputError("A detector needs at least one class.")
    built: Detector = FAMILIES[spec.family][0](spec, weights)
    return built


def load(source: str | Path, weights: str | Path | None = None) -> Detector | ExportedDetector:
    """Load a trained detector, in eval mode; or a file that `defeat export` wrote, which can only predict.

    Args:
        source: see `load_detector`; or the path of an exported file.
        weights: see `load_detector`.

    Raises:
        InputError: the model does not exist, its files are incomplete or damaged, or its runtime is not installed.
    """
    if is_exported(source):
        if weights is not None:
            raise InputError("An exported file contains its weights: leave them out.")
        return load_exported(source)
    return load_detector(source, weights)


def load_detector(source: str | Path, weights: str | Path | None = None) -> Detector:
    """Load a trained detector, in eval mode.

    Args:
        source: a run directory, a torchvision model such as `torchvision:retinanet_resnet50_fpn`, a checkpoint of
            LibreYOLO, a detector of transformers (a folder written by `save_pretrained`, or `hf:ORG/NAME`), or
            `hf:ORG/NAME` of one that `defeat push` published.
        weights: for a torchvision model, a file with its state dict, instead of the published weights.

    Raises:
        InputError: the model does not exist, or its files are incomplete or damaged.
    """
    name = torchvision_name(source)
    if name is not None:
        return load_torchvision(name, weights).eval()
    if weights is not None:
        raise InputError("A file of weights can be given for a torchvision model only; a run contains its own.")
    source = downloaded(source)
    if is_checkpoint(source):
        return load_transformers(source).eval()
    if libreyolo_models.is_checkpoint(source):
        return load_libreyolo(source).eval()
    if Path(source).is_file():
        raise InputError(refusal(Path(source)))
    return load_model(Path(source), build_any).eval()


def load_transformers(source: str | Path) -> Detector:
    """Load a trained detector of transformers: a folder written by `save_pretrained`, or `hf:ORG/NAME`.

    Raises:
        InputError: it can't be loaded, or is not one of the families.
    """
    checkpoint = read_checkpoint(source)
    make: Any = detr.from_checkpoint if checkpoint.kind in detr.KINDS else lw_detr.from_checkpoint
    detector: Detector = make(checkpoint)
    return detector


def build_any(description: dict[str, Any]) -> Detector:
    """Build a detector with random weights from the content of a `model.json`."""
    lists = {name: tuple(description[name]) for name in ("classes", "mean", "std")}
    return build(DetectorSpec(**description | lists), weights="none")
