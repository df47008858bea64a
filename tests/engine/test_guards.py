"""Each guard against a planted fault: silent failures stop with a message."""

import math
from copy import deepcopy
from dataclasses import replace
from io import StringIO

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn

import defeat
from defeat.assembly import run as engine
from defeat.detector import save_model
from defeat.detector.families.retinanet import RetinaNet
from defeat.distillation import METHODS, Method
from defeat.engine import guards
from defeat.engine.guards import (
    FirstSteps,
    GradientWatch,
    LossWatch,
    fingerprint,
    require_finite,
    require_same_detections,
)
from defeat.engine.module import DetectionModule
from defeat.errors import InputError
from defeat.evaluation.evaluator import Evaluator
from defeat.types import Detections, DetectorOutput
from tests.detector.tiny import target
from tests.distillation.made_up import info
from tests.engine.tiny_runs import lines, save_teacher, settings, tensors, tiny_run

pytestmark = pytest.mark.usefixtures("small_demo")


class Planted(Method):
    """Pulls the student's maps to zero; `fault` selects what is wrong with it."""

    paper = "none"
    reads = ("neck",)
    fault = ""

    def __init__(self, student, teacher):
        super().__init__(student, teacher)
        self.used, self.unused = (nn.Conv2d(student.neck[8], 1, 1) for _ in range(2))

    def terms(self, student, teacher, targets, progress):
        level = student.neck[8]
        good = self.used(level).square().mean() + (0 if self.fault == "unused" else self.unused(level).square().mean())
        bad = level.detach().square().mean() * self.used.weight.square().sum()
        if self.fault == "zero":
            bad = level.sum() * 0
        if self.fault in ("nan", "twice"):
            bad = good * (math.nan if self.fault == "nan" and progress.step == 5 else 1)
        return {"good": good, "bad": bad} if self.fault not in ("", "unused") else {"good": good}


@pytest.fixture
def planted(monkeypatch, tmp_path):
    """A function that runs a training whose method has a fault."""
    teacher = save_teacher(tmp_path / "teacher")
    monkeypatch.setitem(METHODS, "planted", Planted)
    monkeypatch.setattr(guards, "FIRST_STEPS", 3)

    def start(fault, name="run", **options):
        monkeypatch.setattr(Planted, "fault", fault)
        return tiny_run(tmp_path / name, teacher=teacher, method="planted", **{"epochs": 2} | options)

    return start


def test_a_method_without_a_fault_passes(planted):
    assert planted("").finished


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("zero", "term bad was zero in each of the first 3 steps"),
        ("detached", "term bad was without a gradient at the student's neck and backbone in each of the first 3 steps"),
        ("unused", "In the first 3 steps, unused.bias of the method had no gradient: no term depends on it"),
    ],
)
def test_a_term_without_gradient_stops_the_first_steps(fault, message, planted):
    with pytest.raises(InputError, match=message):
        planted(fault)


def test_a_run_shorter_than_the_first_steps_is_checked_at_its_end(planted):
    with pytest.raises(InputError, match="term bad was zero in each of the first 2 steps"):
        planted("zero", max_steps=2)


def checked_steps(targets, values):
    """First steps whose term has these values."""
    method = Planted(info({8: 2}), info({8: 2}))
    watch = FirstSteps(method)
    neck = torch.ones(1, 2, 3, 3, requires_grad=True)
    output = DetectorOutput({}, {8: neck}, {8: neck}, {8: torch.ones(1, 3, 3, dtype=torch.bool)})
    layers = (method.used(neck) + method.unused(neck)).sum()
    for value in values:
        watch.update({"term": value * layers}, output, targets)
    return watch


def test_without_any_object_a_term_may_stay_zero():
    empty, full = [target([], [])], [target([[8, 8, 40, 40]], [0])]
    assert checked_steps(empty, [0.0] * guards.FIRST_STEPS).done
    with pytest.raises(InputError, match="term term was zero"):
        checked_steps(full, [0.0] * guards.FIRST_STEPS)


def test_a_term_that_had_a_gradient_may_be_zero_afterwards():
    full = [target([[8, 8, 40, 40]], [0])]
    watch = checked_steps(full, [0.0, 0.0, 1.0])
    assert watch.done
    assert watch.steps == 3
    # Later steps are not checked.
    assert checked_steps(full, [1.0, 0.0, 0.0]).steps == 1


