"""Several teachers at once: the share of each, by hand and with detectors."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from defeat.distillation import build_method
from defeat.distillation.base import Method
from defeat.distillation.joint import Joint
from defeat.errors import InputError
from defeat.types import Progress
from tests.detector.tiny import tiny_batch, tiny_detector
from tests.distillation.made_up import CLASSES, START, boxed, info, output

NOTHING = output({8: torch.zeros(1, 1, 1, 1)})


class Fixed(Method):
    """Terms with given values."""

    paper = "none"
    reads = ("neck",)

    def __init__(self, classes=CLASSES, **terms: float) -> None:
        super().__init__(info({8: 1}), info({8: 1}, classes=classes))
        self.given = terms
        self.weights = {f"{name.partition('_')[2]}_weight": 1.0 for name in terms}

    def terms(self, student, teacher, targets, progress) -> dict[str, Tensor]:
        return {name: torch.tensor(value) for name, value in self.given.items()}

    def negative_weight(self, progress: Progress) -> float:
        return self.given.get("neck_map", 1.0)


def losses(*parts, shares=None):
    joint = Joint(info({8: 1}), info({8: 1}), parts, shares)
    together = replace(NOTHING, members=(NOTHING,) * len(parts))
    return {name: loss.item() for name, loss in joint(NOTHING, together, [boxed()], START).items()}


def test_terms_of_maps_have_the_share_of_their_teacher():
    assert losses(Fixed(neck_map=4.0), Fixed(neck_map=8.0)) == {"teacher1.neck_map": 2.0, "teacher2.neck_map": 4.0}
    assert losses(Fixed(neck_map=4.0), Fixed(neck_map=8.0), shares=[3, 1]) == {
        "teacher1.neck_map": 3.0,
        "teacher2.neck_map": 2.0,
    }


def test_predictions_of_a_class_that_one_teacher_knows_have_full_weight():
    cats, dogs = Fixed(("cat",), head_class=4.0), Fixed(("dog",), head_class=8.0)
    assert losses(cats, dogs) == {"teacher1.head_class": 4.0, "teacher2.head_class": 8.0}
    # Both know cats, one knows dogs: (1/2 + 1) / 2 and 1/2.
    both = Fixed(("cat", "dog"), head_class=4.0)
    assert losses(both, Fixed(("cat",), head_class=8.0)) == {"teacher1.head_class": 3.0, "teacher2.head_class": 4.0}


def test_two_equal_teachers_teach_as_one():
    student = tiny_detector("retinanet").train()
    teacher = tiny_detector("retinanet", seed=1).eval().requires_grad_(False)
    batch = tiny_batch(student)
    taught, own = teacher.forward_teacher(teacher.adopt(batch)), student.forward_train(batch)
    parts = []
    for _ in range(2):
        torch.manual_seed(0)
        parts.append(build_method("defeat", student.info, teacher.info, {"positive_weight": 1.0}))
    alone = parts[0](own, taught, batch.targets, START)
    joint = Joint(student.info, teacher.info, parts)
    together = joint(own, replace(taught, members=(taught, taught)), batch.targets, START)
    for name, loss in alone.items():
        torch.testing.assert_close(together[f"teacher1.{name}"] + together[f"teacher2.{name}"], loss)
    assert joint.levels == parts[0].levels
    assert joint.needs == parts[0].needs
    assert set(joint.weights) == {f"teacher{number}.{name}" for number in (1, 2) for name in parts[0].weights}
    assert len(list(joint.parameters())) == 2 * len(list(parts[0].parameters()))


def test_the_weight_of_negatives_is_the_mean():
    joint = Joint(info({8: 1}), info({8: 1}), [Fixed(neck_map=0.5), Fixed(neck_map=1.0)], [3, 1])
    assert joint.negative_weight(START) == pytest.approx(0.625)


@pytest.mark.parametrize("shares", [[1.0], [1.0, 0.0], [1.0, float("inf")], [1.0, -1.0]])
def test_other_shares_are_refused(shares):
    with pytest.raises(InputError, match="a number above 0 for each of the 2"):
        Joint(info({8: 1}), info({8: 1}), [Fixed(), Fixed()], shares)
