"""Where the images of a run come from, and how they are read: the same for training, evaluation and reports."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from rich.console import Console

from defeat.data.dataset import DetectionDataset
from defeat.data.hold_out import HoldOutBy, hold_out
from defeat.data.images import MAX_PIXELS
from defeat.data.problems import OnBadData, Problems
from defeat.data.reading.layout import Layout
from defeat.data.reading.pairs import Unannotated
from defeat.data.recognise import recognise
from defeat.errors import InputError

EVALUATION_SPLITS = ("val", "test")  # splits to evaluate on, in this order


@dataclass(frozen=True)
class DataSource:
    """A data set, and how it is read.

    Attributes:
        data: path or name, see `open_dataset`.
        on_bad_data: `stop` or `skip`, see `open_dataset`.
        unannotated: see `open_dataset`.
        images: see `open_dataset`.
        hold_out: see `open_dataset`.
        hold_out_by: see `open_dataset`.
        max_pixels: see `open_dataset`.
    """

    data: str
    on_bad_data: OnBadData = "stop"
    unannotated: Unannotated = "auto"
    images: str | None = None
    hold_out: float | None = None
    hold_out_by: HoldOutBy = "file"
    max_pixels: int = MAX_PIXELS

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "DataSource":
        """The source of a run, given its settings by name; other settings are ignored."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in content.items() if name in known})

    def split_names(self) -> list[str]:
        """Names of the splits, sorted; `train` and `val` where a share is held out.

        Raises:
            InputError: the format is not recognised.
        """
        layout = self._layout
        if self.hold_out is None:
            return sorted(layout.splits)
        whole = self._divided(layout)
        return sorted({"train", "val"} | set(layout.splits) - {whole})

    def open(
        self, split: str, classes: Sequence[str] | None = None, console: Console | None = None, decode: bool = True
    ) -> DetectionDataset:
        """Open a split, see `open_dataset`.

        Args:
            split: name of the split.
            classes: the classes to keep, in the order of their labels; None for all.
            console: where to print progress; None for nowhere.
            decode: whether `skip` decodes every image to find the broken ones.
        """
        layout = self._layout
        problems = Problems(self.on_bad_data, console, decode, self.max_pixels)
        problems.notes += layout.notes
        if self.hold_out is None or split not in ("train", "val"):
            return layout.read(self._named(layout, split, problems), classes, problems)
        dataset = layout.read(self._divided(layout), classes, problems)
        return hold_out(dataset, self.hold_out, self.hold_out_by)[split]

    def class_names(self, split: str) -> tuple[str, ...]:
        """Classes of a split in the order of their labels, without decoding an image."""
        return self.open(split, decode=False).classes

    @cached_property
    def _layout(self) -> Layout:
        return recognise(self.data, self.images, self.unannotated)

    def _named(self, layout: Layout, split: str, problems: Problems) -> str:
        """The split that is meant: `train` is the only split that is not for evaluation, whatever its name."""
        if split in layout.splits or split != "train":
            return split
        others = [name for name in layout.splits if name not in EVALUATION_SPLITS]
        if len(others) != 1:
            return split
        problems.notes.append(f"the split {others[0]!r} is used as 'train'")
        return others[0]

    def _divided(self, layout: Layout) -> str:
        """The split of which a share is held out.

        Raises:
            InputError: there is a validation split, or it is not clear which split to divide.
        """
        if "val" in layout.splits:
            raise InputError(f"{self.data} has a split 'val' already: leave out --hold-out.")
        others = [name for name in layout.splits if name != "test"]
        name = "train" if "train" in others else others[0] if len(others) == 1 else None
        if name is None:
            raise InputError(f"--hold-out: {self.data} has {', '.join(layout.splits)}; it needs one split to divide.")
        return name
