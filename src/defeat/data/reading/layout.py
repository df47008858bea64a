"""A recognised data set: what the modules of the formats find at a path."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from defeat.data.dataset import DetectionDataset
from defeat.data.problems import Problems


@dataclass(frozen=True)
class Layout:
    """The files of a data set, found but not read.

    Attributes:
        description: the format and where its parts are, such as `VOC, XML files beside the images`.
        splits: names of the splits.
        read: reads a split, given its name, the classes to keep (None for all) and the problems to add to.
        notes: what was assumed because the files don't say it, a sentence each.
    """

    description: str
    splits: tuple[str, ...]
    read: Callable[[str, Sequence[str] | None, Problems], DetectionDataset]
    notes: tuple[str, ...] = ()
