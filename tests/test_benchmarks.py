"""The benchmarks run; what they measure is not judged here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("family", ["faster_rcnn", "retinanet"])
def test_a_step_is_held_against_its_limit_and_other_ways(family, tmp_path):
    words = ["--data", "demo", "--family", family, "--size", "64", "--batch", "2", "--repeats", "1"]
    out = tmp_path / "speed.json"
    command = [sys.executable, "-m", "benchmarks.speed", *words, "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    milliseconds, ratios = found["milliseconds"], found["ratios"]
    assert {"student's step", "teacher's forward", "torchvision", "train", "distill"} <= milliseconds.keys()
    assert all(value > 0 for value in [*milliseconds.values(), *found["peak_mib"].values()])
    limit = milliseconds["student's step"] + milliseconds["teacher's forward"]
    assert ratios["distill : limit"] == pytest.approx(milliseconds["distill"] / limit, rel=0.02)
