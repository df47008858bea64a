"""A run that is killed at any moment can be resumed, with the same weights, metrics and log."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.tiny_runs import save_teacher, tiny_run
from tests.reliability.children import Ended, Events, forked, require_same, require_whole_files

pytestmark = pytest.mark.usefixtures("small_demo")
HEADS = {"positive_weight": 1.0, "negative_weight": 1.0}


def job(folder: Path, resume: bool, **changes):
    """A distilled run of two epochs of four steps; each has a checkpoint in its middle and an evaluation at its end."""
    settings = {"epochs": 2, "eval_every": 1, "checkpoint_every": 3, "method_options": HEADS, "balance": 0.5}
    settings |= {"cache_teacher": str(folder / "cache")} | changes
    return lambda: tiny_run(folder / "run", teacher=folder.parent / "teacher", resume=resume, **settings).finished


def uninterrupted(folder: Path, **changes) -> list[str]:
    """An uninterrupted run; returns its events."""
    save_teacher(folder.parent / "teacher")
    return forked(job(folder, False, **changes), Events(folder)).seen


def kill_and_resume(folder: Path, kills: list[Callable[[Path, bool], Ended]], whole: Path, **changes) -> int:
    """Kill and resume runs until they finish, and compare each with the uninterrupted one.

    Args:
        folder: folder of the runs.
        kills: functions that start or resume the run in a folder, and may kill it.
        whole: the uninterrupted run.
        changes: settings of all runs.

    Returns:
        Number of kills.
    """
    run, begun, killed = folder / "killed0", False, 0
    for kill in kills:
        ended = kill(run, begun)
        require_whole_files(run)
        killed, begun = killed + ended.killed, True
        if not ended.killed:
            require_same(run / "run", whole / "run")
            run, begun = folder / f"killed{killed}", False
    assert forked(job(run, begun, **changes)).value
    require_same(run / "run", whole / "run")
    return killed


def at(count: int, kind: str | None = None, **changes) -> Callable[[Path, bool], Ended]:
    """A kill at the event with this number, of one kind or of all."""
    return lambda folder, resume: forked(job(folder, resume, **changes), Events(folder, count, kind))


@pytest.mark.slow
def test_a_run_killed_several_times_gives_the_same_result(tmp_path):
    uninterrupted(tmp_path / "whole")
    kills = [at(1, "half balance.json"), at(2, "half last.ckpt"), at(1, "validation_step")]
    assert kill_and_resume(tmp_path, kills, tmp_path / "whole") == len(kills)


@pytest.mark.slow
def test_a_killed_run_resumes_its_average_and_its_best_student(tmp_path):
    given = {"optimizer": "adamw", "lr": 2e-3, "ema": 0.9, "keep": "best", "patience": 1}
    uninterrupted(tmp_path / "whole", **given)
    kinds = [
        (2, "validation_step"),
        (2, "on_validation_epoch_end"),
        (5, "half last.ckpt"),
        (5, "half model.safetensors"),
    ]
    kills = [at(count, kind, **given) for count, kind in kinds]
    assert kill_and_resume(tmp_path, kills, tmp_path / "whole", **given) >= 3


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "seed"), [(0, 1), (1, 2)])
def test_kills_at_random_events(workers, seed, tmp_path):
    events = uninterrupted(tmp_path / "whole", workers=workers)
    draw = random.Random(seed)  # noqa: S311 (no secret)
    kills = [at(draw.randint(1, len(events) // 2), workers=workers) for _ in range(16)]
    assert kill_and_resume(tmp_path, kills, tmp_path / "whole", workers=workers) >= 10


@pytest.mark.slow
def test_a_kill_at_every_kind_of_event(tmp_path):
    """Files opened, half written, renamed and removed; steps and evaluations at each of their parts."""
    counts = Counter(uninterrupted(tmp_path / "whole"))
    assert {
        "half last.ckpt",
        "half cache",
        "half results.json",
        "on_after_backward",
        "validation_step",
    } <= counts.keys()
    draw = random.Random(3)  # noqa: S311
    kinds = draw.sample(sorted(counts), len(counts))
    kills = [at(draw.randint(1, counts[kind]), kind) for kind in kinds]
    assert kill_and_resume(tmp_path, kills, tmp_path / "whole") >= len(kinds) // 2


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_kills_at_random_times(workers, tmp_path):
    """Kills at random times instead of events."""
    whole = tmp_path / "whole"
    began = time.monotonic()
    uninterrupted(whole, workers=workers)
    seconds = time.monotonic() - began
    draw = random.Random(4)  # noqa: S311

    def kill_after(delay: float) -> Callable[[Path, bool], Ended]:
        def kill(folder: Path, resume: bool) -> Ended:
            def after(child: int) -> None:
                time.sleep(delay)
                os.kill(child, signal.SIGKILL)

            return forked(job(folder, resume, workers=workers), meanwhile=after)

        return kill

    kills = [kill_after(draw.uniform(0, seconds / 2)) for _ in range(12)]
    assert kill_and_resume(tmp_path, kills, whole, workers=workers) > 0
