"""Families without a reference for their training learn what they are shown: a wrong loss would find other boxes."""

import pytest
import torch
from torchvision.ops import box_iou

from tests.detector.tiny import target, tiny_detector

BOXES = [[8.0, 8.0, 44.0, 40.0], [52.0, 20.0, 88.0, 60.0]]
COLOURS = torch.tensor([[230.0, 30, 30], [30, 200, 60], [40, 60, 230]])


def scenes():
    """Two pictures of 64 x 96 pixels, each with two rectangles; colours are classes."""
    generator = torch.Generator().manual_seed(0)
    pictures, targets = [], []
    for labels in ([0, 1], [2, 0]):
        picture = 120 + 20 * torch.rand(3, 64, 96, generator=generator)
        for (left, top, right, bottom), label in zip(BOXES, labels, strict=True):
            picture[:, int(top) : int(bottom), int(left) : int(right)] = COLOURS[label][:, None, None]
        pictures.append(picture.to(torch.uint8))
        targets.append(target(BOXES, labels, (64, 96)))
    return pictures, targets


@pytest.mark.slow
@pytest.mark.parametrize("family", ["fcos", "gfl", "ssdlite"])
def test_a_detector_that_learns_two_scenes_by_heart_finds_their_objects(family):
    # A neck of 32 channels and a body with group normalisation: batch statistics of two images differ from the running.
    detector = tiny_detector(family, "resnet18", neck_channels=32, norm="gn", size=64, max_size=96)
    pictures, targets = scenes()
    optimizer = torch.optim.AdamW(detector.train().parameters(), lr=1e-3)
    torch.manual_seed(0)
    for _ in range(80):
        losses = detector.forward_train(detector.prepare(pictures, targets)).losses
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
        optimizer.step()
    for detections, truth in zip(detector.predict(pictures), targets, strict=True):
        overlaps = box_iou(truth.boxes, detections.boxes[:2])
        assert overlaps.max(dim=1).values.min() > 0.6
        assert detections.labels[overlaps.argmax(dim=1)].tolist() == truth.labels.tolist()
