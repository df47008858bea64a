"""Distillation of queries: values derived by hand, limits, and pairs that have no queries."""

import pytest
import torch

from defeat.distillation import build_method, renamed_classes
from defeat.distillation.align import resize_map
from defeat.errors import InputError
from defeat.types import Progress, Queries
from tests.detector.tiny import needs_transformers, tiny_batch, tiny_detector
from tests.distillation.made_up import dense, info, output

pytestmark = needs_transformers  # which also brings scipy
LATE = Progress(step=90, steps=100)
NECK = {8: 4}
OFFERS = {"offers": frozenset({"queries", "dense"}), "anchors": "cells", "square": True}


def described(**changes):
    return info(NECK, **OFFERS | changes)


def made(logits, boxes, size=(64, 64), **fields):
    """An output with queries: logits (L, Q, K) and boxes (L, Q, 4) of one image."""
    queries = Queries(torch.tensor(logits)[:, None], torch.tensor(boxes)[:, None], size)
    return output({8: torch.zeros(1, 4, 8, 8)}, queries=queries, **fields)


def method(student=None, teacher=None, **options):
    values = {"encoder_weight": 0.0, "warmup": 0.0} | options
    return build_method("detr", student or described(), teacher or described(), values)


def test_terms_are_those_of_the_assigned_pair_times_the_confidence():
    ln3 = torch.tensor(3.0).log().item()
    student = made([[[0.0, 0.0], [ln3, 0.0]]], [[[0.0, 0.0, 32.0, 32.0], [32.0, 32.0, 64.0, 64.0]]])
    teacher = made([[[0.0, 0.0]]], [[[32.0, 32.0, 64.0, 56.0]]])
    losses = method()(student, teacher, [], LATE)
    # The second query is nearest. The confidence is 0.5, and their sum less than one, so the divisor is 1.
    # Classes: 0.5 ln(0.5 / 0.75) + 0.5 ln(0.5 / 0.25) = 0.14384 for the first, 0 for the second.
    assert losses["query_class"].item() == pytest.approx(0.5 * 0.14384, abs=1e-5)
    # Centres differ by 4 pixels of 64 and heights by 8: 0.0625 + 0.125; the weight is 5.
    assert losses["query_box"].item() == pytest.approx(5 * 0.5 * 0.1875, abs=1e-5)
    # The intersection is 32 x 24, the union and the hull 32 x 32: GIoU 0.75; the weight is 2.
    assert losses["query_giou"].item() == pytest.approx(2 * 0.5 * 0.25, abs=1e-5)


def test_equal_queries_in_another_order_cost_nothing():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 2, generator=generator) * 3
    corner = torch.rand(2, 5, 2, generator=generator) * 32
    boxes = torch.cat([corner, corner + 8 + torch.rand(2, 5, 2, generator=generator) * 16], dim=2)
    order = [3, 1, 4, 0, 2]
    student = made(logits.tolist(), boxes.tolist())
    teacher = made(logits[:, order].tolist(), boxes[:, order].tolist())
    losses = method()(student, teacher, [], LATE)
    assert losses.keys() == {"query_class", "query_box", "query_giou"}
    assert all(loss.item() == pytest.approx(0, abs=1e-5) for loss in losses.values())


def test_boxes_of_a_teacher_with_another_scale_and_aspect_ratio_are_comparable():
    student = made([[[2.0, -2.0]]], [[[16.0, 8.0, 48.0, 40.0]]])
    # Rows times 1.5, columns times 1.5 * 2 = 3; the teacher's tensor is padded further.
    teacher = made([[[2.0, -2.0]]], [[[48.0, 12.0, 144.0, 60.0]]], size=(128, 224), scale=1.5, stretch=2.0)
    assert sum(method()(student, teacher, [], LATE).values()).item() == pytest.approx(0, abs=1e-5)


