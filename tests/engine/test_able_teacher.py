"""A teacher must detect something on the data, by the names of its classes."""

import pytest
import torch
from torch import nn

from defeat.data import open_dataset
from defeat.distillation import ClassMap
from defeat.engine.guards import require_able_teacher
from defeat.errors import InputError
from defeat.types import Detections
from tests.detector.tiny import images, target, tiny_detector


class Oracle(nn.Module):
    """Detects what it was told, in its own numbering of the classes."""

    capabilities = frozenset({"predict"})

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
