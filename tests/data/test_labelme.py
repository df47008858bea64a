"""Labelme files."""

import json
import math

import pytest

from defeat.data import open_dataset, split_names
from defeat.errors import InputError
from tests.data.folders import write_image

BOX = ("rectangle", [[20, 10], [3.5, 4]])  # corners in any order


def shape(kind, points, label="cat", **more):
    return {"label": label, "points": points, "shape_type": kind, "flags": {}, "group_id": None, **more}


def write_pair(folder, stem, *shapes, **changes):
    """An image of 40 x 30 pixels, and its labelme file."""
    write_image(folder / f"{stem}.png")
    content = {
        "version": "5.2.1",
        "flags": {},
        "shapes": list(shapes),
        "imagePath": f"{stem}.png",
        "imageData": "QUJD" * 50_000,
        "imageHeight": 30,
        "imageWidth": 40,
    }
    (folder / f"{stem}.json").write_text(json.dumps(content | changes))


@pytest.mark.parametrize(
    ("kind", "points", "corners"),
    [
        (*BOX, [3.5, 4, 20, 10]),
        ("rectangle", [[5, 5], [15, 5], [15, 9], [5, 9]], [5, 5, 15, 9]),
        ("polygon", [[5, 5], [15, 8], [7, 20.25]], [5, 5, 15, 20.25]),
        ("circle", [[20, 15], [23, 19]], [15, 10, 25, 20]),  # a radius of 5
        ("mask", [[5, 5], [14, 8]], [5, 5, 15, 9]),
        ("oriented_rectangle", [[10, 5], [15, 10], [10, 15], [5, 10]], [5, 5, 15, 15]),
    ],
)
def test_a_shape_becomes_the_box_around_it(tmp_path, kind, points, corners):
    write_pair(tmp_path, "a", shape(kind, points))
    dataset = open_dataset(tmp_path, "train")
    assert dataset.classes == ("cat",)
    assert dataset.target(0).boxes[0].tolist() == pytest.approx(corners, abs=1e-3)
    assert dataset.report() == "the split 'all' is used as 'train'"


def test_splits_are_folders_and_have_the_same_labels(tmp_path):
    write_pair(tmp_path / "train", "a", shape(*BOX))
    write_pair(tmp_path / "train", "b")
    write_pair(tmp_path / "valid", "a", shape(*BOX, label="dog"))
    assert split_names(tmp_path) == ["train", "val"]
    train, val = open_dataset(tmp_path, "train"), open_dataset(tmp_path, "val")
    assert [sample.name for sample in train.samples] == ["train/a.png", "train/b.png"]
    assert [len(train.target(index).boxes) for index in range(2)] == [1, 0]
    assert train.classes == val.classes == ("cat", "dog")
    assert val.target(0).labels.tolist() == [1]


def test_images_in_a_folder_of_their_own_are_found(tmp_path):
    write_pair(tmp_path / "labels", "a", shape(*BOX), imagePath="..\\images\\a.png")
    (tmp_path / "images").mkdir()
    (tmp_path / "labels/a.png").rename(tmp_path / "images/a.png")
    assert [sample.name for sample in open_dataset(tmp_path, "train").samples] == ["images/a.png"]


def test_shapes_without_area_are_dropped_and_counted(tmp_path):
    write_pair(tmp_path / "train", "a", shape(*BOX), shape("line", [[1, 1], [9, 9]]), shape("point", [[1, 1]]))
    write_pair(tmp_path / "train", "b", shape("point", [[1, 1]]), shape("spiral", [[1, 1]]))
    write_pair(tmp_path / "val", "c", shape("point", [[1, 1]]))
    report = open_dataset(tmp_path, "train").report()
    assert report == "4 shapes dropped that are not the outline of an object (1 line, 1 of an unknown kind, 2 point)"
    assert "1 shapes dropped" in open_dataset(tmp_path, "val").report()


def test_points_alone_are_not_a_data_set(tmp_path):
    write_pair(tmp_path, "a", shape("point", [[1, 1]]))
    with pytest.raises(InputError, match=r"contains no object: 1 shapes dropped .*1 point"):
        open_dataset(tmp_path, "train")


def test_difficult_objects_are_marked(tmp_path):
    write_pair(tmp_path, "a", shape(*BOX, difficult=True), shape(*BOX))
    assert open_dataset(tmp_path, "train").target(0).difficult.tolist() == [True, False]


def test_a_file_without_size_or_kind_of_shape_is_read(tmp_path):
    write_pair(tmp_path, "a", {"label": "cat", "points": [[1, 2], [3, 4]]}, imageHeight=None, imageWidth=None)
    assert open_dataset(tmp_path, "train").target(0).boxes.tolist() == [[1, 2, 3, 4]]


def test_a_resized_image_is_refused(tmp_path):
    write_pair(tmp_path, "a", shape(*BOX), imageHeight=60, imageWidth=80)
    with pytest.raises(InputError, match=r"it was resized by 0\.5"):
        open_dataset(tmp_path, "train")


def test_a_circle_through_the_border_is_clipped(tmp_path):
    write_pair(tmp_path, "a", shape("circle", [[0, 0], [math.sqrt(50), math.sqrt(50)]]))
    dataset = open_dataset(tmp_path, "train")
    assert dataset.target(0).boxes[0].tolist() == pytest.approx([0, 0, 10, 10], abs=1e-3)
    assert "1 of 1 boxes clipped" in dataset.report()
