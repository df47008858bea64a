"""Initial inputs of the targets for whole folders: one for each layout that is read."""

import json
from typing import Any

SEPARATOR = "\n=====\n"
IMAGE = ""  # of every image


def folder(files: dict[str, str], options: str = "") -> str:
    """An input of files by their paths."""
    return SEPARATOR.join([options, *(f"{name}\n{content}" for name, content in files.items())])


def images(*names: str) -> dict[str, str]:
    """Images by their paths."""
    return dict.fromkeys(names, IMAGE)


def voc_folders() -> dict[str, str]:
    """VOC files in any layout."""
    xml = _voc_file("a.png", "cat")
    dog = _voc_file("b.png", "dog")
    beside = images("a.png", "b.png") | {"a.xml": xml, "b.xml": dog}
    apart = images("images/a.png", "images/b.png") | {"labels/a.xml": xml, "labels/b.xml": dog}
    splits = images("train/a.png", "valid/b.png") | {"train/a.xml": xml, "valid/b.xml": dog}
    return {
        "beside": folder(beside, "hold-out file"),
        "apart": folder(apart),
        "splits": folder(splits),
        "lists": folder(apart | {"ImageSets/Main/train_list.txt": "a.png\n", "val.txt": "images/b.png labels/b.xml\n"}),
        "unannotated": folder(beside | images("c.png"), "background hold-out prefix"),
        "dropped": folder(beside | images("c.png"), "drop skip"),
        "named_inside": folder(images("x.png") | {"1.xml": _voc_file("C:\\data\\x.png", "cat")}),
        "standard": folder(
            images("JPEGImages/a.png", "JPEGImages/b.png")
            | {"Annotations/a.xml": xml, "Annotations/b.xml": dog, "ImageSets/Main/train.txt": "a\nb\n"}
        ),
        "same_stem": folder(beside | images("sub/a.png") | {"sub/a.xml": dog, "c.xml": "<other/>"}, "skip"),
    }


def _voc_file(image: str, name: str) -> str:
    box = "<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>20</xmax><ymax>25.5</ymax></bndbox>"
    size = "<size><width>40</width><height>30</height></size>"
    thing = f"<object><name>{name}</name>{box}</object>"
    return f"<annotation><filename>{image}</filename>{size}{thing}</annotation>"


COCO: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}, {"id": 2, "file_name": "sub/b.png"}],
    "categories": [{"id": 1, "name": "cat", "supercategory": "animal"}, {"id": 2, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 3, 10, 20]},
        {"id": 2, "image_id": 2, "category_id": 2, "bbox": [], "segmentation": [[1, 1, 9, 1, 9, 8]]},
    ],
}


def coco_values() -> dict[str, str]:
    """Values of COCO files as tools write them; inputs of the target for single files."""
    box, outline = COCO["annotations"]
    mask = {"size": [30, 40], "counts": [31, 5, 1164]}
    return {
        "texts": json.dumps(COCO).replace(": 1", ': "1"').replace("[2, 3, 10, 20]", '["2", "3.0", "1e1", "20"]'),
        "text_ids": json.dumps(COCO).replace(": 1", ': "one"').replace(": 2", ': "two"'),
        "mask": json.dumps(COCO | {"annotations": [box, outline | {"segmentation": mask}]}),
        "compressed": json.dumps(
            COCO | {"annotations": [box, outline | {"segmentation": {"size": [9, 9], "counts": "5" * 9}}]}
        ),
        "root": json.dumps(COCO | {"categories": [{"id": 0, "name": "animal"}, *COCO["categories"]]}),
        "merged": json.dumps(COCO | {"images": [*COCO["images"], COCO["images"][0]]}),
        "null": json.dumps(COCO | {"annotations": None}),
    }


def coco_folders() -> dict[str, str]:
    """COCO files and their images in other places."""
    text = json.dumps(COCO)
    both = images("images/a.png", "images/sub/b.png")
    other = text.replace("a.png", "C:\\\\Users\\\\me\\\\a.png").replace("sub/b", "/content/data/sub/b")
    return {
        "one_file": folder(both | {"result.json": text}, "hold-out folder"),
        "other_machine": folder(both | {"train.json": other}),
        "parents": folder(both | {"train.json": text.replace("sub/b", "../../x/sub/b").replace("a.png", "../a.png")}),
        "escapes": folder(both | {"train.json": text.replace("a.png", "{HERE}/outside/a.png")}, "skip"),
        "url": folder(both | {"train.json": text.replace("a.png", "https://host/x/a.png?x=1")}, "skip"),
        "roboflow": folder(
            images("train/a.png", "valid/a.png", "train/sub/b.png", "valid/sub/b.png")
            | {f"{name}/_annotations.coco.json": text for name in ("train", "valid")}
        ),
        "fiftyone": folder(images("train/data/a.png", "train/data/sub/b.png") | {"train/labels.json": text}),
        "standard": folder(
            images("train2017/a.png", "train2017/sub/b.png") | {"annotations/instances_train2017.json": text}
        ),
        "elsewhere": folder({"my.json": text}, "pictures @my.json"),
        "ambiguous": folder(both | images("x/images/a.png") | {"a.json": other, "captions_b.json": text}, "skip"),
    }


