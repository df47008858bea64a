"""All boxes of a split at once, as columns: the same rules as for single annotations, see `SplitBuilder`."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# In pixels: annotations are rounded, so only boxes that extend further outside count as clipped.
CLIP_TOLERANCE = 0.5
# Smallest extent of a box in pixels, and as a fraction of the image's side, which float32 must still resolve.
MIN_EXTENT = 0.01
MIN_EXTENT_FRACTION = 1e-6
_CHUNK = 1 << 16  # boxes that are processed at once

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class AnnotationColumns:
    """Boxes as read from a file, not yet clipped to their images.

    Attributes:
        images: (G,) int64 index of the image of each box.
        corners: (G, 4) float64 x1 y1 x2 y2 in pixels, ends exclusive, all finite.
        labels: (G,) int64 in 0..K-1, -1 for a class that is not selected.
        crowd: (G,) bool.
    """

    images: Integers
    corners: Floats
    labels: Integers
    crowd: Flags

    def chosen(self, rows: Integers | Flags) -> "AnnotationColumns":
        """Some of the boxes, by their indices or as a mask."""
        return AnnotationColumns(self.images[rows], self.corners[rows], self.labels[rows], self.crowd[rows])


@dataclass(frozen=True)
class ClippedBoxes:
    """Boxes that remain after clipping, in the order of the images.

    Attributes:
        boxes: (G, 4) float32.
        annotations: of each box.
        empty: number of boxes that were dropped because nothing remained.
        clipped: number of boxes that were larger.
        other_class: number of boxes that were dropped because of their class.
    """

    boxes: npt.NDArray[np.float32]
    annotations: AnnotationColumns
    empty: int
    clipped: int
    other_class: int

    def duplicates(self) -> int:
        """Number of boxes that are the same as an earlier one of the image: class and corners before clipping."""
        rows = self.annotations
        keys = _keys(rows)
        ordered = np.sort(keys)
        repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        # Different boxes may have one key.
        same_key = rows.chosen(np.isin(keys, repeated))
        corners = map(tuple, same_key.corners.tolist())
        distinct = set(zip(same_key.images.tolist(), same_key.labels.tolist(), corners, strict=True))
        return len(same_key.labels) - len(distinct)

    def ends(self, images: int) -> Integers:
        """(images + 1,) index before the first box and after the last of each image."""
        counts = np.bincount(self.annotations.images, minlength=images)
        return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts, dtype=np.int64)])


def clip(annotations: AnnotationColumns, sizes: Integers) -> ClippedBoxes:
    """Clip boxes to their images, and drop those of which nothing remains.

    Args:
        annotations: the boxes, those of an image in the order to keep.
        sizes: (N, 2) height and width of the images.
    """
    order = np.argsort(annotations.images, kind="stable")
    selected = order[annotations.labels[order] >= 0]
    boxes, kept, clipped = [np.zeros((0, 4), dtype=np.float32)], [np.zeros(0, dtype=np.int64)], 0
    for rows in _chunks(selected):
        corners, limits = annotations.corners[rows], sizes[annotations.images[rows]].astype(np.float64)
        inside = _clamped(corners, limits[:, [1, 0, 1, 0]])
        least = np.maximum(MIN_EXTENT, MIN_EXTENT_FRACTION * limits)  # (G, 2) of height and width
        remains = ~((inside[:, 2] - inside[:, 0] < least[:, 1]) | (inside[:, 3] - inside[:, 1] < least[:, 0]))
        clipped += int((np.abs(inside - corners).max(axis=1)[remains] > CLIP_TOLERANCE).sum())
        boxes.append(inside[remains].astype(np.float32))
        kept.append(rows[remains])
    remaining = np.concatenate(kept)
    return ClippedBoxes(
        np.concatenate(boxes),
        annotations.chosen(remaining),
        empty=len(selected) - len(remaining),
        clipped=clipped,
        other_class=len(order) - len(selected),
    )


def _chunks(rows: Integers) -> Iterator[Integers]:
    return (rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK))


def _clamped(values: Floats, limits: Floats) -> Floats:
    """Like `min(max(value, 0.0), limit)`, which keeps a negative zero."""
    positive = np.where(values < 0.0, 0.0, values)
    return np.where(limits < positive, limits, positive)


def _keys(rows: AnnotationColumns) -> npt.NDArray[np.uint64]:
    """A hash of image, class and corners of each box."""
    keys = rows.images.astype(np.uint64)
    # Positive and negative zero are equal.
    for values in (rows.labels.astype(np.uint64), *(rows.corners.T + 0.0).view(np.uint64)):
        keys = (keys ^ values) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys
