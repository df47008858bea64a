"""LD: values derived by hand, the valuable region, and pairs that it refuses."""

import math
from dataclasses import replace

import pytest
import torch

from defeat.distillation import build_method
from defeat.distillation.methods.ld import valuable_region
from defeat.errors import InputError
from tests.distillation.made_up import START, boxed, dense, info, output

BINS = {"offers": frozenset({"dense"}), "anchors": "points", "bins": 2}
UNIFORM = [[0.0, 0.0]] * 4  # the distributions of the four sides
BACKGROUND = 2  # label
# Squares of 16 pixels; their DIoU with an object on the first are, by hand: 1, 1/3 - 64/832, and below 0.
SQUARES = torch.tensor([[0.0, 0.0, 16.0, 16.0], [8.0, 0.0, 24.0, 16.0], [40.0, 0.0, 56.0, 16.0]])
OBJECT = boxed([0.0, 0.0, 16.0, 16.0])


def built(student=None, teacher=None, **options):
    student = student or info({8: 1}, **BINS)
    return build_method("ld", student, teacher or student, options)


def predicted(distributions, labels=(0,), scores=None):
    """Predictions at the first points, with scores of one half unless logits are given."""
    count = len(labels)
    logits = torch.zeros(1, count, 2) if scores is None else torch.tensor([scores])
    given = dense(
        logits,
        torch.tensor([labels]),
        distributions=torch.as_tensor(distributions, dtype=torch.float32)[None],
        squares=SQUARES[:count],
    )
    return output({8: torch.zeros(1, 1, 1, 1)}, dense=given)


def losses(method, student, teacher, target=OBJECT):
    return {name: loss.item() for name, loss in method(student, teacher, [target], START).items()}


def test_a_distribution_of_three_quarters_and_a_uniform_one():
    # KL of (3/4, 1/4) and (1/2, 1/2), averaged over two values; only one of the four sides differs.
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    teacher = predicted([[[math.log(3), 0.0], *UNIFORM[1:]]])
    given = losses(built(temperature=1.0, main_weight=1.0), predicted([UNIFORM]), teacher)
    # The score of one half is divided by itself, but a sum of scores counts as one at least.
    assert given["head_main"] == pytest.approx(divergence / 2 / 4 * 0.5)


def test_at_a_high_temperature_it_is_the_squared_centred_difference():
    # Of n = 2 values with a difference of (2, 0), centred (1, -1): 2 / (2 n^2), on each of the four sides.
    method = built(temperature=100.0, main_weight=1.0, valuable_weight=0.0)
    given = losses(method, predicted([UNIFORM], scores=[[20.0, 0.0]]), predicted([[[2.0, 0.0]] * 4]))
    assert given == {"head_main": pytest.approx(2 / (2 * 2**2), rel=1e-2)}


def test_positive_points_weigh_by_the_students_score():
    teacher = predicted([[[2.0, 0.0]] * 4, UNIFORM], labels=(0, 0))
    method = built(temperature=100.0, main_weight=1.0, valuable_weight=0.0)
    for logits in ([[20.0, 0.0], [20.0, 0.0]], [[20.0, 0.0], [math.log(3), -9.0]]):
        scores = [1 / (1 + math.exp(-row[0])) for row in logits]
        given = losses(method, predicted([UNIFORM] * 2, labels=(0, 0), scores=logits), teacher)
        assert given["head_main"] == pytest.approx(0.25 * scores[0] / sum(scores), rel=1e-2)


def test_the_valuable_region_is_near_an_object_but_not_positive():
    # The only positive point has a DIoU of 1 with its object: valuable is from a quarter to one, such as 0.256.
    given = predicted([UNIFORM] * 3, labels=(0, BACKGROUND, BACKGROUND)).dense
    positive = given.labels == 0
    assert valuable_region(given, positive, [OBJECT]).tolist() == [[False, True, False]]
    # Ignored points don't count, and neither does an object without a positive point.
    ignored = replace(given, labels=torch.tensor([[0, -1, BACKGROUND]]))
    assert not valuable_region(ignored, positive, [OBJECT]).any()
    assert not valuable_region(given, positive & False, [OBJECT]).any()
    assert not valuable_region(given, positive, [boxed()]).any()


def test_the_valuable_region_belongs_to_the_object_of_each_positive_point():
    # Both objects have a positive point; the second one's has a DIoU of 1 with it, and of less with the first.
    both = boxed([0.0, 0.0, 16.0, 16.0], [40.0, 0.0, 56.0, 16.0])
    given = predicted([UNIFORM] * 3, labels=(0, BACKGROUND, 0)).dense
    assert valuable_region(given, given.labels == 0, [both]).tolist() == [[False, True, False]]


def test_the_valuable_term_is_the_mean_over_its_region():
    student = predicted([UNIFORM] * 3, labels=(0, BACKGROUND, BACKGROUND))
    teacher = predicted([UNIFORM, [[2.0, 0.0]] * 4, [[9.0, 0.0]] * 4], labels=(0, BACKGROUND, BACKGROUND))
    given = losses(built(temperature=100.0, valuable_weight=4.0), student, teacher)
    assert given == {"head_main": pytest.approx(0, abs=1e-6), "head_valuable": pytest.approx(4 * 0.25, rel=1e-2)}


def test_the_student_learns_and_a_batch_without_objects_gives_zero():
    own = predicted([UNIFORM])
    leaf = own.dense.distributions.clone().requires_grad_()
    student = replace(own, dense=replace(own.dense, distributions=leaf))
    sum(built()(student, predicted([[[2.0, 0.0]] * 4]), [OBJECT], START).values()).backward()
    assert leaf.grad.abs().sum() > 0
    nothing = predicted([UNIFORM], labels=(BACKGROUND,))
    assert losses(built(), nothing, nothing, boxed()) == {"head_main": 0.0, "head_valuable": 0.0}


@pytest.mark.parametrize("changes", [{"bins": 3}, {"bins": 0}, {"anchors": "other"}, {"size": 128}])
def test_other_pairs_are_refused(changes):
    with pytest.raises(InputError, match="as distributions of as many values"):
        built(teacher=info({8: 1}, **BINS | changes))


def test_common_classes_are_not_needed():
    assert built(teacher=info({8: 1}, **BINS, classes=("owl",))).needs == {"dense"}
