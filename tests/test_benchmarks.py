"""The benchmarks run; their measurements are not checked."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SMALL = ["--size", "64", "--batch", "2"]


def result(module, arguments, folder):
    """Content of the file that a benchmark writes."""
    out = folder / "result.json"
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments, "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("family", ["faster_rcnn", "retinanet"])
def test_a_step_is_compared_with_its_limit_and_other_implementations(family, tmp_path):
    content = result("speed", ["--data", "demo", "--family", family, *SMALL, "--repeats", "1"], tmp_path)
    milliseconds, ratios = content["milliseconds"], content["ratios"]
    assert {"student's step", "teacher's forward", "torchvision", "train", "distill"} <= milliseconds.keys()
    assert all(value > 0 for value in [*milliseconds.values(), *content["peak_mib"].values()])
    limit = milliseconds["student's step"] + milliseconds["teacher's forward"]
    assert ratios["distill : limit"] == pytest.approx(milliseconds["distill"] / limit, rel=0.02)


@pytest.mark.slow
def test_cases_are_chosen_by_name(tmp_path):
    arguments = ["--data", "demo", *SMALL, "--repeats", "1", "--only"]
    content = result("speed", [*arguments, "student's step", "distill"], tmp_path)
    assert content["milliseconds"].keys() == {"student's step", "distill"}
    assert content["ratios"].keys() == {"distill : student's step"}
    command = [sys.executable, "-m", "benchmarks.speed", *arguments, "distil"]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "Unknown case 'distil'. Did you mean 'distill'?" in refused.stderr


@pytest.mark.slow
def test_growth_waiting_and_start_are_measured(tmp_path):
    growth = result("speed.growth", ["--data", "demo", *SMALL, "--repeats", "1"], tmp_path)["milliseconds"]
    assert {"alone, 1000 boxes an image", "regions, 1000 boxes an image", "distilled, 8 images"} <= growth.keys()
    waiting = result("speed.waiting", ["--data", "demo", *SMALL, "--steps", "2"], tmp_path)["seconds"]
    assert 0 <= waiting["share of waiting in percent"] < 100
    start = result("speed.start", ["--data", "demo", "--size", "64", "--repeats", "1"], tmp_path)["seconds"]
    assert start["defeat --help"] < start["first step of defeat train"]


@pytest.mark.slow
def test_timed_evaluations_agree(tmp_path):
    arguments = ["--images", "40", "--detections", "60", "--classes", "5", "--repeats", "1"]
    precision = result("speed.evaluation", arguments, tmp_path)["AP"]
    assert precision["defeat"] == pytest.approx(precision["pycocotools"], abs=0.01)
