"""Test images on which distillation helped and hurt the most, the method's regions, and differences of features."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import resize, to_pil_image

from defeat.data import DetectionDataset, open_dataset
from defeat.detector import Detector, load
from defeat.distillation import build_method, renamed_classes
from defeat.engine.checkpoint import RunDirectory
from defeat.errors import InputError
from defeat.evaluation.average_precision import Floats
from defeat.evaluation.matching import average_precision_of_images
from defeat.files import write_atomically
from defeat.inference.drawing import (
    beside_each_other,
    class_color,
    draw_detections,
    draw_target,
    enlarged,
    paint_heat,
    paint_regions,
    titled,
)
from defeat.report.runs import RunSummary
from defeat.types import Batch, Detections

SHORT_SIDE = 240  # pixels of a picture
SHOWN = 3  # images of each kind
INSIDE = 1  # images of which regions and differences are shown
THRESHOLD = 0.3


@dataclass(frozen=True)
class Panel:
    """One picture with what stands below it; `source` is a data URI."""

    title: str
    source: str


@dataclass(frozen=True)
class Strip:
    """One image, seen in several ways; `caption` says which it is and why it is shown."""

    caption: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Gallery:
    """The pictures of a report.

    Attributes:
        helped: images on which the distilled student gained the most over the one trained alone; without that one,
            those on which it does best.
        hurt: images on which it lost the most.
        inside: the regions that the method looks at, and where student and teacher differ.
        note: why something is missing, empty when nothing is.
        compared: whether there was a student alone to gain over.
    """

    helped: tuple[Strip, ...] = ()
    hurt: tuple[Strip, ...] = ()
    inside: tuple[Strip, ...] = ()
    note: str = ""
    compared: bool = True


def make_gallery(distilled: RunSummary, alone: RunSummary | None, teacher: RunSummary | None) -> Gallery:
    """Draw the pictures of a distilled run; what is not at hand is left out, with a note.

    Args:
        distilled: the run.
        alone: the same student trained alone, tested on the same images; without it, the images that the run does best
            on are shown.
        teacher: the teacher's run, tested anywhere.
    """
    try:
        dataset = _tested_on(distilled)
        changes = image_changes(distilled, alone)
    except InputError as error:
        return Gallery(note=f"No pictures: {error}")
    named = [("teacher", teacher), ("student alone", alone), ("distilled", distilled)]
    detectors = {name: load(run.folder) for name, run in named if run is not None}
    order = np.argsort(-changes, kind="stable")  # images without a figure come last
    known = order[: int((~np.isnan(changes)).sum())]
    helped = [index for index in known[:SHOWN] if alone is None or changes[index] > 0]
    hurt = [index for index in known[::-1][:SHOWN] if alone is not None and changes[index] < 0]
    looked_at = helped or hurt or [int(index) for index in known]
    places = _in_order(dataset)

    def strips(indices: Sequence[int]) -> tuple[Strip, ...]:
        words = "{:+.0f} AP points" if alone is not None else "AP {:.0f}"
        return tuple(
            _strip(dataset, places[index], detectors, ": " + words.format(changes[index])) for index in indices
        )

    inside = tuple(_inside(dataset, places[index], detectors, distilled) for index in looked_at[:INSIDE])
    return Gallery(strips(helped), strips(hurt), inside, compared=alone is not None)


def _tested_on(run: RunSummary) -> DetectionDataset:
    return open_dataset(run.data, run.split, tuple(run.per_class), run.on_bad_data)


def image_changes(distilled: RunSummary, alone: RunSummary | None) -> Floats:
    """AP points of each test image that the distilled run is ahead; its own AP when there is no other run: (I,).

    Raises:
        InputError: a run kept no detections.
    """
    found = [100 * average_precision_of_images(run.matches) for run in (distilled, alone) if run is not None]
    return found[0] if len(found) == 1 else found[0] - found[1]


def _strip(dataset: DetectionDataset, place: int, detectors: dict[str, Detector], words: str = "") -> Strip:
    drawn = _drawn(dataset, place, detectors)
    panels = tuple(Panel(title, data_uri(picture)) for title, picture in drawn.items())
    return Strip(dataset.samples[place].name + words, panels)


def _drawn(dataset: DetectionDataset, place: int, detectors: dict[str, Detector]) -> dict[str, Tensor]:
    """An image as it is annotated, and as each detector sees it: (3, H, W) uint8 by title."""
    image, target = dataset[place]
    small = resize(image, [SHORT_SIDE], antialias=True)
    size = (int(small.shape[-2]), int(small.shape[-1]))
    pictures = {"annotated": draw_target(small, target.resized(size), dataset.classes)}
    for name, detector in detectors.items():
        detections = _resized(detector.predict([image])[0].cpu(), target.size, size)
        pictures[name] = draw_detections(small, detections, detector.info.classes, THRESHOLD)
    return pictures


def _in_order(dataset: DetectionDataset) -> list[int]:
    """The index of each image in the data set, in the order of their numbers, which is that of a run's matches."""
    return sorted(range(len(dataset)), key=lambda index: dataset.samples[index].image_id)


