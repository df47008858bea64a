"""Exports a trained detector, and proves that the file detects what the detector does."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from defeat.detector import load_detector
from defeat.detector.exported import FORMATS, ExportDescription, ExportedDetector, load_exported
from defeat.detector.exported.openvino import OpenVinoRuntime, compiled
from defeat.detector.preparation import input_size, rounded_up
from defeat.errors import InputError, unknown_name
from defeat.evaluation.evaluator import EvaluationResult
from defeat.exporting import onnx, openvino, torchscript
from defeat.exporting.graph import ExportGraph, TorchRuntime
from defeat.exporting.images import ExportImages
from defeat.exporting.inputs import InputOptions, Nms, describe
from defeat.exporting.parity import Latency, Parity, Tolerance, measure_latency, measure_parity
from defeat.files import write_atomically
from defeat.settings import at_least

Format = Literal["auto", "onnx", "openvino", "torchscript"]
Precision = Literal["fp32", "fp16", "int8"]
Verify = Literal["sample", "full", "none"]
SAMPLE = 32  # images of which the detections are compared
TIMED = 8  # images on which the time is measured
# Half precision rounds boxes and scores; int8 is judged by its AP.
TOLERANCES = {"fp32": Tolerance(), "fp16": Tolerance(0.95, 0.02, 0.98), "int8": Tolerance(0.9, 0.05, 0.0)}
LEAST_SHRINKING = 0.95  # by a fixed input, without a warning
TRACED = (160, 224)  # height and width of an example where they may vary


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how it compares with the detector.

    Attributes:
        file: path of the file.
        description: the description that it contains.
        bytes: size of the file, with its weights.
        data: data set of the comparison.
        split: its split.
        parity: equality of the detections of a sample; None if not verified.
        evaluation_before: metrics of the detector on the split; None unless verified in full.
        evaluation: metrics of the file.
        latency_before: time of a prediction with the detector; None if not verified.
        latency: time of a prediction with the file.
        warning: what makes the file less accurate than the detector on these images, in a sentence; else empty.
    """

    file: str
    description: ExportDescription
    bytes: int
    data: str = ""
    split: str = ""
    parity: Parity | None = None
    evaluation_before: EvaluationResult | None = None
    evaluation: EvaluationResult | None = None
    latency_before: Latency | None = None
    latency: Latency | None = None
    warning: str = ""

    @property
    def ap_before(self) -> float | None:
        """AP of the detector, in percent."""
        return None if self.evaluation_before is None else self.evaluation_before.metrics["AP"]

    @property
    def ap(self) -> float | None:
        """AP of the file, in percent."""
        return None if self.evaluation is None else self.evaluation.metrics["AP"]

    @property
    def drop(self) -> float | None:
        """Points of AP that the export costs."""
        return None if self.ap is None or self.ap_before is None else self.ap_before - self.ap


@dataclass(frozen=True)
class _Task:
    """An export: what, how, and on which images it is judged."""

    graph: ExportGraph
    path: Path
    kind: str
    verify: str
    max_drop: float
    simplify: bool
    dynamo: bool
    calibration_images: int
    images: ExportImages | None

    @property
    def precision(self) -> str:
        return self.graph.description.precision

    @cached_property
    def evaluation_before(self) -> EvaluationResult:
        """Metrics of the detector itself, computed once."""
        assert self.images is not None
        return self.images.evaluate(self.graph.detector, "Evaluating the detector")

    def detector_of(self, runtime: Any) -> ExportedDetector:
        return ExportedDetector(self.graph.description, runtime, self.path)

    def samples(self) -> list[Any]:
        """Prepared images for the calibration."""
        assert self.images is not None
        reference = self.detector_of(TorchRuntime(self.graph))
        return [reference.prepare(image)[0] for image in self.images.training(self.calibration_images)]


