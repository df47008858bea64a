"""Bad annotations: refused in a sentence that names file and element, or read as far as they are valid."""

import json
import math

import pytest

from defeat.data import open_dataset
from tests.bad_input.cases import boxes, refusal, table
from tests.data.folders import coco_content, voc_object, write_coco, write_image, write_voc, write_yolo

CAT = voc_object("cat", (1, 1, 9, 9))
BOMB = '<!DOCTYPE x [<!ENTITY a "yyyyyyyyyy">{}]><annotation>&h;</annotation>'.format(
    "".join(f'<!ENTITY {name} "{f"&{before};" * 10}">' for before, name in zip("abcdefg", "bcdefgh", strict=True))
)
OUTSIDE = (
    '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><annotation><object><name>&e;</name></object></annotation>'
)


def planted(folder, text):
    """A VOC folder with images a and b, where a has this annotation file."""
    write_voc(folder, {"train": {"a": "", "b": CAT}})
    (folder / "Annotations/a.xml").write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def objects(*corners, extra=""):
    return f"<annotation>{''.join(voc_object('cat', box, extra) for box in corners)}</annotation>"


def sized(width, height):
    return f"<annotation><size><width>{width}</width><height>{height}</height></size>{CAT}</annotation>"


NINE = objects((1, 1, 9, 9))
NO_CORNER = "<annotation><object><name>cat</name><bndbox><xmin>1</xmin></bndbox></object></annotation>"


@table(
    ("empty file", "", "a.xml is not well-formed XML: no element found"),
    ("cut off", "<annotation><object><name>cat</na", "a.xml is not well-formed XML"),
    ("two roots", "<annotation/><annotation/>", "a.xml is not well-formed XML: junk after"),
    ("zero byte", b"<annotation>\0</annotation>", "a.xml is not well-formed XML"),
    ("unknown encoding", '<?xml version="1.0" encoding="foo"?><annotation/>', "unknown encoding"),
    ("encoding of several bytes", '<?xml version="1.0" encoding="big5"?><annotation/>', "multi-byte encodings"),
    ("encoding that it is not in", b'<?xml version="1.0" encoding="utf-8"?><annotation>\xff</annotation>',
     "is not in UTF-8"),
    ("JSON", '{"images": []}', "a.xml is not well-formed XML"),
    ("entity bomb", BOMB, "EntitiesForbidden"),
    ("external entity", OUTSIDE, "EntitiesForbidden"),
    ("object without a corner", NO_CORNER, "object 1 (cat) has no <ymin>"),
    ("corner without a number", objects((1, "", 9, 9)), "object 1 (cat): <ymin> is '', not a number"),
    ("corner NaN", objects((1, "NaN", 9, 9)), "object 1 (cat), <ymin>: a number is NaN"),
    ("corner infinite", objects((1, 1, "1e999", 9)), "object 1 (cat), <xmax>: a number is NaN or infinite"),
    ("blank name", "<annotation><object><name> </name></object></annotation>", "object 1 has no <name>"),
    ("difficult in words", objects((1, 1, 9, 9), extra="<difficult>rather</difficult>"), "<difficult> is 'rather'"),
    ("size NaN", sized("nan", 9), "size, <width>"),
    ("size of another image", sized("1e300", 9), "is for an image of 1e+300 x 9 pixels, but"),
)  # fmt: skip
def test_a_voc_file_is_refused(case, tmp_path):
    text, expected = case
    message = refusal(boxes, planted(tmp_path, text))
    assert expected in message
    assert f"{tmp_path}/Annotations/a.xml" in message
    assert "root:" not in message  # of /etc/passwd


