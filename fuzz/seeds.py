"""Write the initial inputs of fuzzing to fuzz/corpus: `python -m fuzz.seeds`."""

import json
from pathlib import Path
from typing import Any

from fuzz import folder_seeds

CORPUS = Path(__file__).resolve().parent / "corpus"
SEPARATOR = folder_seeds.SEPARATOR


def _voc() -> dict[str, str]:
    box = "<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>20</xmax><ymax>25.5</ymax></bndbox>"
    thing = f"<object><name>cat</name><difficult>1</difficult>{box}</object>"
    size = "<size><width>40</width><height>30</height><depth>3</depth></size>"
    full = f"<annotation><filename>a.png</filename>{size}{thing}</annotation>"
    return {
        "full": full,
        "listed": full + SEPARATOR + "a\n",
        "declared": f'<?xml version="1.0" encoding="utf-8"?>\n<annotation>{thing}{thing}</annotation>'
        + SEPARATOR
        + "b\na\n",
        "outside": f"<annotation>{size}{thing.replace('20', '90').replace('>3<', '>-3.5<')}</annotation>",
        "entity": f'<!DOCTYPE a [<!ENTITY b "c">]><annotation>{thing}&b;</annotation>',
        "flags": full + SEPARATOR + "a 1\nb -1\n",
    }


def _coco() -> dict[str, str]:
    content: dict[str, Any] = {
        "images": [
            {"id": 9, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 4, "file_name": "sub/b.png"},
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 7, "bbox": [2, 3, 10, 20], "iscrowd": 0},
            {"id": 2, "image_id": 9, "category_id": 2, "bbox": [0.5, 1, 400, 5.5], "iscrowd": 1},
        ],
    }
    return {
        "full": json.dumps(content),
        "no_boxes": json.dumps(content | {"annotations": []}),
        "unknown_category": json.dumps(content | {"categories": content["categories"][:1]}),
        "floats": json.dumps(content).replace('"id": 9', '"id": 9.0').replace("40", "4e1"),
        "not_coco": "[1, 2]",
    }


def _yolo() -> dict[str, str]:
    lines = "0 0.5 0.5 0.2 0.3\n1 0.1 0.1 0.9 0.1 0.5 0.9\n"
    return {
        "folder": SEPARATOR.join(["train: images/train\nnames: [cat, dog]\n", lines]),
        "map": SEPARATOR.join(
            ["path: .\ntrain: images/train\nval: images/train\nnc: 2\nnames: {0: cat, 1: dog}\n", lines]
        ),
        "list": SEPARATOR.join(["train: list.txt\nnames:\n- cat\n- dog\n", lines, "./images/train/a.png\n"]),
        "roboflow": SEPARATOR.join(["train: ../images/train\nnames: ['cat', \"dog\"]\n", "1 0.99 0.99 0.5 0.5"]),
        "anchors": SEPARATOR.join(["base: &a [cat, dog]\nnames: *a\ntrain: [images/train, list.txt]\n", lines]),
        "wrong_class": SEPARATOR.join(["train: images/train\nnames: {3: cat}\n", "0 0.5 0.5 0.1 0.1"]),
    }


def _model() -> dict[str, str]:
    description: dict[str, Any] = {
        "format": 1,
        "family": "retinanet",
        "backbone": "lcnet_050",
        "classes": ["cat"],
        "size": 32,
        "max_size": 32,
        "norm": "bn",
        "neck_channels": 1,
        "frozen_stages": 0,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "options": {},
    }
    some = "backbone.fpn.inner_blocks.0.0.bias"
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    options = {
        "anchor_sizes": [8, 16, 32, 64, 128],
        "score_thresh": 0.1,
        "head_norm": "gn",
        "initialisation": "published",
    }
    return {
        "full": json.dumps(description),
        "options": json.dumps(description | {"options": options}),
        "norm": json.dumps(description | {"norm": "frozen", "frozen_stages": 2}),
        "two_stages": json.dumps(description | {"family": "faster_rcnn", "options": {"box_representation_size": 4}}),
        "wider": json.dumps(description | {"neck_channels": 2, "classes": ["cat", "dog"]}),
        "narrow": json.dumps(description | {"width": 0.5}),
        "missing": json.dumps(description) + SEPARATOR + json.dumps({some: None}),
        "reshaped": json.dumps(description) + SEPARATOR + json.dumps({some: entry}),
        "empty_weights": json.dumps(description) + SEPARATOR + "\x02\0\0\0\0\0\0\0{}",
        "no_weights": json.dumps(description) + SEPARATOR + "not weights",
    }


