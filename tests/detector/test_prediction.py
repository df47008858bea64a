"""`predict` returns boxes in pixels of the original image, labels from 0, sorted by score."""

import pytest
import torch

from defeat.detector.selection import best_indices
from tests.detector.tiny import CLASSES, FAMILIES, LARGER, UNSELECTIVE, images, tiny_detector, tiny_options

every_family = pytest.mark.parametrize("family", FAMILIES)


def without_threshold(family, **spec):
    """A detector with a score threshold of 0."""
    return tiny_detector(family, options=tiny_options(family, **UNSELECTIVE), **spec)


@every_family
@pytest.mark.parametrize("training", [True, False])
def test_predict_restores_the_mode_of_every_module(family, training):
    detector = tiny_detector(family, frozen_stages=1).train(training)
    before = {name: module.training for name, module in detector.named_modules()}
    detector.predict(images((64, 64)))
    assert {name: module.training for name, module in detector.named_modules()} == before


@every_family
def test_predict_restores_the_mode_after_a_failure(family, monkeypatch):
    detector = tiny_detector(family).train()

    def fail(batch):
        raise RuntimeError("broken")

    monkeypatch.setattr(detector, "forward_predict", fail)
    with pytest.raises(RuntimeError, match="broken"):
        detector.predict(images((64, 64)))
    assert detector.training


@every_family
def test_detections_have_valid_boxes_scores_and_labels(family):
    pictures = images((64, 64), (100, 140), (33, 64))
    predictions = without_threshold(family).predict(pictures)
    assert len(predictions) == 3
    for detections, picture in zip(predictions, pictures, strict=True):
        assert len(detections.boxes) == len(detections.scores) == len(detections.labels) > 0
        assert detections.labels.dtype == torch.int64
        assert 0 <= detections.labels.min() <= detections.labels.max() < len(CLASSES)
        assert 0 <= detections.scores.min() <= detections.scores.max() <= 1
        assert torch.equal(detections.scores, detections.scores.sort(descending=True).values)
        height, width = picture.shape[-2:]
        assert detections.boxes.min() >= 0
        assert (detections.boxes <= torch.tensor([width, height, width, height]) + 1e-3).all()
        assert not detections.scores.requires_grad


@every_family
def test_an_image_twice_as_large_gives_boxes_twice_as_large(family):
    detector = without_threshold(family)
    # Without antialiasing, an image of doubled pixels is shrunk to the same values, so that only the conversion of
    # boxes to the original image can differ.
    detector.antialias = False
    (picture,) = images((64, 64) if detector.info.square else (64, 96))  # a square is not stretched
    doubled = picture.repeat_interleave(2, 1).repeat_interleave(2, 2)
    (small,), (large,) = detector.predict([picture]), detector.predict([doubled])
    assert len(small.boxes) > 2
    assert torch.allclose(large.boxes, 2 * small.boxes, atol=1e-3)
    assert torch.allclose(large.scores, small.scores, atol=1e-6)
    assert torch.equal(large.labels, small.labels)


@every_family
def test_detections_do_not_depend_on_other_images_in_the_list(family):
    detector = without_threshold(family)
    queries = "queries" in detector.info.offers
    if detector.info.activation == "sigmoid" and not queries:  # all initial scores are nearly equal
        for name in detector.class_rows():
            if name.endswith("weight"):
                torch.nn.init.normal_(detector.get_parameter(name), std=0.3 if family in LARGER else 3.0)
    if queries:  # nor are the initial scores of queries far from each other
        for layer in detector.modules():
            if isinstance(layer, torch.nn.Linear) and layer.out_features == len(CLASSES):
                torch.nn.init.normal_(layer.weight, std=3.0)
    pictures = images((64, 64), (64, 96), (50, 60), (64, 64), (96, 64))
    together = detector.predict(pictures)
    for picture, beside in zip(pictures, together, strict=True):
        (alone,) = detector.predict([picture])
        assert len(alone.boxes) == len(beside.boxes) > 0
        assert torch.allclose(alone.scores, beside.scores, atol=1e-5)
        # If scores are nearly equal, rounding determines order and suppression.
        distance = (alone.boxes[:, None] - beside.boxes).abs().amax(2) + (alone.labels[:, None] != beside.labels)
        assert (distance.min(dim=0).values < 0.01).float().mean() > 0.9
        assert (distance.min(dim=1).values < 0.01).float().mean() > 0.9


@every_family
def test_an_empty_list_gives_an_empty_list(family):
    assert without_threshold(family).predict([]) == []


@every_family
def test_uint8_and_float_images_give_the_same_detections(family):
    detector = without_threshold(family)
    (picture,) = images((64, 64))
    (first,), (second,) = detector.predict([picture]), detector.predict([picture.float() / 255])
    assert torch.allclose(first.scores, second.scores, atol=1e-6)


def test_the_class_with_the_highest_logit_is_detected():
    faster, retina = tiny_detector("faster_rcnn"), tiny_detector("retinanet")
    with torch.no_grad():
        scores = faster.roi_heads.box_predictor.cls_score
        scores.weight.zero_()
        scores.bias.copy_(torch.tensor([0.0, -9.0, 9.0, -9.0]))  # background, cat, dog, owl
        logits = retina.head.classification_head.cls_logits
        logits.weight.zero_()
        logits.bias.copy_(torch.tensor([-9.0, 9.0, -9.0]).repeat(9))  # cat, dog, owl
    for detector in (faster, retina):
        (detections,) = detector.predict(images((64, 64)))
        assert len(detections.labels) > 0
        assert set(detections.labels.tolist()) == {1}
        assert detections.scores.min() > 0.99


def test_of_equal_values_the_first_are_the_best():
    values = torch.zeros(2, 1000)
    values[0, [7, 900]] = 1.0
    assert best_indices(values, 4).tolist() == [[7, 900, 0, 1], [0, 1, 2, 3]]
    assert best_indices(values[:, :3], 4).tolist() == [[0, 1, 2]] * 2
