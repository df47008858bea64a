"""A stopped run is resumed bit for bit; runs that can't be resumed are refused."""

import pytest
import torch
import yaml

from defeat.detector import load
from defeat.engine import module
from defeat.engine.logs import Checkpoint
from defeat.engine.module import DetectionModule
from defeat.errors import InputError
from tests.detector.tiny import FAMILIES_IN_RUNS as FAMILIES
from tests.engine.tiny_runs import lines, results, save_teacher, tiny_run, weights
from tests.reliability.children import require_same

pytestmark = pytest.mark.usefixtures("small_demo")
every_family = pytest.mark.parametrize("family", FAMILIES)
HEADS = {"positive_weight": 1.0, "negative_weight": 1.0}


def stop_after(monkeypatch, step):
    """Simulate Ctrl-C during a step."""
    original = Checkpoint.on_train_batch_end

    def pressed(self, trainer, *arguments):
        self.stop = trainer.global_step == step
        original(self, trainer, *arguments)

    monkeypatch.setattr(Checkpoint, "on_train_batch_end", pressed)


def fail_in_step(monkeypatch, step):
    """Simulate a crash in the middle of a step."""
    original = DetectionModule.training_step

    def killed(self, *arguments):
        if self.global_step == step:
            raise OSError("the power is gone")
        return original(self, *arguments)

    monkeypatch.setattr(DetectionModule, "training_step", killed)


# An epoch has four steps: 2 and 6 are in the middle of the first and the second, 4 is the last one of the first.
@pytest.mark.parametrize(
    ("step", "workers"), [*[pytest.param(*given, marks=pytest.mark.slow) for given in ((2, 0), (4, 0), (6, 1))], (6, 0)]
)
def test_a_stopped_run_is_resumed_bit_for_bit(step, workers, tmp_path, monkeypatch):
    teacher = save_teacher(tmp_path / "teacher")
    options = {"epochs": 3, "workers": workers, "method_options": HEADS, "eval_every": 1}
    whole = tiny_run(tmp_path / "whole", teacher=teacher, **options)
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        stopped = tiny_run(tmp_path / "stopped", teacher=teacher, **options)
    assert not stopped.finished
    assert not (stopped.folder / "results.json").exists()
    assert load(stopped.folder).info.classes  # the model so far can be used
    resumed = tiny_run(tmp_path / "stopped", teacher=teacher, resume=True, **options)
    assert resumed.finished
    assert weights(resumed.folder) == weights(whole.folder)
    assert results(resumed.folder)["metrics"] == results(whole.folder)["metrics"]
    assert results(resumed.folder)["steps"] == 12
    # It took as long as both parts together; the step in which the user stopped is not timed.
    times = torch.load(resumed.folder / "checkpoints" / "last.ckpt", weights_only=False)["step_seconds"]
    assert len(times) in (11, 12)
    assert results(resumed.folder)["train_seconds"] <= results(resumed.folder)["wall_seconds"]
    steps = [line["step"] for line in lines(resumed.folder) if "train/loss" in line]
    # The line of the step in which the user stopped may be missing; the others are there once, and in order.
    assert sorted({*steps, step - 1}) == list(range(12))
    assert steps == sorted(set(steps))


CHOSEN = {"keep": "best", "ema": 0.9, "backbone_lr_factor": 0.5, "eval_every": 1}
PATIENT = CHOSEN | {"lr": 0.05, "patience": 1, "epochs": 10}
COSINE = CHOSEN | {"optimizer": "adamw", "lr": 2e-3, "schedule": "cosine", "epochs": 3}


# Without a stop the patient run has its best AP after 2 of its 5 epochs, and its rate falls after the third and fourth.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "step"),
    [
        pytest.param(PATIENT, 6, marks=pytest.mark.slow),
        (PATIENT, 14),
        pytest.param(PATIENT, 12, marks=pytest.mark.slow),
        pytest.param(PATIENT, 20, marks=pytest.mark.slow),
        pytest.param(COSINE, 4, marks=pytest.mark.slow),
        pytest.param(COSINE, 10, marks=pytest.mark.slow),
    ],
)
def test_average_best_student_and_patience_are_resumed_bit_for_bit(given, step, tmp_path, monkeypatch):
    teacher = save_teacher(tmp_path / "teacher", "faster_rcnn") if given is COSINE else None
    whole = tiny_run(tmp_path / "whole", "faster_rcnn", teacher, **given).folder
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        assert not tiny_run(tmp_path / "stopped", "faster_rcnn", teacher, **given).finished
    resumed = tiny_run(tmp_path / "stopped", "faster_rcnn", teacher, resume=True, **given)
    assert resumed.finished
    if given is PATIENT:
        assert results(whole)["ended"]["reason"] == "patience"
        assert results(whole)["kept"]["step"] < results(whole)["ended"]["step"]
    require_same(resumed.folder, whole)


@pytest.mark.slow
def test_resuming_a_run_that_patience_ended_changes_nothing(tmp_path):
    folder = tiny_run(tmp_path / "run", "faster_rcnn", **PATIENT).folder
    before = {name: results(folder)[name] for name in ("metrics", "curve", "ended", "kept", "fingerprint")}
    saved = weights(folder)
    assert tiny_run(tmp_path / "run", "faster_rcnn", resume=True, **PATIENT).finished
    assert {name: results(folder)[name] for name in before} == before
    assert weights(folder) == saved


