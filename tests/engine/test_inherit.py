"""Runs whose student inherits weights of its teacher."""

import json
from io import StringIO

import pytest
import torch
from rich.console import Console

from defeat.assembly import assemble, inheriting
from defeat.assembly.plan import make_plan
from defeat.assembly.run import run
from defeat.detector import load, save_model
from defeat.errors import InputError
from tests.benchmark.benches import run_bench
from tests.detector.tiny import FAMILIES_IN_RUNS as FAMILIES
from tests.engine.test_resume import stop_after
from tests.engine.test_run import method_weights
from tests.engine.tiny_runs import results, save_teacher, settings, tiny_run, weights

pytestmark = pytest.mark.usefixtures("small_demo")
every_family = pytest.mark.parametrize("family", FAMILIES)
NOTHING = method_weights("defeat", 0.0)


@pytest.fixture
def counted(monkeypatch):
    """What each call of `inherit` gave."""
    given, original = [], inheriting.inherit

    def inherit(*arguments):
        given.append(original(*arguments))
        return given[-1]

    monkeypatch.setattr(inheriting, "inherit", inherit)
    return given


@every_family
def test_with_zero_weights_the_run_equals_one_initialised_from_a_file(family, tmp_path):
    teacher = save_teacher(tmp_path / "teacher", family, neck_channels=16)
    helped = tiny_run(tmp_path / "helped", family, teacher, max_steps=3, method_options=NOTHING)
    assert results(helped.folder)["inherited"]["parts"] == ["neck", "head"]
    # What the student begins with, in a file.
    made = assemble.assemble(settings(tmp_path / "begin", family, teacher), Console(quiet=True))
    (tmp_path / "begin").mkdir()
    save_model(made.experiment.student, tmp_path / "begin")
    baseline = tiny_run(tmp_path / "baseline", family, max_steps=3, weights=str(tmp_path / "begin"))
    assert weights(baseline.folder) == weights(helped.folder)
    assert results(baseline.folder)["metrics"] == results(helped.folder)["metrics"]
    new = tiny_run(tmp_path / "new", family, max_steps=3)
    assert weights(new.folder) != weights(baseline.folder)


@pytest.mark.slow
@every_family
def test_the_method_none_only_inherits_and_never_runs_the_teacher(family, tmp_path, monkeypatch):
    teacher = save_teacher(tmp_path / "teacher", family, neck_channels=16)
    zero = tiny_run(tmp_path / "zero", family, teacher, max_steps=3, method_options=NOTHING)
    monkeypatch.setattr("defeat.detector.Detector.forward_teacher", None)
    none = tiny_run(tmp_path / "none", family, teacher, max_steps=3, method="none")
    assert weights(none.folder) == weights(zero.folder)


def test_weights_of_another_detector_are_refused(tmp_path):
    save_teacher(tmp_path / "wide", neck_channels=24)
    with pytest.raises(InputError, match="it is another detector than the one to train"):
        tiny_run(tmp_path / "run", weights=str(tmp_path / "wide"))


@pytest.mark.slow
def test_a_resumed_run_continues_from_its_checkpoint_and_not_from_the_teacher(tmp_path, monkeypatch, counted):
    teacher = save_teacher(tmp_path / "teacher", neck_channels=16)
    whole = tiny_run(tmp_path / "whole", teacher=teacher)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        tiny_run(tmp_path / "stopped", teacher=teacher)
    before = len(counted)
    resumed = tiny_run(tmp_path / "stopped", teacher=teacher, resume=True)
    assert len(counted) == before
    assert weights(resumed.folder) == weights(whole.folder)
    assert results(resumed.folder)["inherited"] == results(whole.folder)["inherited"]


