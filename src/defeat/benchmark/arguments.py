"""The arguments of `bench`: those of the comparison, and the settings that all cells share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from defeat.assembly.settings import DistillSettings
from defeat.benchmark.matrix import DEFAULT_METHODS
from defeat.settings import setting, settings_part


@settings_part
class ComparisonSettings:
    """Comparison."""

    methods: str = setting(default=DEFAULT_METHODS)
    """Methods separated by commas. With the suffix +inherit (defeat+inherit), the student inherits the teacher's neck
    and head. `none` is the baseline without a teacher, which every comparison contains."""
    seeds: int = setting(default=3)
    """Number of seeds: 0, 1, 2 .."""
    ablate: str | None = setting(default=None)
    """Instead of methods, an ablation: regions compares the regions of DeFeat; balance compares fixed weights with
    those of --balance; unlabelled compares with and without the images of --unlabelled."""
    cells: str | None = setting(default=None)
    """Numbers of the cells to train, as listed by --plan, e.g. 3-7 or 1,4; by default all cells of these methods and
    seeds."""
    plan: bool = setting(default=False)
    """Print cells, time left and disk space, and train nothing."""
    jobs: int = setting(default=1)
    """Cells to train in parallel, each in its own process."""
    ray: str | None = setting(default=None)
    """Train the cells on a Ray cluster: its address, auto for the one of this machine, or local to start one here. All
    nodes need this package, the data, and the folder of the comparison at the same paths."""
    method_options: Mapping[str, Mapping[str, Any]] | None = setting(default=None)
    """Options of each method by its name."""
    console: Console | None = setting(default=None)
    """Console for progress; None for the standard error stream."""


@dataclass(frozen=True, kw_only=True)
class BenchArguments(ComparisonSettings, DistillSettings):
    """Arguments of `bench`: fields with `init=False` are settings of `distill` that differ between cells."""

    out: str
    """Folder of the comparison: a run directory per cell, bench.json, report.html."""
    eval_split: str | None = None
    """Split to evaluate all cells on; by default test if there is one, else val."""
    seed: int = field(default=0, init=False)
    method: str = field(default="", init=False)
    resume: bool = field(default=False, init=False)
    expected: dict[str, Any] = field(default_factory=dict, init=False)