def _results() -> dict[str, str]:
    box: dict[str, Any] = {"image_id": 9, "category_id": 7, "bbox": [2, 3, 10, 20], "score": 0.5}
    images = [{"id": 9, "file_name": "a.png", "width": 40, "height": 30}, {"id": 4, "file_name": "sub/b.png"}]
    categories = [{"id": 7, "name": "dog"}, {"id": 2, "name": "cat"}]
    about = {"images": images, "categories": categories}
    named = {"file_name": "sub/b.png", "category_name": "cat", "bbox": [0, 0, 5.5, 5], "score": 1}
    several = [box, box | {"score": 0.9}, box | {"image_id": "4", "category_id": 2.0}]
    return {
        "described": json.dumps(several) + SEPARATOR + json.dumps(about),
        "named": json.dumps([named, named | {"score": 0.25}]),
        "stems": SEPARATOR.join([json.dumps([box | {"image_id": "a", "category_id": 1}]), "", "cat dog"]),
        "annotations": json.dumps(about | {"annotations": several}),
        "no_scores": json.dumps([{name: named[name] for name in ("file_name", "category_name", "bbox")}]),
        "unknown_image": json.dumps([box | {"image_id": 5}]) + SEPARATOR + json.dumps(about),
        "empty": "[]",
    }


def _exported() -> dict[str, str]:
    about: dict[str, Any] = {
        "format": 1,
        "family": "retinanet",
        "classes": ["cat", "dog"],
        "size": 64,
        "max_size": 96,
        "size_divisor": 32,
        "square": False,
        "antialias": True,
        "fill": [123.7, 116.3, 103.5],
        "white": 255,
        "height": None,
        "width": None,
        "batch": 1,
        "nms": "inside",
        "score_thresh": 0.05,
        "nms_thresh": 0.5,
        "detections_per_img": 300,
        "precision": "fp32",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "fingerprint": "00",
        "version": "defeat",
        "licence": "MIT",
    }
    return {
        "full": json.dumps(about),
        "fixed": json.dumps(about | {"height": 64, "width": 96, "nms": "outside", "batch": None}),
        "square": json.dumps(about | {"square": True, "height": 64, "width": 64, "nms_thresh": None, "white": 1}),
        "unknown_nms": json.dumps(about | {"nms": "none"}),
    }


def _seeds() -> dict[str, dict[str, str]]:
    """The seeds of every target."""
    targets = (
        folder_seeds.voc_folders,
        folder_seeds.coco_folders,
        folder_seeds.yolo_folders,
        folder_seeds.labelme,
        folder_seeds.via,
        folder_seeds.cvat,
    )
    files = {"voc": _voc(), "coco": _coco() | folder_seeds.coco_values(), "yolo": _yolo(), "model": _model()}
    files |= {"results": _results(), "exported": _exported()}
    return files | {target.__name__: target() for target in targets}


def main() -> None:
    """Write the seeds of every target."""
    for name, seeds in _seeds().items():
        folder = CORPUS / name
        folder.mkdir(parents=True, exist_ok=True)
        for seed, text in seeds.items():
            (folder / f"seed_{seed}").write_bytes(text.encode())


if __name__ == "__main__":
    main()
