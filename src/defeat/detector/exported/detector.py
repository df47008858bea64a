"""An exported detector predicts like any other one."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.models.detection.transform import resize_boxes

from defeat.data.images import MAX_PIXELS, rgb_tensor
from defeat.detector.exported.description import BOXES, LABELS, SCORES, ExportDescription
from defeat.detector.preparation import input_size, resized_image
from defeat.errors import InputError, first_line
from defeat.types import Detections, DetectorInfo

Array = npt.NDArray[np.float32]


class Runtime(Protocol):
    """Runs the network of a file."""

    def run(self, images: Array) -> Mapping[str, npt.NDArray[np.generic]]:
        """Compute the outputs by name for (B, 3, H, W) images."""


class ExportedDetector:
    """A detector in a file of another runtime.

    Args:
        description: as the file contains it.
        runtime: runs the network.
        path: the file.
        open_runtime: opens the file for a kind of device, `cpu` or `cuda`.

    Attributes:
        info: its properties; it has no feature maps.
    """

    kind = "exported file"

    def __init__(
        self,
        description: ExportDescription,
        runtime: Runtime,
        path: Path,
        open_runtime: Callable[[str], Runtime] | None = None,
    ) -> None:
        self.description, self.runtime, self.path, self._open = description, runtime, path, open_runtime
        self.info = DetectorInfo(
            family=description.family,
            classes=description.classes,
            neck={},
            backbone={},
            size=description.size,
            max_size=description.max_size,
            size_divisor=description.size_divisor,
            mean=description.mean,
            std=description.std,
            activation="sigmoid",
            background="none",
            square=description.square,
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the K classes, in the order of the labels; with it, the file is a `BoxTeacher`."""
        return self.info.classes

    @property
    def fingerprint(self) -> str:
        """Of the weights."""
        return f"{self.description.fingerprint}, {self.description.precision}"

    @property
    def file_bytes(self) -> int:
        """Size of the file in bytes, with the file of its weights where there is one."""
        weights = self.path.with_suffix(".bin")
        parts = [self.path, weights] if self.path.suffix == ".xml" and weights.is_file() else [self.path]
        return sum(part.stat().st_size for part in parts)

    def to(self, device: torch.device) -> "ExportedDetector":
        """Open the file for a device, if its runtime supports that, and return the detector."""
        if self._open is not None:
            self.runtime = self._open(device.type)
        return self

    def predict(self, images: object, max_pixels: int = MAX_PIXELS) -> list[Detections]:
        """Detect objects, image by image.

        Args:
            images: see `Detector.predict`.
            max_pixels: most pixels of a file, width times height.

        Returns:
            Detections of each image in pixels of that image, sorted by score; a list also for one image.

        Raises:
            InputError: an item is not an image, or the runtime can't process it.
        """
        given = images if isinstance(images, list | tuple) else [images]
        return [self._detect(rgb_tensor(image, max_pixels)) for image in given]

    def shrinking(self, height: int, width: int) -> float:
        """Factor by which the input shrinks an image more than the detector does; 1 where the input may vary.

        Args:
            height: of the image in pixels.
            width: of the image in pixels.
        """
        about = self.description
        resized = input_size(self.info, height, width)
        return min(1.0, (about.height or resized[0]) / resized[0], (about.width or resized[1]) / resized[1])

    def prepare(self, image: Tensor) -> tuple[Array, tuple[int, int]]:
        """Resize an image, and place it in the input.

        Args:
            image: RGB, (3, H, W), uint8 in 0..255 or float32 in 0..1.

        Returns:
            The input (1, 3, H, W), and the height and width of the image in it.
        """
        about = self.description
        height, width = input_size(self.info, *image.shape[-2:])
        factor = self.shrinking(*image.shape[-2:])
        size = max(1, int(height * factor)), max(1, int(width * factor))
        resized = resized_image(image.cpu(), size, about.antialias) * about.white
        canvas = torch.tensor(about.fill)[None, :, None, None].repeat(
            1, 1, about.height or size[0], about.width or size[1]
        )
        canvas[0, :, : size[0], : size[1]] = resized
        return canvas.numpy(), size

    def _detect(self, image: Tensor) -> Detections:
        prepared, size = self.prepare(image)
        try:
            outputs = self.runtime.run(prepared)
        except Exception as error:  # of any type, raised by the runtime
            raise InputError(f"{self.path} can't be run on an image ({first_line(error)}).") from error
        detections = self.decode({name: torch.from_numpy(np.array(value)) for name, value in outputs.items()}, size)
        return replace(detections, boxes=resize_boxes(detections.boxes, list(size), list(image.shape[-2:])))

    def decode(self, outputs: Mapping[str, Tensor], size: tuple[int, int]) -> Detections:
        """Convert the outputs for an image to detections in pixels of the input.

        Args:
            outputs: see `ExportDescription`.
            size: height and width of the image in the input; boxes are clipped to it.
        """
        boxes, scores = outputs[BOXES].float(), outputs[SCORES].float()
        if self.description.nms == "outside":
            return self.description.selection.select(scores[0], boxes[0], size)
        height, width = size
        boxes = boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))
        return Detections(boxes, scores, outputs[LABELS].long())
