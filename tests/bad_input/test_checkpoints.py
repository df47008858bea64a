"""Bad files of weights and run directories: refused in a sentence, and no code in them is executed."""

import json
import math
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from defeat.detector import load, save_model
from defeat.detector.pretrained import load_torchvision
from defeat.detector.weights import read_state_dict
from defeat.engine.checkpoint import RunDirectory
from defeat.engine.checkpoint_file import read_checkpoint
from defeat.evaluation.detections import read_detections
from tests.bad_input.cases import refusal, table
from tests.detector.tiny import FAMILIES_IN_RUNS as FAMILIES
from tests.detector.tiny import tiny_detector
from tests.engine.tiny_runs import save_teacher, tiny_run

RAN = []


def run_code():
    RAN.append("code in a file was run")


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (run_code, ())


@pytest.fixture(autouse=True)
def nothing_runs():
    RAN.clear()
    yield
    assert not RAN


def test_the_trap_works():
    pickle.loads(pickle.dumps(Trap()))  # noqa: S301
    assert RAN == ["code in a file was run"]
    RAN.clear()


def a_folder(path):
    path.mkdir()


def nothing(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("This is no file of weights.")


def code_alone(path):
    path.write_bytes(pickle.dumps(Trap()))


def code_for_a_tensor(path):
    torch.save({"conv_stem.weight": Trap()}, path)


def code_beside_tensors(path):
    torch.save({"state_dict": {"a": torch.ones(1)}, "hyper_parameters": Trap()}, path)


def code_in_the_old_format(path):
    torch.save({"a": Trap()}, path, _use_new_zipfile_serialization=False)


def a_whole_module(path):
    torch.save(torch.nn.Linear(2, 2), path)


def cut_off(path):
    torch.save({"a": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:-500])


def numbers(path):
    torch.save({"a": 1.0, "b": 2}, path)


def names_that_are_numbers(path):
    torch.save({1: torch.ones(1)}, path)


def not_a_number(path):
    torch.save({"state_dict": {"a": torch.tensor([1.0, math.nan])}}, path)


def infinite(path):
    torch.save({"a": torch.tensor([1.0, math.inf])}, path)


UNREADABLE = [a_folder, nothing, text, code_alone, code_for_a_tensor, code_beside_tensors, code_in_the_old_format,
              a_whole_module, cut_off]  # fmt: skip
NO_WEIGHTS = [numbers, names_that_are_numbers]
NOT_FINITE = [not_a_number, infinite]


def case_name(plant):
    return plant.__name__.replace("_", " ")


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("plant", [*UNREADABLE, *NO_WEIGHTS, *NOT_FINITE], ids=case_name)
def test_a_file_of_weights_is_refused(plant, ending, tmp_path):
    path = tmp_path / f"weights.{ending}"
    plant(path)
    message = refusal(read_state_dict, path)
    assert str(path) in message
    if ending == "safetensors" or plant in UNREADABLE:
        assert "can't be read as weights" in message
    else:
        assert ("contains no state dict" if plant in NO_WEIGHTS else "not finite") in message


def test_torchvision_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.ones(1)}, path)
    assert "it has no classification layer" in refusal(load_torchvision, "retinanet_resnet50_fpn", path)
    assert "no such file" in refusal(lambda: tiny_detector("retinanet", weights=str(tmp_path)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save_model(tiny_detector("retinanet"), folder)
    return folder


@pytest.fixture
def run(saved, tmp_path):
    """A run directory with a trained detector."""
    for name in ("model.json", "model.safetensors"):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    return tmp_path


@pytest.mark.parametrize("plant", [plant for plant in UNREADABLE if plant is not a_folder], ids=case_name)
def test_a_run_with_invalid_safetensors_is_refused(plant, run):
    path = run / "model.safetensors"
    path.unlink()
    plant(path)
    assert f"{path} is damaged" in refusal(load, run)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_folder_instead_of_a_file_of_a_run_is_refused(name, run):
    (run / name).unlink()
    (run / name).mkdir()
    assert f"{name} is missing" in refusal(load, run)


def test_a_file_instead_of_a_run_is_refused(run):
    assert f"is not a run directory but a file of one: give the folder, {run}" in refusal(
        load, run / "model.safetensors"
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_run_with_weights_that_are_not_finite_is_refused(value, run):
    weights = load_file(run / "model.safetensors")
    name = sorted(weights)[5]
    weights[name] = weights[name].float().fill_(value)
    save_file(weights, run / "model.safetensors")
    message = refusal(load, run)
    assert "model.safetensors contains weights that are not finite" in message
    assert name in message


@table(
    ("a tensor missing", lambda weights: weights.pop(sorted(weights)[0])),
    ("a tensor too many", lambda weights: weights.update(more=torch.ones(1))),
    ("a tensor of another shape", lambda weights: weights.update({sorted(weights)[0]: torch.ones(1, 2, 3)})),
    ("none", lambda weights: weights.clear()),
)
def test_a_run_with_other_tensors_is_refused(case, run):
    (change,) = case
    weights = load_file(run / "model.safetensors")
    change(weights)
    save_file(weights, run / "model.safetensors")
    assert "is damaged or does not belong to" in refusal(load, run)


WRONG = {
    "family": [None, 3, "", "yolo", ["retinanet"]],
    "backbone": [None, 3, "", "resnet", "../../etc/passwd", ["resnet18"]],
    "classes": [None, [], "cat", [1, 2, 3], ["cat", "cat", "dog"], ["cat", "dog"], {"cat": 0}],
    "size": [None, 0, -1, "64", 1.5, True, 10**30, math.nan, [64]],
    "max_size": [None, 0, -1, "96", 1e300, [96]],
    "norm": [None, "", "layer", 3],
    "neck_channels": [None, 0, -1, "16", 1.5, 10**9, 8],
    "frozen_stages": [None, -1, "1", 50],
    "mean": [None, [], [0.5], [0.5] * 4, ["a", "b", "c"], [math.nan] * 3, "abc", {"r": 1}],
    "std": [None, [0, 0, 0], [-1, 1, 1], [math.inf] * 3, [0.5, 0.5]],
    "options": [None, [], "fast", {"unheard_of": 1}, {"score_thresh": "low"}, {"score_thresh": math.nan},
                {"topk_candidates": -1}, {"topk_candidates": 10**30}, {"anchor_sizes": [8]}, {"anchor_sizes": [-1] * 5},
                {"head_norm": "layer"}, {"round_anchors": "no"}, {"bg_iou_thresh": 0.9}],
    "format": [None, 0, 2, "1", [1]],
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in WRONG.items() for value in values], ids=str
)
def test_a_description_with_a_wrong_value_is_refused(field, value, run):
    description = json.loads((run / "model.json").read_text())
    (run / "model.json").write_text(json.dumps(description | {field: value}))
    assert str(run / "model.json") in refusal(load, run)


@table(
    ("empty", b""),
    ("cut off", b'{"format": 1, "fam'),
    ("not UTF-8", b'{"format": "\xff"}'),
    ("lists far inside", b"[" * 100_000),
    ("a number of 5000 digits", b'{"format": ' + b"9" * 5000 + b"}"),
    ("a text", b'"format"'),
)
def test_an_invalid_description_is_refused(case, run):
    (content,) = case
    (run / "model.json").write_bytes(content)
    assert str(run / "model.json") in refusal(load, run)


@table(
    ("empty", b"", "does not contain the settings"),
    ("a list", b"- a", "does not contain the settings"),
    ("not UTF-8", b"a: \xff", "is not valid YAML"),
    ("code", b"!!python/object/apply:os.getcwd []", "is not valid YAML"),
    ("a day that no month has", b"a: 2020-99-99", "is not valid YAML"),
    ("lists far inside", b"[" * 5000, "is not valid YAML"),
)
def test_invalid_settings_of_a_run_are_refused(case, tmp_path):
    content, expected = case
    (tmp_path / "config.yaml").write_bytes(content)
    message = refusal(RunDirectory(tmp_path).read_config)
    assert expected in message
    assert str(tmp_path) in message


@pytest.mark.parametrize("plant", UNREADABLE, ids=case_name)
def test_detections_that_are_damaged_are_refused(plant, tmp_path):
    path = tmp_path / "detections.safetensors"
    plant(path)
    assert f"{path} is damaged" in refusal(read_detections, path)


def last_checkpoint(**changes):
    module = torch.nn.Linear(2, 2)
    content = {"state_dict": module.state_dict(), "optimizer_states": [], "lr_schedulers": [], "loops": {}}
    return content | changes


def state(**changes):
    return last_checkpoint(state_dict=torch.nn.Linear(2, 2).state_dict() | changes)


@table(
    ("no part of a run", {"weights": torch.ones(1)}, "it is not a checkpoint of a run"),
    ("a list", [1, 2], "it is not a checkpoint of a run"),
    ("loops that are none", last_checkpoint(loops=[1]), "it is not a checkpoint of a run"),
    ("no optimiser", last_checkpoint(optimizer_states=None), "it is not a checkpoint of a run"),
    ("of another class count", state(weight=torch.ones(3, 2)), "1 of its tensors are not those of this detector"),
    ("of another detector", last_checkpoint(state_dict={"body.weight": torch.ones(1)}), "3 of its tensors are not"),
    ("numbers for tensors", state(weight=1.0), "1 of its tensors are not those of this detector, such as weight"),
    ("NaN", state(bias=torch.tensor([0.0, math.nan])), "its weights are not finite (bias)"),
    ("infinite", state(bias=torch.tensor([0.0, math.inf])), "its weights are not finite (bias)"),
)
def test_an_invalid_checkpoint_is_not_resumed(case, tmp_path):
    content, expected = case
    path = tmp_path / "last.ckpt"
    torch.save(content, path)
    message = refusal(read_checkpoint, path, torch.nn.Linear(2, 2))
    assert f"{path} can't be resumed from: {expected}" in message


def test_a_valid_checkpoint_is_resumed(tmp_path):
    torch.save(last_checkpoint(), tmp_path / "last.ckpt")
    read_checkpoint(tmp_path / "last.ckpt", torch.nn.Linear(2, 2))


@pytest.mark.parametrize("plant", UNREADABLE[1:], ids=case_name)
def test_a_file_that_is_not_a_checkpoint_is_not_resumed(plant, tmp_path):
    path = tmp_path / "last.ckpt"
    plant(path)
    assert "can't be resumed from: it is damaged, or contains more" in refusal(
        read_checkpoint, path, torch.nn.Linear(2, 2)
    )


def test_resuming_never_executes_code_in_the_checkpoint(small_demo, tmp_path):
    folder = tiny_run(tmp_path / "run", max_steps=1).folder
    path = folder / "checkpoints/last.ckpt"
    before = (folder / "model.safetensors").read_bytes()
    code_beside_tensors(path)
    message = refusal(lambda: tiny_run(folder, max_steps=1, resume=True))
    assert f"{path} can't be resumed from: it is damaged, or contains more than tensors" in message
    assert (folder / "model.safetensors").read_bytes() == before
    path.unlink()
    path.mkdir()
    assert "no checkpoint to resume from" in refusal(lambda: tiny_run(folder, max_steps=1, resume=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_teacher_with_weights_that_are_not_finite_is_refused(family, small_demo, tmp_path):
    teacher = save_teacher(tmp_path / "teacher", family)
    weights = load_file(teacher / "model.safetensors")
    save_file({name: value * math.nan for name, value in weights.items()}, teacher / "model.safetensors")
    assert "not finite" in refusal(lambda: tiny_run(tmp_path / "run", family, teacher=teacher, max_steps=1))
    assert not (tmp_path / "run").exists()
