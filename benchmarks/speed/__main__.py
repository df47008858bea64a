"""Measure steps of training and distillation, compared with their limit and with other implementations.

    python -m benchmarks.speed [--data VOC_FOLDER] [--family faster_rcnn] [--size 224] [--loading] [--out FILE]

All cases are interleaved in one process with one thread (or on the GPU), on the same images; ratios are computed per
round, and their medians reported. The limit is the sum of the student's training step and the forward pass of the
unmodified teacher, each timed separately; that of memory is the student's step, the teacher's weights, and 1.1 times
the feature maps of its neck. `train` and `distill` are steps of whole runs, including their training loop; the others
are plain functions. With --loading, each step decodes its images; without it, they are decoded beforehand. torchdistill
is measured where it is installed (pip install torchdistill, in a separate environment).
"""

import argparse
import ctypes
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import Times, peak_memory, publish, rounds
from benchmarks.speed.bare import (
    Step,
    distilled_step,
    head_step,
    kept_maps_step,
    published_arithmetic_step,
    student_step,
    teacher_bytes,
    teacher_step,
    torchvision_step,
)
from benchmarks.speed.loops import run_step, stepping
from benchmarks.speed.rival import installed, rival_step
from benchmarks.speed.work import SMALL, Work
from defeat.errors import InputError, unknown_name

TEACHER, STUDENT, PUBLISHED = "teacher's forward", "student's step", "published arithmetic"
DISTILLED, KEPT, HEAD = "distilled step", "distilled step, kept maps", "distilled step, neck and head"
BFLOAT, KEPT_BFLOAT = "distill in bf16", "distilled step in bf16, kept maps"
TORCHVISION, RIVAL, LIMIT = "torchvision", "torchdistill", "limit"
SMALL_KERNEL = {"adaptation_kernel": 1}
M_ARENA_MAX = -8  # of glibc's malloc.h
MEMORY = {STUDENT: student_step, DISTILLED: distilled_step, HEAD: head_step, PUBLISHED: published_arithmetic_step}


def cases(work: Work, kept: bool, folder: Path, count: int, ends: ExitStack) -> dict[str, Callable[[], Step]]:
    """Functions that build the step of each case.

    Args:
        work: the workload.
        kept: whether images are decoded beforehand.
        folder: folder for runs and caches.
        count: number of batches in the caches.
        ends: stack that ends the runs.
    """
    bare = {
        STUDENT: partial(student_step, work, kept),
        TEACHER: partial(teacher_step, work),
        "teacher's whole forward": partial(teacher_step, work, whole=True),
        "teacher's forward, folded": partial(teacher_step, work, freeze=True),
        "teacher's forward, folded, bf16": partial(teacher_step, work, freeze=True, dtype=torch.bfloat16),
        DISTILLED: partial(distilled_step, work, kept),
        "distilled step in bf16": partial(distilled_step, work, kept, dtype=torch.bfloat16),
        "distilled step, 1 x 1 adaptation": partial(distilled_step, work, kept, options=SMALL_KERNEL),
        "distilled step in bf16, 1 x 1 adaptation": partial(
            distilled_step, work, kept, options=SMALL_KERNEL, dtype=torch.bfloat16
        ),
        HEAD: partial(head_step, work, kept),
        PUBLISHED: partial(published_arithmetic_step, work, kept),
        TORCHVISION: partial(torchvision_step, work, kept),
        KEPT: partial(kept_maps_step, work, folder / "maps", count, kept),
        KEPT_BFLOAT: partial(kept_maps_step, work, folder / "bf16", count, kept, torch.bfloat16),
    }
    runs = {
        "train": partial(run_step, work, folder / "train", ends),
        "distill": partial(run_step, work, folder / "distill", ends, distill=True),
        BFLOAT: partial(run_step, work, folder / "rounded", ends, distill=True, distill_precision="bf16"),
    }
    return bare | ({RIVAL: partial(rival_step, work, kept)} if installed() else {}) | runs


def measure(work: Work, repeats: int, loading: bool, only: Sequence[str] = ()) -> dict[str, Times]:
    """Milliseconds per step of each case and round; `only` selects cases by name.

    Raises:
        InputError: a name is unknown.
    """
    kept = not loading
    with tempfile.TemporaryDirectory() as folder, stepping(kept), ExitStack() as ends:
        builders = cases(work, kept, Path(folder), repeats + 1, ends)
        for name in only:
            if name not in builders:
                raise unknown_name("case", name, builders)
        if kept:
            work.decode(repeats + 1)
        return rounds({name: build() for name, build in builders.items() if not only or name in only}, repeats)


def ratios(measured: dict[str, Times]) -> dict[str, Times]:
    """Ratios per round, because a temporary slowdown of the machine affects both cases of a round."""
    complete = {STUDENT, TEACHER} <= measured.keys()
    times = measured | ({LIMIT: measured[STUDENT] + measured[TEACHER]} if complete else {})
    pairs = [(name, LIMIT) for name in measured if name.startswith("distill")]
    pairs += [(name, STUDENT) for name in measured if name not in (STUDENT, TORCHVISION, RIVAL)]
    pairs += [("train", TORCHVISION)]
    pairs += [(other, name) for other in (PUBLISHED, RIVAL) for name in ("distill", BFLOAT)]
    return {f"{case} : {other}": times[case] / times[other] for case, other in pairs if {case, other} <= times.keys()}


def uncertainty(values: Times) -> float:
    """Half the width of a 95 % interval of the median (bootstrap over the rounds)."""
    samples = np.random.default_rng(0).choice(values, (2000, len(values)))
    low, high = np.percentile(np.median(samples, axis=1), [2.5, 97.5])
    return float(high - low) / 2


def memory(work: Work) -> dict[str, float]:
    """Peak memory in MiB per case, each in a separate process, and the limit of the distilled step."""
    peaks = {name: peak_memory(build, work) for name, build in MEMORY.items()}
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
    parser.add_argument("--only", nargs="+", default=[], metavar="CASE", help="names of cases to measure")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    given = vars(parser.parse_args())
    repeats, loading, only, out = (given.pop(name) for name in ("repeats", "loading", "only", "out"))
    torch.set_num_threads(1)
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):  # runs in threads then allocate as in the main thread
        libc.mallopt(M_ARENA_MAX, 1)
    work = Work(**given)
    try:
        measured = measure(work, repeats, loading, only)
    except InputError as error:
        parser.error(str(error))
    compared = ratios(measured)
    tables = {
        "milliseconds": {name: round(float(np.median(times)), 1) for name, times in measured.items()},
        "ratios": {name: round(float(np.median(values)), 3) for name, values in compared.items()},
        "uncertainty_of_ratios": {name: round(uncertainty(values), 3) for name, values in compared.items()},
        "peak_mib": {} if only else {name: round(value) for name, value in memory(work).items()},
    }
    publish(tables, work.to_dict() | {"repeats": repeats, "loading": loading}, out)


if __name__ == "__main__":
    main()
