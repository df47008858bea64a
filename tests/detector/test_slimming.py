"""Detectors with fewer channels in their backbone: what is kept, saved and loaded, and what is refused."""

import json
from copy import deepcopy

import pytest
import torch
from safetensors.torch import load_file, save_file

from defeat.detector import load, save_model
from defeat.detector.slimming import make_narrower
from defeat.detector.transformers_models import LW_KINDS
from defeat.errors import InputError
from tests.detector.tiny import (
    FAMILIES,
    UNSELECTIVE,
    YOLO,
    images,
    needs_libreyolo,
    tiny_batch,
    tiny_detector,
    tiny_options,
)

pytest.importorskip("torch_pruning", reason="torch-pruning is missing: it is in the extra slim")
NOT_SLIMMED = ("ssdlite", YOLO, *LW_KINDS)
SLIMMED = [family for family in FAMILIES if getattr(family, "values", (family,))[0] not in NOT_SLIMMED]
every_family = pytest.mark.parametrize("family", SLIMMED)


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def body(detector):
    return detector.backbone.get_submodule("body")


@every_family
def test_the_body_gets_narrower_and_neck_and_head_keep_their_width(family):
    whole = tiny_detector(family, "resnet18", frozen_stages=1)
    detector = deepcopy(whole)
    make_narrower(detector, 0.5)
    assert detector.spec.width == 0.5
    assert detector.info.backbone == {stride: n // 2 for stride, n in whole.info.backbone.items()}
    assert detector.info.neck == whole.info.neck
    assert 0.22 < parameters(body(detector)) / parameters(body(whole)) < 0.28  # inputs and outputs are halved
    kept = whole.state_dict()
    for name, tensor in detector.state_dict().items():
        if not name.startswith("backbone.body") and tensor.shape == kept[name].shape:
            assert torch.equal(tensor, kept[name]), name
    trained = {name for name, parameter in detector.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in whole.named_parameters() if parameter.requires_grad}
    assert detector.training == whole.training


@every_family
def test_a_narrower_detector_trains_and_is_loaded_unchanged(family, tmp_path):
    detector = tiny_detector(family, options=tiny_options(family, **UNSELECTIVE))
    make_narrower(detector, 0.5)
    batch = tiny_batch(detector)
    sum(detector.train().forward_train(batch).losses.values()).backward()
    assert all(parameter.grad is not None for parameter in body(detector).parameters())
    save_model(detector, tmp_path)
    again = load(tmp_path)
    assert (again.spec.width, again.info) == (0.5, detector.info)
    pictures = images((64, 80))
    (before,), (after,) = detector.predict(pictures), again.predict(pictures)
    assert len(before.boxes) > 0
    assert torch.equal(before.boxes, after.boxes)
    assert torch.equal(before.scores, after.scores)


def test_the_channels_with_the_largest_norms_are_kept():
    whole = tiny_detector("retinanet", "resnet18")
    stem, norm = body(whole).conv1, body(whole).layer1[0].conv1
    inner = whole.backbone.body.layer1[0]
    strong = torch.arange(0, 64, 2)  # the channels between both convolutions of a block belong to no other layer
    with torch.no_grad():
        for tensor in (inner.conv1.weight, inner.bn1.weight):
            tensor[strong] += 10
        inner.conv2.weight[:, strong] += 10
    detector = deepcopy(whole)
    make_narrower(detector, 0.5)
    kept = detector.backbone.body.layer1[0].bn1.weight
    assert torch.equal(kept, inner.bn1.weight[strong])
    assert stem.weight.shape[0] == norm.weight.shape[1] == 64


@pytest.mark.parametrize("norm", ["bn", "bn_eval", "syncbn", "frozen"])
@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv3_small_050", "tf_efficientnet_lite0", "convnext_femto"])
@pytest.mark.slow
def test_backbones_with_depthwise_convolutions_and_residuals(backbone, norm, tmp_path):
    detector = tiny_detector("faster_rcnn", backbone, norm=norm)
    before = parameters(body(detector))
    make_narrower(detector, 0.5)
    assert parameters(body(detector)) < 0.4 * before
    save_model(detector, tmp_path)
    assert parameters(load(tmp_path)) == parameters(detector)


@pytest.mark.parametrize("family", ["ssdlite", pytest.param(YOLO, marks=[needs_libreyolo, pytest.mark.slow])])
def test_families_whose_backbone_is_fixed_are_refused(family):
    with pytest.raises(
        InputError, match=r"^--width 0.5: .* can't be made narrower \(.*\); choose a smaller --backbone"
    ):
        make_narrower(tiny_detector(family), 0.5)


def test_a_file_of_an_earlier_version_has_no_width(tmp_path):
    save_model(tiny_detector("retinanet"), tmp_path)
    path = tmp_path / "model.json"
    content = json.loads(path.read_text())
    del content["width"]
    path.write_text(json.dumps(content))
    assert load(tmp_path).spec.width == 1


@pytest.mark.parametrize("width", [0, -1, 2, True, "half", None])
def test_an_invalid_width_in_a_file_is_refused(tmp_path, width):
    save_model(tiny_detector("retinanet"), tmp_path)
    path = tmp_path / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"width": width}))
    with pytest.raises(InputError, match=r"the field 'width' is .*, not a share from 0.1 to 1\.$"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("backbone.body.conv_stem.weight", (8, 3, 3)),  # not a convolution
        ("backbone.body.conv_stem.weight", (24, 3, 3, 3)),  # other layers have 8 channels
        ("backbone.fpn.inner_blocks.0.0.weight", (16, 40, 1, 1)),
    ],
)
def test_weights_that_do_not_fit_each_other_are_refused(tmp_path, name, shape):
    detector = tiny_detector("retinanet")
    make_narrower(detector, 0.5)
    save_model(detector, tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(load_file(path) | {name: torch.zeros(shape)}, path)
    with pytest.raises(InputError) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)
