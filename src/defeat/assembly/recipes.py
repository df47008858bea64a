"""Recipes: complete settings as YAML, with the figure that a run made from them should reach.

A recipe may say `extends: FILE`, relative to it, whose settings it takes over and changes; of several files in a list
the later ones change the earlier ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from defeat.errors import InputError, unknown_name

PACKAGE = Path(__file__).resolve().parents[1]
# Beside the code in an installed package, at the root of a checkout.
HOMES = (PACKAGE / "recipes", PACKAGE.parents[1] / "recipes")


@dataclass(frozen=True)
class Expected:
    """The figure that somebody published for a recipe.

    Attributes:
        metric: name of the figure, e.g. `voc07_ap50`.
        value: the figure, in percent.
        tolerance: how far from it a run may end, in percent points.
        source: who published it.
    """

    metric: str
    value: float
    tolerance: float
    source: str

    def judge(self, metrics: Mapping[str, float | None]) -> str:
        """Say in a sentence whether a run came within the tolerance."""
        wanted = f"{self.metric} {self.value:g} within {self.tolerance:g} ({self.source})"
        found = metrics.get(self.metric)
        if found is None:
            return f"The recipe expects {wanted}, but the run has no such figure."
        word = "reached" if abs(found - self.value) <= self.tolerance else "not reached"
        return f"The recipe expects {wanted}: {word}, with {found:.2f}."


def recipe_files() -> dict[str, Path]:
    """All recipes that come with the project, by name, e.g. `voc/defeat`; shared parts begin with `_` and are none."""
    home = next((folder for folder in HOMES if folder.is_dir()), None)
    if home is None:
        return {}
    files = sorted(file for file in home.rglob("*.yaml") if not file.name.startswith("_"))
    return {file.relative_to(home).with_suffix("").as_posix(): file for file in files}


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path, or a name that `recipe_files` lists.

    Raises:
        InputError: there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = recipe_files()
    if name in known:
        return known[name]
    if path.suffix or path.exists():
        raise InputError(f"--config {name} can't be read: there is no such file.")
    raise unknown_name("recipe", name, known)


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe, with what it extends.

    Raises:
        InputError: a file can't be read, does not hold settings, or extends itself.
    """
    return _read(path, ())


def _read(path: Path, extended_by: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in extended_by:
        raise InputError(f"{path} extends itself.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"--config {path} can't be read ({' '.join(str(error).split())}).") from error
    if not isinstance(content, dict):
        raise InputError(f"--config {path} does not hold settings.")
    bases = content.pop("extends", None) or []
    settings: dict[str, Any] = {}
    for base in bases if isinstance(bases, list) else [bases]:
        settings = merged(settings, _read(path.parent / str(base), (*extended_by, path.resolve())))
    return merged(settings, content)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with changes on top; settings within settings are merged, too."""
    result = dict(base)
    for name, value in changes.items():
        inner = result.get(name)
        result[name] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return result


def expected(found: Mapping[str, Any] | None) -> Expected | None:
    """The figure that stands under `expected` in a recipe or in settings, if one does.

    Raises:
        InputError: it is not complete.
    """
    if not found:
        return None
    try:
        return Expected(str(found["metric"]), float(found["value"]), float(found["tolerance"]), str(found["source"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"'expected' needs metric, value, tolerance and source; found {found}.") from error
