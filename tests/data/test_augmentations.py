"""All parts and levels: boxes follow the pixels, random numbers come from the given generator, any image works."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from defeat.data import open_dataset, training_loader
from defeat.data.augmentations import LEVELS, continuous_parts, part_names, training_augmentation
from defeat.data.batching import pack
from defeat.data.sampling import seeded_generator
from defeat.data.transforms import HorizontalFlip, MultiScale, ScaleJitter, ZoomOut
from defeat.errors import InputError
from defeat.types import Target

MOVING = ("flip", "iou_crop", "scale_jitter", "large_scale_jitter", "zoom_out", "multi_scale")
COLOURING = ("photometric", "photometric_distort")
EVERY = (*MOVING, *COLOURING, "standard", "strong", "strong,multi_scale")
BACKGROUND = (40, 40, 40)
COLOURS = ((220, 30, 30), (30, 220, 30), (30, 30, 220))
BOXES = ((10, 12, 50, 40), (70, 20, 110, 80), (15, 60, 45, 85))


def drawn(height=96, width=128):
    """An unannotated image with a rectangle of each colour; the second is difficult, the third a crowd."""
    image = torch.tensor(BACKGROUND, dtype=torch.uint8)[:, None, None].expand(3, height, width).clone()
    for (x1, y1, x2, y2), colour in zip(BOXES, COLOURS, strict=True):
        image[:, y1:y2, x1:x2] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
    labels = torch.arange(3)
    return image, Target(
        torch.tensor(BOXES).float(), labels, labels == 1, labels == 2, 5, (height, width), annotated=False
    )


def extent(image, colour):
    """The smallest box around all pixels of a colour."""
    near = (image.int() - colour.int()[:, None, None]).abs().amax(dim=0) < 20
    rows, columns = near.any(dim=1).nonzero(), near.any(dim=0).nonzero()
    return torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def augmented(name, count, sample=None, size=64):
    image, target = sample or drawn()
    augmentation = training_augmentation(name, size=size)
    return [augmentation(image, target, seeded_generator(name, number)) for number in range(count)]


def same(target, other):
    tensors = all(torch.equal(getattr(target, name), getattr(other, name)) for name in ("boxes", "labels", "difficult"))
    return tensors and (target.size, target.view, target.scale) == (other.size, other.view, other.scale)


@pytest.mark.parametrize("size", [32, 64, 800])
@pytest.mark.parametrize("name", EVERY)
def test_boxes_surround_the_same_pixels_after_augmentation(name, size):
    boxes = changed = 0
    for image, target in augmented(name, 60, size=size):
        assert tuple(image.shape) == (3, *target.size)
        assert image.dtype == torch.uint8
        assert target.boxes.dtype == torch.float32
        assert torch.equal(target.difficult, target.labels == 1)
        assert torch.equal(target.crowd, target.labels == 2)
        assert not target.annotated
        assert target.image_id == 5
        assert len(target.boxes) == len(target.labels)
        for box, label in zip(target.boxes, target.labels.tolist(), strict=True):
            x, y = ((box[:2] + box[2:]) / 2).int().tolist()
            colour = image[:, y, x]
            assert (extent(image, colour) - box).abs().max() <= 1.5
            if not set(part_names(name)) & set(COLOURING):
                assert (colour.int() - torch.tensor(COLOURS[label])).abs().max() < 20
            boxes += 1
        changed += not (same(target, drawn()[1]) and torch.equal(image, drawn()[0]))
    assert boxes >= 80  # of at most 180
    assert changed >= 20


@pytest.mark.parametrize("name", EVERY)
def test_boxes_are_inside_the_image_with_a_positive_extent(name):
    for _, target in augmented(name, 60):
        height, width = target.size
        assert (target.boxes >= 0).all()
        assert (target.boxes <= torch.tensor([width, height, width, height])).all()
        assert (target.boxes[:, 2:] - target.boxes[:, :2] >= 0.5).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (2, 3), (3, 200), (5, 5), (90, 90)])
@pytest.mark.parametrize("name", ["none", *EVERY])
def test_tiny_grey_and_empty_images_can_be_augmented(name, size):
    height, width = size
    grey = torch.full((3, *size), 128, dtype=torch.uint8)
    nothing = torch.zeros(1, dtype=torch.bool)
    whole = Target(torch.tensor([[0.0, 0.0, width, height]]), torch.tensor([0]), nothing, nothing, 0, size)
    for target in (whole, Target.empty(0, size)):
        for image, after in augmented(name, 12, (grey, target)):
            assert tuple(image.shape) == (3, *after.size)
            assert min(after.size) >= 1
            assert after.boxes.shape == (len(after.labels), 4)
            assert len(after.labels) <= len(target.labels)


def test_the_level_flip_is_only_the_flip():
    image, target = drawn()
    assert training_augmentation("flip", flip=0.3) == HorizontalFlip(0.3)
    for number in range(20):
        for augmentation in (training_augmentation(), training_augmentation("flip")):
            flipped, after = augmentation(image, target, seeded_generator(number))
            expected, other = HorizontalFlip(0.5)(image, target, seeded_generator(number))
            assert torch.equal(flipped, expected)
            assert same(after, other)


def test_none_changes_neither_images_nor_the_generator():
    image, target = drawn()
    generator = seeded_generator(0)
    before = generator.get_state()
    assert training_augmentation("none", flip=1.0)(image, target, generator) == (image, target)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("level", ["standard", "strong"])
def test_a_seed_flips_the_same_images_at_every_level(level):
    image, target = drawn()
    for number in range(20):
        views = {
            training_augmentation(name)(image, target, seeded_generator(number))[1].view for name in ("flip", level)
        }
        assert len(views) == 1


def test_the_flip_probability_applies_to_every_level_except_none():
    image, target = drawn()
    for level in LEVELS:
        views = [
            training_augmentation(level, flip=1.0)(image, target, seeded_generator(number))[1].view
            for number in range(5)
        ]
        assert views == [0 if level == "none" else 1] * 5


def test_levels_and_parts_are_combined_by_name():
    assert part_names("none") == []
    assert part_names("flip, photometric,scale_jitter") == part_names("scale_jitter,flip,photometric")
    assert part_names("standard") == part_names("scale_jitter,flip,photometric")
    assert part_names("none,multi_scale") == ["multi_scale"]
    assert part_names("strong,-zoom_out") == [name for name in part_names("strong") if name != "zoom_out"]
    image, target = drawn()
    first, second = (training_augmentation(name) for name in ("standard", "photometric,flip,scale_jitter"))
    for number in range(10):
        augmented_image, after = first(image, target, seeded_generator(number))
        expected, expected_target = second(image, target, seeded_generator(number))
        assert torch.equal(augmented_image, expected)
        assert same(after, expected_target)


def test_an_unknown_name_lists_the_valid_ones_and_the_nearest():
    with pytest.raises(InputError, match=r"Did you mean 'scale_jitter'\?") as caught:
        part_names("flip,scalejitter")
    assert all(name in str(caught.value) for name in ("none", "standard", "strong", *MOVING, *COLOURING))
    for text in ("", "flip,,iou_crop", "-mosaic"):
        with pytest.raises(InputError, match="Unknown augmentation"):
            part_names(text)
    with pytest.raises(InputError, match="-zoom_out removes a part that is not included"):
        part_names("standard,-zoom_out")


def test_only_the_flip_numbers_its_views():
    assert training_augmentation("none").views == 1
    assert training_augmentation("flip").views == 2
    assert training_augmentation("flip", flip=0.0).views == 1
    for name in EVERY[1:]:
        assert training_augmentation(name).views is None
    assert continuous_parts("flip") == []
    assert continuous_parts("standard") == ["scale_jitter", "photometric"]


def test_scale_jitter_crops_above_one_and_scales_below():
    image, target = drawn()
    scales, sides = [], []
    for number in range(200):
        after = ScaleJitter(0.5, 2.0)(image, target, seeded_generator(number))[1]
        assert after.scale == 1 or after.size == target.size
        scales.append(after.scale)
        sides.append(after.size[0])
        assert after.size[0] / 96 == pytest.approx(after.size[1] / 128, abs=0.01)
    # Uniform in 0.5..2: a third of the draws below 1, the others cut a window.
    assert 45 < sum(scale < 1 for scale in scales) < 90
    assert 0.5 <= min(scales) < 0.55
    assert 48 <= min(sides) <= 51


def test_scale_jitter_drops_boxes_of_which_too_little_remains():
    image = torch.zeros(3, 100, 100, dtype=torch.uint8)
    nothing = torch.zeros(1, dtype=torch.bool)
    target = Target(torch.tensor([[0.0, 0.0, 40.0, 100.0]]), torch.tensor([0]), nothing, nothing, 0, (100, 100))
    # A window of 50 x 50 at (x, y) leaves (40 - x) * 50 of 4000 pixels: a tenth is 8 columns, so x <= 32.
    for number in range(100):
        x = int(torch.rand(3, generator=seeded_generator(number))[2] * 51)
        _, after = ScaleJitter(2.0, 2.0)(image, target, seeded_generator(number))
        assert after.boxes.tolist() == ([[0, 0, 40 - x, 50]] if x <= 32 else [])


@pytest.mark.parametrize(
    ("size", "sides"),
    [(800, range(640, 961, 32)), (600, range(480, 705, 32)), (160, (128, 160, 192)), (64, range(52, 77))],
)
def test_multi_scale_draws_every_side_of_its_range(size, sides):
    image, target = drawn()
    drawn_sides = {
        round(MultiScale(size)(image, target, seeded_generator(number))[1].scale * size, 9) for number in range(400)
    }
    assert drawn_sides == set(sides)


def test_zoom_out_keeps_the_pixels_of_small_images_and_limits_the_canvas_of_large_ones():
    image, target = drawn()
    for number in range(30):
        canvas, after = ZoomOut(64, probability=1.0)(image, target, seeded_generator(number))
        assert max(after.size[0] / 96, after.size[1] / 128) <= 2
        assert min(after.size) <= 129  # twice the size, and rounding
        canvas, after = ZoomOut(800, probability=1.0)(image, target, seeded_generator(number))
        x1, y1 = (after.boxes[0, :2] - target.boxes[0, :2]).int().tolist()
        assert torch.equal(canvas[:, y1 : y1 + 96, x1 : x1 + 128], image)


def test_random_numbers_come_from_the_generator_and_global_generators_are_unchanged(monkeypatch):
    def touched(*_):
        raise AssertionError("the generators of GPUs are seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", touched)
    torch.random.default_generator.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    state, python, numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    for name in EVERY:
        first = augmented(name, 10)
        assert torch.equal(state, torch.get_rng_state())
        random.seed(4)
        torch.rand(7)
        again = augmented(name, 10)
        for (image, target), (other, after) in zip(first, again, strict=True):
            assert torch.equal(image, other)
            assert same(target, after)
        torch.set_rng_state(state)
        random.setstate(python)
    assert (numpy == np.random.get_state()[1]).all()


@pytest.mark.usefixtures("small_demo")
@pytest.mark.parametrize("name", ["standard", "strong,multi_scale"])
def test_images_do_not_depend_on_workers_and_change_between_epochs(name):
    def epoch(number, workers):
        augmentation = training_augmentation(name, size=160)
        loader = training_loader(
            open_dataset("demo", "train"), batch_size=2, seed=1, workers=workers, augmentation=augmentation
        )
        loader.batch_sampler.set_epoch(number)
        rows = [row for images, targets in loader for row in zip(images, targets, strict=True)]
        return [(t.image_id, t.size, t.scale, t.boxes.tolist(), i.flatten().tolist()) for i, t in rows]

    alone = epoch(0, 0)
    torch.manual_seed(8)
    assert epoch(0, 2) == alone
    assert sorted(epoch(1, 0)) != sorted(alone)


def test_a_packed_batch_keeps_scales():
    image, target = drawn()
    _, targets = pack([(image, replace(target, scale=scale)) for scale in (1.0, 0.7)]).unpack()
    assert [one.scale for one in targets] == [1.0, 0.7]
