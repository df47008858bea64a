"""Reads a finished run directory: settings, metrics and cost."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from defeat.data import DataSource
from defeat.engine.checkpoint import RunDirectory
from defeat.errors import InputError
from defeat.evaluation.average_precision import Scene
from defeat.evaluation.detections import read_detections
from defeat.evaluation.matching import ClassMatches, match_scenes

FILES = ("config.yaml", "model.json", "model.safetensors", "metrics.jsonl", "results.json")


@dataclass(frozen=True)
class RunSummary:
    """A finished run. None, or an empty text or dict, means that the run did not record the value.

    Attributes:
        folder: the run directory.
        name: name of the run.
        command: `train` or `distill`.
        family: the detector's family.
        backbone: the detector's backbone.
        size: short side of an image after resizing, in pixels.
        method: the distillation method.
        teacher: run directory of the teacher, or a torchvision model.
        teacher_kind: what the teacher was, in words, such as `detector`.
        fingerprint: hash of the detector's weights.
        teacher_fingerprint: hash of the teacher's weights.
        settings: content of `config.yaml`.
        data: path of the data set.
        split: evaluation split.
        training_images_evaluated: number of images of the evaluation split that are training images.
        data_fingerprint: hash of the data.
        metrics: metrics of the whole split by name, 0..100.
        per_class: metrics by class and name, 0..100.
        images: number of images of the evaluation split.
        parameters: number of weights.
        gflops: 1e9 floating-point operations per image.
        latency_ms: median time per image in milliseconds.
        measured: how FLOPs and latency were measured, in words.
        model_bytes: size of the weights file.
        epochs: epochs of the training, of all stages together.
        accuracies: AP after each evaluation, by the epochs trained so far.
        stages: teacher, method, epochs and AP of each stage; empty for a run without stages.
        steps: optimiser steps of the training.
        seed: seed of the run.
        train_seconds: time spent in training steps.
        wall_seconds: time of the whole run.
        versions: versions of packages by name.
        commit: commit of this package; several, with commas, where the run was resumed after an update.
        machine: hardware of the run.
        log: the lines of `metrics.jsonl`, ordered by step.
    """

    folder: Path
    name: str
    command: str
    family: str = ""
    backbone: str = ""
    size: int | None = None
    method: str | None = None
    teacher: str | None = None
    teacher_kind: str = ""
    fingerprint: str = ""
    teacher_fingerprint: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    data: str = ""
    split: str = ""
    training_images_evaluated: int = 0
    data_fingerprint: str = ""
    metrics: dict[str, float | None] = field(default_factory=dict)
    per_class: dict[str, dict[str, float | None]] = field(default_factory=dict)
    images: int | None = None
    parameters: int | None = None
    gflops: float | None = None
    latency_ms: float | None = None
    measured: str = ""
    model_bytes: int | None = None
    epochs: int | None = None
    accuracies: list[tuple[float, float]] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    steps: int | None = None
    seed: int | None = None
    train_seconds: float | None = None
    wall_seconds: float | None = None
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = None
    machine: dict[str, str] = field(default_factory=dict)
    log: list[dict[str, float]] = field(default_factory=list)

    def curve(self, key: str, over: str = "epoch") -> list[tuple[float, float]]:
        """Points (value of `over`, value of `key`) of the log lines that have both."""
        return [(line[over], line[key]) for line in self.log if key in line and over in line]

    @property
    def has_detections(self) -> bool:
        """Whether the run stored its detections."""
        return RunDirectory(self.folder).detections.is_file()

    @property
    def warning(self) -> str:
        """Why the metrics are too high for new images; empty where nothing is known against them."""
        if not self.training_images_evaluated:
            return ""
        return (
            f"{self.name}: {self.training_images_evaluated} of the {self.images} test images are training images, so "
            "its AP is too high for new images."
        )

    @property
    def source(self) -> DataSource:
        """The data set of the run, and how it was read."""
        return DataSource.of({**self.settings, "data": self.data})

    @cached_property
    def scenes(self) -> list[Scene]:
        """The test images with annotations and detections, ordered by image id; read once.

        Raises:
            InputError: the detections are missing, damaged, or of other images than the run was evaluated on.
        """
        path = RunDirectory(self.folder).detections
        scenes = read_detections(path)
        if len(scenes) != self.images:
            raise InputError(
                f"{path} holds {len(scenes)} images, but the run was evaluated on {self.images}: rewrite it with "
                f"`defeat evaluate {self.folder} --detections {path}`."
            )
        return scenes

    @cached_property
    def matches(self) -> list[ClassMatches]:
        """Per class, the detections of `scenes` matched with the annotated objects; computed once."""
        return match_scenes(self.scenes, len(self.per_class))


def read_run(folder: str | Path) -> RunSummary:
    """Read a run directory.

    Raises:
        InputError: it is not the directory of a finished run; the message names the missing or damaged file.
    """
    folder = Path(folder)
    _check_files(folder)
    results, model = _read_object(folder / "results.json"), _read_object(folder / "model.json")
    per_class = results.get("per_class")
    return RunSummary(
        folder=folder,
        name=_text(results, "name") or folder.resolve().name,
        command=_text(results, "command"),
        family=_text(results, "family") or _text(model, "family"),
        backbone=_text(results, "backbone") or _text(model, "backbone"),
        size=_integer(model, "size"),
        method=_text(results, "method") or None,
        teacher=_text(results, "teacher") or None,
        teacher_kind=_text(results, "teacher_kind"),
        fingerprint=_text(results, "fingerprint"),
        teacher_fingerprint=_text(results, "teacher_fingerprint"),
        settings=RunDirectory(folder).read_config(),
        data=_text(results, "data"),
        split=_text(results, "split"),
        training_images_evaluated=_integer(results, "training_images_evaluated") or 0,
        data_fingerprint=_text(results, "data_fingerprint"),
        metrics=_figures(results.get("metrics")),
        per_class={str(name): _figures(value) for name, value in per_class.items()}
        if isinstance(per_class, dict)
        else {},
        images=_integer(results, "images"),
        parameters=_integer(results, "parameters"),
        gflops=_number(results.get("gflops")),
        latency_ms=_number(results.get("latency_ms")),
        model_bytes=_integer(results, "model_bytes"),
        epochs=_integer(results, "epochs"),
        accuracies=_accuracies(results.get("curve")),
        stages=_stages(results.get("stages")),
        steps=_integer(results, "steps"),
        seed=_integer(results, "seed"),
        train_seconds=_number(results.get("train_seconds")),
        wall_seconds=_number(results.get("wall_seconds")),
        versions=_texts(results.get("versions")),
        commit=_text(results, "commit") or None,
        machine=_texts(results.get("machine")),
        log=_read_log(folder / "metrics.jsonl"),
    )


def read_export(path: str | Path) -> RunSummary:
    """Read the report that `defeat export` wrote beside a file; metrics are empty unless it was verified in full.

    Raises:
        InputError: the file or its report is missing or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist.")
    report_path = path.with_name(f"{path.name}.json")
    if not report_path.is_file():
        raise InputError(f"{report_path} is missing: `defeat export` writes it beside the file; export again.")
    report = _read_object(report_path)
    about, evaluation = report.get("description"), report.get("evaluation")
    about = about if isinstance(about, dict) else {}
    evaluation = evaluation if isinstance(evaluation, dict) else {}
    return RunSummary(
        folder=path,
        name=path.name,
        command="export",
        family=_text(about, "family"),
        size=_integer(about, "size"),
        method=_text(about, "precision"),
        data=_text(report, "data"),
        split=_text(report, "split"),
        metrics=_figures(evaluation.get("metrics")),
        images=_integer(evaluation, "images"),
        model_bytes=_integer(report, "bytes"),
    )


