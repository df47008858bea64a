"""Measure whether torch.compile makes a student's training step faster on this machine.

    python -m benchmarks.compiled_step [--family faster_rcnn] [--dynamic] [--repeats 12] [--out FILE]

The student's backbone and neck are compiled: 2 noise images of one size, one thread, interleaved with the same step
as it is.
"""

import argparse
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from benchmarks.class_growth import detector, noise
from benchmarks.measure import publish, rounds
from benchmarks.speed.bare import learn, optimizer_of
from benchmarks.speed.work import NECK_CHANNELS
from defeat.detector import Detector
from defeat.engine.step import total_loss

CLASSES = 20


def step_of(student: Detector) -> Callable[[], None]:
    """A training step on fixed images."""
    optimizer, batch = optimizer_of(student), noise(CLASSES)
    return lambda: learn(optimizer, total_loss(student.forward_train(batch).losses))


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="faster_rcnn")
    parser.add_argument("--dynamic", action="store_true", help="compile for any size")
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    given = parser.parse_args()
    torch.set_num_threads(1)
    student = detector(given.family, "tf_efficientnet_lite0", NECK_CHANNELS["student"], CLASSES).train()
    compiled = deepcopy(student)
    compiled.backbone.compile(dynamic=True if given.dynamic else None)
    steps = {"as it is": step_of(student), "compiled": step_of(compiled)}
    start = perf_counter()
    steps["compiled"]()
    first = perf_counter() - start
    times = rounds(steps, given.repeats)
    table = {f"{name}, ms": round(float(np.median(values)), 1) for name, values in times.items()}
    table |= {
        "compiled : as it is": round(float(np.median(times["compiled"] / times["as it is"])), 3),
        "compilation, s": round(first, 1),
    }
    publish({given.family: table}, {name: value for name, value in vars(given).items() if name != "out"}, given.out)


if __name__ == "__main__":
    main()
