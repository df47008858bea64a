"""Bad annotations of YOLO: refused in a sentence that names file and element, or read as far as they are valid."""

from tests.bad_input.cases import boxes, refusal, table
from tests.bad_input.folders import yolo
from tests.data.folders import write_image


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
