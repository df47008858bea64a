import pytest

from defeat.data import open_dataset, split_names
from defeat.errors import InputError
from tests.data.folders import voc_object, write_image, write_voc


def test_corners_count_from_one_and_include_both_ends(tmp_path):
    write_voc(tmp_path, {"train": {"a": voc_object("cat", (1, 1, 40, 30)) + voc_object("cat", (3, 4, 3.5, 9))}})
    target = open_dataset(tmp_path, "train").target(0)
    # The whole image is 1 1 40 30 in the file; xmin-1, ymin-1, xmax, ymax.
    assert target.boxes.tolist() == [[0, 0, 40, 30], [2, 3, 3.5, 9]]
    assert target.size == (30, 40)


def test_difficult_is_kept(tmp_path):
    objects = voc_object("cat", (1, 1, 9, 9), "<difficult>1</difficult>") + voc_object("cat", (1, 1, 9, 9))
    target = open_dataset(write_voc(tmp_path, {"train": {"a": objects}}), "train").target(0)
    assert target.difficult.tolist() == [True, False]
    assert target.crowd.tolist() == [False, False]


def test_classes_are_the_sorted_names_of_all_annotations(tmp_path):
    splits = {"train": {"a": voc_object("dog", (1, 1, 9, 9))}, "test": {"b": voc_object("cat", (1, 1, 9, 9))}}
    write_voc(tmp_path, splits)
    for split, label in (("train", 1), ("test", 0)):
        dataset = open_dataset(tmp_path, split)
        assert dataset.classes == ("cat", "dog")
        assert dataset.target(0).labels.tolist() == [label]


def test_parts_of_an_object_are_not_objects(tmp_path):
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    dataset = open_dataset(write_voc(tmp_path, {"train": {"a": voc_object("person", (1, 1, 9, 9), part)}}), "train")
    assert dataset.classes == ("person",)


def test_boxes_are_clipped_or_dropped_and_counted_once(tmp_path):
    corners = [(0, 1, 9, 9), (5, 5, 5, 9), (41, 5, 60, 9), (5, 5, 50, 9), (9, 9, 4, 20), (1, 1, 40, 30)]
    objects = "".join(voc_object("cat", box) for box in corners)
    dataset = open_dataset(write_voc(tmp_path, {"train": {"a": objects}}), "train")
    assert dataset.target(0).boxes.tolist() == [[0, 0, 9, 9], [4, 4, 40, 9], [0, 0, 40, 30]]
    assert dataset.report() == "3 of 6 boxes dropped (no extent after clipping), 2 clipped to the image"


def test_nothing_to_report_is_none(tmp_path):
    assert open_dataset(write_voc(tmp_path, {"train": {"a": voc_object("c", (1, 1, 9, 9))}}), "train").report() is None


def test_boxes_that_all_lie_outside_are_an_error(tmp_path):
    write_voc(tmp_path, {"train": {"a": voc_object("cat", (500, 500, 600, 600))}})
    with pytest.raises(InputError, match="none of the 1 boxes"):
        open_dataset(tmp_path, "train")


def test_image_is_found_with_any_suffix(tmp_path):
    write_voc(tmp_path, {"train": {"a.b": voc_object("cat", (1, 1, 9, 9))}})
    (tmp_path / "JPEGImages/a.b.png").unlink()
    write_image(tmp_path / "JPEGImages/a.b.JPG")
    assert open_dataset(tmp_path, "train").image_path(0).endswith("a.b.JPG")


def test_years_of_a_devkit_that_have_the_split_are_joined(tmp_path):
    write_voc(tmp_path / "VOC2007", {"trainval": {"a": voc_object("cat", (1, 1, 9, 9))}, "test": {"t": ""}})
    write_voc(tmp_path / "VOC2012", {"trainval": {"b": voc_object("dog", (1, 1, 9, 9))}})
    dataset = open_dataset(tmp_path, "trainval")
    assert [sample.name for sample in dataset.samples] == ["VOC2007/JPEGImages/a.png", "VOC2012/JPEGImages/b.png"]
    assert [dataset.target(index).image_id for index in range(2)] == [0, 1]
    assert dataset.classes == ("cat", "dog")
    assert len(open_dataset(tmp_path, "test")) == 1
    assert split_names(tmp_path) == ["test", "trainval"]


def test_a_named_split_is_used_as_train_and_hides_splits_that_share_its_images(tmp_path):
    box = voc_object("cat", (1, 1, 9, 9))
    splits = {"val": {"a": box}, "trainval": {"a": box, "b": box}, "test": {"c": box}}
    write_voc(tmp_path / "VOC2007", splits)
    write_voc(tmp_path / "VOC2012", {"trainval": {"d": box}})
    path = f"{tmp_path}/VOC2007:trainval,{tmp_path}/VOC2012:trainval"
    assert len(open_dataset(path, "train")) == 3
    assert len(open_dataset(path, "test")) == 1
    assert split_names(path) == ["test", "train"]
    with pytest.raises(InputError, match="no split 'trian'"):
        open_dataset(f"{tmp_path}/VOC2007:trian", "train")


def test_one_folder_cannot_be_joined_with_itself(tmp_path):
    write_voc(tmp_path / "a", {"train": {"a": voc_object("cat", (1, 1, 9, 9))}})
    with pytest.raises(InputError, match="twice"):
        open_dataset(f"{tmp_path}/a,{tmp_path}/a", "train")


