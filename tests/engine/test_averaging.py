"""The averaged student: its weights, and that a run evaluates and saves it."""

import pytest
import torch

from defeat.engine.averaging import StudentAverage, effective_decay
from defeat.errors import InputError
from defeat.inference.evaluate import evaluate
from tests.detector.tiny import tiny_detector
from tests.engine.tiny_runs import results, save_teacher, settings, tensors, tiny_run, weights


def shifted(student, distance):
    """Move every weight and running statistic of a student; counters count on."""
    with torch.no_grad():
        for value in student.state_dict().values():
            value.add_(distance if value.is_floating_point() else 1)


def test_the_decay_rises_to_its_limit():
    # (1 + n) / (10 + n): 2/11 after the first update, 0.9 at n = 80, and never more than asked for.
    assert effective_decay(0.9998, 1) == pytest.approx(2 / 11)
    assert effective_decay(0.9998, 80) == pytest.approx(0.9)
    assert effective_decay(0.9, 81) == 0.9
    assert effective_decay(0.0, 5) == 0.0


def test_the_average_by_hand():
    student = tiny_detector("retinanet", norm="bn")
    first = {name: value.clone() for name, value in student.state_dict().items()}
    average = StudentAverage(student, 0.25)
    average.update_parameters(student)  # the first update copies
    shifted(student, 1.0)
    average.update_parameters(student)  # decay 2/11: 0 + 9/11 * 1
    shifted(student, 1.0)
    average.update_parameters(student)  # decay min(0.25, 3/12): 0.25 * 9/11 + 0.75 * 2
    expected = 0.25 * 9 / 11 + 0.75 * 2
    for name, value in average.student.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, first[name] + expected, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(value, student.state_dict()[name])  # num_batches_tracked is copied


def test_unchanged_weights_stay_bit_for_bit():
    student = tiny_detector("faster_rcnn")
    average = StudentAverage(student, 0.9)
    for _ in range(5):
        average.update_parameters(student)
    averaged, own = average.student.state_dict(), student.state_dict()
    assert averaged.keys() == own.keys()
    assert all(torch.equal(averaged[name], own[name]) for name in own)
    assert not any(weight.requires_grad for weight in average.parameters())


@pytest.mark.slow
@pytest.mark.usefixtures("small_demo")
@pytest.mark.parametrize("norm", ["bn", "frozen"])
def test_the_average_is_evaluated_and_saved_and_changes_no_step(norm, tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    options = {"epochs": 2, "eval_every": 1, "lr": 0.05, "norm": norm}
    plain = tiny_run(tmp_path / "plain", teacher=teacher, **options).folder
    folder = tiny_run(tmp_path / "run", teacher=teacher, ema=0.9, **options).folder
    state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    kept = {part: {} for part in ("student", "average", "method")}
    for name, value in state.items():
        part, _, rest = name.partition(".")
        kept[part][rest] = value
    # The student that takes the steps is that of a run without an average; what is saved is the average.
    assert all(torch.equal(value, tensors(plain)[name]) for name, value in kept["student"].items())
    saved = tensors(folder)
    assert int(kept["average"].pop("n_averaged")) == 8
    assert all(torch.equal(value, saved[name.removeprefix("module.")]) for name, value in kept["average"].items())
    assert weights(folder) != weights(plain)
    assert evaluate(folder, batch_size=2, workers=0, device="cpu").metrics == results(folder)["metrics"]


@pytest.mark.usefixtures("small_demo")
def test_an_average_over_only_the_last_step_is_the_student(tmp_path):
    # With a decay near zero, earlier steps have no weight: the limit without averaging.
    plain = tiny_run(tmp_path / "plain", max_steps=3).folder
    folder = tiny_run(tmp_path / "run", max_steps=3, ema=1e-12).folder
    for name, value in tensors(folder).items():
        torch.testing.assert_close(value, tensors(plain)[name])


@pytest.mark.parametrize("decay", [0, None])
def test_zero_and_none_switch_the_average_off(decay, tmp_path):
    assert settings(tmp_path, ema=decay).ema is None


@pytest.mark.parametrize("decay", [1.0, -0.5, float("nan")])
def test_an_invalid_decay_is_refused(decay, tmp_path):
    with pytest.raises(InputError, match="--ema must be 0 or more and below 1"):
        settings(tmp_path, ema=decay)
