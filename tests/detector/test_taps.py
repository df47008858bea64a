"""Taps: their notation, the outputs that they read, and the outputs that look like feature maps."""

import copy

import pytest
import timm
import torch
from torchvision.models import detection
from torchvision.models.detection.image_list import ImageList

from defeat.detector.taps import Tap, TappedTeacher, candidate_taps
from defeat.detector.teacher import MAPS
from defeat.errors import InputError
from tests.detector.tapped import BATCH, Net, SharedHead, Tokens, normalised, shapes

# Feature maps


def test_maps_are_those_before_an_in_place_relu():
    net = Net()
    teacher = TappedTeacher(net, neck={4: "conv2"}, backbone={2: "conv1"})
    output = teacher.forward_teacher(teacher.adopt(BATCH), {"neck"})
    with torch.no_grad():
        before = net.conv1(normalised(BATCH))
        after = net.conv2(before.relu())
    assert torch.equal(output.backbone[2], before)
    assert torch.equal(output.neck[4], after)
    assert before.min() < 0
    assert teacher.info.neck == {4: 5}
    assert teacher.info.backbone == {2: 4}
    assert output.losses == {}
    assert output.scale == 1
    # Of 90 columns of pixels, 45 cells of stride 2 begin in the image, and 23 of stride 4.
    assert output.valid[2][0].sum(dim=1).unique().tolist() == [45]
    assert output.valid[4][0].sum(dim=1).unique().tolist() == [23]
    assert output.valid[4][1].sum(dim=0).unique().tolist() == [10]


def test_fcos_is_tapped_at_its_backbone_and_predicts_as_a_whole():
    torch.manual_seed(0)
    fcos = detection.fcos_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=4, min_size=64, max_size=96, score_thresh=0.0
    )
    neck = {8: "fpn[0]", 16: "fpn[1]", 32: "fpn[2]", 64: "fpn[p6]", 128: "fpn[p7]"}
    names = ("cat", "dog", "owl")
    teacher = TappedTeacher(
        fcos.backbone, neck, {8: "body[0]", 32: "body.layer4"}, classes=names, predict=fcos, first_label=1
    )
    output = teacher.forward_teacher(teacher.adopt(BATCH))
    # Sides of 64 and 96 pixels over the stride, counting a cell that is cut off.
    assert shapes(output.neck) == {
        8: (2, 256, 8, 12), 16: (2, 256, 4, 6), 32: (2, 256, 2, 3), 64: (2, 256, 1, 2), 128: (2, 256, 1, 1)
    }  # fmt: skip
    assert shapes(output.backbone) == {8: (2, 512, 8, 12), 32: (2, 2048, 2, 3)}
    with torch.no_grad():
        levels = fcos.backbone(normalised(BATCH))
    assert all(torch.equal(level, output.neck[stride]) for stride, level in zip(neck, levels.values(), strict=True))
    detections = teacher.predict([torch.randint(0, 256, (3, 64, 80), dtype=torch.uint8)])[0]
    assert len(detections.scores) > 0
    assert set(detections.labels.tolist()) <= {0, 1, 2}
    assert bool((detections.scores.diff() <= 0).all())


def test_a_whole_fcos_gets_unpadded_images_that_it_normalises_itself():
    torch.manual_seed(0)
    fcos = detection.fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4, min_size=128, max_size=192)
    teacher = TappedTeacher(fcos, {8: "backbone.fpn[0]", 32: "head.classification_head.conv:2"}, size=128, max_size=192)
    assert teacher.takes == "list"
    assert teacher.info.mean == (0, 0, 0)
    batch = teacher.adopt(BATCH)
    output = teacher.forward_teacher(batch)
    assert batch.scale == output.scale == 2
    assert shapes(output.neck) == {8: (2, 256, 16, 24), 32: (2, 256, 4, 6)}
    crops = [image[:, :rows, :columns] for image, (rows, columns) in zip(batch.images, batch.sizes, strict=True)]
    with torch.no_grad():
        images, _ = fcos.transform(crops)
        assert isinstance(images, ImageList)
        levels = list(fcos.backbone(images.tensors).values())
        assert torch.equal(output.neck[8], levels[0])
        assert torch.allclose(output.neck[32], fcos.head.classification_head.conv(levels[2]), atol=1e-6)


