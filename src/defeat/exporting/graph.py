"""The network that is exported: from the pixels of an image to detections or candidates."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


class TorchRuntime:
    """The graph itself as a runtime: the reference for exported files."""

    def __init__(self, graph: ExportGraph) -> None:
        self.graph = graph

    @torch.no_grad()
    def run(self, images: npt.NDArray[np.float32]) -> dict[str, Any]:
        """Compute the outputs by name for (B, 3, H, W) images."""
        outputs = self.graph(torch.from_numpy(images))
        return {name: output.numpy() for name, output in zip(self.graph.outputs, outputs, strict=True)}