def test_a_teacher_may_have_more_or_fewer_queries_and_layers():
    student = made([[[1.0, 0.0]] * 2] * 2, [[[0.0, 0.0, 32.0, 32.0], [32.0, 32.0, 64.0, 64.0]]] * 2)
    boxes = [[0.0, 0.0, 30.0, 30.0], [30.0, 30.0, 64.0, 64.0], [8.0, 8.0, 20.0, 20.0]]
    for layers, queries in ((1, 1), (3, 3), (6, 2)):
        teacher = made([[[1.0, 0.0]] * queries] * layers, [boxes[:queries]] * layers)
        assert all(loss.isfinite() and loss >= 0 for loss in method()(student, teacher, [], LATE).values())
    built = method()

    def empty(count):
        return Queries(torch.zeros(count, 1, 1, 2), torch.zeros(count, 1, 1, 4), (1, 1))

    pairs = {pair: built._layer_pairs(*map(empty, pair)) for pair in ((3, 6), (6, 3), (2, 2), (3, 1))}
    assert pairs[3, 6] == ([0, 1, 2], [1, 3, 5])
    assert pairs[6, 3] == ([0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 1, 2])
    assert pairs[2, 2] == ([0, 1], [0, 1])
    assert pairs[3, 1] == ([0, 1, 2], [0, 0, 0])


def test_the_last_layer_alone_and_the_best_queries_alone_may_teach():
    student = made([[[1.0, 0.0]], [[1.0, 0.0]]], [[[0.0, 0.0, 32.0, 32.0]], [[0.0, 0.0, 32.0, 32.0]]])
    far = [[32.0, 32.0, 64.0, 64.0]]
    teacher = made([[[1.0, 0.0]], [[1.0, 0.0]]], [far, [[0.0, 0.0, 32.0, 32.0]]])
    assert method(layers="last")(student, teacher, [], LATE)["query_box"].item() == pytest.approx(0, abs=1e-6)
    assert method()(student, teacher, [], LATE)["query_box"].item() > 0.1
    both = made([[[3.0, 0.0], [-3.0, -3.0]]], [[[0.0, 0.0, 32.0, 32.0], *far]])
    one = made([[[3.0, 0.0]]], [[[0.0, 0.0, 32.0, 32.0]]])
    learner = made([[[0.0, 0.0], [0.0, 0.0]]], [[[1.0, 1.0, 32.0, 32.0], [8.0, 8.0, 16.0, 16.0]]])
    limited, alone = method(queries=1)(learner, both, [], LATE), method()(learner, one, [], LATE)
    assert all(loss.item() == pytest.approx(alone[name].item(), rel=1e-5) for name, loss in limited.items())


def test_classes_are_compared_by_name():
    student = made([[[2.0, -2.0]]], [[[0.0, 0.0, 32.0, 32.0]]])
    teacher = made([[[-2.0, 5.0, 2.0]]], [[[0.0, 0.0, 32.0, 32.0]]])
    other = renamed_classes(described(classes=("hund", "ship", "cat")), ("cat", "dog"), {"hund": "dog"})
    losses = method(described(classes=("cat", "dog")), other)(student, teacher, [], LATE)
    assert losses["query_class"].item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(InputError, match="knows none of the student's classes"):
        method(described(), described(classes=("ship",)))


def test_encoder_cells_are_compared_where_both_have_the_same():
    logits = torch.tensor([[[0.0, 0.0], [4.0, -4.0]]])
    student = output({8: torch.zeros(1, 4, 8, 8)}, dense=dense(logits, torch.tensor([[2, -1]])))
    teacher = output(
        {8: torch.zeros(1, 4, 8, 8)}, dense=dense(torch.tensor([[[2.0, -2.0], [0.0, 0.0]]]), torch.tensor([[2, -1]]))
    )
    only = {"class_weight": 0.0, "box_weight": 0.0, "giou_weight": 0.0, "encoder_weight": 1.0}
    built = method(**only)
    assert built.needs == {"dense"}
    # The second cell is on padding. In the first: |0.88080 - 0.5| * ln 2 for each class, and a divisor of 1.
    value = 2 * 0.38080 * 0.693147
    assert built(student, teacher, [], LATE)["encoder_class"].item() == pytest.approx(value, abs=1e-4)
    larger = method(teacher=described(size=128, max_size=128), encoder_weight=1.0)
    assert larger.notes == ["The encoders' cells differ (other strides or size): encoder_weight is left out."]
    assert larger.needs == {"queries"}


