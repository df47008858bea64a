"""COCO and PASCAL VOC average precision of a whole split."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from defeat.evaluation.average_precision import Scene, coco_average_precision, mean_without_none, voc_average_precision
from defeat.types import Detections, Target


@dataclass(frozen=True)
class EvaluationResult:
    """Metrics of a split, 0..100; None where a metric is undefined (no such object).

    Attributes:
        metrics: `AP` (COCO, IoU 0.50..0.95), `AP50`, `AP75`, `APs`, `APm`, `APl` (small, medium, large objects),
            `voc07_ap50` (PASCAL VOC, 11 points) and `voc_ap50` (area under the curve).
        per_class: `AP`, `AP50`, `voc07_ap50` and `voc_ap50` of each class by name.
        images: number of images.
        objects: number of required objects, that is, without difficult and crowd boxes.
    """

    metrics: dict[str, float | None]
    per_class: dict[str, dict[str, float | None]]
    images: int
    objects: int

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain dicts, for JSON."""
        return asdict(self)


class Evaluator:
    """Collects the detections of a split and compares them with its annotations.

    Each image counts once: repeated `image_id`s are skipped, because a sampler for several processes repeats images to
    give every process the same number. The result does not depend on the order of the images.

    Args:
        classes: names of the K classes, in the order of the labels.

    Raises:
        ValueError: there is no class, or two have the same name.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        if not classes or len(set(classes)) != len(classes):
            raise ValueError(f"Expected one or more different class names, found {list(classes)}.")
        self.classes = tuple(classes)
        self._images: dict[int, tuple[Detections, Target]] = {}

    def update(self, detections: Sequence[Detections], targets: Sequence[Target]) -> None:
        """Add images.

        Args:
            detections: of each image, in pixels of the original image, on any device.
            targets: the annotations of the same images, in the same pixels, with difficult and crowd boxes.

        Raises:
            ValueError: the numbers of images differ, or a label is not in 0..K-1.
        """
        if len(detections) != len(targets):
            raise ValueError(f"Expected as many detections as targets, got {len(detections)} and {len(targets)}.")
        for image_detections, target in zip(detections, targets, strict=True):
            self._check_labels("detection", image_detections.labels, target.image_id)
            self._check_labels("target", target.labels, target.image_id)
            self._images.setdefault(target.image_id, (_detached(image_detections), target.to(torch.device("cpu"))))

    def state(self) -> list[Tensor]:
        """The collected images, as a fixed number of CPU tensors that can be pickled and sent to other processes.

        Returns:
            For I images with D detections and G boxes in total: image ids (I,), sizes (I, 2), detections per image
            (I,), boxes per image (I,), detected boxes (D, 4), scores (D,), labels (D,), annotated boxes (G, 4), labels
            (G,), difficult (G,) and crowd (G,).
        """
        detections = [image_detections for image_detections, _ in self._images.values()]
        targets = [target for _, target in self._images.values()]
        return [
            torch.tensor([target.image_id for target in targets], dtype=torch.int64),
            torch.tensor([target.size for target in targets], dtype=torch.int64).reshape(-1, 2),
            torch.tensor([len(image.boxes) for image in detections], dtype=torch.int64),
            torch.tensor([len(target.boxes) for target in targets], dtype=torch.int64),
            torch.cat([torch.zeros(0, 4), *(image.boxes for image in detections)]),
            torch.cat([torch.zeros(0), *(image.scores for image in detections)]),
            torch.cat([torch.zeros(0, dtype=torch.int64), *(image.labels for image in detections)]),
            torch.cat([torch.zeros(0, 4), *(target.boxes for target in targets)]),
            torch.cat([torch.zeros(0, dtype=torch.int64), *(target.labels for target in targets)]),
            torch.cat([torch.zeros(0, dtype=torch.bool), *(target.difficult for target in targets)]),
            torch.cat([torch.zeros(0, dtype=torch.bool), *(target.crowd for target in targets)]),
        ]

    def merge(self, states: Iterable[Sequence[Tensor]]) -> None:
        """Add the images of other processes.

        Images that this evaluator already has are skipped, so its own state may be among the others.

        Args:
            states: the `state()` of each process.
        """
        for state in states:
            for image_id, image in unpack_state(state).items():
                self._images.setdefault(image_id, image)

    def detections(self, image_id: int) -> Detections:
        """The detections of an image."""
        return self._images[image_id][0]

    def scenes(self) -> list[Scene]:
        """The collected images, in the order of their numbers."""
        return [Scene.from_image(*self._images[image_id]) for image_id in sorted(self._images)]

    def compute(self) -> EvaluationResult:
        """The metrics over all collected images; all None without images."""
        scenes = self.scenes()
        coco = coco_average_precision(scenes, len(self.classes))
        voc = voc_average_precision(scenes, len(self.classes))
        overall = coco.overall | {
            "voc07_ap50": mean_without_none(voc.eleven_points),
            "voc_ap50": mean_without_none(voc.area),
        }
        per_class = {
            name: _percent(
                coco.per_class[label] | {"voc07_ap50": voc.eleven_points[label], "voc_ap50": voc.area[label]}
            )
            for label, name in enumerate(self.classes)
        }
        objects = sum(int(scene.required.sum()) for scene in scenes)
        return EvaluationResult(_percent(overall), per_class, len(scenes), objects)

    def _check_labels(self, kind: str, labels: Tensor, image_id: int) -> None:
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.classes):
            raise ValueError(
                f"Expected {kind} labels in 0..{len(self.classes) - 1}, found {int(labels.min())}..{int(labels.max())} "
                f"in image {image_id}."
            )


def unpack_state(state: Sequence[Tensor]) -> dict[int, tuple[Detections, Target]]:
    """The images in a state of `Evaluator.state`, by their numbers."""
    ids, sizes, detection_counts, box_counts, *flat = (tensor.cpu() for tensor in state)
    split = [torch.split(tensor, detection_counts.tolist()) for tensor in flat[:3]]
    split += [torch.split(tensor, box_counts.tolist()) for tensor in flat[3:]]
    images = {}
    for index, image_id in enumerate(ids.tolist()):
        boxes, scores, labels, true_boxes, true_labels, difficult, crowd = (parts[index] for parts in split)
        height, width = sizes[index].tolist()
        target = Target(true_boxes, true_labels, difficult, crowd, image_id, (height, width))
        images[image_id] = Detections(boxes, scores, labels), target
    return images


def _percent(fractions: dict[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else 100.0 * value for name, value in fractions.items()}


def _detached(detections: Detections) -> Detections:
    detections = detections.cpu()
    return Detections(detections.boxes.detach(), detections.scores.detach(), detections.labels)
