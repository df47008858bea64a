"""Checkpoints of other tools, given where a run directory is expected."""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torchvision.models import detection

from defeat.detector import load_detector
from defeat.detector.pretrained import CONVERTERS
from defeat.errors import InputError

SMALL = {"weights": None, "weights_backbone": None, "num_classes": 2}


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_detector(path)
    message = str(caught.value)
    assert "\n" not in message
    assert "run directory" in message
    return message


@pytest.mark.parametrize(
    "name",
    CONVERTERS,
)
def test_a_state_dict_of_torchvision_names_the_options_that_read_it(tmp_path, name):
    names = getattr(detection, name)(**SMALL).state_dict()
    path = tmp_path / "model.pth"
    torch.save(OrderedDict((key, torch.zeros(1)) for key in names), path)
    assert f"--teacher torchvision:{name} --teacher-weights {path}." in refused(path)


@pytest.mark.parametrize(
    ("content", "tool"),
    [
        ({"state_dict": {"bbox_head.cls_convs.0.conv.weight": torch.zeros(1)}, "meta": {}}, "MMDetection"),
        ({"state_dict": {"neck.lateral_convs.0.conv.weight": torch.zeros(1)}, "meta": {}}, "MMDetection"),
        ({"model": {"proposal_generator.rpn_head.conv.weight": torch.zeros(1)}}, "Detectron2"),
        ({"state_dict": {}, "pytorch-lightning_version": "2.6"}, "Lightning"),
    ],
)
def test_a_checkpoint_of_another_tool_is_named_with_a_way_to_use_it(tmp_path, content, tool):
    torch.save(content, tmp_path / "best.pth")
    message = refused(tmp_path / "best.pth")
    assert f"is a checkpoint of {tool}" in message
    assert "--teacher-taps" in message
    assert (f"`defeat import {tmp_path / 'best.pth'} --out RUN`" in message) == (tool != "Lightning")


class Planted:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_no_code_of_a_checkpoint_runs(tmp_path):
    planted = tmp_path / "ran"
    with zipfile.ZipFile(tmp_path / "best.pt", "w") as archive:
        archive.writestr("best/data.pkl", b"cultralytics.nn.tasks\nYolo\n" + pickle.dumps(Planted(planted)))
    assert "is a checkpoint of Ultralytics" in refused(tmp_path / "best.pt")
    assert not planted.exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 torn", b"\x80\x02}q\x00."])
def test_any_other_file_says_what_a_detector_is(tmp_path, content):
    (tmp_path / "weights.bin").write_bytes(content)
    assert "is a file. A detector of this library is a run directory" in refused(tmp_path / "weights.bin")


def test_an_exported_model_gives_no_maps(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"")
    assert "is an ONNX model, which gives no feature maps" in refused(tmp_path / "model.onnx")
