"""YOLO data sets as annotation tools and other machines leave them."""

from pathlib import Path

import pytest

from defeat.data import open_dataset, split_names
from defeat.errors import InputError
from tests.data.folders import write_image, write_yolo

# Of an image of 40 x 20 pixels.
LABEL = "1 0.5 0.5 0.5 0.25\n"
CORNERS = [10, 7.5, 30, 12.5]
CLASSES = "cat\ndog\n"


def write(folder, files):
    """Images of 40 x 20 pixels, and text files."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            write_image(path, 40, 20)
        else:
            path.write_text(text)
    return folder


def pairs(*stems, images="images", labels="labels"):
    """Images and label files in these folders."""
    return {f"{images}/{stem}.png": None for stem in stems} | {f"{labels}/{stem}.txt": LABEL for stem in stems}


def names(dataset):
    return [sample.name for sample in dataset.samples]


def require_dogs(dataset, count):
    """Every image has the one box."""
    assert len(dataset) == count
    for index in range(count):
        target = dataset.target(index)
        assert target.boxes.tolist() == [pytest.approx(CORNERS, abs=1e-3)]
        assert [dataset.classes[label] for label in target.labels] == ["dog"]


@pytest.mark.parametrize(
    ("path", "inner"),
    [
        ("/content/drive/MyDrive/animals", "."),  # Colab
        ("/home/me/exports/animals", "."),  # FiftyOne
        ("C:\\Users\\me\\animals", "."),
        ("../datasets/animals", "."),  # relative to the data sets of Ultralytics
        ("animals", "."),
        ("/content/drive/MyDrive/animals", "animals"),
        ("C:\\Users\\me\\data\\animals", "data/animals"),
    ],
)
def test_a_path_of_another_machine_is_the_folder_of_the_file(tmp_path, path, inner):
    write(tmp_path / inner, pairs("a", images="images/train", labels="labels/train"))
    (tmp_path / "dataset.yaml").write_text(f"path: {path}\ntrain: ./images/train/\nnames: [cat, dog]\n")
    dataset = open_dataset(tmp_path, "train")
    require_dogs(dataset, 1)
    assert names(dataset) == ["images/train/a.png"]
    folder = "the folder of the file" if inner == "." else repr(inner)
    assert dataset.report() == f"'path' is {path!r}, which is not a folder: {folder} is read"


def test_a_path_that_exists_is_not_replaced(tmp_path):
    write(tmp_path, pairs("a", images="images/train", labels="labels/train"))
    (tmp_path / "other").mkdir()
    (tmp_path / "data.yaml").write_text("path: other\ntrain: images/train\nnames: [cat, dog]\n")
    with pytest.raises(InputError, match="other/images/train, which does not exist"):
        open_dataset(tmp_path, "train")


@pytest.mark.parametrize(
    ("entry", "note"),
    [
        ("/content/animals/images/train", True),
        ("C:\\Users\\me\\animals\\images\\train", True),
        ("\\\\server\\share\\images\\train", True),
        ("/images/train", True),
        ("animals/images/train", True),
        ("../../animals/images/train", True),
        ("images\\train", True),
        ("..\\images\\train", True),
        ("images/train/", False),
    ],
)
def test_a_split_of_another_machine_is_its_end_in_the_data_folder(tmp_path, entry, note):
    write(tmp_path, pairs("a", images="images/train", labels="labels/train"))
    (tmp_path / "data.yaml").write_text(f"train: {entry}\nnames: [cat, dog]\n")
    dataset = open_dataset(tmp_path, "train")
    require_dogs(dataset, 1)
    assert dataset.report() == (f"'train' names {entry!r}, read as 'images/train'" if note else None)


@pytest.mark.parametrize("name", ["animals.yaml", "coco128.YML"])
def test_a_description_may_have_any_name(tmp_path, name):
    write(tmp_path, pairs("a"))
    (tmp_path / name).write_text("train: images\nnames: [cat, dog]\n")
    (tmp_path / "hyp.yaml").write_text("lr0: 0.01\n")
    (tmp_path / "broken.yaml").write_text("[")
    (tmp_path / "names-only.yaml").write_text("names: [x]\n")
    require_dogs(open_dataset(tmp_path, "train"), 1)
    require_dogs(open_dataset(tmp_path / name, "train"), 1)


def test_a_description_of_a_usual_name_goes_before_others(tmp_path):
    write_yolo(tmp_path, {"a": LABEL})
    (tmp_path / "other.yaml").write_text("train: nowhere\nnames: [x]\n")
    require_dogs(open_dataset(tmp_path, "train"), 1)


def test_a_description_of_the_classes_alone_leaves_the_splits_to_the_folders(tmp_path):
    write(tmp_path, pairs("a", "b") | {"data.yaml": "names: [cat, dog]\n"})
    assert split_names(tmp_path) == ["all"]
    require_dogs(open_dataset(tmp_path, "train"), 2)


@pytest.mark.parametrize("key", ["validation", "valid"])
def test_other_names_of_the_validation_split(tmp_path, key):
    write(tmp_path, pairs("a", images="images/train", labels="labels/train"))
    write(tmp_path, pairs("b", "c", images="images/val", labels="labels/val"))
    (tmp_path / "data.yaml").write_text(f"train: images/train\n{key}: images/val\nnames: [cat, dog]\n")
    assert split_names(tmp_path) == ["train", "val"]
    dataset = open_dataset(tmp_path, "val")
    require_dogs(dataset, 2)
    assert dataset.report() == f"the key {key!r} is read as 'val'"


def test_the_own_name_of_a_split_goes_before_others(tmp_path):
    yaml = "train: images/train\nval: images/train\nvalid: nowhere\ntraining: {epochs: 3}\nnames: [cat, dog]\n"
    dataset = open_dataset(write_yolo(tmp_path, {"a": LABEL}, yaml), "val")
    require_dogs(dataset, 1)
    assert dataset.report() == "the key 'valid' is ignored: there is 'val'"


LABEL_STUDIO = {"classes.txt": CLASSES, "notes.json": '{"categories": [{"id": 0, "name": "cat"}], "info": {}}'}


@pytest.mark.parametrize(
    ("images", "labels", "extra"),
    [
        ("images", "labels", LABEL_STUDIO),
        (".", ".", {"classes.txt": CLASSES}),  # LabelImg
        ("images", "labels", {"labels/classes.txt": CLASSES}),
        ("data", "data", {"obj.names": CLASSES, "images.txt": "data/a.png\ndata/b.png\n"}),  # FiftyOne
        ("img", "txt", {"animals.names": CLASSES}),
        ("Images", "Labels", {"classes.txt": "\ufeffcat\r\ndog\r\n\r\n"}),
        ("images", "images", {"classes.txt": CLASSES}),
    ],
)
def test_a_folder_with_a_file_of_classes_is_one_split(tmp_path, images, labels, extra):
    write(tmp_path, pairs("a", "b", images=images, labels=labels) | extra)
    assert split_names(tmp_path) == ["all"]
    dataset = open_dataset(tmp_path, "train")
    require_dogs(dataset, 2)
    assert dataset.classes == ("cat", "dog")
    assert [Path(name).name for name in names(dataset)] == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("images/{}", "labels/{}"),
        ("{}/images", "{}/labels"),
        ("{}", "{}"),
        ("images/{}", "annotations/{}"),
    ],
)
@pytest.mark.parametrize(("train", "val"), [("train", "val"), ("training", "Valid")])
def test_folders_of_splits_are_splits(tmp_path, images, labels, train, val):
    write(tmp_path, pairs("a", "b", images=images.format(train), labels=labels.format(train)))
    write(tmp_path, pairs("a", images=images.format(val), labels=labels.format(val)))
    write_image(tmp_path / images.format(val) / "b.png", 40, 20)
    (tmp_path / "classes.txt").write_text(CLASSES)
    assert split_names(tmp_path) == ["train", "val"]
    require_dogs(open_dataset(tmp_path, "train"), 2)
    # The label file of the same name in another split is not that of the image.
    require_dogs(open_dataset(tmp_path, "val", unannotated="drop"), 1)


def test_files_of_classes_in_each_split_must_agree_as_far_as_they_go(tmp_path):
    for split, classes in (("train", CLASSES), ("valid", "cat\n")):
        write(tmp_path, pairs("a", images=split, labels=split) | {f"{split}/_darknet.labels": classes})
    dataset = open_dataset(tmp_path, "val")
    require_dogs(dataset, 1)
    assert dataset.report() == "1 of 2 files of classes are shorter than 'train/_darknet.labels'"


def test_images_outside_the_folders_of_splits_make_one_split_with_a_note(tmp_path):
    write(tmp_path, pairs("a", images="train", labels="train") | pairs("b", images="more", labels="more"))
    (tmp_path / "classes.txt").write_text(CLASSES)
    dataset = open_dataset(tmp_path, "all")
    require_dogs(dataset, 2)
    assert dataset.report() == "1 of 2 images are in no folder of a split: all are one split"


def test_lists_in_the_folder_name_the_splits(tmp_path):
    write(tmp_path, pairs("a", "b", "c"))
    lists = {"train.txt": "images/a.png\nimages/b.png\n", "valid.txt": "images\\c.png\n", "test.txt": "nothing\n"}
    write(tmp_path, {"classes.txt": CLASSES, **lists})
    assert split_names(tmp_path) == ["train", "val"]
    assert names(open_dataset(tmp_path, "train")) == ["images/a.png", "images/b.png"]
    dataset = open_dataset(tmp_path, "val")
    require_dogs(dataset, 1)
    assert dataset.report() == (
        "test.txt ignored: it begins with no name of an image, "
        "1 listed paths read relative to the data folder, with '/'"
    )


def test_label_files_without_an_image_are_counted(tmp_path):
    write(tmp_path, pairs("a", "b") | {"classes.txt": CLASSES, "labels/README.txt": "by me\n"})
    (tmp_path / "images/b.png").unlink()
    dataset = open_dataset(tmp_path, "train")
    require_dogs(dataset, 1)
    assert "1 label files without an image ignored" in dataset.report()


def test_label_files_elsewhere_are_counted(tmp_path):
    write(tmp_path, pairs("a", "b", images="img", labels="txt") | {"classes.txt": CLASSES})
    report = open_dataset(tmp_path, "train").report()
    assert "2 label files read for images of the same name in other folders" in report


@pytest.mark.parametrize("leading", ["data/", "./", "/content/darknet/data/", "data\\", "C:\\x\\", ""])
@pytest.mark.parametrize("file", ["obj.data", "animals.data"])
def test_darknet(tmp_path, leading, file):
    write(tmp_path, pairs("a", "b", images="obj_train_data", labels="obj_train_data"))
    write_image(tmp_path / "obj_valid_data/c.png", 40, 20)
    (tmp_path / "obj_valid_data/c.txt").write_text(LABEL)
    (tmp_path / "obj.names").write_text(CLASSES)
    (tmp_path / file).write_text(
        "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\nbackup = backup/\n"
    )
    (tmp_path / "train.txt").write_text("".join(f"{leading}obj_train_data/{stem}.png\n" for stem in "ba"))
    (tmp_path / "valid.txt").write_text(f"{leading}obj_valid_data/c.png\n")
    assert split_names(tmp_path) == ["train", "val"]
    dataset = open_dataset(tmp_path, "train")
    require_dogs(dataset, 2)
    assert names(dataset) == ["obj_train_data/b.png", "obj_train_data/a.png"]
    assert "'names' names 'data/obj.names', read as 'obj.names'" in dataset.report()
    assert ("2 listed paths read in the data folder, without" in dataset.report()) == (leading not in ("", "./"))
    require_dogs(open_dataset(tmp_path / file, "val"), 1)


def test_the_paths_of_a_list_lose_the_same_beginning(tmp_path):
    """Otherwise, the two images of one name would be one."""
    write(tmp_path, pairs("a", images=".", labels=".") | {"data.yaml": "train: list.txt\nnames: [cat, dog]\n"})
    (tmp_path / "list.txt").write_text("/x/train/a.png\n/x/val/a.png\n")
    with pytest.raises(InputError, match=r"line 2: '/x/val/a\.png' is outside the data set"):
        open_dataset(tmp_path, "train")
    dataset = open_dataset(tmp_path, "train", on_bad_data="skip")
    require_dogs(dataset, 1)
    assert "1 listed paths read in the data folder, without 'x/train'" in dataset.report()


def test_confidences_are_ignored_and_counted_but_points_are_not(tmp_path):
    labels = {
        "a": "0 .5 .5 .5 .25 .75\n1 .25 .5 .5 .5 1\n",
        "b": "1 .25 .5 .75 .1 .5 .9",  # a polygon
        "c": "0 .25 .1 .75 .1 .75 .9 .25 .9",  # an oriented box
    }
    dataset = open_dataset(write_yolo(tmp_path, labels), "train")
    boxes = [dataset.target(index).boxes.tolist() for index in range(3)]
    expected = [[CORNERS, [0, 5, 20, 15]], [[10, 2, 30, 18]], [[10, 2, 30, 18]]]
    assert boxes == [[pytest.approx(box, abs=1e-3) for box in image] for image in expected]
    assert dataset.report() == "a sixth column (confidence) ignored in 2 lines"


def test_label_files_beside_the_images_are_read_where_no_others_are(tmp_path):
    write(tmp_path, pairs("a", labels="images") | {"data.yaml": "train: images\nnames: [cat, dog]\n"})
    dataset = open_dataset(tmp_path, "train")
    require_dogs(dataset, 1)
    assert dataset.report() == "1 label files beside the images read: there are none in 'labels'"


def test_hidden_files_are_ignored(tmp_path):
    write_yolo(tmp_path, {"a": LABEL}, "train: images\nval: list.txt\nnames: [cat, dog]\n")
    for name in ("images/train/._a.png", "images/.cache/b.png", "images/__MACOSX/c.png", "images/train/.DS_Store"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    (tmp_path / "list.txt").write_text("images/train/a.png\nimages/train/._a.png\n__MACOSX/images/train/a.png\n")
    require_dogs(open_dataset(tmp_path, "train"), 1)
    dataset = open_dataset(tmp_path, "val")
    require_dogs(dataset, 1)
    assert dataset.report() == "2 listed files of macOS ignored"
    (tmp_path / "data.yaml").unlink()
    (tmp_path / "._other.yaml").write_text("train: nowhere\nnames: [x]\n")
    (tmp_path / "classes.txt").write_text(CLASSES)
    (tmp_path / "labels/train/._a.txt").write_bytes(b"\0\5\x16\7")
    require_dogs(open_dataset(tmp_path, "train"), 1)


@pytest.mark.parametrize("described", [True, False])
def test_images_without_a_label_file_are_background_unless_said_otherwise(tmp_path, described):
    write_yolo(tmp_path, {"a": LABEL, "b": None, "c": ""}, "train: images/train\nnames: [cat, dog]\n")
    if not described:
        (tmp_path / "data.yaml").unlink()
        (tmp_path / "classes.txt").write_text(CLASSES)
    background = open_dataset(tmp_path, "train")
    assert [len(background.target(index).labels) for index in range(3)] == [1, 0, 0]
    assert background.report() == "1 of 3 images without an annotation file read as background"
    dropped = open_dataset(tmp_path, "train", unannotated="drop")
    assert names(dropped) == ["images/train/a.png", "images/train/c.png"]
    assert dropped.report() == "1 of 3 images without an annotation file dropped"
    with pytest.raises(InputError, match=r"1 of 3 images have no annotation file, such as images/train/b\.png"):
        open_dataset(tmp_path, "train", unannotated="error")


def test_a_split_without_any_label_file_can_be_background(tmp_path):
    write_yolo(tmp_path, {"a": None})
    with pytest.raises(InputError, match="with --unannotated background"):
        open_dataset(tmp_path, "train")
    assert len(open_dataset(tmp_path, "train", unannotated="background")) == 1


def test_a_coco_data_set_with_label_files_stays_one(tmp_path):
    write(tmp_path, pairs("a", images="train", labels="train") | {"classes.txt": CLASSES})
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_train.json").write_text(
        '{"images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 20}], '
        '"categories": [{"id": 1, "name": "horse"}], "annotations": []}'
    )
    assert open_dataset(tmp_path, "train").classes == ("horse",)


def test_xml_files_of_the_same_images_are_noted(tmp_path):
    write(tmp_path, pairs("a", "b") | {"classes.txt": CLASSES, "xml/a.xml": "<annotation/>"})
    dataset = open_dataset(tmp_path, "train")
    require_dogs(dataset, 2)
    assert "1 .xml or .json files ignored" in dataset.report()


def test_text_files_that_are_no_labels_are_not_a_data_set(tmp_path):
    write(tmp_path, {"a.png": None, "a.txt": "a photograph of 3 cats\n", "classes.txt": CLASSES})
    with pytest.raises(InputError, match="not a data set of a known format"):
        open_dataset(tmp_path, "train")
