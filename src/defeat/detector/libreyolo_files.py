"""Loads trained detectors of LibreYOLO, of any family that is built from its modules."""

from pathlib import Path

from defeat.detector.families import yolo9, yolox
from defeat.detector.libreyolo_models import read_checkpoint
from defeat.detector.yolo import YOLODetector, load_yolo


def load_libreyolo(source: str | Path) -> YOLODetector:
    """Load a trained detector of LibreYOLO.

    Raises:
        InputError: it can't be read, or is not a detector of one of the families.
    """
    checkpoint = read_checkpoint(source)
    if checkpoint.family == "yolox":
        return load_yolo(checkpoint, source, yolox.built)
    return load_yolo(checkpoint, source, yolo9.built)
