"""YOLOv9 and YOLOX detectors of LibreYOLO, as it saves them (`best.pt`)."""

from pathlib import Path

from defeat.detector.base import Detector
from defeat.detector.libreyolo_files import load_libreyolo
from defeat.detector.libreyolo_models import is_checkpoint

NAME = "LibreYOLO"


def recognised_source(source: str | Path) -> bool:
    """Whether a source is a checkpoint of LibreYOLO; nothing in the file is executed."""
    return is_checkpoint(source)


def read_source(source: str | Path) -> Detector:
    """Load a trained detector with its weights.

    Args:
        source: path of the checkpoint.

    Raises:
        InputError: it can't be read, is not a YOLOv9 or YOLOX, or LibreYOLO is not installed.
    """
    return load_libreyolo(source)
