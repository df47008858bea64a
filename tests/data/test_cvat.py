"""Files of CVAT for images."""

import pytest

from defeat.data import open_dataset, split_names
from defeat.errors import InputError
from tests.data.folders import write_image

BOX = '<box label="cat" occluded="0" xtl="2.5" ytl="3" xbr="20" ybr="10"><attribute name="a">1</attribute></box>'
CORNERS = [2.5, 3, 20, 10]


def image(name, shapes=BOX, extra='width="40" height="30"'):
    return f'<image id="0" name="{name}" {extra}>{shapes}</image>'


def write(folder, *images, file="annotations.xml"):
    meta = "<version>1.1</version><meta><task><labels><label><name>cat</name></label></labels></task></meta>"
    folder.mkdir(parents=True, exist_ok=True)
    text = f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>{meta}{"".join(images)}</annotations>'
    (folder / file).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("shape", "corners"),
    [
        (BOX, CORNERS),
        ('<polygon label="cat" points="5,5;15,8;7,20.25"/>', [5, 5, 15, 20.25]),
        ('<ellipse label="cat" cx="20" cy="15" rx="5" ry="3"/>', [15, 12, 25, 18]),
        ('<ellipse label="cat" cx="20" cy="15" rx="5" ry="3" rotation="90"/>', [17, 10, 23, 20]),
        ('<mask label="cat" rle="1, 2" left="5" top="6" width="10" height="4"/>', [5, 6, 15, 10]),
    ],
)
def test_a_shape_becomes_the_box_around_it(tmp_path, shape, corners):
    write_image(tmp_path / "images/a.png")
    dataset = open_dataset(write(tmp_path, image("a.png", shape)), "train")
    assert dataset.classes == ("cat",)
    assert dataset.target(0).boxes[0].tolist() == pytest.approx(corners, abs=1e-3)
    assert dataset.report() == "the split 'all' is used as 'train'"


def test_a_rotated_box_becomes_upright_and_is_counted(tmp_path):
    write_image(tmp_path / "images/a.png")
    box = '<box label="cat" xtl="10" ytl="13" xbr="20" ybr="17" rotation="{}"/>'
    write(tmp_path, image("a.png", box.format(90) + box.format(30)))
    dataset = open_dataset(tmp_path, "train")
    # Half of 10 x 4 about (15, 15): at 30 degrees 5 cos + 2 sin = 5.3301, 5 sin + 2 cos = 4.2321.
    expected = [[13, 10, 17, 20], [15 - 5.3301, 15 - 4.2321, 15 + 5.3301, 15 + 4.2321]]
    for box, corners in zip(dataset.target(0).boxes.tolist(), expected, strict=True):
        assert box == pytest.approx(corners, abs=1e-3)
    assert "2 rotated boxes replaced by the upright boxes around them" in dataset.report()


@pytest.mark.parametrize("folder", [".", "images", "images/Train"])
def test_images_of_a_subset_are_a_split(tmp_path, folder):
    write_image(tmp_path / folder / "a.png")
    write_image(tmp_path / "images/Validation/b.png")
    dog = BOX.replace("cat", "dog")
    write(
        tmp_path,
        image("a.png", extra='subset="Train"'),
        image("b.png", dog, extra='width="40" height="30" subset="Validation"'),
    )
    assert split_names(tmp_path) == ["train", "val"]
    train, val = open_dataset(tmp_path, "train"), open_dataset(tmp_path, "val")
    assert train.classes == val.classes == ("cat", "dog")
    assert [train.target(0).boxes.tolist(), val.target(0).boxes.tolist()] == [[CORNERS], [CORNERS]]
    assert val.target(0).labels.tolist() == [1]
    assert train.report() is None


def test_images_of_the_same_name_in_two_subsets_are_told_apart(tmp_path):
    for subset in ("Train", "Validation"):
        write_image(tmp_path / "images" / subset / "a.png")
    write(tmp_path, *(image("a.png", extra=f'subset="{subset}"') for subset in ("Train", "Validation")))
    assert open_dataset(tmp_path, "train").samples[0].name == "images/Train/a.png"
    assert open_dataset(tmp_path, "val").samples[0].name == "images/Validation/a.png"


def test_an_image_without_shapes_is_background(tmp_path):
    for name in ("a", "b"):
        write_image(tmp_path / f"images/{name}.png")
    write(tmp_path, image("b.png", ""), image("a.png"))
    dataset = open_dataset(tmp_path / "annotations.xml", "train")
    assert [len(dataset.target(index).boxes) for index in range(2)] == [1, 0]
    assert "1 of 2 images without a shape read as background" in dataset.report()


def test_shapes_without_area_are_dropped_and_counted(tmp_path):
    write_image(tmp_path / "images/a.png")
    others = '<tag label="indoor"/><points label="cat" points="1,2"/><polyline label="cat" points="1,2;3,4"/><blob/>'
    write(tmp_path, image("a.png", BOX + others))
    report = open_dataset(tmp_path, "train").report()
    assert (
        "3 shapes dropped that are not the outline of an object (1 of an unknown kind, 1 points, 1 polyline)" in report
    )


def test_a_file_for_video_is_refused(tmp_path):
    write(tmp_path, '<track id="0" label="cat"><box frame="0" outside="0" xtl="1" ytl="1" xbr="9" ybr="9"/></track>')
    with pytest.raises(InputError, match=r"CVAT for video .*export the task as 'CVAT for images 1\.1'"):
        open_dataset(tmp_path, "train")


def test_a_resized_image_is_refused(tmp_path):
    write_image(tmp_path / "images/a.png")
    write(tmp_path, image("a.png", extra='width="80" height="60"'))
    with pytest.raises(InputError, match=r"it was resized by 0\.5"):
        open_dataset(tmp_path, "train")


def test_files_in_folders_of_splits_are_splits(tmp_path):
    for split in ("train", "test"):
        write_image(tmp_path / split / "images/a.png")
        write(tmp_path / split, image("a.png"))
    assert split_names(tmp_path) == ["test", "train"]
    assert open_dataset(tmp_path, "test").samples[0].name == "test/images/a.png"
