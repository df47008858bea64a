"""A tapped teacher: its input, copies, compilation, precision and mode, and the `Teacher` protocol."""

import copy
import pickle

import pytest
import timm
import torch
from torch import nn

from defeat.detector.hooks import Recorder
from defeat.detector.taps import Tap, TappedTeacher, candidate_taps
from defeat.detector.teacher import MAPS, PREDICT, Teacher, can_predict, gives_maps
from defeat.detector.weights import IMAGENET_MEAN
from defeat.errors import InputError
from defeat.types import Batch, Detections, Maps
from tests.detector.tapped import BATCH, Net, TwoBoxes, normalised, prepared, shifted
from tests.detector.tiny import target, tiny_detector

# Input


def test_a_batch_is_padded_to_multiples_of_the_size_divisor():
    teacher = TappedTeacher(Net(), {4: "conv2"}, size_divisor=64)
    batch = teacher.adopt(BATCH)
    assert tuple(batch.images.shape) == (2, 3, 64, 128)
    assert batch.scale == 1
    assert batch.sizes == BATCH.sizes
    assert torch.equal(batch.images[..., :96], BATCH.images)
    assert not batch.images[..., 96:].any()
    assert TappedTeacher(Net(), {4: "conv2"}).adopt(BATCH) is BATCH


def test_a_teacher_with_an_input_size_adopts_a_batch_like_a_detector():
    detector = tiny_detector("retinanet", size=96, max_size=150)
    teacher = TappedTeacher(Net(), {4: "conv2"}, size=96, max_size=150)
    targets = [target([[0, 0, 30, 20]], [0], size=size) for size in BATCH.sizes]
    batch = Batch(BATCH.images, BATCH.sizes, targets, BATCH.original_sizes, 3)
    adopted, expected = teacher.adopt(batch), detector.adopt(batch)
    assert torch.equal(adopted.images, expected.images)
    assert (adopted.sizes, adopted.scale) == (expected.sizes, expected.scale)
    assert adopted.scale == 1.5
    assert torch.equal(adopted.targets[0].boxes, expected.targets[0].boxes)
    assert teacher.padded_size(64, 90) == detector.padded_size(64, 90) == (96, 160)


def test_preprocess_replaces_mean_and_std():
    net = Net()
    maps = TappedTeacher(net, {2: "conv1"}, preprocess=shifted).forward_maps(BATCH)
    images = BATCH.images * 2 - 1
    images[0, :, :, 90:], images[1, :, 40:] = 0, 0
    with torch.no_grad():
        assert torch.equal(maps.neck[2], net.conv1(images))
    with pytest.raises(InputError, match="preprocess replaces mean and std"):
        TappedTeacher(net, {2: "conv1"}, preprocess=shifted, mean=IMAGENET_MEAN)


def test_a_network_that_fails_to_run_is_refused_in_one_sentence():
    message = r"Linear does not run with a tensor \(1, 3, 256, 320\): RuntimeError.*nor with a list of one tensor"
    with pytest.raises(InputError, match=message):
        TappedTeacher(nn.Linear(7, 7), {4: ""})
    with pytest.raises(InputError, match="does not run"):
        candidate_taps(nn.Linear(7, 7))


# Copies, compilers, precision, modes


def test_a_copy_taps_the_copied_modules():
    teacher = TappedTeacher(Net(), {4: "conv2"})
    duplicate = copy.deepcopy(teacher)
    nn.init.zeros_(duplicate.module.conv2.weight)
    nn.init.ones_(duplicate.module.conv2.bias)
    assert bool((duplicate.forward_maps(BATCH).neck[4] == 1).all())
    assert not bool((teacher.forward_maps(BATCH).neck[4] == 1).all())


def test_a_pickled_teacher_gives_the_same_maps():
    teacher = TappedTeacher(Net(), {4: "conv2"}, predict=TwoBoxes(), preprocess=shifted)
    unpickled = pickle.loads(pickle.dumps(teacher))  # noqa: S301
    assert torch.equal(unpickled.forward_maps(BATCH).neck[4], teacher.forward_maps(BATCH).neck[4])
    assert unpickled.capabilities == {MAPS, PREDICT}


def compiled_whole(net):
    return torch.compile(net, backend="eager", fullgraph=True)


def compiled_in_place(net):
    net.compile(backend="eager")
    return net


def compiled_part(net):
    net.conv2 = torch.compile(net.conv2, backend="eager")
    return net


