"""Boxes: a flip is its own inverse, clipping is final, and what a data set gives keeps the contract of `Target`."""

import torch
from hypothesis import example, given
from hypothesis import strategies as st

from defeat.data.batching import pack
from defeat.data.dataset import Annotation, SplitBuilder
from defeat.data.transforms import HorizontalFlip, flip
from defeat.types import Target
from tests.properties.draws import boxes, numbers, properties

CLASSES = ("cat", "dog")


@st.composite
def samples(draw):
    """An image of some size with whole boxes inside it, each with the numbers of what it shows."""
    height, width = draw(st.integers(2, 40)), draw(st.integers(2, 40))
    rows = []
    for _ in range(draw(st.integers(0, 5))):
        x1, y1 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        rows.append((x1, y1, draw(st.integers(x1 + 1, width)), draw(st.integers(y1 + 1, height))))
    flags = [torch.tensor(draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))).bool() for _ in "dc"]
    labels = torch.arange(len(rows)) % len(CLASSES)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    return image, Target(boxes(rows), labels, *flags, draw(st.integers(0, 9)), (height, width))


def same(left, right):
    fields = ("boxes", "labels", "difficult", "crowd")
    tensors = all(torch.equal(getattr(left, field), getattr(right, field)) for field in fields)
    return tensors and (left.image_id, left.size, left.view, left.scale) == (
        right.image_id,
        right.size,
        right.view,
        right.scale,
    )


def sides(rows):
    return rows[:, 2:] - rows[:, :2]


@properties
@given(samples())
def test_two_flips_change_nothing(sample):
    image, target = sample
    again, back = flip(*flip(image, target))
    assert torch.equal(again, image)
    assert same(back, target)


@properties
@given(samples())
def test_a_flip_keeps_sides_labels_and_flags_and_stays_inside(sample):
    _, target = sample
    _, flipped = flip(*sample)
    assert torch.equal(sides(flipped.boxes), sides(target.boxes))
    assert torch.equal(flipped.boxes[:, 1::2], target.boxes[:, 1::2])
    assert (flipped.boxes[:, 0] >= 0).all()
    assert (flipped.boxes[:, 2] <= target.size[1]).all()
    for field in ("labels", "difficult", "crowd"):
        assert torch.equal(getattr(flipped, field), getattr(target, field))
    assert flipped.view != target.view


@properties
@given(samples())
def test_a_flipped_box_shows_the_mirror_image_of_what_it_showed(sample):
    image, target = sample
    mirrored, flipped = flip(image, target)
    for before, after in zip(target.boxes.int().tolist(), flipped.boxes.int().tolist(), strict=True):
        old = image[:, before[1] : before[3], before[0] : before[2]]
        assert torch.equal(mirrored[:, after[1] : after[3], after[0] : after[2]], old.flip(-1))


@properties
@given(samples(), st.integers(0, 99))
def test_certain_flips_always_or_never_happen(sample, seed):
    generator = torch.Generator().manual_seed(seed)
    assert same(HorizontalFlip(0.0)(*sample, generator)[1], sample[1])
    assert same(HorizontalFlip(1.0)(*sample, generator)[1], flip(*sample)[1])


@properties
@given(samples(), st.integers(1, 80), st.integers(1, 80))
def test_resizing_keeps_each_boxs_share_of_the_image_and_commutes_with_a_flip(sample, height, width):
    image, target = sample
    resized = target.resized((height, width))
    assert resized.size == (height, width)
    whole = [torch.tensor([*image_target.size[::-1]] * 2, dtype=torch.float64) for image_target in (target, resized)]
    assert torch.allclose(target.boxes / whole[0], resized.boxes / whole[1], atol=1e-6)
    _, flipped = flip(image, target)
    _, other = flip(image, resized)
    assert torch.allclose(flipped.resized((height, width)).boxes, other.boxes, atol=1e-4)


