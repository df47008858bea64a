"""Measure the share of a training spent waiting for images, and the time to decode and resize images.

    python -m benchmarks.speed.waiting [--data VOC_FOLDER] [--size 224] [--workers 2] [--steps 40] [--out FILE]

All time from the end of a step to the start of the next counts as waiting, including the training loop. The first step,
before which the workers start, is excluded.
"""

import argparse
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console

from benchmarks.measure import interleaved, publish
from benchmarks.speed.loops import Enough
from benchmarks.speed.work import Work
from defeat.assembly.run import run
from defeat.data import open_dataset
from defeat.engine.module import DetectionModule


def waits(work: Work, workers: int, steps: int) -> dict[str, float]:
    """Median seconds of a step and of the wait before it, and the share of waiting in the total time."""
    begins: list[float] = []
    ends: list[float] = []
    start, end = DetectionModule.on_train_batch_start, DetectionModule.on_train_batch_end

    def starting(module: DetectionModule, *arguments: Any) -> None:
        begins.append(perf_counter())
        start(module, *arguments)

    def ending(module: DetectionModule, *arguments: Any) -> None:
        end(module, *arguments)
        ends.append(perf_counter())
        if len(ends) > steps:
            raise Enough

    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(DetectionModule, "on_train_batch_start", starting),
        patch.object(DetectionModule, "on_train_batch_end", ending),
    ):
        settings = replace(work.settings(Path(folder) / "run"), workers=workers)
        with suppress(Enough):
            run(settings, Console(quiet=True))
    waited = [begin - finish for begin, finish in zip(begins[1:], ends, strict=False)]
    worked = [finish - begin for begin, finish in zip(begins[1:], ends[1:], strict=True)]
    share = 100 * sum(waited) / (sum(waited) + sum(worked))
    return {"step": median(worked), "wait": median(waited), "share of waiting in percent": share}


def image_costs(work: Work, repeats: int) -> dict[str, float]:
    """Median milliseconds to decode a batch of images in one process, and to resize and pad it."""
    images, student = open_dataset(work.data, "train"), work.detector("student")
    decoded = [images[index] for index in range(work.batch)]
    return interleaved(
        {
            "decode": lambda: [images[index] for index in range(work.batch)],
            "resize and pad": lambda: student.prepare(*map(list, zip(*decoded, strict=True))),
        },
        repeats,
    )


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/voc15", help="a data set with a split `train`")
    parser.add_argument("--family", default="faster_rcnn")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    given = vars(parser.parse_args())
    workers, steps, out = given.pop("workers"), given.pop("steps"), given.pop("out")
    torch.set_num_threads(1)
    work = Work(**given)
    tables = {"seconds": waits(work, workers, steps), "milliseconds": image_costs(work, steps)}
    rounded = {title: {name: round(value, 4) for name, value in table.items()} for title, table in tables.items()}
    publish(rounded, work.to_dict() | {"workers": workers, "steps": steps}, out)


if __name__ == "__main__":
    main()
