"""Distillation methods: losses between what a student and a teacher compute for the same batch."""

from collections.abc import Mapping
from inspect import signature
from typing import Any

from defeat.distillation.base import Method
from defeat.distillation.class_map import ClassMap, renamed_classes
from defeat.distillation.combined import DOT, Combined, combination
from defeat.distillation.methods.bckd import BCKD
from defeat.distillation.methods.boxes import Boxes
from defeat.distillation.methods.classification import Classification
from defeat.distillation.methods.crosskd import CrossKD
from defeat.distillation.methods.cwd import CWD
from defeat.distillation.methods.defeat import DeFeat
from defeat.distillation.methods.detr import DETR
from defeat.distillation.methods.fgd import FGD
from defeat.distillation.methods.fgfi import FGFI
from defeat.distillation.methods.imitation import Imitation
from defeat.distillation.methods.ld import LD
from defeat.distillation.methods.mgd import MGD
from defeat.distillation.methods.none import NoDistillation
from defeat.distillation.methods.pkd import PKD
from defeat.distillation.methods.tadf import TADF
from defeat.errors import InputError, unknown_name
from defeat.settings import PLUS
from defeat.types import DetectorInfo

__all__ = [
    "BCKD",
    "CWD",
    "DETR",
    "FGD",
    "FGFI",
    "LD",
    "METHODS",
    "MGD",
    "PKD",
    "TADF",
    "Boxes",
    "ClassMap",
    "Classification",
    "Combined",
    "CrossKD",
    "DeFeat",
    "Imitation",
    "Method",
    "NoDistillation",
    "build_method",
    "find_method",
    "is_method",
    "method_defaults",
    "method_parts",
    "renamed_classes",
]

# To add a method, write a file with a subclass of `Method` and add a line here.
METHODS: dict[str, type[Method]] = {
    "bckd": BCKD,
    "boxes": Boxes,
    "classification": Classification,
    "crosskd": CrossKD,
    "cwd": CWD,
    "defeat": DeFeat,
    "detr": DETR,
    "fgd": FGD,
    "fgfi": FGFI,
    "imitation": Imitation,
    "ld": LD,
    "mgd": MGD,
    "pkd": PKD,
    "tadf": TADF,
}


def find_method(name: str) -> type[Method]:
    """The class of a method, or of a combination such as `defeat+bckd`; `none` gives `NoDistillation`.

    Raises:
        InputError: the name is unknown, or a combination names a method twice.
    """
    parts = method_parts(name)
    if len(parts) > 1:
        if len(set(parts)) < len(parts):
            raise InputError(f"The method {name} names a part twice.")
        return combination(tuple((part, _single_method(part, METHODS)) for part in parts))
    return _single_method(name, METHODS | {"none": NoDistillation})


def method_parts(name: str) -> list[str]:
    """Names of the methods in a name such as `defeat+bckd`."""
    return name.split(PLUS)


def is_method(name: str) -> bool:
    """Whether a name is that of a method or of a combination, or `none`."""
    return name == "none" or set(method_parts(name)) <= METHODS.keys()


def _single_method(name: str, known: Mapping[str, type[Method]]) -> type[Method]:
    if name not in known:
        raise unknown_name("method", name, known)
    return known[name]


def method_defaults(name: str) -> dict[str, Any]:
    """The options of a method with their defaults.

    Raises:
        InputError: the name is unknown.
    """
    method = find_method(name)
    if issubclass(method, Combined):
        parts = {part: method_defaults(part) for part in method.kinds}
        return {f"{part}{DOT}{key}": value for part, options in parts.items() for key, value in options.items()}
    options = [option for option in signature(method).parameters.values() if option.kind is option.KEYWORD_ONLY]
    return {**{option.name: option.default for option in options}, **method.shared}


def build_method(name: str, student: DetectorInfo, teacher: DetectorInfo, options: dict[str, Any]) -> Method:
    """Build a method for a pair of detectors.

    Args:
        name: one of `METHODS`, or several, joined by `+`.
        student: description of the student.
        teacher: description of the teacher.
        options: options of the method; those of a combination begin with the name of the method and a dot.

    Raises:
        InputError: unknown name or option, or the pair lacks what the method needs.
    """
    valid = method_defaults(name)
    for option in options:
        if option not in valid:
            raise unknown_name(f"option of {name}", option, valid)
    return find_method(name)(student, teacher, **options)
