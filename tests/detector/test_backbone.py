"""Options of a backbone and its pyramid: normalisation, frozen stages, and readable errors."""

import copy

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from defeat.detector.backbone import UpperLevels
from defeat.detector.normalisation import NORMS, GroupNorm, apply_norm
from defeat.errors import InputError
from tests.detector.tiny import (
    BACKBONE,
    images,
    target,
    tiny_batch,
    tiny_detector,
    tiny_options,
    with_backbones,
)

BACKBONES = ("resnet18", BACKBONE, "tf_efficientnet_lite0")
every_backbone = pytest.mark.parametrize("backbone", BACKBONES)


def batch_norms(module):
    layers = module.named_modules()
    return {name: layer for name, layer in layers if isinstance(layer, nn.modules.batchnorm._BatchNorm)}


def body_with_random_norms(backbone):
    body = tiny_detector("retinanet", backbone).backbone.body
    torch.manual_seed(1)
    with torch.no_grad():
        for norm in batch_norms(body).values():
            norm.weight.uniform_(0.5, 2)
            norm.bias.uniform_(-1, 1)
    return body


@every_backbone
@pytest.mark.parametrize("norm", NORMS)
def test_affine_weights_are_kept(backbone, norm):
    body = body_with_random_norms(backbone)
    before = {name: (norm.weight.clone(), norm.bias.clone()) for name, norm in batch_norms(body).items()}
    after = dict(apply_norm(body, norm).named_modules())
    assert before
    for name, (weight, bias) in before.items():
        assert torch.equal(after[name].weight, weight), name
        assert torch.equal(after[name].bias, bias), name


@every_backbone
def test_bn_does_not_change_the_backbone(backbone):
    body = body_with_random_norms(backbone)
    assert apply_norm(body, "bn") is body
    assert all(norm.weight.requires_grad for norm in batch_norms(body).values())


@every_backbone
def test_synchronised_normalisation_replaces_every_layer(backbone):
    body = body_with_random_norms(backbone)
    count = len(batch_norms(body))
    after = batch_norms(apply_norm(body, "syncbn"))
    assert len(after) == count
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in after.values())


@every_backbone
def test_frozen_normalisation_is_neither_trained_nor_updated(backbone):
    detector = tiny_detector("retinanet", backbone, norm="frozen").train()
    body = detector.backbone.body
    assert not batch_norms(body)
    norms = [module for module in body.modules() if "running_mean" in dict(module.named_buffers(recurse=False))]
    assert norms
    assert not any(list(norm.parameters(recurse=False)) for norm in norms)
    before = [norm.running_mean.clone() for norm in norms]
    detector.forward_train(tiny_batch(detector))
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True))


@every_backbone
def test_group_normalisation_leaves_no_batch_statistics(backbone):
    detector = tiny_detector("retinanet", backbone, norm="gn")
    assert not batch_norms(detector.backbone.body)
    groups = [module for module in detector.backbone.body.modules() if isinstance(module, nn.GroupNorm)]
    assert groups
    assert all(norm.weight.requires_grad and norm.num_channels % norm.num_groups == 0 for norm in groups)
    # No buffers means no running statistics.
    assert not list(detector.backbone.body.buffers())


def test_group_normalisation_keeps_the_activation_of_the_layer_it_replaces():
    layer = BatchNormAct2d(8, act_layer=nn.ReLU)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(8.0))
        layer.bias.fill_(-1)
    x = torch.randn(2, 8, 5, 5)
    # Eight groups of one channel: each channel of each image is standardised separately, then scaled and clipped.
    deviation = (x.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    plain = (x - x.mean((2, 3), keepdim=True)) / deviation
    expected = (plain * torch.arange(8.0)[:, None, None] - 1).relu()
    assert torch.allclose(apply_norm(layer, "gn")(x), expected, atol=1e-5)


def test_group_normalisation_of_a_single_value_is_the_bias():
    layer = GroupNorm(4, 4)
    nn.init.normal_(layer.bias)
    maps = torch.randn(2, 4, 1, 1)
    # A single value is its own mean; nn.GroupNorm computes the same for two images, and raises an error for one.
    assert torch.allclose(layer(maps[:1]), layer.bias[None, :, None, None], atol=1e-3)
    assert torch.equal(layer(maps), nn.GroupNorm.forward(layer, maps))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        nn.GroupNorm.forward(layer, maps[:1])
    maps = torch.randn(1, 4, 3, 3)
    assert torch.equal(layer(maps), nn.GroupNorm.forward(layer, maps))


def test_a_head_with_one_channel_per_group_trains_and_predicts_on_maps_of_one_cell():
    # 16 channels have 16 groups, and an image of 64 x 64 pixels has one cell at strides 64 and 128.
    detector = tiny_detector("retinanet", options=tiny_options("retinanet", head_norm="gn")).train()
    batch = detector.prepare(images((64, 64)), [target([[8, 8, 40, 40]], [1])])
    losses = detector.forward_train(batch).losses
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in detector.parameters())
    assert len(detector.predict(images((64, 64)))) == 1


def test_an_unknown_normalisation_suggests_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'syncbn'"):
        tiny_detector("retinanet", norm="sync")


