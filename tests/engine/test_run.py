"""Runs are repeatable and complete, and never change the teacher."""

import json
from functools import cache
from io import StringIO
from statistics import median

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import save_file

from defeat.assembly import assemble as assembly
from defeat.assembly import run as engine
from defeat.detector import load
from defeat.detector.frozen import frozen
from defeat.distillation import METHODS, DeFeat, method_defaults
from defeat.engine.guards import fingerprint
from defeat.engine.module import DetectionModule
from defeat.errors import InputError
from defeat.inference.evaluate import evaluate
from tests.detector.tiny import COMPOSED
from tests.detector.tiny import FAMILIES_IN_RUNS as FAMILIES
from tests.distillation.test_methods import skips_refusals
from tests.distillation.test_methods import weights as method_weights
from tests.engine.tiny_runs import lines, results, save_teacher, settings, tensors, tiny_run, weights

pytestmark = pytest.mark.usefixtures("small_demo")
every_family = pytest.mark.parametrize("family", FAMILIES)
HEADS = {"positive_weight": 1.0, "negative_weight": 1.0}
FULL = {"epochs": 2, "eval_every": 1, "method_options": HEADS}


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    """Trains a run once for all tests that only read it; for tests with `small_demo`."""

    @cache
    def train(family, distilled=False):
        folder = tmp_path_factory.mktemp("run")
        if distilled:
            return tiny_run(folder / "run", family, save_teacher(folder / "teacher", family), **FULL)
        return tiny_run(folder / "run", family, max_steps=3)

    return train


@pytest.fixture
def full_run(small_demo, trained_once):
    """Folder of a student of two stages that was distilled with every term, and evaluated after both epochs."""
    return trained_once("faster_rcnn", distilled=True).folder


QUICK_METHODS = ("defeat", "classification")


@every_family
@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[] if name in QUICK_METHODS else pytest.mark.slow) for name in METHODS]
)
def test_zero_weights_leave_training_unchanged(family, method, tmp_path, trained_once):
    teacher = save_teacher(tmp_path / "teacher", family)
    options = {"method": method, "method_options": method_weights(method, 0.0)}
    with skips_refusals():
        helped = tiny_run(tmp_path / "helped", family, teacher, max_steps=3, **options)
    baseline = trained_once(family)
    assert baseline.finished
    assert helped.finished
    assert weights(baseline.folder) == weights(helped.folder)
    assert results(baseline.folder)["metrics"] == results(helped.folder)["metrics"]


@every_family
def test_a_teacher_changes_the_student(family, tmp_path, trained_once):
    # The counterpart of the test above: the comparison of bytes would notice a difference.
    teacher = save_teacher(tmp_path / "teacher", family)
    helped = tiny_run(tmp_path / "helped", family, teacher, max_steps=3)
    assert weights(trained_once(family).folder) != weights(helped.folder)


@pytest.mark.slow
@every_family
def test_a_method_may_lower_the_weight_of_the_detectors_own_negatives(family, tmp_path):
    teacher = save_teacher(tmp_path / "teacher", family)
    losses = []
    for decay in (1.0, 5.0):
        options = {"object_weight": 0.0, "background_weight": 0.0, "detector_negatives_decay": decay}
        folder = tiny_run(tmp_path / str(decay), family, teacher, epochs=2, lr=1e-9, method_options=options).folder
        term = "train/objectness" if family == "yolox" else "train/classification"
        losses.append([line[term] for line in lines(folder) if "train/loss" in line])
    constant, falling = losses
    assert falling[:4] == constant[:4]
    # In the second epoch negatives have a fifth of their weight.
    assert all(less < more for less, more in zip(falling[4:], constant[4:], strict=True))


