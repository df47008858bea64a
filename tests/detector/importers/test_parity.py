"""Imported detectors predict what the tool's own arithmetic does with the same weights."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from defeat.detector import build, load
from defeat.detector.importers import import_checkpoint
from defeat.detector.published import StrideAnchors
from tests.detector.importers import published, random_states
from tests.detector.importers.random_states import CLASSES, IMAGE

IMAGENET = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
BGR = ([103.53, 116.28, 123.675], [1.0, 1.0, 1.0])
OLD_BGR = ([102.9801, 115.9465, 122.7717], [1.0, 1.0, 1.0])
IMPROVED_FCOS = """
model = dict(
    type='FCOS',
    backbone=dict(type='ResNet', depth=18, style='pytorch', norm_cfg=dict(type='BN', requires_grad=True)),
    neck=dict(type='FPN', add_extra_convs='on_output', relu_before_extra_convs=True),
    bbox_head=dict(type='FCOSHead', norm_on_bbox=True, centerness_on_reg=True, strides=[8, 16, 32, 64, 128]),
    test_cfg=dict(nms_pre=1000, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
"""


def golden(state, compute, pixels, **options):
    """Boxes, scores and labels; random weights of the last layers are fitted first."""
    image = random_states.picture()
    inputs = random_states.network_input(image, *pixels, bgr=options.get("caffe", False) or options.pop("bgr", False))
    state = {name: tensor.double() for name, tensor in state.items()} | {"fit": dict(state.fit)}
    with torch.no_grad():
        compute(state, inputs, IMAGE, **options)
        state = {name: tensor.float() for name, tensor in state.items() if name != "fit"}
        expected = compute({name: tensor.double() for name, tensor in state.items()}, inputs, IMAGE, **options)
    return image, state, expected


def predictions(detector, image, double):
    """Detections of an image.

    Deep random networks have large activations, whose rounding in float32 lets candidates of nearly equal score or IoU
    change places; `double` computes all but the outputs of the heads in float64.
    """
    if not double:
        return detector.predict([image])[0]
    batch = detector.double().prepare([image])
    with torch.no_grad():
        return detector.forward_predict(replace(batch, images=batch.images.double()))[0]


def require_equal(detector, image, expected, double=False):
    boxes, scores, labels = expected
    assert len(scores) > 20
    assert scores.max() - scores.min() > 0.1
    assert len(labels.unique()) > 1
    detections = predictions(detector, image, double)
    assert len(detections.scores) == len(scores)
    assert torch.allclose(detections.scores.double(), scores, atol=1e-5, rtol=0)
    # Nearly equal scores may change places: every detection must have its counterpart, wherever it stands.
    distance = (detections.boxes[:, None] - boxes).abs().amax(2)
    distance += 100 * (detections.scores[:, None] - scores).abs() + 100 * (detections.labels[:, None] != labels)
    assert distance.min(dim=0).values.max() < 1e-3
    assert distance.min(dim=1).values.max() < 1e-3


def imported(tmp_path, content, name="model.pth", **options):
    torch.save(content, tmp_path / name)
    sides = {"size": IMAGE[0], "max_size": IMAGE[1]}
    result = import_checkpoint(str(tmp_path / name), str(tmp_path / "run"), **sides, **options)
    return load(result.folder), result


def mmdet_content(state, **meta):
    return {"state_dict": state, "meta": {"mmdet_version": "2.25.0", "CLASSES": CLASSES, **meta}}


MMDETECTION = {
    "faster_rcnn": (random_states.mmdet_faster_rcnn, published.mmdet_faster_rcnn),
    "retinanet": (random_states.mmdet_retinanet, published.mmdet_retinanet),
    "fcos": (random_states.mmdet_fcos, published.mmdet_fcos),
    "gfl": (random_states.mmdet_gfl, published.mmdet_gfl),
}


@pytest.mark.parametrize("family", MMDETECTION)
def test_mmdetection_gives_equal_boxes(family, tmp_path):
    make, compute = MMDETECTION[family]
    image, state, expected = golden(make(), compute, IMAGENET)
    detector, result = imported(tmp_path, mmdet_content(state))
    assert (detector.spec.family, detector.spec.backbone, detector.info.classes) == (family, "resnet18", CLASSES)
    assert result.tool == "MMDetection"
    assert "configuration" in result.notes[0]
    require_equal(detector, image, expected)


@pytest.mark.slow
@pytest.mark.parametrize("family", MMDETECTION)
def test_mmdetection_of_caffe_style_gives_equal_boxes(family, tmp_path):
    make, compute = MMDETECTION[family]
    image, state, expected = golden(make(50), compute, OLD_BGR if family == "fcos" else BGR, caffe=True)
    detector, _ = imported(tmp_path, mmdet_content(state), style="caffe")
    assert detector.spec.backbone == "resnet50_caffe"
    require_equal(detector, image, expected, double=True)


def test_the_improved_fcos_is_recognised_from_the_configuration(tmp_path):
    image, state, expected = golden(
        random_states.mmdet_fcos(improved=True), partial(published.mmdet_fcos, improved=True), IMAGENET
    )
    content = {
        "state_dict": state,
        "meta": {"cfg": IMPROVED_FCOS, "dataset_meta": {"classes": CLASSES}, "mmdet_version": "3.1.0"},
    }
    detector, result = imported(tmp_path, content)
    assert result.notes == ()
    require_equal(detector, image, expected)


def test_the_scale_of_anchors_is_that_of_the_configuration(tmp_path):
    make, compute = MMDETECTION["faster_rcnn"]
    image, state, expected = golden(make(), partial(compute, scale=2), IMAGENET)
    config = "model = dict(rpn_head=dict(anchor_generator=dict(scales=[2])))"
    detector, _ = imported(tmp_path, mmdet_content(state, config=config))
    assert isinstance(detector.rpn.anchor_generator, StrideAnchors)
    require_equal(detector, image, expected, double=True)


# Values of torchvision in place of those that the tool needs.
OTHER_OPTIONS = [
    ("faster_rcnn", {"round_anchors": True}),
    ("faster_rcnn", {"limited_shrinking": False}),
    ("faster_rcnn", {"sampling_ratio": 2}),
    ("retinanet", {"round_anchors": True}),
    ("retinanet", {"exact_strides": False}),
    ("retinanet", {"limited_shrinking": False}),
    ("retinanet", {"p6_activation": True}),
    ("fcos", {"points": "corners"}),
    ("fcos", {"score": "root"}),
    ("fcos", {"distances": "linear"}),
    ("fcos", {"centerness_branch": "boxes"}),
    ("fcos", {"p6_activation": False}),
    ("gfl", {"p6_activation": True}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "options"), OTHER_OPTIONS)
def test_every_option_matters(family, options, tmp_path):
    make, compute = MMDETECTION[family]
    image, state, expected = golden(make(), compute, IMAGENET, most=1000)
    detector, _ = imported(tmp_path, mmdet_content(state))
    most = {f"{'box_' * (family == 'faster_rcnn')}detections_per_img": 1000}

    def changed(values):
        other = build(replace(detector.spec, options={**detector.spec.options, **most, **values}), "none").eval()
        other.load_state_dict(detector.state_dict())
        return other

    require_equal(changed({}), image, expected, double=True)
    with pytest.raises(AssertionError):
        require_equal(changed(options), image, expected, double=True)


DETECTRON2 = {
    "faster_rcnn": (random_states.d2_faster_rcnn, published.d2_faster_rcnn),
    "retinanet": (random_states.d2_retinanet, published.d2_retinanet),
}


@pytest.mark.parametrize("family", DETECTRON2)
@pytest.mark.parametrize("style", ["caffe", pytest.param("pytorch", marks=pytest.mark.slow)])
def test_detectron2_gives_equal_boxes(family, style, tmp_path):
    make, compute = DETECTRON2[family]
    options = {"caffe": True} if style == "caffe" else {"caffe": False, "bgr": True}
    image, state, expected = golden(make(), compute, BGR, **options)
    content = {"model": state, "iteration": 3}
    detector, result = imported(tmp_path, content, classes=list(CLASSES), style=style)
    assert (detector.spec.family, result.tool) == (family, "Detectron2")
    require_equal(detector, image, expected, double=True)
