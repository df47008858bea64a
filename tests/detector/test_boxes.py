"""Teachers that only give boxes: what user code returns is checked, sorted and clipped to the image."""

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import defeat
from defeat.assembly.box_teachers import as_network, kind_of
from defeat.detector import BoxNetwork, PredictedBoxes, Teacher
from defeat.detector.frozen import frozen
from defeat.engine.guards import fingerprint
from defeat.errors import InputError
from defeat.types import Batch, Detections
from tests.bad_input.cases import refusal, table
from tests.detector.tiny import tiny_detector

IMAGE = torch.zeros(3, 40, 60, dtype=torch.uint8)


def returning(boxes, classes=("cat", "dog"), **options):
    return PredictedBoxes(defeat.BoxFunction(lambda images: [boxes for _ in images], classes, **options))


def test_a_function_becomes_a_teacher():
    seen = []

    def detect(images):
        seen.extend(images)
        return [{"boxes": [[1, 2, 3, 4], [0, 0, 9, 9]], "scores": [0.25, 0.5], "labels": [1, 0]} for _ in images]

    teacher = PredictedBoxes(defeat.BoxFunction(detect, ["cat", "dog"]))
    assert isinstance(teacher, Teacher)
    (found,) = teacher.predict([IMAGE])
    assert seen[0] is IMAGE
    assert found.boxes.tolist() == [[0, 0, 9, 9], [1, 2, 3, 4]]
    assert (found.scores.tolist(), found.labels.tolist()) == ([0.5, 0.25], [0, 1])
    assert teacher.info.classes == ("cat", "dog")
    assert kind_of(teacher) == "boxes only: Python function"


def test_boxes_are_clipped_to_the_image_as_annotations_are():
    boxes = [[-5.0, 10, 80, 20], [70, 10, 80, 20], [5, 5, 5, 9], [9, 9, 5, 5]]
    (found,) = returning({"boxes": boxes, "labels": [0, 1, 0, 1]}).predict([IMAGE])
    assert found.boxes.tolist() == [[0, 10, 60, 20]]
    assert found.scores.tolist() == [1]  # without scores, a box is certain


@pytest.mark.parametrize("form", [list, np.array, torch.tensor])
def test_boxes_may_be_lists_arrays_or_tensors(form):
    boxes = {"boxes": form([[1.0, 2, 3, 4]]), "scores": form([0.5]), "labels": form([1])}
    (found,) = returning(boxes).predict([IMAGE])
    assert found.boxes.dtype == torch.float32
    assert found.labels.tolist() == [1]
    (nothing,) = returning({"boxes": form([]), "scores": form([]), "labels": form([])}).predict([IMAGE])
    assert nothing.boxes.shape == (0, 4)


def test_labels_of_torchvision_count_from_one():
    boxes = {"boxes": [[1, 2, 3, 4]] * 3, "scores": [0.5, 0.4, 0.3], "labels": torch.tensor([2, 0, 1])}
    (found,) = returning(boxes, first_label=1).predict([IMAGE])
    assert found.labels.tolist() == [1, 0]  # 0 is torchvision's background


def test_an_object_with_classes_and_predict_is_a_teacher():
    class Own(nn.Module):
        classes = ("cat",)
        fingerprint = "first"

        def predict(self, images):
            return [Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)) for _ in images]

    own = Own()
    own.layer = nn.Linear(2, 2)
    teacher = as_network(own)
    assert isinstance(teacher, BoxNetwork)
    assert kind_of(teacher) == "boxes only: Python object"
    assert not list(teacher.parameters())  # its weights are its own matter
    assert len(teacher.predict([IMAGE, IMAGE])) == 2
    before = fingerprint(teacher)
    own.fingerprint = "second"
    assert fingerprint(as_network(own)) != before
    assert frozen(teacher) is teacher


def test_a_teacher_of_boxes_offers_nothing_to_imitate():
    teacher = returning({})
    batch = Batch(torch.zeros(1, 3, 8, 8), [(8, 8)], [], [(8, 8)], 2)
    output = teacher.forward_teacher(teacher.adopt(batch))
    assert (output.losses, output.neck, output.backbone, output.valid) == ({}, {}, {}, {})
    assert (output.dense, output.proposals, output.queries) == (None, None, None)


@table(
    ("nothing", None, "must return Detections, or a dict with 'boxes', 'labels' and 'scores'"),
    ("no labels", {"boxes": [[1, 2, 3, 4]]}, "must return Detections, or a dict"),
    ("NaN", {"boxes": [[1, 2, float("nan"), 4]], "labels": [0]}, "a number that is NaN or infinite"),
    ("score", {"boxes": [[1, 2, 3, 4]], "scores": [50], "labels": [0]}, "a score that is not in 0..1"),
    ("score that is NaN", {"boxes": [[1, 2, 3, 4]], "scores": [float("nan")], "labels": [0]}, "not in 0..1"),
    ("label", {"boxes": [[1, 2, 3, 4]], "labels": [2]}, "returned label 2, but the teacher has 2 classes"),
    ("counts", {"boxes": [[1, 2, 3, 4]], "labels": [0, 1]}, "1 boxes, 2 scores and 2 labels"),
    ("three numbers", {"boxes": [[1, 2, 3]], "labels": [0]}, "not tensors or lists"),
    ("texts", {"boxes": [["1", "2", "3", "4"]], "labels": [0]}, "not tensors or lists"),
)
def test_what_a_teacher_returns_is_checked(case):
    boxes, expected = case
    assert expected in refusal(returning(boxes).predict, [IMAGE])


def test_the_number_of_results_is_checked():
    teacher = PredictedBoxes(defeat.BoxFunction(lambda images: [], ["cat"]))
    with pytest.raises(InputError, match="returned 0 results for 1 images"):
        teacher.predict([IMAGE])


@table(
    ("text", "cat", "must be a list of names, not 'cat'"),
    ("none", [], "must be a list of names"),
    ("numbers", [1, 2], "must be a list of names"),
)
def test_names_of_classes_are_checked(case):
    classes, expected = case
    assert expected in refusal(returning, {}, classes)


def test_other_objects_are_refused_as_teachers():
    assert "give teacher=defeat.BoxFunction" in refusal(as_network, lambda images: [])
    assert "teacher is a int" in refusal(as_network, 3)
    assert "teacher is a Linear: give a path, a Detector" in refusal(as_network, nn.Linear(2, 2))
    assert "teacher is a FCOS" in refusal(
        as_network, torchvision.models.detection.fcos_resnet50_fpn(weights=None, weights_backbone=None)
    )
    detector = tiny_detector("retinanet")
    assert as_network(detector) is detector
