"""Broken results files of other tools are refused in one sentence that names the file and the detection."""

import json

import pytest

from defeat.data.results import read_results
from tests.bad_input.cases import refusal, table

IMAGES = [{"id": 7, "file_name": "a.jpg", "height": 40, "width": 60}, {"id": 8, "file_name": "b.jpg"}]
CATEGORIES = [{"id": 1, "name": "cat"}]


def record(**changes):
    """A detection; a value of None leaves the key out."""
    given = {"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5} | changes
    return {name: value for name, value in given.items() if value is not None}


@pytest.fixture
def described(tmp_path):
    path = tmp_path / "about.json"
    path.write_text(json.dumps({"images": IMAGES, "categories": CATEGORIES}))
    return path


def write(folder, content):
    path = folder / "results.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


@table(
    ("empty file", b"", "is not well-formed JSON"),
    ("a picture", b"\xff\xd8\xff\xe0", "is not a text file in UTF-8"),
    ("a text", "boxes", "has no list of detections"),
    ("a map", {"detections": []}, "has no list of detections"),
    ("no detection", [], "contains no detection"),
    ("a list in the list", [[1, 2]], "detection number 0 is [1, 2], not a map"),
    ("no image", [record(image_id=None)], "detection number 0 has no image_id"),
    ("image that is a map", [record(image_id={"a": 1})], "its image_id is {'a': 1}, not an id"),
    ("unknown image", [record(), record(image_id=99)], "detection number 1: its image_id 99 is not among the images"),
    ("no category", [record(category_id=None)], "detection number 0 has no category_id"),
    ("unknown category", [record(category_id=0)], "its category_id 0 is not among the categories of"),
    ("category that is true", [record(category_id=True)], "its category_id is True, not an id"),
    ("no box", [record(bbox=None)], "its bbox is None, not a list of four numbers"),
    ("three numbers", [record(bbox=[1, 2, 3])], "its bbox is [1, 2, 3], not a list"),
    ("text in the box", [record(bbox=[1, 2, 3, "4"])], "not a list of four numbers"),
    ("NaN in the box", [record(bbox=[1, 2, float("nan"), 4])], "a number is NaN or infinite"),
    ("infinite box", [record(bbox=[1, 2, float("inf"), 4])], "a number is NaN or infinite"),
    ("a number of 400 digits", [record(bbox=[1, 2, int("9" * 400), 4])], "a number is NaN or infinite"),
    ("no score in one of two", [record(), record(score=None)], "detection number 1: its score is None, not a number"),
    ("score in percent", [record(score=87.5)], "its score is 87.5, not a number in 0..1"),
    ("negative score", [record(score=-0.1)], "its score is -0.1, not a number in 0..1"),
    ("score that is NaN", [record(score=float("nan"))], "its score is nan, not a number in 0..1"),
    ("score that is a text", [record(score="0.5")], "its score is '0.5', not a number in 0..1"),
)  # fmt: skip
def test_a_results_file_is_refused(case, described, tmp_path):
    content, expected = case
    assert expected in refusal(read_results, write(tmp_path, content), described)


@table(
    ("a list", [], "is not a COCO file: it has neither a list of 'images' nor one of 'categories'"),
    ("image without a file", {"images": [{"id": 1}]}, "image number 0: its file_name is None, not a path"),
    ("image without an id", {"images": [{"file_name": "a.jpg"}]}, "image number 0 has no id"),
    ("image that is a text", {"images": ["a.jpg"]}, "image number 0 is 'a.jpg', not a map"),
    ("id used twice", {"images": [IMAGES[0], {**IMAGES[1], "id": 7}]}, "image number 1: its id 7 is used twice"),
    ("file used twice", {"images": [IMAGES[0], {**IMAGES[1], "file_name": "a.jpg"}]}, "two images of the same"),
    ("category without a name", {"images": IMAGES, "categories": [{"id": 1}]}, "category number 0 has no name"),
    ("no names of categories", {"images": IMAGES}, "has ids of categories, and no names"),
)
def test_a_description_is_refused(case, tmp_path):
    content, expected = case
    about = tmp_path / "about.json"
    about.write_text(json.dumps(content))
    assert expected in refusal(read_results, write(tmp_path, [record()]), about)


@table(
    ("two names of a category", [record(category_name="cat"), record(category_name="dog")], "has the names 'cat' and"),
    ("no names at all", [record()], "has ids of categories, and no names: give --teacher-description"),
    ("name of one of two", [record(category_name="cat"), record()], "has ids of categories, and no names"),
    ("empty file name", [record(file_name="", category_name="cat")], "its file_name is '', not a path"),
)
def test_detections_without_a_description_are_refused(case, tmp_path):
    content, expected = case
    assert expected in refusal(read_results, write(tmp_path, content))


def test_a_missing_file_is_refused(tmp_path):
    assert "cannot be read: No such file" in refusal(read_results, tmp_path / "nowhere.json")
