"""The matrix of a comparison: ways to train the student times seeds, and the folder where they are."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from defeat.assembly.settings import DistillSettings, TrainSettings, earlier_defaults
from defeat.data import split_names
from defeat.distillation import METHODS as METHODS_BY_NAME
from defeat.distillation import find_method, method_defaults
from defeat.engine.checkpoint import RunDirectory
from defeat.errors import InputError, unknown_name
from defeat.files import write_into
from defeat.settings import Role, at_least, names_of, option

NONE = "none"
INHERIT = "+inherit"  # ends the name of a variant whose student begins with weights of the teacher
PLAN = "bench.yaml"
METHODS = "none,none+inherit,imitation+inherit,fgfi+inherit,tadf+inherit,defeat+inherit"
# What differs between the cells, or where and how fast they are made.
OWN = names_of(DistillSettings, Role.CELL)
FREE = names_of(DistillSettings, Role.OUTPUT, Role.DEVICE)
# Where something lies on a machine; what lies there is compared by its content.
PLACES = names_of(DistillSettings, Role.SOURCE)


@dataclass(frozen=True)
class Variant:
    """One way to train the student.

    Attributes:
        method: a distillation method, or `none`.
        options: settings of the method that differ from its defaults.
        settings: settings of the run that differ from those of the other cells.
    """

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


ALONE = Variant(NONE, settings={"inherit": "none"})
PUBLISHED = {
    "object_weight": 3.0,
    "background_weight": 12.0,
    "scale": "none",
    "initialisation": "published",
    "adaptation_kernel": 3,
}
ABLATIONS: dict[str, dict[str, Variant]] = {
    # How the same region teaches alone, with the other under one weight, and with it under a weight of its own.
    "regions": {
        NONE: ALONE,
        "object only": Variant("defeat", {"background_weight": 0.0}),
        "background only": Variant("defeat", {"object_weight": 0.0}),
        "both, one weight": Variant("imitation"),
        "both, own weights": Variant("defeat"),
    },
    # Fixed weights, the paper's for VOC and the default, against those that follow from measured gradients.
    "balance": {
        NONE: ALONE,
        "published weights": Variant("defeat", PUBLISHED),
        "default weights": Variant("defeat"),
        **{f"balance {ratio:g}": Variant("defeat", settings={"balance": ratio}) for ratio in (0.25, 0.5, 1.0)},
    },
    # What images without annotations add, of which --unlabelled names the folder.
    "unlabelled": {
        NONE: ALONE,
        "annotated images": Variant("defeat", settings={"unlabelled_ratio": 0.0}),
        "all images": Variant("defeat"),
        "all images, pseudo-labels": Variant("defeat", settings={"pseudo_labels": 0.7}),
    },
}


@dataclass(frozen=True)
class Cell:
    """A run of the matrix.

    Attributes:
        number: from 1 on; all variants of one seed come before the next seed.
        variant: name of the variant.
        seed: seed of first weights, order of the data and everything else that is random.
    """

    number: int
    variant: str
    seed: int

    @property
    def folder(self) -> str:
        """Name of its run directory."""
        return f"{re.sub(r'[^a-z0-9]+', '-', self.variant.lower()).strip('-')}-seed{self.seed}"


class Matrix:
    """Cells of one folder, and the settings that they share.

    Attributes:
        folder: where everything is.
        settings: of every cell, but for method, seed and folder.
        variants: ways to train the student, by name.
        seeds: how many seeds.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], variants: dict[str, Variant], seeds: int) -> None:
        at_least("seeds", seeds, 1, 1000)
        if "inherit" not in settings:  # written before there was a choice
            settings = settings | {"inherit": "none"}
            variants = {
                name: replace(one, settings={"inherit": "none"} | one.settings) for name, one in variants.items()
            }
        self.folder, self.settings, self.variants, self.seeds = folder, settings, variants, seeds

    @classmethod
    def of(cls, template: DistillSettings, variants: dict[str, Variant], seeds: int) -> "Matrix":
        """The matrix that a template of its cells describes; it is tested on `test` where there is such a split."""
        if template.eval_split is None and "test" in split_names(template.data):
            template = replace(template, eval_split="test")
        shared = {name: value for name, value in template.to_dict().items() if name not in OWN}
        return cls(Path(template.out), shared, variants, seeds)

    @classmethod
    def read(cls, folder: Path) -> "Matrix":
        """Read what `write` wrote.

        Raises:
            InputError: the folder holds no comparison.
        """
        try:
            content = yaml.safe_load((folder / PLAN).read_text(encoding="utf-8"))
            variants = {name: Variant(**value) for name, value in content["variants"].items()}
            return cls(folder, content["settings"], variants, int(content["seeds"]))
        except OSError as error:
            raise InputError(f"{folder} holds no comparison: {PLAN} can't be read.") from error
        except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{folder / PLAN} is damaged.") from error

    def join_written(self, elsewhere: bool = False) -> None:
        """Take over the variants and seeds that the folder has already.

        Args:
            elsewhere: as in `join`.

        Raises:
            InputError: it holds a comparison with other settings.
        """
        if (self.folder / PLAN).exists():
            self.join(Matrix.read(self.folder), elsewhere)

    def write(self, elsewhere: bool = False) -> None:
        """Write the matrix into its folder; one that is there already may have other variants and seeds.

        Args:
            elsewhere: as in `join`.

        Raises:
            InputError: the folder holds a comparison with other settings, or can't be written.
        """
        self.join_written(elsewhere)
        content = {
            "settings": self.settings,
            "variants": {name: asdict(variant) for name, variant in self.variants.items()},
            "seeds": self.seeds,
        }
        write_into(self.folder, PLAN, yaml.safe_dump(_plain(content), sort_keys=False).encode())

    def join(self, other: "Matrix", elsewhere: bool = False) -> None:
        """Take over the variants and seeds of another matrix; its variants come first.

        Args:
            other: the matrix.
            elsewhere: whether it is of another machine, where data and teacher may lie in other folders.

        Raises:
            InputError: its settings are others.
        """
        free = FREE + PLACES if elsewhere else FREE
        mine, theirs = _plain(self.settings), _plain(earlier_defaults() | other.settings)
        changed = [
            f"{name} was {theirs.get(name)!r} and is {mine[name]!r}"
            for name in mine
            if name not in free and mine[name] != theirs.get(name)
        ]
        for name in self.variants.keys() & other.variants.keys():
            before, now = _complete(other.variants[name]), _complete(self.variants[name])
            differing = [key for key in before | now if before.get(key) != now.get(key)]
            if differing:
                was, is_now = ({key: one.get(key) for key in differing} for one in (before, now))
                changed.append(f"{name} was {was} and is {is_now}")
        if changed:
            raise InputError(f"{other.folder} holds a comparison with other settings: {'; '.join(changed)}.")
        self.variants = other.variants | {name: v for name, v in self.variants.items() if name not in other.variants}
        self.seeds = max(self.seeds, other.seeds)

    def command(self) -> str:
        """How to repeat the comparison: a line for the methods, and one for each ablation."""
        defaults = DistillSettings(data="-", teacher="-", out="-").to_dict()
        words = ["defeat", "bench", "--out", str(self.folder), "--seeds", str(self.seeds)]
        for name, value in self.settings.items():
            if name == "detector_options":
                words += [f"--detector.{key.replace('_', '-')}={_text(one)}" for key, one in value.items()]
            elif value != defaults[name]:
                words.append(f"{option(name)}={_text(value)}")
        groups = [(f"--methods={','.join(names)}", names)] if (names := self._method_names()) else []
        groups += [
            (f"--ablate={name}", [variant for variant in self.variants if variant.removesuffix(INHERIT) in found])
            for name, found in ABLATIONS.items()
            if found.keys() <= {variant.removesuffix(INHERIT) for variant in self.variants}
        ]
        return "\n".join(shlex.join([*words, choice, *self._method_words(names)]) for choice, names in groups)

    def _method_names(self) -> list[str]:
        """The variants that are methods as they are; nothing where the student alone is all there is."""
        names = [name for name in self.variants if name.removesuffix(INHERIT) in (NONE, *METHODS_BY_NAME)]
        ablated = {NONE, NONE + INHERIT}  # which are part of every ablation
        return names if not set(names) <= ablated or set(self.variants) <= ablated else []

    def _method_words(self, names: Sequence[str]) -> list[str]:
        """Settings of the methods that differ from their defaults, but for those that an ablation makes."""
        words: dict[str, None] = {}
        for name in names:
            variant = self.variants[name]
            usual = method_defaults(variant.method)
            made = next((found[name].options for found in ABLATIONS.values() if name in found and name != NONE), {})
            for key, value in variant.options.items():
                if key not in made and _plain(value) != _plain(usual.get(key)):
                    words[f"--{variant.method}.{key.replace('_', '-')}={_text(value)}"] = None
        return list(words)

    def cells(self) -> list[Cell]:
        """All cells."""
        pairs = [(variant, seed) for seed in range(self.seeds) for variant in self.variants]
        return [Cell(number, variant, seed) for number, (variant, seed) in enumerate(pairs, start=1)]

    @property
    def one_process_per_cell(self) -> bool:
        """Whether one process trains a cell, which can leave out a cell without others waiting for it there."""
        return bool(self.settings["devices"] == 1 and self.settings["nodes"] == 1)

    def directory(self, cell: Cell) -> RunDirectory:
        """The run directory of a cell."""
        return RunDirectory(self.folder / cell.folder)

    def finished(self, cell: Cell) -> bool:
        """Whether a cell has its final figures."""
        return self.directory(cell).results.is_file()

    def cell_settings(self, cell: Cell) -> TrainSettings:
        """The settings of the run of a cell; one that was stopped goes on."""
        variant, directory = self.variants[cell.variant], self.directory(cell)
        own = {"seed": cell.seed, "out": str(directory.folder), "resume": directory.begun}
        settings = self.settings | variant.settings | own
        if variant.method == NONE and settings["inherit"] == "none":
            known = {one.name for one in fields(TrainSettings)}
            return TrainSettings(**{name: value for name, value in settings.items() if name in known})
        return DistillSettings(**settings, method=variant.method, method_options=variant.options)


