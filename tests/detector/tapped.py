"""Small networks whose modules the tests tap, and a student's batch for them."""

import torch
from torch import nn

from defeat.detector.weights import IMAGENET_MEAN, IMAGENET_STD
from defeat.types import Batch


class Net(nn.Module):
    """Two convolutions, each with an in-place ReLU: `conv1` has stride 2 and 4 channels, `conv2` stride 4 and 5."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 5, 3, 2, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, images):
        return self.relu(self.conv2(self.relu(self.conv1(images))))


class SharedHead(Net):
    """One head that runs at strides 2, 4 and 8."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(4, 6, 1)

    def forward(self, images):
        level = self.conv1(images)
        levels = [level, level[..., ::2, ::2], level[..., ::4, ::4]]
        return {"levels": tuple(self.head(level) for level in levels)}


class Tokens(nn.Module):
    """Patches of 16 x 16 pixels as (B, 1 + N, C), a class token first, and as (B, H, W, C)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.block, self.norm = nn.Conv2d(3, 6, 16, 16), nn.Identity(), nn.Identity()

    def forward(self, images):
        patches = self.patches(images)
        grid = self.norm(patches.permute(0, 2, 3, 1))
        first = torch.full((len(images), 1, 6), 7.0)
        return self.block(torch.cat([first, grid.flatten(1, 2)], dim=1))


class TwoBoxes(nn.Module):
    """Detects two boxes in every image in the format of torchvision: lower score first, labels from 1."""

    def forward(self, images):
        assert all(image.dtype == torch.float32 and image.max() <= 1 for image in images)
        boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 2, 2]])
        return [{"boxes": boxes, "labels": torch.tensor([1, 2]), "scores": torch.tensor([0.2, 0.9])} for _ in images]


def shifted(images):
    """A user's preprocess function."""
    return images * 2 - 1


def prepared(*sizes, height=64, width=96, seed=0):
    """A student's batch of noise with these valid sizes."""
    images = torch.zeros(len(sizes), 3, height, width)
    generator = torch.Generator().manual_seed(seed)
    for row, (rows, columns) in zip(images, sizes, strict=True):
        row[:, :rows, :columns] = torch.rand(3, rows, columns, generator=generator)
    return Batch(images, list(sizes), [], list(sizes), 3)


def normalised(batch):
    """Normalised with mean and standard deviation of ImageNet, zero on padding."""
    images = (batch.images - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
    for row, (rows, columns) in zip(images, batch.sizes, strict=True):
        row[:, rows:], row[:, :, columns:] = 0, 0
    return images


def shapes(levels):
    return {stride: tuple(level.shape) for stride, level in levels.items()}


BATCH = prepared((64, 90), (40, 96))
