"""`defeat taps`, and a teacher from a function of the user's code."""

import pytest

from defeat.assembly.foreign import own_network, tapped_teacher
from defeat.cli import main
from defeat.errors import InputError
from tests.engine.tiny_runs import results, settings

CODE = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 4, 3, 4, 1)
        self.deep = torch.nn.Conv2d(4, 6, 3, 2, 1)
        self.deeper = torch.nn.Conv2d(6, 6, 3, 2, 1)

    def forward(self, images):
        return self.deeper(self.deep(self.stem(images)))

def make():
    torch.manual_seed(0)
    return Net()

def broken():
    raise OSError("no weights")

def number():
    return 3
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_net.py").write_text(CODE)
    (tmp_path / "taps.yaml").write_text("neck: {8: deep, 16: deeper}\n")
    return tmp_path


def test_the_command_lists_feature_maps_with_shape_and_stride(code, capsys):
    assert main(["taps", "own_net.py:make", "--size", "64"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["stem", "1", "x", "4", "x", "16", "x", "20", "4", "maps"] in rows
    assert ["deep", "1", "x", "6", "x", "8", "x", "10", "8", "maps"] in rows
    assert ["neck:", "{4:", "stem,", "8:", "deep,", "16:", "deeper}"] in rows


def test_a_network_of_the_users_code_is_a_teacher_on_the_command_line(code, capsys):
    given = settings(code / "run", max_steps=2)
    arguments = [
        "distill",
        "--data",
        "demo",
        "--out",
        "run",
        "--teacher",
        "own_net:make",
        "--teacher-taps",
        "taps.yaml",
    ]
    arguments += [
        "--backbone",
        given.backbone,
        "--weights",
        "none",
        "--size",
        "64",
        "--max-steps",
        "2",
        "--workers",
        "0",
    ]
    arguments += ["--detector", "retinanet", "--neck-channels", "8", "--log-every", "1", "--accelerator", "cpu"]
    assert main(arguments) == 0
    assert "The teacher gives no detections" in " ".join(capsys.readouterr().err.split())
    assert results(code / "run")["teacher"] == "own_net:make"
    assert '"train/neck_object"' in (code / "run" / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_net.py", "names no function"),
        ("nowhere.py:make", r"nowhere.py does not exist"),
        ("no_such_module:make", "no_such_module can't be imported: ModuleNotFoundError"),
        ("own_net.py:mak", "Unknown function of own_net.py .mak.. Did you mean .make."),
        ("own_net.py:broken", "own_net.py:broken failed: OSError: no weights"),
        ("own_net.py:number", "returns a int, not an nn.Module"),
    ],
)
def test_what_is_not_a_network_is_refused(name, message, code):
    with pytest.raises(InputError, match=message):
        own_network(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 3", "give lines such as `neck:"),
        ("neck: 3", "give lines such as `neck:"),
        ("neck: {8: deep}\nmeen: [0, 0, 0]", "Did you mean 'mean'"),
        ("neck: {eight: deep}", "neck must map strides to names"),
        ("neck: {8: deep, 32: deeper}", "which is stride 16, not 32"),
        ("neck: {8: deeep}", "deep"),
    ],
)
def test_invalid_taps_are_refused(text, message, code):
    (code / "taps.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        tapped_teacher("own_net.py:make", "taps.yaml")


def test_a_missing_file_of_taps_is_named(code):
    with pytest.raises(InputError, match=r"--teacher-taps nowhere\.yaml can.t be read"):
        tapped_teacher("own_net.py:make", "nowhere.yaml")