@table(
    ("reversed", objects((9, 9, 1, 1)), [], "1 of 2 boxes dropped (no extent after clipping)"),
    ("negative", objects((-5, -5, 9, 9)), [[0, 0, 9, 9]], "1 of 2 boxes clipped to the image"),
    ("outside", objects((50, 50, 60, 60)), [], "1 of 2 boxes dropped (no extent after clipping)"),
    ("without extent", objects((5, 5, 5, 9)), [], "1 of 2 boxes dropped (no extent after clipping)"),
    ("huge", objects(("-1e308", 1, "1e308", 9)), [[0, 0, 40, 9]], "1 of 2 boxes clipped to the image"),
    ("duplicated", objects((1, 1, 9, 9), (1, 1, 9, 9)), [[0, 0, 9, 9]] * 2,
     "1 of 3 boxes duplicated (same class and corners, kept)"),
    ("no object", "<annotation/>", [], None),
    ("size of zero", sized(0, 0), [[0, 0, 9, 9]], None),
    ("size below zero", sized(-1, 9), [[0, 0, 9, 9]], None),
    ("byte order mark", b"\xef\xbb\xbf" + objects((1, 1, 9, 9)).encode(), [[0, 0, 9, 9]], None),
    ("UTF-16", f'<?xml version="1.0" encoding="utf-16"?>{NINE}'.encode("utf-16"), [[0, 0, 9, 9]], None),
    ("elements far inside", "<annotation>" + "<a>" * 50_000 + "</a>" * 50_000 + "</annotation>", [], None),
    ("a description that is elsewhere", '<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd">' + NINE, [[0, 0, 9, 9]], None),
)  # fmt: skip
def test_an_unusual_voc_file_is_read(case, tmp_path):
    text, first, report = case
    assert boxes(planted(tmp_path, text)) == ([first, [[0, 0, 9, 9]]], report)


@table(("0", False), ("false", False), ("Unspecified", False), (" 1 ", True), ("True", True))
def test_difficult_is_read_as_a_boolean(case, tmp_path, request):
    (expected,) = case
    word = request.node.callspec.id
    extra = f"<difficult>{word}</difficult>"
    dataset = open_dataset(planted(tmp_path, objects((1, 1, 9, 9), extra=extra)), "train")
    assert dataset.target(0).difficult.tolist() == [expected]


@table(
    ("comment", b"# my images\na\n", "but the split lists '# my images'"),
    ("UTF-16", "a\n".encode("utf-16"), "train.txt is not a text file in UTF-8"),
    ("image listed twice", b"a\nb\na\n", "train.txt lists the image 'a' twice"),
    ("climbs out", b"a\n../a\n", "the image '../a' is outside the data set"),
    ("absolute", b"a\n/etc/a\n", "the image '/etc/a' is outside the data set"),
    ("of another system", b"a\nC:\\a\n", "is outside the data set"),
    ("without annotations", b"a\nc\n", "Annotations/c.xml does not exist"),
    ("a name that is too long", b"a\n" + b"x" * 300, "does not exist"),
    ("zero byte", b"a\n\0b\n", "does not exist"),
    ("command for the terminal", b"a\n\x1b[2J\n", r"\x1b[2J"),
)
def test_an_invalid_list_of_voc_is_refused(case, tmp_path):
    content, expected = case
    planted(tmp_path, objects((1, 1, 9, 9)))
    (tmp_path / "ImageSets/Main/train.txt").write_bytes(content)
    assert expected in refusal(boxes, tmp_path)


@table(
    ("lines of Windows", b"a\r\nb\r\n"),
    ("lines of old Macs", b"a\rb\r"),
    ("byte order mark", b"\xef\xbb\xbfa\nb\n"),
    ("blank lines and spaces", b"\n\n a \n\nb\n  \n"),
    ("no end of the last line", b"a\nb"),
)
def test_an_unusual_list_of_voc_is_read(case, tmp_path):
    (content,) = case
    planted(tmp_path, objects((1, 1, 9, 9)))
    (tmp_path / "ImageSets/Main/train.txt").write_bytes(content)
    assert boxes(tmp_path) == ([[[0, 0, 9, 9]]] * 2, None)


def coco(folder, change):
    """A COCO folder with two images and two boxes, both in the first, after a change of its content or text."""
    write_image(folder / "train2017/a.png")
    write_image(folder / "train2017/sub/b.png")
    content = coco_content()
    if callable(change):
        change(content)
        return write_coco(folder, content)
    write_coco(folder, content)
    (folder / "annotations/instances_train2017.json").write_bytes(change)
    return folder


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


def yolo(folder, labels=b"0 .5 .5 .5 .5", yaml="train: images/train\nnames: [cat, dog]\n"):
    """A YOLO folder with the images a and b, of which a has these labels."""
    write_yolo(folder, {"a": "", "b": "1 .5 .5 1 1"}, yaml)
    (folder / "labels/train/a.txt").write_bytes(labels)
    return folder


