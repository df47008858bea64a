"""The matrix of a comparison, variants times seeds, and its folder."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from defeat.assembly.earlier import earlier_defaults, earlier_detector_options, earlier_options
from defeat.assembly.settings import DistillSettings, TrainSettings
from defeat.distillation import METHODS, find_method, is_method, method_defaults, method_parts
from defeat.engine.checkpoint import RunDirectory
from defeat.errors import InputError, unknown_name
from defeat.files import write_into
from defeat.settings import INHERIT, Role, at_least, names_of, option

NONE = "none"
PLAN = "bench.yaml"
DEFAULT_METHODS = "none,none+inherit,imitation+inherit,fgfi+inherit,tadf+inherit,defeat+inherit"
CELL_SETTINGS = names_of(DistillSettings, Role.CELL)  # differ between cells
FREE_SETTINGS = names_of(DistillSettings, Role.OUTPUT, Role.DEVICE)  # do not change the result
SOURCE_SETTINGS = names_of(DistillSettings, Role.SOURCE)  # paths on a machine; their content is compared instead


@dataclass(frozen=True)
class Variant:
    """One way to train the student.

    Attributes:
        method: a distillation method, or `none`.
        options: options of the method.
        settings: settings that differ from those of the other variants.
    """

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


BASELINE = Variant(NONE, settings={"inherit": "none"})
PUBLISHED = {
    "object_weight": 3.0,
    "background_weight": 12.0,
    "scale": "none",
    "initialisation": "published",
    "adaptation_kernel": 3,
}
ABLATIONS: dict[str, dict[str, Variant]] = {
    # Object and background region separately, together with one weight, and together with a weight each.
    "regions": {
        NONE: BASELINE,
        "object only": Variant("defeat", {"background_weight": 0.0}),
        "background only": Variant("defeat", {"object_weight": 0.0}),
        "both, one weight": Variant("imitation"),
        "both, own weights": Variant("defeat"),
    },
    # Fixed weights (the paper's for VOC, and the default) and weights from measured gradients (--balance).
    "balance": {
        NONE: BASELINE,
        "published weights": Variant("defeat", PUBLISHED),
        "default weights": Variant("defeat"),
        **{f"balance {ratio:g}": Variant("defeat", settings={"balance": ratio}) for ratio in (0.25, 0.5, 1.0)},
    },
    # The gain from the images without annotations in the folder --unlabelled.
    "unlabelled": {
        NONE: BASELINE,
        "annotated images": Variant("defeat", settings={"unlabelled_ratio": 0.0}),
        "all images": Variant("defeat"),
        "all images, pseudo-labels": Variant("defeat", settings={"pseudo_labels": 0.7}),
    },
}


@dataclass(frozen=True)
class Cell:
    """A run of the matrix.

    Attributes:
        number: number from 1; all variants of one seed come before the next seed.
        variant: name of the variant.
        seed: seed of initial weights, order of the data and everything else that is random.
    """

    number: int
    variant: str
    seed: int

    @property
    def folder(self) -> str:
        """Name of the run directory."""
        return f"{re.sub(r'[^a-z0-9]+', '-', self.variant.lower()).strip('-')}-seed{self.seed}"


class Matrix:
    """The cells of a comparison and the settings that they share.

    Attributes:
        folder: folder of the comparison.
        settings: settings of every cell, without `CELL_SETTINGS`.
        variants: variants by name.
        seeds: number of seeds.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], variants: dict[str, Variant], seeds: int) -> None:
        at_least("seeds", seeds, 1, 1000)
        if "inherit" not in settings:  # written by a version without this setting
            settings = settings | {"inherit": "none"}
            variants = {
                name: replace(variant, settings={"inherit": "none"} | variant.settings)
                for name, variant in variants.items()
            }
        self.folder, self.settings, self.variants, self.seeds = folder, settings, variants, seeds

    @classmethod
    def of(cls, template: DistillSettings, variants: dict[str, Variant], seeds: int) -> "Matrix":
        """Build the matrix from the settings of its cells; the default `eval_split` is `test`, if there is one."""
        if template.eval_split is None and "test" in template.source.split_names():
            template = replace(template, eval_split="test")
        shared = {name: value for name, value in template.to_dict().items() if name not in CELL_SETTINGS}
        return cls(Path(template.out), shared, variants, seeds)

    @classmethod
    def read(cls, folder: Path) -> "Matrix":
        """Read the matrix of a folder.

        Raises:
            InputError: the folder contains no comparison, or its file is damaged.
        """
        try:
            content = yaml.safe_load((folder / PLAN).read_text(encoding="utf-8"))
            variants = {name: Variant(**value) for name, value in content["variants"].items()}
            return cls(folder, content["settings"], variants, int(content["seeds"]))
        except OSError as error:
            raise InputError(f"{folder} contains no comparison: {PLAN} can't be read.") from error
        except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{folder / PLAN} is damaged.") from error

    def join_existing(self, other_machine: bool = False) -> None:
        """Add the variants and seeds of the matrix that the folder already contains.

        Args:
            other_machine: as in `join`.

        Raises:
            InputError: the folder contains a comparison with different settings.
        """
        if (self.folder / PLAN).exists():
            self.join(Matrix.read(self.folder), other_machine)

    def write(self, other_machine: bool = False) -> None:
        """Join the matrix with the one that the folder already contains, if any, and write it.

        Args:
            other_machine: as in `join`.

        Raises:
            InputError: the folder contains a comparison with different settings, or can't be written.
        """
        self.join_existing(other_machine)
        content = {
            "settings": self.settings,
            "variants": {name: asdict(variant) for name, variant in self.variants.items()},
            "seeds": self.seeds,
        }
        write_into(self.folder, PLAN, yaml.safe_dump(_plain(content), sort_keys=False).encode())

    def join(self, other: "Matrix", other_machine: bool = False) -> None:
        """Add the variants and seeds of another matrix; its variants come first.

        Args:
            other: the matrix.
            other_machine: whether it comes from another machine, where paths of data and teacher may differ.

        Raises:
            InputError: its settings are different.
        """
        free = FREE_SETTINGS + SOURCE_SETTINGS if other_machine else FREE_SETTINGS
        now, before = _plain(self.settings), _plain(earlier_defaults() | other.settings)
        for settings in (now, before):
            family, options = settings.get("detector", ""), settings.get("detector_options") or {}
            settings["detector_options"] = earlier_detector_options(family, options)
        changed = [
            f"{name} was {before.get(name)!r} and is {now[name]!r}"
            for name in now
            if name not in free and now[name] != before.get(name)
        ]
        for name in self.variants.keys() & other.variants.keys():
            before, now = _complete(other.variants[name]), _complete(self.variants[name])
            differing = [key for key in before | now if before.get(key) != now.get(key)]
            if differing:
                was, is_now = ({key: values.get(key) for key in differing} for values in (before, now))
                changed.append(f"{name} was {was} and is {is_now}")
        if changed:
            raise InputError(f"{other.folder} contains a comparison with other settings: {'; '.join(changed)}.")
        self.variants = other.variants | {name: v for name, v in self.variants.items() if name not in other.variants}
        self.seeds = max(self.seeds, other.seeds)

    def command(self) -> str:
        """The commands that reproduce the comparison: one for the methods, and one per ablation."""
        defaults = DistillSettings(data="-", teacher="-", out="-").to_dict()
        arguments = ["defeat", "bench", "--out", str(self.folder), "--seeds", str(self.seeds)]
        for name, value in self.settings.items():
            if name == "detector_options":
                arguments += [f"--detector.{key.replace('_', '-')}={_text(part)}" for key, part in value.items()]
            elif value != defaults[name]:
                arguments.append(f"{option(name)}={_text(value)}")
        groups = [(f"--methods={','.join(names)}", names)] if (names := self._method_names()) else []
        groups += [
            (f"--ablate={name}", [variant for variant in self.variants if variant.removesuffix(INHERIT) in ablation])
            for name, ablation in ABLATIONS.items()
            if ablation.keys() <= {variant.removesuffix(INHERIT) for variant in self.variants}
        ]
        return "\n".join(shlex.join([*arguments, choice, *self._method_arguments(names)]) for choice, names in groups)

    def _method_names(self) -> list[str]:
        """Variants that `--methods` names; empty where only ablations add variants to the baseline."""
        names = [name for name in self.variants if is_method(name.removesuffix(INHERIT))]
        of_every_ablation = {NONE, NONE + INHERIT}
        needed = not set(names) <= of_every_ablation or set(self.variants) <= of_every_ablation
        return names if needed else []

    def _method_arguments(self, names: Sequence[str]) -> list[str]:
        """Method options that differ from their defaults, without those that an ablation sets."""
        arguments: dict[str, None] = {}
        for name in names:
            variant = self.variants[name]
            defaults = method_defaults(variant.method)
            ablated = next((variants[name].options for variants in ABLATIONS.values() if name in variants), {})
            for key, value in variant.options.items():
                if key not in ablated and _plain(value) != _plain(defaults.get(key)):
                    flag = key if "." in key else f"{variant.method}.{key}"
                    arguments[f"--{flag.replace('_', '-')}={_text(value)}"] = None
        return list(arguments)

    def cells(self) -> list[Cell]:
        """All cells, ordered by number."""
        pairs = [(variant, seed) for seed in range(self.seeds) for variant in self.variants]
        return [Cell(number, variant, seed) for number, (variant, seed) in enumerate(pairs, start=1)]

    @property
    def one_process_per_cell(self) -> bool:
        """Whether one process trains a cell; it can skip the cell without other processes waiting for it."""
        return bool(self.settings["devices"] == 1 and self.settings["nodes"] == 1)

    def directory(self, cell: Cell) -> RunDirectory:
        """The run directory of a cell."""
        return RunDirectory(self.folder / cell.folder)

    def finished(self, cell: Cell) -> bool:
        """Whether the run of a cell is finished."""
        return self.directory(cell).results.is_file()

    def cell_settings(self, cell: Cell) -> TrainSettings:
        """Settings of the run of a cell; a stopped run is resumed."""
        variant, directory = self.variants[cell.variant], self.directory(cell)
        of_cell = {"seed": cell.seed, "out": str(directory.folder), "resume": directory.resumable}
        settings = self.settings | variant.settings | of_cell
        if variant.method == NONE and settings["inherit"] == "none":
            names = {field.name for field in fields(TrainSettings)}
            return TrainSettings(**{name: value for name, value in settings.items() if name in names})
        return DistillSettings(**settings, method=variant.method, method_options=variant.options)


