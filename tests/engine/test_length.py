"""A run is resumed with another length if the run that was begun with it would have been the same so far."""

import pytest
import yaml

from defeat.engine.logs import Checkpoint
from defeat.errors import InputError
from tests.engine.test_resume import stop_after
from tests.engine.tiny_runs import results, save_teacher, tiny_run, weights
from tests.reliability.children import require_same

pytestmark = pytest.mark.usefixtures("small_demo")
slow = pytest.mark.slow

STEP = {"schedule": "step"}
CONSTANT = {"lr_milestones": []}
PATIENT = {"patience": 2, "keep": "best", "eval_every": 1, "ema": 0.9}


def contents(folder):
    """All files of a run that its user sees, by name."""
    names = (
        "config.yaml",
        "results.json",
        "metrics.jsonl",
        "model.safetensors",
        "model.json",
        "detections.safetensors",
    )
    return {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}


# An epoch has four steps. With schedule step the rate drops after 8/12 of the run; by default it falls from half of the
# run on. Runs of up to 19 steps have no warm-up.
@pytest.mark.parametrize(
    ("step", "begun", "longer"),
    [
        pytest.param(6, STEP | {"epochs": 3}, STEP | {"epochs": 6}, id="before_the_first_drop", marks=slow),
        pytest.param(8, STEP | {"epochs": 3}, STEP | {"epochs": 5}, id="at_the_first_drop"),
        pytest.param(6, {"epochs": 3}, {"epochs": 5}, id="before_a_cosine", marks=slow),
        pytest.param(
            6,
            STEP | {"epochs": 3, "max_steps": 10},
            STEP | {"epochs": 4, "max_steps": None},
            id="without_max_steps",
            marks=slow,
        ),
        pytest.param(9, CONSTANT | {"epochs": 4}, CONSTANT | {"epochs": 3}, id="shorter", marks=slow),
        pytest.param(3, {"epochs": 2}, {"epochs": 8, "warmup_steps": 0}, id="with_the_warm_up_it_had", marks=slow),
    ],
)
def test_a_stopped_run_goes_on_as_the_longer_run(step, begun, longer, tmp_path, monkeypatch):
    whole = tiny_run(tmp_path / "whole", **longer).folder
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        assert not tiny_run(tmp_path / "run", **begun).finished
    resumed = tiny_run(tmp_path / "run", resume=True, **longer)
    assert resumed.finished
    require_same(resumed.folder, whole)
    recorded = yaml.safe_load((resumed.folder / "config.yaml").read_text())
    assert {name: recorded[name] for name in longer} == longer


@pytest.mark.slow
@pytest.mark.parametrize(
    ("begun", "longer"),
    [
        pytest.param(CONSTANT | {"epochs": 1}, CONSTANT | {"epochs": 3}, id="constant_rate"),
        pytest.param(
            {"epochs": 1, "lr_milestones": [1.0]},
            {"epochs": 2, "lr_milestones": [1.0]},
            id="drop_at_its_end",
            marks=slow,
        ),
        pytest.param(
            CONSTANT | {"epochs": 3, "max_steps": 6, "eval_every": 1},
            CONSTANT | {"epochs": 3, "max_steps": 11, "eval_every": 1},
            id="ended_within_an_epoch",
            marks=slow,
        ),
        pytest.param(PATIENT | {"epochs": 2}, PATIENT | {"epochs": 4}, id="patience", marks=slow),
        pytest.param(
            CONSTANT | {"epochs": 3, "eval_every": 2},
            CONSTANT | {"epochs": 4, "eval_every": 2},
            id="evaluated_at_its_end",
            marks=slow,
        ),
    ],
)
def test_a_finished_run_goes_on_as_the_longer_run(begun, longer, tmp_path):
    whole = tiny_run(tmp_path / "whole", **longer).folder
    folder = tiny_run(tmp_path / "run", **begun).folder
    before = (folder / "results.json").read_bytes()
    done = results(folder)["steps"]
    assert tiny_run(folder, resume=True, **longer).finished
    if longer.get("eval_every"):
        require_same(folder, whole)
    assert weights(folder) == weights(whole)
    assert results(folder)["epochs"] == longer["epochs"]
    assert (folder / f"results-at-step-{done}.json").read_bytes() == before


@slow
def test_a_longer_run_can_be_stopped_and_resumed_again(tmp_path, monkeypatch):
    whole = tiny_run(tmp_path / "whole", **CONSTANT, epochs=3).folder
    folder = tiny_run(tmp_path / "run", **CONSTANT, epochs=1).folder
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        assert not tiny_run(folder, resume=True, **CONSTANT, epochs=3).finished
    assert not (folder / "results.json").exists()  # the shorter run's would be of other weights
    assert tiny_run(folder, resume=True, **CONSTANT, epochs=3).finished
    assert weights(folder) == weights(whole)


