"""SSDlite: stretched images, losses by hand, one backbone; and pairs in which only one of the two stretches images."""

import pytest
import torch
from torchvision.models import mobilenet_v3_large
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

from defeat.assembly.automatic import choose
from defeat.data import open_dataset
from defeat.detector import DetectorSpec, build
from defeat.detector.normalisation import BatchNorm
from defeat.errors import InputError
from tests.detector.tiny import CLASSES, UNSELECTIVE, images, target, tiny_detector, tiny_options
from tests.engine.tiny_runs import settings

BOXES = [[10, 8, 50, 40], [30, 20, 60, 36]]


def test_images_are_stretched_to_a_square_and_boxes_with_them():
    detector = tiny_detector("ssdlite")
    batch = detector.prepare(images((32, 128), (40, 50)), [target(BOXES, [0, 1], (32, 128)), target([], [], (40, 50))])
    assert batch.sizes == [(64, 64)] * 2
    assert batch.images.shape == (2, 3, 64, 64)
    # Twice as high, half as wide.
    assert batch.targets[0].boxes.tolist() == [[5, 16, 25, 80], [15, 40, 30, 72]]


def test_detections_come_back_to_the_original_image_with_a_ratio_per_axis():
    detector = tiny_detector("ssdlite", options=tiny_options("ssdlite", **UNSELECTIVE))
    (square,) = images((64, 64))
    wide = square.repeat_interleave(3, dim=2)  # each column three times, so that the stretched image is the same
    detector.antialias = False
    (small,), (large,) = detector.predict([square]), detector.predict([wide])
    assert len(small.boxes) > 5
    assert torch.allclose(large.boxes, small.boxes * torch.tensor([3.0, 1, 3, 1]), atol=1e-3)


def test_losses_equal_their_formula():
    detector = tiny_detector("ssdlite", norm="frozen").train()
    with torch.no_grad():
        for heads in (detector.head.classification_head, detector.head.regression_head):
            for level in heads.module_list:
                level[1].weight.zero_()
                level[1].bias.zero_()
    batch = detector.prepare(images((64, 64), (64, 64)), [target([[8, 8, 40, 40]], [1]), target([], [])])
    output = detector.forward_train(batch)
    positives = int((output.dense.labels < 3).sum())
    assert positives > 0
    # All four logits are equal: each box costs ln 4. Three background boxes for each positive one, and three for the
    # image without objects, divided by the positives.
    expected = (4 * positives + 3) / positives * torch.tensor(4.0).log()
    assert output.losses["classification"].item() == pytest.approx(expected.item(), rel=1e-5)
    # Deltas of zero: smooth L1 of the target deltas, (x - xa) / wa and log(w / wa), times 10 and 5.
    anchors = output.dense.anchors[0][output.dense.labels[0] == 1]
    sides = anchors[:, 2:] - anchors[:, :2]
    shifts = 10 * (24 - (anchors[:, :2] + anchors[:, 2:]) / 2) / sides
    deltas = torch.cat((shifts, 5 * (32 / sides).log()), dim=1).abs()
    costs = torch.where(deltas < 1, deltas**2 / 2, deltas - 0.5)
    assert output.losses["box"].item() == pytest.approx((costs.sum() / positives).item(), rel=1e-4)


def test_a_batch_of_one_image_can_be_trained_on():
    # The coarsest level is then a single value per channel, which `nn.BatchNorm2d` refuses.
    detector = tiny_detector("ssdlite").train()
    output = detector.forward_train(detector.prepare(images((64, 64)), [target([[8, 8, 40, 40]], [1])]))
    assert all(loss.isfinite() for loss in output.losses.values())
    norm = BatchNorm(2).train()
    norm.running_mean.fill_(1.0)
    assert norm(torch.full((1, 2, 1, 1), 1.0)).flatten().tolist() == [0, 0]