def yolo_folders() -> dict[str, str]:
    """YOLO labels without a YAML file, with Darknet's files, and with paths of another machine."""
    line = "0 0.5 0.5 0.2 0.3\n"
    labels = {"labels/train/a.txt": line, "labels/train/b.txt": "1 0.1 0.1 0.9 0.1 0.5 0.9\n"}
    data = images("images/train/a.png", "images/train/b.png") | labels
    beside = images("obj/a.png", "obj/b.png") | {"obj/a.txt": line, "obj/b.txt": "1 0.5 0.5 0.1 0.1 0.9\n"}
    names = "cat\ndog\n"
    darknet = "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\nbackup = x/\n"
    return {
        "classes": folder(data | {"classes.txt": names}, "hold-out file"),
        "beside": folder(beside | {"obj.names": names, "train.txt": "data/obj/a.png\n", "valid.txt": "obj/b.png\n"}),
        "darknet": folder(
            beside
            | {"obj.data": darknet, "obj.names": names, "train.txt": "data/obj/a.png\n", "valid.txt": "obj/b.png"}
        ),
        "darknet_file": folder(
            beside | {"obj.data": "names=obj.names\ntrain=train.txt\n", "obj.names": names, "train.txt": "./obj/a.png"},
            "@obj.data",
        ),
        "splits": folder(
            images("train/a.png", "valid/b.png") | {"train/a.txt": line, "classes.txt": names}, "background"
        ),
        "roboflow": folder(
            data | {"data.yaml": "train: ../train/images\nval: ../valid/images\nnames: [cat, dog]\n"}, "skip"
        ),
        "other_machine": folder(
            data | {"my.yaml": "path: /content/x\ntrain: C:\\x\\images\\train\nnames: {0: cat, 1: dog}\n"}
        ),
        "lists": folder(
            data | {"data.yaml": "train: list.txt\nnames: [cat, dog]\n", "list.txt": "/x/images/train/a.png\nb.png\n"},
            "skip hold-out prefix",
        ),
        "names_only": folder(data | {"data.yaml": "names: [cat, dog]\n"}),
        "escapes": folder(data | {"data.yaml": "train: ../outside\nval: {HERE}/outside/list.txt\nnames: [cat, dog]\n"}),
        "two_formats": folder(data | {"classes.txt": names, "images/train/a.json": "{}", "b.xml": "<annotation/>"}),
    }


def labelme() -> dict[str, str]:
    """Labelme's files."""
    shapes = [
        _shape("rectangle", [[20, 10], [3.5, 4]]),
        _shape("polygon", [[5, 5], [15, 8], [7, 20.25]], "dog"),
        _shape("circle", [[20, 15], [23, 19]]),
        _shape("mask", [[5, 5], [14, 8]]),
        _shape("point", [[1, 1]]),
        _shape("linestrip", [[1, 1], [2, 2]]),
        {"label": "cat", "points": [[1, 1], [9, 1], [9, 9]], "difficult": True},
    ]
    first, second = _labelme_file("a.png", shapes), _labelme_file("b.png", shapes[:1])
    return {
        "beside": folder(images("a.png", "b.png") | {"a.json": first, "b.json": second}, "hold-out"),
        "apart": folder(images("images/a.png", "images/b.png") | {"json/a.json": first, "json/b.json": second}),
        "splits": folder(images("train/a.png", "valid/b.png") | {"train/a.json": first, "valid/b.json": second}),
        "named_inside": folder(images("x.png") | {"1.json": _labelme_file("..\\images\\x.png", shapes)}),
        "points": folder(images("a.png") | {"a.json": _labelme_file("a.png", shapes[4:6])}),
        "lists": folder(images("a.png", "b.png") | {"a.json": first, "train.txt": "a\nb.png\n"}, "skip"),
        "resized": folder(images("a.png") | {"a.json": first.replace('"imageWidth": 40', '"imageWidth": 80')}),
    }


def _shape(kind: str, points: list[list[float]], label: str = "cat") -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind}


def _labelme_file(image: str, shapes: list[dict[str, Any]]) -> str:
    return json.dumps({"shapes": shapes, "imagePath": image, "imageHeight": 30, "imageWidth": 40})


