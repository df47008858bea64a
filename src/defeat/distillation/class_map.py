"""The class map: teacher classes matched to student classes by name."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from defeat.errors import unknown_name
from defeat.types import Detections, DetectorInfo

UNKNOWN = -1


@dataclass(frozen=True)
class ClassMap:
    """Maps teacher classes to student classes by name.

    Several teacher classes may have the same name: they are merged. Classes of either side without a counterpart are
    left out of every comparison.

    Attributes:
        student: names of the student's classes, in the order of its labels.
        teacher: names of the teacher's classes, in the order of its labels, renamed to the student's names.
    """

    student: tuple[str, ...]
    teacher: tuple[str, ...]

    @cached_property
    def pairs(self) -> dict[int, tuple[int, ...]]:
        """The teacher's labels by the student's label, for each shared class, ascending."""
        teacher_labels = {
            label: tuple(index for index, other in enumerate(self.teacher) if other == name)
            for label, name in enumerate(self.student)
        }
        return {label: labels for label, labels in teacher_labels.items() if labels}

    @property
    def identical(self) -> bool:
        """Whether both have the same classes in the same order."""
        return self.student == self.teacher

    @cached_property
    def to_student(self) -> Tensor:
        """(K of the teacher,) int64: the student's label for each of the teacher's labels, -1 where there is none."""
        labels = [self.student.index(name) if name in self.student else UNKNOWN for name in self.teacher]
        return torch.tensor(labels, dtype=torch.int64)

    @cached_property
    def to_shared(self) -> Tensor:
        """(K of the student + 1,) int64: the index of each label among the shared classes, background after them."""
        indices = {label: index for index, label in enumerate(self.pairs)}
        shared = [indices.get(label, UNKNOWN) for label in range(len(self.student))]
        return torch.tensor([*shared, len(indices)], dtype=torch.int64)

    def detections(self, detections: Detections) -> Detections:
        """The teacher's detections with the student's labels; those of unknown classes are left out."""
        if self.identical:
            return detections
        labels = self.to_student.to(detections.labels.device)[detections.labels]
        known = labels != UNKNOWN
        return Detections(detections.boxes[known], detections.scores[known], labels[known])

    def labels(self, labels: Tensor) -> Tensor:
        """Convert student labels to indices among the S shared classes.

        Args:
            labels: (R,) int64 in 0..K, K for background, -1 for undecided.

        Returns:
            (R,) int64 in 0..S, S for background, -1 for undecided and for classes that the teacher does not know.
        """
        if self.identical:
            return labels
        return torch.where(labels < 0, UNKNOWN, self.to_shared.to(labels.device)[labels.clamp(min=0)])

    def student_logits(self, logits: Tensor) -> Tensor:
        """Select the logits of the shared classes and the background from the student's logits (R, K+1) or (R, K)."""
        if self.identical:
            return logits
        columns = [*self.pairs, *range(len(self.student), logits.shape[1])]
        return logits.index_select(1, torch.tensor(columns, device=logits.device))

    def teacher_logits(self, logits: Tensor) -> Tensor:
        """Select the logits of the shared classes and the background from the teacher's logits; merge classes.

        With softmax, the probabilities of merged classes are added, and those of the shared classes and the background
        are renormalised. With sigmoid, a merged class is present where any of its parts is, assuming independence.

        Args:
            logits: (R, K+1) softmax logits, background last, or (R, K) sigmoid logits; without gradient.

        Returns:
            (R, S+1) or (R, S).
        """
        if self.identical:
            return logits
        softmax = logits.shape[1] > len(self.teacher)
        empty = logits.shape[1]  # the appended column of a class with probability zero
        most = max(len(labels) for labels in self.pairs.values())  # teacher classes of a student class
        columns = [[*labels, *[empty] * (most - len(labels))] for labels in self.pairs.values()]
        if softmax:
            columns.append([len(self.teacher), *[empty] * (most - 1)])
        padded = F.pad(logits, (0, 1), value=-torch.inf)
        gathered = padded[:, torch.tensor(columns, device=logits.device)]  # (R, S or S+1, most)
        if most == 1:
            return gathered.squeeze(-1)
        return gathered.logsumexp(dim=-1) if softmax else _union_logit(gathered)

    def describe(self) -> list[str]:
        """Sentences on classes that only one side has; empty where both have the same classes."""
        student_only = [name for label, name in enumerate(self.student) if label not in self.pairs]
        teacher_only = [name for name in dict.fromkeys(self.teacher) if name and name not in self.student]
        sentences = []
        if not self.teacher:
            return []  # the teacher provides feature maps only
        if not self.pairs:
            sentences.append(
                f"The teacher has none of the student's classes ({listed(student_only)}), but {listed(teacher_only)}."
            )
            return sentences + self._suggestion(student_only, teacher_only)
        if student_only:
            sentences.append(f"The teacher does not know {listed(student_only)}: only annotations teach these classes.")
        if teacher_only:
            sentences.append(f"The student does not know the teacher's {listed(teacher_only)}.")
        return sentences + self._suggestion(student_only, teacher_only)

    @staticmethod
    def _suggestion(student_only: Sequence[str], teacher_only: Sequence[str]) -> list[str]:
        """A sentence with a class map to copy, where names are similar."""
        by_lower_case = {name.casefold(): name for name in reversed(teacher_only)}
        similar = {}
        for name in student_only:
            names = get_close_matches(name.casefold(), by_lower_case, n=1, cutoff=0.6)
            if names:
                similar[by_lower_case[names[0]]] = name
        if not similar:
            return []
        pairs = ", ".join(f"{quoted_yaml(teacher)}: {quoted_yaml(student)}" for teacher, student in similar.items())
        return [f"If these are the same classes, give --class-map '{{{pairs}}}'."]


def renamed_classes(info: DetectorInfo, student: Sequence[str], names: Mapping[str, str | None]) -> DetectorInfo:
    """A teacher's description with its classes renamed to the student's names.

    Args:
        info: description of the teacher.
        student: names of the student's classes.
        names: the student's name by the teacher's; None for a class that matches no class of the student.

    Raises:
        InputError: a name is not one of the teacher's or the student's.
    """
    for teacher_name, student_name in names.items():
        if teacher_name not in info.classes:
            raise unknown_name("class of the teacher", teacher_name, info.classes)
        if student_name is not None and student_name not in student:
            raise unknown_name("class of the student", student_name, student)
    # An empty name matches no class.
    return replace(info, classes=tuple(names.get(name, name) or "" for name in info.classes))


def _union_logit(logits: Tensor) -> Tensor:
    """Logit of the probability that any of several independent events happens, over the last dimension.

    With u = sum of softplus(z), none of them happens with probability exp(-u), so that the logit is log(exp(u) - 1).
    For rare events, where u may underflow, it is log(sum of exp(z)), the logarithm of the sum of their probabilities.
    """
    total = F.softplus(logits).sum(dim=-1)
    return torch.where(total < 1e-6, logits.logsumexp(dim=-1), total + torch.log(-torch.expm1(-total)))


def quoted_yaml(name: str) -> str:
    """A class name as it is written in YAML, in quotes where it needs them."""
    return name if re.fullmatch(r"[A-Za-z][\w ]*", name) and yaml.safe_load(name) == name else json.dumps(name)


def listed(names: Sequence[str], shown: int = 5) -> str:
    """The first names joined by commas, with the number of the others."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
