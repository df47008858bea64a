"""The teacher of the demo."""

import json
from importlib.resources import files

import torch

from defeat.demo import SHARED, TEACHER, TEACHER_FILES, save_in_half_precision
from defeat.detector import load
from defeat.engine.guards import fingerprint
from tests.detector.tiny import images
from tests.engine.tiny_runs import tiny_run

FOLDER = files("defeat") / TEACHER_FILES


def test_the_teacher_is_small_and_matches_its_files():
    results = json.loads((FOLDER / "results.json").read_text())
    teacher = load(FOLDER)
    assert results["model_bytes"] == (FOLDER / "model.safetensors").stat().st_size < 8e6
    assert results["fingerprint"] == fingerprint(teacher)
    assert results["curve"][-1]["AP"] == results["metrics"]["AP"] > 50
    assert teacher.spec.neck_channels == SHARED["neck_channels"]
    assert (results["data"], results["epochs"]) == (TEACHER["data"], TEACHER["epochs"])


def test_half_precision_changes_weights_by_rounding_only(small_demo, tmp_path):
    run = tiny_run(tmp_path / "run", "faster_rcnn", max_steps=2).folder
    save_in_half_precision(run, tmp_path / "half")
    full, half = load(run), load(tmp_path / "half")
    (image,) = images((64, 64))
    assert (tmp_path / "half" / "model.safetensors").stat().st_size < 0.6 * (run / "model.safetensors").stat().st_size
    for name, value in half.state_dict().items():
        # Half precision has 11 bits, and steps of 6e-8 near zero.
        torch.testing.assert_close(value, full.state_dict()[name], rtol=2**-11, atol=6e-8, msg=name)
    assert len(half.predict([image])) == 1
