"""A trained detector on somebody's images: pictures with boxes, and a file of detections."""

import json
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.progress import track
from torchvision.transforms.v2.functional import to_pil_image

from defeat.data.files import IMAGE_SUFFIXES
from defeat.data.images import read_header, read_image
from defeat.detector import load
from defeat.engine.inference import choose_device
from defeat.errors import InputError
from defeat.report.drawing import draw_detections
from defeat.types import Detections


def predict(
    run: str | Path,
    images: str | Path,
    out: str | Path,
    threshold: float = 0.5,
    device: str = "auto",
    console: Console | None = None,
) -> list[Path]:
    """Detect objects in images, draw them, and write `detections.json` in COCO's form beside the pictures.

    Args:
        run: run directory, or a torchvision model.
        images: an image, or a folder that is searched for images.
        out: folder for the pictures; made when it is missing.
        threshold: least score of a detection that is drawn, 0..1; the file holds all.
        device: auto (a GPU where there is one), cpu or cuda.
        console: where to show progress; None for none.

    Returns:
        The pictures.

    Raises:
        InputError: there is no image, an image can't be read, or the run is not valid.
    """
    paths = find_images(Path(images))
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    detector = load(run).to(choose_device(device))
    drawn, records = [], []
    root = Path(images) if Path(images).is_dir() else Path(images).parent
    for path in track(paths, "Detecting", console=console, disable=console is None, transient=True):
        image = read_image(path, read_header(path).upright, prefer_upright=True)
        found = detector.predict([image])[0].cpu()
        relative = path.relative_to(root)
        target = (folder / relative).with_suffix(".jpg")
        target.parent.mkdir(parents=True, exist_ok=True)
        picture: Image.Image = to_pil_image(draw_detections(image, found, detector.info.classes, threshold))
        picture.save(target, quality=92)
        drawn.append(target)
        records += list(coco_records(relative.as_posix(), found, detector.info.classes))
    (folder / "detections.json").write_text(json.dumps(records) + "\n")
    return drawn


def find_images(source: Path) -> list[Path]:
    """Every image of a folder and its sub-folders, in order, or the one image.

    Raises:
        InputError: there is none.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise InputError(f"{source} does not exist; give an image or a folder of images.")
    found = sorted(path for path in source.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise InputError(f"{source} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    return found


def coco_records(name: str, found: Detections, classes: tuple[str, ...]) -> Iterator[dict[str, object]]:
    """Detections of an image in the form of COCO's result files, with names beside the numbers."""
    for box, score, label in zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True):
        x1, y1, x2, y2 = (round(value, 2) for value in box)
        yield {
            "file_name": name,
            "category_id": label,
            "category_name": classes[label],
            "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
            "score": round(score, 5),
        }
