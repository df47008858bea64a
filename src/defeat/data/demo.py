"""The embedded data set: scenes drawn from a seed, nothing downloaded."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from defeat.data.dataset import Annotation, DetectionDataset, SplitBuilder, select_classes
from defeat.data.files import unknown_split
from defeat.data.outlines import Outline
from defeat.data.painting import paint
from defeat.data.scenes import CLASSES, Shape, lay_out
from defeat.errors import InputError

# Images of each split.
SPLITS = {"train": 240, "val": 80, "test": 120}
# A larger seed would be two numbers to the generator, and a split's scenes could meet those of another seed.
LARGEST_SEED = 2**32 - 1
# They are kept in memory: at a side of 128 pixels these need 5 GB.
MOST_TRAINING = 100_000
# Kept maps of a teacher belong to what a scene shows: to be raised with every change of it.
_DRAWING = 2


@dataclass(frozen=True)
class DemoName:
    """What a path of the embedded data set says.

    Attributes:
        seed: what the scenes are drawn from.
        training: scenes of the split `train`; as many as usual when None.
    """

    seed: int = 0
    training: int | None = None

    def open(self, split: str, classes: Sequence[str] | None = None) -> "DemoDataset":
        """The scenes of a split."""
        return DemoDataset(split, classes=classes, seed=self.seed, training=self.training)


def parse_name(path: str) -> DemoName | None:
    """Read `demo`, `demo:SEED` or `demo:SEED:TRAIN`; None where a path is not of the embedded data set.

    Raises:
        InputError: the path begins with `demo:`, and what follows is not valid.
    """
    if path == "demo":
        return DemoName()
    if not path.startswith("demo:"):
        return None
    match = re.fullmatch(r"demo:([0-9]{1,10})(?::([1-9][0-9]{0,5}))?", path)
    name = None if match is None else DemoName(int(match[1]), None if match[2] is None else int(match[2]))
    if name is None or name.seed > LARGEST_SEED or (name.training or 1) > MOST_TRAINING:
        raise InputError(
            f"{path!r} names no drawn scenes; give demo, demo:SEED or demo:SEED:TRAIN with a seed from 0 to "
            f"{LARGEST_SEED} and 1 to {MOST_TRAINING} training scenes, as in demo:7:2000."
        )
    return name


class DemoDataset(DetectionDataset):
    """Scenes with discs, rings, squares, triangles, stars and crosses that overlap on textured surfaces.

    A scene depends on the seed, its split and its index alone. Its image path names no file.

    Args:
        split: `train`, `val` or `test`.
        classes: the classes to keep, in the order of their labels; all when None.
        side: width and height of a scene, in pixels.
        seed: what the scenes are drawn from, 0..2**32 - 1; no two seeds share a scene.
        training: scenes of the split `train`, as many as usual when None; the first ones are the same, however many
            there are.

    Raises:
        InputError: an argument is not valid.
    """

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
            raise InputError(f"The seed of drawn scenes must be between 0 and {LARGEST_SEED}, not {seed}.")
        if training is None:
            training = SPLITS["train"]
        if not 1 <= training <= MOST_TRAINING:
            raise InputError(f"There can be 1 to {MOST_TRAINING} training scenes, not {training}.")
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
        """A name that changes with everything that a scene depends on."""
        return f"demo{self.seed}-drawing{_DRAWING}-{self.side}-{self.split}-{index}"

    def _shapes(self, index: int) -> list[Shape]:
        return lay_out(self._generator(index, stage=0), self.side)

    def _generator(self, index: int, stage: int) -> np.random.Generator:
        # Layout and painting draw from their own streams, so that boxes are known without painting.
        return np.random.default_rng([self.seed, self._split_number, index, stage])