@pytest.mark.parametrize("compiled", [compiled_whole, compiled_in_place, compiled_part])
def test_a_network_compiled_but_not_yet_called_can_be_tapped_and_copied(compiled):
    torch._dynamo.reset()
    teacher = TappedTeacher(compiled(Net()), {4: "conv2"}, {2: "conv1"})
    plain = TappedTeacher(Net(), {4: "conv2"}, {2: "conv1"})
    with torch.no_grad():
        teacher.module(BATCH.images)  # a call from outside, such as by a detector that contains it
    for batch in (BATCH, prepared((64, 64), width=64, seed=1), BATCH):
        maps, known = teacher.forward_maps(batch), plain.forward_maps(batch)
        assert torch.allclose(maps.neck[4], known.neck[4], atol=1e-6)
        assert torch.allclose(maps.backbone[2], known.backbone[2], atol=1e-6)
    duplicate = copy.deepcopy(teacher)
    for module in (duplicate.module, plain.module):
        nn.init.ones_(module.get_parameter("conv1.bias" if hasattr(module, "conv1") else "_orig_mod.conv1.bias"))
    assert torch.allclose(duplicate.forward_maps(BATCH).neck[4], plain.forward_maps(BATCH).neck[4], atol=1e-6)
    assert torch.allclose(teacher.forward_maps(BATCH).neck[4], known.neck[4], atol=1e-6)


def test_a_compiled_network_that_was_called_before_is_refused():
    torch._dynamo.reset()
    net = torch.compile(Net().eval().requires_grad_(False), backend="eager")
    with torch.no_grad():
        net(BATCH.images)
    with pytest.raises(InputError, match="before the first call"):
        TappedTeacher(net, {4: "conv2"}).forward_maps(BATCH)


def test_a_data_parallel_wrapper_is_removed():
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


def test_a_teacher_stays_in_eval_mode_without_gradients_and_hooks():
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


def test_a_recorder_records_nothing_outside_a_forward_pass():
    recorder = Recorder(Tap("conv"))
    recorder(nn.Identity(), (), torch.zeros(1))
    assert (recorder.calls, recorder.maps) == (0, [])


# The protocol


def test_the_protocol_is_satisfied_and_capabilities_are_declared():
    teacher = TappedTeacher(Net(), {4: "conv2"}, classes=("cat", "dog"), predict=TwoBoxes(), first_label=1)
    assert isinstance(teacher, Teacher)
    assert not isinstance(Net(), Teacher)
    assert can_predict(teacher)
    assert gives_maps(teacher)
    assert not can_predict(TappedTeacher(Net(), {4: "conv2"}))


def test_detections_are_sorted_by_score_with_labels_from_zero():
    images = [torch.full((3, 8, 8), 255, dtype=torch.uint8), torch.rand(3, 9, 9)]
    teacher = TappedTeacher(Net(), {4: "conv2"}, classes=("cat", "dog"), predict=TwoBoxes(), first_label=1)
    first, second = teacher.predict(images)
    assert isinstance(first, Detections)
    assert first.labels.tolist() == second.labels.tolist() == [1, 0]
    assert first.scores.tolist() == pytest.approx([0.9, 0.2])
    assert first.boxes.tolist() == [[0, 0, 2, 2], [0, 0, 1, 1]]
    with pytest.raises(InputError, match=r"label 2, but has 2 classes.*Give first_label=1"):
        TappedTeacher(Net(), {4: "conv2"}, classes=("cat", "dog"), predict=TwoBoxes()).predict(images)
    with pytest.raises(InputError, match="can't detect objects"):
        TappedTeacher(Net(), {4: "conv2"}).predict(images)


def test_detections_may_be_lists():
    def detect(images):
        return [{"boxes": [[0, 0, 4, 4]], "scores": [0.5], "labels": [1]}, {"boxes": [], "scores": [], "labels": []}]

    found, none = TappedTeacher(Net(), {4: "conv2"}, classes=("cat", "dog"), predict=detect).predict(
        [torch.rand(3, 8, 8)] * 2
    )
    assert (found.boxes.tolist(), found.labels.tolist()) == ([[0, 0, 4, 4]], [1])
    assert none.boxes.shape == (0, 4)
    for wrong in ({"boxes": [[0, 0, 4, 4]]}, [1], {"boxes": "a", "scores": [0.5], "labels": [1]}):
        with pytest.raises(InputError, match="must return Detections, or a dict of tensors or lists"):
            TappedTeacher(Net(), {4: "conv2"}, predict=lambda images, wrong=wrong: [wrong]).predict(
                [torch.rand(3, 8, 8)]
            )


def test_given_maps_are_not_computed_again():
    teacher = TappedTeacher(Net(), {4: "conv2"})
    maps = Maps({}, {4: torch.zeros(2, 5, 16, 24)})
    assert teacher.forward_teacher(BATCH, maps=maps).neck[4] is maps.neck[4]
