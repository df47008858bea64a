"""Results files of COCO, as tools write them: which image and which class a detection is of."""

import json

import pytest

from defeat.data.formats.coco import categories_of
from defeat.data.results import Description, read_results
from defeat.errors import InputError
from tests.data.folders import coco_content

IMAGES = [{"id": 7, "file_name": "more/a.jpg", "height": 40, "width": 60}, {"id": 3, "file_name": "b.jpg"}]
CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 2, "name": "cat"}]
RECORDS = [
    {"image_id": 3, "category_id": 2, "bbox": [1, 2, 3.5, 4], "score": 0.25},
    {"image_id": 7, "category_id": 18, "bbox": [0, 0, 10, 20], "score": 0.5},
    {"image_id": 3, "category_id": 18, "bbox": [5, 5, 5, 5], "score": 1},
]


def written(path, content):
    path.write_text(json.dumps(content))
    return path


def results(folder, records=RECORDS, description=None, **options):
    if description is not None:
        options["description"] = written(folder / "about.json", description)
    return read_results(written(folder / "results.json", records), **options)


def rows(detections):
    return [
        (*box, score, label)
        for box, score, label in zip(
            detections.boxes.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True
        )
    ]


SIZE = (40, 60)


def test_a_description_names_images_and_classes(tmp_path):
    read = results(tmp_path, description={"images": IMAGES, "categories": CATEGORIES})
    assert read.classes == ("cat", "dog")  # in the order of their ids
    a, b, other = read.find(["more/a.jpg", "b.jpg", "c.jpg"], [SIZE, (9, 9), SIZE])
    assert rows(a) == [(0, 0, 10, 20, 0.5, 1)]
    assert rows(b) == [(5, 5, 10, 10, 1, 1), (1, 2, 4.5, 6, 0.25, 0)]  # sorted by score
    assert other is None
    # By the file name alone, where it is unique; folders of the description and the folder may differ.
    assert rows(read.find(["a.jpg"], [SIZE])[0]) == rows(a)
    assert read.notes == ()


def test_an_image_without_detections_is_not_an_unknown_image(tmp_path):
    read = results(tmp_path, RECORDS[:1], {"images": IMAGES, "categories": CATEGORIES})
    assert rows(read.find(["more/a.jpg"], [SIZE])[0]) == []


def test_boxes_for_another_size_are_refused(tmp_path):
    read = results(tmp_path, description={"images": IMAGES, "categories": CATEGORIES})
    with pytest.raises(InputError, match=r"more/a.jpg has 40 x 60 pixels, but .* is for one of 60 x 40"):
        read.find(["more/a.jpg"], [(60, 40)])
    assert read.has(["more/a.jpg", "more/a.jpg", "b.jpg", "c.jpg"], [SIZE, (1, 1), (1, 1), (1, 1)]) == [
        False,  # the same image twice
        False,
        True,
        False,
    ]
    assert read.has(["more/a.jpg"], [(60, 40)]) == [False]
    assert read.has(["b.jpg"], [SIZE], others=["elsewhere/b.jpg"]) == [False]


def test_detections_may_name_their_images_and_classes(tmp_path):
    named = [
        {"file_name": "x/1.jpg", "category_name": "cat", "bbox": [0, 0, 1, 1], "score": 0.5},
        {"file_name": "x\\2.jpg", "category_name": "dog", "bbox": [0, 0, 2, 2], "score": 0.5},
    ]
    read = results(tmp_path, named)
    assert read.classes == ("cat", "dog")
    first, second = read.find(["x/1.jpg", "2.jpg"], [SIZE, SIZE])
    assert (rows(first)[0][-1], rows(second)[0][-1]) == (0, 1)
    # As `defeat predict` writes them: the ids decide the order.
    with_ids = [record | {"category_id": 5 - index} for index, record in enumerate(named)]
    assert results(tmp_path, with_ids).classes == ("dog", "cat")


def test_ids_of_images_may_be_their_file_names_as_ultralytics_writes_them(tmp_path):
    records = [
        {"image_id": 139, "category_id": 2, "bbox": [0, 0, 1, 1], "score": 0.5},
        {"image_id": "street_1", "category_id": 2, "bbox": [0, 0, 2, 2], "score": 0.5},
    ]
    read = results(tmp_path, records, {"categories": CATEGORIES})
    found = read.find(["images/000000000139.jpg", "street_1.png", "140.jpg"], [SIZE, SIZE, SIZE])
    assert [None if detections is None else len(detections.scores) for detections in found] == [1, 1, None]
    with pytest.raises(InputError, match=r"000139.jpg and 139.png are the same image"):
        read.find(["000139.jpg", "139.png"], [SIZE, SIZE])


def test_a_coco_file_whose_annotations_have_scores_describes_itself(tmp_path):
    read = results(tmp_path, {"images": IMAGES, "categories": CATEGORIES, "annotations": RECORDS})
    assert len(read.find(["b.jpg"], [SIZE])[0].scores) == 2
    # Where there are no scores at all, boxes are certain.
    bare = [{name: value for name, value in record.items() if name != "score"} for record in RECORDS]
    read = results(tmp_path, {"images": IMAGES, "categories": CATEGORIES, "annotations": bare})
    assert read.scores.tolist() == [1, 1, 1]
    assert read.notes[0].endswith("has no scores: every box counts as certain.")


def test_categories_may_be_those_of_the_data(tmp_path):
    file = written(tmp_path / "train.json", coco_content())
    found = categories_of(file, "train")
    assert found is not None
    path, names = found
    assert path == file
    key, name = next(iter(names.items()))
    record = {"image_id": "a", "category_id": key, "bbox": [0, 0, 1, 1], "score": 0.5}
    read = results(tmp_path, [record], categories=Description(path, categories=names))
    assert read.classes[int(read.labels[0])] == name
    assert "are those of" in read.notes[0]
    assert categories_of(tmp_path / "nowhere", "train") is None


def test_categories_of_one_name_are_one_class(tmp_path):
    twice = [*CATEGORIES, {"id": 30, "name": "cat"}]
    read = results(tmp_path, description={"images": IMAGES, "categories": twice})
    assert read.classes == ("cat", "dog")


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    about = {"images": IMAGES, "categories": CATEGORIES}
    first = results(tmp_path, description=about)
    (tmp_path / "copy").mkdir()
    assert results(tmp_path / "copy", description=about).fingerprint == first.fingerprint
    changed = [{**RECORDS[0], "score": 0.26}, *RECORDS[1:]]
    assert results(tmp_path, changed, about).fingerprint != first.fingerprint
