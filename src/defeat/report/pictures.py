"""Pictures of a report: test images with the largest gain and loss, the method's regions, differences of features."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import resize, to_pil_image

from defeat.assembly.earlier import recorded_settings
from defeat.data import DetectionDataset
from defeat.detector import Detector, load_detector
from defeat.distillation import build_method, renamed_classes
from defeat.engine.checkpoint import RunDirectory
from defeat.errors import InputError
from defeat.evaluation.average_precision import Floats, Scene
from defeat.evaluation.matching import average_precision_of_images
from defeat.evaluation.mistakes import count_errors
from defeat.files import write_atomically
from defeat.inference.drawing import (
    class_color,
    draw_detections,
    draw_target,
    enlarged,
    paint_heat,
    paint_regions,
    side_by_side,
    titled,
)
from defeat.report.runs import RunSummary
from defeat.types import Batch, Detections, Target

SHORT_SIDE = 240  # pixels of a picture
SHOWN = 3  # images per section
ERRORS = 24  # images with errors
INSIDE = 1  # images whose regions and differences are drawn
THRESHOLD = 0.3  # score from which on a detection is drawn


@dataclass(frozen=True)
class Panel:
    """One picture with its title; `source` is a data URI."""

    title: str
    source: str


@dataclass(frozen=True)
class Strip:
    """Several pictures of one image.

    Attributes:
        caption: name of the image, and its AP.
        panels: the pictures.
        errors: type, class and number of the errors in the image.
    """

    caption: str
    panels: tuple[Panel, ...]
    errors: tuple[tuple[str, str, int], ...] = ()


@dataclass(frozen=True)
class Gallery:
    """The pictures of a report.

    Attributes:
        helped: images with the largest gain over the baseline; without a baseline, those with the highest AP.
        hurt: images with the largest loss.
        inside: the method's regions, and the differences between the features of student and teacher.
        errors: images with errors of the distilled student, see `error_strips`.
        note: why pictures are missing; empty when none are.
        compared: whether there was a baseline.
    """

    helped: tuple[Strip, ...] = ()
    hurt: tuple[Strip, ...] = ()
    inside: tuple[Strip, ...] = ()
    errors: tuple[Strip, ...] = ()
    note: str = ""
    compared: bool = True


def make_gallery(distilled: RunSummary, baseline: RunSummary | None, teacher: RunSummary | None) -> Gallery:
    """Draw the pictures of a distilled run; where its data or detections are missing, a note says so.

    Args:
        distilled: the run.
        baseline: the baseline, evaluated on the same images; None to show the images with the highest AP.
        teacher: the teacher's run, evaluated on any data.
    """
    try:
        dataset = _evaluation_data(distilled)
        changes = image_changes(distilled, baseline)
    except InputError as error:
        return Gallery(note=f"No pictures: {error}")
    named = [("teacher", teacher), ("baseline", baseline), ("distilled", distilled)]
    detectors = {name: load_detector(run.folder) for name, run in named if run is not None}
    order = np.argsort(-changes, kind="stable")  # images without an AP (NaN) come last
    known = order[: int((~np.isnan(changes)).sum())]
    helped = [image for image in known[:SHOWN] if baseline is None or changes[image] > 0]
    hurt = [image for image in known[::-1][:SHOWN] if baseline is not None and changes[image] < 0]
    examples = helped or hurt or [int(image) for image in known]
    indices = _by_image_id(dataset)

    def strips(images: Sequence[int]) -> tuple[Strip, ...]:
        form = "{:+.0f} AP points" if baseline is not None else "AP {:.0f}"
        return tuple(_strip(dataset, indices[image], detectors, ": " + form.format(changes[image])) for image in images)

    inside = [_feature_strip(dataset, indices[image], detectors, distilled) for image in examples[:INSIDE]]
    with_panels = tuple(strip for strip in inside if strip.panels)  # none without the teacher's run
    runs = {"distilled": distilled} if baseline is None else {"baseline": baseline, "distilled": distilled}
    errors = error_strips(runs, dataset)
    return Gallery(strips(helped), strips(hurt), with_panels, errors, compared=baseline is not None)


def error_strips(runs: dict[str, RunSummary], dataset: DetectionDataset) -> tuple[Strip, ...]:
    """Images with errors of the last run, drawn with the detections that the runs stored; the most errors come first.

    Among them is an image with each combination of error type and class, as far as `ERRORS` images can show them.

    Args:
        runs: runs that were evaluated on the same images, by the title of their panel.
        dataset: these images.
    """
    by_title = {title: run.scenes for title, run in runs.items()}
    counts = [count_errors(scene, THRESHOLD) for scene in by_title[list(runs)[-1]]]
    chosen, shown = list[int](), set[tuple[str, int]]()
    left = {image for image, errors in enumerate(counts) if errors}
    while left and len(chosen) < ERRORS:
        best = max(left, key=lambda image: (len(counts[image].keys() - shown), counts[image].total(), -image))
        left.remove(best)
        chosen.append(best)
        shown |= counts[best].keys()
    indices = _by_image_id(dataset)
    strips = []
    for image in sorted(chosen, key=lambda image: (-counts[image].total(), image)):
        scenes = {title: scenes[image] for title, scenes in by_title.items()}
        errors = tuple((kind, dataset.classes[label], count) for (kind, label), count in sorted(counts[image].items()))
        strips.append(_stored_strip(dataset, indices[image], scenes, errors))
    return tuple(strips)


def _stored_strip(
    dataset: DetectionDataset, index: int, scenes: dict[str, Scene], errors: tuple[tuple[str, str, int], ...]
) -> Strip:
    """An image with its annotations, and with stored detections."""
    image, target = dataset[index]
    found = {title: (scene.detections, dataset.classes) for title, scene in scenes.items()}
    return Strip(dataset.samples[index].name, _panels(_drawn(image, target, dataset.classes, found)), errors)


def _evaluation_data(run: RunSummary) -> DetectionDataset:
    return run.source.open(run.split, tuple(run.per_class))


def image_changes(distilled: RunSummary, baseline: RunSummary | None) -> Floats:
    """AP points per test image that a run gained over its baseline, or its AP without a baseline: (I,).

    Raises:
        InputError: a run stored no detections.
    """
    runs = [run for run in (distilled, baseline) if run is not None]
    precisions = [100 * average_precision_of_images(run.matches) for run in runs]
    return precisions[0] if len(precisions) == 1 else precisions[0] - precisions[1]


def _strip(dataset: DetectionDataset, index: int, detectors: dict[str, Detector], suffix: str = "") -> Strip:
    return Strip(dataset.samples[index].name + suffix, _panels(_pictures(dataset, index, detectors)))


def _panels(pictures: dict[str, Tensor]) -> tuple[Panel, ...]:
    return tuple(Panel(title, data_uri(picture)) for title, picture in pictures.items())


def _pictures(dataset: DetectionDataset, index: int, detectors: dict[str, Detector]) -> dict[str, Tensor]:
    """An image with its annotations, and with the detections of each detector: (3, H, W) uint8 by title."""
    image, target = dataset[index]
    found = {name: (detector.predict([image])[0].cpu(), detector.info.classes) for name, detector in detectors.items()}
    return _drawn(image, target, dataset.classes, found)


def _drawn(
    image: Tensor, target: Target, classes: Sequence[str], found: Mapping[str, tuple[Detections, Sequence[str]]]
) -> dict[str, Tensor]:
    """A small copy of an image with its annotations, and with detections and the classes of their labels, by title."""
    small = resize(image, [SHORT_SIDE], antialias=True)
    size = (int(small.shape[-2]), int(small.shape[-1]))
    pictures = {"annotated": draw_target(small, target.resized(size), classes)}
    for title, (detections, names) in found.items():
        pictures[title] = draw_detections(small, _resized(detections, target.size, size), names, THRESHOLD)
    return pictures


def _by_image_id(dataset: DetectionDataset) -> list[int]:
    """Indices of the images in the order of their image ids, which is the order of a run's matches."""
    return sorted(range(len(dataset)), key=lambda index: dataset.samples[index].image_id)