def test_a_checkpoint_without_the_average_is_refused(tmp_path):
    tiny_run(tmp_path / "run", max_steps=1)
    with pytest.raises(InputError, match=r"ema was None and is 0\.9"):
        tiny_run(tmp_path / "run", max_steps=1, resume=True, ema=0.9)


def test_a_checkpoint_with_another_best_student_is_refused(tmp_path):
    given = {"keep": "best", "eval_every": 1}
    path = tiny_run(tmp_path / "run", **given).folder / "checkpoints/last.ckpt"
    content = torch.load(path, weights_only=True)
    name = next(iter(content["selection"]["best"]["weights"]))
    content["selection"]["best"]["weights"][name] = torch.full_like(
        content["selection"]["best"]["weights"][name], float("nan")
    )
    torch.save(content, path)
    with pytest.raises(InputError, match="its best student is another detector"):
        tiny_run(tmp_path / "run", resume=True, **given)


@pytest.mark.slow
def test_a_run_of_a_version_without_these_settings_is_resumed(tmp_path, monkeypatch):
    whole = tiny_run(tmp_path / "whole", epochs=2, schedule="step").folder
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        folder = tiny_run(tmp_path / "run", epochs=2, schedule="step").folder
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for name in ("optimizer", "backbone_lr_factor", "schedule", "ema", "keep", "patience", "logger"):
        del config[name]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    path = folder / "checkpoints/last.ckpt"
    content = torch.load(path, weights_only=True)
    del content["selection"]
    torch.save(content, path)
    assert weights(tiny_run(folder, epochs=2, resume=True).folder) == weights(whole)


@every_family
def test_a_killed_run_is_resumed_from_its_last_epoch(family, tmp_path, monkeypatch):
    whole = tiny_run(tmp_path / "whole", family, epochs=2)
    with monkeypatch.context() as patch:
        fail_in_step(patch, 4)
        with pytest.raises(OSError, match="power"):
            tiny_run(tmp_path / "killed", family, epochs=2)
    resumed = tiny_run(tmp_path / "killed", family, epochs=2, resume=True)
    assert weights(resumed.folder) == weights(whole.folder)


def test_a_killed_run_with_a_number_of_steps_is_resumed_from_its_last_epoch(tmp_path, monkeypatch):
    given = {"epochs": 3, "max_steps": 10}
    whole = tiny_run(tmp_path / "whole", **given).folder
    with monkeypatch.context() as patch:
        fail_in_step(patch, 4)
        with pytest.raises(OSError, match="power"):
            tiny_run(tmp_path / "killed", **given)
    resumed = tiny_run(tmp_path / "killed", resume=True, **given).folder
    assert weights(resumed) == weights(whole)
    assert lines(resumed) == lines(whole)


def test_a_run_records_the_commits_of_all_its_parts(tmp_path, monkeypatch):
    answers = iter(["first", "second", "third"])
    monkeypatch.setattr(module, "commit", lambda: next(answers))
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        tiny_run(tmp_path / "run")
    assert results(tiny_run(tmp_path / "run", resume=True).folder)["commit"] == "first, second"
    assert results(tiny_run(tmp_path / "whole").folder)["commit"] == "third"


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    folder = tiny_run(tmp_path / "run", max_steps=1).folder
    before = weights(folder)
    with pytest.raises(InputError, match="already contains a run"):
        tiny_run(tmp_path / "run", max_steps=1, seed=1)
    assert weights(folder) == before


def test_resuming_with_other_settings_lists_them(tmp_path):
    tiny_run(tmp_path / "run", max_steps=1)
    with pytest.raises(InputError) as caught:
        tiny_run(tmp_path / "run", max_steps=1, resume=True, lr=0.5, seed=3, log_every=7)
    message = str(caught.value)
    assert "lr was 0.01 and is 0.5" in message
    assert "seed was 0 and is 3" in message
    assert "log_every" not in message  # it changes only the log
    assert "\n" not in message


@pytest.mark.slow
def test_resuming_as_another_command_is_refused(tmp_path):
    tiny_run(tmp_path / "run", max_steps=1)
    teacher = save_teacher(tmp_path / "teacher")
    with pytest.raises(InputError, match="command was 'train' and is 'distill'"):
        tiny_run(tmp_path / "run", teacher=teacher, max_steps=1, resume=True)


def test_resuming_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(InputError, match="no checkpoint to resume from"):
        tiny_run(tmp_path / "run", max_steps=1, resume=True)
    tiny_run(tmp_path / "run", max_steps=1)
    (tmp_path / "run" / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(InputError, match="no checkpoint to resume from"):
        tiny_run(tmp_path / "run", max_steps=1, resume=True)


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    folder = tiny_run(tmp_path / "run").folder
    before, figures = weights(folder), results(folder)["metrics"]
    assert tiny_run(tmp_path / "run", resume=True).finished
    assert weights(folder) == before
    assert results(folder)["metrics"] == figures
