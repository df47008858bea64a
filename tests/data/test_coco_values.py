"""Categories, outlines and ids of COCO files as tools write them."""

import json

import pytest

from defeat.data import open_dataset
from tests.data.coco_folders import FIRST_BOXES, content_with, renamed, standard, write_images
from tests.data.folders import coco_content, write_coco, write_image

# Roboflow's categories: the first is the supercategory of the others.
ROBOFLOW = [
    {"id": 0, "name": "animals", "supercategory": "none"},
    {"id": 2, "name": "cat", "supercategory": "animals"},
    {"id": 7, "name": "dog", "supercategory": "animals"},
]
NOT_A_CLASS = "the category 'animals' is not a class (only the supercategory of the others)"


def roboflow(folder, categories=ROBOFLOW, val_category=2):
    for split, category in (("train", 7), ("valid", val_category)):
        write_images(folder / split)
        content = coco_content() | {"categories": categories}
        content["annotations"][0]["category_id"] = category
        write_coco(folder, content, f"{split}/_annotations.coco.json")
    return folder


def test_the_supercategory_of_all_classes_is_not_a_class(tmp_path):
    folder = roboflow(tmp_path)
    for split, labels in (("train", [1, 0]), ("val", [0, 0])):
        dataset = open_dataset(folder, split)
        assert dataset.classes == ("cat", "dog")
        assert dataset.target(0).labels.tolist() == labels
        assert dataset.report() == NOT_A_CLASS


def test_a_supercategory_with_a_box_in_any_split_is_a_class(tmp_path):
    dataset = open_dataset(roboflow(tmp_path, val_category=0), "train")
    assert dataset.classes == ("animals", "cat", "dog")
    assert dataset.target(0).labels.tolist() == [2, 1]
    assert dataset.report() is None


def test_a_supercategory_that_the_user_names_is_a_class(tmp_path):
    dataset = open_dataset(roboflow(tmp_path), "train", ["animals", "cat", "dog"])
    assert dataset.classes == ("animals", "cat", "dog")
    assert dataset.target(0).labels.tolist() == [2, 1]


@pytest.mark.parametrize(
    "categories",
    [
        [ROBOFLOW[0] | {"supercategory": "animals"}, *ROBOFLOW[1:]],  # as in COCO: a person is a person
        [*ROBOFLOW[:2], ROBOFLOW[2] | {"supercategory": "others"}],
        [{"id": row["id"], "name": row["name"]} for row in ROBOFLOW],
    ],
)
def test_other_categories_without_a_box_stay_classes(tmp_path, categories):
    dataset = open_dataset(roboflow(tmp_path, categories), "train")
    assert dataset.classes == ("animals", "cat", "dog")
    assert dataset.report() is None


# A mask of 30 rows and 40 columns, column by column: rows 4 to 8 of column 3, row 29 of column 5, rows 0 and 1 of
# column 6.
RUNS = [94, 5, 80, 3, 1018]


def compressed(runs):
    """Runs as text, by the definition in the COCO API (maskApi.c, rleToString)."""
    text = ""
    for index, run in enumerate(runs):
        value = run - (runs[index - 2] if index > 2 else 0)
        more = True
        while more:
            group, value = value & 31, value >> 5
            more = value != (-1 if group & 16 else 0)
            text += chr((group | 32 if more else group) + 48)
    return text


@pytest.mark.parametrize(
    ("segmentation", "corners"),
    [
        ([[3, 4.5, 20, 4.5, 20, 10]], [3, 4.5, 20, 10]),
        ([[3, 4, 5, 6, 3, 6], [10, 20, 12, 22, 10, 22]], [3, 4, 12, 22]),
        ([[3, 4, 20, 4, 20, 10], []], [3, 4, 20, 10]),
        ([3, 4, 20, 4, 20, 10], [3, 4, 20, 10]),
        ([[3, 4], [20, 4], [20, 10]], [3, 4, 20, 10]),
        ({"size": [30, 40], "counts": [94, 5, 1101]}, [3, 4, 4, 9]),
        ({"size": [30, 40], "counts": RUNS}, [3, 0, 7, 30]),
        ({"size": [30, 40], "counts": compressed(RUNS)}, [3, 0, 7, 30]),
    ],
)
@pytest.mark.parametrize("box", [None, []])
def test_an_annotation_without_bbox_has_the_extent_of_its_segmentation(tmp_path, segmentation, corners, box):
    def change(content):
        content["annotations"][0].update(segmentation=segmentation, bbox=box)

    dataset = open_dataset(standard(tmp_path, content_with(change)), "train")
    assert dataset.target(0).boxes[0].tolist() == pytest.approx(corners, abs=1e-3)
    assert dataset.report() == "1 annotations without a bbox (read as the extent of their segmentation)"