@table(
    ("UTF-16", "0 .5 .5 .5 .5".encode("utf-16"), "a.txt is not a text file in UTF-8"),
    ("comment", b"# class x y w h\n0 .5 .5 .5 .5", "a.txt, line 1: could not convert string to float: '#'"),
    ("commas", b"0,.5,.5,.5,.5", "a.txt, line 1: could not convert"),
    ("class beyond the names", b"0 .5 .5 .5 .5\n\n7 .5 .5 .5 .5", "a.txt, line 3: unknown class 7"),
    ("class of 400 digits", b"9" * 400 + b" .5 .5 .5 .5", "a.txt, line 1: a number is NaN or infinite"),
    ("class 1e300", b"1e300 .5 .5 .5 .5", "a.txt, line 1: unknown class 1e300"),
    ("NaN", b"0 NaN .5 .5 .5", "a.txt, line 1: a number is NaN or infinite"),
    ("minus infinity", b"0 .5 -inf .5 .5", "a.txt, line 1: a number is NaN or infinite"),
    ("a track behind the box", b"0 .5 .5 .5 .5 12", "a.txt, line 1 has 6 columns, of which the last, 12, is not"),
    ("an angle behind the box", b"0 .5 .5 .5 .5 -.3", "a.txt, line 1 has 6 columns, of which the last, -.3, is not"),
    ("confidence NaN", b"0 .5 .5 .5 .5 nan", "a.txt, line 1: a number is NaN or infinite"),
    ("a polygon and a confidence", b"0 .1 .1 .5 .1 .5 .5 .9", "a.txt, line 1 has 8 columns"),
)
def test_a_file_of_yolo_is_refused(case, tmp_path):
    content, expected = case
    assert expected in refusal(boxes, yolo(tmp_path, content))


@table(
    ("byte order mark and lines of Windows", b"\xef\xbb\xbf0 .5 .5 .5 .5\r\n", [[10, 5, 30, 15]], None),
    ("negative width", b"0 .5 .5 -.5 .5", [], "1 of 2 boxes dropped (no extent after clipping)"),
    ("partly outside", b"0 0 0 1 1", [[0, 0, 20, 10]], "1 of 2 boxes clipped to the image"),
    ("in pixels", b"0 20 10 5 5", [], "1 of 2 boxes dropped (no extent after clipping)"),
    ("huge", b"0 .5 .5 1e308 1e308", [[0, 0, 40, 20]], "1 of 2 boxes clipped to the image"),
    ("confidences", b"0 .5 .5 .5 .5 1\n0 .25 .25 .5 .5 0.125", [[10, 5, 30, 15], [0, 0, 20, 10]],
     "a sixth column (confidence) ignored in 2 lines"),
    ("duplicated", b"0 .5 .5 .5 .5\n0 .5 .5 .5 .5\n", [[10, 5, 30, 15]] * 2,
     "1 of 3 boxes duplicated (same class and corners, kept)"),
)  # fmt: skip
def test_a_file_of_yolo_is_read_for_what_it_is(case, tmp_path):
    content, expected, report = case
    assert boxes(yolo(tmp_path, content)) == ([expected, [[0, 0, 40, 20]]], report)


ALIASES = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 8)}]\n"
    for before, name in zip("abcdefghijk", "bcdefghijkl", strict=True)
)


