"""What can be asked of a backbone: its normalisation, its frozen stages, and readable refusals."""

import copy

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from defeat.detector import FAMILIES
from defeat.detector.families.retinanet import UpperLevels
from defeat.detector.normalisation import NORMS, apply_norm
from defeat.errors import InputError
from tests.detector.tiny import BACKBONE, images, target, tiny_batch, tiny_detector

BACKBONES = ("resnet18", BACKBONE, "tf_efficientnet_lite0")
every_backbone = pytest.mark.parametrize("backbone", BACKBONES)


def batch_norms(module):
    return {name: one for name, one in module.named_modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)}


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
    before = {name: (one.weight.clone(), one.bias.clone()) for name, one in batch_norms(body).items()}
    after = dict(apply_norm(body, norm).named_modules())
    assert before
    for name, (weight, bias) in before.items():
        assert torch.equal(after[name].weight, weight), name
        assert torch.equal(after[name].bias, bias), name


@every_backbone
def test_batch_normalisation_stays_as_it_is(backbone):
    body = body_with_random_norms(backbone)
    assert apply_norm(body, "bn") is body
    assert all(one.weight.requires_grad for one in batch_norms(body).values())


@every_backbone
def test_synchronised_normalisation_replaces_every_layer(backbone):
    body = body_with_random_norms(backbone)
    count = len(batch_norms(body))
    after = batch_norms(apply_norm(body, "syncbn"))
    assert len(after) == count
    assert all(isinstance(one, nn.SyncBatchNorm) for one in after.values())


@every_backbone
def test_frozen_normalisation_is_neither_trained_nor_updated(backbone):
    detector = tiny_detector("retinanet", backbone, norm="frozen").train()
    body = detector.backbone.body
    assert not batch_norms(body)
    norms = [one for one in body.modules() if "running_mean" in dict(one.named_buffers(recurse=False))]
    assert norms
    assert not any(list(one.parameters(recurse=False)) for one in norms)
    before = [one.running_mean.clone() for one in norms]
    detector.forward_train(tiny_batch(detector))
    assert all(torch.equal(one.running_mean, mean) for one, mean in zip(norms, before, strict=True))


@every_backbone
def test_group_normalisation_leaves_no_batch_statistics(backbone):
    detector = tiny_detector("retinanet", backbone, norm="gn")
    assert not batch_norms(detector.backbone.body)
    groups = [one for one in detector.backbone.body.modules() if isinstance(one, nn.GroupNorm)]
    assert groups
    assert all(one.weight.requires_grad and one.num_channels % one.num_groups == 0 for one in groups)
    # No buffers means no running statistics.
    assert not list(detector.backbone.body.buffers())


