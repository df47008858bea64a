"""A copy of a detector that learns no more gives the same maps, with less to compute."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from defeat.detector import FAMILIES
from defeat.detector.frozen import folded, frozen
from tests.detector.tiny import tiny_batch, tiny_detector

every_family = pytest.mark.parametrize("family", FAMILIES)
BACKBONES = ("mobilenetv3_small_050", "resnet18", "tf_efficientnet_lite0", "convnext_femto")
NORMS = ("bn", "syncbn", "bn_eval", "frozen", "gn")


def unsettled(family, backbone, **spec):
    """A detector whose running statistics are not those of an untrained network."""
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


def far(found, wanted):
    """The largest difference, as a part of the largest value."""
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in zip(found, wanted, strict=True))


def with_statistics(module):
    return [one for one in module.modules() if getattr(one, "running_var", None) is not None]


@every_family
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_maps_stay_the_same(family, backbone):
    detector = unsettled(family, backbone)
    batch = tiny_batch(detector)
    copy = frozen(detector)
    assert far(maps(copy, batch), maps(detector, batch)) < 1e-4
    assert not with_statistics(copy.backbone)
    assert not any(weight.requires_grad for weight in copy.parameters())
    assert not any(module.training for module in copy.modules())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backbone", ["resnet18", "tf_efficientnet_lite0"])
def test_every_norm_is_understood(norm, backbone):
    detector = unsettled("faster_rcnn", backbone, norm=norm)
    batch = tiny_batch(detector)
    copy = frozen(detector)
    assert far(maps(copy, batch), maps(detector, batch)) < 1e-4
    assert not with_statistics(copy.backbone)


def test_the_detector_itself_stays_as_it_was():
    detector = unsettled("retinanet", "resnet18").train()
    before = deepcopy(detector.state_dict())
    frozen(detector, torch.bfloat16)
    assert all(torch.equal(tensor, before[name]) for name, tensor in detector.state_dict().items())
    assert detector.training
    assert any(weight.requires_grad for weight in detector.parameters())


@every_family
def test_a_lower_precision_rounds_the_maps(family):
    detector = unsettled(family, "resnet18")
    batch = tiny_batch(detector)
    exact, rounded = maps(frozen(detector), batch), maps(frozen(detector, torch.bfloat16), batch)
    assert {level.dtype for level in rounded} == {torch.float32}
    assert 1e-4 < far(rounded, exact) < 0.2


class Shared(nn.Module):
    """Something else reads the convolution, too, or it has two readers of its own."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.convolution = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.norm.running_mean.fill_(1.0)

    def forward(self, images):
        made = self.convolution(images)
        if self.way == "beside":
            return {1: self.norm(made) + made}, {}
        if self.way == "twice":
            return {1: self.norm(made)}, {1: self.norm(self.convolution(images + 1))}
        return {1: self.norm(made * 2 if self.way == "between" else made)}, {}


@pytest.mark.parametrize("way", ["beside", "twice", "between"])
def test_what_can_not_be_folded_is_left(way):
    backbone = Shared(way).eval()
    images = torch.rand(2, 3, 8, 8)
    copy = folded(backbone)
    assert with_statistics(copy)
    for found, wanted in zip(copy(images), backbone(images), strict=True):
        assert all(torch.equal(found[stride], level) for stride, level in wanted.items())


def test_normalisation_by_the_batch_itself_is_left():
    backbone = Shared("alone").eval()
    backbone.norm = nn.BatchNorm2d(4, track_running_stats=False).eval()
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(folded(backbone)(images)[0][1], backbone(images)[0][1])


def test_weights_that_are_made_anew_in_each_pass_are_left():
    detector = unsettled("faster_rcnn", "nf_regnet_b0")  # scaled standard convolutions
    batch = tiny_batch(detector)
    assert far(maps(frozen(detector), batch), maps(detector, batch)) < 1e-4