def test_the_error_for_a_network_that_resizes_images_says_how_to_tap_it():
    fcos = detection.fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=2, min_size=64, max_size=96)
    # 256 x 320 pixels become 64 x 80, padded to 64 x 96.
    with pytest.raises(
        InputError,
        match=r"\(1, 512, 8, 12\) .*which matches no stride.*give the same size= here, or tap only its backbone",
    ):
        TappedTeacher(fcos, {8: "backbone.body.layer2"})


def test_ssdlite_is_tapped_at_six_strides():
    torch.manual_seed(0)
    ssd = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)
    neck = {stride: f"[{index}]" for index, stride in enumerate((16, 32, 64, 128, 256, 512))}
    teacher = TappedTeacher(ssd.backbone, neck, mean=[0.5] * 3, std=[0.5] * 3, predict=ssd, first_label=1)
    output = teacher.forward_teacher(teacher.adopt(BATCH))
    assert list(teacher.info.neck.values()) == [672, 480, 512, 256, 256, 128]
    assert shapes(output.neck)[16] == (2, 672, 4, 6)
    assert shapes(output.neck)[128] == (2, 256, 1, 1)
    images = BATCH.images * 2 - 1
    images[0, :, :, 90:], images[1, :, 40:] = 0, 0
    with torch.no_grad():
        assert torch.equal(output.neck[32], ssd.backbone(images)["1"])


@pytest.mark.parametrize("name", ["resnet10t", "test_resnet"])
def test_a_timm_backbone_is_tapped_without_a_neck(name):
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False)
    teacher = TappedTeacher(network, {}, {8: "layer2", 16: "layer3", 32: "layer4"})
    output = teacher.forward_teacher(teacher.adopt(BATCH))
    with torch.no_grad():
        assert torch.equal(output.backbone[32], network.forward_features(normalised(BATCH)))
    assert output.neck == {}
    assert teacher.capabilities == {MAPS}
    features = timm.create_model(name, pretrained=False, features_only=True)
    assert TappedTeacher(features, {32: f"[{len(features.feature_info) - 1}]"}).info.neck == {
        32: teacher.info.backbone[32]
    }


# Notation


@pytest.mark.parametrize(
    ("text", "tap"),
    [
        ("head.conv:2", Tap("head.conv", 2)),
        ("backbone.fpn[pool]", Tap("backbone.fpn", None, ("pool",))),
        ("head:0[features][3]", Tap("head", 0, ("features", "3"))),
        ("", Tap("")),
        ("[0]", Tap("", None, ("0",))),
    ],
)
def test_parsing_and_printing_a_tap_round_trips(text, tap):
    assert Tap.parse(text) == tap
    assert str(tap) == text


@pytest.mark.parametrize("text", ["head:x", "head[0", "head[]", "head[0]:1", "a:1:2"])
def test_invalid_notation_of_a_tap_is_refused(text):
    with pytest.raises(InputError, match="is not a tap: write NAME"):
        Tap.parse(text)


def test_each_call_of_a_shared_head_can_be_tapped():
    net = SharedHead()
    teacher = TappedTeacher(net, {2: "head:0", 4: "head:1", 8: "head:2"}, {4: "[levels][1]"})
    output = teacher.forward_teacher(BATCH)
    with torch.no_grad():
        head = net.head(net.conv1(normalised(BATCH)))
    for stride, level in output.neck.items():
        assert torch.allclose(level, head[..., :: stride // 2, :: stride // 2], atol=1e-6)
    assert torch.equal(output.backbone[4], output.neck[4])


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        ("head", r"'head' runs 3 times: choose a call from 0 to 2, e.g. 'head:2'"),
        ("head:3", r"'head:3': the module runs 3 times; choose a call from 0 to 2"),
        ("", r"The output of '' is a dict, not a feature map. Its parts: '\[levels\]'"),
        ("[levels]", r"is a tuple, not a feature map. Its parts: '\[levels\]\[0\]'"),
        ("[level]", r"Unknown key of the output of '' 'level'. Did you mean 'levels'"),
        ("relu", r"The module 'relu' did not run"),
        ("haed:1", r"Unknown module 'haed'. Did you mean 'head'"),
    ],
)
def test_the_error_for_a_tap_without_a_feature_map_says_why(tap, message):
    with pytest.raises(InputError, match=message):
        TappedTeacher(SharedHead(), {4: tap})


