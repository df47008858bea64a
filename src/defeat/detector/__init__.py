"""Detectors: build one from its description, load one from a run, a file or torchvision."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from defeat.detector.base import Detector, DetectorSpec
from defeat.detector.families import faster_rcnn, retinanet
from defeat.detector.model_files import load_model, save_model
from defeat.detector.normalisation import Norm
from defeat.detector.pretrained import load_torchvision
from defeat.detector.taps import TappedTeacher, candidate_taps
from defeat.detector.teacher import Teacher
from defeat.errors import InputError, unknown_name
from defeat.settings import AUTO

__all__ = [
    "FAMILIES",
    "Detector",
    "DetectorSpec",
    "TappedTeacher",
    "Teacher",
    "TeacherNetwork",
    "build",
    "candidate_taps",
    "family_options",
    "load",
    "make_options",
    "save_model",
]

TeacherNetwork = Detector | TappedTeacher  # what satisfies `Teacher` and is a network

# A family is a file with `build(spec, weights)`, an options dataclass, and a line here.
FAMILIES = {
    "faster_rcnn": (faster_rcnn.build, faster_rcnn.FasterRCNNOptions),
    "retinanet": (retinanet.build, retinanet.RetinaNetOptions),
}


def family_options(family: str) -> Any:
    """The dataclass of a family's settings.

    Raises:
        InputError: the family is unknown.
    """
    if family not in FAMILIES:
        raise unknown_name("detector", family, FAMILIES)
    return FAMILIES[family][1]


def make_options(family: str, values: Mapping[str, Any]) -> Any:
    """A family's settings, with its defaults where they are not given.

    Raises:
        InputError: the family or a setting is unknown, or a value is not valid.
    """
    kind = family_options(family)
    valid = {one.name for one in fields(kind)}
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
    """Build a detector; what would follow from training data is as in torchvision.

    Args:
        detector: a family such as `retinanet`, which the keywords describe further, or a whole description, beside
            which no keyword is needed.
        weights: the backbone's first weights: `auto` (an installed package where one fits, else a download), `none`, or
            the path of a file.
        backbone: name of the backbone.
        classes: names of the K classes, in the order of the labels.
        size: short side of an image after resizing, in pixels.
        max_size: upper limit of the long side, in pixels; None for 5/3 of the short side.
        norm: normalisation of the backbone.
        neck_channels: channels of the feature pyramid.
        frozen_stages: stages of the backbone that are not trained.
        options: settings of the family that differ from its defaults.

    Raises:
        InputError: unknown family, backbone or option, or weights that don't fit.
    """
    if isinstance(detector, str):
        long_side = max_size or round(size * 5 / 3)
        sizes = (size, long_side, norm, neck_channels, frozen_stages)
        detector = DetectorSpec(detector, backbone, tuple(classes), *sizes, options=dict(options or {}))
    given = {name: value for name, value in detector.options.items() if value != AUTO}
    spec = replace(detector, classes=tuple(detector.classes), options=given)
    make_options(spec.family, spec.options)
    if not spec.classes:
        raise InputError("A detector needs at least one class.")
    built: Detector = FAMILIES[spec.family][0](spec, weights)
    return built


def load(source: str | Path, weights: str | Path | None = None) -> Detector:
    """Load a trained detector, in eval mode.

    Args:
        source: a run directory, or a torchvision model such as `torchvision:retinanet_resnet50_fpn`.
        weights: with a torchvision model, a file with its state dict, instead of the published weights.

    Raises:
        InputError: there is no such model, or its files are incomplete or damaged.
    """
    name = str(source)
    if name.startswith("torchvision:"):
        return load_torchvision(name.removeprefix("torchvision:"), weights).eval()
    if weights is not None:
        raise InputError("A file of weights can be given for a torchvision model only; a run holds its own.")
    return load_model(Path(source), build_any).eval()


def build_any(description: dict[str, Any]) -> Detector:
    """Build a detector with random weights from the content of a `model.json`."""
    lists = {name: tuple(description[name]) for name in ("classes", "mean", "std")}
    return build(DetectorSpec(**description | lists), weights="none")
