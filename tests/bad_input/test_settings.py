"""Every option of every command with invalid values: refused in one line, or accepted for a stated reason."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from defeat.assembly.assemble import assemble, check_devices
from defeat.assembly.settings import bytes_of
from defeat.benchmark.matrix import chosen_cells
from defeat.cli import main
from defeat.detector import family_options
from defeat.distillation import build_method, find_method
from tests.bad_input.cases import refusal, table
from tests.bad_input.settings_table import DISTILL, TRAIN, cases
from tests.detector.tiny import COMPOSED as FAMILIES
from tests.detector.tiny import tiny_detector
from tests.engine.tiny_runs import CLASSES, save_teacher
from tests.report.made_up_runs import write_story

CASES = list(cases())
ACCEPTED, REFUSED = 130, 2  # exit codes: what passes all checks is stopped by Ctrl-C

# Reasons for accepting unusual values: kind of the value, reason, and options.
REASONS = {
    "zero": {
        "a weight of 0 switches a term off": (
            "object-weight background-weight backbone-object-weight backbone-background-weight class-weight map-weight "
            "positive-weight negative-weight detector-negatives unlabelled-ratio weight-decay box-weight giou-weight "
            "encoder-weight channel-weight correlation-weight generation-weight attention-weight relation-weight "
            "main-weight valuable-weight"
        ),
        "a fraction of 0 means none, and a score threshold of 0 accepts all": (
            "momentum flip warmup phi box-positive-fraction box-score-thresh box-nms-thresh score-thresh nms-thresh "
            "bg-iou-thresh threshold masked-share least-score iou-threshold"
        ),
        "0 is documented as none, all or as many as needed": (
            "warmup-steps grad-clip frozen-stages eval-every checkpoint-every workers sampling-ratio ema denoising "
            "class-channels adaptation-kernel"
        ),
        "0 is a seed": "seed",
    },
    "huge": {
        "a run may have any length and any interval": (
            "epochs max-steps warmup-steps eval-every checkpoint-every log-every grad-clip patience"
        ),
        "a batch larger than the data set contains all images": "batch-size",
        "a step of more batches than an epoch has ends with the epoch": "accumulate",
        "more queries or levels than there are are all of them": "queries finest-levels",
        "a loss that is not finite stops the run with another error": (
            "lr weight-decay balance object-weight background-weight backbone-object-weight backbone-background-weight "
            "class-weight map-weight positive-weight negative-weight temperature positive-temperature "
            "negative-temperature detector-negatives detector-negatives-decay box-weight giou-weight encoder-weight "
            "channel-weight correlation-weight generation-weight attention-weight relation-weight main-weight "
            "valuable-weight"
        ),
        "checked when the backbone is built": "frozen-stages",
        "an image may be as large as memory allows": "max-pixels",
    },
}
FINE = {(what, name) for what, found in REASONS.items() for names in found.values() for name in names.split()}


@pytest.fixture(scope="module")
def infos():
    return {family: tiny_detector(family, classes=CLASSES).info for family in FAMILIES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a teacher and an image."""
    path = tmp_path_factory.mktemp("commands")
    save_teacher(path / "teacher")
    Image.new("RGB", (20, 10)).save(path / "picture.png")
    return path


def stop(*_, **__):
    raise KeyboardInterrupt


@pytest.fixture
def checks_only(infos, folder, monkeypatch):
    """Check all settings without training, detecting or writing anything."""

    def check(settings, *_):
        check_devices(settings)
        family_options(settings.detector)(**settings.detector_options)
        if hasattr(settings, "method"):
            info = infos[settings.detector]
            if "queries" in find_method(settings.method).reads:
                info = replace(info, offers=info.offers | {"queries", "dense"})
            elif find_method(settings.method).reads[0] == "dense":
                offers = frozenset({"dense", "towers"})
                info = replace(info, offers=offers, activation="sigmoid", background="none", bins=17)
            build_method(settings.method, info, info, settings.method_options)
        stop()

    monkeypatch.setattr("defeat.assembly.run.run", check)
    monkeypatch.setattr("defeat.benchmark.run._print_plan", stop)
    monkeypatch.setattr("defeat.inference.evaluate.detect_split", stop)
    monkeypatch.setattr("defeat.inference.predict._Work.process", stop)
    monkeypatch.setattr("defeat.benchmark.run.Matrix.write", stop)
    monkeypatch.chdir(folder)


def refused_line(capsys):
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    lines = printed.splitlines()
    assert len(lines) == 1, printed
    assert lines[0].startswith("defeat: ")
    assert len(lines[0]) < 1500
    return lines[0]


