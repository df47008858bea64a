"""A saved detector is loaded unchanged, and a damaged one is refused in one sentence."""

import json

import pytest
import torch

from defeat.detector import load, save_model
from defeat.detector.transformers_models import KINDS
from defeat.errors import InputError
from tests.detector.tiny import FAMILIES, UNSELECTIVE, images, tiny_detector, tiny_options

every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def saved(tmp_path):
    save_model(tiny_detector("retinanet"), tmp_path)
    return tmp_path


def refused(folder):
    with pytest.raises(InputError) as caught:
        load(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


@every_family
@pytest.mark.parametrize("norm", ["bn", "frozen", "gn"])
def test_a_loaded_detector_gives_the_same_predictions(family, norm, tmp_path):
    options = tiny_options(family, **UNSELECTIVE)
    spec = {"norm": norm, "frozen_stages": 1, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3), "options": options}
    detector = tiny_detector(family, seed=3, **spec)
    detector.train()
    save_model(detector, tmp_path)
    again = load(tmp_path)
    assert not again.training
    assert again.info == detector.info
    assert again.spec == detector.spec if family in KINDS else again.spec.options == options
    pictures = images((64, 80))
    (before,), (after,) = detector.predict(pictures), again.predict(pictures)
    assert len(before.boxes) > 0
    assert torch.equal(before.boxes, after.boxes)
    assert torch.equal(before.scores, after.scores)
    assert torch.equal(before.labels, after.labels)


@every_family
def test_the_files_contain_only_the_detector(family, tmp_path):
    detector = tiny_detector(family)
    save_model(detector, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    assert load(tmp_path).state_dict().keys() == detector.state_dict().keys()


def test_truncated_weights_are_refused(saved):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "damaged" in refused(saved)


def test_missing_files_are_named(saved, tmp_path):
    (saved / "model.safetensors").unlink()
    assert "model.safetensors" in refused(saved)
    (saved / "model.json").unlink()
    assert "model.json is missing" in refused(saved)
    assert "model.json is missing" in refused(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "not valid JSON"),
        ("[1, 2]", "does not describe a detector"),
        ("{}", "'format' is missing"),
        ('{"format": 99}', "another version"),
        ('{"format": 1}', "model.json"),
        ('{"format": 1, "classes": 5, "mean": [0.5], "std": [0.5]}', "model.json"),
    ],
)
def test_an_invalid_description_is_refused(saved, text, expected):
    (saved / "model.json").write_text(text)
    assert expected in refused(saved)


@pytest.mark.parametrize(
    "change", [{"classes": ["one"]}, {"neck_channels": 8}, {"backbone": "resnet18"}, {"unheard_of": 1}]
)
def test_weights_of_another_detector_are_refused(saved, change):
    description = json.loads((saved / "model.json").read_text())
    (saved / "model.json").write_text(json.dumps(description | change))
    assert "damaged or does not belong" in refused(saved)


def test_a_file_of_weights_beside_a_run_is_refused(saved):
    with pytest.raises(InputError, match="torchvision model only"):
        load(saved, weights="weights.pth")
