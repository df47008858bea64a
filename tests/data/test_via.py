"""Files of the VGG Image Annotator."""

import csv
import json
import math

import pytest

from defeat.data import open_dataset, split_names
from defeat.errors import InputError
from tests.data.folders import write_image

RECT = {"name": "rect", "x": 2, "y": 3, "width": 18, "height": 7}
CORNERS = [2, 3, 20, 10]


def region(shape=RECT, **attributes):
    return {"shape_attributes": shape, "region_attributes": attributes}


def entries(**images):
    """VIA's JSON: regions by the name, without suffix, of each image."""
    return {
        f"{name}.png123": {"filename": f"{name}.png", "size": 123, "regions": regions, "file_attributes": {}}
        for name, regions in images.items()
    }


def write(folder, content, images=".", file="via_region_data.json"):
    """A VIA file, and images of 40 x 30 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(json.dumps(content))
    metadata = content.get("_via_img_metadata", content)
    for entry in metadata.values():
        write_image(folder / images / entry["filename"])
    return folder


@pytest.mark.parametrize(
    ("shape", "corners"),
    [
        (RECT, CORNERS),
        ({"name": "polygon", "all_points_x": [5, 15, 7], "all_points_y": [5, 8, 20.5]}, [5, 5, 15, 20.5]),
        ({"name": "polyline", "all_points_x": [5, 15, 7], "all_points_y": [5, 8, 20]}, [5, 5, 15, 20]),
        ({"name": "circle", "cx": 20, "cy": 15, "r": 5}, [15, 10, 25, 20]),
        ({"name": "ellipse", "cx": 20, "cy": 15, "rx": 5, "ry": 3}, [15, 12, 25, 18]),
        ({"name": "ellipse", "cx": 20, "cy": 15, "rx": 5, "ry": 3, "theta": math.pi / 2}, [17, 10, 23, 20]),
        # Half the extent is sqrt((5^2 + 3^2) / 2).
        ({"name": "ellipse", "cx": 20, "cy": 15, "rx": 5, "ry": 3, "theta": math.pi / 4},
         [20 - 17**0.5, 15 - 17**0.5, 20 + 17**0.5, 15 + 17**0.5]),
    ],
)  # fmt: skip
def test_a_region_becomes_the_box_around_it(tmp_path, shape, corners):
    dataset = open_dataset(write(tmp_path, entries(a=[region(shape, kind="cat")])), "train")
    assert dataset.classes == ("cat",)
    assert dataset.target(0).boxes[0].tolist() == pytest.approx(corners, abs=1e-3)


@pytest.mark.parametrize("images", [".", "images"])
@pytest.mark.parametrize("kind", ["json", "project", "version 1", "csv"])
def test_every_file_of_via_is_read(tmp_path, kind, images):
    content = entries(a=[region(label="cat"), region(label="dog")], b=[])
    folder = write(tmp_path, content, images)
    path = tmp_path / "via_region_data.json"
    if kind == "project":
        path.write_text(json.dumps({"_via_settings": {}, "_via_img_metadata": content, "_via_attributes": {}}))
    elif kind == "version 1":
        for entry in content.values():
            entry["regions"] = {str(index): value for index, value in enumerate(entry["regions"])}
        path.write_text(json.dumps(content))
    elif kind == "csv":
        path.unlink()
        write_csv(tmp_path / "via.csv", content)
    for source in (folder, folder / ("via.csv" if kind == "csv" else path.name)):
        assert split_names(source) == ["all"]
        dataset = open_dataset(source, "train")
        prefix = "" if images == "." else "images/"
        assert [sample.name for sample in dataset.samples] == [f"{prefix}a.png", f"{prefix}b.png"]
        assert dataset.classes == ("cat", "dog")
        assert dataset.target(0).boxes.tolist() == [CORNERS, CORNERS]
        assert dataset.target(0).labels.tolist() == [0, 1]
        assert "1 of 2 images without a shape read as background" in dataset.report()


def write_csv(path, content):
    with path.open("w", newline="") as file:
        columns = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"
        writer = csv.writer(file)
        writer.writerow(columns.split(","))
        for entry in content.values():
            count = len(entry["regions"])
            for index, row in enumerate(entry["regions"] or [region({})]):
                texts = [json.dumps(row[key]) for key in ("shape_attributes", "region_attributes")]
                writer.writerow([entry["filename"], 123, "{}", count, index, *texts])


@pytest.mark.parametrize("names", [("train/via_region_data.json", "val/via_region_data.json"),
                                   ("via_train.json", "via-valid.json")])  # fmt: skip
def test_files_of_splits_are_splits(tmp_path, names):
    for name, label in zip(names, ("cat", "dog"), strict=True):
        path = tmp_path / name
        write(path.parent, entries(**{f"{label}1": [region(label=label)]}), file=path.name)
    assert split_names(tmp_path) == ["train", "val"]
    train, val = open_dataset(tmp_path, "train"), open_dataset(tmp_path, "val")
    assert train.classes == val.classes == ("cat", "dog")
    assert [len(train), len(val)] == [1, 1]
    assert val.target(0).labels.tolist() == [1]


def test_two_files_for_everything_are_refused(tmp_path):
    write(tmp_path, entries(a=[region(label="cat")]))
    write(tmp_path, entries(a=[region(label="cat")]), file="backup.json")
    with pytest.raises(InputError, match=r"backup\.json and .*via_region_data\.json are both VIA files"):
        open_dataset(tmp_path, "train")


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"label": "cat", "name": "Tom"}, "label"),
        ({"colour": "grey", "Class": "cat"}, "Class"),
        ({"colour": "grey", "type": "cat"}, "type"),
    ],
)
def test_the_class_among_several_attributes_is_named(tmp_path, attributes, expected):
    dataset = open_dataset(write(tmp_path, entries(a=[region(**attributes)])), "train")
    assert dataset.classes == ("cat",)
    assert f"the attribute {expected!r} of the regions read as their class" in dataset.report()


@pytest.mark.parametrize("attributes", [{"colour": "grey", "age": "3"}, {"name": "Tom", "type": "cat"}])
def test_a_class_that_is_not_clear_is_asked_for(tmp_path, attributes):
    write(tmp_path, entries(a=[region(**attributes)]))
    with pytest.raises(InputError, match=f"{'.*'.join(attributes)}.*rename that one to 'label'"):
        open_dataset(tmp_path, "train")


def test_a_check_box_is_a_class(tmp_path):
    dataset = open_dataset(write(tmp_path, entries(a=[region(label={"cat": True, "dog": False})])), "train")
    assert dataset.classes == ("cat",)


def test_regions_without_a_class_are_dropped_and_counted(tmp_path):
    write(tmp_path, entries(a=[region(label="cat"), region(label=""), region()]))
    dataset = open_dataset(tmp_path, "train")
    assert len(dataset.target(0).boxes) == 1
    assert "2 regions without a class (no 'label') dropped" in dataset.report()


@pytest.mark.parametrize(
    ("attributes", "expected"), [({}, "no region has an attribute"), ({"label": ""}, "none has a value")]
)
def test_regions_that_all_lack_a_class_are_refused(tmp_path, attributes, expected):
    write(tmp_path, entries(a=[region(**attributes)]))
    with pytest.raises(InputError, match=expected):
        open_dataset(tmp_path, "train")


def test_points_are_dropped_and_counted(tmp_path):
    write(tmp_path, entries(a=[region(label="cat"), region({"name": "point", "cx": 1, "cy": 2}, label="cat")]))
    assert (
        "1 shapes dropped that are not the outline of an object (1 point)" in open_dataset(tmp_path, "train").report()
    )


@pytest.mark.parametrize("name", ["a.png", "/home/me/a.png", "C:\\me\\a.png", "../x/a.png", "http://x.org/a.png"])
def test_an_image_elsewhere_in_the_data_set_is_found_by_its_name(tmp_path, name):
    content = entries(a=[region(label="cat")])
    write(tmp_path, content, images="photographs/new")
    content["a.png123"]["filename"] = name
    (tmp_path / "via_region_data.json").write_text(json.dumps(content))
    dataset = open_dataset(tmp_path, "train")
    assert [sample.name for sample in dataset.samples] == ["photographs/new/a.png"]
    assert "1 images found by their names alone, in other folders" in dataset.report()


def test_an_image_whose_name_two_files_have_is_refused(tmp_path):
    write(tmp_path, entries(a=[region(label="cat")]), images="x")
    write_image(tmp_path / "y/a.png")
    with pytest.raises(InputError, match=r"may be .*x/a\.png or .*y/a\.png"):
        open_dataset(tmp_path, "train")


def test_images_may_be_in_a_folder_that_the_user_names(tmp_path):
    write(tmp_path / "via", entries(a=[region(label="cat")]), images="../elsewhere")
    dataset = open_dataset(tmp_path / "via", "train", images=tmp_path / "elsewhere")
    assert [sample.name for sample in dataset.samples] == ["a.png"]


def test_an_image_that_is_listed_twice_is_refused(tmp_path):
    content = entries(a=[region(label="cat")])
    content["a.png7"] = content["a.png123"]
    write(tmp_path, content)
    with pytest.raises(InputError, match=r"'a\.png' is listed 2 times"):
        open_dataset(tmp_path, "train")


def test_a_project_of_version_3_is_refused(tmp_path):
    content = {"project": {"pid": "x", "data_format_version": "3.1.1", "vid_list": ["1"]}, "config": {}, "file": {}}
    (tmp_path / "project.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="VIA 3, which is not read"):
        open_dataset(tmp_path, "train")
