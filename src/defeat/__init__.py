"""Distil object detectors: train a compact student with the help of a large teacher.

The names below are imported when they are first used, so that `import defeat` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from defeat import distillation as methods
    from defeat.assembly.plan import plan
    from defeat.assembly.replay import replay
    from defeat.assembly.run import distill, train
    from defeat.benchmark import bench
    from defeat.data import open_dataset
    from defeat.detector import DetectorSpec, build, load
    from defeat.errors import InputError
    from defeat.inference.evaluate import evaluate
    from defeat.inference.predict import predict
    from defeat.report.compare import compare

__all__ = [
    "DetectorSpec",
    "InputError",
    "bench",
    "build",
    "compare",
    "distill",
    "evaluate",
    "load",
    "methods",
    "open_dataset",
    "plan",
    "predict",
    "replay",
    "train",
]

_HOMES = {
    "DetectorSpec": "defeat.detector",
    "InputError": "defeat.errors",
    "bench": "defeat.benchmark",
    "build": "defeat.detector",
    "compare": "defeat.report.compare",
    "distill": "defeat.assembly.run",
    "evaluate": "defeat.inference.evaluate",
    "load": "defeat.detector",
    "open_dataset": "defeat.data",
    "plan": "defeat.assembly.plan",
    "predict": "defeat.inference.predict",
    "replay": "defeat.assembly.replay",
    "train": "defeat.assembly.run",
}


def __getattr__(name: str) -> Any:
    if name == "methods":
        return import_module("defeat.distillation")
    if name not in _HOMES:
        raise AttributeError(f"module 'defeat' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
