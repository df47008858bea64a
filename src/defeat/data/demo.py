"""The embedded data set: scenes drawn from a seed, nothing downloaded."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from defeat.data.dataset import Annotation, DetectionDataset, SplitBuilder, select_classes
from defeat.data.files import unknown_split
from defeat.data.scenes import CLASSES, Shape, lay_out, paint
from defeat.errors import InputError

# Images of each split.
SPLITS = {"train": 240, "val": 80, "test": 120}


class DemoDataset(DetectionDataset):
    """Scenes with discs, rings, squares, triangles, stars and crosses that overlap on textured backgrounds.

    A scene depends on the seed, its split and its index alone. Its image path names no file.

    Args:
        split: `train`, `val` or `test`.
        classes: the classes to keep, in the order of their labels; all when None.
        side: width and height of a scene, in pixels.
        seed: what the scenes are drawn from.
    """

    def __init__(self, split: str, *, classes: Sequence[str] | None = None, side: int = 128, seed: int = 0) -> None:
        if split not in SPLITS:
            raise unknown_split("demo", split, sorted(SPLITS))
        if side < 32:
            raise InputError(f"A scene needs a side of at least 32 pixels, not {side}.")
        self.side = side
        self.seed = seed
        self._cache: dict[int, Tensor] = {}
        self._split_number = list(SPLITS).index(split)
        builder = SplitBuilder(select_classes(CLASSES, classes, "demo"))
        for index in range(SPLITS[split]):
            name = f"demo/{split}/{index:04d}.png"
            shapes = self._shapes(index)
            builder.add(name, name, (side, side), [Annotation(shape.box, shape.name) for shape in shapes])
        read = builder.finish("demo", split, "demo")
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
            scene = paint(self._shapes(index), self._generator(index, stage=1), self.side)
            self._cache[index] = torch.from_numpy(scene).permute(2, 0, 1).contiguous()
        return self._cache[index].clone()

    def identity(self, index: int) -> str:
        """A name that changes with everything that a scene depends on."""
        return f"demo{self.seed}-{self.side}-{self.split}-{index}"

    def _shapes(self, index: int) -> list[Shape]:
        return lay_out(self._generator(index, stage=0), self.side)

    def _generator(self, index: int, stage: int) -> np.random.Generator:
        # Layout and painting draw from their own streams, so that boxes are known without painting.
        return np.random.default_rng([self.seed, self._split_number, index, stage])
