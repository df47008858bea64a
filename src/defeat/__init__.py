"""Distil object detectors: train a compact student with the help of a large teacher.

The names below are imported when they are first used, so that `import defeat` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from defeat import methods
    from defeat.api import distill, plan, train
    from defeat.assembly.replay import replay
    from defeat.benchmark import bench
    from defeat.data import DetectionDataset, open_dataset
    from defeat.detector import (
        BoxFunction,
        BoxTeacher,
        Detector,
        DetectorSpec,
        ExportedDetector,
        TappedTeacher,
        Teacher,
        build,
        candidate_taps,
        load,
    )
    from defeat.detector.importers import import_checkpoint
    from defeat.distillation import Method
    from defeat.engine.fit import RunResult
    from defeat.errors import InputError
    from defeat.exporting import export
    from defeat.inference.drawing import draw
    from defeat.inference.evaluate import evaluate
    from defeat.inference.predict import predict
    from defeat.inference.profile import profile
    from defeat.publishing import push
    from defeat.report.compare import compare
    from defeat.types import Detections, DetectorInfo, DetectorOutput, Progress, Target

    __version__: str

__all__ = [
    "BoxFunction",
    "BoxTeacher",
    "DetectionDataset",
    "Detections",
    "Detector",
    "DetectorInfo",
    "DetectorOutput",
    "DetectorSpec",
    "ExportedDetector",
    "InputError",
    "Method",
    "Progress",
    "RunResult",
    "TappedTeacher",
    "Target",
    "Teacher",
    "bench",
    "build",
    "candidate_taps",
    "compare",
    "distill",
    "draw",
    "evaluate",
    "export",
    "import_checkpoint",
    "load",
    "methods",
    "open_dataset",
    "plan",
    "predict",
    "profile",
    "push",
    "replay",
    "train",
]

_HOMES = {
    "BoxFunction": "defeat.detector",
    "BoxTeacher": "defeat.detector",
    "DetectionDataset": "defeat.data",
    "Detections": "defeat.types",
    "Detector": "defeat.detector",
    "DetectorInfo": "defeat.types",
    "DetectorOutput": "defeat.types",
    "DetectorSpec": "defeat.detector",
    "ExportedDetector": "defeat.detector",
    "InputError": "defeat.errors",
    "Method": "defeat.distillation",
    "Progress": "defeat.types",
    "RunResult": "defeat.engine.fit",
    "TappedTeacher": "defeat.detector",
    "Target": "defeat.types",
    "Teacher": "defeat.detector",
    "bench": "defeat.benchmark",
    "build": "defeat.detector",
    "candidate_taps": "defeat.detector",
    "compare": "defeat.report.compare",
    "distill": "defeat.api",
    "draw": "defeat.inference.drawing",
    "evaluate": "defeat.inference.evaluate",
    "export": "defeat.exporting",
    "import_checkpoint": "defeat.detector.importers",
    "load": "defeat.detector",
    "open_dataset": "defeat.data",
    "plan": "defeat.api",
    "predict": "defeat.inference.predict",
    "profile": "defeat.inference.profile",
    "push": "defeat.publishing",
    "replay": "defeat.assembly.replay",
    "train": "defeat.api",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        from defeat.errors import DISTRIBUTION

        return version(DISTRIBUTION)
    if name == "methods":
        return import_module("defeat.methods")
    if name not in _HOMES:
        raise AttributeError(f"module 'defeat' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
