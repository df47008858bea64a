"""DeFeat's terms on feature maps and predictions built by hand."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from defeat.distillation import DeFeat
from defeat.errors import InputError
from defeat.types import Progress
from tests.detector.tiny import tiny_detector
from tests.distillation.made_up import START, boxed, dense, info, output, proposals, random_output

RANDOM = info({8: 4, 16: 4})
TARGETS = [boxed([4.0, 4.0, 40.0, 30.0]), boxed()]


def method(student=RANDOM, teacher=RANDOM, **options):
    torch.manual_seed(0)
    return DeFeat(student, teacher, **{"warmup": 0.0} | options)


def with_identity(built):
    """The method with adaptation layers that return their input."""
    for layer in built.neck.adaptation.layers.values():
        nn.init.dirac_(layer.weight)
        nn.init.zeros_(layer.bias)
    return built


def items(losses):
    return {name: loss.item() for name, loss in losses.items()}


def times(detector_output, factor):
    return replace(detector_output, neck={stride: level * factor for stride, level in detector_output.neck.items()})


def test_neck_terms_by_hand():
    # An image of 8 x 8 pixels, strides 4 and 8, one channel; the student's maps are zero.
    student = output({4: torch.zeros(1, 1, 2, 2), 8: torch.zeros(1, 1, 1, 1)})
    teacher = output({4: torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), 8: torch.tensor([[[[5.0]]]])})
    built = method(info({4: 1, 8: 1}), info({4: 1, 8: 1}), object_weight=3.0, background_weight=12.0, scale="none")
    # The box of side 4 belongs to stride 4 and covers its first cell.
    # Object: 1 / (2 * 1) on stride 4, nothing on stride 8; mean 1/4, times 3.
    # Background: (4 + 9 + 16) / (2 * 3) = 29/6 and 25 / (2 * 1) = 75/6; mean 104/12, times 12.
    losses = with_identity(built)(student, teacher, [boxed([0.0, 0.0, 4.0, 4.0], size=(8, 8))], START)
    assert items(losses) == pytest.approx({"neck_object": 0.75, "neck_background": 104.0})


def test_a_missing_level_is_matched_to_the_nearest_one_resized_by_hand():
    # The teacher has only stride 8: 8 columns with the values 0 to 7. Column i of the student's 16 at stride 4 lies at
    # (i + 1/2) / 2 - 1/2 of them, clamped to the border's value.
    ramp = torch.arange(8.0).expand(1, 1, 4, 8)
    positions = ((torch.arange(16.0) + 0.5) / 2 - 0.5).clamp(0, 7).expand(1, 1, 8, 16)
    built = method(
        info({4: 1}), info({8: 1}), scale="none", missing_levels="nearest", object_weight=0, background_weight=4
    )
    losses = with_identity(built)(output({4: positions}), output({8: ramp}), [boxed(size=(32, 64))], START)
    assert items(losses) == pytest.approx({"neck_background": 0}, abs=1e-10)
    # At a distance of 3 everywhere, 9 / 2 per cell, times the weight of 4.
    losses = with_identity(built)(output({4: positions + 3}), output({8: ramp}), [boxed(size=(32, 64))], START)
    assert items(losses) == pytest.approx({"neck_background": 18})
    assert built.notes == ["The teacher's neck has no level at stride 4: the one at stride 8 is resized."]


def test_object_and_background_partition_the_map():
    # With equal squared differences everywhere both terms are half that value: no cell is lost or counted twice.
    student, teacher = random_output(4, seed=0), random_output(4, seed=0)
    teacher = replace(teacher, neck={stride: level + 2 for stride, level in teacher.neck.items()})
    losses = with_identity(method(scale="none", object_weight=1, background_weight=1))(student, teacher, TARGETS, START)
    # Per element 2^2 / 2 = 2; objects are on stride 8 only, so their mean over the two levels is 1.
    assert items(losses) == pytest.approx({"neck_object": 1.0, "neck_background": 2.0}, rel=1e-5)


def test_equal_maps_give_zero_losses():
    equal = random_output(4, seed=0)
    for scale in ("none", "standardise"):
        losses = with_identity(method(scale=scale))(equal, equal, TARGETS, START)
        assert items(losses) == {"neck_object": 0, "neck_background": 0}


@pytest.mark.parametrize("scale", ["standardise", "teacher"])
def test_neck_terms_do_not_depend_on_the_magnitude_of_the_teacher(scale):
    student, teacher, built = random_output(4, seed=0), random_output(4, seed=1), method(scale=scale)
    expected = items(built(student, teacher, TARGETS, START))
    assert items(built(student, times(teacher, 1000), TARGETS, START)) == pytest.approx(expected, rel=1e-3)
    assert min(expected.values()) > 0.01


def test_neck_terms_do_not_depend_on_the_magnitude_of_the_student():
    student, teacher, built = random_output(4, seed=0), random_output(4, seed=1), method(scale="standardise")
    expected = items(built(student, teacher, TARGETS, START))
    assert items(built(times(student, 1000), teacher, TARGETS, START)) == pytest.approx(expected, rel=1e-3)


def test_the_published_terms_grow_with_the_square_of_the_magnitude():
    student, teacher, built = random_output(4, seed=0), random_output(4, seed=1), with_identity(method(scale="none"))
    expected = {name: 100 * value for name, value in items(built(student, teacher, TARGETS, START)).items()}
    assert items(built(times(student, 10), times(teacher, 10), TARGETS, START)) == pytest.approx(expected, rel=1e-4)


def with_padding(seed, value):
    """Random maps whose right half is padding with this value."""
    neck = random_output(4, seed=seed).neck
    valid = {stride: torch.ones(2, *level.shape[-2:], dtype=torch.bool) for stride, level in neck.items()}
    for stride, level in neck.items():
        valid[stride][..., level.shape[-1] // 2 :] = False
        level[..., level.shape[-1] // 2 :] = value
    return output(neck, valid)


@pytest.mark.parametrize("scale", ["none", "standardise", "teacher"])
def test_padding_counts_only_with_count_padding(scale):
    student = with_padding(0, 0.0)
    zero, large = with_padding(1, 0.0), with_padding(1, 50.0)
    left_out, counted = (with_identity(method(scale=scale, count_padding=count)) for count in (False, True))
    expected = items(left_out(student, zero, TARGETS, START))
    assert items(left_out(student, large, TARGETS, START)) == pytest.approx(expected, rel=1e-4)
    assert items(counted(student, large, TARGETS, START))["neck_background"] != pytest.approx(
        items(counted(student, zero, TARGETS, START))["neck_background"], rel=0.05
    )


def test_terms_warm_up_together():
    student, teacher = random_output(4, seed=0), random_output(4, seed=1)
    full = items(method()(student, teacher, TARGETS, START))
    slow = method(warmup=0.2)
    # Step 4 of 100: 5 / (0.2 * 100) = 1/4.
    losses = items(slow(student, teacher, TARGETS, Progress(step=4, steps=100)))
    assert losses == pytest.approx({name: value / 4 for name, value in full.items()})
    assert items(slow(student, teacher, TARGETS, Progress(step=20, steps=100))) == pytest.approx(full)


def test_a_single_weight_leaves_the_other_term_out():
    student, teacher = random_output(4, seed=0), random_output(4, seed=1)
    assert set(method(background_weight=0.0)(student, teacher, TARGETS, START)) == {"neck_object"}
    assert set(method(object_weight=0.0)(student, teacher, TARGETS, START)) == {"neck_background"}


HEAD_ONLY = {"object_weight": 0.0, "background_weight": 0.0, "positive_weight": 2.0, "negative_weight": 5.0}
KL = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)  # of (3/4, 1/4) from (1/2, 1/2)


def test_both_score_the_teachers_proposals():
    softmax = info({8: 1}, offers=frozenset({"proposals"}), classes=("cat",), activation="softmax", background="last")
    maps, scored = {8: torch.zeros(1, 1, 8, 8)}, []

    def score(boxes):
        scored.append(boxes)
        return torch.zeros(3, 2)  # probabilities 1/2, 1/2

    boxes = [torch.tensor([[0.0, 0.0, 20.0, 20.0], [4.0, 4.0, 8.0, 8.0], [2.0, 2.0, 6.0, 6.0]])]
    # Teacher: the object (3/4, 1/4), a background box of the same confidence, and one on which the student agrees.
    logits = torch.tensor([[math.log(3), 0.0], [0.0, math.log(3)], [0.0, 0.0]])
    teacher = output(maps, proposals=proposals(boxes, logits, torch.tensor([0, 1, 1])), scale=2.0)
    built = method(softmax, softmax, **HEAD_ONLY, head_average="group")
    losses = built(output(maps, score_proposals=score), teacher, [boxed()], START)
    # Positives: the one KL, times 2. Negatives: the mean of KL and 0, times 5.
    assert items(losses) == pytest.approx({"head_positive": 2 * KL, "head_negative": 5 * KL / 2}, abs=1e-6)
    # By default both sums are divided by the number of proposals, three.
    losses = method(softmax, softmax, **HEAD_ONLY)(output(maps, score_proposals=score), teacher, [boxed()], START)
    assert items(losses) == pytest.approx({"head_positive": 2 * KL / 3, "head_negative": 5 * KL / 3}, abs=1e-6)
    # The teacher works at double size: in the student's pixels its boxes are half as large.
    assert torch.equal(scored[0][0], boxes[0] / 2)
    assert list(built.parameters()) == []


def test_anchors_are_compared_class_by_class_and_undecided_ones_do_not_count():
    one_stage = info({8: 1}, offers=frozenset({"dense"}), anchors="the same")
    maps = {8: torch.zeros(1, 1, 8, 8)}
    labels = torch.tensor([[1, 2, 2, -1]])  # dog, background twice, undecided
    teacher_logits = torch.zeros(1, 4, 2)
    teacher_logits[0, 0] = torch.tensor([math.log(3), -math.log(3)])
    teacher_logits[0, 1, 0] = math.log(3)
    teacher_logits[0, 3] = 100.0
    student, teacher = (output(maps, dense=dense(logits, labels)) for logits in (torch.zeros(1, 4, 2), teacher_logits))
    losses = method(one_stage, one_stage, **HEAD_ONLY)(student, teacher, [boxed()], START)
    # Positive: two classes off by KL each, times 2. Negatives: KL and 0, their mean times 5.
    assert items(losses) == pytest.approx({"head_positive": 4 * KL, "head_negative": 5 * KL / 2}, abs=1e-6)


def test_each_term_has_its_own_temperature():
    one_stage = info({8: 1}, offers=frozenset({"dense"}), anchors="the same")
    maps, labels = {8: torch.zeros(1, 1, 8, 8)}, torch.tensor([[0, 2]])
    student = output(maps, dense=dense(torch.zeros(1, 2, 2), labels))
    teacher = output(maps, dense=dense(torch.full((1, 2, 2), 2 * math.log(3)), labels))
    built = method(one_stage, one_stage, **HEAD_ONLY, positive_temperature=2.0)
    losses = items(built(student, teacher, [boxed()], START))
    # At temperature 2 the logits 2 ln 3 are ln 3: KL for each of two classes, times 2^2, times the weight 2.
    assert losses["head_positive"] == pytest.approx(4 * 2 * KL * 2, abs=1e-5)
    # At temperature 1 they give 9/10.
    strong = 0.9 * math.log(1.8) + 0.1 * math.log(0.2)
    assert losses["head_negative"] == pytest.approx(5 * 2 * strong, abs=1e-5)


def test_the_weight_of_the_detectors_own_negatives_falls_per_epoch():
    built = method(detector_negatives=2.0, detector_negatives_decay=5.0)
    weights = [built.negative_weight(Progress(step=0, steps=9, epoch=epoch, epochs=3)) for epoch in range(3)]
    assert weights == pytest.approx([2, 2 / 5, 2 / 25])
    assert method().negative_weight(Progress(step=5, steps=9, epoch=7, epochs=9)) == 1


def test_backbone_terms_by_hand():
    # Stride 8, one channel: the teacher's map is 3 on the object (one cell of four) and 1 elsewhere, the student's 0.
    maps = torch.tensor([[[[3.0, 1.0], [1.0, 1.0]]]])
    student, teacher = output({8: torch.zeros(1, 1, 2, 2)}), output({8: maps})
    weights = {"backbone_object_weight": 2.0, "backbone_background_weight": 5.0, "backbone_strides": (8,)}
    detector = info({8: 1})
    built = method(detector, detector, object_weight=0, background_weight=0, scale="none", **weights)
    for layer in built.backbone.adaptation.layers.values():
        nn.init.dirac_(layer.weight)
        nn.init.zeros_(layer.bias)
    losses = built(student, teacher, [boxed([0.0, 0.0, 8.0, 8.0], size=(16, 16))], START)
    # 9 / 2, times 2; and 3 / (2 * 3), times 5.
    assert items(losses) == pytest.approx({"backbone_object": 9.0, "backbone_background": 2.5})


@pytest.mark.parametrize(("student", "teacher"), [("faster_rcnn", "retinanet"), ("retinanet", "faster_rcnn")])
def test_across_families_the_head_terms_are_left_out_with_a_note(student, teacher):
    built = method(tiny_detector(student).info, tiny_detector(teacher).info, positive_weight=1.0)
    assert built.head.field is None
    missing = {"faster_rcnn": 4, "retinanet": 128}[student]
    assert built.notes == [
        f"The teacher's neck has no level at stride {missing}: left out.",
        "The classification terms are left out: they share neither proposals nor anchors on images of one size.",
    ]


def test_different_anchors_leave_the_head_terms_out_with_a_note():
    student = tiny_detector("retinanet").info
    other_anchors = tiny_detector("retinanet", options={"anchor_sizes": (16, 32, 64, 128, 256)}).info
    assert "neither proposals nor anchors" in method(student, other_anchors, negative_weight=1.0).notes[0]
    # At double size the same anchors are four times as many.
    other_size = tiny_detector("retinanet", size=128).info
    assert "neither proposals nor anchors" in method(student, other_size, negative_weight=1.0).notes[0]
    assert method(student, student, negative_weight=1.0).notes == []
    assert method(student, other_size).notes == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"object_weight": -1.0}, "object_weight must be 0 or more and finite, not -1.0"),
        ({"negative_weight": float("nan")}, "negative_weight must be 0 or more and finite, not nan"),
        ({"background_weight": float("inf")}, "background_weight must be 0 or more and finite, not inf"),
        ({"positive_temperature": 0.0}, "Temperatures must be above 0"),
        ({"negative_temperature": float("nan")}, "Temperatures must be above 0"),
        ({"scale": "standardize"}, "Did you mean 'standardise'"),
        ({"initialisation": "defualt"}, "Did you mean 'default'"),
        ({"detector_negatives": -1.0}, "detector_negatives must be 0 or more"),
        ({"detector_negatives_decay": 0.5}, "detector_negatives_decay must be 1 or more"),
        ({"backbone_object_weight": 1.0, "backbone_strides": (4,)}, "backbone has strides [8, 16]"),
        ({"proposals": "techer"}, "Did you mean 'teacher'"),
        ({"decay": "updown"}, "Did you mean 'up_down'"),
        ({"warmup": -0.5}, "warmup"),
        ({"warmup": float("nan")}, "warmup"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, expected):
    with pytest.raises(InputError) as caught:
        method(**options)
    assert expected in str(caught.value)


def test_necks_without_a_common_stride_are_refused():
    with pytest.raises(InputError, match="they share no level"):
        method(info({4: 1}), info({8: 1}))


def test_the_teacher_need_not_compute_what_no_term_reads():
    both = info({4: 1}), info({4: 1})
    assert method(*both).needs == {"neck"}
    backbone = {"object_weight": 0, "background_weight": 0, "backbone_object_weight": 1.0, "backbone_strides": (4,)}
    assert method(*both, **backbone).needs == {"backbone"}


def painted(student, boxes, **options):
    built = method(student, student, **options)
    shapes = {stride: (-(-64 // stride),) * 2 for stride in student.neck}
    regions = built.painted([torch.tensor(boxes)], shapes)["object"]
    return {stride: int(region.sum()) for stride, region in regions.items()}


def test_objects_belong_to_the_level_of_their_size_in_pixels_or_relative_to_the_image_or_to_all():
    # A box of side 32: below 56 pixels, so on the finest level as published; in an image of 64 pixels the constants are
    # 64/800 of the published ones, 4.48 at stride 4, and 4.48 * 4 <= 33 < 4.48 * 8 puts it two levels up, at stride 16.
    student = info({4: 1, 8: 1, 16: 1, 32: 1}, size=64)
    box = [[0.0, 0.0, 32.0, 32.0]]
    assert painted(student, box) == {4: 64, 8: 0, 16: 0, 32: 0}
    assert painted(student, box, object_levels="scaled") == {4: 0, 8: 0, 16: 4, 32: 0}
    assert painted(student, box, object_levels="all") == {4: 64, 8: 16, 16: 4, 32: 1}
    with pytest.raises(InputError, match="Did you mean 'all'"):
        method(student, student, object_levels="al")


def test_levels_count_in_proportion_to_their_objects():
    # Squared differences of 1 on stride 4 and 4 on stride 8, half of which is each level's background term. Both boxes
    # belong to stride 4, so that only stride 4 counts; without boxes both levels count equally.
    student = output({4: torch.zeros(1, 1, 4, 4), 8: torch.zeros(1, 1, 2, 2)})
    teacher = output({4: torch.ones(1, 1, 4, 4), 8: 2 * torch.ones(1, 1, 2, 2)})
    options = {"object_weight": 0.0, "background_weight": 1.0, "scale": "none", "level_weights": "objects"}
    built = with_identity(method(info({4: 1, 8: 1}), info({4: 1, 8: 1}), **options))
    small = boxed([0.0, 0.0, 4.0, 4.0], [8.0, 8.0, 12.0, 12.0], size=(16, 16))
    assert items(built(student, teacher, [small], START)) == pytest.approx({"neck_background": 0.5})
    assert items(built(student, teacher, [boxed(size=(16, 16))], START)) == pytest.approx({"neck_background": 1.25})
    # One box of each level, of which the larger leaves no background on stride 8: (0.5 + 0) / 2.
    both = boxed([0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 200.0, 200.0], size=(16, 16))
    assert items(built(student, teacher, [both], START)) == pytest.approx({"neck_background": 0.25})
    with pytest.raises(InputError, match="level_weights"):
        method(RANDOM, RANDOM, level_weights="some")