def _check_files(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the run directory (--out) of a training.")
    missing = [name for name in FILES if not (folder / name).is_file()]
    if not missing:
        return
    if missing == ["results.json"]:
        raise InputError(f"{folder} is not finished: results.json is missing; resume the run with --resume.")
    raise InputError(
        f"{folder} is not the directory of a finished run: {', '.join(missing)} missing; give another folder."
    )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is damaged ({error}); repeat the run.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: expected a JSON object; repeat the run.")
    return content


def _read_log(path: Path) -> list[dict[str, float]]:
    """Read `metrics.jsonl`, without truncated lines and without steps that a resumed run repeated."""
    log: list[dict[str, float]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if not isinstance(entry, dict):
            continue
        values = {name: number for name, value in _figures(entry).items() if (number := value) is not None}
        step = values.get("step", math.inf)
        if log and step < log[-1].get("step", -math.inf):
            log = [earlier for earlier in log if earlier.get("step", -math.inf) < step]
        log.append(values)
    return log


def _accuracies(content: Any) -> list[tuple[float, float]]:
    """Epochs and AP of the evaluations of a run; empty where they are missing or damaged."""
    points = [point for point in content if isinstance(point, dict)] if isinstance(content, list) else []
    known = [(_number(point.get("epoch")), _number(point.get("AP"))) for point in points]
    return [(epoch, accuracy) for epoch, accuracy in known if epoch is not None and accuracy is not None]


def _stages(content: Any) -> list[dict[str, Any]]:
    """The stages of a run with several teachers, one after the other; empty where they are missing or damaged."""
    if not isinstance(content, list) or not all(isinstance(stage, dict) for stage in content):
        return []
    return [
        {
            "teacher": _text(stage, "teacher"),
            "method": _text(stage, "method"),
            "epochs": _integer(stage, "epochs"),
            "AP": _number(stage.get("AP")),
        }
        for stage in content
    ]


def _number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None


def _integer(content: Mapping[str, Any], key: str) -> int | None:
    number = _number(content.get(key))
    return None if number is None else int(number)


def _text(content: Mapping[str, Any], key: str) -> str:
    value = content.get(key)
    return "" if value is None else str(value)


def _texts(content: Any) -> dict[str, str]:
    return {str(name): str(value) for name, value in content.items()} if isinstance(content, dict) else {}


def _figures(content: Any) -> dict[str, float | None]:
    return {str(name): _number(value) for name, value in content.items()} if isinstance(content, dict) else {}