def export(
    run: str | Path,
    out: str | Path,
    format: Format = "auto",  # noqa: A002
    precision: Precision = "fp32",
    nms: Nms = "inside",
    dynamic: str = "auto",
    height: int | None = None,
    width: int | None = None,
    white: int = 255,
    data: str | None = None,
    split: str | None = None,
    verify: Verify = "sample",
    max_drop: float = 1.0,
    calibration_images: int = 200,
    simplify: bool = True,
    dynamo: bool = False,
    licence: str = "",
    console: Console | None = None,
) -> ExportReport:
    """Export a trained detector to a file of another runtime, and compare both on real images.

    A report is written beside the file, as FILE.json. If the file detects something else, nothing is written.

    Args:
        run: run directory, a torchvision model, or a detector of transformers.
        out: file to write: .onnx; .xml for OpenVINO (with its weights beside it in .bin); or .torchscript.
        format: onnx, openvino, torchscript, or auto: by the suffix of `out`.
        precision: fp32; fp16, which halves the file; or int8, which is quantised after calibration on training images.
        nms: whether non-maximum suppression is inside the file; outside, the file gives all candidates.
        dynamic: which of batch, height and width may vary, separated by commas, or none; auto: height and width, unless
            the detector stretches images to a square.
        height: height of the input in pixels where it is fixed; by default the detector's size.
        width: width of the input in pixels, likewise.
        white: value of a white pixel in the input, 255 or 1.
        data: folder of a data set for calibration and comparison; by default the one that the run was trained on.
        split: split for the comparison; by default the one that the run was evaluated on, of other data val, else test.
        verify: sample compares the detections of 32 images; full also computes the AP of both on the whole split, as
            int8 always does; none compares nothing.
        max_drop: largest loss of AP by int8, in points; where it is larger, layers that cost more keep their precision
            (OpenVINO), or outputs of convolutions do (ONNX), which costs time.
        calibration_images: number of training images for int8.
        simplify: whether operations without effect are removed with onnxslim.
        dynamo: whether the exporter of torch.export is used instead of tracing: an experiment, for nms outside and an
            input of a fixed size.
        licence: licence of the weights, which is written into the file.
        console: console for progress; None for no progress.

    Returns:
        What was written, and the comparison.

    Raises:
        InputError: an argument or the data is not valid, a package is missing, the file can't be written, or it does
            not detect what the detector does.
    """
    for name, value, values in (("precision", precision, Precision), ("verify", verify, Verify)):
        if value not in get_args(values):
            raise unknown_name(f"value of --{name}", value, get_args(values))
    at_least("calibration_images", calibration_images, 1)
    if not 0 <= max_drop <= 100:
        raise InputError(f"--max-drop must be in 0..100, not {max_drop:g}.")
    path = Path(out)
    kind = _format_of(path, format, precision)
    options = InputOptions(nms, dynamic, height, width, white)
    detector = load_detector(run)
    graph = ExportGraph(detector, describe(detector, options, precision, licence)).eval()
    if dynamo and (nms != "outside" or None in (graph.description.height, graph.description.width)):
        raise InputError("--dynamo needs --nms outside, and an input of a fixed size: --height and --width.")
    images = None
    if verify != "none" or precision == "int8":
        images = ExportImages.of(run, detector.info.classes, data, split, console)
    verified = "full" if precision == "int8" and verify == "sample" else verify
    task = _Task(graph, path, kind, verified, max_drop, simplify, dynamo, calibration_images, images)
    try:
        with TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
            report = _exported(task, Path(folder))
    except OSError as error:
        raise InputError(f"{path} can't be written ({error.strerror}).") from error
    text = json.dumps(asdict(report) | {"ap_before": report.ap_before, "ap": report.ap, "drop": report.drop}, indent=2)
    write_atomically(path.with_name(f"{path.name}.json"), (text + "\n").encode())
    return report


def _format_of(path: Path, given: str, precision: str) -> str:
    """The format of a file to write.

    Raises:
        InputError: it is unknown, does not fit the suffix, or the file can't be written there.
    """
    suffixes = {name: str(module.SUFFIX) for name, module in FORMATS.items()}
    if given not in ("auto", *suffixes):
        raise unknown_name("format", given, ("auto", *suffixes))
    kind = given if given != "auto" else next((k for k, suffix in suffixes.items() if suffix == path.suffix), None)
    if kind is None:
        raise InputError(f"--out {path}: the file must end with {', '.join(suffixes.values())}.")
    if kind == "torchscript" and precision != "fp32":
        raise InputError(f"--precision {precision}: TorchScript is written in fp32 only.")
    if path.suffix != suffixes[kind]:
        raise InputError(f"--out {path}: a file of {kind} must end with {suffixes[kind]}.")
    if not path.parent.is_dir():
        raise InputError(f"--out {path}: the folder {path.parent} does not exist.")
    if path.is_dir():
        raise InputError(f"--out {path} is a folder.")
    return kind


def _exported(task: _Task, folder: Path) -> ExportReport:
    """Write into a temporary folder, compare, and move what was written."""
    temporary = folder / task.path.name
    WRITERS[task.kind](task, temporary)
    parts = [part for part in (temporary, temporary.with_suffix(".bin")) if part.is_file()]
    size = sum(part.stat().st_size for part in parts)
    report = ExportReport(str(task.path), task.graph.description, size)
    if task.graph.description.batch is None:
        _require_batches(load_exported(temporary))
    if task.verify != "none" and task.images is not None:
        report = _compared(task, load_exported(temporary), report, task.images)
    for part in parts:
        shutil.move(part, task.path.with_suffix(part.suffix))
    return report


def _require_batches(file: ExportedDetector) -> None:
    """Refuse a file whose number of images can't vary after all.

    Raises:
        InputError: two images at a time fail.
    """
    about = file.description
    image = np.zeros((2, 3, about.height or TRACED[0], about.width or TRACED[1]), dtype=np.float32)
    try:
        file.runtime.run(image)
    except Exception as error:  # of any type, raised by the runtime
        raise InputError(f"--dynamic batch: the network of {about.family} takes one image at a time.") from error


