"""Images are prepared as batches, and a teacher adopts the batches of its student."""

from dataclasses import replace

import pytest
import torch

from defeat.detector.base import valid_cells
from defeat.types import Batch
from tests.detector.tiny import COMPOSED as FAMILIES
from tests.detector.tiny import KEEPING, images, target, tiny_batch, tiny_detector

every_family = pytest.mark.parametrize("family", FAMILIES)
keeping_the_ratio = pytest.mark.parametrize("family", KEEPING)


@keeping_the_ratio
def test_the_short_side_becomes_the_size_unless_the_long_side_exceeds_its_limit(family):
    detector = tiny_detector(family)
    # 32 x 40 doubles to 64 x 80; 100 x 300 would be 64 x 192, so the limit of 96 decides: 32 x 96.
    batch = detector.prepare(images((32, 40), (100, 300)))
    assert batch.sizes == [(64, 80), (32, 96)]
    assert batch.original_sizes == [(32, 40), (100, 300)]
    assert batch.images.shape == (2, 3, 64, 96)  # the next multiples of 32
    assert batch.images.dtype == torch.float32
    assert batch.targets == []
    assert batch.scale == 1


@keeping_the_ratio
def test_padding_is_zero_before_and_after_normalisation(family):
    detector = tiny_detector(family)
    batch = detector.prepare([torch.full((3, 64, 80), 200, dtype=torch.uint8), torch.ones(3, 32, 96)])
    for tensor in (batch.images, detector.normalise(batch)):
        assert (tensor[0, :, :, 80:] == 0).all()
        assert (tensor[1, :, 32:] == 0).all()
    assert torch.allclose(batch.images[0, :, :, :80], torch.tensor(200 / 255))
    # (1 - mean) / deviation for an image of ones
    expected = (1 - torch.tensor(detector.info.mean)) / torch.tensor(detector.info.std)
    assert torch.allclose(detector.normalise(batch)[1, :, 5, 5], expected)


@every_family
def test_padded_sides_are_multiples_of_the_size_divisor(family):
    detector = tiny_detector(family)
    for size in ((64, 65), (97, 64), (50, 70)):
        height, width = detector.prepare(images(size)).images.shape[-2:]
        assert (height % detector.info.size_divisor, width % detector.info.size_divisor) == (0, 0)


@keeping_the_ratio
def test_boxes_are_scaled_and_difficult_and_crowd_boxes_removed(family):
    detector = tiny_detector(family)
    boxes = [[0, 0, 40, 32], [4, 8, 12, 16], [1, 2, 3, 4], [5, 6, 7, 8]]
    annotated = target(boxes, [0, 1, 2, 1], (32, 40), difficult=[2], crowd=[3])
    batch = detector.prepare(images((32, 40)), [annotated])
    assert batch.targets[0].boxes.tolist() == [[0, 0, 80, 64], [8, 16, 24, 32]]
    assert batch.targets[0].labels.tolist() == [0, 1]
    assert batch.targets[0].size == (64, 80)


def test_a_cell_is_valid_if_its_upper_left_corner_is_inside_the_image():
    batch = Batch(torch.zeros(2, 3, 64, 96), [(50, 70), (64, 96)], [], [(50, 70), (64, 96)], 2)
    valid = valid_cells(batch, {16: torch.zeros(2, 1, 4, 6), 32: torch.zeros(2, 1, 2, 3)})
    # Corners at stride 16: rows 0 16 32 48, all below 50; columns 0 16 32 48 64 below 70, and 80, which is not.
    assert valid[16][0].tolist() == [[True] * 5 + [False]] * 4
    # At stride 32 the corners 0 32 of the rows and 0 32 64 of the columns are all inside.
    assert valid[32][0].all()
    assert valid[16][1].all()
    assert valid[32][1].all()


@keeping_the_ratio
def test_valid_cells_of_an_output_follow_the_images(family):
    detector = tiny_detector(family).eval()
    valid = detector.forward_teacher(tiny_batch(detector)).valid
    # The images are 64 and 96 wide in a tensor of 96: at stride 32 the first has two valid columns of three.
    assert valid[32].tolist() == [[[True, True, False]] * 2, [[True] * 3] * 2, [[True, True, False]] * 2]


@every_family
def test_a_batch_of_the_same_size_is_adopted_unchanged(family):
    student, teacher = tiny_detector(family), tiny_detector(family, seed=1)
    batch = tiny_batch(student)
    assert teacher.adopt(batch) is batch


@keeping_the_ratio
@pytest.mark.parametrize(
    ("size", "scale", "padded"), [(128, 2.0, (128, 192)), (96, 1.5, (96, 160)), (32, 0.5, (32, 64))]
)
def test_a_batch_of_another_size_is_resized_with_its_boxes(family, size, scale, padded):
    teacher = tiny_detector(family, size=size, max_size=size * 3 // 2)
    batch = tiny_batch(tiny_detector(family))
    adopted = teacher.adopt(batch)
    assert adopted.scale == scale
    assert adopted.sizes == [(size, size), (size, size * 3 // 2), (size, size)]
    assert tuple(adopted.images.shape[-2:]) == padded
    assert adopted.original_sizes == batch.original_sizes
    for before, after in zip(batch.targets, adopted.targets, strict=True):
        assert torch.allclose(after.boxes, before.boxes * scale)
        assert torch.equal(after.labels, before.labels)
    assert teacher.eval().forward_teacher(adopted).scale == scale


@every_family
def test_a_batch_without_annotations_is_adopted(family):
    adopted = tiny_detector(family, size=128, max_size=192).adopt(tiny_detector(family).prepare(images((64, 64))))
    assert adopted.targets == []
    assert adopted.sizes == [(128, 128)]


@every_family
def test_an_adopted_batch_shows_the_same_image(family):
    # An image that is constant over 32 x 32 blocks has the same colours in the middle of each block at double size.
    student, teacher = tiny_detector(family), tiny_detector(family, size=128, max_size=192)
    blocks = torch.rand(3, 2, 2).repeat_interleave(32, 1).repeat_interleave(32, 2)
    adopted = teacher.adopt(student.prepare([blocks]))
    assert torch.allclose(adopted.images[0, :, 32::64, 32::64], blocks[:, 16::32, 16::32], atol=1e-5)


@every_family
@pytest.mark.parametrize("reads", [None, ["neck"]])
def test_the_output_of_a_teacher_has_the_scale_and_the_stretch_of_its_batch(family, reads):
    detector = tiny_detector(family).eval()
    batch = replace(detector.prepare(images((64, 64)), [target([[8, 8, 40, 40]], [0])]), scale=1.5, stretch=0.5)
    output = detector.forward_teacher(batch, reads)
    assert (output.scale, output.stretch) == (1.5, 0.5)
