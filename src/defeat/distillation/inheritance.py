"""Initialise a student's neck and head with its teacher's weights: the inheriting strategy of FGD, MGD and MTPD.

Yang et al. (FGD, CVPR 2022, section 4.2) and Yang et al. (MGD, ECCV 2022) initialise neck and head with the teacher's
weights where both detectors are of one kind; Cao et al. (MTPD, ICML 2023) do so for everything but the backbone.
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
    """The weights that a student inherited from its teacher.

    Attributes:
        parts: the parts that are inherited: `neck`, `head`, both or none.
        tensors: number of inherited tensors, whole or in part.
        parameters: number of inherited parameters.
        outside: number of parameters that the student has outside its backbone's body.
        left_out: reasons why tensors of these parts were not inherited, by tensor name.
        reason: why a part, or everything, is not inherited; empty where all is.
    """

    parts: tuple[str, ...] = ()
    tensors: int = 0
    parameters: int = 0
    outside: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    reason: str = ""

    def describe(self) -> list[str]:
        """Sentences for the terminal and the plan: what was inherited, what was not and why."""
        sentences = []
        if self.tensors:
            share = self.parameters / max(1, self.outside)
            sentences.append(
                f"Inherited from the teacher: {self.tensors} tensors with {self.parameters:,} parameters of its "
                f"{' and '.join(self.parts)}, {share:.0%} of the student's parameters outside its backbone."
            )
        others = [(name, reason) for name, reason in self.left_out.items() if reason.startswith(OTHER_SHAPE)]
        if others:
            name, reason = others[0]
            sentences.append(f"Not inherited: {len(others)} tensors of other shapes, such as {name}: {reason}.")
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.left_out.items():
            if not reason.startswith(OTHER_SHAPE):
                by_reason.setdefault(reason, []).append(name)
        sentences += [f"Not inherited: {listed(names, 3)}: {reason}." for reason, names in by_reason.items()]
        if self.reason:
            sentences.append(f"{'The head is not' if self.parts else 'Nothing is'} inherited: {self.reason}.")
        return sentences


def inherited_parts(student: DetectorInfo, teacher: DetectorInfo, choice: str) -> tuple[tuple[str, ...], str]:
    """Decide which parts of a teacher a student inherits.

    Args:
        student: description of the student.
        teacher: description of the teacher.
        choice: `none`; `neck`; `neck+head`; or `auto`: both where the two detectors are of one family with equal necks
            and anchors, only the neck where the anchors differ, else nothing.

    Returns:
        The parts, and why others are not inherited (empty where there is no reason to give).

    Raises:
        InputError: the choice is unknown, or impossible for this pair.
    """
    if choice not in CHOICES:
        raise unknown_name("choice of inherit", choice, CHOICES)
    if choice == "none":
        return (), ""
    if obstacle := _obstacle(student, teacher):
        if choice == "auto":
            return (), obstacle
        raise InputError(f"--inherit {choice} is not possible: {obstacle}. Give --inherit auto or none.")
    if choice == "auto" and student.anchors != teacher.anchors:
        return (NECK,), "the teacher's head is trained for other anchors"
    return (NECK,) if choice == NECK else (NECK, HEAD), ""


def _obstacle(student: DetectorInfo, teacher: DetectorInfo) -> str:
    """Why a student can't inherit anything from a teacher; empty where it may."""
    if student.family != teacher.family:
        return f"the teacher is a {teacher.family} and the student a {student.family}"
    if list(student.neck) != list(teacher.neck):
        return f"the teacher's neck has strides {list(teacher.neck)} and the student's {list(student.neck)}"
    teacher_channels, student_channels = set(teacher.neck.values()), set(student.neck.values())
    if student.neck != teacher.neck:
        # A head for other channels would be trained weights behind random ones: worse than a new one.
        hint = f"; --neck-channels {max(teacher_channels)} would make them equal" if len(teacher_channels) == 1 else ""
        return (
            f"the teacher's neck has {_joined(teacher_channels)} channels and the student's "
            f"{_joined(student_channels)}{hint}"
        )
    return ""


def _joined(channels: set[int]) -> str:
    return ", ".join(map(str, sorted(channels)))