def _example(task: _Task) -> Tensor:
    """An input for tracing."""
    about = task.graph.description
    size = about.height or TRACED[0], about.width or TRACED[1]
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)) * about.white


def _model(task: _Task) -> Any:
    """The graph as a model of the package onnx."""
    model = onnx.traced(task.graph, _example(task), task.dynamo)
    return onnx.simplified(model) if task.simplify else model


def _write_onnx(task: _Task, path: Path) -> None:
    model = _model(task)
    if task.precision == "fp16":
        model = onnx.halved(model)
    elif task.precision == "int8":
        samples, exact = task.samples(), model
        model = onnx.quantised(exact, samples, path.parent)
        if task.verify != "none" and _file_too_inaccurate(task, model, path):
            model = onnx.quantised(exact, samples, path.parent, outputs=False)
    onnx.write(model, task.graph.description, path)


def _write_openvino(task: _Task, path: Path) -> None:
    model = openvino.converted(_model(task), path.parent)
    if task.precision == "int8":
        samples, transformer = task.samples(), task.graph.description.nms_thresh is None
        quantised = openvino.quantised(model.clone(), samples, transformer)
        if task.verify != "none" and _too_inaccurate(task, quantised):
            accuracy = partial(_accuracy, task)
            quantised = openvino.quantised_accurately(model, samples, transformer, accuracy, task.max_drop / 100)
        model = quantised
    openvino.write(model, task.graph.description, path)


def _write_torchscript(task: _Task, path: Path) -> None:
    torchscript.write(task.graph, _example(task), path)


WRITERS: dict[str, Callable[[_Task, Path], None]] = {
    "onnx": _write_onnx,
    "openvino": _write_openvino,
    "torchscript": _write_torchscript,
}


def _accuracy(task: _Task, network: Any) -> float:
    """AP of a compiled network of OpenVINO, 0..1."""
    assert task.images is not None
    return task.images.ap(task.detector_of(OpenVinoRuntime(network)), "Evaluating int8") / 100


def _too_inaccurate(task: _Task, model: Any) -> bool:
    """Whether a model of OpenVINO loses too much AP."""
    return _drop(task, 100 * _accuracy(task, compiled(model))) > task.max_drop


def _file_too_inaccurate(task: _Task, model: Any, path: Path) -> bool:
    """Whether a model of the package onnx, written to a temporary file, loses too much AP."""
    assert task.images is not None
    onnx.write(model, task.graph.description, path)
    return _drop(task, task.images.ap(load_exported(path), "Evaluating int8")) > task.max_drop


def _drop(task: _Task, ap: float) -> float:
    """Points of AP that are lost."""
    return (task.evaluation_before.metrics["AP"] or 0.0) - ap


def _shrinking_warning(file: ExportedDetector, sample: Sequence[Tensor]) -> str:
    """A sentence where a fixed input makes objects smaller than those for which the detector was trained."""
    factor = median(file.shrinking(*image.shape[-2:]) for image in sample)
    if factor >= LEAST_SHRINKING:
        return ""
    sizes = [input_size(file.info, *image.shape[-2:]) for image in sample]
    height, width = (rounded_up(max(sides), file.info.size_divisor) for sides in zip(*sizes, strict=True))
    return (
        f"The fixed input shrinks images to {factor:.0%} of the detector's own size, which costs accuracy: give "
        f"--height {height} --width {width}, or leave both out."
    )


def _compared(task: _Task, file: ExportedDetector, report: ExportReport, images: ExportImages) -> ExportReport:
    """Compare the written file with the detector.

    Raises:
        InputError: they differ.
    """
    detector, tolerance = task.graph.detector, TOLERANCES[task.precision]
    sample: Sequence[Tensor] = images.sample(SAMPLE)
    parity = measure_parity(task.detector_of(TorchRuntime(task.graph)), file, sample, tolerance)
    if parity.matched < tolerance.share:
        raise InputError(
            f"The exported file does not detect what the detector does: {parity.matched:.1%} of the detections in "
            f"{parity.images} images are equal, and {tolerance.share:.0%} should be. Nothing was written: "
            "try another format or precision, and please report it; --verify none writes the file without this check."
        )
    before, after = measure_latency([detector, file], sample[:TIMED])
    report = replace(report, data=images.source.data, split=images.split, parity=parity)
    report = replace(report, warning=_shrinking_warning(file, sample))
    report = replace(report, latency_before=before, latency=after)
    if task.verify != "full":
        return report
    report = replace(
        report,
        evaluation_before=task.evaluation_before,
        evaluation=images.evaluate(file, "Evaluating the file"),
    )
    if task.precision == "int8" and report.drop is not None and report.drop > task.max_drop:
        raise InputError(
            f"int8 costs {report.drop:.1f} points of AP ({report.ap_before:.1f} to {report.ap:.1f}), more than "
            f"--max-drop {task.max_drop:g}. Nothing was written."
        )
    return report