@pytest.mark.usefixtures("checks_only")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_value_is_refused_or_accepted_for_a_reason(case, capsys):
    code = main([case.command, *case.arguments, f"{case.flag}={case.value}"])
    if (case.what, case.name) in FINE and code == ACCEPTED:
        return
    assert code == REFUSED, f"accepted without a reason, or an internal error: {case}"
    line = refused_line(capsys).lower().replace("-", " ").replace("_", " ")
    # In full, or in another form: "Temperatures", "Unknown ablation".
    assert any(word[:4] in line for word in case.name.split("-")), line


def test_every_reason_belongs_to_an_option():
    assert {(case.what, case.name) for case in CASES} >= FINE


@pytest.mark.usefixtures("checks_only")
@pytest.mark.parametrize(
    "arguments", [["train", *TRAIN], ["distill", *DISTILL], ["bench", *DISTILL, "--plan"]], ids=str
)
def test_the_arguments_are_valid_without_the_invalid_option(arguments):
    assert main(arguments) == ACCEPTED


@table(
    ("command", ["trian"], "Did you mean 'train'"),
    ("option", ["train", *TRAIN, "--lerning-rate=1"], "Unknown option '--lerning-rate'"),
    ("option with a tag", ["evaluate", "teacher", "--dat=demo"], "Unknown option '--dat'"),
    ("detector", ["train", *TRAIN, "--detector=yolo"], "Unknown detector 'yolo'"),
    ("method", ["distill", *DISTILL, "--method=defeet"], "Did you mean 'defeat'"),
    ("method of a comparison", ["bench", *DISTILL, "--plan", "--methods=defeet"], "Did you mean 'defeat'"),
    ("ablation", ["bench", *DISTILL, "--plan", "--ablate=region"], "Did you mean 'regions'"),
    ("backbone", ["train", *TRAIN, "--backbone=resnet5"], "Unknown backbone 'resnet5'"),
    ("backbone that is a path", ["train", *TRAIN, "--backbone=../a"], "Unknown backbone '../a'"),
    ("too many stages", ["train", *TRAIN, "--frozen-stages=99"], "--frozen-stages 99:"),
    ("file of weights", ["train", *TRAIN, "--weights=nowhere.pth"], "--weights nowhere.pth: no such file"),
    ("folder of weights", ["train", *TRAIN, "--weights=."], "--weights .: no such file"),
    ("run with another detector", ["train", *TRAIN, "--weights=teacher"], "--weights teacher: it is another detector"),
    ("split", ["train", *TRAIN, "--split=trian"], "no split 'trian'"),
    ("split to evaluate on", ["train", *TRAIN, "--eval-split=tset"], "no split 'tset'"),
    ("class", ["train", *TRAIN, "--classes=[disk]"], "Did you mean 'disc'"),
    ("class given twice", ["train", *TRAIN, "--classes=[disc, disc]"], "A class is given twice"),
    ("no class", ["train", *TRAIN, "--classes=[]"], "The list of classes is empty"),
    ("data", ["train", *TRAIN, "--data=nowhere"], "no data set at 'nowhere'"),
    ("recipe", ["train", *TRAIN, "--config=voc/defeet"], "Unknown recipe 'voc/defeet'"),
    ("teacher", ["distill", *DISTILL, "--teacher=nowhere"], "nowhere is not a run directory"),
    ("teacher of torchvision", ["distill", *DISTILL, "--teacher=torchvision:yolo"],
     "Unknown torchvision detector 'yolo'"),
    ("weights of a teacher", ["distill", *DISTILL, "--teacher-weights=a.pth"], "for a torchvision model only"),
    ("file of class names", ["distill", *DISTILL, "--class-map=nowhere.yaml"],
     "--class-map nowhere.yaml can't be read"),
    ("folder of class names", ["distill", *DISTILL, "--class-map=teacher"], "--class-map teacher can't be read"),
    ("images without annotations", ["distill", *DISTILL, "--allow-weak-teacher", "--unlabelled=nowhere"],
     "is not a folder"),
    ("device", ["evaluate", "teacher", "--data=demo", "--device=tpu"], "--device tpu: give auto, cpu or cuda"),
    ("device without memory", ["evaluate", "teacher", "--data=demo", "--device=meta"], "--device meta: give auto"),
    ("device with a number", ["predict", "teacher", "picture.png", "--out=x", "--device=cuda:999"], "--device cuda"),
    ("cells", ["bench", *DISTILL, "--plan", "--cells=1-x"], "--cells 1-x: give numbers and ranges"),
    ("cells beyond the last", ["bench", *DISTILL, "--plan", "--cells=1-999999999"], "there are cells 1 to 18"),
    ("run", ["evaluate", "nowhere", "--data=demo"], "nowhere is not a run directory"),
    ("runs", ["compare", "nowhere"], "nowhere is not a folder"),
)  # fmt: skip
def test_an_unknown_name_is_refused(case, checks_only, small_demo, monkeypatch, capsys):
    arguments, expected = case

    def prepare(settings, *_):
        assemble(settings, Console(quiet=True))
        stop()

    monkeypatch.setattr("defeat.assembly.run.run", prepare)
    assert main(arguments) == REFUSED
    assert expected in refused_line(capsys)
    assert not Path("never-written").exists()


