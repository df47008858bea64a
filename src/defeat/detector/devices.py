"""Where a detector computes."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from defeat.detector.base import Detector
from defeat.detector.taps import TappedTeacher
from defeat.errors import InputError


def choose_device(device: str) -> torch.device:
    """Turn `auto` into a GPU where there is one, else the CPU.

    Raises:
        InputError: the device does not exist here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError("--device cuda: no CUDA device was found; use --device cpu.")
    found = re.fullmatch(r"cpu|cuda(?::(\d{1,3}))?", device)
    if not found:
        raise InputError(f"--device {device}: give auto, cpu or cuda.")
    if found[1] and int(found[1]) >= torch.cuda.device_count():
        raise InputError(f"--device {device}: there are {torch.cuda.device_count()} CUDA devices, counted from 0.")
    return torch.device(device)


@contextmanager
def moved(detector: Detector | TappedTeacher, device: torch.device) -> Iterator[None]:
    """Put a detector on a device for a while."""
    before = detector.device
    detector.to(device)
    try:
        yield
    finally:
        detector.to(before)


def wait_for(device: torch.device) -> None:
    """An accelerator works in the background: a clock must wait for it."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