def zero_in_one_process(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    message = "nothing"
    try:
        checked_steps([target([[8, 8, 40, 40]], [0])], [float(rank == 0)] * guards.FIRST_STEPS)
    except InputError as error:
        message = str(error)
    (folder / f"{rank}.txt").write_text(message)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_a_term_that_is_zero_in_one_of_two_processes_is_reported(tmp_path):
    torch.multiprocessing.spawn(zero_in_one_process, args=(tmp_path,), nprocs=2)
    assert (tmp_path / "0.txt").read_text() == "nothing"
    assert "zero in each of the first 20 steps in process 1" in (tmp_path / "1.txt").read_text()


def test_a_large_gradient_ratio_is_reported_once_after_a_while():
    watch = GradientWatch()
    large = [400.0] * guards.PATIENCE
    messages = [watch.update(ratio, step) for step, ratio in enumerate([*large[1:], 1.0, *large, *large])]
    # A single smaller measurement restarts the count.
    assert [step for step, message in enumerate(messages) if message] == [2 * guards.PATIENCE - 1]
    assert "more than 100 times that of the detector's own losses" in messages[2 * guards.PATIENCE - 1]


def test_a_loss_that_rises_is_reported_once():
    watch, window = LossWatch(), guards.WINDOW
    steady, risen = [1.0, 2.0] * (window // 2), [6.0] * window
    messages = [watch.update(loss, step) for step, loss in enumerate([*steady, *steady, *risen, *risen])]
    # Six of ten must have risen for the median to pass 3 x 1.5.
    assert [step for step, message in enumerate(messages) if message] == [2 * window + 5]
    assert "has risen to 6.0 at step 25, from 1.5" in messages[2 * window + 5]


@pytest.mark.slow
def test_a_run_that_diverges_and_learns_nothing_reports_both(tmp_path, monkeypatch):
    monkeypatch.setattr(guards, "RISEN", 0.01)
    console = Console(record=True, file=StringIO(), width=400)
    engine.run(settings(tmp_path / "run", epochs=10), console)
    text = console.export_text()
    assert text.count("training diverges") == 1
    assert text.count("The detector detects next to nothing (AP50 ") == 1


@pytest.mark.slow
def test_a_run_whose_terms_outweigh_the_detectors_losses_reports_it_once(tmp_path):
    console = Console(record=True, file=StringIO(), width=400)
    teacher = save_teacher(tmp_path / "teacher")
    options = {"object_weight": 4000.0, "background_weight": 4000.0, "warmup": 0.0}
    given = settings(tmp_path / "run", "retinanet", teacher, epochs=3, lr=1e-6, method_options=options)
    engine.run(given, console)
    assert console.export_text().count("times that of the detector's own losses") == 1
    weak = settings(
        tmp_path / "weak",
        "retinanet",
        teacher,
        epochs=3,
        method_options={"object_weight": 1e-6, "background_weight": 1e-6},
    )
    engine.run(weak, console)
    assert "times that of" not in console.export_text()


def test_a_loss_that_is_not_finite_saves_its_step_and_keeps_the_last_checkpoint(planted, tmp_path):
    with pytest.raises(InputError) as caught:
        planted("nan", epochs=3)
    message = str(caught.value)
    assert "not finite at step 5 (term bad; images " in message
    assert "The last checkpoint is intact." in message
    assert f"{tmp_path / 'run' / 'failed'} contains this step, defeat.replay computes it" in message
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=False)
    assert checkpoint["global_step"] == 4  # an epoch has four steps
    assert all(value.isfinite().all() for value in tensors(tmp_path / "run").values())


def test_a_failed_step_can_be_replayed(planted, tmp_path):
    with pytest.raises(InputError):
        planted("nan", epochs=3)
    losses = defeat.replay(tmp_path / "run")
    assert [name for name, loss in losses.items() if not loss.isfinite()] == ["bad"]
    # The same run without the fault logged the values of the other losses.
    healthy = lines(planted("twice", "healthy", epochs=3).folder)[5]
    assert healthy["step"] == 5
    for name in ("classification", "box", "good"):
        assert losses[name].item() == pytest.approx(healthy[f"train/{name}"], rel=1e-5), name
    assert losses["good"].requires_grad


@pytest.mark.slow
def test_a_missing_or_damaged_step_is_refused(planted, tmp_path):
    folder = planted("", epochs=1).folder
    with pytest.raises(InputError, match="the run saved no failed step"):
        defeat.replay(folder)
    with pytest.raises(InputError):
        planted("nan", "failing")
    path = tmp_path / "failing" / "failed" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="is damaged; the step can't be computed again"):
        defeat.replay(tmp_path / "failing")


def test_weights_that_are_not_finite_are_not_saved_in_a_checkpoint(tmp_path, monkeypatch):
    original = DetectionModule.on_train_batch_end

    def set_to_nan(self, *arguments):
        original(self, *arguments)
        if self.global_step == 8:  # the last one of the second epoch
            with torch.no_grad():
                next(self.student.parameters()).view(-1)[3] = math.nan

    monkeypatch.setattr(DetectionModule, "on_train_batch_end", set_to_nan)
    with pytest.raises(InputError, match=r"weights are not finite after step 8 \(student\..*last checkpoint is intact"):
        tiny_run(tmp_path / "run", epochs=3)
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=False)["global_step"] == 4


