"""A student that begins with its teacher's neck and head: the inheriting strategy of FGD, MGD and MTPD.

Yang et al. (FGD, CVPR 2022, section 4.2) and Yang et al. (MGD, ECCV 2022) let the student begin with the teacher's neck
and head where both are of one kind; Cao et al. (MTPD, ICML 2023) do so for everything but the backbone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from defeat.detector import Detector
from defeat.distillation.class_map import ClassMap, listed
from defeat.errors import InputError, unknown_name
from defeat.types import DetectorInfo

Choice = Literal["none", "neck", "neck+head", "auto"]
CHOICES: tuple[str, ...] = get_args(Choice)
NECK, HEAD = "neck", "head"
OTHER_SHAPE = "its shape is"


@dataclass(frozen=True)
class Inheritance:
    """What a student took over from its teacher.

    Attributes:
        parts: the parts that were looked at: `neck`, `head`, both or none.
        tensors: how many tensors were taken, whole or in part.
        parameters: how many numbers they hold.
        outside: how many numbers the student has outside its backbone's body.
        left_out: why a tensor of these parts was not taken, by its name.
        reason: why a part, or everything, was left alone; empty where nothing was.
    """

    parts: tuple[str, ...] = ()
    tensors: int = 0
    parameters: int = 0
    outside: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    reason: str = ""

    def describe(self) -> list[str]:
        """Sentences for the terminal and the plan: what was taken, what was not and why."""
        sentences = []
        if self.tensors:
            share = self.parameters / max(1, self.outside)
            sentences.append(
                f"Inherited from the teacher: {self.tensors} tensors with {self.parameters:,} parameters of its "
                f"{' and '.join(self.parts)}, {share:.0%} of what the student has outside its backbone."
            )
        others = [(name, reason) for name, reason in self.left_out.items() if reason.startswith(OTHER_SHAPE)]
        if others:
            name, reason = others[0]
            sentences.append(f"Not inherited: {len(others)} tensors of other shapes; of {name} {reason}.")
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.left_out.items():
            if not reason.startswith(OTHER_SHAPE):
                by_reason.setdefault(reason, []).append(name)
        sentences += [f"Not inherited: {listed(names, 3)}: {reason}." for reason, names in by_reason.items()]
        if self.reason:
            sentences.append(f"{'Of the head, nothing' if self.parts else 'Nothing'} is inherited: {self.reason}.")
        return sentences


def inherited_parts(student: DetectorInfo, teacher: DetectorInfo, choice: str) -> tuple[tuple[str, ...], str]:
    """Decide which parts of a teacher a student can begin with.

    Args:
        student: what is known about the student.
        teacher: what is known about the teacher.
        choice: `none`; `neck`; `neck+head`; or `auto`: both where the two detectors are of one family with equal necks
            and anchors, the neck alone where the anchors differ, else nothing.

    Returns:
        The parts, and why others are left alone (empty where nothing has to be said).

    Raises:
        InputError: the choice is unknown, or asks for what the pair can't do.
    """
    if choice not in CHOICES:
        raise unknown_name("way to inherit", choice, CHOICES)
    if choice == "none":
        return (), ""
    if obstacle := _obstacle(student, teacher):
        if choice == "auto":
            return (), obstacle
        raise InputError(f"--inherit {choice} can't be done: {obstacle}. Give --inherit auto or none.")
    if choice == "auto" and student.anchors != teacher.anchors:
        return (NECK,), "the teacher's anchors are others, and its head speaks of those"
    return (NECK,) if choice == NECK else (NECK, HEAD), ""


def _obstacle(student: DetectorInfo, teacher: DetectorInfo) -> str:
    """Why nothing of a teacher fits a student; empty where something may."""
    if student.family != teacher.family:
        return f"the teacher is a {teacher.family} and the student a {student.family}"
    if list(student.neck) != list(teacher.neck):
        return f"the teacher's neck has strides {list(teacher.neck)} and the student's {list(student.neck)}"
    theirs, ours = set(teacher.neck.values()), set(student.neck.values())
    if student.neck != teacher.neck:
        # A head that read other channels would be trained weights behind random ones: worse than a new one.
        hint = f"; --neck-channels {max(theirs)} would make them equal" if len(theirs) == 1 else ""
        return f"the teacher's neck has {_counts(theirs)} channels and the student's {_counts(ours)}{hint}"
    return ""


def _counts(channels: set[int]) -> str:
    return ", ".join(map(str, sorted(channels)))


@torch.no_grad()
def inherit(student: Detector, teacher: Detector, classes: ClassMap, choice: str) -> Inheritance:
    """Let a student begin with the weights of its teacher's neck and head, as far as they fit.

    A layer is taken where all of its tensors have the name and the shape of the teacher's. Rows of the head that belong
    to a class (`Detector.class_rows`) follow the class map: a shared class takes the teacher's rows (of several merged
    classes their mean), the background likewise, and a class that the teacher does not know begins as usual.

    Args:
        student: the detector that is changed.
        teacher: a trained detector.
        classes: maps the student's classes to the teacher's.
        choice: see `inherited_parts`.

    Raises:
        InputError: as `inherited_parts`.
    """
    parts, reason = inherited_parts(student.info, teacher.info, choice)
    own, theirs = student.state_dict(), teacher.state_dict()
    outside = sum(tensor.numel() for name, tensor in own.items() if student.part_of(name) != "backbone")
    rows = _class_rows(student, teacher, classes)
    taken: dict[str, Tensor] = {}
    left_out: dict[str, str] = {}
    for names in _layers(student, parts).values():
        obstacles = {name: obstacle for name in names if (obstacle := _misfit(name, own, theirs, rows))}
        if obstacles:
            left_out |= dict.fromkeys(names, next(iter(obstacles.values())))
            continue
        taken |= {name: _inherited(own[name], theirs[name], rows.get(name)) for name in names}
    counts = [_count(own[name], rows.get(name)) for name in taken]
    student.load_state_dict(own | taken)
    return Inheritance(parts, len(taken), sum(counts), outside, left_out, reason)


RowPairs = dict[int, list[int]]  # the teacher's rows by the student's row


def _class_rows(student: Detector, teacher: Detector, classes: ClassMap) -> dict[str, RowPairs | str]:
    """For each tensor of the head with rows of classes which rows meet, or why they can't."""
    own, theirs = student.class_rows(), teacher.class_rows()
    pairs: dict[str, RowPairs | str] = {}
    for name in own.keys() & theirs.keys():
        ours, others = _by_label(own[name]), _by_label(theirs[name])
        known = {label: classes.pairs.get(label, ()) for label in range(len(classes.student))}
        known[len(classes.student)] = (len(classes.teacher),)  # the background
        pairs[name] = {}
        for label, labels in known.items():
            sources = [others[other] for other in labels if other in others]
            if label not in ours or not sources:
                continue
            if any(len(source) != len(ours[label]) for source in sources):
                pairs[name] = "its rows of a class are more or fewer"
                break
            pairs[name] |= dict(zip(ours[label], map(list, zip(*sources, strict=True)), strict=True))  # type: ignore[operator]
    return pairs


