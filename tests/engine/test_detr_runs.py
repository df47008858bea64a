"""Runs of detection transformers: training, distillation, resuming, evaluation and prediction."""

import json

import pytest
import yaml

from defeat.assembly.automatic import optimizer_advice
from defeat.detector import load, save_model
from defeat.inference.evaluate import evaluate
from tests.detector.equal_to_transformers import student_that_inherits
from tests.detector.tiny import images, needs_transformers
from tests.engine.test_resume import stop_after
from tests.engine.tiny_runs import CLASSES, lines, save_teacher, settings, tiny_run, weights

pytestmark = [needs_transformers, pytest.mark.slow]
ADAMW = {"optimizer": "adamw", "lr": 1e-4}


def test_a_resumed_run_with_queries_gives_the_same_student(small_demo, tmp_path, monkeypatch):
    teacher = save_teacher(tmp_path / "teacher", "rt_detr", neck_channels=16)
    given = {"method": "detr", "ema": 0.9, **ADAMW}
    whole = tiny_run(tmp_path / "whole", "d_fine", teacher, **given)
    terms = {name.removeprefix("train/") for name in lines(whole.folder)[0]}
    assert {"query_class", "query_box", "query_giou", "encoder_class", "denoising"} <= terms
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert not tiny_run(tmp_path / "parts", "d_fine", teacher, **given).finished
    parts = tiny_run(tmp_path / "parts", "d_fine", teacher, **given, resume=True)
    assert weights(parts.folder) == weights(whole.folder)


def test_a_trained_student_is_evaluated_and_predicts_without_its_data(small_demo, tmp_path):
    run = tiny_run(tmp_path / "run", "d_fine", **ADAMW, max_steps=2, precision="bf16-mixed")
    description = json.loads((run.folder / "model.json").read_text())
    assert description["options"]["config"]["model_type"] == "d_fine"
    detector = load(run.folder)
    assert detector.info.classes == CLASSES
    assert evaluate(str(run.folder), split="val").metrics.keys() >= {"AP", "AP50"}
    assert len(detector.predict(images((48, 80)))) == 1


def test_a_run_with_another_optimiser_than_the_published_says_so(tmp_path):
    assert optimizer_advice(settings(tmp_path, "retinanet")) == []
    assert optimizer_advice(settings(tmp_path, "d_fine", **ADAMW)) == []
    assert optimizer_advice(settings(tmp_path, "d_fine")) == [
        "d_fine was published with adamw, not sgd: give --optimizer adamw."
    ]


def test_by_default_the_optimiser_is_the_published_one(small_demo, tmp_path):
    folder = tiny_run(tmp_path / "run", "d_fine", optimizer="auto", lr="auto", max_steps=1).folder
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert (written["optimizer"], written["lr"]) == ("adamw", pytest.approx(1e-4))  # for 2 images per step
    assert optimizer_advice(settings(tmp_path, "d_fine", optimizer="auto")) == []


def test_a_student_of_the_same_family_inherits_encoder_and_decoder(small_demo, tmp_path):
    student = student_that_inherits("d_fine")
    save_model(student, tmp_path)