def via() -> dict[str, str]:
    """Files of the VGG Image Annotator."""
    shapes: list[dict[str, Any]] = [
        {"name": "rect", "x": 2, "y": 3, "width": 18, "height": 7},
        {"name": "polygon", "all_points_x": [5, 15, 7], "all_points_y": [5, 8, 20.5]},
        {"name": "circle", "cx": 20, "cy": 15, "r": 5},
        {"name": "ellipse", "cx": 20, "cy": 15, "rx": 5, "ry": 3, "theta": 0.5},
        {"name": "point", "cx": 20, "cy": 15},
    ]
    regions = [{"shape_attributes": shape, "region_attributes": {"label": "cat", "x": "1"}} for shape in shapes]
    entries: dict[str, Any] = {"a": {"filename": "a.png", "size": 1, "regions": regions[:3]}}
    entries["b"] = {"filename": "sub/b.png", "size": 1, "regions": regions[3:]}
    checked = json.dumps(entries).replace('"label": "cat"', '"kind": {"dog": true, "cat": false}')
    first = json.dumps(entries | {"a": entries["a"] | {"regions": dict(enumerate(regions))}})
    header = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes\n"
    row = 'a.png,1,"{}",1,0,"{""name"":""rect"",""x"":2,""y"":3,""width"":18,""height"":7}","{""label"":""cat""}"\n'
    both = images("images/a.png", "images/sub/b.png")
    return {
        "json": folder(both | {"via.json": json.dumps(entries)}, "hold-out folder"),
        "project": folder(both | {"via.json": json.dumps({"_via_settings": {}, "_via_img_metadata": entries})}),
        "first": folder(both | {"via_region_data.json": first}),
        "checked": folder(both | {"via.json": checked}),
        "csv": folder(both | {"via.csv": header + row + row.replace("a.png", "b.png")}),
        "splits": folder(
            images("train/a.png", "val/sub/b.png")
            | {"train/via.json": json.dumps({"a": entries["a"]}), "val/via.json": json.dumps({"b": entries["b"]})}
        ),
        "escapes": folder(both | {"via.json": json.dumps(entries).replace("a.png", "{HERE}/outside/a.png")}, "skip"),
        "elsewhere": folder({"via.json": json.dumps(entries)}, "pictures @via.json"),
        "no_class": folder(both | {"via.json": json.dumps(entries).replace('"label": "cat", ', "")}),
    }


def cvat() -> dict[str, str]:
    """Files of CVAT for images."""
    shapes = (
        '<box label="cat" xtl="2.5" ytl="3" xbr="20" ybr="10"><attribute name="a">1</attribute></box>',
        '<box label="dog" xtl="2.5" ytl="3" xbr="20" ybr="10" rotation="30"/>',
        '<polygon label="cat" points="5,5;15,8;7,20.25"/>',
        '<ellipse label="cat" cx="20" cy="15" rx="5" ry="3" rotation="90"/>',
        '<mask label="cat" rle="1, 2" left="5" top="6" width="10" height="4"/>',
        '<points label="cat" points="5,5"/><tag label="cat"/>',
    )
    first, second = _cvat_image("a.png", "".join(shapes)), _cvat_image("sub/b.png", shapes[0])
    both = images("images/a.png", "images/sub/b.png")
    subset = first.replace('id="0"', 'subset="Train"') + second.replace('id="0"', 'subset="valid"')
    return {
        "one_file": folder(both | {"annotations.xml": _cvat_file(first + second)}, "hold-out folder"),
        "subsets": folder(both | {"annotations.xml": _cvat_file(subset)}),
        "splits": folder(both | {"train.xml": _cvat_file(first), "val.xml": _cvat_file(second)}, "skip"),
        "escapes": folder(
            both | {"annotations.xml": _cvat_file(first.replace("a.png", "../outside/a.png") + second)}, "skip"
        ),
        "outside_subset": folder(both | {"a.xml": _cvat_file(first.replace('id="0"', 'subset="../../outside"'))}),
        "elsewhere": folder({"annotations.xml": _cvat_file(first + second)}, "pictures @annotations.xml"),
        "video": folder(both | {"annotations.xml": _cvat_file("<track><box/></track>")}),
        "points": folder(both | {"annotations.xml": _cvat_file(_cvat_image("a.png", shapes[-1]))}),
        "declared": folder(both | {"a.xml": '<?xml version="1.0" encoding="utf-8"?>\n' + _cvat_file(first)}),
    }


def _cvat_image(name: str, shapes: str) -> str:
    return f'<image id="0" name="{name}" width="40" height="30">{shapes}</image>'


def _cvat_file(content: str) -> str:
    return f"<annotations><version>1.1</version><meta/>{content}</annotations>"
