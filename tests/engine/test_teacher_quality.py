"""A teacher that can teach little is named before the training, and one that can is not."""

import json

import pytest

from defeat.assembly.teacher_quality import teacher_doubts
from tests.detector.tiny import tiny_detector


@pytest.fixture(scope="module")
def detectors():
    """A teacher of twice the student's size, and the student."""
    return tiny_detector("retinanet", backbone="resnet18"), tiny_detector("retinanet")


def doubts(folder, detectors, results=None, epochs=10, ap50=80.0):
    folder.mkdir(exist_ok=True)
    if results is not None:
        (folder / "results.json").write_text(json.dumps(results))
    return teacher_doubts(str(folder), *detectors, epochs, ap50)


def curve(*accuracies):
    return [{"epoch": epoch, "step": 10 * epoch, "AP": ap} for epoch, ap in enumerate(accuracies, start=1)]


def test_a_teacher_that_was_trained_long_and_is_large_raises_no_doubt(tmp_path, detectors):
    results = {
        "epochs": 24,
        "curve": curve(10.0, 20.0, 30.0, 33.0, 33.5, 33.6),
        "ended": {"epoch": 24, "reason": "epochs"},
    }
    assert doubts(tmp_path / "teacher", detectors, results) == []


def test_a_curve_that_still_rises_at_its_end_is_named(tmp_path, detectors):
    # At two thirds of six evaluations, the fourth, AP was 33; it ended at 36.
    results = {"epochs": 24, "curve": curve(10.0, 20.0, 30.0, 33.0, 35.0, 36.0)}
    (sentence,) = doubts(tmp_path / "teacher", detectors, results)
    assert "33.0 to 36.0" in sentence
    assert "--patience" in sentence


def test_a_teacher_trained_hardly_longer_than_the_student_is_named_unless_its_curve_was_flat(tmp_path, detectors):
    (sentence,) = doubts(tmp_path / "short", detectors, {"epochs": 12})
    assert "12 epochs and the student will be for 10" in sentence
    assert doubts(tmp_path / "long", detectors, {"epochs": 20}) == []
    flat = {"epochs": 12, "curve": curve(30.0, 33.0, 33.2, 33.1, 33.2)}
    assert doubts(tmp_path / "flat", detectors, flat) == []
    patient = {"epochs": 50, "ended": {"epoch": 12.0, "reason": "patience"}}
    assert doubts(tmp_path / "patient", detectors, patient) == []


def test_a_teacher_that_detects_little_on_images_of_the_training_split_is_named(tmp_path, detectors):
    (sentence,) = doubts(tmp_path / "teacher", detectors, {"epochs": 30}, ap50=25.0)
    assert "AP50 25.0" in sentence
    assert doubts(tmp_path / "teacher", detectors, {"epochs": 30}, ap50=None) == []


def test_a_teacher_of_the_students_size_is_named(tmp_path, detectors):
    _, student = detectors
    (sentence,) = doubts(tmp_path / "teacher", (student, student), {"epochs": 30})
    assert "parameters" in sentence


@pytest.mark.parametrize("content", [None, "{", "[]", '{"curve": null}'])
def test_a_teacher_without_a_training_that_can_be_read_is_judged_by_the_rest(content, tmp_path, detectors):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    assert teacher_doubts(str(tmp_path), *detectors, 10, 80.0) == []
