import json
import math

import pytest
from PIL import Image

from defeat.data import open_dataset, split_names
from defeat.errors import InputError
from tests.data.folders import coco_content, write_coco, write_image


@pytest.fixture
def folder(tmp_path):
    write_image(tmp_path / "train2017/a.png")
    write_image(tmp_path / "train2017/sub/b.png")
    return write_coco(tmp_path, coco_content())


def broken(folder, change):
    content = coco_content()
    change(content)
    return write_coco(folder, content)


def test_boxes_become_corners_and_categories_are_numbered_by_id(folder):
    dataset = open_dataset(folder, "train")
    target = dataset.target(0)
    # x y width height -> x, y, x + width, y + height
    assert target.boxes.tolist() == [[2, 3, 12, 23], [0.5, 1, 4.5, 6.5]]
    assert dataset.classes == ("cat", "dog")  # ids 2 and 7
    assert target.labels.tolist() == [1, 0]
    assert target.crowd.tolist() == [False, True]
    assert target.difficult.tolist() == [False, False]
    assert target.image_id == 9


def test_image_without_annotations_is_kept(folder):
    image, target = open_dataset(folder, "train")[1]
    assert image.shape == (3, 30, 40)
    assert target.boxes.shape == (0, 4)
    assert target.image_id == 4


@pytest.mark.parametrize("split", ["train", "train2017"])
def test_split_is_found_with_and_without_its_year(folder, split):
    assert len(open_dataset(folder, split)) == 2
    assert split_names(folder) == ["train"]


def test_two_years_of_a_split_keep_their_years(folder):
    write_coco(folder, coco_content(), "annotations/instances_train2014.json")
    write_coco(folder, {"annotations": []}, "annotations/captions_train2014.json")
    assert split_names(folder) == ["train2014", "train2017"]
    with pytest.raises(InputError, match="no split 'train'"):
        open_dataset(folder, "train")


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("annotations/val.json", "val"),
        ("annotations/val.json", "images/val"),
        ("annotations/val.json", "images"),
        ("annotations/instances_val.json", "val2017"),
        ("annotations/instances_val.json", "."),
        ("val/_annotations.coco.json", "val"),
        ("valid/_annotations.coco.json", "valid"),
    ],
)
def test_usual_layouts_are_recognised(tmp_path, file, images):
    write_image(tmp_path / images / "a.png")
    write_image(tmp_path / images / "sub/b.png")
    write_coco(tmp_path, coco_content(), file)
    assert split_names(tmp_path) == ["val"]
    assert open_dataset(tmp_path, "val")[0][0].shape == (3, 30, 40)


def test_boxes_outside_are_clipped_or_dropped(folder):
    def change(content):
        content["annotations"][0]["bbox"] = [35, 25, 20, 20]
        content["annotations"][1]["bbox"] = [5, 5, 0, 10]

    dataset = open_dataset(broken(folder, change), "train")
    assert dataset.target(0).boxes.tolist() == [[35, 25, 40, 30]]
    assert dataset.report() == "1 of 2 boxes dropped (no extent after clipping), 1 clipped to the image"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][0].update(category_id=5), "annotation with id 1: the category 5"),
        (lambda c: c["annotations"][0].update(image_id=None), "annotation with id 1: its image_id is None"),
        (lambda c: c["annotations"][1].update(bbox=[1, 2, 3]), "annotation with id 2: its bbox"),
        (lambda c: c["annotations"][1].update(bbox=[1, 2, 3, math.nan]), "annotation with id 2: .*NaN"),
        (lambda c: c["images"][0].update(file_name="../c.png"), "is outside the data set, which has no such image"),
        (lambda c: c["images"][0].update(file_name="/etc/c.png"), "is outside the data set, which has no such image"),
        (lambda c: c["images"][0].update(file_name="..\\c.png"), "is outside the data set, which has no such image"),
        (lambda c: c["images"][1].update(file_name="c.png"), "image with id 4: .*c.png does not exist"),
        (lambda c: c["images"][0].update(file_name="c.png"), "image with id 9: 'c.png' does not exist; looked in"),
        (lambda c: c["images"][1].update(id=9), "image with id 9: this id is used twice"),
        (lambda c: c["images"][1].update(id=""), "its id is '', not an integer"),
        (lambda c: c["images"].append(3), "image number 2: its id is None"),
        (lambda c: c["categories"][0].update(id=2), "category with id 2: this id is used twice"),
        (lambda c: c.update(categories=[]), "defines no classes"),
        (lambda c: c.update(images=[], annotations=[]), "contains no image"),
        (lambda c: c.pop("images"), "no list of 'images'"),
    ],
)
def test_broken_element_is_named(folder, change, message):
    broken(folder, change)
    with pytest.raises(InputError, match=message):
        open_dataset(folder, "train")


def test_malformed_json_is_named(folder):
    (folder / "annotations/instances_train2017.json").write_text('{"images": [')
    with pytest.raises(InputError, match=r"instances_train2017.json is not well-formed JSON: .*line 1"):
        open_dataset(folder, "train")


def test_size_that_does_not_fit_is_reported_when_the_image_is_decoded(folder):
    dataset = open_dataset(broken(folder, lambda c: c["images"][0].update(width=50)), "train")
    with pytest.raises(InputError, match=r"a.png is 40 x 30, but its annotations are for 50 x 30"):
        dataset[0]


@pytest.mark.parametrize(("width", "height", "upright"), [(40, 30, False), (30, 40, True)])
def test_size_in_the_file_decides_about_the_orientation(folder, width, height, upright):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise: the left edge becomes the top edge
    image = Image.new("RGB", (40, 30))
    image.paste((255, 255, 255), (0, 0, 20, 30))
    image.save(folder / "train2017/a.png", exif=exif)
    dataset = open_dataset(broken(folder, lambda c: c["images"][0].update(width=width, height=height)), "train")
    pixels, target = dataset[0]
    assert tuple(pixels.shape[1:]) == target.size == (height, width)
    white = pixels[:, :20] if upright else pixels[:, :, :20]
    assert white.min() == 255
    assert pixels.float().mean() == 127.5


def test_categories_of_one_name_are_one_class(folder):
    dataset = open_dataset(broken(folder, lambda c: c["categories"][0].update(name="cat")), "train")
    assert dataset.classes == ("cat",)
    assert dataset.target(0).labels.tolist() == [0, 0]


def test_image_without_a_size_is_measured(folder):
    content = coco_content()
    for image in content["images"]:
        image.pop("width")
    (folder / "annotations/instances_train2017.json").write_text(json.dumps(content))
    assert open_dataset(folder, "train").sizes == [(30, 40), (30, 40)]
