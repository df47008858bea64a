"""The network that is exported: from the pixels of an image to detections or candidates."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import boxes as box_ops

from defeat.detector import Detector
from defeat.detector.exported.description import BOXES, LABELS, SCORES, ExportDescription
from defeat.detector.preparation import normalised, padding_colour
from defeat.errors import InputError


class ExportGraph(nn.Module):
    """A detector as a function of one tensor; it can be traced, and knows no family.

    Args:
        detector: in eval mode, on the CPU.
        description: input and outputs, see `ExportDescription`.

    Raises:
        InputError: the family has no candidates, and `description.nms` is outside.
    """

    def __init__(self, detector: Detector, description: ExportDescription) -> None:
        super().__init__()
        self.detector, self.description = detector, description
        if description.nms == "outside" and type(detector).candidates is Detector.candidates:
            raise InputError(
                f"--nms outside: {description.family} has non-maximum suppression of its proposals inside; use --nms "
                "inside."
            )

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in their order."""
        return (BOXES, SCORES, LABELS) if self.description.nms == "inside" else (BOXES, SCORES)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Detect objects.

        Args:
            images: (B, 3, H, W) float32 RGB, white is `description.white`.

        Returns:
            The outputs that `ExportDescription` describes.
        """
        height, width = images.shape[-2:]
        padded = self._padded(normalised(images / self.description.white, self.detector.info))
        raw = self.detector.raw(padded, [(height, width)])
        if self.description.nms == "inside":
            (detections,) = self.detector.decode(raw, [(height, width)])
            return detections.boxes, detections.scores, detections.labels
        candidates = self.detector.candidates(raw)
        assert candidates is not None
        return candidates

    def _padded(self, images: Tensor) -> Tensor:
        """Pad height and width to multiples of the divisor with the detector's colour."""
        divisor = self.description.size_divisor
        height, width = images.shape[-2:]
        border = (0, -width % divisor, 0, -height % divisor)
        colour = padding_colour(self.detector.info, self.detector.padding)
        if not any(colour):
            return F.pad(images, border)
        value = images.new_tensor(colour)[:, None, None]
        return F.pad(images - value, border) + value


@contextmanager
def tracing() -> Iterator[None]:
    """While a graph is traced, non-maximum suppression never gets an empty set, for which OpenVINO invents a box.

    A box without an area and with a score of 0 comes last, and is dropped again.
    """
    original = box_ops.batched_nms

    def batched_nms(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
        one_more = F.pad(boxes, (0, 0, 0, 1)), F.pad(scores, (0, 1)), F.pad(labels, (0, 1))
        kept: Tensor = original(*one_more, threshold)
        return kept[kept < scores.shape[0]]

    box_ops.batched_nms = batched_nms
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of tracing: what is constant here was tested with other images
            yield
    finally:
        box_ops.batched_nms = original


class TorchRuntime:
    """The graph itself as a runtime: the reference for exported files."""

    def __init__(self, graph: ExportGraph) -> None:
        self.graph = graph

    @torch.no_grad()
    def run(self, images: npt.NDArray[np.float32]) -> dict[str, Any]:
        """Compute the outputs by name for (B, 3, H, W) images."""
        outputs = self.graph(torch.from_numpy(images))
        return {name: output.numpy() for name, output in zip(self.graph.outputs, outputs, strict=True)}
