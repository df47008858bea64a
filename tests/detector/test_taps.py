"""A teacher is made of any network by forward hooks: maps by stride come out as the network made them."""

import copy
import pickle

import pytest
import timm
import torch
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.image_list import ImageList

from defeat.detector.hooks import Recorder
from defeat.detector.taps import Tap, TappedTeacher, candidate_taps
from defeat.detector.teacher import MAPS, PREDICT, Teacher, can_predict, gives_maps
from defeat.detector.weights import IMAGENET_MEAN, IMAGENET_STD
from defeat.errors import InputError
from defeat.types import Batch, Detections, Maps
from tests.detector.tiny import target, tiny_detector


class Net(nn.Module):
    """Two convolutions, each with an in-place ReLU: `conv1` has stride 2 and 4 channels, `conv2` stride 4 and 5."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 5, 3, 2, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, images):
        return self.relu(self.conv2(self.relu(self.conv1(images))))


class SharedHead(Net):
    """One head runs at strides 2, 4 and 8 in turn."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(4, 6, 1)

    def forward(self, images):
        level = self.conv1(images)
        levels = [level, level[..., ::2, ::2], level[..., ::4, ::4]]
        return {"levels": tuple(self.head(level) for level in levels)}


class Tokens(nn.Module):
    """Patches of 16 x 16 pixels as (B, 1 + N, C), a class token first, and as (B, H, W, C)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.block, self.norm = nn.Conv2d(3, 6, 16, 16), nn.Identity(), nn.Identity()

    def forward(self, images):
        patches = self.patches(images)
        grid = self.norm(patches.permute(0, 2, 3, 1))
        first = torch.full((len(images), 1, 6), 7.0)
        return self.block(torch.cat([first, grid.flatten(1, 2)], dim=1))


class OneBox(nn.Module):
    """Detects two boxes in every image, as torchvision's detectors do: the worse first, labels from 1."""

    def forward(self, images):
        assert all(image.dtype == torch.float32 and image.max() <= 1 for image in images)
        boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 2, 2]])
        return [{"boxes": boxes, "labels": torch.tensor([1, 2]), "scores": torch.tensor([0.2, 0.9])} for _ in images]


def half_red(images):
    """A preparation of the user's own."""
    return images * 2 - 1


def prepared(*sizes, height=64, width=96, seed=0):
    """A student's batch of noise with the given valid sizes."""
    images = torch.zeros(len(sizes), 3, height, width)
    generator = torch.Generator().manual_seed(seed)
    for row, (rows, columns) in zip(images, sizes, strict=True):
        row[:, :rows, :columns] = torch.rand(3, rows, columns, generator=generator)
    return Batch(images, list(sizes), [], list(sizes), 3)


def normalised(batch):
    """Mean and deviation of ImageNet by hand, zero on padding."""
    images = (batch.images - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
    for row, (rows, columns) in zip(images, batch.sizes, strict=True):
        row[:, rows:], row[:, :, columns:] = 0, 0
    return images


def shapes(levels):
    return {stride: tuple(level.shape) for stride, level in levels.items()}


BATCH = prepared((64, 90), (40, 96))


# What a student learns from


def test_a_hand_written_network_gives_the_maps_of_its_modules_before_the_relu_that_works_in_place():
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


def test_a_fcos_teaches_through_its_backbone_and_detects_as_a_whole():
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


def test_a_whole_fcos_is_tapped_at_its_own_input_size_with_crops_that_it_normalises():
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


def test_a_network_that_resizes_by_itself_says_how_to_tap_it():
    fcos = detection.fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=2, min_size=64, max_size=96)
    # 256 x 320 pixels become 64 x 80, padded to 64 x 96.
    with pytest.raises(
        InputError, match=r"\(1, 512, 8, 12\) .*which fits no stride.*give the same size= here, or tap its backbone"
    ):
        TappedTeacher(fcos, {8: "backbone.body.layer2"})


def test_an_ssdlite_teaches_at_six_strides():
    torch.manual_seed(0)
    ssd = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)
    neck = {stride: f"[{place}]" for place, stride in enumerate((16, 32, 64, 128, 256, 512))}
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
def test_a_timm_backbone_teaches_alone(name):
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


