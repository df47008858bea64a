"""Use of evaluations during training: best student, learning rate drops, early stopping, learning curve."""

from dataclasses import replace

import pytest
import torch

from defeat.engine.module import DetectionModule
from defeat.engine.selection import Patience
from defeat.errors import InputError
from defeat.inference.evaluate import evaluate
from tests.engine.tiny_runs import lines, results, settings, tensors, tiny_run, weights

CHOOSING = [{"keep": "best"}, {"patience": 2}]
LEARNING = {"optimizer": "adamw", "lr": 2e-3, "eval_every": 1, "warmup_steps": 0}


def scripted(monkeypatch, accuracies):
    """Replace the APs of the evaluations, in order."""
    original, remaining = DetectionModule._select, iter(accuracies)

    def select(self, evaluation, evaluator):
        original(self, replace(evaluation, metrics=evaluation.metrics | {"AP": next(remaining)}), evaluator)

    monkeypatch.setattr(DetectionModule, "_select", select)


def updated(patience, *accuracies):
    return [patience.update(accuracy) for accuracy in accuracies]


def test_the_learning_rate_drops_twice_before_the_run_ends():
    patience = Patience(2)
    messages = updated(patience, 10, 12, 11, 11.9, 12.5, 12, 12, 12.5, 12)
    # 11 and 11.9 are two in a row that do not improve 12; 12.5 does, 12 and 12 do not; then 12.5 and 12 do not.
    assert [index for index, message in enumerate(messages) if message] == [3, 6, 8]
    assert ["drops to a tenth" in messages[3], "drops to a tenth" in messages[6], "ends here" in messages[8]] == [
        True
    ] * 3
    assert patience.falls == 2
    assert patience.over


def test_less_than_a_tenth_of_a_point_is_no_improvement_but_small_steps_add_up():
    patience = Patience(2)
    assert updated(patience, 10, 10.06, 10.11, 10.17) == [None] * 4
    assert patience.reference == 10.11
    assert "drops" in patience.update(10.2)


def test_evaluations_before_the_first_detections_do_not_count():
    patience = Patience(1)
    assert updated(patience, 0.0, None, 0.05, 0.0, 0.3) == [None] * 5
    assert patience.update(0.3) is not None


@pytest.mark.usefixtures("small_demo")
def test_patience_lowers_the_rate_and_ends_the_run(tmp_path, monkeypatch):
    scripted(monkeypatch, [5.0, 5.0, 5.0, 5.0])
    folder = tiny_run(tmp_path / "run", epochs=20, patience=1, **LEARNING).folder
    result = results(folder)
    assert result["ended"] == {"epoch": 4.0, "step": 16, "reason": "patience"}
    assert result["steps"] == 16
    curve = [(point["epoch"], point["step"], point["AP"]) for point in result["curve"]]
    assert curve == [(1.0, 4, 5.0), (2.0, 8, 5.0), (3.0, 12, 5.0), (4.0, 16, 5.0)]
    assert result["curve"][-1]["AP50"] == result["metrics"]["AP50"]
    rates = [line["train/lr"] for line in lines(folder) if "train/lr" in line]
    # The rate of a step is set at the end of the one before: a fall shows in the second step after its evaluation.
    assert rates == pytest.approx([2e-3] * 9 + [2e-4] * 4 + [2e-5] * 3)


@pytest.mark.usefixtures("small_demo")
@pytest.mark.parametrize("ema", [pytest.param(None, marks=pytest.mark.slow), 0.5])
def test_the_best_student_is_reported_and_saved(ema, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        scripted(patch, [3.0, 7.0, 7.0, 5.0])
        folder = tiny_run(tmp_path / "run", epochs=4, keep="best", schedule="step", ema=ema, **LEARNING).folder
    result = results(folder)
    assert result["kept"] == {"rule": "best", "epoch": 2.0, "step": 8}
    assert result["metrics"]["AP"] == 7.0
    assert result["ended"]["reason"] == "epochs"
    # It is bit for bit the student of a run that ends there: the rate of the long run falls first after 8/12 of it.
    short = tiny_run(tmp_path / "short", epochs=4, max_steps=8, ema=ema, lr_milestones=[], **LEARNING).folder
    assert weights(folder) == weights(short)
    detections = "detections.safetensors"
    assert (folder / detections).read_bytes() == (short / detections).read_bytes()
    assert evaluate(folder, batch_size=2, workers=0, device="cpu").per_class == result["per_class"]
    # The checkpoint holds the last student.
    state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    prefix = "average.module." if ema else "student."
    assert any(not torch.equal(state[prefix + name], value) for name, value in tensors(folder).items())


@pytest.mark.usefixtures("small_demo")
def test_by_default_the_last_student_is_kept(tmp_path, monkeypatch):
    scripted(monkeypatch, [7.0, 5.0])
    result = results(tiny_run(tmp_path / "run", epochs=2, eval_every=1).folder)
    assert result["kept"] == {"rule": "last", "epoch": 2.0, "step": 8}
    assert [point["AP"] for point in result["curve"]] == [7.0, 5.0]


@pytest.mark.usefixtures("small_demo")
def test_a_curve_ends_where_the_run_was_cut_off(tmp_path):
    result = results(tiny_run(tmp_path / "run", epochs=3, max_steps=6, eval_every=1).folder)
    assert [(point["epoch"], point["step"]) for point in result["curve"]] == [(1.0, 4), (1.5, 6)]
    assert result["ended"] == {"epoch": 1.5, "step": 6, "reason": "max_steps"}
    assert result["curve"][-1]["AP50"] == result["metrics"]["AP50"]


@pytest.mark.parametrize("change", CHOOSING)
def test_selection_on_a_test_split_is_refused(change, tmp_path, small_demo):
    with pytest.raises(InputError, match="biases all metrics: give another --eval-split"):
        settings(tmp_path, eval_split="test", eval_every=1, **change)
    # The same where the split is named by nobody, and test is all that there is.
    with pytest.raises(InputError, match="biases all metrics"):
        tiny_run(tmp_path / "run", split="val", eval_every=1, **change)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change", CHOOSING)
def test_selection_needs_evaluations(change, tmp_path):
    with pytest.raises(InputError, match="needs evaluations during the training"):
        settings(tmp_path, eval_every=0, **change)


@pytest.mark.parametrize("schedule", ["cosine", "flat_cosine"])
def test_patience_is_refused_with_a_cosine(schedule, tmp_path):
    with pytest.raises(InputError, match=rf"--patience and --schedule {schedule} can.t be combined"):
        settings(tmp_path, eval_every=1, patience=3, schedule=schedule)
