"""Images of COCO files whose file_name is of another machine or folder."""

import pytest

from defeat.data import open_dataset
from defeat.errors import InputError
from tests.data.coco_folders import BY_END, FIRST_BOXES, names, renamed, standard
from tests.data.folders import coco_content, write_coco, write_image


@pytest.mark.parametrize(
    "name",
    [
        "/home/me/data/train2017/a.png",
        "/a.png",
        "C:\\data\\a.png",
        "\\\\server\\share\\train2017\\a.png",
        "train2017\\a.png",
        "../images/a.png",
        "..\\/..\\/upload\\/1\\/a.png",  # Label Studio
        "https://example.org/a.png",
    ],
)
def test_a_file_name_of_another_machine_is_found_by_its_end(tmp_path, name):
    dataset = open_dataset(standard(tmp_path, renamed(name)), "train")
    assert names(dataset) == ["train2017/a.png", "train2017/sub/b.png"]
    assert dataset.target(0).boxes.tolist() == FIRST_BOXES
    assert dataset.report() == f"1 {BY_END}"


def test_all_file_names_of_another_folder_are_found_by_their_end(tmp_path):
    dataset = open_dataset(standard(tmp_path, renamed("old/place/a.png", "old/place/sub/b.png")), "train")
    assert names(dataset) == ["train2017/a.png", "train2017/sub/b.png"]
    assert dataset.report() == f"2 {BY_END}"


def test_one_missing_file_among_others_is_never_guessed(tmp_path):
    folder = standard(tmp_path, renamed("other/b.png"))
    with pytest.raises(InputError, match=r"other/b\.png' does not exist"):
        open_dataset(folder, "train")
    assert names(open_dataset(folder, "train", on_bad_data="skip")) == ["train2017/sub/b.png"]


def test_the_longest_end_counts(tmp_path):
    folder = standard(tmp_path, renamed("/x/sub/a.png"))
    write_image(folder / "train2017/sub/a.png")
    assert names(open_dataset(folder, "train")) == ["train2017/sub/a.png", "train2017/sub/b.png"]


def test_an_image_in_a_folder_below_is_found_but_not_that_of_another_split(tmp_path):
    folder = standard(tmp_path, renamed("/x/c.png"))
    write_image(folder / "val/c.png")
    with pytest.raises(InputError, match="is outside the data set, which has no such image"):
        open_dataset(folder, "train")
    write_image(folder / "more/deep/c.png")
    assert names(open_dataset(folder, "train")) == ["more/deep/c.png", "train2017/sub/b.png"]


def test_an_ambiguous_end_is_a_problem(tmp_path):
    folder = standard(tmp_path, renamed("/x/a.png"))
    write_image(folder / "images/a.png")
    with pytest.raises(InputError, match=r"'/x/a\.png' may be .*a\.png or .*a\.png"):
        open_dataset(folder, "train")
    assert names(open_dataset(folder, "train", on_bad_data="skip")) == ["train2017/sub/b.png"]


def test_two_file_names_with_one_end_are_both_a_problem(tmp_path):
    content = renamed("/x/a.png", "/y/a.png")
    content["images"].append({"id": 5, "file_name": "sub/b.png", "width": 40, "height": 30})
    folder = standard(tmp_path, content)
    with pytest.raises(InputError, match=r"'/y/a\.png' leads to .*a\.png, the file of another image"):
        open_dataset(folder, "train")
    dataset = open_dataset(folder, "train", on_bad_data="skip")
    assert names(dataset) == ["train2017/sub/b.png"]
    assert BY_END not in str(dataset.report())


def test_an_image_that_exists_is_kept_beside_one_with_the_same_end(tmp_path):
    folder = standard(tmp_path, renamed("a.png", "/x/a.png"))
    dataset = open_dataset(folder, "train", on_bad_data="skip")
    assert names(dataset) == ["train2017/a.png"]
    assert dataset.target(0).boxes.tolist() == FIRST_BOXES


def test_a_search_never_leaves_the_data_set(tmp_path):
    write_image(tmp_path / "outside.png")
    folder = standard(tmp_path / "data", renamed(f"{tmp_path}/outside.png"))
    with pytest.raises(InputError, match="is outside the data set"):
        open_dataset(folder, "train")


def test_one_file_for_images_in_the_folders_of_splits(tmp_path):
    write_image(tmp_path / "train/a.png")
    write_image(tmp_path / "valid/sub/b.png")
    write_coco(tmp_path, coco_content(), "result.json")
    dataset = open_dataset(tmp_path, "all")
    assert names(dataset) == ["train/a.png", "valid/sub/b.png"]
    assert dataset.report() == f"2 {BY_END}"
