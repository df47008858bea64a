"""Settings: fields of dataclasses, each with a docstring under it and a role that says how it affects a run.

The dataclasses are defined next to the code that they configure.
"""

import ast
import inspect
import textwrap
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import Enum
from functools import cache
from itertools import pairwise
from typing import Any, ClassVar, TypeVar, dataclass_transform

from defeat.errors import InputError

Kind = TypeVar("Kind")
AUTO = "auto"  # value of a setting that is derived from data, teacher or devices
PLUS = "+"  # joins names of methods
INHERIT = "+inherit"  # suffix of a method in a comparison whose student inherits weights of the teacher


class Role(Enum):
    """How resumed runs and compared runs treat a setting."""

    LEARNING = "affects learning: must be equal in a resumed run and in all runs of a comparison"
    CELL = "distinguishes the runs of a comparison: must be equal in a resumed run"
    SOURCE = "location of data or a teacher, which are compared by content: may differ between machines"
    DEVICE = "the device of a run: must be equal in a resumed run, may differ in a comparison"
    OUTPUT = "output and speed: may always differ"


def setting(
    *,
    default: Any = MISSING,
    factory: Any = MISSING,
    role: Role = Role.LEARNING,
    usual: Any = MISSING,
    compared: bool = True,
    hidden: bool = False,
) -> Any:
    """Define a field of a settings dataclass; its docstring follows it.

    Args:
        default: default value; without one the setting is required.
        factory: creates the default if that is a list or a dict.
        role: how resumed and compared runs treat it.
        usual: value of an `auto` setting in files that do not name it, and wherever a number is needed.
        compared: whether a comparison requires it to be equal; False if its effect is compared instead.
        hidden: whether the command line omits it.
    """
    metadata = {"role": role, "compared": compared, "hidden": hidden}
    if usual is not MISSING:
        metadata["usual"] = usual
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(setting,))
def settings_part(kind: type[Kind]) -> type[Kind]:
    """Make a class a dataclass of settings: frozen, with keyword-only arguments."""
    return dataclass(frozen=True, kw_only=True)(kind)


def usual_value(entry: Field[Any]) -> Any:
    """Value of a setting in files that do not name it; MISSING for a required setting."""
    if "usual" in entry.metadata:
        return entry.metadata["usual"]
    return entry.default if entry.default_factory is MISSING else entry.default_factory()


def names_of(kind: Any, *roles: Role) -> list[str]:
    """Names of the settings of a dataclass that have one of these roles, in order."""
    return [entry.name for entry in fields(kind) if entry.metadata.get("role", Role.LEARNING) in roles]


@cache
def field_docs(kind: type) -> dict[str, str]:
    """Docstrings of the fields of a dataclass and its base classes by name, each on one line."""
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError):  # an installation without sources
            continue
        body = next((node.body for node in tree.body if isinstance(node, ast.ClassDef)), [])
        for pair in pairwise(body):
            match pair:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    docs[name] = " ".join(text.split())
    return docs


def option(name: str) -> str:
    """Name of a setting on the command line."""
    return "--" + name.replace("_", "-")


def at_least(name: str, value: float | None, least: float, most: float | None = None) -> None:
    """Refuse a setting outside its range; None is accepted.

    Raises:
        InputError: the message names the setting, the limit and the value.
    """
    if value is not None and not least <= value < float("inf"):
        raise InputError(f"{option(name)} must be {least} or more, not {value}.")
    if value is not None and most is not None and value > most:
        raise InputError(f"{option(name)} must be {most} or less, not {value}.")


class Checked:
    """Base of settings dataclasses: calls the `check` of every base class that defines one.

    Parts are combined by inheritance, so that settings stay flat on the command line and in YAML.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __post_init__(self) -> None:
        """Call the checks of all parts.

        Raises:
            InputError: the message names the first invalid setting and its range.
        """
        for name, value in vars(self).items():
            if isinstance(value, str) and value == "":
                raise InputError(f"{option(name)} is empty.")
        for part in reversed(type(self).__mro__):
            if "check" in vars(part):
                part.check(self)  # type: ignore[attr-defined]

    def number(self, name: str) -> float:
        """Value of a setting; its usual value if it is `auto`."""
        value: Any = getattr(self, name)
        if value == AUTO:
            value = next(entry for entry in fields(self) if entry.name == name).metadata["usual"]
        number: float = value
        return number
