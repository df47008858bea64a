"""Measure steps of training and distillation against their limit and against other ways to do the same.

    python -m benchmarks.speed [--data VOC_FOLDER] [--family faster_rcnn] [--size 224] [--loading] [--out FILE]

All cases take turns in one process with one thread (or on the GPU), on the same images; what is compared are medians.
The limit is the student's training step and the teacher's forward pass, each timed alone; that of memory is the
student's step, the teacher's weights, and 1.1 times the maps of its neck. `train` and `distill` are
steps of whole runs, with everything that their loop does around a step; the others are bare functions. Without
--loading every image is decoded beforehand; with it, each step decodes its own, for all cases alike. Where
torchdistill is installed (pip install torchdistill, in an environment of its own) it is measured as well.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from benchmarks.measure import interleaved, peak_memory, publish
from benchmarks.speed.bare import (
    distilled_step,
    head_step,
    kept_maps_step,
    published_arithmetic_step,
    student_step,
    teacher_bytes,
    teacher_step,
    torchvision_step,
)
from benchmarks.speed.loops import run_steps, stepping
from benchmarks.speed.rival import installed, rival_step
from benchmarks.speed.work import SMALL, Work

TEACHER, STUDENT, PUBLISHED = "teacher's forward", "student's step", "published arithmetic"
DISTILLED, KEPT, HEAD = "distilled step", "distilled step, kept maps", "distilled step, neck and head"
TORCHVISION, RIVAL = "torchvision", "torchdistill"
MEMORY = {STUDENT: student_step, DISTILLED: distilled_step, HEAD: head_step, PUBLISHED: published_arithmetic_step}


def measure(work: Work, repeats: int, loading: bool) -> dict[str, float]:
    """Median milliseconds of a step of each case."""
    kept = not loading
    if kept:
        work.decode(repeats + 1)
    steps = {
        STUDENT: student_step(work, kept),
        TEACHER: teacher_step(work),
        "teacher's whole forward": teacher_step(work, whole=True),
        DISTILLED: distilled_step(work, kept),
        HEAD: head_step(work, kept),
        PUBLISHED: published_arithmetic_step(work, kept),
        TORCHVISION: torchvision_step(work, kept),
    }
    if installed():
        steps[RIVAL] = rival_step(work, kept)
    with tempfile.TemporaryDirectory() as folder, stepping(kept):
        steps[KEPT] = kept_maps_step(work, Path(folder) / "maps", repeats + 1, kept)
        runs = run_steps(work, Path(folder))
        try:
            return interleaved(steps | {name: one.step for name, one in runs.items()}, repeats)
        finally:
            for one in runs.values():
                one.end()


def ratios(found: dict[str, float]) -> dict[str, float]:
    """The medians as ratios."""
    limit = found[STUDENT] + found[TEACHER]
    rival = {f"{RIVAL} : distill": found[RIVAL] / found["distill"]} if RIVAL in found else {}
    return rival | {
        "distill : limit": found["distill"] / limit,
        f"{DISTILLED} : limit": found[DISTILLED] / limit,
        **{f"{name} : {STUDENT}": found[name] / found[STUDENT] for name in (DISTILLED, KEPT, HEAD)},
        "train : student's step": found["train"] / found[STUDENT],
        "train : torchvision": found["train"] / found[TORCHVISION],
        "published arithmetic : distill": found[PUBLISHED] / found["distill"],
    }


def memory(work: Work) -> dict[str, float]:
    """Peak memory in MiB, each case in a process of its own; and the limit that the distilled step is held against."""
    peaks = {name: peak_memory(make, work) for name, make in MEMORY.items()}
    weights, maps = teacher_bytes(work)
    return peaks | {"limit of the distilled step": peaks[STUDENT] + (weights + 1.1 * maps) / 2**20}


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/voc15", help="a data set with a split `train`")
    parser.add_argument("--family", default="faster_rcnn", choices=sorted(SMALL))
    parser.add_argument("--student", default="tf_efficientnet_lite0")
    parser.add_argument("--teacher", default="tf_efficientnet_lite2")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="32-true", choices=["32-true", "bf16-mixed"])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--loading", action="store_true", help="decode images within the steps")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    given = vars(parser.parse_args())
    repeats, loading, out = given.pop("repeats"), given.pop("loading"), given.pop("out")
    torch.set_num_threads(1)
    work = Work(**given)
    found = measure(work, repeats, loading)
    tables = {
        "milliseconds": {name: round(value, 1) for name, value in found.items()},
        "ratios": {name: round(value, 3) for name, value in ratios(found).items()},
        "peak_mib": {name: round(value) for name, value in memory(work).items()},
    }
    publish(tables, work.to_dict() | {"repeats": repeats, "loading": loading}, out)


if __name__ == "__main__":
    main()
