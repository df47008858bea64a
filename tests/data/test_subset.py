"""Some of the images of a data set: the same images and annotations, under a split of their own."""

import pickle

import pytest
import torch

from defeat.data import DemoDataset, open_dataset
from defeat.data.objects import ObjectDataset
from tests.data.folders import write_yolo


def drawn(_):
    return DemoDataset("train", training=4)


def objects(_):
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, 8, 10 + index), dtype=torch.uint8, generator=generator) for index in range(4)]
    targets = [{"boxes": [[0.0, 0.0, 4.0, 4.0]] * index, "labels": [0] * index} for index in range(4)]
    return ObjectDataset(list(zip(images, targets, strict=True)), ["cat"])


def files(folder):
    return open_dataset(write_yolo(folder, dict.fromkeys("abcd", "0 .5 .5 1 1")), "train")


@pytest.mark.parametrize("whole", [drawn, objects, files])
def test_a_subset_has_the_images_of_the_whole(whole, tmp_path):
    dataset = whole(tmp_path)
    part = dataset.subset([3, 1], "some")
    last = part.subset([1], "one")
    copied = pickle.loads(pickle.dumps(part))  # noqa: S301 (as worker processes get it)
    assert (len(part), part.split, part.classes, part.in_memory) == (2, "some", dataset.classes, dataset.in_memory)
    for index, original in enumerate((3, 1)):
        image, target = dataset[original]
        for other in (part, copied):
            assert torch.equal(other[index][0], image)
            assert torch.equal(other[index][1].boxes, target.boxes)
            assert other[index][1].image_id == target.image_id
    assert torch.equal(last[0][0], dataset[1][0])
    if whole is not objects:
        assert part.identity(0) == dataset.identity(3)
    assert part.fingerprint() != dataset.fingerprint()
