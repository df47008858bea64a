"""Bad annotations of VOC: refused in a sentence that names file and element, or read as far as they are valid."""

from defeat.data import open_dataset
from tests.bad_input.cases import boxes, refusal, table
from tests.bad_input.folders import CAT, objects, planted

BOMB = '<!DOCTYPE x [<!ENTITY a "yyyyyyyyyy">{}]><annotation>&h;</annotation>'.format(
    "".join(f'<!ENTITY {name} "{f"&{before};" * 10}">' for before, name in zip("abcdefg", "bcdefgh", strict=True))
)
OUTSIDE = (
    '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><annotation><object><name>&e;</name></object></annotation>'
)


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
