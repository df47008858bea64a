"""Cost of a detector: parameters, FLOPs, latency and file size."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from defeat.detector.base import Detector
from defeat.detector.devices import wait_for
from defeat.detector.teacher import Predictor


@dataclass(frozen=True)
class Profile:
    """The cost of one prediction on one image.

    Attributes:
        parameters: number of weights, trained or frozen.
        gflops: 1e9 floating-point operations of one prediction. One multiplication with its addition counts as two;
            only convolutions, matrix products and attention are counted.
        latency_ms: median wall time of one prediction in milliseconds, from the uint8 image to the detections.
        model_bytes: size of the weights' file.
        size: height and width of the image in pixels, before the detector resizes it.
        threads: threads that the CPU used.
        device: where it ran, e.g. `cpu` or `cuda:0`.
    """

    parameters: int
    gflops: float
    latency_ms: float
    model_bytes: int
    size: tuple[int, int]
    threads: int
    device: str

    def to_dict(self) -> dict[str, Any]:
        """Convert to a plain dict, for JSON."""
        return asdict(self)


def profile_model(
    model: Detector,
    size: tuple[int, int],
    *,
    image: Tensor | None = None,
    weights: Path | None = None,
    threads: int = 1,
    repeats: int = 20,
    warmup: int = 3,
) -> Profile:
    """Measure a detector on its device.

    Args:
        model: the detector; its training or eval mode is restored.
        size: height and width of the image in pixels.
        image: (3, H, W) uint8 RGB of that size; None for noise from a fixed seed. The number of boxes before
            non-maximum suppression depends on the image, so a real one gives a more realistic latency.
        weights: the file whose size is reported; None for the size of the weights in memory.
        threads: threads that the CPU may use.
        repeats: timed predictions.
        warmup: predictions before the first timed one.

    Raises:
        ValueError: `repeats` or `threads` is below 1, or the image is not of that size.
    """
    if repeats < 1 or threads < 1:
        raise ValueError(f"Expected at least 1 repeat and 1 thread, found {repeats} and {threads}.")
    if image is None:
        image = noise(size)
    if image.shape != (3, *size):
        raise ValueError(f"Expected an image of shape {(3, *size)}, found {tuple(image.shape)}.")
    device = next(model.parameters()).device
    image = image.to(device)
    with limited_threads(threads):
        seconds = latencies(model, [image], device, repeats, warmup)
        flops = count_flops(model, image)
    return Profile(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        gflops=flops / 1e9,
        latency_ms=1000 * median(seconds),
        model_bytes=weights.stat().st_size if weights is not None else _bytes_in_memory(model),
        size=size,
        threads=threads,
        device=str(device),
    )


def noise(size: tuple[int, int]) -> Tensor:
    """An image (3, H, W) uint8 of random pixels from a fixed seed, for its height and width."""
    return torch.randint(256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def count_flops(model: Detector, image: Tensor) -> int:
    """Floating-point operations of one prediction; a multiplication with its addition counts as two.

    Args:
        model: the detector.
        image: (3, H, W) uint8 RGB on the detector's device.
    """
    counter = FlopCounterMode(display=False)
    with counter:
        model.predict([image])
    return int(counter.get_total_flops())


def latencies(
    model: Predictor, images: Sequence[Tensor], device: torch.device, repeats: int = 20, warmup: int = 3
) -> list[float]:
    """Wall time of calls of `predict` in seconds.

    Args:
        model: a detector on the device.
        images: those of each call, (3, H, W) uint8 RGB on the device.
        device: the device.
        repeats: timed predictions.
        warmup: predictions before the first timed one.
    """
    seconds = []
    for repeat in range(warmup + repeats):
        wait_for(device)
        begin = time.perf_counter()
        model.predict(images)
        wait_for(device)
        if repeat >= warmup:
            seconds.append(time.perf_counter() - begin)
    return seconds


def percentile_95(values: Sequence[float]) -> float:
    """The 95th percentile of one or more values."""
    return quantiles(values, n=20)[-1] if len(values) > 1 else values[0]


@contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Let torch use a number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _bytes_in_memory(model: Detector) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
