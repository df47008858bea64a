"""Which of a teacher's classes a student knows, and what both say about those."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from defeat.errors import unknown_name
from defeat.types import Detections, DetectorInfo

UNKNOWN = -1


@dataclass(frozen=True)
class ClassMap:
    """Meets a student's classes with a teacher's by their names.

    Several of the teacher's classes may have the same name: they are merged. A class of either side without a
    counterpart is left out of every comparison.

    Attributes:
        student: names of the student's classes, in the order of its labels.
        teacher: names of the teacher's classes, in the order of its labels, as the student would call them.
    """

    student: tuple[str, ...]
    teacher: tuple[str, ...]

    @cached_property
    def pairs(self) -> dict[int, tuple[int, ...]]:
        """The teacher's labels by the student's label, for each shared class, ascending."""
        found = {
            label: tuple(place for place, other in enumerate(self.teacher) if other == name)
            for label, name in enumerate(self.student)
        }
        return {label: places for label, places in found.items() if places}

    @property
    def identical(self) -> bool:
        """Whether the two number the same classes alike."""
        return self.student == self.teacher

    @cached_property
    def to_student(self) -> Tensor:
        """(K of the teacher,) int64: the student's label of each of the teacher's, -1 where there is none."""
        labels = [self.student.index(name) if name in self.student else UNKNOWN for name in self.teacher]
        return torch.tensor(labels, dtype=torch.int64)

    @cached_property
    def to_shared(self) -> Tensor:
        """(K of the student + 1,) int64: the place of each label among the shared classes, background after them."""
        places = {label: place for place, label in enumerate(self.pairs)}
        known = [places.get(label, UNKNOWN) for label in range(len(self.student))]
        return torch.tensor([*known, len(places)], dtype=torch.int64)

    def detections(self, found: Detections) -> Detections:
        """The teacher's detections with the student's labels; those of unknown classes are left out."""
        if self.identical:
            return found
        labels = self.to_student.to(found.labels.device)[found.labels]
        return Detections(*(one[labels != UNKNOWN] for one in (found.boxes, found.scores, labels)))

    def labels(self, labels: Tensor) -> Tensor:
        """Labels as the student counts, K for background, among the S shared classes.

        Args:
            labels: (R,) int64 in 0..K, -1 for undecided.

        Returns:
            (R,) int64 in 0..S, S for background, -1 for undecided and for classes that the teacher does not know.
        """
        if self.identical:
            return labels
        return torch.where(labels < 0, UNKNOWN, self.to_shared.to(labels.device)[labels.clamp(min=0)])

    def student_logits(self, logits: Tensor) -> Tensor:
        """Of the student's logits (R, K+1) or (R, K) those of the shared classes and the background."""
        if self.identical:
            return logits
        kept = [*self.pairs, *range(len(self.student), logits.shape[1])]
        return logits.index_select(1, torch.tensor(kept, device=logits.device))

    def teacher_logits(self, logits: Tensor) -> Tensor:
        """Of the teacher's logits those of the shared classes, merged, and the background's.

        By softmax, the probabilities of merged classes add up, and those of the shared classes and the background are
        renormalised; by sigmoid, a merged class is there where any of its parts is, taken as independent.

        Args:
            logits: (R, K+1) softmax logits, background last, or (R, K) sigmoid logits; without gradient.

        Returns:
            (R, S+1) or (R, S).
        """
        if self.identical:
            return logits
        softmax = logits.shape[1] > len(self.teacher)
        nowhere = logits.shape[1]  # the column that is appended: a class that is never there
        widest = max(len(places) for places in self.pairs.values())
        columns = [[*places, *[nowhere] * (widest - len(places))] for places in self.pairs.values()]
        if softmax:
            columns.append([len(self.teacher), *[nowhere] * (widest - 1)])
        padded = F.pad(logits, (0, 1), value=-torch.inf)
        gathered = padded[:, torch.tensor(columns, device=logits.device)]  # (R, S or S+1, widest)
        if widest == 1:
            return gathered.squeeze(-1)
        return gathered.logsumexp(dim=-1) if softmax else _any_of(gathered)

    def describe(self) -> list[str]:
        """Sentences on what does not meet; none where the two know the same classes."""
        alone = [name for label, name in enumerate(self.student) if label not in self.pairs]
        foreign = [name for name in dict.fromkeys(self.teacher) if name and name not in self.student]
        sentences = []
        if not self.teacher:
            return []  # it gives maps alone
        if not self.pairs:
            return [f"The teacher's classes ({listed(foreign)}) are none of the student's ({listed(alone)})."]
        if alone:
            sentences.append(f"The teacher does not know {listed(alone)}: annotations alone teach what they are.")
        if foreign:
            sentences.append(f"The student does not know the teacher's {listed(foreign)}.")
        nearest = {ours: get_close_matches(ours, foreign, n=1, cutoff=0.6) for ours in alone}
        guesses = [f"{found[0]} may be {ours}" for ours, found in nearest.items() if found]
        if guesses:
            sentences.append(f"Of the teacher's classes {listed(guesses)}: if so, say it with --class-map.")
        return sentences


def renamed_classes(info: DetectorInfo, student: Sequence[str], names: Mapping[str, str | None]) -> DetectorInfo:
    """A teacher's description with its classes named as the student calls them.

    Args:
        info: of the teacher.
        student: names of the student's classes.
        names: the student's name by the teacher's; None for a class that is none of the student's, whatever its name.

    Raises:
        InputError: a name is not one of the teacher's or the student's.
    """
    for theirs, ours in names.items():
        if theirs not in info.classes:
            raise unknown_name("class of the teacher", theirs, info.classes)
        if ours is not None and ours not in student:
            raise unknown_name("class of the student", ours, student)
    # An empty name meets nothing.
    return replace(info, classes=tuple(names.get(name, name) or "" for name in info.classes))


def _any_of(logits: Tensor) -> Tensor:
    """Logit that any of several independent events happens, over the last dimension.

    With u = sum of softplus(z), none of them happens with probability exp(-u), so that the logit is log(exp(u) - 1). Of
    rare events, whose u may be too small for a number, that is the sum of their probabilities, log(sum of exp(z)).
    """
    total = F.softplus(logits).sum(dim=-1)
    return torch.where(total < 1e-6, logits.logsumexp(dim=-1), total + torch.log(-torch.expm1(-total)))


def listed(names: Sequence[str], shown: int = 5) -> str:
    """The first of many names, with the number of the others."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
