"""The demo: a student trained without and with a teacher, and the gain, in minutes."""

import json
from importlib.resources import as_file, files
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console
from torch import Tensor

from defeat.assembly.run import run
from defeat.assembly.settings import TrainSettings
from defeat.benchmark import bench
from defeat.detector import Detector, load_detector, save_model
from defeat.detector.weights import find_weights
from defeat.engine.guards import fingerprint
from defeat.errors import InputError, missing_package
from defeat.files import write_atomically
from defeat.report.pictures import save_most_helped
from defeat.report.runs import read_run
from defeat.report.variants import VariantResult
from defeat.settings import at_least

TEACHER_FILES = "demo_teacher"  # a run directory inside the package, with weights in half precision
METHODS = "none,defeat+inherit"
SHARED: dict[str, Any] = {
    "detector": "faster_rcnn",
    "size": 96,
    "grad_clip": 5.0,  # of 2, 5 and 35 the best for the teacher on held-out scenes
    "workers": 0,
    "neck_channels": 64,
    # Small scenes need small anchors, and few proposals.
    "detector_options": {
        "anchor_sizes": [8, 16, 32, 64, 128],
        "rpn_pre_nms_top_n_train": 200,
        "rpn_post_nms_top_n_train": 200,
        "rpn_pre_nms_top_n_test": 200,
        "rpn_post_nms_top_n_test": 100,
        "box_batch_size_per_image": 64,
        "sampling_ratio": 1,
        "box_representation_size": 128,
    },
}
# Eight times as many scenes as the student's, and other ones: in practice, too, the large model has seen more data.
TEACHER: dict[str, Any] = {
    "data": "demo:1000:2000",
    "eval_split": "val",
    "backbone": "tf_efficientnet_lite0",
    "epochs": 14,
    "batch_size": 16,
    "lr": 0.025,
    "schedule": "cosine",
    "eval_every": 2,
}
# A tiny residual network, trained from random weights.
STUDENT: dict[str, Any] = {
    "eval_split": "test",
    "backbone": "test_resnet",
    "weights": "none",
    "epochs": 5,
    "batch_size": 4,
    "lr": 0.02,
    "eval_every": 0,  # once, at the end
}


def demo(out: str = "demo-runs", seed: int = 0, seeds: int = 3, jobs: int = 2, train_teacher: bool = False) -> None:
    """Train a small detector on drawn scenes, with and without a teacher, and print the gain.

    The teacher is part of the package. The student is trained from random weights.

    Args:
        out: folder for the runs, the report and the picture.
        seed: seed of the scenes to train and to test on.
        seeds: number of trainings per student, with different initial weights and order of the data.
        jobs: runs to train in parallel, each in its own process.
        train_teacher: train the teacher again instead, into the folder `out`; takes about an hour on two cores.

    Raises:
        InputError: the folder is not empty, a package is missing, or a run failed.
        KeyboardInterrupt: the user stopped it.
    """
    start = perf_counter()
    at_least("seed", seed, 0, 2**32 - 1)
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not an empty folder: remove it, or give another --out.")
    console = Console()
    if train_teacher:
        _train_teacher(folder, console)
        return
    with as_file(files("defeat") / TEACHER_FILES) as teacher:
        trained = load_detector(teacher)
        data = f"demo:{seed}" if seed else "demo"
        settings = SHARED | STUDENT | {"data": data, "teacher": str(teacher), "out": out}
        console.print(
            f"The teacher of this package ({_millions(trained)} M parameters) helps a student with random weights. "
            f"{seeds} seeds with and {seeds} without it, {jobs} runs in parallel; about four minutes on two cores.",
            highlight=False,
        )
        result = bench(methods=METHODS, seeds=seeds, jobs=jobs, console=console, **settings)
        if result.stopped:
            raise KeyboardInterrupt
        if result.result is None or result.unfinished:
            raise InputError(f"Not every run is finished ({', '.join(result.unfinished)}); see the logs in {folder}.")
        picture = _picture(folder, trained)
    distilled = next(other for other in result.result.others if other.name == METHODS.rsplit(",", maxsplit=1)[-1])
    console.rule("Gain from distillation", align="left")
    _print_gain(result.result.baseline, distilled, console)
    console.print(f"The test scene with the largest gain, as each detector sees it: {picture}", highlight=False)
    console.print(f"The whole comparison: {folder / 'report.html'} ({perf_counter() - start:.0f} s)", highlight=False)
    console.print(
        "\nNext, train on your own data (VOC, COCO, YOLO, labelme, VIA or CVAT):\n"
        "  defeat train --data DATA --backbone tf_efficientnet_lite2 --size 320 --out runs/teacher",
        highlight=False,
    )


def _print_gain(baseline: VariantResult, distilled: VariantResult, console: Console) -> None:
    gain = distilled.gain
    assert gain is not None
    interval = ""
    if gain.over_images is not None:
        interval = f", 95 % interval over test images {gain.over_images.low:+.1f} to {gain.over_images.high:+.1f}"
    console.print(
        f"AP {baseline.mean:.1f} without a teacher, {distilled.mean:.1f} with it: "
        f"[bold]{gain.mean:+.1f}[/bold]{interval}",
        highlight=False,
    )


def _picture(folder: Path, teacher: Detector) -> Path:
    """Draw a test scene with the detections of teacher, baseline and distilled student."""
    baseline, distilled = folder / "none-seed0", folder / "defeat-inherit-seed0"
    detectors = {"teacher": teacher, "baseline": load_detector(baseline), "distilled": load_detector(distilled)}
    path = folder / "scene.png"
    save_most_helped(read_run(distilled), read_run(baseline), detectors, path)
    return path


def _train_teacher(folder: Path, console: Console) -> None:
    """Train the teacher of the package, and save it in half precision."""
    if find_weights(TEACHER["backbone"], "auto").kind != "package":
        raise missing_package("Training the teacher", "pretrained weights", "weights")
    result = run(TrainSettings(**SHARED | TEACHER, out=str(folder)), console)
    if not result.finished:
        raise KeyboardInterrupt
    half = folder / TEACHER_FILES
    save_in_half_precision(folder, half)
    console.print(f"The teacher in half precision is in {half}.", highlight=False)


def save_in_half_precision(run: Path, folder: Path) -> None:
    """Save the detector of a run in half precision, with the run's settings, log and metrics.

    The metrics remain those measured in full precision.
    """
    folder.mkdir(exist_ok=True)
    trained = load_detector(run)
    save_model(trained, folder, {name: _half(value) for name, value in trained.state_dict().items()})
    for name in ("config.yaml", "metrics.jsonl"):
        write_atomically(folder / name, (run / name).read_bytes())
    results = json.loads((run / "results.json").read_text())
    results |= {
        "fingerprint": fingerprint(load_detector(folder)),
        "model_bytes": (folder / "model.safetensors").stat().st_size,
    }
    write_atomically(folder / "results.json", (json.dumps(results, indent=2) + "\n").encode())


def _half(value: Tensor) -> Tensor:
    return value.half() if value.is_floating_point() else value


def _millions(detector: Detector) -> str:
    return f"{sum(weight.numel() for weight in detector.parameters()) / 1e6:.1f}"