@every_family
def test_the_teacher_is_not_changed_and_not_saved(family, tmp_path, monkeypatch):
    loaded = []

    def spy(*arguments):
        teacher = load(*arguments)
        loaded.append((teacher, fingerprint(teacher)))
        return teacher

    def spy_copy(*arguments):
        copy = frozen(*arguments)
        loaded.append((copy, fingerprint(copy)))
        return copy

    monkeypatch.setattr(assembly, "load_detector", spy)
    monkeypatch.setattr(assembly, "frozen", spy_copy)
    folder = save_teacher(tmp_path / "teacher", family)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    student = tiny_run(tmp_path / "student", family, folder, max_steps=3, method_options=HEADS).folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert len(loaded) == 2  # as it was trained, and the copy that gives its maps
    for teacher, first in loaded:
        assert fingerprint(teacher) == first
        assert not any(module.training for module in teacher.modules())
        assert not any(weight.grad is not None for weight in teacher.parameters())
    assert not any(weight.requires_grad for weight in loaded[1][0].parameters())
    # The student's file holds a detector that stands on its own: no adaptation layer, nothing of the teacher.
    assert tensors(student).keys() == load(student).state_dict().keys()
    checkpoint = torch.load(student / "checkpoints" / "last.ckpt", weights_only=False)
    parts = {name.split(".")[0] for name in checkpoint["state_dict"]}
    assert parts == {"student", "method"}
    kept = {name.removeprefix("student.") for name in checkpoint["state_dict"] if name.startswith("student.")}
    assert kept == tensors(student).keys()
    widths = {tuple(value.shape) for name, value in checkpoint["state_dict"].items() if name.startswith("method.")}
    of_student, of_teacher = load(student).info.neck, loaded[0][0].info.neck
    layers = {(of_teacher[stride], of_student[stride], 1, 1) for stride in of_student}
    assert widths == layers | {(channels,) for channels in of_teacher.values()}


def make_decided(teacher):
    """Move scores of a teacher that was never trained apart, so that rounding does not change which is larger."""
    torch.manual_seed(0)
    values = {
        name: value + 0.05 * torch.randn_like(value)
        for name, value in tensors(teacher).items()
        if "head" in name and name.endswith(("weight", "bias"))
    }
    save_file(tensors(teacher) | values, teacher / "model.safetensors")


@pytest.mark.slow
@every_family
def test_distillation_may_compute_in_bfloat16(family, tmp_path):
    teacher = save_teacher(tmp_path / "teacher", family)
    make_decided(teacher)
    given = {"max_steps": 3, "method_options": HEADS | {"warmup": 0.0}}
    exact, rounded, again = (
        tiny_run(tmp_path / name, family, teacher, distill_precision=precision, **given).folder
        for name, precision in (("exact", "run"), ("rounded", "bf16"), ("again", "bf16"))
    )
    assert weights(rounded) == weights(again) != weights(exact)
    first, other = lines(exact)[0], lines(rounded)[0]
    terms = {name for name in first if name.startswith(("train/neck", "train/head"))}
    assert len(terms) == 4
    for name in terms:
        # Heads that were never trained give nearly the same on rounded maps.
        assert other[name] != first[name] or name.startswith("train/head")
        # The many normalisations of an untrained YOLOX magnify the rounding.
        assert other[name] == pytest.approx(first[name], rel=0.2 if family == "yolox" else 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["defeat", "fgfi", "imitation", "tadf"])
def test_every_method_of_maps_has_small_adaptation_layers(name, tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    folder = tiny_run(
        tmp_path / "run", teacher=teacher, max_steps=1, method=name, method_options={"adaptation_kernel": 1}
    ).folder
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]
    widths = {tuple(value.shape) for key, value in state.items() if "adaptation" in key}
    assert widths == {(24, 16, 1, 1), (24,)}


def test_the_same_seed_repeats_a_run_and_another_does_not(tmp_path):
    teacher = save_teacher(tmp_path / "teacher", "faster_rcnn")
    runs = [
        tiny_run(tmp_path / str(index), "faster_rcnn", teacher, max_steps=3, seed=seed, method_options=HEADS).folder
        for index, seed in enumerate((4, 4, 5))
    ]
    assert weights(runs[0]) == weights(runs[1]) != weights(runs[2])
    assert lines(runs[0]) == lines(runs[1]) != lines(runs[2])


def test_workers_change_nothing(tmp_path):
    first, second = (tiny_run(tmp_path / str(count), epochs=2, workers=count).folder for count in (0, 1))
    assert weights(first) == weights(second)


