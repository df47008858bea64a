"""Real data sets have the published numbers of images, boxes and classes."""

import pytest

from defeat.data import DetectionDataset, open_dataset, split_names
from tests.shared_data import shared_folder

pytestmark = pytest.mark.real


def read(name: str) -> dict[str, DetectionDataset]:
    path = shared_folder("DEFEAT_DATA", "../shared/data") / name
    return {split: open_dataset(path, split) for split in split_names(path)}


def counts(splits: dict[str, DetectionDataset]) -> dict[str, tuple[int, int]]:
    """Numbers of images and boxes of each split."""
    return {split: (len(dataset), len(dataset.table.labels)) for split, dataset in splits.items()}


def check_first_image(dataset: DetectionDataset) -> None:
    image, target = dataset[0]
    assert tuple(image.shape) == (3, *target.size)


def test_voc15():
    splits = read("voc15")
    split_counts = counts(splits)
    assert {split: images for split, (images, _) in split_counts.items()} == {"train": 732, "test": 196}
    assert sum(boxes for _, boxes in split_counts.values()) == 2013
    assert splits["train"].classes == splits["test"].classes
    assert len(splits["train"].classes) == 15
    assert splits["train"].report() is None
    check_first_image(splits["train"])


def test_bccd():
    splits = read("bccd")
    split_counts = counts(splits)
    assert {split: images for split, (images, _) in split_counts.items()} == {
        "train": 205,
        "val": 87,
        "trainval": 292,
        "test": 72,
    }
    # 4888 boxes, two of which are points.
    assert split_counts["trainval"][1] + split_counts["test"][1] == 4886
    assert splits["trainval"].report() == "2 of 3943 boxes dropped (no extent after clipping)"
    assert splits["test"].classes == ("Platelets", "RBC", "WBC")
    check_first_image(splits["test"])


def test_neu_det():
    splits = read("neu-det")
    split_counts = counts(splits)
    assert {split: images for split, (images, _) in split_counts.items()} == {"train": 1620, "val": 180}
    assert sum(boxes for _, boxes in split_counts.values()) == 4189
    assert len(splits["train"].classes) == 6
    check_first_image(splits["val"])


def test_coco_mini():
    splits = read("coco-mini")
    assert counts(splits) == {"train": (80, 739), "val": (79, 624)}
    for dataset in splits.values():
        assert len(dataset.classes) == 80
        assert dataset.table.crowd.any()
        assert dataset.report() is None
        check_first_image(dataset)
