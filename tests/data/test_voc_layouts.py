"""VOC annotation files in the layouts that annotation tools write."""

import os
from pathlib import Path

import pytest

from defeat.data import open_dataset, split_names
from defeat.errors import InputError
from tests.data.folders import voc_object, write_image

BOX = voc_object("cat", (3, 4, 20, 10))
CORNERS = [2, 3, 20, 10]


def write_pair(image: Path, annotation: Path, objects: str = BOX, file_name: str | None = None) -> None:
    """An image of 40 x 30 pixels, and its annotation file."""
    for path in (image, annotation):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_image(image)
    name = image.name if file_name is None else file_name
    annotation.write_text(
        f"<annotation><folder>C:\\photos</folder><filename>{name}</filename><path>C:\\photos\\{name}</path>"
        f"<size><width>40</width><height>30</height><depth>3</depth></size>{objects}</annotation>"
    )


@pytest.mark.parametrize(
    ("images", "annotations"),
    [
        ("", ""),  # LabelImg
        ("images", "annotations"),  # Kaggle
        ("images", "Annotations"),  # Label Studio
        ("JPEGImages", "Annotations"),  # VOC without ImageSets
        ("data", "labels"),  # FiftyOne
    ],
)
def test_files_without_lists_are_one_split(tmp_path, images, annotations):
    for name in ("a", "b"):
        write_pair(tmp_path / images / f"{name}.png", tmp_path / annotations / f"{name}.xml")
    assert split_names(tmp_path) == ["all"]
    dataset = open_dataset(tmp_path, "train")
    assert dataset.report() == "the split 'all' is used as 'train'"
    assert [Path(sample.name).name for sample in dataset.samples] == ["a.png", "b.png"]
    assert dataset.classes == ("cat",)
    assert dataset.target(1).boxes.tolist() == [CORNERS]


@pytest.mark.parametrize(("train", "val"), [("train", "val"), ("Train", "valid"), ("training", "validation")])
@pytest.mark.parametrize("nested", [False, True])
def test_folders_of_splits_are_splits(tmp_path, train, val, nested):
    for folder, names in ((train, ("a", "b")), (val, ("a",))):
        for name in names:
            images, annotations = ("images", "annotations") if nested else ("", "")
            write_pair(
                tmp_path / folder / images / f"{name}.png",
                tmp_path / folder / annotations / f"{name}.xml",
                voc_object("cat" if folder == train else "dog", (3, 4, 20, 10)),
            )
    assert split_names(tmp_path) == ["train", "val"]
    training, evaluation = open_dataset(tmp_path, "train"), open_dataset(tmp_path, "val")
    assert training.classes == evaluation.classes == ("cat", "dog")
    assert [len(training), len(evaluation)] == [2, 1]
    assert training.target(0).labels.tolist() == [0]
    assert evaluation.target(0).labels.tolist() == [1]


@pytest.mark.parametrize(
    "line", ["{0}", "{0}.png", "images/{0}.png annotations/{0}.xml", "./images/{0}.png", "images\\{0}.png"]
)
def test_lists_beside_the_folders_name_the_splits(tmp_path, line):
    for name in ("a", "b", "c"):
        write_pair(tmp_path / "images" / f"{name}.png", tmp_path / "annotations" / f"{name}.xml")
    (tmp_path / "train.txt").write_text("".join(f"{line.format(name)}\n" for name in "ab"))
    (tmp_path / "valid_list.txt").write_text(f"{line.format('c')}\n")
    (tmp_path / "label_list.txt").write_text("cat\n")
    assert split_names(tmp_path) == ["train", "val"]
    assert [sample.name for sample in open_dataset(tmp_path, "train").samples] == ["images/a.png", "images/b.png"]
    assert [sample.name for sample in open_dataset(tmp_path, "val").samples] == ["images/c.png"]


def test_a_list_that_names_a_missing_file_is_refused(tmp_path):
    for name in ("a", "b"):
        write_pair(tmp_path / f"{name}.png", tmp_path / f"{name}.xml")
    (tmp_path / "train.txt").write_text("a\nb\nc\n")
    with pytest.raises(InputError, match="A list names 'c', which does not exist"):
        open_dataset(tmp_path, "train")
    assert len(open_dataset(tmp_path, "train", on_bad_data="skip")) == 2


def test_an_image_without_file_is_asked_about(tmp_path):
    write_pair(tmp_path / "a.png", tmp_path / "a.xml")
    write_image(tmp_path / "b.png")
    with pytest.raises(InputError, match=r"1 of 2 images have no annotation file, such as b\.png.*--unannotated"):
        open_dataset(tmp_path, "train")
    background = open_dataset(tmp_path, "train", unannotated="background")
    assert [len(background.target(index).labels) for index in range(2)] == [1, 0]
    assert len(open_dataset(tmp_path, "train", unannotated="drop")) == 1


def test_an_annotation_file_without_image_is_named(tmp_path):
    for name in ("a", "b"):
        write_pair(tmp_path / f"{name}.png", tmp_path / f"{name}.xml")
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match=r"a\.xml has no image"):
        open_dataset(tmp_path, "train")


@pytest.mark.parametrize("file_name", ["photo.png", "photo", "C:\\pictures\\photo.png"])
def test_an_image_of_another_name_is_found_by_the_file_name_inside(tmp_path, file_name):
    write_pair(tmp_path / "images/photo.png", tmp_path / "Annotations/task-7.xml", file_name=file_name)
    assert [sample.name for sample in open_dataset(tmp_path, "train").samples] == ["images/photo.png"]


def test_files_of_macos_are_ignored(tmp_path):
    write_pair(tmp_path / "a.png", tmp_path / "a.xml")
    for name in ("._a.xml", "._a.png", ".DS_Store", "__MACOSX/a.xml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    assert len(open_dataset(tmp_path, "train")) == 1


def test_a_resized_image_is_refused_with_its_factor(tmp_path):
    write_pair(tmp_path / "a.png", tmp_path / "a.xml")
    (tmp_path / "a.xml").write_text((tmp_path / "a.xml").read_text().replace("40<", "80<").replace("30<", "60<"))
    with pytest.raises(InputError, match=r"80 x 60 pixels, but .* has 40 x 30: it was resized by 0\.5"):
        open_dataset(tmp_path, "train")


def test_xml_files_of_something_else_are_not_a_data_set(tmp_path):
    (tmp_path / "project.xml").write_text("<annotations/>")
    with pytest.raises(InputError, match="not a data set of a known format"):
        open_dataset(tmp_path, "train")


def test_a_file_of_something_else_does_not_join_the_splits(tmp_path):
    for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
        write_pair(tmp_path / split / f"{name}.png", tmp_path / split / f"{name}.xml")
    (tmp_path / "project.xml").write_text("<project/>")
    assert split_names(tmp_path) == ["train", "val"]
    dataset = open_dataset(tmp_path, "train")
    assert len(dataset) == 2
    assert dataset.report() == "1 other .xml files ignored"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_not_waited_for(tmp_path):
    write_pair(tmp_path / "b.png", tmp_path / "b.xml")
    os.mkfifo(tmp_path / "a.xml")
    assert len(open_dataset(tmp_path, "train")) == 1
