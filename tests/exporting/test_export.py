"""`defeat export`, and what its files are used for."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import defeat
from defeat.assembly.box_teachers import named_box_teacher
from defeat.assembly.settings import DistillSettings
from defeat.cli import main
from defeat.detector import BoxTeacher, ExportedDetector, load, load_detector
from defeat.detector.boxes import PredictedBoxes
from defeat.detector.exported import load_exported
from defeat.errors import InputError
from defeat.evaluation.evaluator import EvaluationResult
from defeat.exporting import export, onnx
from defeat.exporting import run as export_run
from defeat.exporting.images import ExportImages
from defeat.exporting.parity import measure_parity
from defeat.exporting.run import _shrinking_warning
from tests.detector.tiny import images
from tests.exporting.tiny_exports import PICTURES, exported, saved, with_data

EXAMPLE = Path(__file__).parents[2] / "examples" / "detect_onnx.py"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A detector, and its file in ONNX."""
    return exported(tmp_path_factory.mktemp("export"))


@pytest.fixture
def run(tmp_path):
    """A run directory with a detector of the demo's classes."""
    with_data(tmp_path / "run", saved(tmp_path / "run", classes=("cross", "disc", "ring")))
    return tmp_path / "run"


def test_a_file_says_what_it_needs_and_contains(file, tmp_path):
    detector, path = file
    about = load(path).description
    assert about.classes == detector.info.classes
    assert (about.height, about.width, about.batch) == (None, None, 1)
    assert about.fill == pytest.approx([255 * value for value in detector.info.mean])
    saved(tmp_path / "run")
    export(tmp_path / "run", tmp_path / "a.onnx", verify="none", licence="MIT", white=1, height=96)
    about = load(tmp_path / "a.onnx").description
    assert (about.licence, about.white, about.height, about.width) == ("MIT", 1, 96, 64)
    assert len(about.fingerprint) == 64


@pytest.mark.slow
@pytest.mark.parametrize("white", [1, 255])
def test_the_input_may_be_in_0_to_1(white, tmp_path):
    detector, path = exported(tmp_path, white=white)
    assert measure_parity(detector, load(path), PICTURES).matched >= 0.99


@pytest.mark.slow
def test_a_fixed_input_is_filled_with_the_mean_and_boxes_return_to_the_image(tmp_path):
    detector, path = exported(tmp_path, height=96, width=96)
    file = load(path)
    prepared, size = file.prepare(images((40, 60))[0])
    assert prepared.shape == (1, 3, 96, 96)
    assert size == (64, 96)
    assert np.allclose(prepared[0, :, 64:], np.array(detector.info.mean)[:, None, None] * 255)
    # An image that fills its input is detected as by the detector.
    assert measure_parity(detector, file, images((96, 96), (48, 48))).matched < 1  # 64 x 64 in 96 x 96
    for found in file.predict(images((40, 60))):
        assert float(found.boxes.min()) >= 0
        assert (found.boxes.amax(dim=0) <= torch.tensor([60, 40, 60, 40]) + 1e-3).all()
    wide, size = file.prepare(images((60, 200))[0])  # at most 96 wide
    assert (wide.shape, size) == ((1, 3, 96, 96), (28, 96))


@pytest.mark.slow
def test_a_report_is_written_beside_the_file(run, tmp_path, small_demo, capsys):
    assert main(["export", str(run), "--out", str(tmp_path / "a.onnx"), "--verify", "full"]) == 0
    content = json.loads((tmp_path / "a.onnx.json").read_text())
    assert content["parity"]["matched"] >= 0.99
    assert content["parity"]["images"] == 4
    assert content["ap"] == pytest.approx(content["ap_before"], abs=0.1)
    assert content["drop"] == pytest.approx(0, abs=0.1)
    assert content["bytes"] == (tmp_path / "a.onnx").stat().st_size
    assert content["latency"]["median_ms"] > 0
    printed = capsys.readouterr().out
    assert "detections in 4 images of val are equal" in printed.replace("\n", " ")
    assert "input 1 x 3 x any x any" in printed


