"""Bad annotations of COCO: refused in a sentence that names file and element, or read as far as they are valid."""

import json
import math

from tests.bad_input.cases import boxes, refusal, table
from tests.bad_input.folders import coco
from tests.data.folders import coco_content


def box(*values):
    return lambda content: content["annotations"][0].update(bbox=list(values))


def outline(segmentation):
    """The first annotation has a segmentation instead of a box."""
    return lambda content: content["annotations"][0].update(bbox=None, segmentation=segmentation)


def first(kind, **values):
    return lambda content: content[kind][0].update(values)


def second(kind, **values):
    return lambda content: content[kind][1].update(values)


@table(
    ("empty file", b"", "is not well-formed JSON: Expecting value"),
    ("UTF-16", json.dumps(coco_content()).encode("utf-16"), "is not a text file in UTF-8"),
    ("lists far inside", b'{"images":' + b"[" * 100_000, "is not well-formed JSON: maximum recursion"),
    ("a number of 5000 digits", b'{"images":[{"id":' + b"9" * 5000 + b"}]}", "is not well-formed JSON: Exceeds"),
    ("a list", b"[]", "is not a COCO file: it has no list of 'images'"),
    ("nothing", b"null", "is not a COCO file"),
    ("images in a map", lambda c: c.update(images={"a": 1}), "is not a COCO file: it has no list of 'images'"),
    ("annotations missing", lambda c: c.pop("annotations"), "has no list of 'annotations': it is None"),
    ("annotations in a map", lambda c: c.update(annotations={}), "has no list of 'annotations': it is {}"),
    ("annotations a text", lambda c: c.update(annotations="none"), "has no list of 'annotations': it is 'none'"),
    ("annotation a number", lambda c: c["annotations"].append(3), "annotation number 2: its image_id is None"),
    ("categories missing", lambda c: c.pop("categories"), "has no list of 'categories': it is None"),
    ("categories as texts", lambda c: c.update(categories=["cat"]), "category number 0: its id is None"),
    ("category without a name", first("categories", name=""), "category with id 7 has no name"),
    ("category with a number for a name", first("categories", name=3), "category with id 7 has no name"),
    ("unknown class", first("annotations", category_id=99), "annotation with id 1: the category 99 is not among"),
    ("class below zero", first("annotations", category_id=-1), "annotation with id 1: the category -1 is not among"),
    ("class in words", first("annotations", category_id="cat"), "the category 'cat' is not among the categories"),
    ("only dangling image ids", lambda c: [one.update(image_id=99) for one in c["annotations"]],
     "none of its 2 annotations has the id of an image; check their image_id"),
    ("no image id", lambda c: c["annotations"][0].pop("image_id"), "annotation with id 1: its image_id is None"),
    ("image id used twice", second("images", id=9), "image with id 9: this id is used twice"),
    ("category id used twice", first("categories", id=2), "category with id 2: this id is used twice"),
    ("image id too large", second("images", id=2**70), "too large a number"),
    ("image id empty", second("images", id=""), "its id is '', not an integer"),
    ("entries of one id that differ", lambda c: c["images"].append(c["images"][0] | {"width": 41}),
     "image with id 9: this id is used twice"),
    ("entries of one id in text and number", second("images", id="9"), "image with id '9': this id is used twice"),
    ("categories of one id in text and number", first("categories", id="2"), "category with id 2: this id is used"),
    ("image id true", second("images", id=True), "its id is True, not an integer"),
    ("image id with a fraction", second("images", id=4.5), "its id is 4.5, not an integer"),
    ("a file of two images", second("images", file_name="a.png"), "has the file_name 'a.png' of another image"),
    ("a file of two images, in other words", second("images", file_name="./a.png"), "file_name './a.png' of another"),
    ("file_name missing", lambda c: c["images"][1].pop("file_name"), "image with id 4 has no file_name"),
    ("file_name a number", second("images", file_name=4), "image with id 4 has no file_name"),
    ("file_name climbs out", second("images", file_name="sub/../../c.png"), "is outside the data set"),
    ("file_name climbs out, of Windows", second("images", file_name="sub\\..\\..\\c.png"), "is outside the data set"),
    ("file_name absolute", second("images", file_name="/etc/hostname"), "is outside the data set"),
    ("file_name of the root", second("images", file_name="/"), "is outside the data set"),
    ("file_name on a drive", second("images", file_name="C:a.png"), "'C:a.png' leads to"),
    ("file_name on a server", second("images", file_name="\\\\host\\share\\a.png"), "the file of another image"),
    ("two file names with one end", lambda c: [one.update(file_name=f"/{one['id']}/a.png") for one in c["images"]],
     "the file_name '/4/a.png' leads to"),
    ("file_name of a folder", second("images", file_name="sub"), "train2017/sub does not exist"),
    ("file_name too long", second("images", file_name="x" * 300), "does not exist"),
    ("file_name with a zero byte", second("images", file_name="a\0.png"), r"a\x00.png does not exist"),
    ("file_name with line ends", second("images", file_name="a\nb.png"), r"a\nb.png does not exist"),
    ("size of zero", second("images", width=0), "image with id 4: its size is 0 x 30 pixels"),
    ("size in words", second("images", height="high"), "image with id 4: its height is 'high', not an integer"),
    ("size as text with a fraction", second("images", height="30.5"), "its height is 30.5, not an integer"),
    ("boxes missing", lambda c: [one.pop("bbox") for one in c["annotations"]],
     "none of its 2 annotations has a bbox or a segmentation"),
    ("box of texts", box("2", "3", "10", "wide"), "not a list of four numbers"),
    ("box of text with a comma", box("2,5", "3", "10", "20"), "not a list of four numbers"),
    ("box of text beyond all numbers", box("2", "3", "1e999", "20"), "a number is NaN or infinite"),
    ("box of text NaN", box("2", "3", "nan", "20"), "not a list of four numbers"),
    ("box a text", first("annotations", bbox="2 3 10 20"), "its bbox is '2 3 10 20', not a list of four numbers"),
    ("polygon of odd length", outline([[1, 2, 3, 4, 5]]), "its segmentation is [[1, 2, 3, 4, 5]], neither polygons"),
    ("polygon of words", outline([["a", "b"]]), "neither polygons nor a mask"),
    ("polygon NaN", outline([[1, 2, 3, math.nan]]), "annotation with id 1: a number is NaN"),
    ("polygons and texts", outline([[1, 2, 3, 4], "a"]), "neither polygons nor a mask"),
    ("segmentation a number", outline(3), "its segmentation is 3, neither polygons nor a mask"),
    ("mask without a size", outline({"counts": [1, 2]}), "the size of its segmentation is None, not a height and"),
    ("mask without counts", outline({"size": [30, 40]}), "its segmentation is None, neither polygons nor a mask"),
    ("mask of another size", outline({"size": [3, 4], "counts": [1, 2]}), "don't add up to 3 x 4 pixels"),
    ("mask with a count below zero", outline({"size": [3, 4], "counts": [13, -1]}), "neither polygons nor a mask"),
    ("mask with letters beyond the code", outline({"size": [3, 4], "counts": "\x7f"}), "neither polygons nor a mask"),
    ("mask cut off", outline({"size": [3, 4], "counts": "P"}), "neither polygons nor a mask"),
    ("mask with an endless count", outline({"size": [3, 4], "counts": "o" * 10_000}), "neither polygons nor a mask"),
    ("box of 100,000 numbers", box(*range(100_000)), "its bbox is [0, 1, 2, 3, 4, 5, ...], not a list of four"),
    ("box NaN", box(2, math.nan, 10, 20), "annotation with id 1: a number is NaN or infinite"),
    ("box infinite", box(2, 3, math.inf, 20), "annotation with id 1: a number is NaN or infinite"),
    ("box of 400 digits", box(2, 3, 10**400, 20), "annotation with id 1: a number is NaN or infinite"),
    ("iscrowd a word", first("annotations", iscrowd="no"), "its iscrowd is 'no', neither 0 nor 1"),
    ("all boxes outside", lambda c: [one.update(bbox=[90, 90, 5, 5]) for one in c["annotations"]],
     "none of the 2 boxes"),
)  # fmt: skip
def test_a_coco_file_is_refused(case, tmp_path):
    change, expected = case
    message = refusal(boxes, coco(tmp_path, change))
    assert expected in message
    assert str(tmp_path) in message


