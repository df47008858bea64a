"""Images that nobody annotated: a detector learns nothing from them, but for what a teacher is certain of."""

from dataclasses import replace

import pytest
import torch

from defeat.detector import FAMILIES
from tests.detector.tiny import images, target, tiny_detector, tiny_options

SIZES = [(64, 64)] * 2
BOXES = [[8.0, 8.0, 40.0, 40.0], [30.0, 20.0, 60.0, 60.0]]


def detector(family, **options):
    # Every anchor and proposal counts, so that none is drawn; the statistics of a batch are left out.
    everything = {"rpn_batch_size_per_image": 10_000, "box_batch_size_per_image": 10_000, "box_positive_fraction": 1.0}
    return tiny_detector(family, norm="frozen", options=tiny_options(family, **everything | options)).train()


def unannotated(boxes=(), labels=(), certain=()):
    difficult = [place for place in range(len(boxes)) if place not in certain]
    return replace(target(list(boxes), list(labels), difficult=difficult), annotated=False)


def losses(family, targets, **options):
    built = detector(family, **options)
    if family == "retinanet":
        built.head.register_forward_hook(lambda module, given, found: setattr(built, "logits", found["cls_logits"]))
    output = built.forward_train(built.prepare(images(*SIZES)[: len(targets)], targets))
    return {name: loss.item() for name, loss in output.losses.items()}, (output, built)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("boxes", [[], BOXES])
def test_an_image_without_annotations_changes_no_loss_of_the_detector(family, boxes):
    alone, _ = losses(family, [target(BOXES, [0, 1])])
    beside, _ = losses(family, [target(BOXES, [0, 1]), unannotated(boxes, [0, 1][: len(boxes)])])
    assert beside == pytest.approx(alone, rel=1e-5)
    # An annotated image without objects does: all of it is background.
    empty, _ = losses(family, [target(BOXES, [0, 1]), target([], [])])
    assert empty != pytest.approx(alone, rel=1e-3)


@pytest.mark.parametrize("average", ["image", "batch"])
def test_either_average_of_a_one_stage_loss_leaves_it_out(average):
    alone, _ = losses("retinanet", [target(BOXES, [0, 1])], loss_average=average)
    beside, _ = losses("retinanet", [target(BOXES, [0, 1]), unannotated()], loss_average=average)
    assert beside == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_certain_detections_are_learned_and_what_is_beside_them_is_undecided(family):
    annotated = target(BOXES, [0, 1])
    plain, _ = losses(family, [annotated, unannotated(BOXES, [0, 1])])
    taught, (output, built) = losses(family, [annotated, unannotated(BOXES, [0, 1], certain=[0])])
    assert taught != pytest.approx(plain, rel=1e-3)
    if family == "retinanet":
        (gradient,) = torch.autograd.grad(output.losses["classification"], built.logits)
        touched = gradient[1].abs().sum(dim=1) > 0
        # Only anchors of the certain box pull: those labelled 0; the others have label 1, background, or none.
        assert touched.any()
        assert set(output.dense.labels[1][touched].tolist()) == {0}
        assert (gradient[0].abs().sum(dim=1) > 0).sum() > touched.sum()
    else:
        proposals = output.proposals.labels[len(output.proposals.boxes[0]) :]
        assert set(proposals.tolist()) == {0}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_without_any_annotation_has_finite_losses_of_zero(family):
    found, _ = losses(family, [unannotated(), unannotated(BOXES, [0, 1])])
    assert found == dict.fromkeys(found, 0.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_method_reads_knows_all_detections(family):
    _, (output, _) = losses(family, [target(BOXES, [0, 1]), unannotated(BOXES, [2, 2])])
    teacher = detector(family).eval()
    batch = teacher.prepare(images(*SIZES), [target(BOXES, [0, 1]), unannotated(BOXES, [2, 2])])
    assert [len(one.boxes) for one in batch.targets] == [2, 2]
    given = teacher.forward_teacher(batch)
    labels = given.dense.labels[1] if family == "retinanet" else given.proposals.labels
    assert 2 in labels.tolist()
    if family == "retinanet":
        assert 2 in output.dense.labels[1].tolist()
