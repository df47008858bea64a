"""The detections file of a run."""

import json

import numpy as np
import pytest

from defeat.errors import InputError
from defeat.evaluation.detections import read_detections
from defeat.evaluation.matching import average_precision_of_samples, match_scenes
from tests.engine.tiny_runs import CLASSES, tiny_run

pytestmark = pytest.mark.usefixtures("small_demo")


def test_the_average_precision_of_the_saved_detections_is_that_of_the_run(tmp_path):
    tiny_run(tmp_path / "run", "faster_rcnn", epochs=3, lr=0.05)
    scenes = read_detections(tmp_path / "run" / "detections.safetensors")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert len(scenes) == results["images"] == 4
    precision = average_precision_of_samples(match_scenes(scenes, len(CLASSES)), np.ones((1, 4), dtype=np.int64))
    assert 100 * np.nanmean(precision) == pytest.approx(results["metrics"]["AP"], abs=1e-9)
    assert results["metrics"]["AP"] > 0


def test_missing_or_damaged_detections_are_reported(tmp_path):
    with pytest.raises(InputError, match=r"is missing; `defeat evaluate .* --detections"):
        read_detections(tmp_path / "detections.safetensors")
    (tmp_path / "detections.safetensors").write_bytes(b"half")
    with pytest.raises(InputError, match="is damaged; `defeat evaluate"):
        read_detections(tmp_path / "detections.safetensors")
