"""What a setting is: a field of a dataclass, with its docstring under it and a role that says what it is to a run.

The dataclasses themselves stand beside what they configure.
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
AUTO = "auto"  # of a setting whose value follows from data, teacher or devices


class Role(Enum):
    """What a setting is to a run that is resumed, and to the runs of a comparison."""

    LEARNING = "changes what is learned: equal in a resumed run and in all runs of a comparison"
    CELL = "tells the runs of a comparison apart: equal in a resumed run"
    SOURCE = "where data or a teacher lie, which are compared by their content: may differ on another machine"
    DEVICE = "where a run computes: equal in a resumed run, free in a comparison"
    OUTPUT = "what is written and shown, how often and where, and how fast: free everywhere"


def setting(
    *,
    default: Any = MISSING,
    factory: Any = MISSING,
    role: Role = Role.LEARNING,
    usual: Any = MISSING,
    compared: bool = True,
    hidden: bool = False,
) -> Any:
    """A field of a settings dataclass; its docstring follows it.

    Args:
        default: its value where none is given; without it the setting is required.
        factory: makes the default, where that is a list or a dict.
        role: what it is to resumed and compared runs.
        usual: what the default amounted to before it was `auto`, in files that do not name the setting.
        compared: whether two runs that differ in it are never held against each other; False where what came of it
            is compared instead.
        hidden: whether the command line does not show it.
    """
    metadata = {"role": role, "compared": compared, "hidden": hidden}
    if usual is not MISSING:
        metadata["usual"] = usual
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(setting,))
def settings_part(kind: type[Kind]) -> type[Kind]:
    """Make a class a dataclass of settings: frozen, with keywords alone."""
    return dataclass(frozen=True, kw_only=True)(kind)


def usual_value(one: Field[Any]) -> Any:
    """What a field amounts to where a file does not name it; MISSING for a required one."""
    if "usual" in one.metadata:
        return one.metadata["usual"]
    return one.default if one.default_factory is MISSING else one.default_factory()


def names_of(kind: Any, *roles: Role) -> list[str]:
    """Names of the settings of a dataclass that have one of these roles, in order."""
    return [one.name for one in fields(kind) if one.metadata.get("role", Role.LEARNING) in roles]


@cache
def field_docs(kind: type) -> dict[str, str]:
    """The docstring under each field of a dataclass and of those that it inherits from, by name, each in one line."""
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
    """How a setting is written on the command line."""
    return "--" + name.replace("_", "-")


def at_least(name: str, value: float | None, least: float, most: float | None = None) -> None:
    """Refuse a setting below or above what can work; None is none.

    Raises:
        InputError: naming it, the limit and the value.
    """
    if value is not None and not least <= value < float("inf"):
        raise InputError(f"{option(name)} must be {least} or more, not {value}.")
    if value is not None and most is not None and value > most:
        raise InputError(f"{option(name)} must be {most} or less, not {value}.")


class Checked:
    """A dataclass whose parts each check their own fields: every class on the way has a `check`, and all are called.

    Parts are combined by inheritance, so that settings stay flat on the command line and in YAML.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __post_init__(self) -> None:
        """Call the checks of all parts.

        Raises:
            InputError: naming the first setting that can't work, and its range.
        """
        for name, value in vars(self).items():
            if isinstance(value, str) and value == "":
                raise InputError(f"{option(name)} is empty.")
        for part in reversed(type(self).__mro__):
            if "check" in vars(part):
                part.check(self)  # type: ignore[attr-defined]

    def number(self, name: str) -> float:
        """The value of a setting; its usual number where it is `auto`."""
        value: Any = getattr(self, name)
        if value == AUTO:
            value = next(one for one in fields(self) if one.name == name).metadata["usual"]
        number: float = value
        return number