def _complete(variant: Variant) -> dict[str, Any]:
    """Everything that decides a variant; an option that was not there yet when it was written is at its default."""
    usual = method_defaults(variant.method)
    found: dict[str, Any] = _plain({"method": variant.method, **variant.settings, **usual, **variant.options})
    return found


def _text(value: Any) -> str:
    """A value as it is written on the command line."""
    return value if isinstance(value, str) else json.dumps(_plain(value))


def _plain(content: Any) -> Any:
    """As a file has it: lists for tuples."""
    return json.loads(json.dumps(content))


def variants_of(
    methods: str, ablate: str | None, options: Mapping[str, Mapping[str, Any]], inherit: str = "none"
) -> dict[str, Variant]:
    """The ways to train the student that a user asks for; the baseline without a teacher is always the first.

    Args:
        methods: methods separated by commas; with `+inherit` behind its name, a method's student begins with weights of
            the teacher.
        ablate: name of an ablation, instead of methods.
        options: settings of each method by its name.
        inherit: what a student takes that inherits; in an ablation, what all take but the baseline.

    Raises:
        InputError: a name is not known.
    """
    if ablate is not None:
        if ablate not in ABLATIONS:
            raise unknown_name("ablation", ablate, ABLATIONS)
        chosen_variants = dict(ABLATIONS[ablate])
        if inherit != "none":
            chosen_variants = {NONE: ALONE, NONE + INHERIT: Variant(NONE)} | chosen_variants
    else:
        names = [name.strip() for name in methods.split(",") if name.strip()]
        if not names:
            raise InputError(f"--methods is empty; give some of {', '.join(sorted(METHODS_BY_NAME))}, or none.")
        if inherit == "none" and any(name.endswith(INHERIT) for name in names):
            raise InputError(
                "--methods asks for a student that inherits, and --inherit for none: leave out one of the two."
            )
        chosen_variants = {name: _method_variant(name) for name in dict.fromkeys([NONE, *names])}
    found = {}
    for name, variant in chosen_variants.items():
        find_method(variant.method)
        given = options.get(variant.method, {}) if ablate is None else _shared(variant.method, options)
        found[name] = replace(variant, options={**given, **variant.options})
    return found


