"""Detectors in ONNX as teachers that only give boxes: a description says how images are prepared and outputs decoded.

Two layouts of the outputs are known:

- `rows`: one output (1, n, 6), a row of four coordinates, score and label for each box;
- `boxes` (1, n, 4), `scores` (1, n) and `labels` (1, n); or `scores` (1, n, K) without labels, of which the best class
  of each box is taken.

Anything else is a few lines of Python, see examples/nanodet_teacher.py.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor
from torchvision.ops import batched_nms, box_convert

from defeat.detector.exported.onnx import open_session
from defeat.errors import InputError, first_line, quoted, unknown_name
from defeat.types import Detections

ROWS, BOXES, SCORES, LABELS = "rows", "boxes", "scores", "labels"
LAYOUTS = ({ROWS}, {BOXES, SCORES, LABELS}, {BOXES, SCORES})
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}

Resize = Literal["stretch", "letterbox", "pad"]
Colours = Literal["rgb", "bgr"]
BoxFormat = Literal["xyxy", "cxcywh"]
Unit = Literal["pixels", "relative"]
CHOICES: dict[str, tuple[str, ...]] = {
    "resize": get_args(Resize),
    "colours": get_args(Colours),
    "boxes": get_args(BoxFormat),
    "unit": get_args(Unit),
}


@dataclass(frozen=True)
class OnnxDescription:
    """How images are prepared for a detector in ONNX, and what its outputs mean.

    Attributes:
        classes: names of the K classes, in the order of the labels.
        size: height and width of the input in pixels; None if the file fixes them.
        resize: `stretch` to the input's size; `letterbox` keeps the aspect ratio and centres the image; `pad` keeps it
            and places the image at the upper left corner.
        fill: grey value around the image, 0..255.
        colours: order of the channels, `rgb` or `bgr`.
        white: value of a white pixel before mean and standard deviation, 1 or 255.
        mean: subtracted from each channel, in the order of `colours` and the unit of `white`.
        std: divides each channel, likewise.
        boxes: `xyxy` (corners) or `cxcywh` (centre and size).
        unit: of the coordinates: `pixels` of the network's input, or `relative` to its size.
        outputs: names of the outputs by their meaning, `rows`, or `boxes`, `scores` and `labels`; None where they have
            these names, or where there is one output of six columns.
        size_input: name of a second input that takes the width and height of the network's input, (1, 2) int64, as
            RT-DETR's `orig_target_sizes`.
        first_label: label of the first class; lower labels are left out.
        min_score: boxes with a lower score are left out, 0..1.
        nms: IoU above which the worse of two boxes of a class is dropped; None if the network has done that.

    Raises:
        InputError: a value is not valid.
    """

    classes: Sequence[str]
    size: Sequence[int] | None = None
    resize: Resize = "stretch"
    fill: float = 114
    colours: Colours = "rgb"
    white: float = 1
    mean: Sequence[float] = (0.0, 0.0, 0.0)
    std: Sequence[float] = (1.0, 1.0, 1.0)
    boxes: BoxFormat = "xyxy"
    unit: Unit = "pixels"
    outputs: Mapping[str, str] | None = None
    size_input: str | None = None
    first_label: int = 0
    min_score: float = 0.05
    nms: float | None = None
    origin: str = field(default="the description", repr=False)  # for messages

    def __post_init__(self) -> None:
        """Check all values."""
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise unknown_name(f"choice of {name} in {self.origin}", str(value), choices)
        texts = isinstance(self.classes, list | tuple) and all(isinstance(name, str) for name in self.classes)
        self._require("classes", bool(self.classes) and texts, "a list of names")
        self._require("size", self.size is None or _are_sides(self.size), "a height and a width, such as [640, 640]")
        self._require("fill", _is_number(self.fill) and 0 <= self.fill <= 255, "a number in 0..255")
        self._require("white", self.white in (1, 255), "1 or 255")
        self._require("mean", _are_numbers(self.mean), "three numbers")
        self._require("std", _are_numbers(self.std) and all(value > 0 for value in self.std), "three numbers above 0")
        named = self.outputs is None or (isinstance(self.outputs, dict) and set(self.outputs) in LAYOUTS)
        self._require("outputs", named, "names of rows, or of boxes, scores and labels")
        self._require("size_input", self.size_input is None or isinstance(self.size_input, str), "a name")
        self._require("first_label", type(self.first_label) is int, "an integer")
        self._require("min_score", _is_number(self.min_score) and 0 <= self.min_score <= 1, "a number in 0..1")
        self._require("nms", self.nms is None or (_is_number(self.nms) and 0 < self.nms <= 1), "a number in 0..1")

    def _require(self, name: str, valid: bool, expected: str) -> None:
        if not valid:
            raise InputError(f"{self.origin}: {name} must be {expected}, not {quoted(getattr(self, name))}.")


def read_onnx_description(path: str | Path) -> OnnxDescription:
    """Read a description from a YAML file with the fields of `OnnxDescription`.

    Raises:
        InputError: the file can't be read, or a field is unknown or not valid.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--teacher-description {path} can't be read.") from error
    except (yaml.YAMLError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise InputError(f"--teacher-description {path}: give lines such as `classes: [cat, dog]`.")
    known = {entry.name for entry in fields(OnnxDescription)} - {"origin"}
    for name in content:
        if name not in known:
            raise unknown_name(f"field of {path}", str(name), known)
    if "classes" not in content:
        raise InputError(f"{path} has no classes: give lines such as `classes: [cat, dog]`.")
    return OnnxDescription(**content, origin=str(path))


@dataclass(frozen=True)
class _Placed:
    """Where an image is in the network's input: multiply its coordinates by `scale`, x y, and add `offset`."""

    scale: tuple[float, float]
    offset: tuple[float, float]


class OnnxTeacher:
    """A detector in ONNX as a `BoxTeacher`; needs onnxruntime (`pip install "defeat-detection[onnx]"`).

    Args:
        path: the file.
        description: how images are prepared and outputs decoded.

    Raises:
        InputError: onnxruntime is missing, the file can't be read, or the description does not fit it.
    """

    kind = "ONNX file"

    def __init__(self, path: str | Path, description: OnnxDescription) -> None:
        self.path, self.description, self.classes = Path(path), description, tuple(description.classes)
        self.session = open_session(self.path)
        inputs = {entry.name: entry for entry in self.session.get_inputs()}
        if description.size_input is not None and description.size_input not in inputs:
            raise unknown_name(f"input of {path}", description.size_input, inputs)
        images = [entry for name, entry in inputs.items() if name != description.size_input]
        if len(images) != 1:
            names = ", ".join(entry.name for entry in images)
            raise InputError(f"{path} must have one input for images, and has {len(images)}: {names}.")
        self.input = images[0]
        if self.input.type not in TYPES:
            raise InputError(f"{path}: its input {self.input.name} is a {self.input.type}, not a tensor of floats.")
        self.size = self._size(list(self.input.shape))
        self.outputs = self._outputs()

    @property
    def fingerprint(self) -> str:
        """Hash of the file, and the description."""
        return f"{hashlib.sha256(self.path.read_bytes()).hexdigest()}, {self.description}"

    def _size(self, shape: list[Any]) -> tuple[int, int]:
        if len(shape) != 4 or (isinstance(shape[1], int) and shape[1] != 3):
            raise InputError(f"{self.path}: its input {self.input.name} is {shape}, not (1, 3, height, width).")
        given = self.description.size
        fixed = tuple(side if isinstance(side, int) else None for side in shape[2:])
        if given is None:
            if None in fixed:
                raise InputError(f"{self.path} has no fixed input size: state it in {self.description.origin}.")
            given = [side for side in fixed if side is not None]
        if any(side not in (None, own) for side, own in zip(fixed, given, strict=True)):
            raise InputError(f"{self.path} takes images of {list(fixed)} (height, width), not {list(given)}.")
        return given[0], given[1]

    def _outputs(self) -> dict[str, str]:
        """Names of the outputs by their meaning."""
        names = [entry.name for entry in self.session.get_outputs()]
        if self.description.outputs is not None:
            for name in self.description.outputs.values():
                if name not in names:
                    raise unknown_name(f"output of {self.path}", str(name), names)
            return dict(self.description.outputs)
        meanings = [layout for layout in LAYOUTS if layout <= set(names)]
        if meanings:
            return {name: name for name in max(meanings, key=len)}
        if len(names) == 1:
            return {ROWS: names[0]}
        raise InputError(
            f"{self.path} has the outputs {', '.join(names)}: say which are which in {self.description.origin}, such "
            "as `outputs: {boxes: NAME, scores: NAME, labels: NAME}`."
        )

    def predict(self, images: Sequence[Tensor]) -> list[Detections]:
        """Detect objects in images, see `BoxTeacher.predict`.

        Raises:
            InputError: an output has another shape than its layout.
        """
        return [self._detect(image) for image in images]

    def _detect(self, image: Tensor) -> Detections:
        prepared, placed = self._prepared(image)
        kind = TYPES[self.input.type]
        feeds = {self.input.name: (prepared.round() if kind is np.uint8 else prepared).numpy().astype(kind)}
        if self.description.size_input is not None:
            feeds[self.description.size_input] = np.array([[self.size[1], self.size[0]]], dtype=np.int64)
        meanings = list(self.outputs)
        try:
            values = self.session.run([self.outputs[meaning] for meaning in meanings], feeds)
        except Exception as error:  # of any type, raised by onnxruntime
            raise InputError(f"{self.path} can't be run on an image ({first_line(error)}).") from error
        tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in zip(meanings, values, strict=True)}
        detections = self._decoded(tensors)
        scale, offset = torch.tensor(placed.scale * 2), torch.tensor(placed.offset * 2)
        return Detections((detections.boxes - offset) / scale, detections.scores, detections.labels)

    def _prepared(self, image: Tensor) -> tuple[Tensor, _Placed]:
        """Input (1, 3, H, W), and where the image is in it."""
        about, (height, width) = self.description, self.size
        rows, columns = image.shape[-2:]
        ratio = min(height / rows, width / columns)
        stretched = about.resize == "stretch"
        inner = (height, width) if stretched else (max(1, round(rows * ratio)), max(1, round(columns * ratio)))
        resized = F.interpolate(image[None].float(), inner, mode="bilinear").clamp(0, 255)
        top, left = 0, 0
        if about.resize == "letterbox":
            top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
        canvas = torch.full((1, 3, height, width), float(about.fill))
        canvas[:, :, top : top + inner[0], left : left + inner[1]] = resized
        if about.colours == "bgr":
            canvas = canvas.flip(1)
        mean, std = (torch.tensor(list(value), dtype=torch.float32).view(3, 1, 1) for value in (about.mean, about.std))
        return (canvas * (about.white / 255) - mean) / std, _Placed(
            (inner[1] / columns, inner[0] / rows), (float(left), float(top))
        )

    def _decoded(self, tensors: Mapping[str, Tensor]) -> Detections:
        """Boxes in pixels of the network's input."""
        about = self.description
        if ROWS in tensors:
            rows = self._flat(tensors[ROWS], ROWS, 6).float()
            boxes, scores, labels = rows[:, :4], rows[:, 4], rows[:, 5].round().long()
        else:
            boxes = self._flat(tensors[BOXES], BOXES, 4).float()
            scores, labels = self._scored(tensors)
        if not len(boxes) == len(scores) == len(labels):
            raise InputError(f"{self.path} gives {len(boxes)} boxes, {len(scores)} scores and {len(labels)} labels.")
        if about.unit == "relative":
            height, width = self.size
            boxes = boxes * boxes.new_tensor([width, height, width, height])
        boxes = box_convert(boxes, about.boxes, "xyxy")
        labels = labels - about.first_label
        kept = (scores >= about.min_score) & (labels >= 0)
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        if about.nms is not None:
            kept = batched_nms(boxes, scores, labels, about.nms)
            boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        return Detections(boxes, scores, labels)

    def _scored(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        if LABELS in tensors:
            return tensors[SCORES].float().reshape(-1), tensors[LABELS].reshape(-1).long()
        scores, labels = self._flat(tensors[SCORES], SCORES, len(self.classes)).float().max(dim=1)
        return scores, labels + self.description.first_label

    def _flat(self, tensor: Tensor, meaning: str, columns: int) -> Tensor:
        """A tensor (1, n, columns) or (n, columns) as (n, columns)."""
        shape = tuple(tensor.shape)
        if shape[-1:] != (columns,) or len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] != 1):
            raise InputError(
                f"{self.path}: its output {self.outputs[meaning]} is {shape}, not (1, n, {columns}), which {meaning} "
                "are. Other layouts need a Python function, see examples/nanodet_teacher.py."
            )
        return tensor.reshape(-1, columns)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list | tuple) and len(values) == 3 and all(map(_is_number, values))


def _are_sides(values: Any) -> bool:
    if not isinstance(values, list | tuple) or len(values) != 2:
        return False
    return all(type(side) is int and 1 <= side <= 1 << 14 for side in values)
