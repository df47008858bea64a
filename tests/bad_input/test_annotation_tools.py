"""Bad files of annotation tools (labelme, VIA, CVAT): refused in a sentence, or read with a note."""

import json
import math

from defeat.data import split_names
from tests.bad_input.cases import boxes, refusal, table
from tests.data.folders import write_image

RECTANGLE = {"label": "cat", "points": [[1, 2], [9, 8]], "shape_type": "rectangle"}
BOX = '<box label="cat" xtl="1" ytl="2" xbr="9" ybr="8"/>'
CORNERS = [[1, 2, 9, 8]]
DEEP = b"[" * 100_000
ENTITY = '<!DOCTYPE x [<!ENTITY a "yyyyyyyyyy">]>'


def labelme(folder, content):
    """A folder of labelme with the images a and b, of which a has this content or these changes."""
    whole = {"shapes": [RECTANGLE], "imagePath": "a.png", "imageHeight": 30, "imageWidth": 40}
    for name in ("a", "b"):
        write_image(folder / f"{name}.png")
        (folder / f"{name}.json").write_text(json.dumps(whole))
    if isinstance(content, dict):
        content = json.dumps(whole | content).encode()
    (folder / "a.json").write_bytes(content)
    return folder


def changed(**values):
    return {"shapes": [RECTANGLE | values]}


@table(
    ("empty file", b"", "a.json is not well-formed JSON"),
    ("UTF-16", json.dumps(RECTANGLE).encode("utf-16"), "a.json is not a text file in UTF-8"),
    ("deep nesting", DEEP, "a.json is not well-formed JSON: maximum recursion"),
    ("a number of 5000 digits", b"9" * 5000, "a.json is not well-formed JSON: Exceeds"),
    ("a list", b"[]", "a.json is not a labelme file: it has no list of 'shapes'"),
    ("another file", b'{"classes": 3}', "a.json is not a labelme file"),
    ("shapes in a map", {"shapes": {}}, "a.json is not a labelme file"),
    ("a shape that is a number", {"shapes": [RECTANGLE, 3]}, "a.json: shape number 1 is 3, not a shape"),
    ("no label", changed(label=None), "shape number 0: its label is None, not a name"),
    ("blank label", changed(label=" "), "shape number 0: its label is ' ', not a name"),
    ("label a list", changed(label=[1]), "shape number 0: its label is [1], not a name"),
    ("kind a list", changed(shape_type=[]), "its shape_type is [], not a name"),
    ("no points", changed(points=[]), "shape number 0 has no points"),
    ("points missing", changed(points=None), "its points are None, not a list"),
    ("one point", changed(points=[[1, 2]]), "shape number 0 is a rectangle of 1 points, not of two"),
    ("a point in words", changed(points=[["1", 2], [3, 4]]), "['1', 2] is not a list of numbers"),
    ("a point of three coordinates", changed(points=[[1, 2, 3], [3, 4, 5]]), "a point has other than two coordinates"),
    ("NaN", changed(points=[[math.nan, 2], [3, 4]]), "a number is NaN or infinite"),
    ("400 digits", changed(points=[[10**400, 2], [3, 4]]), "a number is NaN or infinite"),
    ("size in words", {"imageHeight": "30"}, "its imageHeight is '30', not a number of pixels"),
    ("size of zero", {"imageWidth": 0}, "its imageWidth is 0, not a number of pixels"),
    ("size of another image", {"imageWidth": 90}, "is for an image of 90 x 30 pixels, but"),
)
def test_a_labelme_file_is_refused(case, tmp_path):
    content, expected = case
    folder = labelme(tmp_path, content)
    message = refusal(boxes, folder)
    assert expected in message
    assert f"{tmp_path}/a.json" in message
    assert boxes(folder, on_bad_data="skip")[0] == [CORNERS]


@table(
    ("huge", changed(points=[[-1e308, 2], [1e308, 8]]), [[0, 2, 40, 8]], "1 of 2 boxes clipped"),
    ("an infinite circle", changed(shape_type="circle", points=[[-1e308, 2], [1e308, 8]]), [[0, 0, 40, 30]],
     "1 of 2 boxes clipped"),
    ("outside", changed(points=[[50, 50], [60, 60]]), [], "1 of 2 boxes dropped (no extent after clipping)"),
    ("a path outside", {"imagePath": "../../etc/passwd"}, CORNERS, "the split 'all'"),
    ("a path that is a number", {"imagePath": 3}, CORNERS, "the split 'all'"),
    ("an embedded image", {"imageData": "A" * 3_000_000}, CORNERS, "the split 'all'"),
)  # fmt: skip
def test_an_unusual_labelme_file_is_read(case, tmp_path):
    content, expected, note = case
    all_boxes, report = boxes(labelme(tmp_path, content))
    assert all_boxes == [expected, CORNERS]
    assert note in report


REGION = {
    "shape_attributes": {"name": "rect", "x": 1, "y": 2, "width": 8, "height": 6},
    "region_attributes": {"label": "cat"},
}


