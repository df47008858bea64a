"""Run directories with invented figures."""

import json
from pathlib import Path
from typing import Any

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "voc07_ap50", "voc_ap50")


def write_run(folder: Path, ap: float, **changes: Any) -> Path:
    """Write a run whose AP is `ap`; `changes` replace entries of `results.json`, `size` that of `model.json`."""
    folder.mkdir(parents=True)
    model = {"format": 1, "family": "faster_rcnn", "backbone": "resnet18", "size": changes.pop("size", 320)}
    log = changes.pop("log", None) or _log(ap)
    results: dict[str, Any] = {
        "command": "train",
        "name": folder.name,
        "family": "faster_rcnn",
        "backbone": "resnet18",
        "method": None,
        "teacher": None,
        "data": "some/data",
        "split": "test",
        "data_fingerprint": "f00d",
        "classes": ["cat", "dog"],
        "metrics": dict.fromkeys(FIGURES, ap) | {"APs": None},
        "per_class": {"cat": {"AP": ap + 1}, "dog": {"AP": ap - 1}},
        "parameters": 12_500_000,
        "gflops": 20.25,
        "latency_ms": 41.0,
        "model_bytes": 50_000_000,
        "epochs": 12,
        "steps": 1200,
        "seed": 0,
        "wall_seconds": 4000.0,
        "train_seconds": 3725.0,
        "step_ms_median": 300.0,
        "versions": {"torch": "2.11"},
        "commit": "abc123",
        "machine": {"cpu": "some CPU"},
    }
    results |= changes
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "model.json").write_text(json.dumps(model))
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    return folder


def _log(ap: float) -> list[dict[str, float]]:
    log: list[dict[str, float]] = []
    for epoch in range(1, 13):
        step = 100 * epoch
        log.append({"step": step, "epoch": epoch, "train/loss": 3 / epoch, "train/loss_classifier": 1 / epoch})
        log.append({"step": step, "epoch": epoch, "val/AP": ap * (1 - 0.7**epoch), "val/AP50": ap})
    return log


def write_story(folder: Path, **distilled: Any) -> list[Path]:
    """A teacher with AP 40, a baseline with 30, and the distilled student with 34."""
    teacher = write_run(folder / "teacher", 40.0, backbone="resnet101", parameters=60_000_000, latency_ms=164.0)
    baseline = write_run(folder / "baseline", 30.0)
    changes: dict[str, Any] = {"command": "distill", "method": "defeat", "teacher": str(teacher)}
    return [write_run(folder / "distilled", **({"ap": 34.0} | changes | distilled)), baseline, teacher]
