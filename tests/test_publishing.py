"""A published student is what others load; the card says what was measured, and nothing of this machine."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from defeat.detector import load
from defeat.errors import InputError
from defeat.publishing import model_card, push
from defeat.report.runs import read_run
from tests.engine.tiny_runs import save_teacher, tiny_run
from tests.fake_hub import TOKEN, running_hub

pytestmark = pytest.mark.usefixtures("small_demo")


@pytest.fixture
def runs(tmp_path):
    """A baseline and a distilled student that can be compared."""
    teacher = save_teacher(tmp_path / "teacher")
    shared = {"max_steps": 2, "lr": 0.05}
    return {
        "teacher": teacher,
        "baseline": str(tiny_run(tmp_path / "baseline", **shared).folder),
        "distilled": str(tiny_run(tmp_path / "distilled", teacher=teacher, inherit="none", **shared).folder),
    }


@pytest.fixture
def hub():
    with running_hub() as running:
        yield running


def defeat(hub, folder, *arguments, token=TOKEN):
    """Run a command in another process, because the address of the hub is read once."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": hub.address, "HF_HOME": str(folder / "cache"), "HF_TOKEN": token}
    command = [sys.executable, "-m", "defeat.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder, timeout=120)


@pytest.mark.slow
def test_a_pushed_student_is_loaded_by_its_name(runs, hub, tmp_path):
    (tmp_path / "student.onnx").write_bytes(b"a file of export")
    sent = defeat(hub, tmp_path, "push", runs["distilled"], "me/student", "--files", "student.onnx", "--private=true")
    assert sent.returncode == 0, sent.stderr
    assert f"Published: {hub.address}/me/student" in sent.stdout
    assert {path.name for path in map(Path, hub.files)} == {
        "README.md",
        "model.json",
        "model.safetensors",
        "student.onnx",
    }
    assert hub.files["me/student/model.safetensors"] == (Path(runs["distilled"]) / "model.safetensors").read_bytes()
    hub.private = True
    photo = tmp_path / "photo.png"
    shutil.copy(Path(__file__).parents[1] / "docs" / "scene.png", photo)
    predicted = defeat(hub, tmp_path, "predict", "hf:me/student", str(photo), "--out", "pictures")
    assert predicted.returncode == 0, predicted.stderr
    refused = defeat(hub, tmp_path, "predict", "hf:me/other", str(photo), "--out", "pictures")
    assert refused.returncode == 2
    assert "hf:me/other can't be loaded" in refused.stderr
    assert "hf auth login" in refused.stderr
    hub.files["me/half/model.json"] = hub.files["me/student/model.json"]
    incomplete = defeat(hub, tmp_path, "predict", "hf:me/half", str(photo), "--out", "pictures")
    assert incomplete.returncode == 2
    assert "hf:me/half can't be loaded" in incomplete.stderr
    cached = next((tmp_path / "cache").rglob("model.safetensors")).parent
    mine, theirs = load(runs["distilled"]).state_dict(), load(cached).state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.slow
def test_a_refused_push_is_one_sentence(runs, hub, tmp_path):
    refused = defeat(hub, tmp_path, "push", runs["distilled"], "me/student", token="hf_wrong")  # noqa: S106
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "me/student can't be published" in refused.stderr
    assert not hub.files


def test_the_card_says_what_was_measured_and_nothing_of_this_machine(runs, tmp_path):
    card = model_card(read_run(runs["distilled"]), "me/student", read_run(runs["baseline"]), "apache-2.0", "CC BY 4.0")
    head, text = card.removeprefix("---\n").split("---\n", 1)
    values = yaml.safe_load(head)
    results = json.loads((Path(runs["distilled"]) / "results.json").read_text())
    assert values["license"] == "apache-2.0"
    (result,) = values["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == round(results["metrics"]["AP"], 1)
    assert f"| all classes | {results['metrics']['AP']:.1f} |" in text
    assert "95 % interval of AP over the images" in text
    assert "Distillation: " in text
    assert "relative to the baseline" in text
    assert "demo (CC BY 4.0)" in text
    teacher = json.loads((runs["teacher"] / "model.json").read_text())
    assert f"- Teacher: `{teacher['family']}` on `{teacher['backbone']}`, method `defeat`" in text
    (runs["teacher"] / "model.json").unlink()
    assert "- Teacher: detector, method `defeat`" in model_card(read_run(runs["distilled"]), "me/student")
    assert 'defeat.load("hf:me/student")' in text
    assert str(tmp_path) not in card


def test_a_card_without_licences_says_so(runs):
    card = model_card(read_run(runs["baseline"]), "me/student")
    assert "license" not in yaml.safe_load(card.removeprefix("---\n").split("---\n", 1)[0])
    assert "licence not stated" in card
    assert "Teacher" not in card


def test_a_card_is_written_without_sending_anything(runs, tmp_path):
    path = tmp_path / "card.md"
    assert push(runs["baseline"], "me/student", card=str(path)) == str(path)
    assert path.read_text().startswith("---\nlibrary_name: defeat\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"repository": "student"}, "give ORG/NAME"),
        ({"repository": "me/"}, "give ORG/NAME"),
        ({"files": ["missing.onnx"]}, "missing.onnx is not a file"),
        ({"baseline": "distilled", "run": "baseline"}, "was trained without a teacher: leave out --baseline"),
        ({"card": "missing/card.md"}, "--card missing/card.md can't be written"),
    ],
)
def test_wrong_arguments_are_refused(runs, change, message):
    given = {"run": "distilled", "repository": "me/student", "card": "card.md"} | change
    for name in ("run", "baseline"):
        if name in given:
            given[name] = runs[given[name]]
    with pytest.raises(InputError, match=message):
        push(**given)
