"""What a teacher makes of an image is kept on disk: with fixed weights it need be computed once for each view of it."""

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
from defeat.detector import TeacherNetwork
from defeat.distillation import Method
from defeat.distillation.processes import processes
from defeat.engine.experiment import CacheFolder, Experiment
from defeat.engine.guards import fingerprint
from defeat.errors import InputError
from defeat.files import WriteError, write_atomically
from defeat.types import Batch, DetectorOutput, Maps, Target

FORMAT = 2
HALF_BYTES = 2
LEFTOVER_SECONDS = 3600  # a half-written file of this age belongs to a process that is gone

StoredMaps = dict[str, Tensor]  # (H, W, C) in half precision, by `PART.STRIDE`


@dataclass(frozen=True)
class CacheSize:
    """How much a cache holds once it is complete.

    Attributes:
        views: views of all images.
        bytes: of their maps.
    """

    views: int
    bytes: int


class TeacherCache:
    """The teacher's maps of each view of each image, a file each; what is not there yet is computed and kept.

    An image is seen with its own padding alone, so that what is kept does not depend on the images beside it, and maps
    are rounded to half precision before they are used the first time: whether they come from the disk or not changes
    nothing. A file is complete or absent, so several processes and runs can share a folder, and a crash leaves it
    intact. Predictions of a head are computed anew from the kept maps.

    Args:
        folder: where the files are; those of another teacher or another preparation must not be there.
        parts: `neck`, `backbone` or both: which maps to keep.
        names: name of each image's files, by whether it is annotated and by its number.
        limit: bytes that the files may take together; None for as much as the disk has.
        notify: called with a sentence that the user should read while the run goes on.
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
        self.left = float("inf") if limit is None else (limit - _bytes_in(folder)) / processes()
        self.full = False

    def output(self, teacher: TeacherNetwork, batch: Batch, reads: Collection[str]) -> DetectorOutput:
        """What the teacher gives for a student's batch.

        Args:
            teacher: in eval mode.
            batch: what the student's `prepare` made.
            reads: fields of the output that will be read.
        """
        adopted = teacher.adopt(batch)
        found = [self._read(target) for target in batch.targets]
        missing = [place for place, one in enumerate(found) if one is None]
        for place, stored in zip(missing, self._computed(teacher, adopted, missing), strict=True):
            found[place] = stored
            self._write(batch.targets[place], stored)
        maps = _assembled([one for one in found if one is not None], adopted)
        return teacher.forward_teacher(adopted, reads, maps)

    def _path(self, target: Target) -> Path:
        name = self.names[target.annotated, target.image_id]
        return self.folder / name[-2:] / f"{name}-{target.view}.safetensors"

    def _read(self, target: Target) -> StoredMaps | None:
        """The maps of a view; None where they are not there, or the file is damaged."""
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
                f"The teacher's cache {self.folder} can't be written ({reason}): the run goes on, and computes anew "
                "what is missing there."
            )
            return
        self.left -= len(content)

    @torch.no_grad()
    def _computed(self, teacher: TeacherNetwork, batch: Batch, places: Sequence[int]) -> list[StoredMaps]:
        """The maps of some images of a batch; a GPU sees those of one padded size together."""
        groups: dict[tuple[int, int, int], list[int]] = {}
        for place in places:
            # How many images are seen together changes the last bits, and a run that was killed finds some of a batch
            # here. A processor repeats a run to the bit, and loses nothing by seeing each image alone.
            alone = place if batch.images.device.type == "cpu" else 0
            groups.setdefault((*_padded(batch.sizes[place], teacher.info.size_divisor), alone), []).append(place)
        stored: dict[int, StoredMaps] = {}
        for (height, width, _), group in groups.items():
            images = batch.images[group, :, :height, :width]
            sizes = [batch.sizes[place] for place in group]
            originals = [batch.original_sizes[place] for place in group]
            maps = teacher.forward_maps(Batch(images, sizes, [], originals, batch.classes, batch.scale))
            for row, place in enumerate(group):
                stored[place] = {
                    f"{part}.{stride}": _halved(level[row])
                    for part in self.parts
                    for stride, level in getattr(maps, part).items()
                }
        return [stored[place] for place in places]


def open_cache(experiment: Experiment, console: Console) -> TeacherCache | None:
    """The cache that an experiment asks for, after a look at the space that it needs; None where it asks for none.

    Args:
        experiment: with a teacher or without.
        console: where to say what is needed.

    Raises:
        InputError: the folder can't be written.
    """
    distillation = experiment.distillation
    if distillation is None or distillation.cache is None:
        return None
    views = require_views(experiment.augmentation)
    teacher, parts = distillation.teacher, kept_parts(distillation.method)
    folder = _folder(distillation.cache, _key(experiment, parts))
    names = {
        (dataset.annotated, dataset.samples[place].image_id): dataset.identity(place)
        for dataset in experiment.datasets
        for place in range(len(dataset))
    }
    _remove_leftovers(folder)
    size = cache_size(teacher, parts, experiment.datasets, views)
    there, free = _bytes_in(folder), disk_usage(folder).free
    words = f"cache of the teacher: {size.views} views, {size.bytes / 1e9:.1f} GB"
    words += f" ({min(there, size.bytes) / max(1, size.bytes):.0%} there)"
    limit = distillation.cache.limit
    if size.bytes > min(free + there, limit if limit is not None else float("inf")):
        room = "--cache-limit" if limit is not None and limit < free + there else f"the disk ({free / 1e9:.1f} GB free)"
        words += f"; {room} holds fewer, the others are computed in each epoch"
    console.print(f"{words}.", highlight=False)
    return TeacherCache(folder, parts, names, limit, lambda text: console.print(text, style="yellow", highlight=False))


def require_views(augmentation: Augmentation) -> int:
    """How many views of an image an augmentation makes.

    Raises:
        InputError: it never makes the same one twice, so that no cache could hold them.
    """
    if augmentation.views is None:
        raise InputError("A cache of the teacher's maps can't follow an augmentation that never repeats a view.")
    return augmentation.views


def _folder(cache: CacheFolder, key: str) -> Path:
    folder = cache.folder / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--cache-teacher {cache.folder} can't be written ({error.strerror}).") from error
    return folder


def cache_size(
    teacher: TeacherNetwork, parts: Collection[str], datasets: Sequence[DetectionDataset], views: int
) -> CacheSize:
    """How much space the maps take.

    Args:
        teacher: the trained detector.
        parts: `neck`, `backbone` or both.
        datasets: all images.
        views: views of each image.
    """
    channels = [level for part in parts for level in getattr(teacher.info, part).items()]
    sizes = [size for dataset in datasets for size in dataset.sizes]
    total = 0
    for size in sizes:
        height, width = teacher.padded_size(*size)
        total += sum(count * ceil(height / stride) * ceil(width / stride) for stride, count in channels)
    return CacheSize(views * len(sizes), views * total * HALF_BYTES)


def kept_parts(method: Method) -> list[str]:
    """Which maps the method needs; a head's predictions are made from those of the neck."""
    needs = set(method.needs)
    return [part for part in ("backbone", "neck") if part in needs or (part == "neck" and needs - {"backbone"})]


