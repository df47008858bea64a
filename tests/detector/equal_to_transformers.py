"""Assertions on detectors of transformers that several tests share."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from defeat.distillation import ClassMap
from defeat.distillation.inheritance import inherit
from tests.detector.tiny import tiny_detector


def count_equal_predictions(detector: Any, pictures: Sequence[Tensor], expected: Sequence[dict[str, Tensor]]) -> int:
    """Assert that the predictions are those of transformers' post-processing, and return their number."""
    sizes = [tuple(picture.shape[-2:]) for picture in pictures]
    compared = 0
    for own, theirs, (height, width) in zip(detector.predict(pictures), expected, sizes, strict=True):
        boxes = theirs["boxes"].clamp(min=0).minimum(torch.tensor([width, height, width, height]))
        inside = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)  # ours leave out boxes outside the image
        assert own.scores.unique().numel() > 5
        assert torch.allclose(own.scores, theirs["scores"][inside], atol=1e-4)
        distance = (own.boxes[:, None] - boxes[inside]).abs().amax(dim=2)
        distance += (own.labels[:, None] != theirs["labels"][inside]) * 1e3
        assert (distance.min(dim=1).values < 1e-4 * max(height, width)).all()
        compared += len(own.scores)
    return compared


def student_that_inherits(kind: str) -> Any:
    """Assert that a student inherits neck and head of a teacher with other classes, and return it."""
    teacher = tiny_detector(kind, seed=1, classes=("owl", "cat", "ship"))
    student = tiny_detector(kind, classes=("cat", "dog"))
    before = {name: value.clone() for name, value in student.state_dict().items()}
    inherited = inherit(student, teacher, ClassMap(("cat", "dog"), teacher.info.classes), "neck+head")
    assert inherited.parts == ("neck", "head")
    assert inherited.left_out == {}
    for name, value in student.state_dict().items():
        theirs = teacher.state_dict()[name]
        if student.part_of(name) == "backbone":
            assert torch.equal(value, before[name])
        elif name in student.class_rows():
            assert torch.equal(value[0], theirs[1])  # cat
            assert torch.equal(value[1], before[name][1])  # dog, which the teacher does not know
        else:
            assert torch.equal(value, theirs), name
    return student
