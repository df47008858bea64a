"""What a run makes of its evaluations: the best student, when the rate falls and the run ends, the curve."""

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
    """Let evaluations have these APs, in order."""
    original, left = DetectionModule._select, iter(accuracies)

    def select(self, evaluation, found):
        original(self, replace(evaluation, metrics=evaluation.metrics | {"AP": next(left)}), found)

    monkeypatch.setattr(DetectionModule, "_select", select)


def looked(patience, *accuracies):
    return [patience.look(accuracy) for accuracy in accuracies]


def test_the_rate_falls_twice_before_the_run_ends():
    patience = Patience(2)
    said = looked(patience, 10, 12, 11, 11.9, 12.5, 12, 12, 12.5, 12)
    # 11 and 11.9 are two in a row that do not improve 12; 12.5 does, 12 and 12 do not; then 12.5 and 12 do not.
    assert [index for index, sentence in enumerate(said) if sentence] == [3, 6, 8]
    assert ["falls to a tenth" in said[3], "falls to a tenth" in said[6], "ends here" in said[8]] == [True] * 3
    assert patience.falls == 2
    assert patience.over


def test_less_than_a_tenth_of_a_point_is_no_improvement_and_two_halves_are():
    patience = Patience(2)
    assert looked(patience, 10, 10.06, 10.11, 10.17) == [None] * 4
    assert patience.reference == 10.11
    assert "falls" in patience.look(10.2)


def test_a_detector_that_finds_nothing_yet_is_waited_for():
    patience = Patience(1)
    assert looked(patience, 0.0, None, 0.05, 0.0, 0.3) == [None] * 5
    assert patience.look(0.3) is not None


@pytest.mark.usefixtures("small_demo")
def test_patience_lowers_the_rate_and_ends_the_run(tmp_path, monkeypatch):
    scripted(monkeypatch, [5.0, 5.0, 5.0, 5.0])
    folder = tiny_run(tmp_path / "run", epochs=20, patience=1, **LEARNING).folder
    found = results(folder)
    assert found["ended"] == {"epoch": 4.0, "step": 16, "reason": "patience"}
    assert found["steps"] == 16
    curve = [(point["epoch"], point["step"], point["AP"]) for point in found["curve"]]
    assert curve == [(1.0, 4, 5.0), (2.0, 8, 5.0), (3.0, 12, 5.0), (4.0, 16, 5.0)]
    assert found["curve"][-1]["AP50"] == found["metrics"]["AP50"]
    rates = [line["train/lr"] for line in lines(folder) if "train/lr" in line]
    # The rate of a step is set at the end of the one before: a fall shows in the second step after its evaluation.
    assert rates == pytest.approx([2e-3] * 9 + [2e-4] * 4 + [2e-5] * 3)


@pytest.mark.usefixtures("small_demo")
@pytest.mark.parametrize("ema", [None, 0.5])
def test_the_best_student_is_reported_and_saved(ema, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        scripted(patch, [3.0, 7.0, 7.0, 5.0])
        folder = tiny_run(tmp_path / "run", epochs=4, keep="best", ema=ema, **LEARNING).folder
    found = results(folder)
    assert found["kept"] == {"rule": "best", "epoch": 2.0, "step": 8}
    assert found["metrics"]["AP"] == 7.0
    assert found["ended"]["reason"] == "epochs"
    # It is bit for bit the student of a run that ends there: the rate of the long run falls first after 8/12 of it.
    short = tiny_run(tmp_path / "short", epochs=4, max_steps=8, ema=ema, lr_milestones=[], **LEARNING).folder
    assert weights(folder) == weights(short)
    detections = "detections.safetensors"
    assert (folder / detections).read_bytes() == (short / detections).read_bytes()
    assert evaluate(folder, batch_size=2, workers=0, device="cpu").per_class == found["per_class"]
    # The checkpoint holds the last student.
    state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    prefix = "average.module." if ema else "student."
    assert any(not torch.equal(state[prefix + name], value) for name, value in tensors(folder).items())


@pytest.mark.usefixtures("small_demo")
def test_by_default_the_last_student_is_kept(tmp_path, monkeypatch):
    scripted(monkeypatch, [7.0, 5.0])
    found = results(tiny_run(tmp_path / "run", epochs=2, eval_every=1).folder)
    assert found["kept"] == {"rule": "last", "epoch": 2.0, "step": 8}
    assert [point["AP"] for point in found["curve"]] == [7.0, 5.0]


@pytest.mark.usefixtures("small_demo")
def test_a_curve_ends_where_the_run_was_cut_off(tmp_path):
    found = results(tiny_run(tmp_path / "run", epochs=3, max_steps=6, eval_every=1).folder)
    assert [(point["epoch"], point["step"]) for point in found["curve"]] == [(1.0, 4), (1.5, 6)]
    assert found["ended"] == {"epoch": 1.5, "step": 6, "reason": "max_steps"}
    assert found["curve"][-1]["AP50"] == found["metrics"]["AP50"]


@pytest.mark.parametrize("change", CHOOSING)
def test_nothing_is_chosen_on_a_test_split(change, tmp_path, small_demo):
    with pytest.raises(InputError, match="flatters every figure: give another --eval-split"):
        settings(tmp_path, eval_split="test", eval_every=1, **change)
    # The same where the split is named by nobody, and test is all that there is.
    with pytest.raises(InputError, match="flatters every figure"):
        tiny_run(tmp_path / "run", split="val", eval_every=1, **change)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change", CHOOSING)
def test_choosing_needs_evaluations(change, tmp_path):
    with pytest.raises(InputError, match="needs evaluations during the training"):
        settings(tmp_path, eval_every=0, **change)


def test_patience_has_no_use_with_a_cosine(tmp_path):
    with pytest.raises(InputError, match="--patience has no use with --schedule cosine"):
        settings(tmp_path, eval_every=1, patience=3, schedule="cosine")