# Which output a tap means


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
def test_a_tap_is_read_and_written_alike(text, tap):
    assert Tap.parse(text) == tap
    assert str(tap) == text


@pytest.mark.parametrize("text", ["head:x", "head[0", "head[]", "head[0]:1", "a:1:2"])
def test_what_is_no_tap_is_refused(text):
    with pytest.raises(InputError, match="is not a tap: write NAME"):
        Tap.parse(text)


def test_each_call_of_a_shared_head_can_be_chosen():
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
        ("", r"The output of '' is a dict, not a map. Its parts: '\[levels\]'"),
        ("[levels]", r"is a tuple, not a map. Its parts: '\[levels\]\[0\]'"),
        ("[level]", r"Unknown key of the output of '' 'level'. Did you mean 'levels'"),
        ("relu", r"The module 'relu' did not run"),
        ("haed:1", r"Unknown module 'haed'. Did you mean 'head'"),
    ],
)
def test_a_tap_that_gives_no_map_says_why(tap, message):
    with pytest.raises(InputError, match=message):
        TappedTeacher(SharedHead(), {4: tap})


def test_a_wrong_stride_names_the_modules_that_have_it():
    # The network is tried with 256 x 320 pixels: conv1 gives 128 x 160 cells.
    message = (
        r"neck 4: 'conv1' gives \(1, 4, 128, 160\) for 1 x 256 x 320 pixels, which is stride 2, not 4. With stride 4"
    )
    with pytest.raises(InputError, match=rf"{message} there are 'conv2' \(1, 5, 64, 80\)"):
        TappedTeacher(Net(), {4: "conv1"})
    with pytest.raises(InputError, match="No module has stride 16; those of its modules are: 2, 4"):
        TappedTeacher(Net(), {16: "conv2"})


def test_a_failed_teacher_leaves_no_hook_behind():
    net = Net()
    with pytest.raises(InputError):
        TappedTeacher(net, {4: "conv1"})
    assert not any(module._forward_hooks for module in net.modules())


# Layouts


def test_tokens_and_channels_last_maps_become_maps():
    net = Tokens()
    teacher = TappedTeacher(net, {16: "block"}, {16: Tap("norm", layout="channels_last")}, tokens=1)
    output = teacher.forward_teacher(BATCH)
    with torch.no_grad():
        patches = net.patches(normalised(BATCH))
    assert torch.equal(output.neck[16], patches)
    assert torch.equal(output.backbone[16], patches)
    assert torch.equal(TappedTeacher(net, {16: "norm"}, channels_last=True).forward_maps(BATCH).neck[16], patches)


@pytest.mark.parametrize("options", [{}, {"tokens": 0}, {"tokens": 2}, {"channels_last": True}])
def test_a_wrong_layout_is_refused_and_the_right_one_is_named(options):
    with pytest.raises(
        InputError,
        match=r"16 there are.*'norm' \(1, 16, 20, 6\) with channels_last=True, 'block' \(1, 321, 6\) with tokens=1",
    ):
        TappedTeacher(Tokens(), {16: "block"}, **options)


# Which pixels a teacher sees


def test_a_batch_is_padded_to_what_the_teacher_divides_by():
    teacher = TappedTeacher(Net(), {4: "conv2"}, size_divisor=64)
    batch = teacher.adopt(BATCH)
    assert tuple(batch.images.shape) == (2, 3, 64, 128)
    assert batch.scale == 1
    assert batch.sizes == BATCH.sizes
    assert torch.equal(batch.images[..., :96], BATCH.images)
    assert not batch.images[..., 96:].any()
    assert TappedTeacher(Net(), {4: "conv2"}).adopt(BATCH) is BATCH


def test_a_teacher_with_an_input_size_adopts_as_a_detector_does():
    detector = tiny_detector("retinanet", size=96, max_size=150)
    teacher = TappedTeacher(Net(), {4: "conv2"}, size=96, max_size=150)
    targets = [target([[0, 0, 30, 20]], [0], size=size) for size in BATCH.sizes]
    batch = Batch(BATCH.images, BATCH.sizes, targets, BATCH.original_sizes, 3)
    own, theirs = teacher.adopt(batch), detector.adopt(batch)
    assert torch.equal(own.images, theirs.images)
    assert (own.sizes, own.scale) == (theirs.sizes, theirs.scale)
    assert own.scale == 1.5
    assert torch.equal(own.targets[0].boxes, theirs.targets[0].boxes)
    assert teacher.padded_size(64, 90) == detector.padded_size(64, 90) == (96, 160)


