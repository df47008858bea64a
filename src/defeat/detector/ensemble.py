"""Several teachers as one: each sees the student's batch, and their detections are merged."""

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from defeat.detector.base import Detector
from defeat.detector.taps import TappedTeacher
from defeat.detector.teacher import PREDICT, can_predict
from defeat.errors import InputError
from defeat.types import Batch, Detections, DetectorOutput, Maps

SAME_OBJECT = 0.6  # IoU from which detections of a class by two teachers are of one object


class TeacherEnsemble(nn.Module):
    """Several teachers that a student learns from at once, which may know different classes.

    Its output is that of the first teacher, with the outputs of all in `members`. Its detections are those of all: of
    two detections of a class by different teachers with an IoU of 0.6 or more, the one with the higher score stays.

    Args:
        members: two or more teachers with feature maps.

    Attributes:
        info: that of the first, with the classes of all, and without an input size, as each resizes for itself.
        capabilities: `predict`, if all of them can.

    Raises:
        InputError: there are fewer than two, or one only gives boxes.
    """

    def __init__(self, members: Sequence[Detector | TappedTeacher]) -> None:
        super().__init__()
        if len(members) < 2:
            raise InputError("Several teachers are two or more.")
        for member in members:
            if not isinstance(member, Detector | TappedTeacher):
                raise InputError(
                    "Several teachers must all have feature maps; for teachers that only give boxes, merge their boxes "
                    "into one results file."
                )
        self.networks = nn.ModuleList(members)
        names = dict.fromkeys(name for member in members for name in member.info.classes)
        self.info = replace(members[0].info, classes=tuple(names), size=0, max_size=0, size_divisor=1)
        self.capabilities = frozenset({PREDICT} if all(can_predict(member) for member in members) else ())

    @property
    def members(self) -> list[Detector | TappedTeacher]:
        """The teachers."""
        return [network for network in self.networks if isinstance(network, Detector | TappedTeacher)]

    @property
    def device(self) -> torch.device:
        """Device of the first teacher."""
        return self.members[0].device

    def adopt(self, batch: Batch) -> Batch:
        """Return the batch: each teacher resizes and pads it for itself."""
        return batch

    def forward_teacher(
        self, batch: Batch, reads: Collection[str] | None = None, maps: Maps | None = None
    ) -> DetectorOutput:
        """Compute the outputs of all teachers for a batch of the student."""
        outputs = [member.forward_teacher(member.adopt(batch), reads) for member in self.members]
        return replace(outputs[0], members=tuple(outputs))

    @torch.no_grad()
    def predict(self, images: Sequence[Tensor]) -> list[Detections]:
        """Detect objects with all teachers, sorted by score; labels are those of `info.classes`."""
        found = []
        for member in self.members:
            assert can_predict(member)
            labels = torch.tensor([self.info.classes.index(name) for name in member.info.classes])
            of_member = [detections.cpu() for detections in member.predict(images)]
            found.append([replace(detections, labels=labels[detections.labels]) for detections in of_member])
        return [_merged(of_image) for of_image in zip(*found, strict=True)]


def first_of(teacher: object) -> object:
    """The first of several teachers; a single teacher as it is."""
    return teacher.members[0] if isinstance(teacher, TeacherEnsemble) else teacher


def _merged(detections: Sequence[Detections]) -> Detections:
    """Detections of one image by all teachers, without those of an object that another one has with a higher score.

    Detections of one teacher never displace each other: it has chosen them itself.
    """
    boxes, scores, labels = (
        torch.cat([getattr(of_teacher, name) for of_teacher in detections]) for name in ("boxes", "scores", "labels")
    )
    owner = torch.cat([torch.full_like(each.labels, number) for number, each in enumerate(detections)])
    others = (owner[:, None] != owner) & (labels[:, None] == labels) & (box_iou(boxes, boxes) >= SAME_OBJECT)
    first = (scores > scores[:, None]) | ((scores == scores[:, None]) & (owner < owner[:, None]))
    keep = ~(others & first).any(dim=1)
    order = scores[keep].argsort(descending=True, stable=True)
    return Detections(boxes[keep][order], scores[keep][order], labels[keep][order])