@slow
def test_a_distillation_goes_on_as_the_longer_run(tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    given = CONSTANT | {"teacher": teacher, "eval_every": 1, "method_options": {"decay": "constant"}}
    whole = tiny_run(tmp_path / "whole", epochs=2, **given).folder
    tiny_run(tmp_path / "run", epochs=1, **given)
    require_same(tiny_run(tmp_path / "run", epochs=2, resume=True, **given).folder, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("begun", "longer", "reason"),
    [
        pytest.param(
            STEP | {"epochs": 3}, STEP | {"epochs": 6}, r"0\.01 instead of 0\.001 in step 9 of the 12", id="milestones"
        ),
        pytest.param({"schedule": "cosine"}, {"epochs": 2, "schedule": "cosine"}, "learning rate depends", id="cosine"),
    ],
)
def test_a_finished_run_whose_rate_fell_is_refused_and_unchanged(begun, longer, reason, tmp_path):
    folder = tiny_run(tmp_path / "run", **begun).folder
    before = contents(folder)
    with pytest.raises(InputError, match=reason) as caught:
        tiny_run(folder, resume=True, **longer)
    assert f"can't be resumed with --epochs {longer['epochs']}: " in str(caught.value)
    assert f"--weights {folder}" in str(caught.value)
    assert contents(folder) == before
    assert len(before) == 6
    assert tiny_run(tmp_path / "next", weights=str(folder), **longer).finished  # as the message says


def test_another_warm_up_is_refused_with_the_one_that_the_run_had(tmp_path):
    given = CONSTANT | {"epochs": 10}  # 40 steps: 2 of warm-up, in 80 steps 4
    folder = tiny_run(tmp_path / "run", max_steps=5, warmup_steps=2, **given).folder
    with pytest.raises(
        InputError, match=r"with --epochs 20 and without --max-steps .* step 1 .* Give --warmup-steps 2"
    ):
        tiny_run(folder, resume=True, **CONSTANT, epochs=20)
    assert not (folder / "results-at-step-5.json").exists()
    resumed = tiny_run(folder, resume=True, **CONSTANT, epochs=20, max_steps=9, warmup_steps=2)
    assert results(resumed.folder)["steps"] == 9


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"decay": "linear"}, {"warmup": 0.5}, {"decay": "cosine"}])
def test_a_distillation_whose_weights_depended_on_the_length_is_refused(options, tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    given = CONSTANT | {"teacher": teacher, "method_options": options}
    folder = tiny_run(tmp_path / "run", epochs=2, **given).folder
    with pytest.raises(InputError, match=r"decay and warm-up depend .* step \d\. Begin a new run"):
        tiny_run(folder, epochs=4, resume=True, **given)


def test_a_length_below_what_was_trained_is_refused(tmp_path):
    folder = tiny_run(tmp_path / "run", **CONSTANT, epochs=2).folder
    with pytest.raises(InputError, match="with --epochs 1: it has trained 8 steps already, and would end after 4"):
        tiny_run(folder, resume=True, **CONSTANT, epochs=1)
    with pytest.raises(InputError, match="with --max-steps 7: it has trained 8 steps"):
        tiny_run(folder, resume=True, **CONSTANT, epochs=2, max_steps=7)


@slow
def test_a_run_that_patience_ended_does_not_go_on(tmp_path):
    given = PATIENT | {"lr": 1e-9, "patience": 1}
    folder = tiny_run(tmp_path / "run", "faster_rcnn", epochs=10, warmup_steps=0, **given).folder
    before = {name: results(folder)[name] for name in ("metrics", "curve", "ended", "kept", "fingerprint")}
    assert before["ended"]["reason"] == "patience"
    assert tiny_run(folder, "faster_rcnn", epochs=30, warmup_steps=0, resume=True, **given).finished
    assert {name: results(folder)[name] for name in before} == before


def test_other_settings_are_still_refused(tmp_path):
    folder = tiny_run(tmp_path / "run", **CONSTANT).folder
    with pytest.raises(InputError, match=r"with other settings: lr was 0\.01 and is 0\.02\.$"):
        tiny_run(folder, resume=True, **CONSTANT, epochs=2, lr=0.02)


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_first_checkpoint_begins_with_the_new_length(tmp_path):
    folder = tiny_run(tmp_path / "run", epochs=1).folder
    for name in ("checkpoints/last.ckpt", "results.json", "model.json"):
        (folder / name).unlink()
    assert results(tiny_run(folder, epochs=2, resume=True).folder)["steps"] == 8


@pytest.mark.slow
def test_an_invalid_length_in_the_settings_is_named(tmp_path):
    folder = tiny_run(tmp_path / "run", epochs=1).folder
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"epochs": "many"}))
    with pytest.raises(InputError, match=r"config\.yaml is not valid: epochs is 'many'"):
        tiny_run(folder, epochs=2, resume=True)


@pytest.mark.slow
def test_a_run_that_was_stopped_before_its_only_evaluation_is_evaluated_first(tmp_path, monkeypatch):
    original = Checkpoint.on_validation_start

    def pressed(self, *arguments):
        self.stop = True
        original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "on_validation_start", pressed)
        assert not tiny_run(tmp_path / "run", **CONSTANT, epochs=1).finished
    with pytest.raises(InputError, match="stopped before its last evaluation: resume it first as it was begun"):
        tiny_run(tmp_path / "run", resume=True, **CONSTANT, epochs=2)
    assert tiny_run(tmp_path / "run", resume=True, **CONSTANT, epochs=1).finished
    assert tiny_run(tmp_path / "run", resume=True, **CONSTANT, epochs=2).finished