@table(
    ("empty file", "", "is not a YOLO description"),
    ("lists far inside", "train: " + "[" * 5000, "is not well-formed YAML"),
    ("a day that no month has", "train: images/train\nnames: [2020-99-99]", "is not well-formed YAML: month must be"),
    ("bomb of names", ALIASES + "train: images/train\nnames: *l", "of 'names' is not a text"),
    ("bomb of splits", ALIASES + "train: *l\nnames: [cat]", "neither a path nor a list of paths"),
    ("bomb of paths", ALIASES + "path: *l\ntrain: images/train\nnames: [cat]", "not a path"),
    ("bomb of counts", ALIASES + "nc: *l\ntrain: images/train\nnames: [cat]", "but 'names' has 1 classes"),
    ("name that is a list", "train: images/train\nnames: [[cat], dog]", "the class ['cat'] of 'names' is not a text"),
    ("name that is nothing", "train: images/train\nnames: [cat, ~]", "the class None of 'names' is not a text"),
    ("name that YAML takes for a truth value", "train: images/train\nnames: [no, dog]", "the class False of 'names'"),
    ("index given twice", "train: images/train\nnames: {0: cat, 0: dog}", "duplicate key '0'"),
    ("index in words", "train: images/train\nnames: {first: cat}", "a key of 'names' is not a class index"),
    ("split too long", f"train: {'x' * 300}\nnames: [cat]", "does not exist"),
    ("split with a zero byte", 'train: "a\\0b"\nnames: [cat]', r"a\x00b, which does not exist"),
    ("split outside", "train: /etc\nnames: [cat]", "outside the data set"),
    ("path too long", f"path: {'x' * 300}\ntrain: elsewhere\nnames: [cat]", "which is not a folder, nor are the"),
    ("path with a zero byte", 'path: "a\\0b"\ntrain: elsewhere\nnames: [cat]', "which is not a folder"),
    ("path of very many folders", f"path: {'/x' * 9000}\ntrain: elsewhere\nnames: [cat]", "which is not a folder"),
    ("split of another machine", "train: /content/elsewhere\nnames: [cat]", "outside the data set"),
    ("split of very many folders", f"train: {'/x' * 9000}/images/train\nnames: [cat]", "outside the data set"),
    ("split of another machine that climbs out", "train: /content/../../images/train\nnames: [cat]", "outside the"),
    (
        "two other names of a split",
        "train: images/train\nvalid: images/train\nvalidation: images\nnames: [cat, dog]",
        "has both 'valid' and 'validation'",
    ),
)
def test_an_invalid_description_of_yolo_is_refused(case, tmp_path):
    text, expected = case
    message = refusal(boxes, yolo(tmp_path, yaml=text))
    assert expected in message
    assert "data.yaml" in message


@table(
    ("comment", b"# my images\nimages/train/a.png\n", "list.txt, line 1: the image"),
    ("absolute", b"/etc/hostname\n", "list.txt, line 1: '/etc/hostname' is outside the data set"),
    ("climbs out", b"images/../../a.png\n", "list.txt, line 1: 'images/../../a.png' is outside the data set"),
    ("too long", b"images/train/a.png\n" + b"x" * 300, "list.txt, line 2: the image"),
    ("UTF-16", "images/train/a.png".encode("utf-16"), "list.txt is not a text file in UTF-8"),
    ("a folder", b"images/train\n", "list.txt, line 1: the image"),
    ("another machine, climbs out", b"/content/../../images/train/a.png\n", "a.png' is outside the data set"),
    ("another machine, Windows, climbs out", b"C:\\x\\..\\images\\train\\a.png\n", "a.png does not exist"),
    ("another machine, missing", b"/content/images/train/z.png\n", "z.png' is outside the data set"),
    ("another machine, very many folders", b"/x" * 9000 + b"/images/train/a.png\n", "is outside the data set"),
    (
        "two other machines",
        b"/content/images/train/a.png\n/drive/images/train/b.png\n",
        "line 2: '/drive/images/train/b.png' is outside the data set",
    ),
    ("a missing image of a folder that exists", b"images/a.png\n", "list.txt, line 1: the image"),
)
def test_an_invalid_list_of_yolo_is_refused(case, tmp_path):
    content, expected = case
    yolo(tmp_path, yaml="train: list.txt\nnames: [cat, dog]")
    (tmp_path / "list.txt").write_bytes(content)
    assert expected in refusal(boxes, tmp_path)


BOTH = b"images/train/a.png\nimages/train/b.png\n"


@table(
    ("lines of Windows", BOTH.replace(b"\n", b"\r\n"), None),
    ("byte order mark", b"\xef\xbb\xbf" + BOTH, None),
    ("image listed twice", BOTH + b"./images/train/a.png\n", "1 images listed more than once (each is read once)"),
    ("an absolute path inside", b"images/train/a.png\nHERE/images/train/b.png", None),
)
def test_an_unusual_list_of_yolo_is_read(case, tmp_path):
    content, report = case
    yolo(tmp_path, yaml="train: list.txt\nnames: [cat, dog]")
    (tmp_path / "list.txt").write_bytes(content.replace(b"HERE", bytes(tmp_path)))
    assert boxes(tmp_path) == ([[[10, 5, 30, 15]], [[0, 0, 40, 20]]], report)