def test_a_changed_teacher_is_an_error(tmp_path, monkeypatch):
    original = RetinaNet.forward_teacher

    def change_weights(self, batch, *others):
        with torch.no_grad():
            next(self.parameters()).mul_(1.001)
        return original(self, batch, *others)

    monkeypatch.setattr(RetinaNet, "forward_teacher", change_weights)
    with pytest.raises(RuntimeError, match="teacher's weights changed"):
        tiny_run(tmp_path / "run", teacher=save_teacher(tmp_path / "teacher"), max_steps=1)


def test_a_saved_model_with_more_tensors_than_the_student_is_an_error(tmp_path, monkeypatch):
    def save_with_more(student, folder):
        save_model(student, folder)
        path = folder / "model.safetensors"
        save_file({**load_file(path), "method.neck.adaptation.weight": torch.ones(1)}, path)

    monkeypatch.setattr("defeat.engine.fit.save_model", save_with_more)
    with pytest.raises(RuntimeError, match=r"not those of the student: method\.neck\.adaptation\.weight"):
        tiny_run(tmp_path / "run", max_steps=1)


def test_a_saved_model_with_other_detections_is_an_error(tmp_path, monkeypatch):
    def save_another(student, folder):
        other = deepcopy(student)
        with torch.no_grad():
            other.roi_heads.box_predictor.cls_score.weight.mul_(100)
        save_model(other, folder)

    monkeypatch.setattr("defeat.engine.fit.save_model", save_another)
    with pytest.raises(RuntimeError, match="weights of the saved model are not those of the student"):
        tiny_run(tmp_path / "run", "faster_rcnn", max_steps=1)


def test_a_saved_model_whose_detections_are_not_those_of_the_evaluation_is_an_error(tmp_path, monkeypatch):
    detections = Evaluator.detections

    def of_another_image(self, image_id):
        found = detections(self, image_id)
        return Detections(found.boxes + 20, found.scores, found.labels)

    monkeypatch.setattr(Evaluator, "detections", of_another_image)
    with pytest.raises(RuntimeError, match=r"does not repeat the detections of the last evaluation \(0 of \d+ are"):
        tiny_run(tmp_path / "run", "faster_rcnn", max_steps=1)


def some_detections():
    corners = torch.arange(40.0)[:, None] * 30
    boxes = torch.cat([corners, corners, corners + 25, corners + 25], 1)
    return Detections(boxes, torch.linspace(0.9, 0.1, 40), torch.arange(40) % 3)


def test_detections_that_differ_by_rounding_are_the_same():
    saved = some_detections()
    boxes, scores = saved.boxes.clone(), saved.scores.clone()
    boxes[4] += 12  # a neighbour was chosen
    scores += 0.004 * torch.sin(torch.arange(40.0))
    one_more = Detections(boxes[:38], scores[:38], saved.labels[:38])
    require_same_detections([saved], [one_more])


def test_boxes_without_an_area_are_the_same_boxes():
    saved = some_detections()
    points = Detections(saved.boxes[:, [0, 1, 0, 1]], saved.scores, saved.labels)
    require_same_detections([points], [replace(points, boxes=points.boxes + 1e-4)])
    with pytest.raises(RuntimeError, match="does not repeat"):
        require_same_detections([points], [replace(points, boxes=points.boxes + 5)])


@pytest.mark.parametrize("change", ["scores", "labels", "boxes", "none left"])
def test_detections_that_differ_by_more_than_rounding_are_not_the_same(change):
    saved = some_detections()
    other = {
        "scores": Detections(saved.boxes, saved.scores * 0.9, saved.labels),
        "labels": Detections(saved.boxes, saved.scores, (saved.labels + 1) % 3),
        "boxes": Detections(saved.boxes + 5, saved.scores, saved.labels),
        "none left": Detections(saved.boxes[:0], saved.scores[:0], saved.labels[:0]),
    }[change]
    with pytest.raises(RuntimeError, match="does not repeat"):
        require_same_detections([saved], [other])


def test_finite_losses_pass():
    require_finite({"a": torch.tensor(1.0), "b": torch.tensor(0.0)}, 3, [1])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_is_named_with_its_step_and_images(value):
    losses = {"box": torch.tensor(1.0), "neck_object": torch.tensor(value)}
    with pytest.raises(InputError) as caught:
        require_finite(losses, 17, [4, 8])
    message = str(caught.value)
    assert "at step 17 (term neck_object; images 4, 8)" in message
    assert "box" not in message
    assert "\n" not in message


def test_a_fingerprint_changes_with_any_weight_or_buffer():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    before = fingerprint(module)
    assert fingerprint(module) == before
    module[1].running_mean[2] += 1e-6
    changed = fingerprint(module)
    assert changed != before
    with torch.no_grad():
        module[2].bias[1] += 1e-3
    assert fingerprint(module) not in (before, changed)
