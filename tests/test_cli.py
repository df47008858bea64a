"""The command line: output, files and exit codes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image

from defeat.benchmark import BenchRun
from defeat.cli import COMMANDS, main, run_settings
from defeat.command_options import TABLE, OptionTable, table
from defeat.data import demo
from defeat.demo import STUDENT
from defeat.distillation import METHODS, method_defaults
from tests.detector.tiny import BACKBONE, FIXED_BACKBONES
from tests.detector.tiny import COMPOSED as FAMILIES
from tests.engine.tiny_runs import save_teacher

TINY = (
    f"--data demo --detector retinanet --backbone {BACKBONE} --weights none --size 64 --max-size 96 "
    "--neck-channels 16 --epochs 1 --batch-size 2 --workers 0 --accelerator cpu"
).split()
DISTILL = ["distill", "--data", "demo", "--out", "x", "--teacher", "t", "--weights", "none"]


def refusal(capsys, *arguments):
    """The message of a refused call: one line on the error stream, no traceback, code 2."""
    assert main(list(arguments)) == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    lines = printed.err.strip().splitlines()
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("defeat: ")
    return lines[0]


def settings(command, *arguments):
    required = ["--data", "demo", "--out", "never-written"] + (["--teacher", "T"] if command == "distill" else [])
    return run_settings([*required, *arguments], command)


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^  {command} ", text, re.MULTILINE) for command in COMMANDS)


def test_the_table_of_the_help_has_the_options_of_the_code():
    # `python -m defeat.command_options` writes it anew.
    code, stored = OptionTable(json.loads(json.dumps(table()))), OptionTable(json.loads(TABLE.read_text()))
    assert stored.content.keys() == code.content.keys()
    for kind, names in code.content.items():
        assert stored.content[kind].keys() == names.keys()
    for command in COMMANDS:
        assert stored.of_command(command) == code.of_command(command)
    for family in FAMILIES:
        assert stored.of_detector(family) == code.of_detector(family)
    for method in METHODS:
        assert stored.of_method(method) == code.of_method(method)
    for ablation in code.content["ablations"]:
        assert stored.ablated(ablation) == code.ablated(ablation) != []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_that_is_slow(command):
    heavy = {"torch", "torchvision", "lightning", "numpy", "cv2", "PIL", "rich"}
    code = f"import sys; from defeat.cli import main; main([{command!r}, '--help']); print({heavy} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert f"usage: defeat {command}" in printed
    assert printed.endswith("set()\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["distill", "--method", "pkd", "--detector", "gfl"],
        ["distill", "--method", "defeat+bckd"],
        ["plan", "--method=ld"],
        ["train", "--detector", "d_fine"],
        ["bench", "--methods", "none,fgd+inherit", "--detector", "retinanet"],
        ["bench", "--ablate", "regions"],
    ],
)
def test_the_help_of_the_table_is_that_of_the_code(arguments, monkeypatch, capsys, tmp_path):
    printed = []
    for path in (TABLE, tmp_path / "missing.json"):
        monkeypatch.setattr("defeat.command_options.TABLE", path)
        assert main([*arguments, "--help"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_help_depends_on_the_detector_of_a_recipe(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("command: train\ndetector: ssdlite\n")
    assert main(["train", "--config", str(tmp_path / "recipe.yaml"), "--help"]) == 0
    of_recipe = capsys.readouterr().out
    assert main(["train", "--detector", "ssdlite", "--help"]) == 0
    assert capsys.readouterr().out == of_recipe


def test_help_with_an_unknown_method_names_the_nearest(capsys):
    assert "Did you mean 'pkd'" in refusal(capsys, "distill", "--method", "pkdd", "--help")


def test_a_missing_command_prints_the_help_and_is_wrong_usage(capsys):
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().out


def test_methods_are_listed_with_paper_inputs_and_defaults(capsys):
    assert main(["methods"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, method in METHODS.items():
        assert f"{name} " in text
        assert method.paper in text
    assert "--method.object-weight=32.0 --method.phi=0.5" in text
    assert "--method.backbone-strides=[8,16,32]" in text


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_described_with_all_options(name, capsys):
    assert main(["methods", name]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert METHODS[name].paper in text
    for option, default in method_defaults(name).items():
        shown = f"[{','.join(map(str, default))}]" if isinstance(default, tuple) else str(default).lower()
        assert re.search(rf"--method\.{option.replace('_', '-')}={re.escape(shown)} \S+", text), option


def test_an_unknown_method_is_refused(capsys):
    assert "Did you mean 'pkd'" in refusal(capsys, "methods", "pkdd")


def test_recipes_are_listed_with_figures_and_commands(capsys):
    assert main(["recipes"]) == 0
    text = capsys.readouterr().out
    assert "voc/r101_r50_defeat  voc07_ap50 82.04 (Guo et al." in text
    assert (
        "    defeat train --config small/photographs --data DATA --backbone NAME --out runs/small_photographs\n" in text
    )


@pytest.mark.parametrize("flag", ["--method.obj-weight", "--detector.obj-weight", "--lr-decay"])
def test_an_unknown_option_lists_those_of_its_group(flag, capsys):
    message = refusal(capsys, *DISTILL, flag, "1")
    listed = set(re.findall(r"--[a-z.-]*[a-z]", message.split("Valid names:")[1]))
    group = flag.partition(".")[0] + "." if "." in flag else ""
    assert len(listed) > 5
    assert all(name.startswith(group) if group else "." not in name for name in listed)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert re.fullmatch(r"defeat \d+\.\d+.*\n", capsys.readouterr().out)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_a_command_has_a_help_line(command, capsys):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    options = re.split(r"\n  (?=-)", text.split("options:", 1)[1])
    assert len(options) > 2 or command in ("methods", "recipes")
    for option in options[1:]:
        flag, _, rest = option.partition(" ")
        assert re.search(r"[a-z]{3,}", rest.split("\n\n")[0]), f"{flag} of {command} has no help: {option}"
    assert "_options" not in text


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["trian"], r"trian.*Did you mean 'train'"),
        (["train", "--bachsize", "4"], r"--bachsize.*--batch-size"),
        (["train", "--data", "demo"], r"Missing: --out"),
        (["evaluate"], r"Missing: RUN, --data|Missing: RUN|Missing: --data, RUN"),
        (["train", "--data", "demo", "--out", "x", "--epochs", "many"], r"--epochs: 'many' is not valid"),
        (["train", "--data", "demo", "--out", "x", "--epochs", "0"], r"--epochs must be 1 or more"),
        (["train", "--data", "demo", "--out", "x", "--norm", "layer"], r"--norm: 'layer' is not valid.*gn"),
        (["train", "--data", "demo", "--out", "x", "--detector", "retina"], r"retina.*retinanet"),
        ([*DISTILL, "--method", "defeet"], r"defeet.*defeat"),
        ([*DISTILL, "--method.objectweight", "1"], "object-weight"),
        ([*DISTILL, "--method.object-weight", "-1"], "object"),
        (["train", "--config", "nowhere.yaml"], r"nowhere.yaml does not exist"),
        (["compare", "nowhere"], r"nowhere"),
        (["evaluate", "nowhere", "--data", "demo"], r"nowhere"),
        (["evaluate", "one", "two", "--data", "demo"], r"Unexpected argument 'two'"),
        (["predict", "t", "nowhere.jpg", "--out", "y"], r"nowhere.jpg does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_gives_one_line_that_says_what_to_do(arguments, pattern, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "t" in arguments:
        save_teacher(Path("t"))
    assert re.search(pattern, refusal(capsys, *arguments))
    assert not Path("x/config.yaml").exists()


def test_a_folder_without_data_is_refused_with_the_known_formats(capsys, tmp_path):
    line = refusal(capsys, "train", "--data", str(tmp_path), "--out", str(tmp_path / "run"))
    assert "VOC" in line
    assert "COCO" in line
    assert "YOLO" in line


def test_options_of_method_and_detector_reach_the_settings():
    given = settings("distill", "--method.object-weight", "3", "--detector", "retinanet", "--detector.head-norm", "gn")
    assert given.method_options["object_weight"] == 3
    assert given.detector_options["head_norm"] == "gn"


@pytest.mark.parametrize(
    ("arguments", "value"),
    [([], True), (["--norm-decay"], True), (["--norm-decay", "false"], False), (["--norm-decay=false"], False)],
)
def test_a_switch_may_have_a_value(arguments, value):
    assert settings("train", *arguments, "--epochs", "3").norm_decay is value


def test_an_option_overrides_the_recipe_in_any_order(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("epochs: 7\nlr: 0.5\ndetector: retinanet\ndetector_options:\n  head_norm: gn\n")
    for arguments in (["--config", str(recipe), "--epochs", "3"], ["--epochs", "3", "--config", str(recipe)]):
        given = settings("train", *arguments)
        assert (given.epochs, given.lr, given.detector) == (3, 0.5, "retinanet")
        assert given.detector_options["head_norm"] == "gn"


def test_a_recipe_of_another_command_is_refused(capsys, tmp_path):
    recipe = tmp_path / "config.yaml"
    recipe.write_text("command: train\ndata: demo\nout: x\n")
    assert "another command" in refusal(capsys, "distill", "--config", str(recipe), "--teacher", "t")


def test_an_internal_error_differs_from_wrong_usage(capsys, monkeypatch):
    def broken(arguments):
        raise ZeroDivisionError("planted")

    monkeypatch.setitem(COMMANDS, "train", broken)
    assert main(["train"]) == 1
    printed = capsys.readouterr().err
    assert "planted" in printed
    assert "internal error" in printed


def test_from_data_to_pictures_in_five_commands(small_demo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *TINY, "--out", "teacher"]) == 0
    assert main(["train", *TINY, "--out", "student"]) == 0
    distill = ["distill", *TINY, "--teacher", "teacher", "--allow-weak-teacher", "--method.object-weight", "2"]
    assert main([*distill, "--out", "distilled"]) == 0
    config = yaml.safe_load(Path("distilled/config.yaml").read_text())
    assert config["command"] == "distill"
    assert config["method_options"]["object_weight"] == 2

    capsys.readouterr()
    assert main(["evaluate", "distilled", "--data", "demo", "--split", "test"]) == 0
    assert "AP50" in capsys.readouterr().out
    assert main(["compare", "teacher", "student", "distilled", "--out", "report.html"]) == 0
    assert "</html>" in Path("report.html").read_text()
    assert "distilled" in capsys.readouterr().out

    Path("photos").mkdir()
    Image.new("RGB", (80, 60), "green").save("photos/a.png")
    assert main(["predict", "distilled", "photos", "--out", "drawn"]) == 0
    assert isinstance(json.loads(Path("drawn/detections.json").read_text()), list)
    assert len(list(Path("drawn").glob("a*.*"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_two_processes_train_one_student_and_one_process_writes(family, tmp_path):
    teacher = save_teacher(tmp_path / "teacher", family)
    tiny = [argument if argument != "retinanet" else family for argument in TINY]
    if family in FIXED_BACKBONES:
        tiny = [FIXED_BACKBONES[family] if argument == BACKBONE else argument for argument in tiny]
        first = tiny.index("--neck-channels")
        del tiny[first : first + 2]
    more = f"--teacher {teacher} --allow-weak-teacher --max-steps 3 --log-every 1 --devices 2 --norm frozen".split()
    heads = ["--method.positive-weight", "1", "--method.negative-weight", "1"]
    command = [sys.executable, "-m", "defeat.cli", "distill", *tiny, *more, *heads, "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run/results.json").read_text())
    assert result["steps"] == 3
    # Each image of the validation split counts once, also with two processes.
    assert result["images"] == demo.SPLITS["val"]
    steps = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    terms = ("neck_object", "neck_background", "head_positive", "head_negative")
    assert [line["step"] for line in steps if "train/loss" in line] == [0, 1, 2]
    assert all(line[f"train/{term}"] > 0 for line in steps if "train/loss" in line for term in terms)
    assert (tmp_path / "run/report.html").is_file()


@pytest.mark.slow
def test_two_processes_train_every_cell_of_a_comparison(tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    more = f"--teacher {teacher} --allow-weak-teacher true --max-steps 2 --devices 2 --norm frozen --epochs 1".split()
    cells = ["--methods", "none,defeat", "--seeds", "2", "--out", str(tmp_path / "bench")]
    command = [sys.executable, "-m", "defeat.cli", "bench", *TINY, *more, *cells]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "bench/bench.json").read_text())
    assert content["missing"] == []
    assert {cell["steps"] for cell in content["cells"].values()} == {2}
    assert content["images"] == demo.SPLITS["test"]
    for number in range(1, 5):  # printed by one of the two processes
        assert done.stderr.count(f"cell {number} of 4") == 1


def test_config_yaml_reproduces_a_run(small_demo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *TINY, "--out", "first"]) == 0
    assert main(["train", "--config", "first/config.yaml", "--out", "second"]) == 0
    assert Path("first/model.safetensors").read_bytes() == Path("second/model.safetensors").read_bytes()


def test_a_run_is_not_overwritten(small_demo, tmp_path, capsys):
    out = str(tmp_path / "run")
    assert main(["train", *TINY, "--out", out]) == 0
    capsys.readouterr()
    assert main(["train", *TINY, "--out", out]) == 2
    error = capsys.readouterr().err
    assert out in error
    assert "--resume" in error


@pytest.mark.slow
def test_a_run_that_ctrl_c_stopped_is_resumed(tmp_path):
    """A real process and a real signal, in the middle of an epoch."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "defeat.cli", "train", *TINY, "--batch-size", "8", "--out", str(out)]
    command += ["--log-every", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    metrics = out / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 3):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 130, printed
    assert "Traceback" not in printed
    assert "--resume" in printed
    assert (out / "checkpoints" / "last.ckpt").exists()
    assert not (out / "results.json").exists()
    again = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=300, env=environment)
    assert again.returncode == 0, again.stderr
    steps = [line["step"] for line in map(json.loads, metrics.read_text().splitlines()) if "train/loss" in line]
    assert steps == list(range(30))
    assert (out / "results.json").exists()


