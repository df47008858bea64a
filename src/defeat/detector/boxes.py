"""Teachers that only give boxes: a Python object or function, or the results file of another tool.

They have no feature maps and no weights, so that only images without annotations can be learned from them.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from defeat.data.columns import MIN_EXTENT, MIN_EXTENT_FRACTION
from defeat.data.results import ResultsFile
from defeat.detector.base import output_of
from defeat.detector.teacher import PREDICT, STORED, batch_detections
from defeat.errors import InputError, first_line, quoted
from defeat.types import Batch, Detections, DetectorInfo, DetectorOutput, Maps

Boxes = Detections | Mapping[str, Any]  # of an image


@runtime_checkable
class BoxTeacher(Protocol):
    """Any object that detects objects, such as a detector of another tool; a function becomes one by `BoxFunction`.

    It may have a text `fingerprint` that changes with its weights, so that a resumed run notices another teacher.
    """

    @property
    def classes(self) -> Sequence[str]:
        """Names of the K classes, in the order of the labels."""

    def predict(self, images: Sequence[Tensor]) -> Sequence[Boxes]:
        """Detect objects.

        Args:
            images: RGB images on the CPU, each (3, H, W) uint8 in 0..255.

        Returns:
            Per image, in any order: `Detections`, or a dict of `boxes` (D, 4), x1 y1 x2 y2 in pixels of the image,
            `labels` (D,) in 0..K-1, and `scores` (D,) in 0..1; without `scores`, every box is certain.
        """


@dataclass(frozen=True)
class BoxFunction:
    """A function as a `BoxTeacher`.

    Attributes:
        function: detects objects in a list of images, see `BoxTeacher.predict`.
        classes: names of the K classes, in the order of the labels.
        first_label: label of the first class in the dicts that the function returns: 1 for detectors of torchvision.
            Lower labels are left out.
    """

    function: Callable[[list[Tensor]], Sequence[Boxes]]
    classes: Sequence[str]
    first_label: int = 0

    kind: ClassVar[str] = "Python function"

    @property
    def fingerprint(self) -> str:
        """Name of the function; what it computes is not known."""
        name = getattr(self.function, "__qualname__", type(self.function).__qualname__)
        return f"{getattr(self.function, '__module__', '')}.{name}, {self.first_label}"

    def predict(self, images: Sequence[Tensor]) -> list[Boxes]:
        """Call the function."""
        return [self._shifted(boxes) for boxes in self.function(list(images))]

    def _shifted(self, boxes: Boxes) -> Boxes:
        if self.first_label == 0 or not isinstance(boxes, Mapping) or "labels" not in boxes:
            return boxes
        return {**boxes, "labels": torch.as_tensor(boxes["labels"]) - self.first_label}


class BoxNetwork(nn.Module):
    """A teacher that only gives boxes, as the other teachers are seen; it has no weights.

    Args:
        kind: what it is, in words.
        classes: names of the K classes, in the order of the labels.
        fingerprint: text that is equal for equal teachers; its hash stands for the weights.

    Attributes:
        info: its classes; it has no feature maps and no input size.
        capabilities: its optional capabilities.

    Raises:
        InputError: the names of the classes are missing or not texts.
    """

    capabilities: frozenset[str]
    source: Tensor

    def __init__(self, kind: str, classes: Sequence[str], fingerprint: str) -> None:
        super().__init__()
        if isinstance(classes, str) or not classes or not all(isinstance(name, str) for name in classes):
            raise InputError(f"The classes of a teacher must be a list of names, not {quoted(classes)}.")
        self.kind = kind
        self.info = DetectorInfo(
            family="boxes",
            classes=tuple(classes),
            neck={},
            backbone={},
            size=0,
            max_size=0,
            size_divisor=1,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            activation="sigmoid",
            background="none",
        )
        digest = hashlib.sha256(repr((kind, self.info.classes, fingerprint)).encode()).digest()
        self.register_buffer("source", torch.tensor(list(digest), dtype=torch.uint8))

    @property
    def device(self) -> torch.device:
        """Device of the hash; that of the detector is its own matter."""
        return self.source.device

    def adopt(self, batch: Batch) -> Batch:
        """Return the batch."""
        return batch

    def forward_teacher(
        self, batch: Batch, reads: Collection[str] | None = None, maps: Maps | None = None
    ) -> DetectorOutput:
        """An output without anything to learn from."""
        return output_of(batch, Maps({}, {}))


class PredictedBoxes(BoxNetwork):
    """A `BoxTeacher` whose detections are checked.

    Args:
        teacher: the object. It stays on its device, and is called without gradient.

    Raises:
        InputError: the names of its classes are missing or not texts.
    """

    capabilities = frozenset({PREDICT})

    def __init__(self, teacher: BoxTeacher) -> None:
        name = f"{type(teacher).__module__}.{type(teacher).__qualname__}"
        kind = str(getattr(teacher, "kind", "Python object"))
        super().__init__(kind, teacher.classes, str(getattr(teacher, "fingerprint", name)))
        self._outside = (teacher,)  # a tuple hides a network from the module tree

    @property
    def teacher(self) -> BoxTeacher:
        """The object."""
        return self._outside[0]

    def forward_teacher(
        self, batch: Batch, reads: Collection[str] | None = None, maps: Maps | None = None
    ) -> DetectorOutput:
        """The detections for a batch, if they will be read."""
        output = super().forward_teacher(batch, reads, maps)
        return replace(output, detections=batch_detections(self, batch)) if "detections" in (reads or ()) else output

    @torch.no_grad()
    def predict(self, images: Sequence[Tensor]) -> list[Detections]:
        """Detect objects, sorted by score and clipped to the image.

        Raises:
            InputError: the detections are not as `BoxTeacher.predict` describes.
        """
        results = list(self.teacher.predict(images))
        if len(results) != len(images):
            raise InputError(f"The teacher's predict returned {len(results)} results for {len(images)} images.")
        count = len(self.info.classes)
        pairs = zip(images, results, strict=True)
        return [clipped(checked(boxes, count), (image.shape[-2], image.shape[-1])) for image, boxes in pairs]


class StoredBoxes(BoxNetwork):
    """A results file as a teacher: it knows the images of the file only, by their names.

    Args:
        results: content of the file.
    """

    capabilities = frozenset({STORED})

    def __init__(self, results: ResultsFile) -> None:
        super().__init__("results file", results.classes, results.fingerprint)
        self.results = results

    def stored(self, names: Sequence[str], sizes: Sequence[tuple[int, int]]) -> list[Detections | None]:
        """Detections of images, sorted by score and clipped to the image; None for an image that is not in the file.

        Args:
            names: paths of the images, relative to their folder.
            sizes: height and width of each in pixels.

        Raises:
            InputError: two of the images are the same image of the file, or an image has another size there.
        """
        stored = self.results.find(names, sizes)
        return [None if boxes is None else clipped(boxes, size) for boxes, size in zip(stored, sizes, strict=True)]

    def has_seen(
        self, names: Sequence[str], sizes: Sequence[tuple[int, int]], others: Sequence[str] = ()
    ) -> list[bool]:
        """Whether the file has each image, of this size, and none of `others` is the same image of the file."""
        return self.results.has(names, sizes, others)


def checked(boxes: object, classes: int) -> Detections:
    """Detections of user code, on the CPU and sorted by score; those with a label below 0 are left out.

    Args:
        boxes: see `BoxTeacher.predict`.
        classes: K, the number of classes.

    Raises:
        InputError: they have another form, a number that is not finite, a score outside 0..1 or an unknown label.
    """
    if not isinstance(boxes, Detections):
        if not isinstance(boxes, Mapping) or not {"boxes", "labels"} <= boxes.keys():
            raise InputError(
                "The teacher's predict must return Detections, or a dict with 'boxes', 'labels' and 'scores', for each "
                f"image, not {type(boxes).__name__}."
            )
        boxes = Detections(boxes["boxes"], boxes.get("scores", torch.ones(len(boxes["labels"]))), boxes["labels"])
    try:
        corners = torch.as_tensor(boxes.boxes, dtype=torch.float32).detach().cpu().reshape(-1, 4)
        scores = torch.as_tensor(boxes.scores, dtype=torch.float32).detach().cpu().reshape(-1)
        labels = torch.as_tensor(boxes.labels).detach().cpu().reshape(-1).long()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"The teacher's predict returned boxes that are not tensors or lists ({first_line(error)})."
        ) from error
    if not len(corners) == len(scores) == len(labels):
        raise InputError(
            f"The teacher's predict returned {len(corners)} boxes, {len(scores)} scores and {len(labels)} labels for "
            "an image."
        )
    if not bool(corners.isfinite().all()):
        raise InputError("The teacher's predict returned a box with a number that is NaN or infinite.")
    if not bool(((scores >= 0) & (scores <= 1)).all()):
        raise InputError("The teacher's predict returned a score that is not in 0..1.")
    if bool((labels >= classes).any()):
        raise InputError(
            f"The teacher's predict returned label {int(labels.max())}, but the teacher has {classes} classes, counted "
            "from 0."
        )
    order = scores.argsort(descending=True, stable=True)
    order = order[labels[order] >= 0]
    return Detections(corners[order], scores[order], labels[order])


def clipped(detections: Detections, size: tuple[int, int]) -> Detections:
    """Detections clipped to an image, without those of which nothing remains, as for annotations.

    Args:
        detections: of the image.
        size: its height and width in pixels.
    """
    boxes = clip_boxes_to_image(detections.boxes, size)
    height, width = (max(MIN_EXTENT, MIN_EXTENT_FRACTION * side) for side in size)
    kept = (boxes[:, 2] - boxes[:, 0] >= width) & (boxes[:, 3] - boxes[:, 1] >= height)
    return Detections(boxes[kept], detections.scores[kept], detections.labels[kept])