def test_features_do_not_vanish_where_normalisation_is_frozen():
    torch.manual_seed(0)
    spec = DetectorSpec("ssdlite", "mobilenet_v3_large", CLASSES, size=64, norm="frozen")
    detector = build(spec, "none").eval()
    neck = detector.forward_maps(detector.prepare(images((64, 64), (64, 64)))).neck
    assert all(1e-3 < level.std() < 100 for level in neck.values())


def test_names_of_all_tensors_are_those_of_torchvision():
    core = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)
    ours = tiny_detector("ssdlite", options={"reduced_tail": True}).state_dict()
    assert {name: value.shape for name, value in core.state_dict().items()} == {n: v.shape for n, v in ours.items()}


def test_weights_of_the_backbone_may_come_from_a_file(tmp_path):
    network = mobilenet_v3_large()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    detector = tiny_detector("ssdlite", weights=str(tmp_path / "weights.pth"))
    assert torch.equal(detector.backbone.features[0][0][0].weight, network.features[0][0].weight)
    assert torch.equal(detector.backbone.features[1][-1][0].weight, network.features[-1][0].weight)
    with pytest.raises(InputError, match="does not fit the backbone"):
        tiny_detector("ssdlite", weights=str(tmp_path / "weights.pth"), options={"reduced_tail": True})


def test_other_backbones_and_widths_of_the_neck_are_refused():
    with pytest.raises(InputError, match="give --backbone mobilenet_v3_large, not 'resnet18'"):
        build(DetectorSpec("ssdlite", "resnet18", CLASSES), "none")
    with pytest.raises(InputError, match="--neck-channels 64: ssdlite has no feature pyramid"):
        build(DetectorSpec("ssdlite", "mobilenet_v3_large", CLASSES, neck_channels=64), "none")
    with pytest.raises(InputError, match="smallest-box must be at most"):
        tiny_detector("ssdlite", options={"smallest_box": 0.5, "largest_box": 0.4})


def test_no_width_of_the_neck_is_chosen(tmp_path):
    data = open_dataset("demo", "train")
    chosen = choose(settings(tmp_path / "run", "ssdlite", lr="auto", schedule="step"), data)
    assert chosen.numbers.keys() == {"lr"}
    assert chosen.describe() == "lr 0.0025"


def test_a_side_that_is_no_multiple_of_32_is_refused():
    with pytest.raises(InputError, match="--size of ssdlite must be a multiple of 32, not 300"):
        tiny_detector("ssdlite", size=300)


def test_a_teacher_that_keeps_the_ratio_gets_it_back_from_a_student_that_stretches():
    student, teacher = tiny_detector("ssdlite"), tiny_detector("retinanet", size=128, max_size=192)
    batch = student.prepare(images((48, 72), (32, 48)), [target([[0, 0, 36, 24]], [0], (48, 72))] * 2)
    assert batch.targets[0].boxes.tolist() == [[0, 0, 32, 32]]
    adopted = teacher.adopt(batch)
    assert adopted.sizes == [(128, 192)] * 2
    assert (adopted.scale, adopted.stretch) == pytest.approx((2.0, 1.5))
    assert adopted.targets[0].boxes.tolist() == [[0, 0, 96, 64]]


def test_a_teacher_that_stretches_sees_its_own_square_where_images_have_one_ratio():
    student, teacher = tiny_detector("retinanet"), tiny_detector("ssdlite", size=128).eval()
    batch = student.prepare(images((64, 96), (32, 48)), [target([[0, 0, 48, 32]], [0], (64, 96))] * 2)
    adopted = teacher.adopt(batch)
    assert adopted.sizes == [(128, 128)] * 2
    assert (adopted.scale, adopted.stretch) == pytest.approx((2.0, 64 / 96))
    assert tuple(teacher.forward_teacher(adopted).neck[16].shape[-2:]) == (8, 8)
    assert tiny_detector("ssdlite").adopt(teacher.adopt(batch)).sizes == [(64, 64)] * 2