def _resized(found: Detections, before: tuple[int, int], after: tuple[int, int]) -> Detections:
    ratio = found.boxes.new_tensor([after[1] / before[1], after[0] / before[0]] * 2)
    return Detections(found.boxes * ratio, found.scores, found.labels)


def _inside(dataset: DetectionDataset, place: int, detectors: dict[str, Detector], run: RunSummary) -> Strip:
    image, target = dataset[place]
    small = resize(image, [SHORT_SIDE], antialias=True)
    student = detectors["distilled"]
    batch = student.prepare([image], [target])
    panels = _region_panels(small, batch, detectors, run)
    if "teacher" in detectors:
        heats = differences_from_teacher(detectors, batch)
        strongest = max((float(heat.quantile(0.995)) for heat in heats.values()), default=0.0) or 1.0
        for name, heat in heats.items():
            panels.append(Panel(f"teacher against {name}", data_uri(paint_heat(small, heat / strongest))))
    return Strip(dataset.samples[place].name, tuple(panels))


def _region_panels(small: Tensor, batch: Batch, detectors: dict[str, Detector], run: RunSummary) -> list[Panel]:
    if "teacher" not in detectors or run.method is None:
        return []
    config = RunDirectory(run.folder).read_config()
    student = detectors["distilled"].info
    teacher = renamed_classes(detectors["teacher"].info, student.classes, config.get("class_map") or {})
    method = build_method(run.method, student, teacher, config.get("method_options") or {})
    height, width = batch.images.shape[-2:]
    shapes = {stride: (-(-height // stride), -(-width // stride)) for stride in student.neck}
    panels = []
    for name, regions in method.painted([one.boxes for one in batch.targets], shapes).items():
        used = {stride: _inner(region[0], batch, stride) for stride, region in sorted(regions.items())}
        colors = [class_color(number) for number in range(len(used))]
        picture = paint_regions(small, list(used.values()), colors)
        strides = ", ".join(str(stride) for stride, region in used.items() if region.any())
        panels.append(Panel(f"{name} region (strides {strides})", data_uri(picture)))
    return panels


def differences_from_teacher(detectors: dict[str, Detector], batch: Batch) -> dict[str, Tensor]:
    """Where each student looks at other places than the teacher does.

    On each level a cell's share of the map's energy (the sum over the channels of squares, which does not depend on how
    many channels there are) is compared between student and teacher; differences are averaged over the levels.

    Args:
        detectors: `teacher`, and students by their names.
        batch: one image.

    Returns:
        (H, W) of the finest shared level for each student, 0 or more; 0 where both put the same share.
    """
    energy = {name: _energy(detector, batch) for name, detector in detectors.items()}
    teacher = energy.pop("teacher")
    found = {}
    for name, levels in energy.items():
        strides = sorted(levels.keys() & teacher.keys())
        size = levels[strides[0]].shape
        layers = [
            enlarged((levels[stride] - enlarged(teacher[stride], levels[stride].shape)).abs(), size)
            for stride in strides
        ]
        found[name] = _inner(torch.stack(layers).mean(dim=0), batch, strides[0])
    return found


def _energy(detector: Detector, batch: Batch) -> dict[int, Tensor]:
    """By stride (H, W): a cell's energy over the mean of all valid cells."""
    detector.eval()
    with torch.no_grad():
        output = detector.forward_teacher(detector.adopt(batch))
    found = {}
    for stride, level in output.neck.items():
        energy = level[0].square().sum(dim=0) * output.valid[stride][0]
        found[stride] = energy / (energy.sum() / output.valid[stride][0].sum().clamp(min=1)).clamp(min=1e-12)
    return found


def _inner(level: Tensor, batch: Batch, stride: int) -> Tensor:
    """The cells of a (H, W) map that are no padding."""
    height, width = batch.sizes[0]
    return level[: max(1, -(-height // stride)), : max(1, -(-width // stride))]


def save_most_helped(distilled: RunSummary, alone: RunSummary, detectors: dict[str, Detector], path: Path) -> None:
    """Draw the test image on which distillation helped most, as several detectors see it, and save it as PNG.

    Args:
        distilled: a distilled run.
        alone: the same student trained without a teacher.
        detectors: by the title of their panel.
        path: the file.
    """
    dataset, changes = _tested_on(distilled), image_changes(distilled, alone)
    most_helped = _in_order(dataset)[int(np.nanargmax(changes))]
    panels = [titled(picture, title) for title, picture in _drawn(dataset, most_helped, detectors).items()]
    content = io.BytesIO()
    to_pil_image(beside_each_other(panels)).save(content, "PNG")
    write_atomically(path, content.getbuffer())


def data_uri(picture: Tensor) -> str:
    """A (3, H, W) uint8 picture as JPEG inside an address."""
    buffer = io.BytesIO()
    to_pil_image(picture).save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def example_strips(run: RunSummary, count: int = SHOWN) -> tuple[Strip, ...]:
    """Test images of a run without a student to hold it against, spread over the split: annotated, and as detected.

    Raises:
        InputError: the data are not where they were.
    """
    dataset = _tested_on(run)
    detector = load(run.folder)
    places = [(2 * number + 1) * len(dataset) // (2 * count) for number in range(min(count, len(dataset)))]
    return tuple(_strip(dataset, place, {"detected": detector}) for place in places)
