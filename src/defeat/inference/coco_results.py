"""Detections in COCO's results format, with the ids of images and categories."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from defeat.errors import InputError
from defeat.types import Detections


class Numbers:
    """Ids of images and categories in `detections.json`: images count from 1, classes from 0.

    Args:
        classes: names of the detector's classes.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes
        self.categories = list(range(len(classes)))

    def image(self, count: int, name: str) -> int:
        """Id of the `count`-th image."""
        return count

    def records(self, image_id: int, name: str, detections: Detections) -> Iterator[dict[str, object]]:
        """Detections of an image in COCO's results format, with file and category names added."""
        fields = (detections.boxes.tolist(), detections.scores.tolist(), detections.labels.tolist())
        for box, score, label in zip(*fields, strict=True):
            x1, y1, x2, y2 = (round(value, 2) for value in box)
            yield {
                "image_id": image_id,
                "file_name": name,
                "category_id": self.categories[label],
                "category_name": self.classes[label],
                "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
                "score": round(score, 5),
            }


class NumbersOf(Numbers):
    """Ids of a COCO annotation file, so that COCO tools can match the detections with it.

    Args:
        path: the annotation file.
        classes: names of the detector's classes.

    Raises:
        InputError: the file is not valid, or lacks a class of the detector.
    """

    def __init__(self, path: str, classes: Sequence[str]) -> None:
        super().__init__(classes)
        self.path = path
        try:
            content = json.loads(Path(path).read_bytes())
            categories = {str(category["name"]): int(category["id"]) for category in content["categories"]}
            images = {Path(image["file_name"]).as_posix(): int(image["id"]) for image in content["images"]}
        except OSError as error:
            raise InputError(f"--annotations {path} can't be read ({error.strerror}).") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                f"--annotations {path} is not a COCO annotation file with images and categories."
            ) from error
        if missing := [name for name in classes if name not in categories]:
            raise InputError(f"--annotations {path} has no category {missing[0]!r}, a class of the detector.")
        self.categories = [categories[name] for name in classes]
        self.images = images
        file_names = [_file_name(path) for path in images]
        count = Counter(file_names)
        ids = zip(file_names, images.values(), strict=True)
        self.by_file_name = {name: image_id for name, image_id in ids if count[name] == 1}

    def image(self, count: int, name: str) -> int:
        """Id of an image by its path, or by its file name where that is unique.

        Raises:
            InputError: the annotation file has no such image.
        """
        image_id = self.images.get(name, self.by_file_name.get(_file_name(name)))
        if image_id is None:
            raise InputError(f"{name} is not among the images of {self.path}.")
        return image_id


def _file_name(name: str) -> str:
    return name.rpartition("/")[2]