def test_a_file_that_detects_something_else_is_not_written(run, tmp_path, small_demo, monkeypatch, capsys):
    original = onnx.traced

    def damaged(graph, example, dynamo=False):
        model = original(graph, example)
        for weights in model.graph.initializer:
            if len(weights.dims) == 4:
                weights.raw_data = (np.frombuffer(weights.raw_data, np.float32) * 1.1).tobytes()
        return model

    monkeypatch.setattr(onnx, "traced", damaged)
    assert main(["export", str(run), "--out", str(tmp_path / "a.onnx")]) == 2
    assert "does not detect what the detector does" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.slow
def test_half_precision_halves_the_file(file, tmp_path):
    detector, path = file
    saved(tmp_path / "run")
    for name in ("half.onnx", "half.xml"):
        export(tmp_path / "run", tmp_path / name, verify="none", precision="fp16")
        found = measure_parity(detector, load(tmp_path / name), PICTURES, defeat.exporting.parity.Tolerance(0.9, 0.02))
        assert found.matched > 0.9
        weights = tmp_path / name if name.endswith("onnx") else tmp_path / "half.bin"
        assert weights.stat().st_size < 0.65 * path.stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.onnx", "a.xml"])
def test_int8_is_calibrated_and_judged_by_its_ap(name, run, tmp_path, small_demo):
    report = export(run, tmp_path / name, precision="int8", max_drop=100, calibration_images=4)
    assert report.ap is not None
    whole = export(run, tmp_path / f"whole{Path(name).suffix}", verify="none")
    assert report.bytes < 0.8 * whole.bytes  # most of a tiny file describes the graph
    assert load(tmp_path / name).description.precision == "int8"


@pytest.mark.slow
def test_int8_that_costs_too_much_keeps_outputs_of_convolutions(run, tmp_path, small_demo, monkeypatch):
    quantised, drops = onnx.quantised, iter([5.0, 0.5])
    asked = []

    def counted(*arguments, outputs=True):
        model = quantised(*arguments, outputs=outputs)
        asked.append((outputs, sum(node.op_type == "QuantizeLinear" for node in model.graph.node)))
        return model

    monkeypatch.setattr(onnx, "quantised", counted)
    monkeypatch.setattr(export_run, "_drop", lambda task, ap: next(drops))
    export(run, tmp_path / "a.onnx", precision="int8", max_drop=1, calibration_images=2)
    (with_outputs, many), (without, fewer) = asked
    assert (with_outputs, without) == (True, False)
    assert fewer < many


@pytest.mark.slow
def test_int8_that_costs_too_much_is_refused(run, tmp_path, small_demo, monkeypatch):
    def evaluate(self, detector, title):
        return EvaluationResult({"AP": 50.0 if "detector" in title else 40.0}, {}, 4, 4)

    monkeypatch.setattr(ExportImages, "evaluate", evaluate)
    with pytest.raises(InputError, match=r"int8 costs 10.0 points of AP \(50.0 to 40.0\), more than --max-drop 1"):
        export(run, tmp_path / "a.onnx", precision="int8", calibration_images=2)
    assert not (tmp_path / "a.onnx").exists()


