"""YOLOv9: what it computes is what LibreYOLO computes, and its checkpoints are read."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from defeat.detector import DetectorSpec, build, libreyolo_models, load, save_model
from defeat.detector.importers import import_checkpoint
from defeat.detector.libreyolo_models import TOWERS
from defeat.detector.yolo import GREY
from defeat.errors import InputError
from defeat.inference.evaluate import evaluate
from tests.detector.of_libreyolo import as_libreyolo, save_checkpoint
from tests.detector.tiny import CLASSES, images, needs_libreyolo, target

HELP = "import contextlib, defeat.cli\nwith contextlib.suppress(SystemExit): defeat.cli.main(['distill', '--help'])"
pytestmark = [needs_libreyolo, pytest.mark.slow]


def detector(size=64, classes=CLASSES, **options):
    torch.manual_seed(0)
    return build("yolo9", "none", backbone="yolo9_t", classes=classes, size=size, max_size=size, options=options)


def spread(network):
    """Statistics that fit the weights, small boxes, and class scores that differ: at first, all are nearly 0.01."""
    torch.manual_seed(3)
    with torch.no_grad():
        for level in network.head.cv3:
            nn.init.normal_(level[2].weight, std=0.02)
            nn.init.constant_(level[2].bias, -1.0)
        for level in network.head.cv2:
            level[2].bias.copy_(-0.5 * torch.arange(16.0).repeat(4))  # short distances
        network.train()
        for _ in range(30):
            network.forward_maps(network.prepare(images((64, 64), (64, 64))))
    return network.eval()


def test_predictions_are_those_of_libreyolos_own_post_processing():
    from libreyolo.postprocess.yolo9 import postprocess

    own = spread(detector(score_thresh=0.001, nms_thresh=0.95, topk_candidates=1000))
    model = as_libreyolo(own).eval()
    pictures = images((64, 64), (64, 48))
    batch = own.prepare(pictures)
    with torch.no_grad():
        output = model(own.normalise(batch))
    compared = 0
    for row, (found, picture) in enumerate(zip(own.predict(pictures), pictures, strict=True)):
        height, width = picture.shape[-2:]
        one = {"predictions": output["predictions"][row : row + 1]}
        expected = postprocess(one, 0.001, 0.95, 64, (width, height), 300)
        boxes, scores = (torch.as_tensor(expected[name]) for name in ("boxes", "scores"))
        labels = torch.as_tensor(expected["classes"])
        assert len(found.scores) == len(scores)
        distance = (found.boxes[:, None] - boxes).abs().amax(dim=2) + (found.labels[:, None] != labels) * 1e3
        distance += (found.scores[:, None] - scores).abs()
        assert (distance.min(dim=1).values < 1e-2).all()
        assert torch.allclose(found.scores.sort().values, scores.float().sort().values, atol=1e-4)
        compared += len(scores)
    assert compared > 20


def test_losses_are_those_of_the_model():
    own = spread(detector()).train()
    model = as_libreyolo(own).train()
    targets = [target([[4, 6, 40, 50], [20, 10, 60, 30]], [0, 2], (64, 64)), target([[8, 8, 30, 56]], [1], (64, 64))]
    batch = own.prepare(images((64, 64), (64, 64)), targets)
    rows = torch.zeros(2, 2, 5)
    for row, of_image in zip(rows, batch.targets, strict=True):
        row[: len(of_image.labels)] = torch.cat([of_image.labels[:, None].float(), of_image.boxes / 64], dim=1)
    for network in (own, model):  # both with the same statistics
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()
    losses = own.forward_train(batch).losses
    expected = model(own.normalise(batch), rows)
    for name, key in {"classification": "cls_loss", "box": "box_loss", "distribution": "dfl_loss"}.items():
        assert losses[name].item() == pytest.approx(expected[key].item(), rel=1e-5)
        assert losses[name].item() > 0


def test_padding_is_grey():
    own = detector()
    batch = own.prepare(images((64, 32)))
    assert batch.images.shape[-2:] == (64, 32)
    batch = own.prepare(images((64, 40)))
    assert torch.all(own.normalise(batch)[0, :, :, 40:] == torch.tensor(GREY))


def test_unannotated_background_is_ignored():
    from dataclasses import replace

    own = spread(detector()).train()
    annotated = target([[4, 6, 40, 50]], [0], (64, 64))
    empty = target([], [], (64, 64))
    pictures = images((64, 64), (64, 64))
    for layer in own.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
    unknown = own.forward_train(own.prepare(pictures, [annotated, replace(empty, annotated=False)])).losses
    known = own.forward_train(own.prepare(pictures, [annotated, empty])).losses
    alone = own.forward_train(own.prepare(pictures[:1], [annotated])).losses
    assert unknown["classification"].item() == pytest.approx(alone["classification"].item(), rel=1e-4)
    assert known["classification"] > 1.1 * alone["classification"]


def test_a_checkpoint_of_libreyolo_is_a_detector(tmp_path):
    own = spread(detector(topk_candidates=1000))
    loaded = load(save_checkpoint(tmp_path / "best.pt", own))
    assert loaded.info.classes == CLASSES
    assert (loaded.info.size, loaded.info.max_size) == (64, 64)
    assert all(torch.equal(tensor, own.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    loaded.antialias = own.antialias
    pictures = images((64, 64))
    assert torch.equal(loaded.predict(pictures)[0].boxes, own.predict(pictures)[0].boxes)
    folder = tmp_path / "run"
    folder.mkdir()
    save_model(loaded, folder)
    assert torch.equal(load(folder).predict(pictures)[0].scores, own.predict(pictures)[0].scores)


def test_an_imported_checkpoint_is_a_run_directory_with_equal_boxes(tmp_path):
    own = spread(detector())
    path = save_checkpoint(tmp_path / "best.pt", own)
    imported = import_checkpoint(path, tmp_path / "run")
    assert imported.tool == "LibreYOLO"
    pictures = images((64, 64), (64, 48))
    for expected, found in zip(load(path).predict(pictures), load(tmp_path / "run").predict(pictures), strict=True):
        assert len(found.boxes) > 0
        assert torch.equal(found.boxes, expected.boxes)
        assert torch.equal(found.scores, expected.scores)
    renamed = import_checkpoint(path, tmp_path / "renamed", tool="libreyolo", classes=["a", "b", "c"])
    assert renamed.detector.info.classes == ("a", "b", "c")
    with pytest.raises(InputError, match="A detector of LibreYOLO has its own configuration"):
        import_checkpoint(path, tmp_path / "other", size=96)


def test_a_checkpoint_is_evaluated_on_given_data(tmp_path, small_demo):
    path = save_checkpoint(tmp_path / "best.pt", spread(detector(classes=("disc", "ring"))))
    assert evaluate(path, data="demo", split="test", workers=0).metrics["AP"] >= 0
    with pytest.raises(InputError, match="Give the data to evaluate on with --data"):
        evaluate(path)


def test_wider_classification_towers_are_kept(tmp_path):
    own = detector(class_channels=80)
    loaded = load(save_checkpoint(tmp_path / "best.pt", own))
    assert loaded.head.cv3[0][0].conv.out_channels == 80


def test_weights_of_a_checkpoint_begin_a_detector_for_other_classes(tmp_path):
    own = spread(detector())
    path = str(save_checkpoint(tmp_path / "best.pt", own))
    student = build("yolo9", path, backbone="yolo9_t", classes=("dog", "horse"), size=64)
    last, old = student.head.cv3[1][2], own.head.cv3[1][2]
    assert torch.equal(last.weight[0], old.weight[CLASSES.index("dog")])
    assert last.bias[1].sigmoid().item() == pytest.approx(libreyolo_models.PRIOR)  # as a new detector begins
    assert torch.equal(student.head.cv2[0][0].conv.weight, own.head.cv2[0][0].conv.weight)
    assert "1 of 2 classes" in student.notes[0]
    with pytest.raises(InputError, match="is a yolo9_t, not a yolo9_s"):
        build("yolo9", path, backbone="yolo9_s", classes=("dog",), size=64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_family": "yolonas"}, "is a checkpoint of LibreYOLO's yolonas"),
        ({"model_family": "yolox"}, "has not the tensors of yolox_t"),
        ({"task": "pose"}, "yolo9 \\(pose\\)"),
        ({"size": "huge"}, "of size 'huge', which is not one of t, s, m, c"),
        ({"size": "s"}, "has not the tensors of yolo9_s"),
        ({"model": None}, "can't be read as a checkpoint of LibreYOLO"),
        ({"names": {}}, "can't be read as a checkpoint of LibreYOLO"),
        ({"model": {TOWERS: 5}}, "can't be read as a checkpoint of LibreYOLO"),
        ({"model": {TOWERS: torch.zeros(1, 1, 1, 1).expand(10**6, 10**6, 3, 3)}}, "towers of 1000000 channels"),
    ],
)
def test_another_checkpoint_is_refused_with_one_sentence(changes, message, tmp_path):
    path = save_checkpoint(tmp_path / "best.pt", detector(), **changes)
    with pytest.raises(InputError, match=message):
        load(path)


def test_an_unknown_backbone_names_the_valid_ones():
    with pytest.raises(InputError, match="yolo9_t"):
        build("yolo9", "none", backbone="yolo9_x", classes=CLASSES)
    with pytest.raises(InputError, match="--neck-channels 64: its backbone fixes the widths of yolo9"):
        build(DetectorSpec("yolo9", "yolo9_t", CLASSES, neck_channels=64), "none")


def test_without_the_package_the_sentence_names_the_extra(monkeypatch):
    monkeypatch.setattr(libreyolo_models, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "defeat-detection\[yolo\]"'):
        detector()


def test_a_package_that_is_not_importable_is_one_sentence(monkeypatch):
    def fail(name):
        raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(libreyolo_models, "import_module", fail)
    with pytest.raises(InputError, match=r"yolo9 can't import the package libreyolo: libGL\.so\.1: cannot open"):
        detector()


@pytest.mark.parametrize("command", ["import defeat; defeat.distill; defeat.load", HELP])
def test_the_package_is_imported_only_when_it_is_used(command):
    code = f"{command}\nimport sys; sys.exit('libreyolo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0
