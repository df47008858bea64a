"""Every family with several backbones satisfies the interface of `Detector`; new families are included."""

import pytest
import torch

from tests.detector.tiny import (
    BACKBONE,
    CLASSES,
    FAMILIES,
    FIXED_BACKBONES,
    LARGER,
    images,
    keep_statistics,
    target,
    tiny_batch,
    tiny_detector,
    with_backbones,
)

BACKBONES = ("resnet18", BACKBONE, "tf_efficientnet_lite0")

every_family = pytest.mark.parametrize("family", FAMILIES)
every_backbone = pytest.mark.parametrize(("family", "backbone"), with_backbones(BACKBONES))


def parts(detector):
    """Modules with weights: body, neck and the heads of the family."""
    heads = {name: child for name, child in detector.named_children() if name != "backbone"}
    heads = {name: head for name, head in heads.items() if list(head.parameters())}
    assert heads
    return {"body": detector.backbone.body, "neck": detector.backbone.fpn, **heads}


@every_backbone
@pytest.mark.parametrize("objects", [True, False])
def test_losses_are_finite_and_their_gradient_reaches_every_weight(family, backbone, objects):
    detector = tiny_detector(family, backbone).train()
    losses = detector.forward_train(tiny_batch(detector, objects)).losses
    assert losses
    assert all(loss.ndim == 0 and loss.isfinite() and loss >= 0 for loss in losses.values())
    sum(losses.values()).backward()
    # Distributed training needs a gradient, if only of zeros, for every weight in every step.
    missing = [name for name, weight in detector.named_parameters() if weight.grad is None]
    assert missing == []
    assert all(weight.grad.isfinite().all() for weight in detector.parameters())
    trained = parts(detector)
    if "neck" in trained and family in FIXED_BACKBONES and not objects:
        del trained["neck"]  # the few background boxes that count may all be on the levels of the backbone
    for name, part in trained.items():
        assert any(weight.grad.abs().sum() > 0 for weight in part.parameters()), name


