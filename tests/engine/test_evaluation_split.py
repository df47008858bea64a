"""Evaluation splits from which nothing follows: without objects, or made of training images."""

import json
import re
import shutil

import pytest
import torch

from defeat.assembly.settings import TrainSettings
from defeat.cli import main
from defeat.data import open_dataset
from defeat.data.dataset import shared_images
from defeat.errors import InputError
from defeat.evaluation.average_precision import Scene
from defeat.evaluation.detections import read_detections
from defeat.evaluation.mistakes import find_mistakes
from defeat.types import Detections, Target
from tests.data.folders import voc_object, write_voc
from tests.detector.tiny import BACKBONE
from tests.engine.tiny_runs import lines, results

BOX = voc_object("cat", (3, 4, 30, 20))
OPTIONS = ["--backbone", BACKBONE, "--weights", "none", "--size", "64", "--neck-channels", "16", "--batch-size", "2"]
OPTIONS += ["--workers", "0", "--detector", "retinanet", "--detector.head-norm", "none"]


def write_splits(folder, train, val):
    return write_voc(folder, {"train": train, "val": val} if val else {"train": train})


@pytest.mark.parametrize("more", [["--max-steps", "1"], ["--keep", "best", "--epochs", "2", "--eval-every", "1"]])
def test_a_split_without_objects_has_no_ap_and_a_report(tmp_path, capsys, more):
    data = write_splits(tmp_path / "data", {"a": BOX, "b": BOX}, {"c": "", "d": ""})
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "run"), *OPTIONS, *more]) == 0
    said = capsys.readouterr().err
    assert re.search(r"No image of the split 'val'\s+contains an object", said)
    assert "next to nothing" not in said
    assert results(tmp_path / "run")["metrics"]["AP"] is None
    assert (tmp_path / "run/report.html").is_file()


def test_a_run_of_fewer_steps_than_log_every_has_a_log(tmp_path):
    data = write_splits(tmp_path / "data", {"a": BOX, "b": BOX}, {"c": BOX})
    options = ["--max-steps", "1", "--log-every", "1000"]
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "run"), *OPTIONS, *options]) == 0
    assert all("train/loss" not in line for line in lines(tmp_path / "run"))


def test_mistakes_of_images_without_objects_are_false_detections():
    scene = Scene.from_image(*detection_without_object())
    mistakes = find_mistakes([scene], 1)
    assert mistakes.ap50 is None
    assert mistakes.count["missed"] == 0
    assert sum(mistakes.count.values()) == 1


def detection_without_object():
    """One detection in an image without objects."""
    target = Target(
        boxes=torch.zeros(0, 4),
        labels=torch.zeros(0, dtype=torch.int64),
        difficult=torch.zeros(0, dtype=torch.bool),
        crowd=torch.zeros(0, dtype=torch.bool),
        image_id=0,
        size=(64, 64),
    )
    return Detections(torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([0.5]), torch.tensor([0])), target


def test_evaluation_on_training_images_is_said_and_recorded(tmp_path, capsys):
    data = write_splits(tmp_path / "data", {"a": BOX, "b": BOX}, {})
    (data / "ImageSets/Main/val.txt").write_text("a\n")
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "run"), *OPTIONS, "--max-steps", "1"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "1 of the 1 images of 'val' are training images" in said
    assert results(tmp_path / "run")["training_images_evaluated"] == 1
    assert "1 of the 1 test images are training images" in (tmp_path / "run/report.html").read_text()


def test_other_images_are_not_shared(tmp_path):
    data = write_splits(tmp_path / "data", {"a": BOX, "b": BOX}, {"c": BOX})
    training, evaluation = open_dataset(data, "train"), open_dataset(data, "val")
    assert shared_images(training, evaluation) == 0
    assert shared_images(training, training) == 2


@pytest.mark.parametrize("splits", [("train",), ("trainval",), ("default",)])
def test_a_single_split_is_trained_on_with_a_share_held_out(tmp_path, capsys, splits):
    data = write_voc(tmp_path / "data", {name: dict.fromkeys("abcdefgh", BOX) for name in splits})
    words = ["train", "--data", str(data), "--out", str(tmp_path / "run"), *OPTIONS, "--max-steps", "1"]
    assert main(words) == 2
    assert re.search(
        r"no split to\s+evaluate on. Hold out a share of it with\s+--hold-out 0.2", capsys.readouterr().err
    )
    assert main([*words, "--hold-out", "0.3"]) == 0
    assert results(tmp_path / "run")["split"] == "val"
    assert 0 < results(tmp_path / "run")["images"] < 8
    assert results(tmp_path / "run")["training_images_evaluated"] == 0
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    moved = ["evaluate", str(tmp_path / "run"), "--data", str(tmp_path / "moved"), "--split", "val", "--workers", "0"]
    shutil.copytree(data, tmp_path / "moved")
    assert main(moved) == 2
    assert main([*moved, "--hold-out", "2"]) == 2
    assert "--hold-out must be a share" in capsys.readouterr().err
    found = tmp_path / "found.safetensors"
    assert main([*moved, "--hold-out", "0.3", "--detections", str(found)]) == 0
    assert len(read_detections(found)) == results(tmp_path / "run")["images"]
    assert json.loads((tmp_path / "run/results.json").read_text())["data"] == str(data)


def test_hold_out_is_a_share():
    for share in ("0", "1", "-0.2", "20"):
        with pytest.raises(InputError, match="--hold-out must be a share between 0 and 1"):
            TrainSettings(data="demo", out="x", hold_out=float(share))
