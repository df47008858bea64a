"""Detectors of the package transformers: a folder written by `save_pretrained`, or a model of the hub."""

from pathlib import Path

from defeat.detector import load_transformers
from defeat.detector.base import Detector
from defeat.detector.transformers_models import is_checkpoint

NAME = "transformers"


def recognised_source(source: str | Path) -> bool:
    """Whether a source is a folder written by `save_pretrained`, or `hf:ORG/NAME`."""
    return is_checkpoint(source)


def read_source(source: str | Path) -> Detector:
    """Load a trained detector with its weights.

    Args:
        source: a folder written by `save_pretrained`, or `hf:ORG/NAME`.

    Raises:
        InputError: it can't be loaded, or is not one of our families.
    """
    return load_transformers(source)