def _method_variant(name: str) -> Variant:
    """A method as it is, or with `+inherit` behind its name."""
    method = name.removesuffix(INHERIT)
    return Variant(method, settings={} if name.endswith(INHERIT) else {"inherit": "none"})


def _shared(method: str, options: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A method's settings in an ablation, whose rows are to differ in what it is about alone.

    Where it is at its default, a setting takes the value that another of the methods was given.
    """
    if method == NONE:
        return {}
    usual, found = method_defaults(method), dict(options.get(method, {}))
    for other, given in options.items():
        changed = {key: value for key, value in given.items() if value != method_defaults(other)[key]}
        found |= {key: changed[key] for key in changed.keys() & usual if found.get(key, usual[key]) == usual[key]}
    return found


def chosen(cells: str | None, count: int) -> list[int]:
    """Numbers of cells from a text such as `3-7` or `1,4`; all for None.

    Raises:
        InputError: it is not such a text, or a number is not among 1..count.
    """
    if cells is None:
        return list(range(1, count + 1))
    numbers: list[int] = []
    for part in cells.split(","):
        found = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", part)
        if not found:
            raise InputError(f"--cells {cells}: give numbers and ranges such as 3-7 or 1,4.")
        first, last = int(found[1]), int(found[2] or found[1])
        # One beyond the end is enough to be refused, however far a range goes.
        numbers += range(first, min(last, max(first, count + 1)) + 1)
    wrong = [number for number in numbers if not 1 <= number <= count]
    if wrong or not numbers:
        raise InputError(f"--cells {cells}: there are cells 1 to {count}; --plan lists them.")
    return sorted(set(numbers))