def test_group_normalisation_keeps_the_activation_of_the_layer_it_replaces():
    layer = BatchNormAct2d(8, act_layer=nn.ReLU)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(8.0))
        layer.bias.fill_(-1)
    x = torch.randn(2, 8, 5, 5)
    # Eight groups of one channel: each channel of each image is standardised on its own, then scaled and cut at zero.
    deviation = (x.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    plain = (x - x.mean((2, 3), keepdim=True)) / deviation
    expected = (plain * torch.arange(8.0)[:, None, None] - 1).relu()
    assert torch.allclose(apply_norm(layer, "gn")(x), expected, atol=1e-5)


def test_an_unknown_normalisation_suggests_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'syncbn'"):
        tiny_detector("retinanet", norm="sync")


# Names of timm's modules with a dot, such as convnext's `stages.0`, become `stages_0` in the body; resnet26's stem ends
# with an activation, which has no weights.
@pytest.mark.parametrize("backbone", [*BACKBONES, "resnet26", "convnext_atto"])
def test_each_frozen_stage_holds_more_of_the_body(backbone):
    frozen = []
    for stages in range(5):
        body = tiny_detector("faster_rcnn", backbone, frozen_stages=stages).backbone.body
        named = [(name, weight.requires_grad) for name, weight in body.named_parameters()]
        trained = [requires_grad for _, requires_grad in named]
        # From the input on, without a gap.
        assert trained == sorted(trained)
        frozen.append(trained.count(False))
    assert frozen[0] == 0
    assert frozen == sorted(set(frozen)), "a stage holds nothing"


@pytest.mark.parametrize("family", FAMILIES)
@every_backbone
def test_the_whole_body_can_be_frozen(family, backbone):
    detector = tiny_detector(family, backbone, frozen_stages=5)
    assert not any(weight.requires_grad for weight in detector.backbone.body.parameters())
    assert all(weight.requires_grad for weight in detector.backbone.fpn.parameters())


def test_frozen_stages_include_the_stem_of_a_resnet():
    body = tiny_detector("retinanet", "resnet18", frozen_stages=2).backbone.body
    frozen = {name.split(".")[0] for name, weight in body.named_parameters() if not weight.requires_grad}
    assert frozen == {"conv1", "bn1", "layer1"}


@every_backbone
def test_statistics_of_frozen_stages_do_not_move_in_training(backbone):
    detector = tiny_detector("retinanet", backbone, frozen_stages=2)
    detector.eval()
    detector.train()
    norms = batch_norms(detector.backbone.body)
    before = {name: one.running_mean.clone() for name, one in norms.items()}
    detector.forward_train(tiny_batch(detector))
    moved = {name for name, one in norms.items() if not torch.equal(one.running_mean, before[name])}
    still = {name for name, one in norms.items() if not one.weight.requires_grad}
    assert still
    assert moved == norms.keys() - still


def test_frozen_weights_stay_while_the_rest_learns():
    detector = tiny_detector("retinanet", frozen_stages=1).train()
    before = copy.deepcopy(dict(detector.backbone.body.named_parameters()))
    batch = detector.prepare(images((64, 64), (64, 64)), [target([[8, 8, 40, 40]], [1])] * 2)
    optimizer = torch.optim.SGD([w for w in detector.parameters() if w.requires_grad], lr=0.1, weight_decay=0.1)
    torch.stack(list(detector.forward_train(batch).losses.values())).sum().backward()
    optimizer.step()
    for name, weight in detector.backbone.body.named_parameters():
        assert torch.equal(weight, before[name]) is not weight.requires_grad, name


@pytest.mark.parametrize("stages", [-1, 6])
def test_stages_that_do_not_exist_are_refused(stages):
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
    assert len(str(caught.value)) < 500  # timm's thousand names are not listed


@pytest.mark.parametrize(
    ("backbone", "found"),
    [("swin_tiny_patch4_window7_224", "NHWC"), ("vit_tiny_patch16_224", "strides [16")],
)
def test_transformers_are_refused_by_name(backbone, found):
    with pytest.raises(InputError) as caught:
        tiny_detector("retinanet", backbone)
    message = str(caught.value)
    assert backbone in message
    assert found in message
    assert "convolutional" in message
    assert "\n" not in message


def test_probing_a_backbone_draws_no_random_numbers():
    # The body's first weights depend on the seed alone, not on how often timm was asked about it.
    first = tiny_detector("retinanet").backbone.body.state_dict()
    torch.manual_seed(0)
    network = timm.create_model(BACKBONE, features_only=True, out_indices=(2, 3, 4))
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in first.items())


def test_upper_levels_of_one_cell_have_finite_gradients_in_bfloat16():
    """Freed memory full of NaN stands for what a convolution may read by mistake."""
    levels = UpperLevels(16, 16)
    sizes = [2**power for power in range(4, 16)] * 3
    for _ in range(20):
        levels.zero_grad()
        poison = [torch.full((size,), torch.nan) for size in sizes]
        del poison
        maps = [torch.ones(2, 16, 1, 1)]
        with torch.autocast("cpu", torch.bfloat16):
            made, _ = levels(list(maps), maps, ["p5"])
        sum(level.float().square().sum() for level in made).backward()
        assert all(parameter.grad.isfinite().all() for parameter in levels.parameters())