def test_an_own_preparation_stands_instead_of_mean_and_deviation():
    net = Net()
    maps = TappedTeacher(net, {2: "conv1"}, preprocess=half_red).forward_maps(BATCH)
    images = BATCH.images * 2 - 1
    images[0, :, :, 90:], images[1, :, 40:] = 0, 0
    with torch.no_grad():
        assert torch.equal(maps.neck[2], net.conv1(images))
    with pytest.raises(InputError, match="preprocess stands instead of mean and std"):
        TappedTeacher(net, {2: "conv1"}, preprocess=half_red, mean=IMAGENET_MEAN)


def test_a_network_that_can_not_run_is_refused_in_a_sentence():
    message = r"Linear does not run with a tensor \(1, 3, 256, 320\): RuntimeError.*nor with a list of one tensor"
    with pytest.raises(InputError, match=message):
        TappedTeacher(nn.Linear(7, 7), {4: ""})
    with pytest.raises(InputError, match="does not run"):
        candidate_taps(nn.Linear(7, 7))


# Copies, compilers, precision, modes


def test_a_copy_taps_its_own_modules():
    teacher = TappedTeacher(Net(), {4: "conv2"})
    duplicate = copy.deepcopy(teacher)
    nn.init.zeros_(duplicate.module.conv2.weight)
    nn.init.ones_(duplicate.module.conv2.bias)
    assert bool((duplicate.forward_maps(BATCH).neck[4] == 1).all())
    assert not bool((teacher.forward_maps(BATCH).neck[4] == 1).all())


def test_a_pickled_teacher_gives_the_same_maps():
    teacher = TappedTeacher(Net(), {4: "conv2"}, predict=OneBox(), preprocess=half_red)
    again = pickle.loads(pickle.dumps(teacher))  # noqa: S301
    assert torch.equal(again.forward_maps(BATCH).neck[4], teacher.forward_maps(BATCH).neck[4])
    assert again.capabilities == {MAPS, PREDICT}


def compiled_whole(net):
    return torch.compile(net, backend="eager", fullgraph=True)


def compiled_in_place(net):
    net.compile(backend="eager")
    return net


def compiled_part(net):
    net.conv2 = torch.compile(net.conv2, backend="eager")
    return net


@pytest.mark.parametrize("compiled", [compiled_whole, compiled_in_place, compiled_part])
def test_a_compiled_network_is_tapped_before_its_first_call_and_so_is_its_copy(compiled):
    torch._dynamo.reset()
    teacher = TappedTeacher(compiled(Net()), {4: "conv2"}, {2: "conv1"})
    plain = TappedTeacher(Net(), {4: "conv2"}, {2: "conv1"})
    with torch.no_grad():
        teacher.module(BATCH.images)  # somebody else's call, as that of a detector around it
    for batch in (BATCH, prepared((64, 64), width=64, seed=1), BATCH):
        maps, known = teacher.forward_maps(batch), plain.forward_maps(batch)
        assert torch.allclose(maps.neck[4], known.neck[4], atol=1e-6)
        assert torch.allclose(maps.backbone[2], known.backbone[2], atol=1e-6)
    duplicate = copy.deepcopy(teacher)
    for module in (duplicate.module, plain.module):
        nn.init.ones_(module.get_parameter("conv1.bias" if hasattr(module, "conv1") else "_orig_mod.conv1.bias"))
    assert torch.allclose(duplicate.forward_maps(BATCH).neck[4], plain.forward_maps(BATCH).neck[4], atol=1e-6)
    assert torch.allclose(teacher.forward_maps(BATCH).neck[4], known.neck[4], atol=1e-6)


def test_a_network_that_was_compiled_and_run_before_is_refused_not_misread():
    torch._dynamo.reset()
    net = torch.compile(Net().eval().requires_grad_(False), backend="eager")
    with torch.no_grad():
        net(BATCH.images)
    with pytest.raises(InputError, match="before the first call"):
        TappedTeacher(net, {4: "conv2"}).forward_maps(BATCH)


