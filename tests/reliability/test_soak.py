"""A long run needs no more memory and files at its end than in its middle; a dead loader is reported."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from defeat.engine.module import DetectionModule
from defeat.errors import InputError
from tests.engine.tiny_runs import tiny_run, weights
from tests.reliability.children import forked
from tests.reliability.test_disk import at_step

pytestmark = pytest.mark.usefixtures("small_demo")
STEPS, HALF = 2000, 1000
MORE = 8e6  # bytes that an allocator may keep; a leak of one small map per step would be more
PAGE = os.sysconf("SC_PAGE_SIZE")


def memory() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def files() -> int:
    """Open files of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_memory_and_files_stay_flat(workers, tmp_path):
    """The smallest detector: 500 epochs of four steps, with checkpoints and evaluations."""
    seen: dict[int, tuple[int, int]] = {}

    def job():
        original = DetectionModule.on_train_batch_start

        def measured(self, *arguments):
            if self.global_step % 100 == 3:
                seen[self.global_step] = memory(), files()
            return original(self, *arguments)

        DetectionModule.on_train_batch_start = measured
        tiny = {"size": 32, "max_size": 32, "neck_channels": 4, "backbone": "test_resnet", "batch_size": 2}
        assert tiny_run(
            tmp_path / "run", epochs=STEPS // 4, eval_every=50, checkpoint_every=500, workers=workers, **tiny
        )
        return seen

    seen = forked(job).value
    assert len(seen) == STEPS // 100
    later = {step: result for step, result in seen.items() if step > HALF}
    middle = min(later)
    growth = max(bytes_ for bytes_, _ in later.values()) - later[middle][0]
    assert growth < MORE, seen
    # There may briefly be fewer, while a loader's process ends and the next one has not started; a leak adds up.
    before = max(count for step, (_, count) in seen.items() if step <= HALF)
    assert max(count for _, count in later.values()) <= before, seen


@pytest.mark.parametrize("step", [5, pytest.param(0, marks=pytest.mark.slow)])
def test_a_dead_loader_is_reported_and_the_run_is_resumed(step, tmp_path):
    settings = {"epochs": 2, "workers": 2}
    whole = tiny_run(tmp_path / "whole", **settings).folder

    def job():
        at_step(step, lambda: [os.kill(child.pid, signal.SIGKILL) for child in multiprocessing.active_children()])
        with pytest.raises(InputError) as caught:
            tiny_run(tmp_path / "run", **settings)
        return str(caught.value)

    sentence = forked(job).value
    assert "A process that loads images died" in sentence
    # In torch's words, which depend on what it notices first: the signal, or that the process no longer answers.
    assert "killed by signal: Killed" in sentence or "exited unexpectedly" in sentence
    assert "--resume" in sentence
    assert tiny_run(tmp_path / "run", resume=True, **settings).finished
    assert weights(tmp_path / "run") == weights(whole)
