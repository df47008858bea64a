"""Whole methods: finite for all maps that a convolution can process, and invariant to order and flips."""

from dataclasses import replace
from inspect import signature

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from defeat.distillation import METHODS, build_method
from defeat.distillation.differences import standardise
from defeat.distillation.imitation import SCALES, MapImitation
from defeat.distillation.regions import PAINTERS
from tests.distillation.made_up import boxed, dense, info, output, proposals
from tests.properties.draws import DTYPES, numbers, properties, shuffled
from tests.properties.test_schedule import standing

CHANNELS = {8: 2, 16: 2}
SHAPES = {8: (4, 4), 16: (2, 2)}  # of images of 32 x 32 pixels
# Methods that square features as they are, and the largest features for which that is finite.
UNSTANDARDISED, SQUARED = ("fgd", "mgd"), 1e15
ANY = st.integers(0, 32)


@st.composite
def targets(draw, images=2, unit=1):
    """Boxes with corners at multiples of a unit in images of 32 x 32 pixels."""
    result = []
    for _ in range(images):
        rows = []
        for _ in range(draw(st.integers(0, 3))):
            (x1, x2), (y1, y2) = (sorted(draw(st.lists(ANY, min_size=2, max_size=2, unique=True))) for _ in "xy")
            rows.append([unit * (corner // unit) for corner in (x1, y1, x2 + unit - 1, y2 + unit - 1)])
        kept = [row for row in rows if row[0] < row[2] <= 32 and row[1] < row[3] <= 32]
        result.append(boxed(*kept, size=(32, 32)))
    return result


@st.composite
def maps(draw, limit, images=2):
    dtype = draw(DTYPES)
    return {stride: draw(numbers((images, 2, *shape), limit, dtype)) for stride, shape in SHAPES.items()}


@st.composite
def pairs(draw, limit):
    """Outputs of a student and a teacher for two images: maps, and predictions of proposals and of anchors."""
    scored, labels = draw(numbers((2, 3, 3), limit)), torch.tensor([0, 2, -1])
    sides = []
    for index in range(2):
        rows = [torch.zeros(2, 4), torch.zeros(1, 4)]
        sides.append(
            output(
                draw(maps(limit)),
                proposals=proposals(rows, scored[index], labels),
                score_proposals=lambda _, index=index: scored[index],
                dense=dense(scored[index, None, :, :2], labels[None]),
            )
        )
    return sides


def known(kind):
    """A pair that can be compared by proposals or by anchors."""
    background = "last" if kind == "proposals" else "none"
    return info(CHANNELS, offers=frozenset({kind}), anchors="same", background=background)


def built(name, kind, **options):
    every = {option: 1.0 for option in signature(METHODS[name]).parameters if option.endswith("_weight")}
    torch.manual_seed(0)
    return build_method(name, known(kind), known(kind), every | options)


# The others compare what these outputs lack: towers, queries, distributions, detections.
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("boxes", "crosskd", "detr", "ld")])
@properties
@given(st.data(), st.sampled_from(["proposals", "dense"]), targets(), standing())
def test_losses_and_gradients_are_finite_for_large_maps(name, data, kind, boxes, progress):
    kind = "dense" if name == "bckd" else kind
    student, teacher = sides = data.draw(pairs(SQUARED if name in UNSTANDARDISED else 1e30))
    leaves = {stride: level.clone().requires_grad_() for stride, level in student.neck.items()}
    method = built(name, kind)
    losses = method(replace(student, neck=leaves, backbone=leaves), teacher, boxes, progress)
    assert losses
    for term, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.isfinite(), term
        # Divergences of equal distributions round to either side of zero.
        rounding = 1e-5 * max(float(side.proposals.logits.abs().max()) for side in sides) if "head" in term else 0
        assert loss >= -rounding - 1e-6, term
    total = sum(losses.values())
    if total.requires_grad:
        total.backward()
    for weight in [*leaves.values(), *method.parameters()]:
        assert weight.grad is None or weight.grad.isfinite().all()


def transparent(imitation):
    """Initialise the adaptation layers as identity."""
    for layer in imitation.adaptation.layers.values():
        nn.init.dirac_(layer.weight)
        nn.init.zeros_(layer.bias)
    return imitation


@st.composite
def imitations(draw):
    options = {"object_weight": 2.0, "background_weight": 1.0, "scale": draw(st.sampled_from(SCALES))}
    options["difference"] = draw(st.sampled_from(["squared", "absolute"]))
    options["count_padding"] = draw(st.booleans())
    region = PAINTERS[draw(st.sampled_from(["object", "whole"]))]
    return transparent(MapImitation(info(CHANNELS), info(CHANNELS), "neck", region, **options))


def close(first, second):
    return first.keys() == second.keys() and all(
        torch.allclose(first[name], second[name], rtol=1e-3, atol=1e-4 * (1 + first[name].item())) for name in first
    )


def whole_numbers(levels):
    return {stride: level.float().round() for stride, level in levels.items()}


@properties
@given(imitations(), maps(100.0), targets())
def test_equal_features_give_no_loss(imitation, levels, boxes):
    same = levels = whole_numbers(levels)
    if imitation.scale == "teacher":  # standardises only the teacher: the student must be standardised already
        same = {stride: standardise(level, torch.ones_like(level[:, 0]).bool()) for stride, level in levels.items()}
    assert all(loss == 0 for loss in imitation(output(same), output(levels), boxes).values())


@properties
@given(imitations(), maps(100.0), maps(100.0), targets(unit=16))
def test_mirrored_features_with_mirrored_boxes_give_the_same_loss(imitation, own, theirs, boxes):
    own, theirs = whole_numbers(own), whole_numbers(theirs)
    result = imitation(output(own), output(theirs), boxes)
    flipped = [{stride: level.flip(-1) for stride, level in levels.items()} for levels in (own, theirs)]
    mirrored = [boxed(*[[32 - x2, y1, 32 - x1, y2] for x1, y1, x2, y2 in target.boxes.tolist()]) for target in boxes]
    assert close(result, imitation(output(flipped[0]), output(flipped[1]), mirrored))


@properties
@given(st.data(), imitations(), maps(100.0), maps(100.0), targets())
def test_the_order_of_images_and_channels_does_not_matter(data, imitation, own, theirs, boxes):
    own, theirs = whole_numbers(own), whole_numbers(theirs)
    result = imitation(output(own), output(theirs), boxes)
    images, channels = shuffled(data.draw, 2), shuffled(data.draw, 2)
    mixed = [{stride: level[images][:, channels] for stride, level in levels.items()} for levels in (own, theirs)]
    assert close(result, imitation(output(mixed[0]), output(mixed[1]), [boxes[index] for index in images]))