def test_the_run_and_the_plan_report_what_was_inherited(tmp_path):
    teacher = save_teacher(tmp_path / "teacher", neck_channels=16, backbone="resnet18")
    messages = StringIO()
    run(settings(tmp_path / "run", teacher=teacher, max_steps=1), Console(file=messages, width=1000))
    made = make_plan(settings(tmp_path / "plan", teacher=teacher), Console(quiet=True))
    first, *others = made.inherited
    assert first.startswith("Inherited from the teacher: ")
    assert first in messages.getvalue()
    assert any("inner_blocks" in sentence and "its shape is" in sentence for sentence in others)
    assert json.loads((tmp_path / "plan" / "plan.json").read_text())["inherited"] == made.inherited


@pytest.mark.slow
def test_a_student_with_another_neck_still_learns_from_its_teacher(tmp_path):
    # With a wider teacher nothing can be inherited, and the student must equal one that inherits nothing.
    teacher = save_teacher(tmp_path / "teacher", neck_channels=24)
    auto = tiny_run(tmp_path / "auto", teacher=teacher, max_steps=3)
    none = tiny_run(tmp_path / "none", teacher=teacher, max_steps=3, inherit="none")
    assert weights(auto.folder) == weights(none.folder)
    with pytest.raises(InputError, match="--inherit neck"):
        tiny_run(tmp_path / "neck", teacher=teacher, inherit="neck+head")


@pytest.mark.slow
def test_a_comparison_separates_the_gains_of_inheriting_and_of_the_terms(tmp_path):
    teacher = save_teacher(tmp_path / "teacher", neck_channels=16)
    methods = "none,none+inherit,defeat,defeat+inherit"
    result = run_bench(tmp_path / "m", teacher, methods=methods, seeds=1, method_options={"defeat": NOTHING})
    cells = {name: weights(tmp_path / "m" / f"{name.replace('+', '-')}-seed0") for name in methods.split(",")}
    assert cells["none"] == cells["defeat"] != cells["none+inherit"] == cells["defeat+inherit"]
    rows = {other.name: other for other in result.others}
    assert list(rows) == methods.split(",")[1:]
    ahead = rows["none+inherit"].ap[0] - result.baseline.ap[0]
    assert rows["defeat+inherit"].gain.by_seed == (ahead,)
    assert rows["defeat+inherit"].gain_over_inherited.by_seed == (0.0,)
    assert rows["none+inherit"].gain_over_inherited is None
    assert rows["defeat"].gain_over_inherited.by_seed == (-ahead,)
    assert "Over none+inherit: +0.0 AP" in rows["defeat+inherit"].sentence(4)
    page = (tmp_path / "m" / "report.html").read_text()
    assert "over none+inherit" in page


@pytest.mark.slow
def test_students_of_an_ablation_inherit_but_for_the_baseline(tmp_path):
    teacher = save_teacher(tmp_path / "teacher", neck_channels=16)
    result = run_bench(tmp_path / "m", teacher, methods="", ablate="regions", seeds=1, max_steps=1)
    assert [other.name for other in result.others][:2] == ["none+inherit", "object only"]
    for folder in ("none-inherit-seed0", "object-only-seed0", "both-one-weight-seed0"):
        assert results(tmp_path / "m" / folder)["inherited"]["parameters"] > 0
    assert "inherited" not in results(tmp_path / "m" / "none-seed0")


def test_a_comparison_whose_students_inherit_nothing_refuses_those_that_should(tmp_path):
    teacher = save_teacher(tmp_path / "teacher", neck_channels=16)
    with pytest.raises(InputError, match="leave out one of the two"):
        run_bench(tmp_path / "m", teacher, methods="defeat+inherit", inherit="none", seeds=1)


@every_family
def test_a_student_that_inherits_everything_repeats_the_teachers_detections(family, tmp_path):
    teacher = save_teacher(tmp_path / "teacher", family, neck_channels=16)
    given = settings(tmp_path / "run", family, teacher, seed=3)
    student = assemble.assemble(given, Console(quiet=True)).experiment.student.eval()
    trained = load(teacher)
    student.backbone.body.load_state_dict(trained.backbone.body.state_dict())
    image = torch.rand(3, 64, 64)
    (ours,), (theirs,) = student.predict([image]), trained.predict([image])
    assert torch.equal(ours.boxes, theirs.boxes)
