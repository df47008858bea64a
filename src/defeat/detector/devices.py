"""Devices of detectors."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from defeat.detector.base import Detector
from defeat.detector.boxes import BoxNetwork
from defeat.detector.ensemble import TeacherEnsemble
from defeat.detector.taps import TappedTeacher
from defeat.errors import InputError


def choose_device(device: str) -> torch.device:
    """Convert `auto` to a GPU if there is one, else the CPU.

    Raises:
        InputError: the device does not exist.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError("--device cuda: no CUDA device was found; use --device cpu.")
    match = re.fullmatch(r"cpu|cuda(?::(\d{1,3}))?", device)
    if not match:
        raise InputError(f"--device {device}: give auto, cpu or cuda.")
    if match[1] and int(match[1]) >= torch.cuda.device_count():
        raise InputError(f"--device {device}: there are {torch.cuda.device_count()} CUDA devices, counted from 0.")
    return torch.device(device)


@contextmanager
def moved(detector: Detector | TappedTeacher | TeacherEnsemble | BoxNetwork, device: torch.device) -> Iterator[None]:
    """Move a detector to a device temporarily."""
    before = detector.device
    detector.to(device)
    try:
        yield
    finally:
        detector.to(before)


def wait_for(device: torch.device) -> None:
    """Synchronise with an accelerator, which computes asynchronously, before measuring time."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
