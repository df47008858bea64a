"""Detectors that were exported to a file of another runtime: load them and predict."""

from pathlib import Path
from types import ModuleType

from defeat.detector.exported import onnx, openvino, torchscript
from defeat.detector.exported.description import ExportDescription
from defeat.detector.exported.detector import ExportedDetector, Runtime
from defeat.errors import InputError

__all__ = [
    "FORMATS",
    "ExportDescription",
    "ExportedDetector",
    "Runtime",
    "described_file",
    "is_exported",
    "load_exported",
]

# A format is a module with SUFFIX and `open_file(path, device)`, and an entry here.
FORMATS: dict[str, ModuleType] = {"onnx": onnx, "openvino": openvino, "torchscript": torchscript}


def is_exported(source: str | Path) -> bool:
    """Whether a path is a file of one of the formats, by its suffix; the file may be missing."""
    return Path(source).suffix.lower() in {module.SUFFIX for module in FORMATS.values()}


def described_file(path: str | Path, device: str = "cpu") -> ExportedDetector | None:
    """As `load_exported`, but None for a file of another origin."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist.")
    module = next(module for module in FORMATS.values() if path.suffix.lower() == module.SUFFIX)
    runtime, text = module.open_file(path, device)
    if text is None:
        return None
    description = ExportDescription.read(text, path)
    return ExportedDetector(description, runtime, path, lambda kind: module.open_file(path, kind)[0])


def load_exported(path: str | Path, device: str = "cpu") -> ExportedDetector:
    """Load a detector from a file that `defeat export` wrote.

    Args:
        path: the file.
        device: cpu or cuda.

    Raises:
        InputError: the file is missing, damaged or of another origin, or its runtime is not installed.
    """
    exported = described_file(path, device)
    if exported is None:
        raise InputError(
            f"{path} was not written by `defeat export`: it does not say how its images are prepared. As a teacher it "
            "can be used with --teacher onnx:FILE and --teacher-description."
        )
    return exported