def test_lists_of_a_class_are_not_splits(tmp_path):
    write_voc(tmp_path, {"train": {"a": voc_object("cat", (1, 1, 9, 9))}})
    (tmp_path / "ImageSets/Main/cat_train.txt").write_text("a  1\n")
    assert split_names(tmp_path) == ["train"]


def test_chosen_classes_keep_their_order_and_drop_the_others(tmp_path):
    objects = "".join(voc_object(name, (1, 1, 9, 9)) for name in ("cat", "dog", "cow"))
    dataset = open_dataset(write_voc(tmp_path, {"train": {"a": objects}}), "train", ["dog", "cat"])
    assert dataset.classes == ("dog", "cat")
    assert dataset.target(0).labels.tolist() == [1, 0]
    assert dataset.report() == "1 of 3 boxes dropped (other classes)"


def test_unknown_chosen_class_lists_the_valid_ones(tmp_path):
    write_voc(tmp_path, {"train": {"a": voc_object("person", (1, 1, 9, 9))}})
    with pytest.raises(InputError, match=r"'persn'\. Did you mean 'person'"):
        open_dataset(tmp_path, "train", ["persn"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation><object>", "a.xml is not well-formed"),
        ("<svg/>", "a.xml is not a VOC annotation"),
        ('<!DOCTYPE x [<!ENTITY e "y">]><annotation>&e;</annotation>', "a.xml is not well-formed"),
        ("<annotation><object><name>cat</name></object></annotation>", r"a.xml: object 1 \(cat\) has no <bndbox>"),
        ("<annotation><object/></annotation>", "a.xml: object 1 has no <name>"),
        (f"<annotation>{voc_object('cat', (1, 1, 'nan', 9))}</annotation>", r"object 1 \(cat\), <xmax>.*NaN"),
        (f"<annotation>{voc_object('cat', (1, 1, 'inf', 9))}</annotation>", r"object 1 \(cat\), <xmax>.*infinite"),
        (f"<annotation>{voc_object('cat', (1, 'x', 9, 9))}</annotation>", "<ymin> is 'x', not a number"),
        ("<annotation><size><width>10</width><height>9</height></size></annotation>", "10 x 9 pixels.*40 x 30"),
    ],
)
def test_broken_annotation_is_named(tmp_path, text, message):
    write_voc(tmp_path, {"train": {"a": "", "b": voc_object("cat", (1, 1, 9, 9))}})
    (tmp_path / "Annotations/a.xml").write_text(text)
    with pytest.raises(InputError, match=message):
        open_dataset(tmp_path, "train")


def test_missing_image_is_named(tmp_path):
    write_voc(tmp_path, {"train": {"a": voc_object("cat", (1, 1, 9, 9)), "b": voc_object("cat", (1, 1, 9, 9))}})
    (tmp_path / "JPEGImages/a.png").unlink()
    with pytest.raises(InputError, match=r"JPEGImages/a.png does not exist"):
        open_dataset(tmp_path, "train")


def test_listed_image_without_annotation_file_is_background(tmp_path):
    write_voc(tmp_path, {"train": {"a": voc_object("cat", (1, 1, 9, 9)), "b": voc_object("cat", (1, 1, 9, 9))}})
    (tmp_path / "Annotations/a.xml").unlink()
    dataset = open_dataset(tmp_path, "train")
    assert [len(dataset.target(index).labels) for index in range(len(dataset))] == [0, 1]
    assert dataset.report() == "1 of 2 images without an annotation file read as background"
    dropped = open_dataset(tmp_path, "train", unannotated="drop")
    assert [sample.name for sample in dropped.samples] == ["JPEGImages/b.png"]
    assert dropped.report() == "1 of 2 images without an annotation file dropped"
    with pytest.raises(InputError, match=r"1 of 2 images have no annotation file, such as JPEGImages/a\.png"):
        open_dataset(tmp_path, "train", unannotated="error")


def test_lists_may_name_files_with_their_suffix(tmp_path):
    write_voc(tmp_path, {"train": {"a": voc_object("cat", (1, 1, 9, 9)), "b.c": voc_object("cat", (1, 1, 9, 9))}})
    (tmp_path / "ImageSets/Main/train.txt").write_text("a.xml\nb.c.jpg\n")
    assert [sample.name for sample in open_dataset(tmp_path, "train").samples] == [
        "JPEGImages/a.png",
        "JPEGImages/b.c.png",
    ]


def test_split_may_not_leave_the_folder(tmp_path):
    write_voc(tmp_path, {"train": {"a": voc_object("cat", (1, 1, 9, 9))}})
    (tmp_path / "ImageSets/Main/train.txt").write_text("../../a\n")
    with pytest.raises(InputError, match="outside"):
        open_dataset(tmp_path, "train")


def test_empty_and_unknown_splits_are_errors(tmp_path):
    write_voc(tmp_path, {"train": {"a": voc_object("cat", (1, 1, 9, 9))}, "val": {}})
    with pytest.raises(InputError, match="'val' contains no image"):
        open_dataset(tmp_path, "val")
    with pytest.raises(InputError, match="no split 'test'; it has: train, val"):
        open_dataset(tmp_path, "test")


def test_fingerprint_depends_on_the_content_not_on_the_path(tmp_path):
    splits = {"train": {"a": voc_object("cat", (1, 1, 9, 9))}}
    first, second = (open_dataset(write_voc(tmp_path / name / "d", splits), "train") for name in ("x", "y"))
    other = {"train": {"a": voc_object("cat", (1, 1, 9, 8))}}
    third = open_dataset(write_voc(tmp_path / "z" / "d", other), "train")
    assert first.fingerprint() == second.fingerprint() != third.fingerprint()
