"""COCO files in the places where tools write them."""

from pathlib import Path

import pytest

from defeat.data import open_dataset, split_names
from defeat.data.problems import Problems
from defeat.data.recognise import recognise
from defeat.errors import InputError
from tests.data.coco_folders import FIRST_BOXES, content_with, names, write_images
from tests.data.folders import coco_content, write_coco


@pytest.mark.parametrize(
    ("file", "images", "split"),
    [
        ("train.json", "images", "train"),
        ("train.json", "images/train", "train"),
        ("train.json", ".", "train"),
        ("instances_val2017.json", "images", "val"),
        ("instances_default.json", "images", "default"),  # CVAT
        ("valid.json", "images", "val"),
        ("val.json", "valid", "val"),
        ("coco_test.json", "images", "test"),
        ("train-annotations.json", "train", "train"),
        ("result.json", "images", "all"),  # Label Studio
        ("labels.json", "data", "all"),  # FiftyOne
        ("my_export.json", "images", "all"),
        ("_annotations.coco.json", ".", "all"),  # Roboflow without splits
        ("train/labels.json", "train/data", "train"),  # FiftyOne
        ("validation/labels.json", "validation/data", "val"),
        ("fold1/labels.json", "fold1/data", "fold1"),
        ("Train/annotations.json", "Train", "train"),
        ("valid/coco.json", "valid/images", "val"),
    ],
)
def test_files_are_found_where_tools_write_them(tmp_path, file, images, split):
    write_images(tmp_path / images)
    write_coco(tmp_path, coco_content(), file)
    assert split_names(tmp_path) == [split]
    dataset = open_dataset(tmp_path, split)
    assert names(dataset) == [(Path(images) / name).as_posix() for name in ("a.png", "sub/b.png")]
    assert dataset.target(0).boxes.tolist() == FIRST_BOXES
    assert dataset.report() is None


def test_one_file_per_split_at_the_root(tmp_path):
    write_images(tmp_path / "images")
    write_coco(tmp_path, coco_content(), "train.json")
    write_coco(tmp_path, content_with(lambda c: c["images"].pop(1)), "val.json")
    write_coco(tmp_path, coco_content(), "merged.json")
    assert split_names(tmp_path) == ["train", "val"]
    assert [len(open_dataset(tmp_path, split)) for split in ("train", "val")] == [2, 1]
    assert open_dataset(tmp_path, "val").report() == "'merged.json' is not used (its name is not that of a split)"


def test_the_only_file_is_used_for_training(tmp_path):
    write_images(tmp_path / "images")
    write_coco(tmp_path, coco_content(), "result.json")
    assert open_dataset(tmp_path, "train").report() == "the split 'all' is used as 'train'"


@pytest.mark.parametrize(("first", "second"), [("a.json", "b.json"), ("train_1.json", "train_2.json")])
def test_several_files_at_the_root_are_asked_about(tmp_path, first, second):
    write_images(tmp_path / "images")
    for file in (first, second):
        write_coco(tmp_path, coco_content(), file)
    with pytest.raises(InputError, match=rf"several COCO files \({first}, {second}\): name one of them with --data"):
        open_dataset(tmp_path, "train")
    assert len(open_dataset(tmp_path / second, "train")) == 2


def test_several_files_of_a_split_are_asked_about(tmp_path):
    write_images(tmp_path / "train")
    for file in ("train/a.json", "train/b.json"):
        write_coco(tmp_path, coco_content(), file)
    with pytest.raises(InputError, match=r"train has several COCO files \(a\.json, b\.json\)"):
        open_dataset(tmp_path, "train")


@pytest.mark.parametrize(
    ("file", "images", "split"),
    [
        ("export.json", ".", "all"),
        ("export.json", "images", "all"),
        ("val.json", "images", "val"),
        ("annotations/instances_train2017.json", "train2017", "train"),
    ],
)
def test_a_file_can_be_named(tmp_path, file, images, split):
    write_images(tmp_path / images)
    path = write_coco(tmp_path, coco_content(), file) / file
    write_coco(tmp_path, coco_content(), "other.json")
    assert split_names(path) == [split]
    dataset = open_dataset(path, split)
    assert names(dataset) == [(Path(images) / name).as_posix() for name in ("a.png", "sub/b.png")]
    assert dataset.target(0).boxes.tolist() == FIRST_BOXES


@pytest.mark.parametrize("folder", [".", "train", "images"])
@pytest.mark.parametrize("of_a_file", [True, False])
def test_the_folder_of_the_images_can_be_named(tmp_path, folder, of_a_file):
    write_images(tmp_path / "elsewhere" / folder)
    write_images(tmp_path / "labels/images")  # not these
    path = write_coco(tmp_path / "labels", coco_content(), "train.json") / ("train.json" if of_a_file else "")
    layout = recognise(path, tmp_path / "elsewhere")
    dataset = layout.read("train", None, Problems())
    assert [Path(dataset.image_path(index)) for index in range(2)] == [
        tmp_path / "elsewhere" / folder / name for name in ("a.png", "sub/b.png")
    ]


def test_a_folder_of_images_that_does_not_exist_is_refused(tmp_path):
    path = write_coco(tmp_path, coco_content(), "train.json")
    with pytest.raises(InputError, match=r"--images: .*nowhere is not a folder"):
        recognise(path, tmp_path / "nowhere")


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"images": {"a": 1}, "categories": []}', '{"images": 3, "annotations": []}', "{", ""]
)
@pytest.mark.parametrize("file", ["a.json", "train/a.json", "annotations/a.json", "train/labels.json"])
def test_json_of_something_else_is_not_taken(tmp_path, file, text):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    for path in (tmp_path, tmp_path / file):
        with pytest.raises(InputError, match="not a data set of a known format"):
            open_dataset(path, "train")


def test_a_file_among_many_of_another_format_is_found_by_its_name(tmp_path):
    write_images(tmp_path)
    for number in range(20):
        (tmp_path / f"{number:02d}.json").write_text('{"shapes": []}')
    write_coco(tmp_path, coco_content(), "result.json")
    assert split_names(tmp_path) == ["all"]


def test_a_list_of_images_behind_long_lists_is_found(tmp_path):
    write_images(tmp_path)
    content = coco_content()
    last = {"info": "y" * (3 << 20), "images": content.pop("images")}
    write_coco(tmp_path, content | last, "result.json")
    assert len(open_dataset(tmp_path, "all")) == 2


def test_files_of_macos_are_ignored(tmp_path):
    write_images(tmp_path / "train2017")
    write_coco(tmp_path, coco_content())
    for name in ("annotations/._instances_train2017.json", "__MACOSX/_annotations.coco.json", "._a.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    assert split_names(tmp_path) == ["train"]
    assert len(open_dataset(tmp_path, "train")) == 2


def test_a_data_set_in_a_hidden_folder_is_found(tmp_path):
    write_images(tmp_path / ".cache/train/data")
    write_coco(tmp_path / ".cache", coco_content(), "train/labels.json")
    assert split_names(tmp_path / ".cache") == ["train"]