SMALL = [0.5, 1, 4.5, 6.5]


@table(
    ("byte order mark", b"\xef\xbb\xbf" + json.dumps(coco_content()).encode(), [[2, 3, 12, 23], SMALL], None),
    ("lines of Windows", json.dumps(coco_content(), indent=1).replace("\n", "\r\n").encode(), [[2, 3, 12, 23], SMALL],
     None),
    ("box reversed", box(20, 20, -5, -5), [SMALL], "1 of 2 boxes dropped (no extent after clipping)"),
    ("box negative", box(-5, -5, 10, 10), [[0, 0, 5, 5], SMALL], "1 of 2 boxes clipped to the image"),
    ("box outside", box(90, 90, 5, 5), [SMALL], "1 of 2 boxes dropped (no extent after clipping)"),
    ("box huge", box(-1e308, 0, 1.7e308, 5), [[0, 0, 40, 5], SMALL], "1 of 2 boxes clipped to the image"),
    ("box duplicated", lambda c: c["annotations"].append(c["annotations"][0]), [[2, 3, 12, 23], SMALL, [2, 3, 12, 23]],
     "1 of 3 boxes duplicated (same class and corners, kept)"),
    ("annotation id used twice", second("annotations", id=1), [[2, 3, 12, 23], SMALL], None),
    ("annotation without an id", lambda c: c["annotations"][0].pop("id"), [[2, 3, 12, 23], SMALL], None),
    ("ids as whole floats", first("annotations", image_id=9.0, category_id=7.0), [[2, 3, 12, 23], SMALL], None),
    ("iscrowd missing", lambda c: c["annotations"][0].pop("iscrowd"), [[2, 3, 12, 23], SMALL], None),
    ("annotations empty", lambda c: c.update(annotations=[]), [], None),
    ("annotations null", lambda c: c.update(annotations=None), [], "the list of annotations is null (read as empty)"),
    ("dangling image id", first("annotations", image_id=99), [SMALL],
     "1 annotations dropped (their image is not in the file)"),
    ("dangling image id in words", first("annotations", image_id="x"), [SMALL],
     "1 annotations dropped (their image is not in the file)"),
    ("image id in words", second("images", id="four"), [[2, 3, 12, 23], SMALL],
     "1 ids of images that are no integers (numbered in order of appearance)"),
    ("image entry repeated", lambda c: c["images"].append(c["images"][0]), [[2, 3, 12, 23], SMALL],
     "1 image entries merged (each equal to an earlier one)"),
    ("box missing", lambda c: c["annotations"][0].pop("bbox"), [SMALL], "1 annotations dropped (no bbox)"),
    ("box null", first("annotations", bbox=None), [SMALL], "1 annotations dropped (no bbox)"),
    ("box empty", first("annotations", bbox=[], segmentation=[[]]), [SMALL], "1 annotations dropped (no bbox)"),
    ("box of texts", box("2", "3.0", " 10", "2e1"), [[2, 3, 12, 23], SMALL],
     "4 numbers written as text (read as numbers)"),
    ("iscrowd a text", first("annotations", iscrowd="0"), [[2, 3, 12, 23], SMALL],
     "1 numbers written as text (read as numbers)"),
    ("size in text", second("images", height="30"), [[2, 3, 12, 23], SMALL],
     "1 numbers written as text (read as numbers)"),
)  # fmt: skip
def test_a_coco_file_is_read_for_what_it_is(case, tmp_path):
    change, expected, report = case
    assert boxes(coco(tmp_path, change)) == ([expected, []], report)