def _key(experiment: Experiment, parts: Sequence[str]) -> str:
    """What decides how the maps of an image come out, beside the image."""
    assert experiment.distillation is not None
    student, teacher = experiment.student, experiment.distillation.teacher
    prepared = (student.info.size, student.info.max_size, student.info.size_divisor, student.antialias)
    precision = (experiment.devices.precision, "run" if experiment.distillation.dtype is None else "bf16")
    described = getattr(teacher, "description", "")  # of taps, which are not among the weights
    facts = [FORMAT, fingerprint(teacher), teacher.info, prepared, precision, list(parts)]
    text = repr((*facts, *filter(None, [described])))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _padded(size: tuple[int, int], divisor: int) -> tuple[int, int]:
    return ceil(size[0] / divisor) * divisor, ceil(size[1] / divisor) * divisor


def _halved(level: Tensor) -> Tensor:
    """A map (C, H, W) as (H, W, C), in half precision but for maps whose values that can't hold."""
    half = level.half()
    return (half if bool(half.isfinite().all()) else level.float()).cpu().permute(1, 2, 0).contiguous()


def _assembled(stored: Sequence[StoredMaps], batch: Batch) -> Maps:
    """The maps of a whole batch, zero on its padding."""
    height, width = batch.images.shape[-2:]
    maps: dict[str, dict[int, Tensor]] = {"backbone": {}, "neck": {}}
    for name in stored[0]:
        part, _, text = name.partition(".")
        stride = int(text)
        shape = (len(stored), ceil(height / stride), ceil(width / stride), stored[0][name].shape[2])
        level = batch.images.new_zeros(shape)
        for row, one in zip(level, stored, strict=True):
            rows, columns, _ = one[name].shape
            row[:rows, :columns] = one[name].to(level.device)
        level = level.permute(0, 3, 1, 2)
        # On a processor the student's maps lie in memory like that, see Detector.normalise.
        maps[part][stride] = level if level.device.type == "cpu" else level.contiguous()
    return Maps(**{part: dict(sorted(levels.items())) for part, levels in maps.items()})


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*/*.safetensors"))


def _remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed left half-written."""
    for path in folder.glob("*/.*.safetensors.*"):
        try:
            if time.time() - path.stat().st_mtime > LEFTOVER_SECONDS:
                path.unlink()
        except OSError:  # another process was faster
            continue