def test_a_network_is_taken_out_of_the_wrapper_for_several_devices():
    net = Net()
    teacher = TappedTeacher(nn.DataParallel(net), {4: "conv2"})
    assert teacher.module is net
    assert teacher.info.neck == {4: 5}


def test_maps_are_float32_under_autocast():
    net = Net()
    teacher = TappedTeacher(net, {4: "conv2"}, {2: "conv1"})
    with torch.autocast("cpu", torch.bfloat16):
        maps = teacher.forward_maps(BATCH)
        with torch.no_grad():
            low = net.conv1(normalised(BATCH))
    assert low.dtype == torch.bfloat16
    assert maps.neck[4].dtype == maps.backbone[2].dtype == torch.float32
    assert torch.equal(maps.backbone[2], low.float())
    teacher.dtype = torch.bfloat16
    assert torch.equal(teacher.forward_maps(BATCH).backbone[2], low.float())


def test_a_teacher_stays_in_eval_mode_without_gradients_or_hooks():
    net = timm.create_model("test_resnet", pretrained=False)
    teacher = TappedTeacher(net, {32: "layer4"})
    first = teacher.forward_maps(BATCH).neck[32]
    teacher.train()
    assert not net.training
    net.train()
    assert torch.equal(teacher.forward_maps(BATCH).neck[32], first)
    assert not any(module.training for module in net.modules())
    assert not any(weight.requires_grad for weight in net.parameters())
    assert not first.requires_grad
    assert not any(module._forward_hooks for module in net.modules())


def test_a_hook_is_silent_and_holds_nothing_outside_of_a_forward_pass():
    recorder = Recorder(Tap("conv"))
    recorder(nn.Identity(), (), torch.zeros(1))
    assert (recorder.calls, recorder.maps) == (0, [])


# The protocol


def test_the_protocol_is_met_and_capabilities_are_declared():
    teacher = TappedTeacher(Net(), {4: "conv2"}, classes=("cat", "dog"), predict=OneBox(), first_label=1)
    assert isinstance(teacher, Teacher)
    assert not isinstance(Net(), Teacher)
    assert can_predict(teacher)
    assert gives_maps(teacher)
    assert not can_predict(TappedTeacher(Net(), {4: "conv2"}))


def test_detections_come_best_first_with_labels_from_zero():
    images = [torch.full((3, 8, 8), 255, dtype=torch.uint8), torch.rand(3, 9, 9)]
    teacher = TappedTeacher(Net(), {4: "conv2"}, classes=("cat", "dog"), predict=OneBox(), first_label=1)
    first, second = teacher.predict(images)
    assert isinstance(first, Detections)
    assert first.labels.tolist() == second.labels.tolist() == [1, 0]
    assert first.scores.tolist() == pytest.approx([0.9, 0.2])
    assert first.boxes.tolist() == [[0, 0, 2, 2], [0, 0, 1, 1]]
    with pytest.raises(InputError, match=r"label 2, but has 2 classes.*Give first_label=1"):
        TappedTeacher(Net(), {4: "conv2"}, classes=("cat", "dog"), predict=OneBox()).predict(images)
    with pytest.raises(InputError, match="gives maps alone"):
        TappedTeacher(Net(), {4: "conv2"}).predict(images)


def test_maps_that_are_known_already_are_not_computed_anew():
    teacher = TappedTeacher(Net(), {4: "conv2"})
    maps = Maps({}, {4: torch.zeros(2, 5, 16, 24)})
    assert teacher.forward_teacher(BATCH, maps=maps).neck[4] is maps.neck[4]


# Candidates


def test_candidates_are_every_output_that_looks_like_a_map():
    found = {each.name: (each.shape, each.stride, each.layout) for each in candidate_taps(Net(), (64, 96))}
    assert found == {
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


def test_looking_for_candidates_leaves_a_network_as_it_was():
    net = timm.create_model("test_resnet", pretrained=False).train()
    net.layer1.eval()
    modes, state = [module.training for module in net.modules()], copy.deepcopy(net.state_dict())
    assert {each.stride for each in candidate_taps(net, (64, 96))} >= {4, 8, 16, 32}
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())
