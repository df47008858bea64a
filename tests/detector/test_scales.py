"""`Target.scale` changes the size in `prepare`: boxes follow, and the teacher sees the same pixels."""

from dataclasses import replace

import pytest
import torch

from tests.detector.tiny import COMPOSED as FAMILIES
from tests.detector.tiny import KEEPING, images, target, tiny_detector

every_family = pytest.mark.parametrize("family", FAMILIES)
SCALES = (0.5, 0.8, 1.0, 1.25, 2.0)


def scaled(detector, sizes, scales):
    targets = [
        replace(target([[0, 0, width / 2, height]], [0], (height, width)), scale=scale)
        for (height, width), scale in zip(sizes, scales, strict=True)
    ]
    return detector.prepare(images(*sizes), targets)


@pytest.mark.parametrize("family", KEEPING)
def test_prepare_scales_the_short_side_up_to_the_limit_of_the_long_side(family):
    detector = tiny_detector(family)  # short side 64, long side 96
    batch = scaled(detector, [(100, 100)] * 5, SCALES)
    assert batch.sizes == [(32, 32), (51, 51), (64, 64), (80, 80), (96, 96)]  # 128 is above the limit
    assert batch.images.shape == (5, 3, 96, 96)
    for (height, width), adopted_target in zip(batch.sizes, batch.targets, strict=True):
        assert adopted_target.boxes[0].tolist() == pytest.approx([0, 0, width / 2, height], abs=1e-3)
        assert adopted_target.size == (height, width)
    # A wide image is limited by its long side already, and a scale below 1 makes it smaller by as much.
    assert scaled(detector, [(40, 120)] * 3, (1.0, 0.5, 2.0)).sizes == [(32, 96), (16, 48), (32, 96)]


@every_family
def test_a_scale_of_one_changes_nothing(family):
    detector = tiny_detector(family)
    sizes = [(100, 75), (33, 91), (1, 50), (375, 500)]
    batch, plain = scaled(detector, sizes, [1.0] * 4), detector.prepare(images(*sizes))
    assert torch.equal(batch.images, plain.images)
    assert batch.sizes == plain.sizes


@every_family
def test_a_teacher_of_the_same_size_adopts_the_batch_itself(family):
    student, teacher = tiny_detector(family), tiny_detector(family, seed=7, neck_channels=24)
    for first in SCALES:
        batch = scaled(student, [(100, 75), (60, 90)], [first, 0.7])
        adopted = teacher.adopt(batch)
        assert adopted is batch
        assert adopted.scale == 1


@pytest.mark.parametrize("family", KEEPING)  # the sides of squares are rounded to multiples of 32
@pytest.mark.parametrize("first", [0.5, 0.8, 1.25])
def test_a_teacher_of_another_size_resizes_all_images_by_the_same_ratio(family, first):
    student, teacher = tiny_detector(family, max_size=400), tiny_detector(family, size=128, max_size=800)
    batch = scaled(student, [(100, 100), (60, 90)], [first, 0.7])
    adopted = teacher.adopt(batch)
    assert adopted.scale == pytest.approx(2, abs=0.03)
    for small, large in zip(batch.sizes, adopted.sizes, strict=True):
        assert large == tuple(round(side * adopted.scale) for side in small)
    for small, large in zip(batch.targets, adopted.targets, strict=True):
        assert torch.allclose(small.boxes * 2, large.boxes, rtol=0.03)


@every_family
def test_batches_of_mixed_scales_can_be_trained_on(family):
    detector = tiny_detector(family).train()
    output = detector.forward_train(scaled(detector, [(100, 75), (60, 90)], [0.3, 1.2]))
    assert all(bool(loss.isfinite()) for loss in output.losses.values())
