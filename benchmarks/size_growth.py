"""Measure how the cost of a step and of a prediction grows with the size of the image, up to 4k.

    python -m benchmarks.size_growth [--family retinanet] [--steps 224 448 896 1792] [--predictions 224 .. 3584]

One square noise image with 10 boxes, one thread. Steps and predictions of one size are measured in a new process, with
their memory beyond that of the detectors and the image. Per pixel, neither time nor memory may grow.
"""

import argparse
import multiprocessing
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from benchmarks.class_growth import detector, peak_memory, predict
from benchmarks.measure import publish
from benchmarks.speed.growth import batch_of, steps_on
from benchmarks.speed.work import NECK_CHANNELS, SMALL
from defeat.distillation import DeFeat

CLASSES, BOXES, REPEATS = 20, 10, 3


def _measure(pipe: Connection, family: str, size: int, kind: str) -> None:
    torch.set_num_threads(1)
    student = detector(family, "tf_efficientnet_lite0", NECK_CHANNELS["student"], CLASSES, size)
    teacher = detector(family, "tf_efficientnet_lite2", NECK_CHANNELS["teacher"], CLASSES, size)
    batch = batch_of(size, 1, BOXES, CLASSES, sides=(size // 16, size // 4))
    step: Callable[[], object] = partial(predict, student.eval(), list(batch.images))
    if kind != "prediction":
        teacher.eval().requires_grad_(False)
        both = steps_on(student.train(), teacher, DeFeat(student.info, teacher.info), batch)
        step = both[kind == "distilled step"]
    before, times = peak_memory(), []
    for _ in range(REPEATS):
        start = perf_counter()
        step()
        times.append(perf_counter() - start)
    pipe.send((1000 * median(times), peak_memory() - before))


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=list(SMALL), default="retinanet")
    parser.add_argument("--steps", type=int, nargs="+", default=[224, 448, 896, 1792])
    parser.add_argument("--predictions", type=int, nargs="+", default=[224, 448, 896, 1792, 3584])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    given = parser.parse_args()
    sizes = {"baseline step": given.steps, "distilled step": given.steps, "prediction": given.predictions}
    context = multiprocessing.get_context("spawn")
    tables: dict[str, dict[str, float]] = {"milliseconds": {}, "MiB": {}, "nanoseconds_per_pixel": {}}
    for kind, of_kind in sizes.items():
        for size in of_kind:
            receiver, sender = context.Pipe()
            process = context.Process(target=_measure, args=(sender, given.family, size, kind))
            process.start()
            milliseconds, memory = receiver.recv()
            process.join()
            name = f"{kind}, {size} px"
            tables["milliseconds"][name], tables["MiB"][name] = round(milliseconds, 1), round(memory)
            tables["nanoseconds_per_pixel"][name] = round(1e6 * milliseconds / size**2)
    publish(tables, {"family": given.family, "boxes": BOXES, "repeats": REPEATS}, given.out)


if __name__ == "__main__":
    main()
