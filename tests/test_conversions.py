"""Detections in the classes of supervision and FiftyOne."""

import sys
from types import SimpleNamespace

import pytest
import supervision
import torch

from defeat.errors import InputError
from defeat.types import Detections

CLASSES = ["cat", "dog"]
DETECTIONS = Detections(
    torch.tensor([[10.0, 20.0, 30.0, 60.0], [0.0, 0.0, 5.0, 5.0]]), torch.tensor([0.75, 0.5]), torch.tensor([1, 0])
)
NONE = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))


def test_supervision_has_the_same_boxes_scores_and_classes():
    converted = DETECTIONS.to_supervision(CLASSES)
    assert isinstance(converted, supervision.Detections)
    assert converted.xyxy.tolist() == DETECTIONS.boxes.tolist()
    assert converted.confidence.tolist() == [0.75, 0.5]
    assert converted.class_id.tolist() == [1, 0]
    assert list(converted["class_name"]) == ["dog", "cat"]
    assert list(converted[converted.confidence > 0.6]["class_name"]) == ["dog"]


@pytest.mark.parametrize("classes", [None, CLASSES])
def test_supervision_without_detections(classes):
    assert len(NONE.to_supervision(classes)) == 0
    assert "class_name" not in DETECTIONS.to_supervision().data


def test_fiftyone_has_boxes_as_fractions_of_the_image(monkeypatch):
    record = SimpleNamespace(Detections=SimpleNamespace, Detection=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "fiftyone", record)
    first, second = DETECTIONS.to_fiftyone(CLASSES, size=(80, 40)).detections
    assert (first.label, first.bounding_box, first.confidence) == ("dog", [0.25, 0.25, 0.5, 0.5], 0.75)
    assert (second.label, second.bounding_box) == ("cat", [0, 0, 0.125, 0.0625])
    assert NONE.to_fiftyone(CLASSES, size=(80, 40)).detections == []


@pytest.mark.parametrize("package", ["supervision", "fiftyone"])
def test_a_missing_package_is_named(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=f"pip install {package}"):
        DETECTIONS.to_supervision() if package == "supervision" else DETECTIONS.to_fiftyone(CLASSES, (80, 40))
