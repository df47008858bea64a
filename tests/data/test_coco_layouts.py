"""COCO files in the layouts that annotation tools write, and with their oddities."""

import json
from pathlib import Path

import pytest

from defeat.data import open_dataset, split_names
from defeat.data.problems import Problems
from defeat.data.recognise import recognise
from defeat.errors import InputError
from tests.data.folders import coco_content, write_coco, write_image

FIRST_BOXES = [[2, 3, 12, 23], [0.5, 1, 4.5, 6.5]]
BY_END = "images found by the end of their file_name (as it is, it names no file of the data set)"


def write_images(folder):
    write_image(folder / "a.png")
    write_image(folder / "sub/b.png")


def content_with(change):
    content = coco_content()
    change(content)
    return content


def renamed(first, second="sub/b.png"):
    """Content with these names of the images."""

    def change(content):
        content["images"][0]["file_name"], content["images"][1]["file_name"] = first, second

    return content_with(change)


def standard(folder, content):
    """A folder with the split train, of the images a.png and sub/b.png."""
    write_images(folder / "train2017")
    return write_coco(folder, content)


def names(dataset):
    return [sample.name for sample in dataset.samples]


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
