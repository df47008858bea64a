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
        score_thresh: float,
        detections_per_img: int,
    ) -> None:
        """Create it from its parts.

        Args:
            spec: description of the detector.
            backbone: its body and neck.
            head: everything after the neck.
            size_divisor: sides of images are multiples of it, in pixels.
            score_thresh: detections with a lower score are dropped, 0..1.
            detections_per_img: maximum number of detections per image.
        """
        super().__init__()
        self.backbone, self.head, self.spec = backbone, head, spec
        self.score_thresh, self.detections_per_img = score_thresh, detections_per_img
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
    def final_predictions(self, batch: Batch, maps: Maps) -> tuple[Tensor, Tensor]:
        """Predictions of the last decoder layer.

        Returns:
            Class logits (B, Q, K), and boxes (B, Q, 4): centre and size, relative to the batch's tensor.
        """

    def forward_predict(self, batch: Batch) -> list[Detections]:
        """Detect objects, in pixels of the original images; the highest scores over all queries and classes."""
        logits, relative = self.final_predictions(batch, self.forward_maps(batch))
        scores, boxes = logits.sigmoid(), corners_in_pixels(relative, batch)
        count = min(self.detections_per_img, scores.shape[1])
        best, index = scores.flatten(1).topk(count)  # (B, D)
        labels, query = index % scores.shape[2], index // scores.shape[2]
        detections = []
        for row, (size, original) in enumerate(zip(batch.sizes, batch.original_sizes, strict=True)):
            ratio = boxes.new_tensor([original[1] / size[1], original[0] / size[0]] * 2)
            limit = boxes.new_tensor([original[1], original[0]] * 2)
            corners = (boxes[row, query[row]] * ratio).clamp(min=0).minimum(limit)
            kept = (best[row] >= self.score_thresh) & (corners[:, 2:] > corners[:, :2]).all(dim=1)
            detections.append(Detections(corners[kept], best[row][kept], labels[row][kept]))
        return detections

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
    height, width = tensor_size(batch)
    pixels = centres * centres.new_tensor([width, height])
    labels = torch.stack([cell_labels(target, pixels, strides, batch.classes) for target in batch.targets])
    return DensePredictions(
        logits=logits,
        boxes=corners_in_pixels(boxes.detach(), batch),
        labels=torch.where(inside, labels, -1),
        strides=strides,
    )


def tensor_size(batch: Batch) -> tuple[int, int]:
    """Height and width of the tensor of a batch, in pixels."""
    return int(batch.images.shape[-2]), int(batch.images.shape[-1])


def corners_in_pixels(boxes: Tensor, batch: Batch) -> Tensor:
    """Convert boxes (..., 4) from centre and size, relative to the batch's tensor, to corners in its pixels."""
    height, width = tensor_size(batch)
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1) * boxes.new_tensor([width, height] * 2)


def relative_labels(target: Target, batch: Batch) -> dict[str, Tensor]:
    """Labels of an image as the models read them: centre and size of boxes, relative to the batch's tensor."""
    height, width = tensor_size(batch)
    corners = target.boxes / target.boxes.new_tensor([width, height] * 2)
    upper, lower = corners[:, :2], corners[:, 2:]
    return {"class_labels": target.labels, "boxes": torch.cat([(upper + lower) / 2, lower - upper], dim=1)}


@torch.no_grad()
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
    labels = {name: label for label, name in enumerate(trained.info.classes)}
    kept = [(label, labels[name]) for label, name in enumerate(spec.classes) if name in labels]
    state, rows = student.state_dict(), student.class_rows()
    for name, tensor in trained.state_dict().items():
        if name not in rows:
            state[name].copy_(tensor)
        else:
            for new, old in kept:
                state[name][new] = tensor[old]
    others = [name for name in spec.classes if name not in labels]
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
