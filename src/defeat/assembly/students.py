"""Builds the student that the settings describe."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from defeat.assembly.settings import TrainSettings
from defeat.detector import Detector, DetectorSpec, build, load_detector, make_options
from defeat.detector.options import automatic, with_usual_values
from defeat.detector.slimming import as_narrow_as, make_narrower
from defeat.detector.weights import mismatches
from defeat.distillation.class_map import ClassMap
from defeat.distillation.inheritance import inherit
from defeat.errors import InputError, unknown_name
from defeat.settings import AUTO, option

# Settings that describe a detector, but for its family and the family's options.
DESCRIPTION = ("backbone", "size", "max_size", "norm", "neck_channels", "frozen_stages")

Settings = TypeVar("Settings", bound=TrainSettings)


def described_by(settings: Settings, spec: DetectorSpec) -> Settings:
    """Settings that describe a detector which exists."""
    values: dict[str, Any] = {name: getattr(spec, name) for name in DESCRIPTION}
    described: Settings = replace(settings, detector=spec.family, detector_options=spec.options, **values)
    return described


def with_given_architecture(settings: Settings) -> Settings:
    """Settings with the description of the detector that `student_from` names, if there is one.

    Raises:
        InputError: it can't be loaded, or another setting contradicts it.
    """
    if settings.student_from is None:
        return settings
    spec = load_detector(settings.student_from).spec
    options = make_options(spec.family, spec.options)
    usual = with_usual_values(options)  # those of a torchvision model, which its description leaves open
    known = {name: getattr(usual, name) for name in automatic(options)}
    described = described_by(settings, replace(spec, options=spec.options | known))
    given = {name: getattr(settings, name) for name in ("detector", *DESCRIPTION)}
    defaults = {entry.name: entry.default for entry in fields(settings)}
    for name, value in given.items():
        if value not in (defaults[name], getattr(described, name), AUTO):
            raise _contradiction(settings, name, getattr(described, name))
    usual_options = make_options(settings.detector, {})
    for name, value in settings.detector_options.items():
        if _as_list(value) == _as_list(getattr(usual_options, name, None)):
            continue
        if not hasattr(options, name):
            raise unknown_name(f"option of {spec.family}", name, [entry.name for entry in fields(options)])
        new = described.detector_options.get(name, getattr(options, name))
        if _as_list(value) != _as_list(new):
            raise _contradiction(settings, f"detector.{name}", new)
    return described


def _as_list(value: Any) -> Any:
    """A tuple as a list, as files have it."""
    return list(value) if isinstance(value, tuple) else value


def _contradiction(settings: TrainSettings, name: str, value: Any) -> InputError:
    return InputError(f"--student-from {settings.student_from} determines {option(name)} ({value}): leave it out.")


def build_student(settings: TrainSettings, classes: tuple[str, ...]) -> Detector:
    """Build the detector that the settings describe; equal seeds give equal initial weights.

    Raises:
        InputError: the initial weights do not exist, or do not fit.
    """
    torch.manual_seed(settings.seed)
    spec = DetectorSpec(
        family=settings.detector,
        backbone=settings.backbone,
        classes=classes,
        size=settings.size,
        max_size=settings.long_side,
        norm=settings.norm,
        neck_channels=int(settings.number("neck_channels")),
        frozen_stages=settings.frozen_stages,
        options=settings.detector_options,
    )
    if starts_from_run(settings):
        student = _copy_of_run(spec, settings.weights)
    elif settings.student_from is not None:
        student = _copy_of(spec, load_detector(settings.student_from))
    else:
        student = build(spec, settings.weights)
    if settings.width < 1:
        make_narrower(student, settings.width)
    return student


def starts_from_run(settings: TrainSettings) -> bool:
    """Whether the student starts with all weights of the detector of a run."""
    return (Path(settings.weights) / "model.json").is_file()


def _copy_of_run(spec: DetectorSpec, run: str) -> Detector:
    """A detector with the weights of a run, which must be the same detector.

    Raises:
        InputError: it is another one.
    """
    trained = load_detector(run)
    student = as_narrow_as(trained, build(_with_colours(spec, trained), "none"))
    if wrong := mismatches(student.state_dict(), trained.state_dict()):
        raise InputError(
            f"--weights {run}: it is another detector than the one to train; {len(wrong)} tensors are missing, unknown "
            f"or of another shape, such as {wrong[0]}."
        )
    student.load_state_dict(trained.state_dict())
    return student


def _copy_of(spec: DetectorSpec, trained: Detector) -> Detector:
    """A detector with the weights of another one of the same architecture; the rows of classes follow their names."""
    student = as_narrow_as(trained, build(_with_colours(spec, trained), "none"))
    inherit(student, trained, ClassMap(spec.classes, trained.info.classes), "neck+head")
    state = student.state_dict()
    body = {name: value for name, value in trained.state_dict().items() if student.part_of(name) == "backbone"}
    student.load_state_dict(state | body)
    return student


def _with_colours(spec: DetectorSpec, trained: Detector) -> DetectorSpec:
    """A description with the mean and the standard deviation of the images that the weights are trained for."""
    return replace(spec, mean=tuple(trained.info.mean), std=tuple(trained.info.std))
