"""What detectors with object queries share: boxes relative to the image, detections, and predictions at every cell."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from defeat.detector.backbone import Backbone
from defeat.detector.base import Detector, DetectorSpec, info_of, output_of, valid_cells
from defeat.detector.cells import cell_centres, cell_labels
from defeat.detector.selection import BOXES, SCORES, Raw, Selection
from defeat.errors import InputError
from defeat.types import Batch, DensePredictions, Detections, DetectorOutput, Maps, Queries, Target

BORDER = 1e-2  # cells whose centre is nearer to the border, relative to the image, predict nothing


class SetDetector(Detector):
    """A detector that predicts a set of objects by queries: a sigmoid per class, and no non-maximum suppression.

    Images are stretched to a square. The maps that the decoder reads are the neck; class scores and boxes at every cell
    of them are `dense`. The decoder computes in float32 also under autocast: half precision would move boxes by pixels.
    """

    def __init__(
        self,
        spec: DetectorSpec,
        backbone: Backbone,
        head: nn.Module,
        *,
        size_divisor: int,
        queries: int,
        score_thresh: float,
        detections_per_img: int,
    ) -> None:
        """Create it from its parts.

        Args:
            spec: description of the detector.
            backbone: its body and neck.
            head: everything after the neck.
            size_divisor: sides of images are multiples of it, in pixels.
            queries: number of queries of an image; there are no more than cells.
            score_thresh: detections with a lower score are dropped, 0..1.
            detections_per_img: maximum number of detections per image.
        """
        super().__init__()
        self.backbone, self.head, self.spec = backbone, head, spec
        cells = sum((spec.size // stride) ** 2 for stride in backbone.neck_channels)
        self.selection = Selection(score_thresh, min(detections_per_img, queries, cells))
        self.info = info_of(
            spec,
            backbone,
            max_size=spec.size,
            size_divisor=size_divisor,
            activation="sigmoid",
            background="none",
            offers=frozenset({"dense", "queries"}),
            anchors=f"{list(backbone.neck_channels)} cells of a square",
            square=True,
        )

    @abstractmethod
    def final_predictions(self, maps: Maps) -> tuple[Tensor, Tensor]:
        """Predictions of the last decoder layer, for the feature maps of a batch.

        Returns:
            Class logits (B, Q, K), and boxes (B, Q, 4): centre and size, relative to the batch's tensor.
        """

    def raw(self, images: Tensor, sizes: list[tuple[int, int]], maps: Maps | None = None) -> Raw:
        """Scores and boxes of the queries of the last layer."""
        logits, boxes = self.final_predictions(maps or Maps(*self.backbone(images)))
        return {SCORES: logits.sigmoid(), BOXES: corners_in_pixels(boxes, images)}

    def decode(self, raw: Raw, sizes: list[tuple[int, int]]) -> list[Detections]:
        """Select the highest scores over all queries and classes, in pixels of the batch."""
        return [
            self._select(scores, boxes, size)
            for scores, boxes, size in zip(raw[SCORES], raw[BOXES], sizes, strict=True)
        ]

    def candidates(self, raw: Raw) -> tuple[Tensor, Tensor]:
        """Boxes and scores of all queries."""
        return raw[BOXES], raw[SCORES]

    def _select(self, scores: Tensor, boxes: Tensor, size: tuple[int, int]) -> Detections:
        best = self.selection.select(scores, boxes, size)
        kept = (best.boxes[:, 2:] > best.boxes[:, :2]).all(dim=1)
        return Detections(best.boxes[kept], best.scores[kept], best.labels[kept])

    def _output(
        self, batch: Batch, losses: dict[str, Tensor], maps: Maps, queries: Queries, cells: tuple[Tensor, Tensor]
    ) -> DetectorOutput:
        """The output for a batch.

        Args:
            batch: images with targets.
            losses: of the detector itself; empty for a teacher.
            maps: feature maps of the batch.
            queries: predictions of the queries.
            cells: class logits (B, N, K) and boxes (B, N, 4) of all cells: centre and size, relative to the tensor.
        """
        return output_of(batch, maps, losses, dense=_dense(batch, maps, *cells), queries=queries)


def _dense(batch: Batch, maps: Maps, logits: Tensor, boxes: Tensor) -> DensePredictions:
    shapes = {stride: (level.shape[-2], level.shape[-1]) for stride, level in maps.neck.items()}
    device = batch.images.device
    centres = torch.cat([cell_centres(shape, device) for shape in shapes.values()])  # (N, 2), relative
    counts = torch.tensor([height * width for height, width in shapes.values()], device=device)
    strides = torch.tensor(list(shapes), device=device).repeat_interleave(counts)
    inside = torch.cat([valid.flatten(1) for valid in valid_cells(batch, maps.neck).values()], dim=1)
    inside = inside & ((centres > BORDER) & (centres < 1 - BORDER)).all(dim=1)
    height, width = tensor_size(batch.images)
    pixels = centres * centres.new_tensor([width, height])
    labels = torch.stack([cell_labels(target, pixels, strides, batch.classes) for target in batch.targets])
    return DensePredictions(
        logits=logits,
        decode=lambda image, index: corners_in_pixels(boxes[image, index], batch.images),
        labels=torch.where(inside, labels, -1),
        strides=strides,
    )


def tensor_size(images: Tensor) -> tuple[int, int]:
    """Height and width of the tensor (B, 3, H, W) of a batch, in pixels."""
    return int(images.shape[-2]), int(images.shape[-1])


def corners_in_pixels(boxes: Tensor, images: Tensor) -> Tensor:
    """Convert boxes (..., 4) from centre and size, relative to a batch's tensor, to corners in its pixels."""
    height, width = tensor_size(images)
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1) * boxes.new_tensor([width, height] * 2)


