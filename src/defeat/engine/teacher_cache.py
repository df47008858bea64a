"""Cache of the teacher's feature maps on disk: with frozen weights, they are computed once per view of an image."""

import hashlib
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from shutil import disk_usage

import torch
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from defeat.data import DetectionDataset
from defeat.data.transforms import Augmentation
from defeat.detector import BoxNetwork, Detector, MapsNetwork, TeacherEnsemble
from defeat.distillation import Method
from defeat.distillation.processes import process_count
from defeat.engine.experiment import CacheFolder, Experiment
from defeat.engine.guards import fingerprint
from defeat.errors import InputError
from defeat.files import WriteError, write_atomically
from defeat.types import Batch, DetectorOutput, Maps, Target

FORMAT = 2
HALF_BYTES = 2
LEFTOVER_SECONDS = 3600  # an incomplete file of this age belongs to a process that has ended

StoredMaps = dict[str, Tensor]  # (H, W, C) in half precision, by `PART.STRIDE`


@dataclass(frozen=True)
class CacheSize:
    """Size of a complete cache.

    Attributes:
        views: number of views of all images.
        bytes: size of their maps.
    """

    views: int
    bytes: int


class TeacherCache:
    """The teacher's maps, in one file per view of an image; missing maps are computed and stored.

    Each image is processed with its own padding only, so that its maps do not depend on the rest of the batch. Maps are
    rounded to half precision before their first use, so that maps from disk and new maps are equal. Files are written
    atomically, so several processes and runs can share a folder, and a crash leaves it intact. Predictions of a head
    are recomputed from the stored maps.

    Args:
        folder: folder of the files, for one teacher and one preparation of the images.
        parts: the maps to store: `neck`, `backbone` or both.
        names: name of each image's files, by whether it is annotated and by its number.
        limit: maximum total size of the files in bytes; None for no limit.
        notify: called with messages for the user.
    """

    def __init__(
        self,
        folder: Path,
        parts: Collection[str],
        names: dict[tuple[bool, int], str],
        limit: int | None = None,
        notify: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.folder, self.parts, self.names, self.notify = folder, sorted(parts), names, notify
        self.left = float("inf") if limit is None else (limit - _bytes_in(folder)) / process_count()
        self.full = False

    def output(self, teacher: MapsNetwork, batch: Batch, reads: Collection[str]) -> DetectorOutput:
        """The teacher's output for a student's batch.

        Args:
            teacher: in eval mode.
            batch: a batch of the student's `prepare`.
            reads: fields of the output that will be read.
        """
        adopted = teacher.adopt(batch)
        stored = [self._read(target) for target in batch.targets]
        missing = [index for index, maps in enumerate(stored) if maps is None]
        for index, computed in zip(missing, self._compute(teacher, adopted, missing), strict=True):
            stored[index] = computed
            self._write(batch.targets[index], computed)
        batch_maps = _collate([maps for maps in stored if maps is not None], adopted)
        return teacher.forward_teacher(adopted, reads, batch_maps)

    def _path(self, target: Target) -> Path:
        name = self.names[target.annotated, target.image_id]
        return self.folder / name[-2:] / f"{name}-{target.view}.safetensors"

    def _read(self, target: Target) -> StoredMaps | None:
        """The maps of a view; None if the file is missing or damaged."""
        try:
            return load_file(self._path(target))
        except (OSError, SafetensorError):
            return None

    def _write(self, target: Target, stored: StoredMaps) -> None:
        content = save(stored)
        if self.full or len(content) > self.left:
            return
        path = self._path(target)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
        except (OSError, WriteError) as error:
            self.full = True
            reason = error.reason if isinstance(error, WriteError) else error.strerror
            self.notify(
                f"The teacher's cache {self.folder} can't be written ({reason}): the run continues, and computes the "
                "missing maps in each epoch."
            )
            return
        self.left -= len(content)

    @torch.no_grad()
    def _compute(self, teacher: MapsNetwork, batch: Batch, indices: Sequence[int]) -> list[StoredMaps]:
        """Compute the maps of some images of a batch; on a GPU, images of equal padded size in one pass."""
        groups: dict[tuple[int, int, int], list[int]] = {}
        for index in indices:
            # The number of images in a pass changes the last bits, and a resumed run finds some maps of a batch in the
            # cache. On CPU, runs are repeated bit for bit, and separate passes cost nothing.
            single = index if batch.images.device.type == "cpu" else 0
            groups.setdefault((*_padded_size(batch.sizes[index], teacher.info.size_divisor), single), []).append(index)
        stored: dict[int, StoredMaps] = {}
        for (height, width, _), group in groups.items():
            images = batch.images[group, :, :height, :width]
            sizes = [batch.sizes[index] for index in group]
            originals = [batch.original_sizes[index] for index in group]
            maps = teacher.forward_maps(Batch(images, sizes, [], originals, batch.classes, batch.scale, batch.stretch))
            for row, index in enumerate(group):
                stored[index] = {
                    f"{part}.{stride}": _to_half(level[row])
                    for part in self.parts
                    for stride, level in getattr(maps, part).items()
                }
        return [stored[index] for index in indices]


def open_cache(experiment: Experiment, console: Console) -> TeacherCache | None:
    """Open the cache of an experiment and report its size; None for an experiment without a cache.

    Args:
        experiment: with or without a teacher.
        console: where to report the size.

    Raises:
        InputError: the folder can't be written, the teacher has no maps, or those of an image depend on the rest of the
            batch.
    """
    distillation = experiment.distillation
    if distillation is None or distillation.cache is None:
        return None
    views = require_views(experiment.augmentation)
    teacher, parts = distillation.teacher, cached_parts(distillation.method)
    if isinstance(teacher, BoxNetwork):
        raise InputError("--cache-teacher keeps feature maps, and this teacher only gives boxes: leave it out.")
    if isinstance(teacher, TeacherEnsemble):
        raise InputError("--cache-teacher keeps the feature maps of a single teacher: leave it out.")
    if teacher.info.size and teacher.info.square != experiment.student.info.square:
        raise InputError(
            "--cache-teacher can't keep the maps of this pair: only one of the two detectors keeps the aspect ratio of "
            "images, so that what the teacher sees depends on the whole batch."
        )
    folder = _folder(distillation.cache, _key(experiment, parts))
    names = {
        (dataset.annotated, dataset.samples[index].image_id): dataset.identity(index)
        for dataset in experiment.datasets
        for index in range(len(dataset))
    }
    _remove_leftovers(folder)
    size = cache_size(experiment.student, teacher, parts, experiment.datasets, views)
    present, free = _bytes_in(folder), disk_usage(folder).free
    text = f"cache of the teacher: {size.views} views, {size.bytes / 1e9:.1f} GB"
    text += f" ({min(present, size.bytes) / max(1, size.bytes):.0%} present)"
    limit = distillation.cache.limit
    if size.bytes > min(free + present, limit if limit is not None else float("inf")):
        limited = limit is not None and limit < free + present
        space = "--cache-limit" if limited else f"the disk ({free / 1e9:.1f} GB free)"
        text += f"; {space} has room for fewer, the others are computed in each epoch"
    console.print(f"{text}.", highlight=False)
    return TeacherCache(folder, parts, names, limit, lambda text: console.print(text, style="yellow", highlight=False))


def require_views(augmentation: Augmentation) -> int:
    """Number of views of an image that an augmentation creates.

    Raises:
        InputError: it never repeats a view, so that the maps can't be cached.
    """
    if augmentation.views is None:
        raise InputError("The teacher's maps can't be cached with an augmentation that never repeats a view.")
    return augmentation.views


def _folder(cache: CacheFolder, key: str) -> Path:
    folder = cache.folder / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--cache-teacher {cache.folder} can't be written ({error.strerror}).") from error
    return folder


def cache_size(
    student: Detector,
    teacher: MapsNetwork,
    parts: Collection[str],
    datasets: Sequence[DetectionDataset],
    views: int,
) -> CacheSize:
    """Size of the maps of all views of all images.

    Args:
        student: the detector to train.
        teacher: the trained detector; one without an input size sees images as the student resizes them.
        parts: `neck`, `backbone` or both.
        datasets: all images.
        views: number of views per image.
    """
    channels = [level for part in parts for level in getattr(teacher.info, part).items()]
    sizes = [size for dataset in datasets for size in dataset.sizes]
    total = 0
    for size in sizes:
        height, width = teacher.padded_size(*(size if teacher.info.size else student.resized_size(*size)))
        total += sum(count * ceil(height / stride) * ceil(width / stride) for stride, count in channels)
    return CacheSize(views * len(sizes), views * total * HALF_BYTES)


def cached_parts(method: Method) -> list[str]:
    """The maps that the method needs; predictions of a head need those of the neck."""
    needs = set(method.needs)
    return [part for part in ("backbone", "neck") if part in needs or (part == "neck" and needs - {"backbone"})]


def _key(experiment: Experiment, parts: Sequence[str]) -> str:
    """Hash of everything that determines the maps of an image, except the image."""
    assert experiment.distillation is not None
    student, teacher = experiment.student, experiment.distillation.teacher
    prepared = (student.info.size, student.info.max_size, student.info.size_divisor, student.antialias)
    precision = (experiment.devices.precision, "run" if experiment.distillation.dtype is None else "bf16")
    taps = getattr(teacher, "description", "")  # the taps of a foreign teacher are not part of its weights
    parts_of_key = [FORMAT, fingerprint(teacher), teacher.info, prepared, precision, list(parts)]
    text = repr((*parts_of_key, *filter(None, [taps])))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _padded_size(size: tuple[int, int], divisor: int) -> tuple[int, int]:
    return ceil(size[0] / divisor) * divisor, ceil(size[1] / divisor) * divisor


def _to_half(level: Tensor) -> Tensor:
    """Convert a map (C, H, W) to (H, W, C) in half precision, or in float32 if its values overflow."""
    half = level.half()
    return (half if bool(half.isfinite().all()) else level.float()).cpu().permute(1, 2, 0).contiguous()


def _collate(stored: Sequence[StoredMaps], batch: Batch) -> Maps:
    """The maps of a whole batch, zero on the padding."""
    height, width = batch.images.shape[-2:]
    maps: dict[str, dict[int, Tensor]] = {"backbone": {}, "neck": {}}
    for name in stored[0]:
        part, _, text = name.partition(".")
        stride = int(text)
        shape = (len(stored), ceil(height / stride), ceil(width / stride), stored[0][name].shape[2])
        level = batch.images.new_zeros(shape)
        for row, image_maps in zip(level, stored, strict=True):
            rows, columns, _ = image_maps[name].shape
            row[:rows, :columns] = image_maps[name].to(level.device)
        level = level.permute(0, 3, 1, 2)
        # On CPU, the student's maps have this memory layout, see Detector.normalise.
        maps[part][stride] = level if level.device.type == "cpu" else level.contiguous()
    return Maps(**{part: dict(sorted(levels.items())) for part, levels in maps.items()})


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*/*.safetensors"))


def _remove_leftovers(folder: Path) -> None:
    """Remove incomplete files of killed processes."""
    for path in folder.glob("*/.*.safetensors.*"):
        try:
            if time.time() - path.stat().st_mtime > LEFTOVER_SECONDS:
                path.unlink()
        except OSError:  # another process was faster
            continue
