"""Compare distillation of YOLOv9 by this package and by LibreYOLO, on a data set of photographs such as BCCD.

    python benchmarks/yolo_comparison.py DATA RUNS [--epochs 8] [--seeds 2]

A `yolo9_s` is trained and teaches a `yolo9_t`; both begin with random weights. The same teacher is given to both tools.
All students see the same images, as often, in batches of the same size, and are evaluated by this package on the split
`test`. Otherwise each tool has its own defaults: optimiser, schedule, augmentation, EMA; LibreYOLO trains with its
auxiliary branch and distils with MGD. The two networks have necks of other widths, so that nothing is inherited.
Nothing is chosen on the split `test`.

Each training is a process of its own; those whose result is in RUNS are not repeated. The cost of a step is the median
CPU time between two steps of the optimiser. Writes `results/yolo_comparison.json`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import defeat
from defeat.engine.provenance import commit, machine, versions

RESULT = Path(__file__).parent / "results" / "yolo_comparison.json"
TEACHER, STUDENT = "yolo9_s", "yolo9_t"
SIZE = 160  # pixels of the long side
BATCH = 4
KINDS = {  # by name: tool, and whether there is a teacher
    "defeat, alone": ("defeat", False),
    "defeat": ("defeat", True),
    "libreyolo, alone": ("libreyolo", False),
    "libreyolo": ("libreyolo", True),
}


def train_ours(
    data: Path,
    out: Path,
    epochs: int,
    seed: int,
    *,
    teacher: Path | None = None,
    backbone: str = STUDENT,
    eval_split: str = "test",
) -> None:
    """Train a detector with this package."""
    shared: dict[str, Any] = {
        "data": str(data),
        "detector": "yolo9",
        "backbone": backbone,
        "weights": "none",
        "size": SIZE,
        "max_size": SIZE,
        "epochs": epochs,
        "batch_size": BATCH,
        "eval_every": 0,
        "eval_split": eval_split,
        "workers": 0,
        "seed": seed,
        "out": str(out),
        "resume": (out / "checkpoints" / "last.ckpt").is_file(),
    }
    if teacher is None:
        defeat.train(**shared)
    else:
        defeat.distill(**shared, teacher=str(teacher))


def train_theirs(data: Path, out: Path, epochs: int, seed: int, teacher: Path | None) -> Path:
    """Train a detector with LibreYOLO, from random weights; returns its last checkpoint."""
    from libreyolo import LibreYOLO9

    torch.manual_seed(seed)
    model = LibreYOLO9(None, size=STUDENT.removeprefix("yolo9_"), device="cpu")
    distilled = {} if teacher is None else {"distill_model": str(teacher)}
    model.train(
        str(data / "data.yaml"),
        epochs=epochs,
        batch=BATCH,
        imgsz=SIZE,
        device="cpu",
        workers=0,
        seed=seed,
        amp=False,
        val=False,
        project=str(out.parent),
        name=out.name,
        exist_ok=True,
        **distilled,
    )
    return out / "weights" / "last.pt"


def as_libreyolo(run: Path) -> Path:
    """Write the detector of a run as a checkpoint of LibreYOLO beside it."""
    from libreyolo.utils.serialization import wrap_libreyolo_checkpoint

    detector = defeat.load(str(run))
    names = {"backbone.body.": "backbone.", "backbone.fpn.": "neck.", "head.": "head."}
    state = {}
    for name, tensor in detector.state_dict().items():
        prefix = next(prefix for prefix in names if name.startswith(prefix))
        state[names[prefix] + name.removeprefix(prefix)] = tensor
    content = wrap_libreyolo_checkpoint(
        state,
        model_family="yolo9",
        size=detector.spec.backbone.removeprefix("yolo9_"),
        task="detect",
        nc=len(detector.info.classes),
        names=dict(enumerate(detector.info.classes)),
        imgsz=detector.info.size,
    )
    path = run.with_suffix(".pt")
    torch.save(content, path)
    return path


def evaluated(source: Path, data: Path) -> dict[str, float]:
    """AP, AP50 and AP75 on the split `test`, in percent."""
    result = defeat.evaluate(str(source), data=str(data), split="test", workers=0)
    return {name: round(result.metrics[name], 2) for name in ("AP", "AP50", "AP75")}


def run_cell(data: Path, runs: Path, epochs: int, kind: str, seed: int) -> dict[str, Any]:
    """Train and evaluate a student; the result is also written to its folder."""
    out = runs / f"{kind.replace(', ', '_').replace(' ', '_')}_{seed}"
    if (out / "cell.json").is_file():
        content: dict[str, Any] = json.loads((out / "cell.json").read_text())
        return content
    shutil.rmtree(out, ignore_errors=True)
    tool, distilled = KINDS[kind]
    teacher = runs / "teacher" if distilled else None
    times = []
    hook = register_optimizer_step_post_hook(lambda *_: times.append(time.process_time()))
    start = time.process_time()
    if tool == "defeat":
        train_ours(data, out, epochs, seed, teacher=teacher)
        trained = out
    else:
        trained = train_theirs(data, out, epochs, seed, teacher and teacher.with_suffix(".pt"))
    hook.remove()
    steps = [after - before for before, after in pairwise(times)]
    content = {
        "kind": kind,
        "seed": seed,
        **evaluated(trained, data),
        "steps": len(times),
        "cpu_seconds_per_step": round(median(steps), 3),
        "cpu_seconds": round(time.process_time() - start, 1),
    }
    (out / "cell.json").write_text(json.dumps(content, indent=1) + "\n")
    return content


def prepare(source: str, runs: Path, epochs: int) -> Path:
    """Write the data in the YOLO layout, and train the teacher; returns the folder of the data."""
    data = runs / "data"
    if not data.is_dir():
        command = [sys.executable, "-m", "defeat.cli", "data", source, "--compare", "no"]
        subprocess.run([*command, "--export", "yolo", "--export-to", str(data)], check=True)
    teacher = runs / "teacher"
    if not (teacher / "results.json").is_file():
        train_ours(data, teacher, epochs, 0, backbone=TEACHER, eval_split="val")
    if not teacher.with_suffix(".pt").is_file():
        as_libreyolo(teacher)
    return data


def main() -> None:
    """Train missing students, and write and print all results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("runs", type=Path)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--teacher-epochs", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--cell", nargs=2, metavar=("KIND", "SEED"), help="train this student only")
    given = parser.parse_args()
    runs = given.runs.resolve()
    if given.cell:
        print(run_cell(runs / "data", runs, given.epochs, given.cell[0], int(given.cell[1])))
        return
    runs.mkdir(parents=True, exist_ok=True)
    data = prepare(given.data, runs, given.teacher_epochs)
    content: dict[str, Any] = {
        "commit": commit(),
        "machine": machine(),
        "versions": versions() | {"libreyolo": version("libreyolo")},
        "settings": {"size": SIZE, "batch": BATCH, "epochs": given.epochs, "teacher_epochs": given.teacher_epochs},
        "teacher": evaluated(runs / "teacher", data),
        "cells": [],
    }
    for seed in range(given.seeds):
        for kind in KINDS:
            shared = [given.data, str(runs), "--epochs", str(given.epochs), "--cell", kind, str(seed)]
            subprocess.run([sys.executable, __file__, *shared], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
            content["cells"].append(run_cell(data, runs, given.epochs, kind, seed))
            RESULT.write_text(json.dumps(content, indent=1) + "\n")
            print(content["cells"][-1], flush=True)


if __name__ == "__main__":
    main()
