"""Measures what a prediction costs: time by batch and threads, floating-point operations and memory."""

import gc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.progress import track

from defeat.data.images import read_header, read_image
from defeat.detector import Detector, load
from defeat.detector.devices import choose_device
from defeat.detector.exported import ExportedDetector
from defeat.errors import InputError
from defeat.evaluation.profile import count_flops, latencies, limited_threads, noise, percentile_95
from defeat.settings import at_least

USUAL_SIZE = 800


@dataclass(frozen=True)
class Cost:
    """What predictions of a detector cost.

    Attributes:
        source: the run or file.
        batch: images per call of `predict`.
        threads: threads that the CPU may use.
        device: where it ran.
        size: height and width of the images in pixels, before the detector resizes them.
        median_ms: median wall time per call in milliseconds, from the uint8 images to the detections.
        p95_ms: 95th percentile.
        parameters: number of weights; None for an exported file.
        gflops: 1e9 floating-point operations per image, a multiplication with its addition as two; None for an
            exported file.
        file_bytes: size of the weights' file, or of the exported file with its weights.
        memory_bytes: peak memory of the predictions, less that before the detector was loaded: of the GPU, or else of
            the process; None where the system does not tell.
    """

    source: str
    batch: int
    threads: int
    device: str
    size: tuple[int, int]
    median_ms: float
    p95_ms: float
    parameters: int | None
    gflops: float | None
    file_bytes: int | None
    memory_bytes: int | None

    @property
    def images_per_second(self) -> float:
        """Images per second at the median time."""
        return 1000 * self.batch / self.median_ms


def profile(
    runs: list[str],
    batch: list[int] | None = None,
    threads: list[int] | None = None,
    image: str | None = None,
    device: str = "auto",
    repeats: int = 30,
    console: Console | None = None,
) -> list[Cost]:
    """Measure what predictions cost, after a warm-up; on a GPU with synchronisation.

    Times of different sources are taken one after the other: on a machine with other work, compare them with care.

    Args:
        runs: run directories, torchvision models, or files written by `defeat export`.
        batch: images per call, one or more numbers; by default 1. Exported files process them one by one.
        threads: threads that the CPU may use, one or more numbers; by default 1.
        image: image to predict; by default noise of the detector's input size, 4:3.
        device: auto (a GPU if there is one), cpu or cuda.
        repeats: timed calls.
        console: console for progress; None for no progress.

    Returns:
        A row for each source, batch and number of threads.

    Raises:
        InputError: an argument is not valid, or a source or the image can't be read.
    """
    batches, thread_counts = batch or [1], threads or [1]
    for name, values in (("batch", batches), ("threads", thread_counts)):
        for value in values:
            at_least(name, value, 1, 4096)
    at_least("repeats", repeats, 1)
    target = choose_device(device)
    if image is not None and not Path(image).is_file():
        raise InputError(f"--image {image} does not exist.")
    cells = [(source, count, many) for source in runs for count in thread_counts for many in batches]
    costs = []
    for source, count, many in track(cells, "Measuring", console=console, disable=console is None, transient=True):
        with limited_threads(count):
            costs.append(_cost(source, many, count, image, target, repeats))
    return costs


def _cost(source: str, batch: int, threads: int, path: str | None, device: torch.device, repeats: int) -> Cost:
    memory = _peak_memory(device)
    detector = load(source).to(device)
    if path is None:
        size = detector.info.size or USUAL_SIZE
        image = noise((size, size * 4 // 3))
    else:
        image = read_image(path, read_header(path).upright, True)
    images = [image.to(device)] * batch
    seconds = latencies(detector, images, device, repeats)
    peak = memory()
    parameters, gflops = None, None
    if isinstance(detector, Detector):
        parameters = sum(weight.numel() for weight in detector.parameters())
        gflops = count_flops(detector, images[0]) / 1e9
    return Cost(
        source=source,
        batch=batch,
        threads=threads,
        device=str(device),
        size=(int(image.shape[-2]), int(image.shape[-1])),
        median_ms=1000 * median(seconds),
        p95_ms=1000 * percentile_95(seconds),
        parameters=parameters,
        gflops=gflops,
        file_bytes=_file_bytes(source, detector),
        memory_bytes=peak,
    )


def _file_bytes(source: str, detector: Detector | ExportedDetector) -> int | None:
    if isinstance(detector, ExportedDetector):
        return detector.file_bytes
    weights = Path(source) / "model.safetensors"
    return weights.stat().st_size if weights.is_file() else None


def _peak_memory(device: torch.device) -> Callable[[], int | None]:
    """Begin to watch memory; the result returns the peak since then, less the memory now, in bytes."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        allocated = torch.cuda.memory_allocated(device)
        return lambda: torch.cuda.max_memory_allocated(device) - allocated
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the peak
    before = _process_memory("VmRSS")

    def peak() -> int | None:
        after = _process_memory("VmHWM")
        return None if before is None or after is None else after - before

    return peak


def _process_memory(name: str) -> int | None:
    """A figure of this process in bytes; None where the system has no /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    values = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return 1024 * int(values[0]) if values else None