@pytest.mark.parametrize(("student", "teacher"), [("retinanet", "d_fine"), ("d_fine", "faster_rcnn")])
def test_a_pair_without_queries_is_refused_by_name(student, teacher):
    infos = [described(family="d_fine") if name == "d_fine" else info(NECK, family=name) for name in (student, teacher)]
    role = "student, a retinanet," if student == "retinanet" else "teacher, a faster_rcnn,"
    with pytest.raises(InputError, match=rf"the {role} has no object queries"):
        build_method("detr", *infos, {})


def test_wrong_options_are_refused():
    with pytest.raises(InputError, match="choice of layers 'some'"):
        method(layers="some")
    with pytest.raises(InputError, match="queries must be 1 or more, not 0"):
        method(queries=0)
    with pytest.raises(InputError, match="box_weight must be 0 or more"):
        method(box_weight=-1.0)


@pytest.mark.parametrize("objects", [True, False])
def test_another_family_with_another_size_teaches_every_layer(objects):
    student, teacher = tiny_detector("rt_detr").train(), tiny_detector("d_fine", seed=1, size=96).eval()
    batch = tiny_batch(student, objects)
    built = build_method("detr", student.info, teacher.info, {})
    taught = teacher.forward_teacher(teacher.adopt(batch), built.needs)
    losses = built(student.forward_train(batch), taught, batch.targets, LATE)
    assert losses.keys() == {"query_class", "query_box", "query_giou"}
    sum(losses.values()).backward()
    for part in (
        student.backbone.body,
        student.backbone.fpn,
        student.head.decoder.class_embed,
        student.head.decoder.layers,
    ):
        assert any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in part.parameters())


def test_defeat_teaches_encoder_maps_and_cells():
    student, teacher = tiny_detector("d_fine").train(), tiny_detector("d_fine", seed=1, neck_channels=24).eval()
    built = build_method("defeat", student.info, teacher.info, {"positive_weight": 1.0, "negative_weight": 1.0})
    assert {level.stride: (level.channels, level.teacher_channels) for level in built.levels} == dict.fromkeys(
        (8, 16, 32), (16, 24)
    )
    batch = tiny_batch(student)
    losses = built(student.forward_train(batch), teacher.forward_teacher(batch), batch.targets, LATE)
    assert losses.keys() == {"neck_object", "neck_background", "head_positive", "head_negative"}
    assert all(loss > 0 for loss in losses.values())


def test_a_retinanet_teaches_encoder_maps_of_a_stretched_image():
    student, teacher = tiny_detector("d_fine").train(), tiny_detector("retinanet", seed=1, size=96, max_size=192).eval()
    built = build_method("defeat", student.info, teacher.info, {})
    batch = tiny_batch(student)
    adopted = teacher.adopt(batch)
    assert adopted.stretch > 1
    losses = built(student.forward_train(batch), teacher.forward_teacher(adopted), batch.targets, LATE)
    # A map of the teacher that is constant but for one object comes to lie on that object.
    maps = torch.zeros(1, 1, 12, 18)
    maps[..., 6:, 9:] = 1
    resized = resize_map(maps, 1.5, (8, 8), 1.5)
    assert torch.equal(resized[0, 0] > 0.5, torch.arange(8)[:, None].ge(4) & torch.arange(8).ge(4))
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