def _complete(variant: Variant) -> dict[str, Any]:
    """All values of a variant; options that its file lacks have the defaults of the version that wrote it."""
    options = earlier_options(variant.method, variant.options)
    complete: dict[str, Any] = _plain({"method": variant.method, **variant.settings, **options})
    return complete


def _text(value: Any) -> str:
    """A value in the notation of the command line."""
    return value if isinstance(value, str) else json.dumps(_plain(value))


def _plain(content: Any) -> Any:
    """Convert tuples to lists, as in a file."""
    return json.loads(json.dumps(content))


def variants_of(
    methods: str, ablate: str | None, options: Mapping[str, Mapping[str, Any]], inherit: str = "none"
) -> dict[str, Variant]:
    """Variants of a comparison; the baseline is always the first.

    Args:
        methods: methods separated by commas; with the suffix `+inherit`, the student inherits weights of the teacher.
        ablate: name of an ablation, instead of methods.
        options: options of each method by its name.
        inherit: the weights that are inherited; in an ablation, by all variants but the baseline.

    Raises:
        InputError: a name is unknown.
    """
    if ablate is not None:
        if ablate not in ABLATIONS:
            raise unknown_name("ablation", ablate, ABLATIONS)
        variants = dict(ABLATIONS[ablate])
        if inherit != "none":
            variants = {NONE: BASELINE, NONE + INHERIT: Variant(NONE)} | variants
    else:
        names = [name.strip() for name in methods.split(",") if name.strip()]
        if not names:
            raise InputError(f"--methods is empty; give some of {', '.join(sorted(METHODS))}, or none.")
        if inherit == "none" and any(name.endswith(INHERIT) for name in names):
            raise InputError(
                "--methods asks for a student that inherits, and --inherit for none: leave out one of the two."
            )
        variants = {name: _method_variant(name) for name in dict.fromkeys([NONE, *names])}
    completed = {}
    for name, variant in variants.items():
        find_method(variant.method)
        given = (
            _given_options(variant.method, options) if ablate is None else _ablation_options(variant.method, options)
        )
        completed[name] = replace(variant, options={**method_defaults(variant.method), **given, **variant.options})
    return completed


