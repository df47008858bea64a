"""Several batches per optimiser step: equal to one larger batch, counted and resumed as steps."""

import pytest
import torch

from defeat.assembly.automatic import choose
from defeat.data import open_dataset
from defeat.errors import InputError
from tests.engine.test_resume import stop_after
from tests.engine.tiny_runs import lines, results, save_teacher, settings, tensors, tiny_run, weights

pytestmark = pytest.mark.usefixtures("small_demo")
# One gradient per image, without statistics of the batch, so that two images are the mean of one and the other.
ALONE = {"norm": "frozen", "data": "demo:0:2", "max_steps": 3, "lr": 0.05, "epochs": 3}


def test_two_batches_of_one_image_are_one_batch_of_two(tmp_path):
    teacher = save_teacher(tmp_path / "teacher", neck_channels=16)
    options = ALONE | {"method": "none", "inherit": "none"}
    together = tiny_run(tmp_path / "together", teacher=teacher, batch_size=2, **options)
    apart = tiny_run(tmp_path / "apart", teacher=teacher, batch_size=1, accumulate=2, **options)
    other = tiny_run(tmp_path / "other", teacher=teacher, batch_size=1, **options)
    expected, given, alone = (tensors(run.folder) for run in (together, apart, other))
    for name, tensor in expected.items():
        torch.testing.assert_close(given[name], tensor, atol=2e-5, rtol=1e-3)
    assert any((alone[name] - tensor).abs().max() > 1e-3 for name, tensor in expected.items())


def test_the_last_step_of_an_epoch_is_a_mean_over_fewer_batches(tmp_path):
    whole = tiny_run(tmp_path / "whole", batch_size=1, accumulate=2, **ALONE)
    fewer = tiny_run(tmp_path / "fewer", batch_size=1, accumulate=5, **ALONE)
    for name, tensor in tensors(whole.folder).items():
        torch.testing.assert_close(tensors(fewer.folder)[name], tensor, atol=1e-6, rtol=1e-4)


def test_steps_and_epochs_are_counted_in_steps(tmp_path):
    run = tiny_run(tmp_path / "run", batch_size=2, accumulate=3, epochs=2)  # four batches: two steps an epoch
    content = results(run.folder)
    assert content["steps"] == 4
    assert content["images_per_step"] == 6
    assert content["ended"] == {"epoch": 2.0, "step": 4, "reason": "epochs"}
    assert [line["step"] for line in lines(run.folder) if "train/loss" in line] == [0, 1, 2, 3]
    short = tiny_run(tmp_path / "short", batch_size=2, accumulate=3, epochs=2, max_steps=3)
    assert results(short.folder)["steps"] == 3


@pytest.mark.parametrize("step", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_stopped_run_is_resumed_bit_for_bit(step, tmp_path, monkeypatch):
    options = {"teacher": save_teacher(tmp_path / "teacher"), "accumulate": 2, "epochs": 2, "ema": 0.9}
    whole = tiny_run(tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        assert not tiny_run(tmp_path / "run", **options).finished
    resumed = tiny_run(tmp_path / "run", resume=True, **options)
    assert resumed.finished
    assert weights(resumed.folder) == weights(whole.folder)
    assert len(lines(resumed.folder)) == len(lines(whole.folder))


def test_the_learning_rate_follows_the_images_of_a_step(tmp_path):
    data = open_dataset("demo", "train")
    rates = [
        choose(settings(tmp_path / "run", lr="auto", batch_size=batch, accumulate=count), data).numbers["lr"]
        for batch, count in ((8, 1), (2, 4), (8, 2))
    ]
    assert rates == [0.01, 0.01, 0.02]


def test_less_than_one_batch_is_refused(tmp_path):
    with pytest.raises(InputError, match="--accumulate must be 1 or more"):
        settings(tmp_path / "run", accumulate=0)