def relative_labels(target: Target, batch: Batch) -> dict[str, Tensor]:
    """Labels of an image as the models read them: centre and size of boxes, relative to the batch's tensor."""
    height, width = tensor_size(batch.images)
    corners = target.boxes / target.boxes.new_tensor([width, height] * 2)
    upper, lower = corners[:, :2], corners[:, 2:]
    return {"class_labels": target.labels, "boxes": torch.cat([(upper + lower) / 2, lower - upper], dim=1)}


def with_classes(
    trained: SetDetector, spec: DetectorSpec, source: str, build: Callable[[DetectorSpec], SetDetector]
) -> SetDetector:
    """A detector for other classes with all other weights of a trained one; rows of equal classes are kept.

    Args:
        trained: the trained detector.
        spec: description of the new one; what is neither classes, size nor a threshold is that of the trained one.
        source: name of the trained one, for messages.
        build: builds a detector with random weights.

    Raises:
        InputError: the size is not valid.
    """
    own = ("classes", "size", "max_size", "frozen_stages")
    changed: dict[str, Any] = {name: getattr(spec, name) for name in own}
    values = {name: value for name, value in spec.options.items() if name in ("score_thresh", "detections_per_img")}
    student = build(replace(trained.spec, **changed, options={**trained.spec.options, **values}))
    kept = student.copy_weights(trained)
    others = [name for name in spec.classes if name not in kept]
    if others:
        student.notes = (
            f"{source}: all weights are kept but those of the classes; {len(kept)} of {len(spec.classes)} classes have "
            f"the checkpoint's, and {len(others)} start anew, such as {others[0]}.",
        )
    return student


def require_size(spec: DetectorSpec, size_divisor: int) -> None:
    """Refuse a size of images that is not a multiple of a number of pixels.

    Raises:
        InputError: the message names both.
    """
    if spec.size % size_divisor:
        raise InputError(f"--size of {spec.family} must be a multiple of {size_divisor}, not {spec.size}.")


def require_family(family: str, config: Mapping[str, Any]) -> None:
    """Refuse a configuration of transformers that is not of a family.

    Raises:
        InputError: the message names both.
    """
    if config.get("model_type") != family:
        raise InputError(f"the configuration is that of {config.get('model_type')}, not of {family}.")