@torch.no_grad()
def inherit(student: Detector, teacher: Detector, classes: ClassMap, choice: str) -> Inheritance:
    """Copy the weights of the teacher's neck and head into the student, as far as they fit.

    A layer is inherited if all of its tensors have the name and the shape of the teacher's. Rows of the head that
    belong to a class (`Detector.class_rows`) follow the class map: a shared class gets the teacher's rows (the mean of
    several merged classes), the background likewise, and a class that the teacher does not know keeps its
    initialisation.

    Args:
        student: the detector that is changed.
        teacher: a trained detector.
        classes: maps teacher classes to student classes.
        choice: see `inherited_parts`.

    Raises:
        InputError: as `inherited_parts`.
    """
    parts, reason = inherited_parts(student.info, teacher.info, choice)
    student_state, teacher_state = student.state_dict(), teacher.state_dict()
    outside = sum(tensor.numel() for name, tensor in student_state.items() if student.part_of(name) != "backbone")
    rows = _class_row_pairs(student, teacher, classes)
    inherited: dict[str, Tensor] = {}
    left_out: dict[str, str] = {}
    for names in _layers(student, parts).values():
        mismatches = {
            name: mismatch for name in names if (mismatch := _mismatch(name, student_state, teacher_state, rows))
        }
        if mismatches:
            left_out |= dict.fromkeys(names, next(iter(mismatches.values())))
            continue
        inherited |= {
            name: _inherited_tensor(student_state[name], teacher_state[name], rows.get(name)) for name in names
        }
    counts = [_inherited_count(student_state[name], rows.get(name)) for name in inherited]
    student.load_state_dict(student_state | inherited)
    return Inheritance(parts, len(inherited), sum(counts), outside, left_out, reason)


RowPairs = dict[int, list[int]]  # the teacher's rows by the student's row


def _class_row_pairs(student: Detector, teacher: Detector, classes: ClassMap) -> dict[str, RowPairs | str]:
    """The matched rows of each head tensor that has rows per class, or why they can't be matched."""
    student_labels, teacher_labels = student.class_rows(), teacher.class_rows()
    pairs: dict[str, RowPairs | str] = {}
    for name in student_labels.keys() & teacher_labels.keys():
        student_rows, teacher_rows = _rows_by_label(student_labels[name]), _rows_by_label(teacher_labels[name])
        label_pairs = {label: classes.pairs.get(label, ()) for label in range(len(classes.student))}
        label_pairs[len(classes.student)] = (len(classes.teacher),)  # the background
        pairs[name] = {}
        for label, labels in label_pairs.items():
            sources = [teacher_rows[other] for other in labels if other in teacher_rows]
            if label not in student_rows or not sources:
                continue
            if any(len(source) != len(student_rows[label]) for source in sources):
                pairs[name] = "its number of rows per class differs"
                break
            matched = zip(student_rows[label], map(list, zip(*sources, strict=True)), strict=True)
            pairs[name] |= dict(matched)  # type: ignore[operator]
    return pairs


def _rows_by_label(labels: Tensor) -> dict[int, list[int]]:
    """The rows of each label, ascending."""
    rows: dict[int, list[int]] = {}
    for row, label in enumerate(labels.tolist()):
        rows.setdefault(label, []).append(row)
    return rows


def _layers(detector: Detector, parts: tuple[str, ...]) -> dict[str, list[str]]:
    """Names of the tensors of these parts, by layer."""
    layers: dict[str, list[str]] = {}
    for name in detector.state_dict():
        if detector.part_of(name) in parts:
            layers.setdefault(name.rpartition(".")[0], []).append(name)
    return layers


def _mismatch(
    name: str,
    student_state: Mapping[str, Tensor],
    teacher_state: Mapping[str, Tensor],
    rows: Mapping[str, RowPairs | str],
) -> str:
    """Why a tensor can't be inherited; empty where it can."""
    if name not in teacher_state:
        return "the teacher has no such tensor"
    pairs = rows.get(name)
    if isinstance(pairs, str):
        return pairs
    first = 0 if pairs is None else 1  # the numbers of class rows may differ
    student_shape, teacher_shape = tuple(student_state[name].shape), tuple(teacher_state[name].shape)
    if student_shape[first:] != teacher_shape[first:]:
        return f"{OTHER_SHAPE} {_shape(teacher_shape)} in the teacher and {_shape(student_shape)} in the student"
    return ""


def _shape(sides: tuple[int, ...]) -> str:
    return " x ".join(map(str, sides))


def _inherited_tensor(student_tensor: Tensor, teacher_tensor: Tensor, pairs: RowPairs | str | None) -> Tensor:
    """The student's tensor with the values that it inherits."""
    teacher_tensor = teacher_tensor.to(student_tensor)
    if pairs is None:
        return teacher_tensor.clone()
    assert not isinstance(pairs, str)
    mixed = student_tensor.clone()
    for row, sources in pairs.items():
        mixed[row] = teacher_tensor[sources].mean(dim=0)
    return mixed


def _inherited_count(tensor: Tensor, pairs: RowPairs | str | None) -> int:
    """Number of inherited parameters in a tensor of the student."""
    if pairs is None:
        return tensor.numel()
    return len(pairs) * (tensor.numel() // max(1, tensor.shape[0]))
