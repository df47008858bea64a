"""Runs of a few steps on a few drawn scenes, and teachers that were never trained."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors.torch import load_file

from defeat.assembly.run import RunResult, run
from defeat.assembly.settings import DistillSettings, TrainSettings
from defeat.detector import save_model
from tests.detector.tiny import BACKBONE, FIXED_BACKBONES, tiny_detector, tiny_options

CLASSES = ("cross", "disc", "ring", "square", "star", "triangle")


def settings(out: Path, family: str = "retinanet", teacher: Path | None = None, **changes: Any) -> TrainSettings:
    given: dict[str, Any] = {
        "data": "demo",
        "out": str(out),
        "detector": family,
        "backbone": BACKBONE,
        "size": 64,
        "max_size": 96,
        "neck_channels": 16,
        "optimizer": "sgd",
        "lr": 0.01,
        "epochs": 1,
        "batch_size": 2,
        "workers": 0,
        "weights": "none",
        "log_every": 1,
        "eval_every": 0,
        "accelerator": "cpu",
        "detector_options": tiny_options(family),
    }
    given |= changes
    if family in FIXED_BACKBONES:
        given |= {"backbone": FIXED_BACKBONES[family], "neck_channels": "auto"}
    if teacher is None:
        return TrainSettings(**given)
    return DistillSettings(**{"teacher": str(teacher), "allow_weak_teacher": True} | given)


def shared_settings(template: TrainSettings) -> dict[str, Any]:
    """What all cells of a comparison share of the settings of a run."""
    given = template.to_dict()
    for name in ("method", "method_options", "seed", "expected"):
        del given[name]
    return given


def tiny_run(out: Path, family: str = "retinanet", teacher: Path | None = None, **changes: Any) -> RunResult:
    return run(settings(out, family, teacher, **changes), Console(quiet=True))


def save_teacher(folder: Path, family: str = "retinanet", **spec: Any) -> Path:
    folder.mkdir(parents=True)
    save_model(tiny_detector(family, seed=7, **{"classes": CLASSES, "neck_channels": 24} | spec), folder)
    return folder


def weights(folder: Path) -> str:
    """Hash of the saved model: a failed comparison of all its bytes would print them for minutes."""
    return sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def tensors(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())