def folder_of_labels(folder, files):
    """Two images and a label file, and these files."""
    write_image(folder / "images/a.png")
    write_image(folder / "images/b.png")
    for name, text in {"labels/a.txt": b"0 .5 .5 .5 .5", **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text)
    return folder


OBJ = b"classes = 1\ntrain = train.txt\nnames = obj.names\n"
YAML = b"train: images\nnames: [cat]\n"


@table(
    ("no classes", {}, "nothing names their classes: write a classes.txt with one name in each line"),
    ("a description further inside", {"old/data.yaml": YAML}, "old/data.yaml: give that file as the data set"),
    ("classes with an empty line", {"classes.txt": b"cat\n\ndog\n"}, "classes.txt, line 2 is empty"),
    ("an empty file of classes", {"classes.txt": b""}, "classes.txt, line 1 is empty"),
    ("a class twice", {"classes.txt": b"cat\ncat\n"}, "classes.txt contains the class 'cat' twice"),
    ("classes in UTF-16", {"classes.txt": "cat".encode("utf-16")}, "classes.txt is not a text file in UTF-8"),
    ("two lists of classes", {"classes.txt": b"cat\n", "labels/classes.txt": b"dog\n"}, "name different classes"),
    ("a class beyond the file", {"classes.txt": b"cat\n", "labels/b.txt": b"1 .5 .5 .5 .5"}, "unknown class 1"),
    ("a label file of two images", {"classes.txt": b"cat\n", "labels/sub/b.txt": b"0 .5 .5 .5 .5", "other/b.png": b""},
     "b.txt may belong to"),
    ("an image with another annotation file", {"classes.txt": b"cat\n", "labels/b.xml": b"<annotation/>"},
     "annotation files of two formats"),
    ("two descriptions", {"a.yaml": YAML, "b.yml": YAML}, "has 2 YAML files with 'names' and splits"),
    ("obj.data without names", {"obj.data": b"names =\n"}, "has no line 'names = FILE'"),
    ("obj.data with a word", {"obj.data": OBJ + b"backup\n"}, "obj.data, line 4: expected 'key = value'"),
    ("obj.data with a key twice", {"obj.data": OBJ + b"names = x\n"}, "obj.data, line 4: expected 'key = value'"),
    ("obj.data with a missing file of classes", {"obj.data": OBJ}, "'names' names"),
    ("obj.data with classes outside", {"obj.data": b"names = /etc/hostname\n"}, "outside the data set"),
    ("obj.data with another number of classes", {"obj.data": OBJ, "obj.names": b"cat\ndog\n"}, "'classes' is '1', but"),
    ("obj.data with a missing list", {"obj.data": OBJ, "obj.names": b"cat\n"}, "train.txt, which does not exist"),
)  # fmt: skip
def test_a_folder_of_labels_is_refused(case, tmp_path):
    files, expected = case
    assert expected in refusal(boxes, folder_of_labels(tmp_path, files))


def test_a_linked_image_belongs_to_the_data_set(tmp_path):
    folder = yolo(tmp_path / "data")
    (folder / "images/train/b.png").rename(tmp_path / "elsewhere.png")
    (folder / "images/train/b.png").symlink_to(tmp_path / "elsewhere.png")
    assert boxes(folder) == ([[[10, 5, 30, 15]], [[0, 0, 40, 20]]], None)


MANY = 50_000


@table(
    ("VOC", lambda folder: planted(folder, objects(*[(1 + k % 30, 1, 9 + k % 30, 9) for k in range(MANY)])),
     [1, 0, 10, 9]),
    ("COCO", lambda folder: coco(folder, lambda c: c.update(annotations=[
        {"id": k, "image_id": 9, "category_id": 7, "bbox": [k % 30, 0, 9, 9]} for k in range(MANY)])), [1, 0, 10, 9]),
    ("YOLO", lambda folder: yolo(folder, b"".join(b"0 %f .5 .2 .2\n" % (k % 30 / 40 + 0.1) for k in range(MANY))),
     [1, 8, 9, 12]),
)  # fmt: skip
def test_an_image_can_have_very_many_boxes(case, tmp_path):
    plant, expected = case
    found, report = boxes(plant(tmp_path))
    assert len(found[0]) == MANY
    assert found[0][31] == pytest.approx(expected)
    assert "49970 of" in report  # the same thirty boxes are repeated
