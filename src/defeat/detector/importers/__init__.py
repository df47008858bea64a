"""Import detectors of other tools: a checkpoint becomes a run directory."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Literal

import torch

from defeat.detector import build, load_detector, save_model
from defeat.detector.base import Detector
from defeat.detector.foreign_weights import Source, Style, complete, read_file
from defeat.detector.importers import detectron2, libreyolo, mmdetection, torchvision, transformers
from defeat.errors import InputError, first_line, quoted, unknown_name
from defeat.settings import at_least

Tool = Literal["auto", "mmdetection", "detectron2", "torchvision", "transformers", "libreyolo"]
# A tool of which files are read is a module with NAME, `recognised(names)` and `read(source)`, and an entry here.
FILE_TOOLS: dict[str, ModuleType] = {"mmdetection": mmdetection, "detectron2": detectron2, "torchvision": torchvision}
# A tool whose modules we use is a module with NAME, `recognised_source(source)` and `read_source(source)`.
MODULE_TOOLS: dict[str, ModuleType] = {"transformers": transformers, "libreyolo": libreyolo}
TOOLS = (*FILE_TOOLS, *MODULE_TOOLS)
MAX_SIDE = 16_384


@dataclass(frozen=True)
class ImportedDetector:
    """A detector that was imported.

    Attributes:
        folder: its run directory.
        tool: name of the tool that wrote the checkpoint.
        detector: the detector, in eval mode.
        notes: sentences on what was assumed.
    """

    folder: Path
    tool: str
    detector: Detector
    notes: tuple[str, ...]


def import_checkpoint(
    checkpoint: str | Path,
    out: str | Path,
    tool: Tool = "auto",
    detector: str | None = None,
    classes: list[str] | None = None,
    style: Style = "auto",
    size: int | None = None,
    max_size: int | None = None,
    tool_config: str | None = None,
) -> ImportedDetector:
    """Convert a detector of another tool to a run directory with `model.json` and `model.safetensors`.

    Args:
        checkpoint: a file of MMDetection 2 or 3, Detectron2 or torchvision (.pth or .safetensors) or LibreYOLO (.pt), a
            folder written by `save_pretrained`, or hf:ORG/NAME.
        out: run directory to write; it must not exist, or be empty.
        tool: mmdetection, detectron2, torchvision, transformers, libreyolo, or auto to recognise it.
        detector: the architecture, to be checked: faster_rcnn, retinanet, fcos or gfl, of torchvision a name such as
            fasterrcnn_resnet50_fpn; by default as recognised.
        classes: names of the classes in the order of the labels, or a text file with one name per line; by default
            those that the checkpoint names.
        style: where a bottleneck of a ResNet has its stride: pytorch (3 x 3 convolution), caffe (first 1 x 1), or auto:
            as the checkpoint says, else as in the tool's model zoo.
        size: short side of an image after resizing, in pixels; by default as the checkpoint says, else 800.
        max_size: upper limit of the long side in pixels.
        tool_config: file with the configuration that MMDetection wrote beside the checkpoint, where the checkpoint
            contains none; it is read, not executed.

    Returns:
        The run directory, the detector, and what was assumed.

    Raises:
        InputError: the checkpoint can't be read without executing code, has parts that no family has, or `out` is not
            empty.
    """
    if tool not in ("auto", *TOOLS):
        raise unknown_name("tool", tool, ("auto", *TOOLS))
    if style not in ("auto", "pytorch", "caffe"):
        raise unknown_name("style", style, ("auto", "pytorch", "caffe"))
    for name, value in (("size", size), ("max_size", max_size)):
        at_least(name, value, 32, MAX_SIDE)
    folder = _free(Path(out))
    module = _module_tool(checkpoint, tool)
    if module is not None:
        _require_nothing_given(module.NAME, detector, style, size, max_size, tool_config)
        imported, name = module.read_source(checkpoint), module.NAME
        notes: tuple[str, ...] = ()
        if classes is not None:
            _rename_classes(imported, _class_names(classes) or ())
    else:
        tensors, content = read_file(_existing(checkpoint))
        names = _class_names(classes)
        text = None if tool_config is None else _text(tool_config, "--tool-config")
        source = Source(Path(checkpoint), tensors, content, detector, names, style, size, max_size, text)
        imported, notes, name = _built(source, tool)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out} can't be written ({error.strerror}).") from error
    save_model(imported, folder)
    return ImportedDetector(folder, name, load_detector(folder), notes)


def _module_tool(checkpoint: str | Path, tool: str) -> ModuleType | None:
    """The given or recognised tool, if it is one whose modules we use."""
    if tool != "auto":
        return MODULE_TOOLS.get(tool)
    return next((module for module in MODULE_TOOLS.values() if module.recognised_source(checkpoint)), None)


def _built(source: Source, tool: str) -> tuple[Detector, tuple[str, ...], str]:
    module = FILE_TOOLS[tool] if tool in FILE_TOOLS else _recognised(source)
    try:
        imported = module.read(source)
        # Built without memory first: the shapes of an untrusted file may be those of a detector that is too large.
        with torch.device("meta"):
            expected = build(imported.spec, "none").state_dict()
    except InputError:
        raise
    except Exception as error:  # of any type, raised by modules with untrusted shapes
        reason = first_line(error)
        raise InputError(f"{source.path} contains tensors of unexpected shapes ({reason}).") from error
    state = complete(imported, expected, source.path)
    detector = build(imported.spec, "none")
    detector.load_state_dict(state)
    return detector.eval(), imported.notes, str(module.NAME)


def _recognised(source: Source) -> ModuleType:
    module = next((module for module in FILE_TOOLS.values() if module.recognised(source.tensors)), None)
    if module is None:
        names = ", ".join(list(source.tensors)[:3])
        raise InputError(
            f"{source.path} is not of a tool that this library knows ({', '.join(TOOLS)}): its tensors have names such "
            f"as {names}. Another network can be a teacher by --teacher package.module:factory with --teacher-taps."
        )
    return module


def _existing(checkpoint: str | Path) -> Path:
    path = Path(checkpoint)
    if path.is_dir():
        what = "is a run directory already" if (path / "model.json").is_file() else "is not a checkpoint but a folder"
        raise InputError(f"{path} {what}.")
    return path


def _free(folder: Path) -> Path:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--out {folder} is not empty: give a new folder.")
    return folder


def _class_names(classes: Sequence[str] | None) -> tuple[str, ...] | None:
    """The names, or the lines of a file that a single name is the path of."""
    if classes is None:
        return None
    names = [classes] if isinstance(classes, str) else list(classes)
    if len(names) == 1 and Path(names[0]).is_file():
        names = [line.strip() for line in _text(names[0], "--classes").splitlines() if line.strip()]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise InputError("--classes must be names, or a text file with one name per line.")
    return tuple(names)


def _text(path: str, flag: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{flag} {path} can't be read as text.") from error


def _require_nothing_given(name: str, *values: object) -> None:
    if any(value not in (None, "auto") for value in values):
        raise InputError(f"A detector of {name} has its own configuration: only --classes can be given with it.")


def _rename_classes(detector: Detector, names: tuple[str, ...]) -> None:
    if len(names) != len(detector.info.classes) or len(set(names)) != len(names):
        raise InputError(f"--classes must be {len(detector.info.classes)} different names, not {quoted(names)}.")
    detector.info, detector.spec = replace(detector.info, classes=names), replace(detector.spec, classes=names)