def test_a_stopped_demo_reports_no_gain(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("defeat.demo.bench", lambda **_: BenchRun(stopped=True))
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 130
    assert "Gain" not in capsys.readouterr().out


def test_the_demo_prints_a_gain_and_writes_a_report_and_a_picture(small_demo, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(STUDENT, "epochs", 1)
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), "--seeds", "1", "--jobs", "1"]) == 0
    output = capsys.readouterr().out
    assert "Gain from distillation" in output
    assert re.search(r"AP \d+\.\d without a teacher, \d+\.\d with it: [+-]\d+\.\d, 95 % interval", output)
    assert "defeat train --data DATA" in output
    assert (out / "report.html").exists()
    with Image.open(out / "scene.png") as picture:
        assert picture.width > 3 * picture.height  # four panels
    distilled = json.loads((out / "defeat-inherit-seed0" / "results.json").read_text())
    assert distilled["inherited"]["parts"] == ["neck", "head"]
    assert main(["demo", "--out", str(out)]) == 2
    assert "is not an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "positional", "rest"),
    [
        ("predict", ["RUN", "IMAGES .."], "--out OUT [OPTIONS]"),
        ("compare", ["RUNS .."], "[OPTIONS]"),
        ("evaluate", ["RUN"], "[OPTIONS]"),
        ("distill", [], "--data DATA --out OUT --teacher TEACHER [OPTIONS]"),
        ("methods", ["[NAME]"], "[OPTIONS]"),
    ],
)
def test_help_shows_the_usage_of_a_command(command, positional, rest, capsys):
    assert main([command, "--help"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == " ".join(["usage: defeat", command, *positional, rest])
    documented = [line.strip().split("   ")[0] for line in lines]
    for name in ("RUN", "RUNS ..", "IMAGES .."):
        assert documented.count(name) == (name in positional)
    options = ["--run", *["--images"] * ("IMAGES .." in positional)]
    assert not [line for line in lines if any(option in line for option in options) or line != line.rstrip()]