def via(folder, content):
    """A VIA file of the images a and b; `content` is the file, or the regions or the changes of a."""
    for name in ("a", "b"):
        write_image(folder / f"{name}.png")
    whole = {f"{name}.png1": {"filename": f"{name}.png", "size": 1, "regions": [REGION]} for name in ("a", "b")}
    if isinstance(content, list):
        content = {"regions": content}
    if isinstance(content, dict):
        whole["a.png1"] |= content
        content = json.dumps(whole).encode()
    (folder / "via_region_data.json").write_bytes(content)
    return folder


def shaped(**values):
    return [REGION | {"shape_attributes": REGION["shape_attributes"] | values}]


@table(
    ("UTF-16", json.dumps({"regions": 1, "filename": 1}).encode("utf-16"), "not a data set of a known format"),
    ("cut off", b'{"a.png1": {"filename": "a.png", "regions": [', "via_region_data.json is not well-formed JSON"),
    ("deep nesting", b'{"a": {"filename": "a.png", "regions": ' + DEEP, "is not well-formed JSON: maximum recursion"),
    ("a list", b'[{"filename": "a.png", "regions": []}]', "is not a VIA file"),
    ("a project without images", b'{"_via_img_metadata": 3}', "is not a VIA file"),
    ("no region", b'{"a": {"filename": "a.png", "regions": []}}', "no region has an attribute"),
    ("no filename", {"filename": None}, "entry 'a.png1' has no filename"),
    ("missing image", {"filename": "nothing.png"}, "the image 'nothing.png' does not exist; looked in"),
    ("filename outside", {"filename": "../../../etc/passwd"}, "the image '../../../etc/passwd' does not exist"),
    ("filename absolute", {"filename": "/etc/hostname"}, "the image '/etc/hostname' does not exist"),
    ("filename of a folder", {"filename": "."}, "the image '.' does not exist"),
    ("filename with a zero byte", {"filename": "a\0.png"}, "does not exist"),
    ("filename too long", {"filename": "x" * 300}, "does not exist"),
    ("filename of another image", {"filename": "b.png"}, "the image 'b.png' is listed 2 times"),
    ("regions a number", {"regions": 3}, "its regions are 3, not a list"),
    ("a region that is a number", [3], "region 0 has no shape_attributes"),
    ("no shape", [{"region_attributes": {"label": "cat"}}], "region 0 has no shape_attributes"),
    ("name of the shape a list", shaped(name=[]), "region 0: the name of its shape is [], not a text"),
    ("x in words", shaped(x="1"), "region 0: its x is '1', not a number"),
    ("x missing", shaped(x=None), "region 0: its x is None, not a number"),
    ("width NaN", shaped(width=math.nan), "a number is NaN or infinite"),
    ("x of 400 digits", shaped(x=10**400), "a number is NaN or infinite"),
    ("sum infinite", shaped(x=1.5e308, width=1.5e308), "a number is NaN or infinite"),
    ("no points", shaped(name="polygon"), "None is not a list of numbers"),
    ("polygon of no point", shaped(name="polygon", all_points_x=[], all_points_y=[]), "0 columns, but 0 rows"),
    ("more columns than rows", shaped(name="polygon", all_points_x=[1, 2], all_points_y=[1]), "2 columns, but 1 rows"),
    ("circle without radius", shaped(name="circle", cx=1, cy=2), "its r is None, not a number"),
    ("two classes", [REGION | {"region_attributes": {"label": {"cat": True, "dog": True}}}], "has several values"),
    ("class a list", [REGION | {"region_attributes": {"label": [1]}}], "'label' is [1], not the name of a class"),
)
def test_a_via_file_is_refused(case, tmp_path):
    content, expected = case
    message = refusal(boxes, via(tmp_path, content))
    assert expected in message
    assert str(tmp_path) in message
    assert "root:" not in message  # of /etc/passwd


def test_broken_images_of_a_via_file_are_skipped(tmp_path):
    all_boxes, report = boxes(via(tmp_path, shaped(x="1")), on_bad_data="skip")
    assert all_boxes == [CORNERS]
    assert "1 of 2 images skipped" in report


HEADER = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes\n"


@table(
    ("no row", "", "no region has an attribute"),
    ("no filename", ",1,{},1,0,{},{}\n", "a row has no filename"),
    ("invalid JSON", "a.png,1,{},1,0,{x,{}\n", "is not a CSV file of VIA"),
    ("deep nesting", f"a.png,1,{{}},1,0,{'[' * 100_000},{{}}\n", "is not a CSV file of VIA: maximum recursion"),
    ("a number of 5000 digits", f"a.png,1,{{}},1,0,{'9' * 5000},{{}}\n", "is not a CSV file of VIA: Exceeds"),
    ("a field of a megabyte", f"a.png,1,{{}},1,0,{'9' * 1_000_000},{{}}\n", "is not a CSV file of VIA: field larger"),
    ("a shape that is a number", 'a.png,1,{},1,0,3,"{""label"":""cat""}"\n', "region 0 has no shape_attributes"),
    ("few columns", "a.png\n", "no region has an attribute"),
)
def test_a_csv_file_of_via_is_refused(case, tmp_path):
    text, expected = case
    write_image(tmp_path / "a.png")
    (tmp_path / "via.csv").write_text(HEADER + text)
    assert expected in refusal(boxes, tmp_path)