def _by_label(labels: Tensor) -> dict[int, list[int]]:
    """The rows of each label, in their order."""
    rows: dict[int, list[int]] = {}
    for row, label in enumerate(labels.tolist()):
        rows.setdefault(label, []).append(row)
    return rows


def _layers(detector: Detector, parts: tuple[str, ...]) -> dict[str, list[str]]:
    """Names of the tensors of these parts, by the layer that they belong to."""
    layers: dict[str, list[str]] = {}
    for name in detector.state_dict():
        if detector.part_of(name) in parts:
            layers.setdefault(name.rpartition(".")[0], []).append(name)
    return layers


def _misfit(
    name: str, own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], rows: Mapping[str, RowPairs | str]
) -> str:
    """Why a tensor can't be taken; empty where it can."""
    if name not in theirs:
        return "the teacher has no such tensor"
    pairs = rows.get(name)
    if isinstance(pairs, str):
        return pairs
    first = 0 if pairs is None else 1  # rows of classes may be more or fewer
    ours, others = tuple(own[name].shape), tuple(theirs[name].shape)
    if ours[first:] != others[first:]:
        return f"{OTHER_SHAPE} {_shape(others)} in the teacher and {_shape(ours)} in the student"
    return ""


def _shape(sides: tuple[int, ...]) -> str:
    return " x ".join(map(str, sides))


def _inherited(own: Tensor, theirs: Tensor, pairs: RowPairs | str | None) -> Tensor:
    """The student's tensor with what it takes from the teacher's."""
    theirs = theirs.to(own)
    if pairs is None:
        return theirs.clone()
    assert not isinstance(pairs, str)
    mixed = own.clone()
    for row, sources in pairs.items():
        mixed[row] = theirs[sources].mean(dim=0)
    return mixed


def _count(own: Tensor, pairs: RowPairs | str | None) -> int:
    if pairs is None:
        return own.numel()
    return len(pairs) * (own.numel() // max(1, own.shape[0]))
