"""Detections in the form of COCO's result files: which numbers images and categories get."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from defeat.errors import InputError
from defeat.types import Detections


class Numbers:
    """Which numbers `detections.json` gives to images and categories: images count from 1, classes from 0.

    Args:
        classes: of the detector.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes
        self.categories = list(range(len(classes)))

    def image(self, count: int, name: str) -> int:
        """Number of an image, which is the `count`th."""
        return count

    def records(self, number: int, name: str, found: Detections) -> Iterator[dict[str, object]]:
        """Detections of an image in the form of COCO's result files, with names beside the numbers."""
        for box, score, label in zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True):
            x1, y1, x2, y2 = (round(value, 2) for value in box)
            yield {
                "image_id": number,
                "file_name": name,
                "category_id": self.categories[label],
                "category_name": self.classes[label],
                "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
                "score": round(score, 5),
            }


class NumbersOf(Numbers):
    """The numbers of a COCO annotation file, so that tools which know that file can read the detections.

    Args:
        path: the file.
        classes: of the detector.

    Raises:
        InputError: it is no such file, or lacks a class of the detector.
    """

    def __init__(self, path: str, classes: Sequence[str]) -> None:
        super().__init__(classes)
        self.path = path
        try:
            content = json.loads(Path(path).read_bytes())
            numbers = {str(one["name"]): int(one["id"]) for one in content["categories"]}
            images = {Path(one["file_name"]).as_posix(): int(one["id"]) for one in content["images"]}
        except OSError as error:
            raise InputError(f"--annotations {path} can't be read ({error.strerror}).") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                f"--annotations {path} is not a COCO annotation file with images and categories."
            ) from error
        if missing := [name for name in classes if name not in numbers]:
            raise InputError(f"--annotations {path} has no category {missing[0]!r}, which the detector knows.")
        self.categories = [numbers[name] for name in classes]
        self.images = images
        last = [_last(name) for name in images]
        count = Counter(last)
        self.by_last = {name: one for name, one in zip(last, images.values(), strict=True) if count[name] == 1}

    def image(self, count: int, name: str) -> int:
        """Number of an image by its name, or by its last part where that is found once; InputError without one."""
        number = self.images.get(name, self.by_last.get(_last(name)))
        if number is None:
            raise InputError(f"{name} is not among the images of {self.path}.")
        return number


def _last(name: str) -> str:
    return name.rpartition("/")[2]
