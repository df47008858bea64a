"""The parts of a training step: schedule, seeds, parameter groups, guards."""

import pytest
import torch
from torch import nn

from defeat.data import open_dataset
from defeat.distillation import ClassMap
from defeat.engine.guards import fingerprint, require_able_teacher, require_finite
from defeat.engine.module import gather, learning_rate, parameter_groups, step_seed
from defeat.errors import InputError
from defeat.types import Detections
from tests.detector.tiny import images, target, tiny_detector


@pytest.mark.parametrize(
    ("step", "factor"),
    # Of 120 steps with 10 of warm-up: (step + 1) / 10 at first, then 1; a tenth from 120 * 8/12 = 80 on, a hundredth
    # from 120 * 11/12 = 110 on.
    [(0, 0.1), (4, 0.5), (9, 1), (10, 1), (79, 1), (80, 0.1), (109, 0.1), (110, 0.01), (119, 0.01)],
)
def test_the_learning_rate_rises_and_falls_twice(step, factor):
    assert learning_rate(120, 10)(step) == pytest.approx(factor)


def test_milestones_are_parts_of_the_run():
    # Of 100 steps: a tenth from 75 on, as in the published configuration (epoch 9 of 12).
    factor = learning_rate(100, 0, [0.75])
    assert [factor(step) for step in (0, 74, 75, 99)] == pytest.approx([1, 1, 0.1, 0.1])
    assert learning_rate(100, 0, [])(99) == 1


def test_without_warm_up_the_learning_rate_begins_at_its_height():
    assert learning_rate(120, 0)(0) == 1


def test_steps_processes_and_runs_have_seeds_of_their_own():
    seeds = {step_seed(seed, step, rank) for seed in range(4) for step in range(500) for rank in range(4)}
    assert len(seeds) == 4 * 500 * 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert step_seed(1, 2, 3) == step_seed(1, 2, 3)


def test_seeds_of_neighbouring_steps_draw_unrelated_numbers():
    draws = [torch.rand(200, generator=torch.Generator().manual_seed(step_seed(0, step, 0))) for step in range(20)]
    correlation = torch.corrcoef(torch.stack(draws)) - torch.eye(20)
    # 190 pairs of 200 independent draws: a deviation of 1/sqrt(200) = 0.07 each.
    assert correlation.abs().max() < 0.35


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


def test_all_parameters_decay_by_default():
    (group,) = parameter_groups(network(), 0.1, norm_decay=True)
    assert group["weight_decay"] == 0.1
    assert len(group["params"]) == 6


def test_normalisation_and_biases_can_be_kept_from_decay():
    decaying, others = parameter_groups(network(), 0.1, norm_decay=False)
    assert decaying["weight_decay"] == 0.1
    assert [tuple(weight.shape) for weight in decaying["params"]] == [(4, 3, 3, 3), (2, 4)]
    assert others["weight_decay"] == 0
    assert [tuple(weight.shape) for weight in others["params"]] == [(4,), (4,), (4,), (2,)]


@pytest.mark.parametrize("norm_decay", [True, False])
def test_frozen_parameters_are_in_no_group(norm_decay):
    module = network()
    module[0].requires_grad_(False)
    found = [weight for group in parameter_groups(module, 0.1, norm_decay) for weight in group["params"]]
    assert {id(weight) for weight in found} == {id(weight) for weight in module.parameters() if weight.requires_grad}


def test_one_process_has_nothing_to_gather():
    assert gather(["anything"], processes=1) == []


def test_finite_losses_pass():
    require_finite({"a": torch.tensor(1.0), "b": torch.tensor(0.0)}, 3, [1])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_is_named_with_its_step_and_images(value):
    losses = {"box": torch.tensor(1.0), "neck_object": torch.tensor(value)}
    with pytest.raises(InputError) as caught:
        require_finite(losses, 17, [4, 8])
    message = str(caught.value)
    assert "at step 17 (term neck_object; images 4, 8)" in message
    assert "box" not in message
    assert "\n" not in message


class Oracle(nn.Module):
    """Detects what it was told, in its own numbering of the classes."""

    def __init__(self, classes, boxes, labels):
        super().__init__()
        self.info = type("Info", (), {"classes": classes})
        self.found = Detections(torch.tensor(boxes), torch.ones(len(boxes)), torch.tensor(labels))

    def predict(self, pictures):
        return [self.found for _ in pictures]


BOXES = [[8.0, 8.0, 40.0, 40.0], [30.0, 20.0, 60.0, 60.0]]


def sample(labels):
    return [(images((64, 64))[0], target(BOXES, labels))]


def able(teacher, classes, images):
    return require_able_teacher(teacher, ClassMap(classes, teacher.info.classes), images)


def test_a_teacher_is_measured_by_the_names_of_its_classes():
    # The teacher calls a dog 0 and a cat 2, and sees a fish that the data do not know: the names decide.
    teacher = Oracle(("dog", "fish", "cat"), [*BOXES, [0.0, 0.0, 9.0, 9.0]], [2, 0, 1])
    assert able(teacher, ("cat", "dog"), sample([0, 1])) == pytest.approx(100)


def test_a_teacher_that_mixes_classes_up_is_refused():
    teacher = Oracle(("cat", "dog"), BOXES, [1, 0])
    with pytest.raises(InputError, match=r"next to nothing on the data \(AP50 0.0 on 1 images\)"):
        able(teacher, ("cat", "dog"), sample([0, 1]))


@pytest.mark.parametrize("family", ["faster_rcnn", "retinanet"])
def test_an_untrained_teacher_is_refused(family):
    # Several classes and objects, so that chance hits count for little.
    scenes = open_dataset("demo", "train")
    teacher, images = tiny_detector(family, classes=scenes.classes).eval(), [scenes[index] for index in range(12)]
    with pytest.raises(InputError, match="--allow-weak-teacher"):
        able(teacher, scenes.classes, images)


def test_a_teacher_that_knows_no_class_of_the_data_cannot_be_measured():
    assert able(Oracle(("ship", "plane"), BOXES, [0, 1]), ("cat", "dog"), sample([0, 1])) is None


def test_a_fingerprint_changes_with_any_weight_or_buffer():
    module = network()
    before = fingerprint(module)
    assert fingerprint(module) == before
    module[1].running_mean[2] += 1e-6
    moved = fingerprint(module)
    assert moved != before
    with torch.no_grad():
        module[2].bias[1] += 1e-3
    assert fingerprint(module) not in (before, moved)
