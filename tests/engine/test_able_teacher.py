"""A teacher must detect something on the data, by the names of its classes."""

import pytest
import torch
from torch import nn

from defeat.data import open_dataset
from defeat.distillation import ClassMap
from defeat.engine.guards import require_accurate_teacher
from defeat.errors import InputError
from defeat.types import Detections
from tests.detector.tiny import images, target, tiny_detector


class Oracle(nn.Module):
    """Returns fixed detections, with its own order of the classes."""

    capabilities = frozenset({"predict"})

    def __init__(self, classes, boxes, labels):
        super().__init__()
        self.info = type("Info", (), {"classes": classes})
        self.detections = Detections(torch.tensor(boxes), torch.ones(len(boxes)), torch.tensor(labels))

    def predict(self, images):
        return [self.detections for _ in images]


BOXES = [[8.0, 8.0, 40.0, 40.0], [30.0, 20.0, 60.0, 60.0]]


def sample(labels):
    return [(images((64, 64))[0], target(BOXES, labels))]


def accuracy(teacher, classes, images):
    return require_accurate_teacher(teacher, ClassMap(classes, teacher.info.classes), images)


def test_a_teacher_is_measured_by_the_names_of_its_classes():
    # The teacher's label 0 is dog and 2 is cat, and it detects a fish, which the data lacks: classes match by name.
    teacher = Oracle(("dog", "fish", "cat"), [*BOXES, [0.0, 0.0, 9.0, 9.0]], [2, 0, 1])
    assert accuracy(teacher, ("cat", "dog"), sample([0, 1])) == pytest.approx(100)


def test_a_teacher_that_confuses_classes_is_refused():
    teacher = Oracle(("cat", "dog"), BOXES, [1, 0])
    with pytest.raises(InputError, match=r"next to nothing on the data \(AP50 0.0 on 1 images\)"):
        accuracy(teacher, ("cat", "dog"), sample([0, 1]))


@pytest.mark.parametrize("family", ["faster_rcnn", "retinanet"])
def test_an_untrained_teacher_is_refused(family):
    # Several classes and objects, so that chance hits count for little.
    scenes = open_dataset("demo", "train")
    teacher, images = tiny_detector(family, classes=scenes.classes).eval(), [scenes[index] for index in range(12)]
    with pytest.raises(InputError, match="--allow-weak-teacher"):
        accuracy(teacher, scenes.classes, images)


def test_a_teacher_that_knows_no_class_of_the_data_is_refused():
    with pytest.raises(InputError, match=r"none of the student's classes \(cat, dog\), but ship, plane.*--allow-weak"):
        accuracy(Oracle(("ship", "plane"), BOXES, [0, 1]), ("cat", "dog"), sample([0, 1]))


def test_the_class_map_of_a_teacher_that_spells_names_otherwise_can_be_copied():
    with pytest.raises(InputError, match=r"--class-map '\{Cat: cat, DOG: dog\}'"):
        accuracy(Oracle(("Cat", "DOG"), BOXES, [0, 1]), ("cat", "dog"), sample([0, 1]))


def test_a_teacher_without_names_of_classes_is_not_measured():
    assert accuracy(Oracle((), BOXES, [0, 1]), ("cat", "dog"), sample([0, 1])) is None