@properties
@given(samples())
def test_trainable_boxes_are_those_that_are_neither_difficult_nor_crowds_in_their_order(sample):
    _, target = sample
    kept = [index for index in range(len(target.labels)) if not target.difficult[index] and not target.crowd[index]]
    trainable = target.trainable()
    assert torch.equal(trainable.boxes, target.boxes[kept])
    assert torch.equal(trainable.labels, target.labels[kept])
    assert same(trainable.trainable(), trainable)


@properties
@given(st.lists(samples(), min_size=1, max_size=4))
def test_a_packed_batch_gives_back_what_went_in(items):
    images, targets = pack(items).unpack()
    assert all(torch.equal(image, before) for image, (before, _) in zip(images, items, strict=True))
    assert all(same(target, before) for target, (_, before) in zip(targets, items, strict=True))


@st.composite
def any_boxes(draw):
    """An image, small or enormous, and boxes: anywhere, or so thin that rounding may leave nothing of them."""
    most = draw(st.sampled_from([50, 5_000, 10**8]))
    height, width = draw(st.integers(1, most)), draw(st.integers(1, most))
    anywhere = st.tuples(*[st.floats(-1.5 * most, 1.5 * most)] * 4)
    thin = st.tuples(st.floats(0, width), st.floats(0, height), st.floats(0, 0.1), st.floats(0, 0.1)).map(
        lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3])
    )
    return draw(st.lists(anywhere | thin, max_size=8)), (height, width)


def gathered(rows, size):
    """The data set of one image with these boxes; a wide box of its own keeps it from being refused as empty."""
    builder = SplitBuilder(CLASSES)
    everything = (0.0, 0.0, float(size[1]), float(size[0]))
    names = ("cat", "dog", "owl")
    result = [Annotation(tuple(row), names[index % 3]) for index, row in enumerate([everything, *rows])]
    builder.add("a.png", "a.png", size, result)
    return builder.finish("made up", "train", "here")


@properties
@given(any_boxes())
@example(([(1048576.0, 0.0, 1048576.05, 9.0)], (9, 1 << 21)))
def test_any_finite_boxes_become_boxes_inside_the_image_with_an_extent(drawn):
    rows, size = drawn
    dataset = gathered(rows, size)
    target = dataset.target(0)
    height, width = size
    assert target.boxes.isfinite().all()
    assert (target.boxes >= 0).all()
    assert (target.boxes <= torch.tensor([width, height] * 2)).all()
    assert (sides(target.boxes) > 0).all()
    assert ((target.labels >= 0) & (target.labels < len(CLASSES))).all()


@properties
@given(st.lists(st.tuples(*[st.integers(-20, 120).map(lambda value: value / 2)] * 4), max_size=8))
def test_clipping_is_final_and_every_box_is_accounted_for(rows):
    size = (30, 40)
    dataset = gathered(rows, size)
    kept = dataset.target(0).boxes
    again = SplitBuilder(CLASSES)
    again.add("a.png", "a.png", size, [Annotation(tuple(row), "cat") for row in kept.tolist()])
    second = again.finish("made up", "train", "here")
    assert torch.equal(second.target(0).boxes, kept)
    assert all("duplicated" in text for text in second.problems)
    left_out = [
        int(text.split()[0]) for text in dataset.problems if "clipped to" not in text and "duplicated" not in text
    ]
    assert len(kept) + sum(left_out) == 1 + len(rows)


@properties
@given(samples())
def test_boxes_inside_the_image_stay_as_they_are(sample):
    _, target = sample
    rows = target.boxes.tolist()
    kept = gathered([row for row in rows for _ in range(3)], target.size).target(0).boxes[1:]
    expected = [row for index, row in enumerate([row for row in rows for _ in range(3)], 1) if index % 3 != 2]
    assert kept.tolist() == expected


@properties
@given(numbers((3, 4), 1e4))
def test_a_targets_copies_do_not_reach_the_data_set(values):
    corners = torch.cat([values[:, :2].abs(), values[:, :2].abs() + values[:, 2:].abs() + 1], dim=1)
    dataset = gathered(corners.tolist(), (30_000, 30_000))
    before = dataset.target(0).boxes.clone()
    dataset.target(0).boxes.zero_()
    assert torch.equal(dataset.target(0).boxes, before)
