import pytest
from PIL import Image

from defeat.data import open_dataset, split_names
from defeat.errors import InputError
from tests.data.folders import write_image, write_yolo


def test_centre_and_size_become_corners_in_pixels(tmp_path):
    write_yolo(tmp_path, {"a": "1 0.5 0.5 0.5 0.25\n"})
    dataset = open_dataset(tmp_path, "train")
    target = dataset.target(0)
    # 40 x 20 pixels: centre 20 10, size 20 5
    assert target.boxes.tolist() == [[10, 7.5, 30, 12.5]]
    assert target.labels.tolist() == [1]
    assert dataset.classes == ("cat", "dog")


def test_box_of_a_polygon_is_its_extent(tmp_path):
    write_yolo(tmp_path, {"a": "0 0.25 0.5 0.75 0.1 0.5 0.9\n"})
    assert open_dataset(tmp_path, "train").target(0).boxes.tolist() == [[10, 2, 30, 18]]


@pytest.mark.parametrize("text", [None, "", "\n"])
def test_image_without_labels_has_no_objects(tmp_path, text):
    write_yolo(tmp_path, {"a": text, "b": "0 .5 .5 .5 .5"})
    assert open_dataset(tmp_path, "train").target(0).boxes.shape == (0, 4)


def test_no_label_file_at_all_is_an_error(tmp_path):
    write_yolo(tmp_path, {"a": None})
    with pytest.raises(InputError, match=r"has a label file, such as .*labels/train/a.txt"):
        open_dataset(tmp_path, "train")


def test_names_as_a_map_are_ordered_by_index(tmp_path):
    yaml = "train: images/train\nnames: {5: dog, 2: cat}\n"
    dataset = open_dataset(write_yolo(tmp_path, {"a": "5 .5 .5 .5 .5"}, yaml), "train")
    assert dataset.classes == ("cat", "dog")
    assert dataset.target(0).labels.tolist() == [1]


@pytest.mark.parametrize(
    "train", ["images/train", "[images/train]", "list.txt", "../images/train", "./images/train", "train.txt"]
)
def test_split_is_a_folder_a_list_of_them_or_a_list_file(tmp_path, train):
    write_yolo(tmp_path, {"b": "0 .5 .5 .5 .5", "a": ""}, f"train: {train}\nval: images/train\nnames: [cat]\n")
    for name, prefix in (("list.txt", ""), ("train.txt", "./")):
        (tmp_path / name).write_text(f"{prefix}images/train/a.png\n\n{prefix}images/train/b.png\n")
    dataset = open_dataset(tmp_path, "train")
    assert [sample.name for sample in dataset.samples] == ["images/train/a.png", "images/train/b.png"]
    assert split_names(tmp_path) == ["train", "val"]


def test_path_is_relative_to_the_yaml_file(tmp_path):
    write_yolo(tmp_path / "data", {"a": "0 .5 .5 .5 .5"})
    (tmp_path / "yaml").mkdir()
    file = tmp_path / "yaml/own.yaml"
    file.write_text("path: ../data\ntrain: images/train\nnames: [cat]\n")
    assert len(open_dataset(file, "train")) == 1
    file.write_text("path: ../nowhere\ntrain: images/train\nnames: [cat]\n")
    with pytest.raises(InputError, match=r"'path' is '../nowhere', which is not a folder"):
        open_dataset(file, "train")


def test_orientation_is_applied_before_boxes_are_scaled(tmp_path):
    write_yolo(tmp_path, {"a": "0 .5 .25 1 .5"})
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (40, 20)).save(tmp_path / "images/train/a.png", exif=exif)
    image, target = open_dataset(tmp_path, "train")[0]
    assert image.shape == (3, 40, 20)
    assert target.boxes.tolist() == [[0, 0, 20, 20]]


def test_boxes_outside_are_clipped_or_dropped(tmp_path):
    write_yolo(tmp_path, {"a": "0 1 .5 .5 .5\n0 2 2 .1 .1\n0 .5 .5 0 .5\n"})
    dataset = open_dataset(tmp_path, "train")
    assert dataset.target(0).boxes.tolist() == [[30, 5, 40, 15]]
    assert dataset.report() == "2 of 3 boxes dropped (no extent after clipping), 1 clipped to the image"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 .5 .5 .5 .5\n2 .5 .5 .5 .5", "a.txt, line 2: unknown class 2; indices range from 0 to 1"),
        ("-1 .5 .5 .5 .5", "line 1: unknown class -1"),
        ("0.5 .5 .5 .5 .5", "line 1: unknown class 0.5"),
        ("0 .5 .5 .5", "line 1 has 4 columns"),
        ("0 .5 .5 .5 .5 1.1", "line 1 has 6 columns, of which the last, 1.1, is not a confidence"),
        ("0 .1 .1 .5 .1 .5 .5 .9", "line 1 has 8 columns"),
        ("cat .5 .5 .5 .5", "line 1: .*'cat'"),
        ("0 .5 .5 nan .5", "line 1: .*NaN"),
        ("0 .5 .5 inf .5", "line 1: .*infinite"),
    ],
)
def test_broken_line_is_named(tmp_path, text, message):
    write_yolo(tmp_path, {"a": text})
    with pytest.raises(InputError, match=message):
        open_dataset(tmp_path, "train")


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("train: images/none\nnames: [cat]", "which does not exist"),
        ("train: ../../elsewhere\nnames: [cat]", "outside the data set"),
        ("train: outside.txt\nnames: [cat]", "outside.txt, line 1: .* is outside"),
        ("train: missing.txt\nnames: [cat]", "missing.txt, line 1: the image .*x.png does not exist"),
        ("train: images/empty\nnames: [cat]", "contains no image"),
        ("train: 3\nnames: [cat]", "neither a path nor a list"),
        ("train: images/train", "'names' is None"),
        ("train: images/train\nnames: [cat, cat]", "a class twice"),
        ("train: images/train\nnames: [cat]\nnc: 2", "'nc' is 2, but 'names' has 1"),
        ("train: [images/train", "not well-formed YAML"),
        ("- a", "is not a YOLO description"),
        ("test: images/train\nnames: [cat]", "no split 'train'; it has: test"),
        ("train: !!python/object:os.system x\nnames: [cat]", "not well-formed YAML"),
    ],
)
def test_broken_description_is_named(tmp_path, yaml, message):
    folder = write_yolo(tmp_path / "data", {"a": "0 .5 .5 .5 .5"}, yaml)
    write_image(tmp_path / "x.png")
    (folder / "images/empty").mkdir()
    (folder / "outside.txt").write_text("../x.png\n")
    (folder / "missing.txt").write_text("x.png\n")
    with pytest.raises(InputError, match=message):
        open_dataset(folder, "train")


def test_labels_are_next_to_images_without_a_folder_named_images(tmp_path):
    write_image(tmp_path / "train/a.png", 40, 20)
    (tmp_path / "train/a.txt").write_text("0 .5 .5 1 1")
    (tmp_path / "data.yaml").write_text("train: train\nnames: [cat]")
    assert open_dataset(tmp_path, "train").target(0).boxes.tolist() == [[0, 0, 40, 20]]


def test_the_error_for_an_unknown_folder_lists_the_formats(tmp_path):
    with pytest.raises(InputError, match=r"looked for .*Annotations.*data\.yaml.*instances_"):
        open_dataset(tmp_path, "train")
    with pytest.raises(InputError, match="no such file or folder"):
        open_dataset(tmp_path / "none", "train")