def _given_options(method: str, options: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Options of a method, given those of each method; a combination has those of its parts."""
    parts = method_parts(method)
    if len(parts) == 1:
        return dict(options.get(method, {}))
    return {f"{part}.{key}": value for part in parts for key, value in options.get(part, {}).items()}


def _method_variant(name: str) -> Variant:
    """The variant of a method, with or without the suffix `+inherit`."""
    method = name.removesuffix(INHERIT)
    return Variant(method, settings={} if name.endswith(INHERIT) else {"inherit": "none"})


def _ablation_options(method: str, options: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Options of a method in an ablation, whose variants must differ only in the ablated options.

    An option at its default takes the value that the user gave for another method of the ablation.
    """
    if method == NONE:
        return {}
    defaults, values = method_defaults(method), dict(options.get(method, {}))
    for other, given in options.items():
        changed = {key: value for key, value in given.items() if value != method_defaults(other)[key]}
        values |= {
            key: changed[key] for key in changed.keys() & defaults if values.get(key, defaults[key]) == defaults[key]
        }
    return values


def chosen_cells(cells: str | None, count: int) -> list[int]:
    """Parse numbers of cells such as `3-7` or `1,4`; None means all.

    Raises:
        InputError: the text is not valid, or a number is not in 1..count.
    """
    if cells is None:
        return list(range(1, count + 1))
    numbers: list[int] = []
    for part in cells.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", part)
        if not match:
            raise InputError(f"--cells {cells}: give numbers and ranges such as 3-7 or 1,4.")
        first, last = int(match[1]), int(match[2] or match[1])
        # A number beyond the end is refused below, so the range is cut one after it.
        numbers += range(first, min(last, max(first, count + 1)) + 1)
    wrong = [number for number in numbers if not 1 <= number <= count]
    if wrong or not numbers:
        raise InputError(f"--cells {cells}: there are cells 1 to {count}; --plan lists them.")
    return sorted(set(numbers))