@pytest.mark.parametrize("workers", [0, 1])
def test_every_epoch_has_another_order(workers, tmp_path, monkeypatch):
    seen = []
    original = DetectionModule.training_step

    def watched(self, batch, index):
        seen.append(tuple(target.image_id for target in batch[1]))
        return original(self, batch, index)

    monkeypatch.setattr(DetectionModule, "training_step", watched)
    tiny_run(tmp_path / "run", epochs=3, workers=workers)
    epochs = [seen[0:4], seen[4:8], seen[8:12]]
    assert all(sorted(image for batch in epoch for image in batch) == list(range(8)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_a_run_directory_is_complete(full_run):
    folder = full_run
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    events = {name for name in names if "events.out" in name}
    assert events
    assert names - events - {"tensorboard/hparams.yaml"} == {
        "config.yaml",
        "model.json",
        "model.safetensors",
        "metrics.jsonl",
        "detections.safetensors",
        "results.json",
        "inherited.json",
        "checkpoints/last.ckpt",
    }
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert written["command"] == "distill"
    # All options, so that the run does not depend on later defaults; YAML has lists instead of tuples.
    options = method_defaults("defeat") | HEADS
    assert written["method_options"] == options | {"backbone_strides": list(options["backbone_strides"])}
    assert "resume" not in written
    assert {"command", *settings(folder, "faster_rcnn", folder.parent / "teacher").to_dict()} == written.keys()


def test_every_line_contains_every_loss_term(full_run):
    folder = full_run
    training = [line for line in lines(folder) if "train/loss" in line]
    assert [(line["step"], line["epoch"]) for line in training] == [(step, step // 4) for step in range(8)]
    own = {"objectness", "rpn_box", "classification", "box"}
    learned = {"neck_object", "neck_background", "head_positive", "head_negative"}
    for line in training:
        terms = {name.removeprefix("train/"): value for name, value in line.items() if name.startswith("train/")}
        assert terms.keys() == own | learned | {"loss", "lr"}
        assert terms["loss"] == pytest.approx(sum(terms[name] for name in own | learned), abs=1e-4)
    evaluations = [line for line in lines(folder) if "val/AP" in line]
    assert len(evaluations) == 2
    assert evaluations[-1]["val/AP50"] == pytest.approx(results(folder)["metrics"]["AP50"], abs=1e-5)


def test_a_log_file_gets_one_line_per_epoch_with_its_ap(tmp_path):
    output = StringIO()
    given = settings(tmp_path / "run", epochs=4, eval_every=2, lr=0.05)
    engine.run(given, Console(file=output, width=200))
    result = [line for line in output.getvalue().splitlines() if line.startswith("epoch ")]
    figures = [line["val/AP"] for line in lines(tmp_path / "run") if "val/AP" in line]
    assert [line.split()[1] for line in result] == ["1/4", "2/4", "3/4", "4/4"]
    assert [f"AP {figure:.1f}" in line for figure, line in zip(figures, result[1::2], strict=True)] == [True, True]
    assert not any("AP" in line for line in result[::2])
    assert result[-1].endswith("0:00:00 left")


def test_results_contain_settings_metrics_and_machine(tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    result = results(tiny_run(tmp_path / "run", teacher=teacher, max_steps=3, seed=9).folder)
    expected = {
        "command": "distill",
        "name": "run",
        "family": "retinanet",
        "method": "defeat",
        "teacher": str(teacher),
        "data": "demo",
        "split": "val",
        "images": 4,
        "size": 64,
        "seed": 9,
        "steps": 3,
    }
    assert {name: result[name] for name in expected} == expected
    assert result["classes"] == ["cross", "disc", "ring", "square", "star", "triangle"]
    assert set(result["per_class"]) == set(result["classes"])
    assert result["versions"]["torch"] == torch.__version__.split("+")[0] or result["versions"]["torch"]
    assert result["parameters"] == sum(weight.numel() for weight in load(tmp_path / "run").parameters())
    assert result["model_bytes"] == (tmp_path / "run" / "model.safetensors").stat().st_size
    assert 0 < result["train_seconds"] <= result["wall_seconds"]
    assert {"processor", "cores", "threads", "accelerator"} <= result["machine"].keys()


# The second run stops in the middle of its second epoch: its figures must be those of the weights that it saved.
@every_family
@pytest.mark.parametrize("length", [{"epochs": 2}, {"epochs": 3, "max_steps": 6}])
def test_evaluating_a_run_repeats_its_last_evaluation(family, length, tmp_path):
    trained = tiny_run(tmp_path / "run", family, eval_every=1, lr=0.05, **length)
    assert trained.evaluation.images == 4
    # Untrained detectors score 0 everywhere; the compared scores must be above 0.
    again = evaluate(trained.folder, batch_size=2, workers=0, device="cpu")  # on the same split by default
    assert again.metrics == trained.evaluation.metrics
    assert again.per_class == trained.evaluation.per_class
    assert results(trained.folder)["metrics"] == again.metrics


def test_the_last_evaluation_belongs_to_the_last_step(tmp_path):
    # Six steps are an epoch and a half: evaluated after the epoch, and again at the end.
    folder = tiny_run(tmp_path / "run", epochs=3, max_steps=6, eval_every=1).folder
    assert [line["step"] for line in lines(folder) if "val/AP" in line][-1] >= 5


def test_an_untrained_teacher_is_refused_before_anything_is_written(tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    with pytest.raises(InputError, match="next to nothing"):
        tiny_run(tmp_path / "run", teacher=teacher, allow_weak_teacher=False)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run_with_its_name(tmp_path):
    with pytest.raises(InputError, match="not finite at step"):
        tiny_run(tmp_path / "run", max_steps=6, lr=1e30, grad_clip=0.0, warmup_steps=0)
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.parametrize(
    "change",
    [{"epochs": 0}, {"batch_size": 0}, {"size": 16}, {"flip": 1.5}, {"lr": 0.0}, {"lr": float("nan")}, {"seed": -1}],
)
def test_invalid_settings_are_refused_by_name(change, tmp_path):
    (name,) = change
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')} must be"):
        settings(tmp_path, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"devices": 0}, "--devices must be 1 or more"),
        ({"devices": 2, "norm": "syncbn"}, "--norm syncbn needs GPUs"),
        ({"precision": "16-mixed"}, "--precision 16-mixed needs a GPU"),
    ],
)
def test_invalid_devices_are_refused_before_anything_is_written(change, message, tmp_path):
    with pytest.raises(InputError, match=message):
        tiny_run(tmp_path / "run", **change)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("change", [{"accelerator": "gpu"}, {"accelerator": "gpu", "devices": 4}])
def test_a_missing_gpu_is_refused(change, tmp_path):
    with pytest.raises(InputError, match="no GPU was found"):
        tiny_run(tmp_path / "run", **change)


@pytest.mark.slow
@every_family
def test_outputs_that_the_method_does_not_read_change_nothing(family, tmp_path, monkeypatch):
    teacher = save_teacher(tmp_path / "teacher", family)
    lean = tiny_run(tmp_path / "lean", family, teacher, max_steps=3)
    monkeypatch.setattr(DeFeat, "needs", frozenset(DeFeat.reads))
    whole = tiny_run(tmp_path / "whole", family, teacher, max_steps=3)
    assert weights(lean.folder) == weights(whole.folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_trains(family, tmp_path):
    teacher = save_teacher(tmp_path / "teacher", family)
    make_decided(teacher)
    folder = tiny_run(
        tmp_path / "run", family, teacher, max_steps=2, precision="bf16-mixed", method_options=HEADS
    ).folder
    assert all(value.isfinite().all() for value in tensors(folder).values())
    assert all(value.dtype != torch.bfloat16 for value in tensors(folder).values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_trains_on_a_gpu(family, tmp_path):
    teacher = save_teacher(tmp_path / "teacher", family)
    options = {"max_steps": 3, "precision": "16-mixed", "accelerator": "gpu", "method_options": HEADS}
    folder = tiny_run(tmp_path / "run", family, teacher, **options).folder
    assert all(value.isfinite().all() for value in tensors(folder).values())
    assert results(folder)["machine"]["accelerator"] != "none"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", COMPOSED)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_on_a_gpu_the_saved_model_has_the_figures_of_the_last_evaluation(family, precision, tmp_path):
    given = {"max_steps": 60, "epochs": 10, "lr": 0.02, "size": 96, "max_size": 160, "batch_size": 4}
    folder = tiny_run(tmp_path / "run", family, accelerator="gpu", precision=precision, **given).folder
    result = evaluate(folder, workers=0, device="cuda").metrics
    assert result["AP50"] == pytest.approx(results(folder)["metrics"]["AP50"], abs=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("family", COMPOSED)
def test_head_terms_do_not_make_the_classification_loss_explode(family, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("defeat.data.demo", fromlist=["SPLITS"]).SPLITS, "train", 60)
    common = {"size": 96, "max_size": 160, "lr": 0.02, "flip": 0.0}
    teacher = tiny_run(tmp_path / "teacher", family, max_steps=60, epochs=10, **common).folder
    options = {"method_options": {"positive_weight": 2.0, "negative_weight": 2.0}, **common}
    folder = tiny_run(tmp_path / "student", family, teacher, max_steps=60, epochs=10, seed=1, **options).folder
    result = [line["train/classification"] for line in lines(folder) if "train/loss" in line]
    assert len(result) == 60
    assert all(json.loads(json.dumps(value)) == value for value in result)  # neither NaN nor infinity
    # Medians, because a batch of few objects has a loss of several times the usual.
    assert median(result[-10:]) <= 2 * median(result[:10])
