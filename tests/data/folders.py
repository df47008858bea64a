"""Write small data sets for tests."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image


def write_image(path: Path, width: int = 40, height: int = 30) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (200, 100, 50)).save(path)
    return path


def voc_object(name: str, corners: Sequence[object], extra: str = "") -> str:
    keys = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, corners, strict=True))
    return f"<object><name>{name}</name>{extra}<bndbox>{box}</bndbox></object>"


def write_voc(folder: Path, splits: dict[str, dict[str, str]], width: int = 40, height: int = 30) -> Path:
    """`splits`: split -> stem -> objects as XML; images are 40 x 30 PNGs unless said otherwise."""
    (folder / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
    (folder / "Annotations").mkdir(exist_ok=True)
    for split, images in splits.items():
        (folder / f"ImageSets/Main/{split}.txt").write_text("".join(f"{stem}\n" for stem in images))
        for stem, objects in images.items():
            write_image(folder / f"JPEGImages/{stem}.png", width, height)
            size = f"<size><width>{width}</width><height>{height}</height></size>"
            text = f"<annotation><filename>{stem}.png</filename>{size}{objects}</annotation>"
            (folder / f"Annotations/{stem}.xml").write_text(text)
    return folder


def write_coco(folder: Path, content: dict[str, Any], file: str = "annotations/instances_train2017.json") -> Path:
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return folder


def coco_content() -> dict[str, Any]:
    """Two images, the second without boxes; categories with a gap, not in the order of their ids."""
    return {
        "images": [
            {"id": 9, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 4, "file_name": "sub/b.png", "width": 40, "height": 30},
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 7, "bbox": [2, 3, 10, 20], "iscrowd": 0},
            {"id": 2, "image_id": 9, "category_id": 2, "bbox": [0.5, 1, 4, 5.5], "iscrowd": 1},
        ],
    }


def write_yolo(
    folder: Path, labels: dict[str, str | None], yaml: str = "train: images/train\nnames: [cat, dog]\n"
) -> Path:
    """`labels`: stem -> text of its label file, None for no file; images of 40 x 20 pixels in images/train."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.yaml").write_text(yaml)
    (folder / "labels/train").mkdir(parents=True, exist_ok=True)
    for stem, text in labels.items():
        write_image(folder / f"images/train/{stem}.png", 40, 20)
        if text is not None:
            (folder / f"labels/train/{stem}.txt").write_text(text)
    return folder