@pytest.mark.slow
def test_a_file_is_evaluated_and_draws_like_a_run(run, tmp_path, small_demo, capsys):
    export(run, tmp_path / "a.onnx", verify="none")
    results = [
        defeat.evaluate(source, data="demo", split="val", workers=0).metrics["AP"]
        for source in (run, tmp_path / "a.onnx")
    ]
    assert results[1] == pytest.approx(results[0], abs=0.1)
    Image.fromarray(PICTURES[1].permute(1, 2, 0).numpy()).save(tmp_path / "photo.png")
    assert main(["predict", str(tmp_path / "a.onnx"), str(tmp_path / "photo.png"), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "photo.jpg").is_file()


def test_a_file_is_a_teacher_that_gives_boxes(file):
    _, path = file
    exported = load(path)
    assert isinstance(exported, BoxTeacher)
    (found,) = PredictedBoxes(exported).predict(PICTURES[:1])
    assert len(found.boxes) > 0
    settings = DistillSettings(data="demo", backbone="test_resnet", out="run", teacher=f"onnx:{path}")
    teacher = named_box_teacher(settings, Console())  # without a description
    assert teacher is not None
    assert teacher.kind == "exported file"
    assert teacher.info.classes == exported.classes


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", ["auto", "none"])
def test_the_example_needs_neither_torch_nor_this_package(dynamic, tmp_path):
    detector, path = exported(tmp_path, dynamic=dynamic)
    Image.fromarray(PICTURES[1].permute(1, 2, 0).numpy()).save(tmp_path / "photo.png")
    program = (
        "import sys, json; sys.modules['torch'] = sys.modules['defeat'] = None\n"
        f"sys.path.insert(0, {str(EXAMPLE.parent)!r})\n"
        "import detect_onnx, onnxruntime; from PIL import Image\n"
        f"session = onnxruntime.InferenceSession({str(path)!r})\n"
        f"print(json.dumps(detect_onnx.detect(session, Image.open({str(tmp_path / 'photo.png')!r}))))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    (expected,) = load(path).predict([PICTURES[1]])
    boxes = torch.tensor([entry["box"] for entry in found])
    best = torch.cdist(expected.boxes[:10], boxes, p=float("inf")).amin(dim=1)
    assert (best < 1).all()  # pixels; Pillow and torch round differently when they resize
    assert {entry["label"] for entry in found} <= set(detector.info.classes)


def test_a_path_that_is_no_file_of_ours_is_refused(file, tmp_path):
    _, path = file
    (tmp_path / "cut.onnx").write_bytes(path.read_bytes()[:5000])
    model = pytest.importorskip("onnx").load(path)
    foreign = pytest.importorskip("onnx").load(path)
    del foreign.metadata_props[:]
    (tmp_path / "foreign.onnx").write_bytes(foreign.SerializeToString())
    model.metadata_props[0].value = "{"
    (tmp_path / "damaged.onnx").write_bytes(model.SerializeToString())
    model.metadata_props[0].value = json.dumps({"format": 9})
    (tmp_path / "newer.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "cut.xml").write_text("<net>")
    (tmp_path / "cut.torchscript").write_bytes(b"PK")
    for name, message in {
        "cut.onnx": "can't be loaded as ONNX",
        "foreign.onnx": "was not written by `defeat export`",
        "damaged.onnx": "the description of the detector in it is damaged",
        "newer.onnx": "another version",
        "missing.onnx": "does not exist",
        "cut.xml": "can't be loaded as OpenVINO",
        "cut.torchscript": "can't be loaded as TorchScript",
    }.items():
        with pytest.raises(InputError, match=message):
            load_exported(tmp_path / name)


@pytest.mark.parametrize(
    ("field", "value"),
    [("size", -1), ("classes", []), ("white", True), ("nms", "both"), ("score_thresh", "0.5"), ("std", [0, 1, 1])],
)
def test_a_damaged_description_names_the_field(field, value, file, tmp_path):
    from defeat.detector.exported import ExportDescription

    content = json.loads(load(file[1]).description.text())
    with pytest.raises(InputError, match=f"the field {field!r} is"):
        ExportDescription.read(json.dumps(content | {field: value}), tmp_path / "a.onnx")
    del content[field]
    with pytest.raises(InputError, match=f"the field {field!r} is missing"):
        ExportDescription.read(json.dumps(content), tmp_path / "a.onnx")


@pytest.mark.parametrize("package", ["onnxruntime", "openvino"])
def test_a_missing_runtime_is_one_sentence(package, file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    path = tmp_path / ("a.onnx" if package == "onnxruntime" else "a.xml")
    path.write_bytes(b"x")
    with pytest.raises(InputError, match=f'needs {package}.*: pip install "defeat-detection'):
        load_exported(path)


def test_an_exported_file_is_no_detector_to_train_with(file):
    with pytest.raises(InputError, match="gives no feature maps to learn from: give the run that it is from"):
        load_detector(file[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "a.tflite"}, r"must end with .onnx, .xml, .torchscript"),
        ({"out": "a.onnx", "format": "openvino"}, "must end with .xml"),
        ({"out": "none/a.onnx"}, "does not exist"),
        ({"format": "coreml"}, "Unknown format 'coreml'"),
        ({"out": "a.torchscript", "precision": "int8"}, "TorchScript is written in fp32 only"),
        ({"precision": "int4"}, "Unknown value of --precision 'int4'"),
        ({"nms": "none"}, "Unknown value of --nms 'none'"),
        ({"dynamic": "depth"}, "Unknown value of --dynamic 'depth'"),
        ({"dynamic": "batch"}, "add --nms outside"),
        ({"dynamic": "height", "height": 64}, "it is dynamic"),
        ({"height": 8}, "--height must be 32 or more"),
        ({"white": 2}, "--white must be 1 or 255"),
        ({"max_drop": -1.0}, "--max-drop must be in 0..100"),
        ({"calibration_images": 0}, "--calibration-images must be 1 or more"),
        ({"verify": "sample"}, "Give images to compare the detections on with --data"),
        ({"verify": "sample", "data": "nowhere"}, "nowhere"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "run")
    with pytest.raises(InputError, match=message):
        export("run", **({"out": "a.onnx", "verify": "none"} | options))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_proposals_cannot_be_left_to_the_outside(tmp_path):
    saved(tmp_path / "run", "faster_rcnn")
    with pytest.raises(InputError, match="--nms outside: faster_rcnn has non-maximum suppression of its proposals"):
        export(tmp_path / "run", tmp_path / "a.onnx", nms="outside", verify="none")


def test_a_square_input_is_fixed(tmp_path):
    saved(tmp_path / "run", "ssdlite")
    for options in ({"dynamic": "height"}, {"width": 96}):
        with pytest.raises(InputError, match="ssdlite stretches images to a square of 64 pixels"):
            export(tmp_path / "run", tmp_path / "a.onnx", verify="none", **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["file.onnx", "file.xml"])
def test_the_other_exporter_gives_the_same_candidates(name, tmp_path):
    pytest.importorskip("onnxscript")
    detector, path = exported(tmp_path, name=name, nms="outside", height=64, width=96, dynamo=True)
    parity = measure_parity(detector, load(path), images((64, 96), (64, 96)))
    assert parity.detections > 0
    assert parity.matched == 1


@pytest.mark.parametrize("options", [{}, {"nms": "outside"}, {"height": 64, "width": 96}])
def test_the_other_exporter_is_refused_where_it_can_not_work(options, tmp_path):
    saved(tmp_path / "run")
    with pytest.raises(InputError, match="--dynamo needs --nms outside"):
        export(tmp_path / "run", tmp_path / "a.onnx", verify="none", dynamo=True, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sides", "share"), [((64, 64), 64 / 96), ((64, 96), 1), ((None, None), 1), ((32, 96), 32 / 60)]
)
def test_a_fixed_input_that_shrinks_images_is_warned_about(file, sides, share):
    exported_file = load(file[1])
    about = replace(exported_file.description, height=sides[0], width=sides[1])
    fixed = ExportedDetector(about, exported_file.runtime, exported_file.path)
    assert fixed.shrinking(100, 160) == pytest.approx(share)  # 60 x 96 after resizing
    warning = _shrinking_warning(fixed, [torch.zeros(3, 100, 160)] * 3)
    if share == 1:
        assert warning == ""
    else:
        assert warning.endswith("give --height 64 --width 96, or leave both out.")
