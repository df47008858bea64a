"""The embedded data set: drawn scenes generated from a seed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from defeat.data.dataset import Annotation, DetectionDataset, SplitBuilder, select_classes
from defeat.data.drawn.outlines import Outline
from defeat.data.drawn.painting import paint
from defeat.data.drawn.scenes import CLASSES, Shape, lay_out
from defeat.data.files import unknown_split
from defeat.errors import InputError

# Images of each split.
SPLITS = {"train": 240, "val": 80, "test": 120}
# numpy would split a larger seed into two numbers, and splits of different seeds could share scenes.
LARGEST_SEED = 2**32 - 1
# Scenes are kept in memory: at a side of 128 pixels, this many need 5 GB.
MAX_TRAINING = 100_000
# Part of the key of cached feature maps: increase it whenever the drawing of scenes changes.
_DRAWING = 2


@dataclass(frozen=True)
class DemoName:
    """Parsed path of the embedded data set.

    Attributes:
        seed: seed of the scenes.
        training: number of scenes of the split `train`; None for the default.
    """

    seed: int = 0
    training: int | None = None

    def open(self, split: str, classes: Sequence[str] | None = None) -> "DemoDataset":
        """Open a split."""
        return DemoDataset(split, classes=classes, seed=self.seed, training=self.training)


def parse_name(path: str) -> DemoName | None:
    """Parse `demo`, `demo:SEED` or `demo:SEED:TRAIN`; None for any other path.

    Raises:
        InputError: the path starts with `demo:`, and the rest is invalid.
    """
    if path == "demo":
        return DemoName()
    if not path.startswith("demo:"):
        return None
    match = re.fullmatch(r"demo:([0-9]{1,10})(?::([1-9][0-9]{0,5}))?", path)
    name = None if match is None else DemoName(int(match[1]), None if match[2] is None else int(match[2]))
    if name is None or name.seed > LARGEST_SEED or (name.training or 1) > MAX_TRAINING:
        raise InputError(
            f"{path!r} is invalid; give demo, demo:SEED or demo:SEED:TRAIN with a seed from 0 to {LARGEST_SEED} "
            f"and 1 to {MAX_TRAINING} training scenes, such as demo:7:2000."
        )
    return name


class DemoDataset(DetectionDataset):
    """Scenes with overlapping discs, rings, squares, triangles, stars and crosses on textured surfaces.

    A scene depends only on seed, split and index. Its image path is not a file.

    Args:
        split: `train`, `val` or `test`.
        classes: classes to keep, in the order of their labels; None for all.
        side: width and height of a scene in pixels.
        seed: seed of the scenes, 0..2**32 - 1; different seeds share no scene.
        training: number of scenes of the split `train`, None for the default; a larger number adds scenes at the end.

    Raises:
        InputError: invalid argument.
    """

    in_memory = True

    def __init__(
        self,
        split: str,
        *,
        classes: Sequence[str] | None = None,
        side: int = 128,
        seed: int = 0,
        training: int | None = None,
    ) -> None:
        if split not in SPLITS:
            raise unknown_split("demo", split, sorted(SPLITS))
        if side < 32:
            raise InputError(f"A scene needs a side of at least 32 pixels, not {side}.")
        if not 0 <= seed <= LARGEST_SEED:
            raise InputError(f"The seed of the scenes must be between 0 and {LARGEST_SEED}, not {seed}.")
        if training is None:
            training = SPLITS["train"]
        if not 1 <= training <= MAX_TRAINING:
            raise InputError(f"The number of training scenes must be in 1..{MAX_TRAINING}, not {training}.")
        self.side = side
        self.seed = seed
        self._cache: dict[int, Tensor] = {}
        self._split_number = list(SPLITS).index(split)
        self._outlines: list[tuple[Outline, ...]] = []
        folder = "demo" if seed == 0 else f"demo-{seed}"
        builder = SplitBuilder(select_classes(CLASSES, classes, "demo"))
        for index in range(training if split == "train" else SPLITS[split]):
            name = f"{folder}/{split}/{index:04d}.png"
            shapes = self._shapes(index)
            self._outlines.append(tuple(shape.outline for shape in shapes))
            builder.add(name, name, (side, side), [Annotation(shape.box, shape.name) for shape in shapes])
        read = builder.finish(folder, split, folder)
        super().__init__(
            name=read.name,
            split=read.split,
            classes=read.classes,
            samples=read.samples,
            table=read.table,
            problems=read.problems,
        )

    def _image(self, index: int) -> Tensor:
        index = range(len(self))[index]
        if index not in self._cache:
            scene = paint(self._outlines[index], self._generator(index, stage=1), self.side)
            self._cache[index] = torch.from_numpy(scene).permute(2, 0, 1).contiguous()
        return self._cache[index].clone()

    def identity(self, index: int) -> str:
        """Name of a scene that includes everything it depends on."""
        return f"demo{self.seed}-drawing{_DRAWING}-{self.side}-{self.split}-{index}"

    def _shapes(self, index: int) -> list[Shape]:
        return lay_out(self._generator(index, stage=0), self.side)

    def _generator(self, index: int, stage: int) -> np.random.Generator:
        # Layout and painting use separate random streams, so that boxes are known without painting.
        return np.random.default_rng([self.seed, self._split_number, index, stage])