@table(
    ("unit", "20 parsecs"),
    ("below zero", "-5GB"),
    ("word", "much"),
    ("400 digits", "9" * 400 + "GB"),
    ("two points", "1.2.3GB"),
)
def test_a_limit_of_space_is_refused(case):
    (arguments,) = case
    assert "--cache-limit" in refusal(bytes_of, arguments, "cache_limit")


@table(("0",), ("16",), ("3-1",), ("1-",), ("-1",), ("1,,2",), ("1-99999999999999999999",), ("999999999",))
def test_invalid_cells_are_refused(case, request):
    assert "--cells" in refusal(chosen_cells, request.node.callspec.id, 15)


@table(
    ("not there", None, "does not exist"),
    ("a list", "- epochs\n", "does not contain settings"),
    ("not YAML", "epochs: [", "can't be read"),
    ("a day that no month has", "seed: 2020-99-99\n", "can't be read"),
    ("lists far inside", "[" * 5000, "can't be read"),
    ("code", "out: !!python/object/apply:os.getcwd []\n", "can't be read"),
    ("itself", "extends: recipe.yaml\n", "extends itself"),
    ("another that is not there", "extends: nowhere.yaml\n", "can't be read"),
    ("of another command", "command: distill\n", "belongs to another command"),
    ("unknown setting", "epoch: 3\n", "epoch"),
    ("wrong type", "epochs: many\n", "--epochs: 'many' is not valid"),
    ("out of range", "epochs: -3\n", "--epochs must be 1 or more"),
    ("a map for a number", "lr: {a: 1}\n", "lr"),
    ("unknown setting of the detector", "detector_options: {unheard_of: 1}\n", "unheard"),
    ("detector that is a number", "detector: 3\n", "Unknown detector '3'"),
    ("expected in arguments", "expected: much\n", "expected"),
)
def test_a_recipe_is_refused(case, checks_only, tmp_path, monkeypatch, capsys):
    text, expected = case
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("recipe.yaml").write_text(text)
    assert main(["train", *TRAIN, "--config", "recipe.yaml"]) == REFUSED
    assert expected in refused_line(capsys)


@table(
    ("train, a file", ["train", *TRAIN, "--out=picture.png"]),
    ("train, below a file", ["train", *TRAIN, "--out=picture.png/run"]),
    ("train, another run", ["train", *TRAIN, "--out=finished/baseline"]),
    ("predict, a file", ["predict", "teacher", "picture.png", "--out=picture.png", "--device=cpu"]),
    ("predict, the images' folder", ["predict", "teacher", ".", "--out=.", "--device=cpu"]),
    ("demo, a file", ["demo", "--out=picture.png"]),
    ("demo, a folder with files", ["demo", "--out=teacher"]),
    ("evaluate, a folder", ["evaluate", "teacher", "--data=demo", "--detections=teacher"]),
    ("evaluate, nowhere", ["evaluate", "teacher", "--data=demo", "--detections=nowhere/found.safetensors"]),
    ("compare, a folder", ["compare", "finished/baseline", "--out=teacher"]),
    ("compare, below a file", ["compare", "finished/baseline", "--out=picture.png/report.html"]),
)
def test_an_output_path_that_cannot_be_written_is_refused(case, folder, small_demo, monkeypatch, capsys):
    (arguments,) = case
    monkeypatch.chdir(folder)
    if not Path("finished").exists():
        write_story(Path("finished"))
    before = sorted(path for path in folder.rglob("*"))
    assert main(arguments) == REFUSED
    refused_line(capsys)
    assert sorted(path for path in folder.rglob("*")) == before


def test_the_number_of_processes_on_cpu_is_limited(checks_only, capsys):
    assert main(["train", *TRAIN, "--devices", str(max(16, os.cpu_count() or 1) + 1)]) == REFUSED
    assert "each would be a process" in refused_line(capsys)