@every_backbone
@pytest.mark.parametrize("teaches", [False, True])
def test_output_has_the_shapes_of_the_info(family, backbone, teaches):
    detector = tiny_detector(family, backbone).train(not teaches)
    batch = tiny_batch(detector)
    output = detector.forward_teacher(batch) if teaches else detector.forward_train(batch)
    info, (height, width) = detector.info, batch.images.shape[-2:]
    for maps, channels in ((output.neck, info.neck), (output.backbone, info.backbone)):
        shapes = {stride: tuple(level.shape) for stride, level in maps.items()}
        assert shapes == {stride: (3, c, -(-height // stride), -(-width // stride)) for stride, c in channels.items()}
    for stride, level in {**output.backbone, **output.neck}.items():
        assert output.valid[stride].shape == (3, *level.shape[-2:])
        assert output.valid[stride].dtype == torch.bool
    assert output.scale == 1


@every_family
@pytest.mark.parametrize("teaches", [False, True])
def test_offers_are_the_fields_that_are_filled(family, teaches):
    detector = tiny_detector(family).train(not teaches)
    batch = tiny_batch(detector)
    output = detector.forward_teacher(batch) if teaches else detector.forward_train(batch)
    filled = {name for name in ("dense", "proposals", "queries", "towers") if getattr(output, name) is not None}
    assert filled == detector.info.offers
    assert (output.score_proposals is not None) == ("proposals" in filled)
    distributions = None if output.dense is None else output.dense.distributions
    assert detector.info.bins == (0 if distributions is None else distributions.shape[-1])
    if distributions is not None:
        assert output.dense.squares.shape == (distributions.shape[1], 4)
    if output.towers is not None:
        for maps in (output.towers.classes, output.towers.boxes):
            assert {stride: level.shape for stride, level in maps.items()} == {
                stride: level.shape for stride, level in output.neck.items()
            }


@every_family
def test_predictions_of_a_batch_have_the_documented_shapes(family):
    detector = tiny_detector(family).train()
    output, classes = detector.forward_train(tiny_batch(detector)), len(CLASSES)
    if (dense := output.dense) is not None:
        count = len(dense.strides)
        assert dense.logits.shape == (3, count, classes + (detector.info.background == "last"))
        assert dense.boxes.shape == (3, count, 4)
        assert not dense.boxes.requires_grad
        assert dense.labels.shape == (3, count)
        assert dense.labels.min() >= -1
        assert dense.labels.max() == classes
        assert set(dense.strides.tolist()) == set(output.neck)
        assert (dense.labels[2] == classes).all()  # the image without objects is all background
    if (proposals := output.proposals) is not None:
        count = sum(map(len, proposals.boxes))
        assert len(proposals.boxes) == 3
        assert proposals.logits.shape == (count, classes + 1)
        assert proposals.deltas.shape == (count, classes, 4)
        assert proposals.labels.shape == (count,)
        assert not any(boxes.requires_grad for boxes in proposals.boxes)
        alone = proposals.labels.split([len(boxes) for boxes in proposals.boxes])[2]
        assert (alone == classes).all()
    if (queries := output.queries) is not None:
        layers, _, count, _ = queries.logits.shape
        assert queries.logits.shape == (layers, 3, count, classes)
        assert queries.boxes.shape == (layers, 3, count, 4)
        assert queries.boxes.requires_grad
        assert queries.size == tuple(tiny_batch(detector).images.shape[-2:])
        assert queries.corners is None or queries.corners.shape[:4] == (layers, 3, count, 4)


@every_family
def test_a_teacher_gives_no_losses_and_no_gradient_and_does_not_change(family):
    detector = tiny_detector(family).eval()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    output = detector.forward_teacher(tiny_batch(detector))
    assert output.losses == {}
    maps = [*output.neck.values(), *output.backbone.values()]
    maps += [offered.logits for offered in (output.dense, output.proposals, output.queries) if offered is not None]
    assert not any(level.requires_grad for level in maps)
    assert not detector.training
    assert all(torch.equal(before[name], value) for name, value in detector.state_dict().items())


@every_family
def test_student_and_teacher_see_the_same_maps_in_eval_mode_normalisation(family):
    # With frozen normalisation the mode makes no difference to the maps, so the two ways of running must agree.
    detector = tiny_detector(family, norm="frozen")
    batch = tiny_batch(detector)
    trained = keep_statistics(detector.train()).forward_train(batch)
    taught = detector.eval().forward_teacher(batch)
    for stride in detector.info.neck:
        assert torch.allclose(trained.neck[stride], taught.neck[stride], atol=1e-5), stride


@every_family
def test_a_step_down_the_gradient_lowers_the_loss(family, monkeypatch):
    detector = tiny_detector(family, norm="frozen").train()
    if family in LARGER:
        keep_statistics(detector)  # those of the four cells of stride 32 change with every step
        # Targets and their weights follow the predictions, and rise as these improve: keep the first ones.
        match, first = detector.match, []
        monkeypatch.setattr(detector, "match", lambda *given: (first.append(match(*given)) or first)[0])
    batch = detector.prepare(images((64, 64)), [target([[8, 8, 40, 40]], [1])])
    everything = list(detector.parameters())
    if "queries" in detector.info.offers:
        # The target of a query's class is the overlap of its box: it rises as boxes improve.
        lower(detector, batch, everything, ("box", "giou"))
    elif "proposals" in detector.info.offers:
        # The losses of the second stage are those of other proposals if anything before it is trained.
        lower(detector, batch, everything, ("objectness", "rpn_box"))
        lower(detector, batch, list(detector.roi_heads.parameters()), ("classification", "box"))
    else:
        lower(detector, batch, everything, None)


def lower(detector, batch, parameters, kept):
    """Check that five steps lower the sum of these losses; None for all."""
    optimizer = torch.optim.SGD(parameters, lr=1e-3)

    def total():
        torch.manual_seed(0)  # the same anchors, proposals and noise are drawn
        losses = detector.forward_train(batch).losses
        return torch.stack([losses[name] for name in kept or losses]).sum()

    first = total()
    for _ in range(5):
        optimizer.zero_grad()
        total().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    assert total() < first


@every_family
def test_boxes_and_logits_are_float32_under_autocast(family):
    # bfloat16 has eight bits: between 64 and 128 pixels it knows every half pixel only, at 1000 every fourth pixel.
    detector = tiny_detector(family).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = detector.forward_train(tiny_batch(detector))
        predictions = detector.predict(images((64, 96)))
    assert output.neck[16].dtype == torch.bfloat16
    assert all(loss.dtype == torch.float32 for loss in output.losses.values())
    tensors = [detections.boxes for detections in predictions]
    if output.dense is not None:
        deltas = [] if output.dense.deltas is None else [output.dense.deltas]
        tensors += [output.dense.boxes, output.dense.logits, *deltas]
    if output.queries is not None:
        tensors += [output.queries.boxes, output.queries.logits]
    if output.proposals is not None:
        tensors += [*output.proposals.boxes, output.proposals.logits, output.proposals.deltas]
    assert all(tensor.dtype == torch.float32 for tensor in tensors)
