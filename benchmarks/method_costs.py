"""Measure what a training step with each method costs, relative to the student's own step.

    python -m benchmarks.method_costs [--detector retinanet] [--size 160] [--batch 8] [--repeats 10] [--out FILE]

Student tf_efficientnet_lite0, teacher tf_efficientnet_lite2 with random weights, both with 64 neck channels, on drawn
scenes: the pair of `benchmarks/accuracy/zoo.sh`. All methods are interleaved in one process with one thread; ratios are
computed per round, and their medians reported. A method that does not fit the pair is left out.
"""

import argparse
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import publish, rounds
from defeat.data import open_dataset
from defeat.detector import Detector, build
from defeat.detector.frozen import frozen
from defeat.distillation import METHODS, build_method
from defeat.engine.experiment import Distillation
from defeat.engine.step import step_losses, total_loss
from defeat.errors import InputError
from defeat.types import Batch, Progress

BASELINE, COMBINED = "none", ("crosskd+pkd", "defeat+bckd")
OPTIONS = {
    "boxes": {"least_score": 0.0, "unconfirmed": "keep"}
}  # a teacher with random weights detects nothing with a high score
LATE = Progress(step=1, steps=2, epoch=1, epochs=2)


def detector(backbone: str, given: argparse.Namespace, classes: tuple[str, ...]) -> Detector:
    """A detector with random weights."""
    return build(given.detector, "none", backbone=backbone, classes=classes, size=given.size, neck_channels=64)


def step_of(student: Detector, batch: Batch, distillation: Distillation | None) -> Callable[[], None]:
    """A function that computes the losses of a step and their gradients, with a student of its own."""
    own = deepcopy(student).train()
    weights = list(own.parameters()) + ([] if distillation is None else list(distillation.method.parameters()))

    def step() -> None:
        for weight in weights:
            weight.grad = None
        output, terms = step_losses(own, batch, LATE, distillation)
        total_loss(output.losses | terms).backward()

    return step


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", default="retinanet")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = open_dataset("demo", "train")
    student = detector("tf_efficientnet_lite0", given, data.classes)
    teacher: Any = frozen(detector("tf_efficientnet_lite2", given, data.classes))
    images, targets = zip(*(data[index] for index in range(given.batch)), strict=True)
    batch = student.prepare(list(images), list(targets))
    steps = {BASELINE: step_of(student, batch, None)}
    left_out = {}
    for name in (*METHODS, *COMBINED):
        try:
            method = build_method(name, student.info, teacher.info, OPTIONS.get(name, {}))
        except InputError as error:
            left_out[name] = str(error)
            continue
        steps[name] = step_of(student, batch, Distillation(teacher, method))
    times = rounds(steps, given.repeats)
    tables = {
        "milliseconds": {name: round(float(np.median(values)), 1) for name, values in times.items()},
        "ratios": {name: round(float(np.median(values / times[BASELINE])), 2) for name, values in times.items()},
    }
    publish(tables, {name: value for name, value in vars(given).items() if name != "out"}, given.out)
    for name, reason in left_out.items():
        print(f"{name} is left out: {reason}")


if __name__ == "__main__":
    main()