def test_a_mask_without_a_pixel_has_no_box(tmp_path):
    def change(content):
        content["annotations"][0].update(segmentation={"size": [30, 40], "counts": [1200]}, bbox=None)

    dataset = open_dataset(standard(tmp_path, content_with(change)), "train")
    assert dataset.target(0).boxes.tolist() == FIRST_BOXES[1:]
    assert dataset.report() == "1 annotations dropped (no bbox)"


def test_a_mask_in_text_has_the_extent_that_the_coco_api_computes(tmp_path):
    mask = pytest.importorskip("pycocotools.mask")
    encoded = mask.frPyObjects({"size": [30, 40], "counts": RUNS}, 30, 40)
    assert compressed(RUNS) == encoded["counts"].decode()
    x, y, width, height = mask.toBbox(encoded)
    assert [x, y, x + width, y + height] == [3, 0, 7, 30]


def test_ids_of_digits_are_numbers(tmp_path):
    """Also where only one of the two places writes them as text."""
    text = json.dumps(coco_content()).replace('"image_id": 9', '"image_id": "9"').replace('"id": 7', '"id": "7"')
    dataset = open_dataset(standard(tmp_path, json.loads(text)), "train")
    assert [sample.image_id for sample in dataset.samples] == [9, 4]
    assert dataset.classes == ("cat", "dog")
    assert dataset.target(0).labels.tolist() == [1, 0]
    assert dataset.report() == "3 numbers written as text (read as numbers)"


def test_ids_that_are_words_are_numbered_in_order_of_appearance(tmp_path):
    content = coco_content()
    for element, number in zip(content["images"], ("img_b", "img_a"), strict=True):
        element["id"] = number
    for element, number in zip(content["categories"], ("d", "c"), strict=True):
        element["id"] = number
    for element, number in zip(content["annotations"], ("d", "c"), strict=True):
        element.update(image_id="img_a", category_id=number)
    dataset = open_dataset(standard(tmp_path, content), "train")
    assert [sample.image_id for sample in dataset.samples] == [1, 2]
    assert dataset.target(1).boxes.tolist() == FIRST_BOXES
    assert dataset.classes == ("dog", "cat")
    assert dataset.target(1).labels.tolist() == [0, 1]
    assert dataset.report() == (
        "2 ids of categories that are no integers (numbered in order of appearance), "
        "2 ids of images that are no integers (numbered in order of appearance)"
    )


def test_an_id_that_is_a_word_gets_no_number_of_another_image(tmp_path):
    content = content_with(lambda c: c["images"][1].update(id="x"))
    content["images"][0]["id"] = 1
    for element, number in zip(content["annotations"], (1, "x"), strict=True):
        element["image_id"] = number
    dataset = open_dataset(standard(tmp_path, content), "train")
    assert [sample.image_id for sample in dataset.samples] == [1, 2]
    assert [dataset.target(index).boxes.tolist() for index in range(2)] == [FIRST_BOXES[:1], FIRST_BOXES[1:]]


def test_repairs_are_the_same_in_skip(tmp_path):
    content = renamed("/x/a.png")
    content["images"].append(content["images"][0])
    content["annotations"].append({"image_id": 77, "category_id": 7, "bbox": [0, 0, 5, 5]})
    folder = standard(tmp_path, content)
    stopping, skipping = (open_dataset(folder, "train", on_bad_data=policy) for policy in ("stop", "skip"))
    assert stopping.fingerprint() == skipping.fingerprint()
    assert stopping.report() == skipping.report()
    assert str(stopping.report()).count(",") == 3  # three repairs, one of which has a comma


def test_a_validation_split_without_a_box_is_read(tmp_path):
    write_image(tmp_path / "val/a.png")
    content = content_with(lambda c: c.update(annotations=[], images=c["images"][:1]))
    write_coco(tmp_path, content, "annotations/instances_val.json")
    dataset = open_dataset(tmp_path, "val")
    assert (len(dataset), len(dataset.table.labels), dataset.classes) == (1, 0, ("cat", "dog"))