def test_the_error_for_a_wrong_stride_lists_modules_of_that_stride():
    # The dummy image has 256 x 320 pixels: conv1 gives 128 x 160 cells.
    message = r"neck 4: 'conv1' gives \(1, 4, 128, 160\) for 1 x 256 x 320 pixels, which is stride 2, not 4. "
    with pytest.raises(InputError, match=rf"{message}Modules of stride 4: 'conv2' \(1, 5, 64, 80\)"):
        TappedTeacher(Net(), {4: "conv1"})
    with pytest.raises(InputError, match="No module has stride 16; available strides: 2, 4"):
        TappedTeacher(Net(), {16: "conv2"})


def test_no_hook_remains_after_a_failure():
    net = Net()
    with pytest.raises(InputError):
        TappedTeacher(net, {4: "conv1"})
    assert not any(module._forward_hooks for module in net.modules())


# Layouts


def test_tokens_and_channels_last_outputs_are_converted():
    net = Tokens()
    teacher = TappedTeacher(net, {16: "block"}, {16: Tap("norm", layout="channels_last")}, tokens=1)
    output = teacher.forward_teacher(BATCH)
    with torch.no_grad():
        patches = net.patches(normalised(BATCH))
    assert torch.equal(output.neck[16], patches)
    assert torch.equal(output.backbone[16], patches)
    assert torch.equal(TappedTeacher(net, {16: "norm"}, channels_last=True).forward_maps(BATCH).neck[16], patches)


@pytest.mark.parametrize("options", [{}, {"tokens": 0}, {"tokens": 2}, {"channels_last": True}])
def test_the_error_for_a_wrong_layout_names_the_right_one(options):
    candidates = r"'norm' \(1, 16, 20, 6\) with channels_last=True, 'block' \(1, 321, 6\) with tokens=1"
    with pytest.raises(InputError, match=f"Modules of stride 16:.*{candidates}"):
        TappedTeacher(Tokens(), {16: "block"}, **options)


# Candidates


def test_candidates_are_all_outputs_that_look_like_feature_maps():
    candidates = {each.name: (each.shape, each.stride, each.layout) for each in candidate_taps(Net(), (64, 96))}
    assert candidates == {
        "conv1": ((1, 4, 32, 48), 2, "maps"),
        "relu:0": ((1, 4, 32, 48), 2, "maps"),
        "conv2": ((1, 5, 16, 24), 4, "maps"),
        "relu:1": ((1, 5, 16, 24), 4, "maps"),
        "": ((1, 5, 16, 24), 4, "maps"),
    }
    tokens = {each.name: (each.stride, each.layout, each.prefix_tokens) for each in candidate_taps(Tokens(), (64, 96))}
    assert tokens["norm"] == (16, "channels_last", 0)
    assert tokens["block"] == (16, "tokens", 1)
    levels = [each.name for each in candidate_taps(SharedHead(), (64, 96))]
    assert levels[-3:] == ["[levels][0]", "[levels][1]", "[levels][2]"]
    assert "head:2" in levels


def test_finding_candidates_does_not_change_the_network():
    net = timm.create_model("test_resnet", pretrained=False).train()
    net.layer1.eval()
    modes, state = [module.training for module in net.modules()], copy.deepcopy(net.state_dict())
    assert {each.stride for each in candidate_taps(net, (64, 96))} >= {4, 8, 16, 32}
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())