def _resized(detections: Detections, before: tuple[int, int], after: tuple[int, int]) -> Detections:
    ratio = detections.boxes.new_tensor([after[1] / before[1], after[0] / before[0]] * 2)
    return Detections(detections.boxes * ratio, detections.scores, detections.labels)


def _feature_strip(dataset: DetectionDataset, index: int, detectors: dict[str, Detector], run: RunSummary) -> Strip:
    image, target = dataset[index]
    small = resize(image, [SHORT_SIDE], antialias=True)
    student = detectors["distilled"]
    batch = student.prepare([image], [target])
    panels = _region_panels(small, batch, detectors, run)
    if "teacher" in detectors:
        heats = differences_from_teacher(detectors, batch)
        strongest = max((float(heat.quantile(0.995)) for heat in heats.values()), default=0.0) or 1.0
        for name, heat in heats.items():
            panels.append(Panel(f"{name} vs. teacher", data_uri(paint_heat(small, heat / strongest))))
    return Strip(dataset.samples[index].name, tuple(panels))


def _region_panels(small: Tensor, batch: Batch, detectors: dict[str, Detector], run: RunSummary) -> list[Panel]:
    if "teacher" not in detectors or run.method is None:
        return []
    student = detectors["distilled"].info
    try:
        config = recorded_settings(RunDirectory(run.folder).read_config())
        teacher = renamed_classes(detectors["teacher"].info, student.classes, config.get("class_map") or {})
        method = build_method(run.method, student, teacher, config["method_options"])
    except InputError:  # a method of the user's own, which is not known by its name
        return []
    height, width = batch.images.shape[-2:]
    shapes = {stride: (-(-height // stride), -(-width // stride)) for stride in student.neck}
    panels = []
    for name, regions in method.painted([target.boxes for target in batch.targets], shapes).items():
        valid = {stride: _without_padding(region[0], batch, stride) for stride, region in sorted(regions.items())}
        colors = [class_color(level) for level in range(len(valid))]
        picture = paint_regions(small, list(valid.values()), colors)
        strides = ", ".join(str(stride) for stride, region in valid.items() if region.any())
        panels.append(Panel(f"{name} region (strides {strides})", data_uri(picture)))
    return panels


def differences_from_teacher(detectors: dict[str, Detector], batch: Batch) -> dict[str, Tensor]:
    """Where the features of each student differ from the teacher's.

    Per level, a cell's share of the energy of the feature map (the sum of squares over channels) is compared between
    student and teacher, and the absolute differences are averaged over levels. The share does not depend on the number
    of channels.

    Args:
        detectors: `teacher`, and students by their names.
        batch: one image.

    Returns:
        Per student (H, W) of the finest shared level, 0 or more; 0 where both have the same share.
    """
    energy = {name: _energy(detector, batch) for name, detector in detectors.items()}
    teacher = energy.pop("teacher")
    differences = {}
    for name, levels in energy.items():
        strides = sorted(levels.keys() & teacher.keys())
        size = levels[strides[0]].shape
        layers = [
            enlarged((levels[stride] - enlarged(teacher[stride], levels[stride].shape)).abs(), size)
            for stride in strides
        ]
        differences[name] = _without_padding(torch.stack(layers).mean(dim=0), batch, strides[0])
    return differences


def _energy(detector: Detector, batch: Batch) -> dict[int, Tensor]:
    """By stride (H, W): a cell's energy over the mean energy of the valid cells."""
    detector.eval()
    with torch.no_grad():
        output = detector.forward_teacher(detector.adopt(batch))
    relative = {}
    for stride, level in output.neck.items():
        energy = level[0].square().sum(dim=0) * output.valid[stride][0]
        relative[stride] = energy / (energy.sum() / output.valid[stride][0].sum().clamp(min=1)).clamp(min=1e-12)
    return relative


def _without_padding(level: Tensor, batch: Batch, stride: int) -> Tensor:
    """Crop the padding from a (H, W) map."""
    height, width = batch.sizes[0]
    return level[: max(1, -(-height // stride)), : max(1, -(-width // stride))]


def save_most_helped(distilled: RunSummary, baseline: RunSummary, detectors: dict[str, Detector], path: Path) -> None:
    """Save the test image with the largest gain as PNG, with the detections of several detectors.

    Args:
        distilled: a distilled run.
        baseline: its baseline.
        detectors: detectors by the title of their panel.
        path: the PNG file.
    """
    dataset, changes = _evaluation_data(distilled), image_changes(distilled, baseline)
    most_helped = _by_image_id(dataset)[int(np.nanargmax(changes))]
    panels = [titled(picture, title) for title, picture in _pictures(dataset, most_helped, detectors).items()]
    content = io.BytesIO()
    to_pil_image(side_by_side(panels)).save(content, "PNG")
    write_atomically(path, content.getbuffer())


def data_uri(picture: Tensor) -> str:
    """Encode a (3, H, W) uint8 picture as JPEG in a data URI."""
    buffer = io.BytesIO()
    to_pil_image(picture).save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def example_strips(run: RunSummary, count: int = SHOWN) -> tuple[tuple[Strip, ...], tuple[Strip, ...]]:
    """Test images spread over the split, with annotations and with the detections of a run; and images with errors.

    Raises:
        InputError: the data can't be opened.
    """
    dataset = _evaluation_data(run)
    detector = load_detector(run.folder)
    indices = [(2 * number + 1) * len(dataset) // (2 * count) for number in range(min(count, len(dataset)))]
    examples = tuple(_strip(dataset, index, {"detected": detector}) for index in indices)
    return examples, error_strips({"detected": run}, dataset) if run.has_detections else ()
