"""Unannotated images: a detector learns only from confident boxes of a teacher."""

from dataclasses import replace

import pytest
import torch

from tests.detector.tiny import FAMILIES, LARGER, images, keep_statistics, target, tiny_detector, tiny_options

SIZES = [(64, 64)] * 2
BOXES = [[8.0, 8.0, 40.0, 40.0], [30.0, 20.0, 60.0, 60.0]]


def detector(family, **options):
    # All anchors and proposals are used, so that there is no random sampling; no batch statistics.
    everything = {"rpn_batch_size_per_image": 10_000, "box_batch_size_per_image": 10_000, "box_positive_fraction": 1.0}
    everything |= {"denoising": 0}
    built = tiny_detector(family, norm="frozen", options=tiny_options(family, **everything | options)).train()
    if built.info.activation == "sigmoid" and "queries" not in built.info.offers:
        # With the usual bias, background has hardly any loss.
        for name in built.class_rows():
            if name.endswith("bias"):
                torch.nn.init.zeros_(built.get_parameter(name))
    if "queries" in built.info.offers and hasattr(built.head, "groups"):  # likewise
        biases = {name: tensor for name, tensor in built.named_parameters() if name.endswith("bias")}
        for name in biases.keys() & built.class_rows().keys():
            torch.nn.init.zeros_(biases[name])
    return keep_statistics(built)


def unannotated(boxes=(), labels=(), certain=()):
    difficult = [index for index in range(len(boxes)) if index not in certain]
    return replace(target(list(boxes), list(labels), difficult=difficult), annotated=False)


def losses(family, targets, **options):
    built = detector(family, **options)
    if family in LARGER:
        predict = built.predictions

        def watched(*arguments):
            predictions = predict(*arguments)
            # Those of YOLOX, of objectness and classes, are made into one.
            built.logits = predictions.own[0] if family == "yolox" else predictions.logits
            return predictions

        built.predictions = watched
    elif "dense" in built.info.offers and "queries" not in built.info.offers:
        built.head.register_forward_hook(lambda module, given, found: setattr(built, "logits", found["cls_logits"]))
    if "queries" in built.info.offers:
        name = "logits" if hasattr(built.head, "groups") else "intermediate_logits"
        built.head.register_forward_hook(lambda module, given, found: setattr(built, "logits", getattr(found, name)))
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
def test_both_averages_of_one_stage_losses_ignore_unannotated_images(average):
    alone, _ = losses("retinanet", [target(BOXES, [0, 1])], loss_average=average)
    beside, _ = losses("retinanet", [target(BOXES, [0, 1]), unannotated()], loss_average=average)
    assert beside == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_confident_boxes_are_learned_and_the_background_is_ignored(family):
    annotated = target(BOXES, [0, 1])
    plain, _ = losses(family, [annotated, unannotated(BOXES, [0, 1])])
    taught, (output, built) = losses(family, [annotated, unannotated(BOXES, [0, 1], certain=[0])])
    assert taught != pytest.approx(plain, rel=1e-3)
    if output.dense is not None and output.queries is None:
        learned = output.losses["classification"]
        if family == "yolox":
            learned = learned + output.losses["objectness"]
        (gradient,) = torch.autograd.grad(learned, built.logits)
        touched = gradient[1].abs().sum(dim=1) > 0
        # Only anchors of the confident box, with label 0, have a gradient. Of a YOLO's points inside both boxes, some
        # belong to the other one, with label 1, where it counts, too: they are assigned by predictions.
        labels = set(output.dense.labels[1][touched].tolist())
        assert labels == {0} or (family in LARGER and labels == {0, 1})
        assert (gradient[0].abs().sum(dim=1) > 0).sum() > touched.sum()
    elif output.queries is not None:
        (gradient,) = torch.autograd.grad(output.losses["classification"], built.logits)
        touched = gradient.abs().sum(dim=3) > 0  # (B, L, Q)
        # Of each layer with a loss, the query of the confident box in each group; in the annotated image all of them.
        groups = getattr(built.head, "groups", 1)
        assert set(touched[1].sum(dim=1).tolist()) <= {0, groups}
        assert touched[1, -1].sum() == groups
        assert touched[0, -1].all()
    else:
        proposals = output.proposals.labels[len(output.proposals.boxes[0]) :]
        assert set(proposals.tolist()) == {0}


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_of_a_batch_without_annotations_are_zero(family):
    found, _ = losses(family, [unannotated(), unannotated(BOXES, [0, 1])])
    assert found == dict.fromkeys(found, 0.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_output_for_methods_includes_all_boxes(family):
    _, (output, _) = losses(family, [target(BOXES, [0, 1]), unannotated(BOXES, [2, 2])])
    teacher = detector(family).eval()
    batch = teacher.prepare(images(*SIZES), [target(BOXES, [0, 1]), unannotated(BOXES, [2, 2])])
    assert [len(target.boxes) for target in batch.targets] == [2, 2]
    taught = teacher.forward_teacher(batch)
    labels = taught.proposals.labels if taught.dense is None else taught.dense.labels[1]
    assert 2 in labels.tolist()
    if output.dense is not None:
        assert 2 in output.dense.labels[1].tolist()