def cvat(folder, text):
    """A CVAT file of the images a and b; `text` is the file, or the shapes of a."""
    for name in ("a", "b"):
        write_image(folder / f"images/{name}.png")
    if not isinstance(text, bytes):
        images = "".join(
            f'<image name="{name}.png" width="40" height="30">{shapes}</image>'
            for name, shapes in (("a", text), ("b", BOX))
        )
        text = f"<annotations><version>1.1</version>{images}</annotations>".encode()
    (folder / "annotations.xml").write_bytes(text)
    return folder


def entry(attributes, shapes=BOX):
    return f"<annotations><image {attributes}>{shapes}</image></annotations>".encode()


UNKNOWN_ENCODING = b'<?xml version="1.0" encoding="foo"?><annotations><image /></annotations>'


@table(
    ("cut off", b"<annotations><image name='a", "annotations.xml is not well-formed XML"),
    ("unknown encoding", UNKNOWN_ENCODING, "unknown encoding"),
    ("not UTF-8", b'<annotations><image name="\xff"/></annotations>', "annotations.xml is not well-formed XML"),
    ("an entity", f"{ENTITY}<annotations><image name='&a;'/></annotations>".encode(), "EntitiesForbidden"),
    ("no image", b"<annotations><version>1.1</version></annotations>", "is a file of CVAT without an <image>"),
    ("for video", b"<annotations><track id='0'/></annotations>", "is of CVAT for video"),
    ("no shape", entry("name='a.png'", ""), "defines no classes: none of its 1 images has an object"),
    ("only points", entry("name='a.png'", "<points label='cat' points='1,2'/>"), "no object: 1 shapes dropped"),
    ("no name", entry("id='7'"), "image '7' has no name"),
    ("missing image", entry("name='x.png'"), "the image 'x.png' does not exist"),
    ("name outside", entry("name='../../../etc/passwd'"), "the image '../../../etc/passwd' does not exist"),
    ("subset outside", entry(f"name='passwd' subset='{'../' * 12}etc'"), "the image 'passwd' does not exist"),
    ("subset absolute", entry("name='passwd' subset='/etc'"), "the image 'passwd' does not exist"),
    ("width in words", entry("name='a.png' width='x' height='30'"), "its width is 'x', not a number"),
    ("width of zero", entry("name='a.png' width='0' height='30'"), "its size is 0 x 30 pixels"),
    ("size of another image", entry("name='a.png' width='90' height='30'"), "is for an image of 90 x 30 pixels"),
    ("no label", BOX.replace("cat", ""), "image 'a.png', shape 1 has no label"),
    ("corner missing", BOX.replace("xtl", "left"), "shape 1 has no xtl"),
    ("corner in words", BOX.replace('"1"', '"one"'), "shape 1: its xtl is 'one', not a number"),
    ("corner NaN", BOX.replace('"1"', '"nan"'), "shape 1, xtl: a number is NaN"),
    ("corner infinite when rotated", BOX.replace('"1"', '"1e308" rotation="30"').replace('"9"', '"1e308"'),
     "is NaN or infinite"),
    ("rotation infinite", BOX.replace("/>", ' rotation="inf"/>'), "rotation: a number is NaN or infinite"),
    ("no points", '<polygon label="cat"/>', "its points are '', not pairs"),
    ("points of three", '<polygon label="cat" points="1,2,3"/>', "its points are '1,2,3', not pairs"),
    ("points infinite", '<polygon label="cat" points="1,2;inf,3"/>', "a number is NaN or infinite"),
)  # fmt: skip
def test_a_cvat_file_is_refused(case, tmp_path):
    text, expected = case
    folder = cvat(tmp_path, text)
    message = refusal(lambda: boxes(folder, split_names(folder)[0]))
    assert expected in message
    assert str(tmp_path) in message
    assert "root:" not in message  # of /etc/passwd


@table(
    ("deep nesting", "<a>" * 50_000 + "</a>" * 50_000, [], "1 shapes dropped"),
    ("reversed", BOX.replace('"1"', '"20"'), [], "1 of 2 boxes dropped (no extent after clipping)"),
    ("huge", BOX.replace('"9"', '"1e308"'), [[1, 2, 40, 8]], "1 of 2 boxes clipped"),
)
def test_an_unusual_cvat_file_is_read(case, tmp_path):
    text, expected, note = case
    all_boxes, report = boxes(cvat(tmp_path, text))
    assert all_boxes == [expected, CORNERS]
    assert note in report


def test_broken_images_of_a_cvat_file_are_skipped(tmp_path):
    all_boxes, report = boxes(cvat(tmp_path, BOX.replace("xtl", "left")), on_bad_data="skip")
    assert all_boxes == [CORNERS]
    assert "1 of 2 images skipped" in report
