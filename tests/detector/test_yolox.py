"""YOLOX: what it computes is what LibreYOLO computes, and its checkpoints are read."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from defeat.detector import DetectorSpec, build, load, save_model
from defeat.detector.families.yolox import LARGEST_LOG_SIDE, _assigner
from defeat.detector.importers import import_checkpoint
from defeat.errors import InputError
from tests.detector.of_libreyolo import as_libreyolo, save_checkpoint
from tests.detector.tiny import CLASSES, images, keep_statistics, needs_libreyolo, target

pytestmark = [needs_libreyolo, pytest.mark.slow]


def detector(size=64, classes=CLASSES, **options):
    torch.manual_seed(0)
    return build("yolox", "none", backbone="yolox_n", classes=classes, size=size, max_size=size, options=options)


def spread(network):
    """Statistics that fit the weights, and scores that differ: at first, all are nearly 0.0001."""
    torch.manual_seed(3)
    with torch.no_grad():
        for kind in ("cls_preds", "obj_preds"):
            for layer in getattr(network.head, kind):
                nn.init.normal_(layer.weight, std=2.0)
                nn.init.constant_(layer.bias, -1.0)
        network.train()
        for _ in range(30):
            network.forward_maps(network.prepare(images((64, 64), (64, 64))))
    return network.eval()


def blue_green_red(network, batch):
    """Images as LibreYOLO takes them."""
    return network.normalise(batch).flip(1)


def test_predictions_are_those_of_libreyolos_own_post_processing():
    from libreyolo.postprocess.yolox import postprocess

    own = spread(detector(score_thresh=0.001, nms_thresh=0.95, topk_candidates=1000))
    model = as_libreyolo(own).eval()
    pictures = images((64, 64), (64, 64))
    batch = own.prepare(pictures)
    with torch.no_grad():
        outputs = model(blue_green_red(own, batch))
    compared = 0
    for row, found in enumerate(own.predict(pictures)):
        of_image = [output[row : row + 1] for output in outputs]
        expected = postprocess(of_image, 0.001, 0.95, 64, (64, 64), 1.0, 300)
        boxes, scores = (torch.as_tensor(expected[name]) for name in ("boxes", "scores"))
        labels = torch.as_tensor(expected["classes"])
        assert len(found.scores) == len(scores)
        distance = (found.boxes[:, None] - boxes).abs().amax(dim=2) + (found.labels[:, None] != labels) * 1e3
        distance += (found.scores[:, None] - scores).abs()
        assert (distance.min(dim=1).values < 1e-3).all()
        assert torch.allclose(found.scores.sort().values, scores.float().sort().values, atol=1e-4)
        compared += len(scores)
    assert compared > 20


def test_losses_are_those_of_the_model():
    own = spread(detector()).train()
    model = as_libreyolo(own).train()
    targets = [target([[4, 6, 40, 50], [20, 10, 60, 30]], [0, 2], (64, 64)), target([[8, 8, 30, 56]], [1], (64, 64))]
    batch = own.prepare(images((64, 64), (64, 64)), targets)
    rows = torch.zeros(2, 2, 5)  # label, centre, width and height in pixels
    for row, of_image in zip(rows, batch.targets, strict=True):
        corners = of_image.boxes
        middle, sides = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
        row[: len(corners)] = torch.cat([of_image.labels[:, None].float(), middle, sides], dim=1)
    keep_statistics(own)
    keep_statistics(model)
    losses = own.forward_train(batch).losses
    expected = model(blue_green_red(own, batch), rows)
    for name, key in {"objectness": "obj_loss", "classification": "cls_loss", "box": "iou_loss"}.items():
        assert losses[name].item() == pytest.approx(expected[key].item(), rel=1e-5)
        assert losses[name].item() > 0


def test_the_logit_of_a_class_is_that_of_its_score():
    own = spread(detector())
    batch = own.prepare(images((64, 64)), [target([[4, 6, 40, 50]], [0], (64, 64))])
    output = own.forward_teacher(batch)
    _, scores = own.candidates(own.raw(own.normalise(batch), batch.sizes))
    best = scores > 0
    assert (best.sum(dim=2) == 1).all()
    assert torch.allclose(output.dense.logits.sigmoid()[best], scores[best], atol=1e-6)
    assert (output.dense.labels != len(CLASSES)).any()


def test_certain_scores_and_huge_sides_give_finite_losses_and_gradients():
    own = spread(detector()).train()
    with torch.no_grad():
        for index in range(3):
            own.head.cls_preds[index].bias.fill_(200.0)
            own.head.obj_preds[index].bias.fill_(200.0)
            own.head.reg_preds[index].bias.fill_(10 * LARGEST_LOG_SIDE)
    output = own.forward_train(own.prepare(images((64, 64)), [target([[4, 6, 40, 50]], [0], (64, 64))]))
    assert torch.isfinite(output.dense.logits).all()
    (sum(output.losses.values()) + output.dense.logits.sum()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in own.parameters() if parameter.grad is not None)


def test_padding_is_grey_and_channels_are_blue_green_red():
    own = detector()
    batch = own.prepare(images((64, 40)))
    assert torch.allclose(own.normalise(batch)[0, :, :, 40:], torch.tensor(114.0))
    red = torch.zeros(3, 64, 64, dtype=torch.uint8)
    red[0] = 255
    taken = []
    own.backbone.body.register_forward_pre_hook(lambda _, given: taken.append(given[0]))
    own.eval().predict([red])
    assert taken[0][0].amax(dim=(1, 2)).tolist() == pytest.approx([0, 0, 255])


def test_unannotated_background_is_ignored():
    own = keep_statistics(spread(detector()).train())
    annotated, empty = target([[4, 6, 40, 50]], [0], (64, 64)), target([], [], (64, 64))
    pictures = images((64, 64), (64, 64))
    unknown = own.forward_train(own.prepare(pictures, [annotated, replace(empty, annotated=False)])).losses
    known = own.forward_train(own.prepare(pictures, [annotated, empty])).losses
    alone = own.forward_train(own.prepare(pictures[:1], [annotated])).losses
    assert unknown["objectness"].item() == pytest.approx(alone["objectness"].item(), rel=1e-4)
    assert known["objectness"] > 1.1 * alone["objectness"]


def test_an_image_without_objects_has_losses_with_gradients_of_all_weights():
    own = keep_statistics(spread(detector()).train())
    losses = own.forward_train(own.prepare(images((64, 64)), [target([], [], (64, 64))])).losses
    assert losses["objectness"] > 0
    assert (losses["classification"], losses["box"]) == (0, 0)
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in own.parameters())


def test_the_assignment_draws_no_random_numbers():
    torch.manual_seed(0)
    expected = torch.rand(1)
    _assigner.cache_clear()
    torch.manual_seed(0)
    assert all(parameter.is_meta for parameter in _assigner(3).parameters())
    assert torch.equal(torch.rand(1), expected)


def test_a_checkpoint_of_libreyolo_is_a_detector_and_a_run_directory(tmp_path):
    own = spread(detector(topk_candidates=1000))
    path = save_checkpoint(tmp_path / "best.pt", own)
    loaded = load(path)
    assert loaded.info.classes == CLASSES
    assert all(torch.equal(tensor, own.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    loaded.antialias = own.antialias
    pictures = images((64, 64))
    (expected,) = own.predict(pictures)
    assert len(expected.boxes) > 0
    assert torch.equal(loaded.predict(pictures)[0].boxes, expected.boxes)
    folder = tmp_path / "run"
    folder.mkdir()
    save_model(loaded, folder)
    assert torch.equal(load(folder).predict(pictures)[0].scores, expected.scores)
    assert import_checkpoint(path, tmp_path / "imported").tool == "LibreYOLO"


def test_weights_of_a_checkpoint_begin_a_detector_for_other_classes(tmp_path):
    own = spread(detector())
    path = str(save_checkpoint(tmp_path / "best.pt", own))
    student = build("yolox", path, backbone="yolox_n", classes=("dog", "horse"), size=64)
    last, old = student.head.cls_preds[1], own.head.cls_preds[1]
    assert torch.equal(last.weight[0], old.weight[CLASSES.index("dog")])
    assert last.bias[1].sigmoid().item() == pytest.approx(0.01)  # as a new detector begins
    assert torch.equal(student.head.reg_preds[0].weight, own.head.reg_preds[0].weight)
    assert "1 of 2 classes" in student.notes[0]
    with pytest.raises(InputError, match="is a yolox_n, not a yolox_s: give --detector yolox --backbone yolox_n"):
        build("yolox", path, backbone="yolox_s", classes=("dog",), size=64)
    with pytest.raises(InputError, match="is a yolox_n, not a yolo9_t: give --detector yolox --backbone yolox_n"):
        build("yolo9", path, backbone="yolo9_t", classes=("dog",), size=64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": "huge"}, "is a yolox of size 'huge', which is not one of n, t, s, m, l, x"),
        ({"size": "s"}, "has not the tensors of yolox_s"),
        ({"model": {}}, "has not the tensors of yolox_n"),
        ({"model_family": "rfdetr"}, "only detectors of yolo9 and yolox are read"),
    ],
)
def test_another_checkpoint_is_refused_with_one_sentence(changes, message, tmp_path):
    path = save_checkpoint(tmp_path / "best.pt", detector(), **changes)
    with pytest.raises(InputError, match=message):
        load(path)


def test_an_unknown_backbone_names_the_valid_ones():
    with pytest.raises(InputError, match="yolox_n"):
        build("yolox", "none", backbone="yolox_z", classes=CLASSES)
    with pytest.raises(InputError, match="--neck-channels 64: its backbone fixes the widths of yolox"):
        build(DetectorSpec("yolox", "yolox_n", CLASSES, neck_channels=64), "none")
