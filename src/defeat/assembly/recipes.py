"""Recipes: complete settings as YAML, with the figure that a run should reach.

`extends: FILE` (a path relative to the recipe, or a list) takes the settings of other files; later files and the recipe
itself override earlier ones.
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
    """The published figure of a recipe.

    Attributes:
        metric: name of the figure, e.g. `voc07_ap50`.
        value: the figure, in percent.
        tolerance: accepted distance from it, in percentage points.
        source: where it was published.
    """

    metric: str
    value: float
    tolerance: float
    source: str

    def judge(self, metrics: Mapping[str, float | None]) -> str:
        """Whether a run is within the tolerance, as a sentence."""
        expectation = f"{self.metric} {self.value:g} within {self.tolerance:g} ({self.source})"
        value = metrics.get(self.metric)
        if value is None:
            return f"The recipe expects {expectation}, but the run has no such figure."
        outcome = "reached" if abs(value - self.value) <= self.tolerance else "not reached"
        return f"The recipe expects {expectation}: {outcome}, with {value:.2f}."


def recipe_files() -> dict[str, Path]:
    """All recipes of the project by name, such as `voc/defeat`; files that begin with `_` are shared parts."""
    home = next((folder for folder in HOMES if folder.is_dir()), None)
    if home is None:
        return {}
    files = sorted(file for file in home.rglob("*.yaml") if not file.name.startswith("_"))
    return {file.relative_to(home).with_suffix("").as_posix(): file for file in files}


def find_recipe(name: str) -> Path:
    """Find the file of a recipe, given its path or a name that `recipe_files` lists.

    Raises:
        InputError: it doesn't exist.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = recipe_files()
    if name in known:
        return known[name]
    if path.suffix or path.exists():
        raise InputError(f"--config {name} does not exist.")
    raise unknown_name("recipe", name, known)


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe with everything that it extends.

    Raises:
        InputError: a file can't be read, does not contain settings, or extends itself.
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
        raise InputError(f"--config {path} does not contain settings.")
    bases = content.pop("extends", None) or []
    settings: dict[str, Any] = {}
    for base in bases if isinstance(bases, list) else [bases]:
        settings = merged(settings, _read(path.parent / str(base), (*extended_by, path.resolve())))
    return merged(settings, content)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two dicts of settings recursively; the second wins."""
    result = dict(base)
    for name, value in changes.items():
        inner = result.get(name)
        result[name] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return result


def expected(content: Mapping[str, Any] | None) -> Expected | None:
    """Read the field `expected` of a recipe or of settings; None where it is empty.

    Raises:
        InputError: it is not complete.
    """
    if not content:
        return None
    try:
        numbers = float(content["value"]), float(content["tolerance"])
        return Expected(str(content["metric"]), *numbers, str(content["source"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"'expected' needs metric, value, tolerance and source, not {content}.") from error
