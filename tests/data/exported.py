"""Drawn data sets to export, and how to compare what is read again."""

from pathlib import Path

import torch

from defeat.data.dataset import Annotation, DetectionDataset, SplitBuilder
from tests.data.folders import write_image

LAYOUTS = ("coco", "yolo", "voc")


def drawn(folder, images, classes=("cat", "dog"), split="train", upright=True, suffix=".png", size=(30, 40)):
    """A split of images of 40 x 30 pixels: name -> annotations (corners, class, difficult, crowd)."""
    builder = SplitBuilder(classes)
    for name, annotations in images.items():
        path = write_image(folder / f"{name}{suffix}", size[1], size[0])
        boxes = [Annotation(*annotation) for annotation in annotations]
        builder.add(path, path.relative_to(folder).as_posix(), size, boxes, prefer_upright=upright)
    return builder.finish("drawn", split, folder)


def content(dataset: DetectionDataset) -> list[tuple]:
    """Size and objects of each image with the names of the classes, whatever the order of the images."""
    rows = []
    for index, sample in enumerate(dataset.samples):
        target = dataset.target(index)
        names = [dataset.classes[label] for label in target.labels.tolist()]
        rows.append((Path(sample.name).stem, sample.size, target.boxes, names, target.difficult, target.crowd))
    return sorted(rows, key=lambda row: row[0])


def require_equal(read, original, flags=()):
    first, second = content(read), content(original)
    assert len(first) == len(second)
    for (_, size, boxes, names, *read_flags), (_, size2, boxes2, names2, *flags2) in zip(first, second, strict=True):
        assert size == size2
        assert names == names2
        torch.testing.assert_close(boxes, boxes2, rtol=0, atol=1e-3)
        for flag in flags:
            which = ("difficult", "crowd").index(flag)
            assert read_flags[which].tolist() == flags2[which].tolist()