# timm's module names with a dot, such as convnext's `stages.0`, become `stages_0` in the body; resnet26's stem ends
# with an activation, which has no weights.
@pytest.mark.parametrize("backbone", [*BACKBONES, "resnet26", "convnext_atto"])
def test_each_frozen_stage_freezes_more_of_the_body(backbone):
    frozen = []
    for stages in range(5):
        body = tiny_detector("faster_rcnn", backbone, frozen_stages=stages).backbone.body
        named = [(name, weight.requires_grad) for name, weight in body.named_parameters()]
        trained = [requires_grad for _, requires_grad in named]
        # From the input on, without gaps.
        assert trained == sorted(trained)
        frozen.append(trained.count(False))
    assert frozen[0] == 0
    assert frozen == sorted(set(frozen)), "a stage has no weights"


@pytest.mark.parametrize(("family", "backbone"), with_backbones(BACKBONES))
def test_the_whole_body_can_be_frozen(family, backbone):
    detector = tiny_detector(family, backbone, frozen_stages=5)
    assert not any(weight.requires_grad for weight in detector.backbone.body.parameters())
    assert all(weight.requires_grad for weight in detector.backbone.fpn.parameters())


def test_frozen_stages_include_the_stem_of_a_resnet():
    body = tiny_detector("retinanet", "resnet18", frozen_stages=2).backbone.body
    frozen = {name.split(".")[0] for name, weight in body.named_parameters() if not weight.requires_grad}
    assert frozen == {"conv1", "bn1", "layer1"}


@every_backbone
def test_statistics_of_frozen_stages_do_not_change_in_training(backbone):
    detector = tiny_detector("retinanet", backbone, frozen_stages=2)
    detector.eval()
    detector.train()
    norms = batch_norms(detector.backbone.body)
    before = {name: norm.running_mean.clone() for name, norm in norms.items()}
    detector.forward_train(tiny_batch(detector))
    changed = {name for name, norm in norms.items() if not torch.equal(norm.running_mean, before[name])}
    frozen = {name for name, norm in norms.items() if not norm.weight.requires_grad}
    assert frozen
    assert changed == norms.keys() - frozen


def test_frozen_weights_do_not_change_while_others_do():
    detector = tiny_detector("retinanet", frozen_stages=1).train()
    before = copy.deepcopy(dict(detector.backbone.body.named_parameters()))
    batch = detector.prepare(images((64, 64), (64, 64)), [target([[8, 8, 40, 40]], [1])] * 2)
    optimizer = torch.optim.SGD([w for w in detector.parameters() if w.requires_grad], lr=0.1, weight_decay=0.1)
    torch.stack(list(detector.forward_train(batch).losses.values())).sum().backward()
    optimizer.step()
    for name, weight in detector.backbone.body.named_parameters():
        assert torch.equal(weight, before[name]) is not weight.requires_grad, name


@pytest.mark.parametrize("stages", [-1, 6])
def test_an_invalid_number_of_frozen_stages_is_refused(stages):
    with pytest.raises(InputError, match="resnet18 has 5 stages"):
        tiny_detector("retinanet", "resnet18", frozen_stages=stages)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"family": "faster_rcn"}, "Unknown detector 'faster_rcn'. Did you mean 'faster_rcnn'?"),
        ({"backbone": "resnet5"}, "Unknown backbone 'resnet5'. Did you mean 'resnet50'?"),
        ({"backbone": "mobilenet_v3_small_050"}, "Did you mean 'mobilenetv3_small_050'?"),
        ({"options": {"score_tresh": 0.1}}, "Unknown option of retinanet 'score_tresh'. Did you mean 'score_thresh'?"),
        ({"classes": ()}, "at least one class"),
    ],
)
def test_unknown_names_suggest_the_nearest(change, expected):
    settings = {"family": "retinanet", "backbone": BACKBONE, "options": {}} | change
    with pytest.raises(InputError) as caught:
        tiny_detector(settings.pop("family"), settings.pop("backbone"), **settings)
    assert expected in str(caught.value)
    assert len(str(caught.value)) < 500  # not all of timm's names are listed


@pytest.mark.parametrize(
    ("backbone", "problem"),
    [("swin_tiny_patch4_window7_224", "NHWC"), ("vit_tiny_patch16_224", "strides [16")],
)
def test_transformers_are_refused_by_name(backbone, problem):
    with pytest.raises(InputError) as caught:
        tiny_detector("retinanet", backbone)
    message = str(caught.value)
    assert backbone in message
    assert problem in message
    assert "convolutional" in message
    assert "\n" not in message


def test_probing_a_backbone_draws_no_random_numbers():
    # The body's initial weights depend only on the seed, not on the probing.
    first = tiny_detector("retinanet").backbone.body.state_dict()
    torch.manual_seed(0)
    network = timm.create_model(BACKBONE, features_only=True, out_indices=(2, 3, 4))
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in first.items())


def test_upper_levels_of_one_cell_have_finite_gradients_in_bfloat16():
    """Freed memory is filled with NaN, to detect reads of uninitialised memory."""
    levels = UpperLevels(16, 16)
    sizes = [2**power for power in range(4, 16)] * 3
    for _ in range(20):
        levels.zero_grad()
        poison = [torch.full((size,), torch.nan) for size in sizes]
        del poison
        maps = [torch.ones(2, 16, 1, 1)]
        with torch.autocast("cpu", torch.bfloat16):
            upper, _ = levels(list(maps), maps, ["p5"])
        sum(level.float().square().sum() for level in upper).backward()
        assert all(parameter.grad.isfinite().all() for parameter in levels.parameters())
