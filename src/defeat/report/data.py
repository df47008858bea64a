"""A data set as a user sees it: figures of its splits, problems, leaks between splits, images with their boxes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from markupsafe import Markup
from rich.console import Console
from rich.text import Text
from torchvision.transforms.v2.functional import resize

from defeat.assembly.assemble import load_teacher
from defeat.assembly.settings import DistillSettings
from defeat.data import DataSource, DetectionDataset, OnBadData
from defeat.data.export import ExportLayout, export_dataset
from defeat.data.hold_out import HoldOutBy
from defeat.data.images import MAX_PIXELS
from defeat.data.reading.pairs import Unannotated
from defeat.data.source import EVALUATION_SPLITS
from defeat.data.summary import Duplicate, SplitSummary, near_duplicates, summarise
from defeat.distillation import ClassMap, renamed_classes
from defeat.errors import InputError
from defeat.files import write_into
from defeat.inference.drawing import draw_target
from defeat.report.pages import Table, bar, page, parts, row
from defeat.report.pictures import SHORT_SIDE, Panel, Strip, data_uri
from defeat.report.tables import decimal, print_table

EXAMPLES = 6  # images of each split that are drawn
LISTED = 10  # duplicates that are printed
DRAWN = 6  # duplicates that are drawn


@dataclass(frozen=True)
class DataReport:
    """Figures of a data set.

    Attributes:
        path: path of the data set.
        splits: summaries of the splits.
        duplicates: images of different splits that look the same; empty where they were not compared.
        warnings: what makes training or evaluation on it useless, in sentences.
        class_map: what is known about the classes of a teacher, in sentences.
    """

    path: str
    splits: tuple[SplitSummary, ...]
    duplicates: tuple[Duplicate, ...] = ()
    warnings: tuple[str, ...] = ()
    class_map: tuple[str, ...] = field(default=())


def describe_data(
    path: str,
    out: str | None = None,
    compare: Literal["yes", "no"] = "yes",
    teacher: str | None = None,
    teacher_weights: str | None = None,
    teacher_taps: str | None = None,
    teacher_description: str | None = None,
    class_map: str | None = None,
    export: ExportLayout | None = None,
    export_to: str | None = None,
    on_bad_data: OnBadData = "stop",
    unannotated: Unannotated = "auto",
    images: str | None = None,
    hold_out: float | None = None,
    hold_out_by: HoldOutBy = "file",
    max_pixels: int = MAX_PIXELS,
    console: Console | None = None,
) -> DataReport:
    """Summarise a data set, and optionally write a page with example images.

    Args:
        path: folder or file of a data set, or demo.
        out: HTML page to write, with example images and their boxes.
        compare: whether to look for near-duplicates in different splits, which decodes all images: yes or no.
        teacher: run directory of a teacher, or another one as for `distill`, whose classes are matched to the data.
        teacher_weights: with a torchvision teacher, a file with its state dict.
        teacher_taps: YAML file that names the feature maps of your own network.
        teacher_description: with boxes:FILE or onnx:FILE, the file that describes it.
        class_map: YAML file with a line `teacher's class: class of the data` for each class whose names differ.
        export: layout in which to write all splits to the folder `export_to`: coco, yolo or voc.
        export_to: new folder for the data set in another layout.
        on_bad_data: what to do if files are broken or missing: stop and list them, or skip and count their images.
        unannotated: what images without an annotation file are: background, to drop, an error, or auto: background
            where the layout names the image, else an error.
        images: folder of the images of a COCO file, where they are not beside it.
        hold_out: share of the images, such as 0.2, to hold out as the split val, where the data has none.
        hold_out_by: what stays together in hold_out: file, folder or prefix.
        max_pixels: most pixels of an image file, width times height; an image of more is a broken file.
        console: console for progress; None for no progress.

    Returns:
        The figures.

    Raises:
        InputError: the data, the teacher or the page is not valid.
    """
    require_page(out)
    if (export is None) != (export_to is None):
        raise InputError("--export and --export-to belong together: a layout (coco, yolo or voc) and a new folder.")
    source = DataSource(path, on_bad_data, unannotated, images, hold_out, hold_out_by, max_pixels)
    datasets = {name: source.open(name, console=console) for name in _ordered(source.split_names())}
    summaries = tuple(summarise(dataset) for dataset in datasets.values())
    report = DataReport(
        path=path,
        splits=summaries,
        duplicates=tuple(near_duplicates(datasets, console)) if compare == "yes" else (),
        warnings=tuple(_warnings(summaries)),
    )
    if teacher is not None:
        settings = DistillSettings(
            data=path,
            out=".",
            teacher=teacher,
            teacher_weights=teacher_weights,
            teacher_taps=teacher_taps,
            teacher_description=teacher_description,
            class_map=class_map,
        )
        report = replace(report, class_map=tuple(_class_map(datasets, settings, console)))
    if export is not None and export_to is not None:
        notes = export_dataset(datasets, export_to, export, console=console)
        report = replace(report, warnings=(*report.warnings, *notes))
    if out is not None:
        file = Path(out)
        write_into(file.parent, file.name, render_data(report, datasets).encode())
    return report


def print_data(report: DataReport, console: Console) -> None:
    """Print the figures of a data set."""
    heads = ("split", "images", "without objects", "boxes", "box side (px)", "image size (px)")
    print_table(console, heads, [_row(split) for split in report.splits])
    names = _class_names(report.splits)
    rows = [(name, *(str(split.per_class.get(name, 0)) for split in report.splits)) for name in names]
    print_table(console, ("class", *(split.split for split in report.splits)), rows)
    for split in report.splits:
        if split.notes:
            console.print(Text(f"{split.split}: {', '.join(split.notes)}", style="yellow"))
    for sentence in (*report.warnings, *_leaks(report), *report.class_map):
        console.print(Text(sentence, style="yellow"))


def render_data(report: DataReport, datasets: Mapping[str, DetectionDataset]) -> str:
    """Render the page of a data set.

    Args:
        report: its figures.
        datasets: its splits, for pictures.
    """
    sentences = [*report.warnings, *_leaks(report), *report.class_map]
    sentences += [f"{split.split}: {', '.join(split.notes)}" for split in report.splits if split.notes]
    sections = [
        parts.header(Path(report.path).name or report.path, "Figures of the data set.", sentences),
        parts.titled("Splits", _splits_table(report.splits)),
        parts.titled("Boxes per class", _classes_table(report.splits)),
        _duplicates_section(report.duplicates, datasets),
    ]
    for name, dataset in datasets.items():
        panels = tuple(_panel(dataset, index) for index in _evenly_spaced(len(dataset), EXAMPLES))
        sections.append(parts.strip(Strip(f"Images of {name}", panels)))
    return page(f"Data set {Path(report.path).name}", sections)


def _ordered(names: Sequence[str]) -> list[str]:
    """Splits that don't repeat others, in the usual order; VOC's `trainval` is `train` and `val` together."""
    kept = [name for name in names if name != "trainval" or not {"train", "val"} <= set(names)]
    order = ["train", *EVALUATION_SPLITS]
    return sorted(kept, key=lambda name: (order.index(name) if name in order else len(order), name))


def _warnings(splits: Sequence[SplitSummary]) -> list[str]:
    sentences = []
    if not any(split.split in EVALUATION_SPLITS for split in splits):
        sentences.append("There is no split to evaluate on: hold out a share with --hold-out 0.2.")
    sentences += [f"No image of {split.split} contains an object." for split in splits if not split.boxes]
    counts = [split.per_class for split in splits]
    names = dict.fromkeys(name for per_class in counts for name in per_class)
    absent = [name for name in names if not any(per_class.get(name) for per_class in counts)]
    if absent:
        sentences.append(f"No split has a box of {', '.join(absent)}: leave the class out with --classes.")
    return sentences


def _class_map(
    datasets: Mapping[str, DetectionDataset], settings: DistillSettings, console: Console | None
) -> list[str]:
    classes = next(iter(datasets.values())).classes
    teacher = load_teacher(settings, console)
    known = renamed_classes(teacher.info, classes, settings.class_names).classes
    sentences = ClassMap(classes, known).describe()
    return sentences or ["The teacher has the classes of the data."]


def _leaks(report: DataReport) -> list[str]:
    if not report.duplicates:
        return []
    lines = [
        f"{pair.names[1]} ({pair.splits[1]}) looks like {pair.names[0]} ({pair.splits[0]})"
        for pair in report.duplicates
    ]
    more = f" and {len(lines) - LISTED} more" if len(lines) > LISTED else ""
    return [
        f"{len(lines)} images look like an image of another split, so that AP there is too high for new images: "
        f"{'; '.join(lines[:LISTED])}{more}. Divide the data anew, with such images on one side."
    ]


def _row(split: SplitSummary) -> tuple[str, ...]:
    sides = "" if split.box_sides is None else " | ".join(decimal(side, 0) for side in split.box_sides)
    sizes = " .. ".join(dict.fromkeys(f"{width} x {height}" for height, width in split.image_sizes[::2]))
    return split.split, str(split.images), str(split.background), str(split.boxes), sides, sizes


def _class_names(splits: Sequence[SplitSummary]) -> list[str]:
    return list(dict.fromkeys(name for split in splits for name in split.per_class))


def _splits_table(splits: Sequence[SplitSummary]) -> Markup:
    heads = ("split", "images", "without objects", "boxes", "box side (px): 5 %, median, 95 %", "image size (px)")
    rows = [row(name, cells) for name, *cells in map(_row, splits)]
    return parts.table(Table(heads, rows, label="splits"))


def _classes_table(splits: Sequence[SplitSummary]) -> Markup:
    most = max((count for split in splits for count in split.per_class.values()), default=0) or 1
    rows = []
    for name in _class_names(splits):
        counts = [split.per_class.get(name, 0) for split in splits]
        rows.append(row(name, [bar(str(count), 100 * count / most, shade) for shade, count in enumerate(counts)]))
    return parts.table(Table(("class", *(split.split for split in splits)), rows, "sortable", "boxes per class"))


def _duplicates_section(duplicates: Sequence[Duplicate], datasets: Mapping[str, DetectionDataset]) -> Markup:
    if not duplicates:
        return Markup()
    strips = []
    for duplicate in duplicates[:DRAWN]:
        panels = [
            Panel(f"{split}: {name}", _picture(datasets[split], index))
            for split, index, name in zip(duplicate.splits, duplicate.indices, duplicate.names, strict=True)
        ]
        strips.append(Strip(f"{duplicate.distance} of 256 bits differ", tuple(panels)))
    return parts.strips("Images that two splits share", "", strips)


def _panel(dataset: DetectionDataset, index: int) -> Panel:
    boxes = len(dataset.target(index).labels)
    return Panel(f"{dataset.samples[index].name}, {boxes} boxes", _picture(dataset, index))


def _picture(dataset: DetectionDataset, index: int) -> str:
    """An image with its boxes, as a data URI."""
    image, target = dataset[index]
    small = resize(image, [SHORT_SIDE], antialias=True)
    return data_uri(draw_target(small, target.resized((small.shape[-2], small.shape[-1])), dataset.classes))


def _evenly_spaced(count: int, most: int) -> list[int]:
    chosen = min(count, most)
    return [index * count // chosen for index in range(chosen)]


def require_page(out: str | None) -> None:
    """Refuse a page that can't be written, before the images are compared.

    Raises:
        InputError: it is a folder.
    """
    if out is not None and Path(out).is_dir():
        raise InputError(f"--out {out} is a folder; name an HTML file.")
