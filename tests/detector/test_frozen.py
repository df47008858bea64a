"""A copy of a detector that learns no more gives the same maps, with less to compute."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from defeat.detector.frozen import folded, frozen
from tests.detector.tiny import FAMILIES, tiny_batch, tiny_detector, with_backbones

every_family = pytest.mark.parametrize("family", FAMILIES)
BACKBONES = ("mobilenetv3_small_050", "resnet18", "tf_efficientnet_lite0", "convnext_femto")
NORMS = ("bn", "syncbn", "bn_eval", "frozen", "gn")


def with_random_norms(family, backbone, **spec):
    """A detector with random normalisation statistics and weights."""
    detector = tiny_detector(family, backbone, **spec)
    for module in detector.modules():
        if getattr(module, "running_var", None) is not None:
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 2)
            module.bias.data.uniform_(-0.5, 0.5)
    return detector.eval()


def maps(detector, batch):
    with torch.no_grad():
        found = detector.forward_maps(batch)
    return [*found.backbone.values(), *found.neck.values()]


def difference(actual, expected):
    """Largest difference over the largest value."""
    pairs = zip(actual, expected, strict=True)
    return max(float((level - other).abs().max() / other.abs().max()) for level, other in pairs)


def with_statistics(module):
    return [layer for layer in module.modules() if getattr(layer, "running_var", None) is not None]


@pytest.mark.parametrize(("family", "backbone"), with_backbones(BACKBONES))
def test_folding_does_not_change_the_maps(family, backbone):
    detector = with_random_norms(family, backbone)
    batch = tiny_batch(detector)
    copy = frozen(detector)
    assert difference(maps(copy, batch), maps(detector, batch)) < 1e-4
    assert not with_statistics(copy.backbone)
    assert not any(weight.requires_grad for weight in copy.parameters())
    assert not any(module.training for module in copy.modules())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backbone", ["resnet18", "tf_efficientnet_lite0"])
def test_every_norm_can_be_folded(norm, backbone):
    detector = with_random_norms("faster_rcnn", backbone, norm=norm)
    batch = tiny_batch(detector)
    copy = frozen(detector)
    assert difference(maps(copy, batch), maps(detector, batch)) < 1e-4
    assert not with_statistics(copy.backbone)


def test_the_original_detector_is_unchanged():
    detector = with_random_norms("retinanet", "resnet18").train()
    before = deepcopy(detector.state_dict())
    frozen(detector, torch.bfloat16)
    assert all(torch.equal(tensor, before[name]) for name, tensor in detector.state_dict().items())
    assert detector.training
    assert any(weight.requires_grad for weight in detector.parameters())


@every_family
def test_a_lower_precision_rounds_the_maps(family):
    detector = with_random_norms(family, "resnet18")
    batch = tiny_batch(detector)
    exact, rounded = maps(frozen(detector), batch), maps(frozen(detector, torch.bfloat16), batch)
    assert {level.dtype for level in rounded} == {torch.float32}
    assert 1e-4 < difference(rounded, exact) < 0.2


class Shared(nn.Module):
    """A convolution whose output is also used elsewhere, or that is called twice."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.convolution = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.norm.running_mean.fill_(1.0)

    def forward(self, images):
        output = self.convolution(images)
        if self.way == "beside":
            return {1: self.norm(output) + output}, {}
        if self.way == "twice":
            return {1: self.norm(output)}, {1: self.norm(self.convolution(images + 1))}
        return {1: self.norm(output * 2 if self.way == "between" else output)}, {}


@pytest.mark.parametrize("way", ["beside", "twice", "between"])
def test_other_structures_are_not_folded(way):
    backbone = Shared(way).eval()
    images = torch.rand(2, 3, 8, 8)
    copy = folded(backbone)
    assert with_statistics(copy)
    for maps_of_copy, expected in zip(copy(images), backbone(images), strict=True):
        assert all(torch.equal(maps_of_copy[stride], level) for stride, level in expected.items())


def test_normalisation_without_running_statistics_is_not_folded():
    backbone = Shared("alone").eval()
    backbone.norm = nn.BatchNorm2d(4, track_running_stats=False).eval()
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(folded(backbone)(images)[0][1], backbone(images)[0][1])


def test_convolutions_with_standardised_weights_are_not_folded():
    detector = with_random_norms("faster_rcnn", "nf_regnet_b0")  # scaled standard convolutions
    batch = tiny_batch(detector)
    assert difference(maps(frozen(detector), batch), maps(detector, batch)) < 1e-4
