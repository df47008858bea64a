"""Options of the command line, made from typed functions and dataclasses; one sentence for a mistake."""

import inspect
import re
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, Unpack, get_args, get_origin, get_type_hints

import yaml
from docstring_parser import parse

from defeat.errors import InputError, unknown_name
from defeat.settings import field_docs, option

POSITIONAL = {"run", "runs", "images", "network"}
SEVERAL = {"runs", "images"}  # as many as there are words
GROUPS = {"detector": "detector_options", "method": "method_options"}  # --GROUP.NAME -> where the values go


@dataclass(frozen=True)
class Option:
    """An option of a command.

    Attributes:
        name: of the setting, with underscores.
        kind: its type.
        default: its value where it is not given; MISSING for one that is required.
        help: what it means, in a line.
        group: `detector`, `method` or the name of a method, of an option that is written --GROUP.NAME; else empty.
        section: under which title the help shows it.
        hidden: whether the help does not show it.
    """

    name: str
    kind: Any
    default: Any = MISSING
    help: str = ""
    group: str = ""
    section: str = "options"
    hidden: bool = False

    @property
    def flag(self) -> str:
        """How it is written on the command line."""
        return option(f"{self.group}.{self.name}" if self.group else self.name)

    @property
    def positional(self) -> bool:
        """Whether it is written without its name."""
        return self.name in POSITIONAL and not self.group

    @property
    def key(self) -> str:
        """Where argparse keeps its text."""
        return f"{self.group}.{self.name}"

    @property
    def shown(self) -> str:
        """How messages call it."""
        return self.name.upper() if self.positional else self.flag


def options_of(source: Callable[..., Any], group: str = "", skip: Collection[str] = ()) -> list[Option]:
    """Options from the fields of a dataclass, or from the parameters of a function or class.

    Args:
        source: the dataclass, function or class; its docstrings say what the options mean.
        group: as in `Option`.
        skip: names to leave out.
    """
    section = f"{group} options" if group else "options"
    if is_dataclass(source):
        return [one for one in _field_options(source, group) if one.name not in skip]
    hints = get_type_hints(source.__init__ if inspect.isclass(source) else source)
    documented = {one.arg_name: one.description or "" for one in parse(inspect.getdoc(source) or "").params}
    found = []
    for name, parameter in inspect.signature(source).parameters.items():
        if name in skip:
            continue
        if parameter.kind is parameter.VAR_KEYWORD:
            found += _shared_options(source, hints.get(name), group, section)
            continue
        default = MISSING if parameter.default is parameter.empty else parameter.default
        text = " ".join(documented.get(name, "").split())
        found.append(Option(name, hints[name], default, text, group, section))
    return found


def _shared_options(source: Any, hint: Any, group: str, section: str) -> list[Option]:
    """The options that several methods share: `**options: Unpack[a TypedDict]`, with defaults in `source.shared`."""
    if get_origin(hint) is not Unpack:
        return []
    (kind,) = get_args(hint)
    documented = field_docs(kind)
    return [
        Option(name, part, source.shared[name], documented.get(name, ""), group, section)
        for name, part in get_type_hints(kind).items()
    ]


def _field_options(kind: Any, group: str) -> Iterable[Option]:
    hints, documented = get_type_hints(kind), dict(field_docs(kind))
    for described in parse(inspect.getdoc(kind) or "").params:
        documented.setdefault(described.arg_name, " ".join((described.description or "").split()))
    for one in fields(kind):
        home = next(base for base in kind.__mro__ if one.name in inspect.get_annotations(base))
        section = f"{group} options" if group else (inspect.getdoc(home) or "options").splitlines()[0].rstrip(".")
        default = one.default if one.default_factory is MISSING else one.default_factory()
        hidden = one.metadata.get("hidden", False)
        yield Option(one.name, hints[one.name], default, documented.get(one.name, ""), group, section, hidden)


@dataclass
class Command:
    """Reads the options of a command.

    Attributes:
        name: of the command.
        description: what it does, in a line.
        options: all that it has.
        recipes: whether it takes --config.
    """

    name: str
    description: str = ""
    options: list[Option] = field(default_factory=list)
    recipes: bool = False

    def read(self, words: Sequence[str], recipe: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Turn words into values.

        Args:
            words: what stands behind the command.
            recipe: values of a file; those of the words win.

        Returns:
            Values by name; those of a group in a dict of their own, with defaults for what is not given, and nothing
        other options that are not given.

        Raises:
            InputError: an option is unknown, missing or not valid; one sentence that names it.
        """
        parser = _Parser(
            prog=f"defeat {self.name}",
            usage=self._usage(),
            description=self.description,
            allow_abbrev=False,
            argument_default=SUPPRESS,
        )
        self._add_to(parser)
        given, extras = parser.parse_known_args(list(words))
        for word in extras:
            if word.startswith("--"):
                flag = word.partition("=")[0]
                raise unknown_name("option", flag, self._beside(flag))
            raise InputError(f"Unexpected argument {word!r}.")
        texts = vars(given)
        texts.pop("config", None)
        values = self._from_recipe(recipe or {})
        known = {one.key: one for one in self.options}
        for key, text in texts.items():
            several = isinstance(text, list) and len(text) != 1
            value = text if several or not isinstance(text, list) else text[0]
            values[key] = converted(value, known[key].kind, known[key].shown)
        missing = [one.shown for one in self.options if one.default is MISSING and one.key not in values]
        if missing:
            raise InputError(f"Missing: {', '.join(missing)}.")
        return self._grouped(values)

    def first_look(self, words: Sequence[str]) -> dict[str, str]:
        """The texts of its options, whatever else stands among the words; the last one where it is given twice."""
        parser = _Parser(add_help=False, allow_abbrev=False, argument_default=SUPPRESS)
        for one in self.options:
            parser.add_argument(one.flag, dest=one.key, nargs="?", const="")
        return {key.removeprefix("."): text for key, text in vars(parser.parse_known_args(list(words))[0]).items()}

    def _add_to(self, parser: ArgumentParser) -> None:
        if self.recipes:
            text = "recipe or config.yaml, by path or name; every option can stand in it"
            parser.add_argument("--config", action="append", metavar="FILE", help=text)
        groups: dict[str, Any] = {"options": parser}
        for one in self.options:
            if one.positional:
                several = one.name in SEVERAL
                metavar = f"{one.name.upper()}{' ..' * several}"
                parser.add_argument(one.key, nargs="*" if several else "?", metavar=metavar, help=_escaped(one.help))
                continue
            if one.section not in groups:
                groups[one.section] = parser.add_argument_group(one.section)
            more: dict[str, Any] = {"nargs": "?", "const": "true"} if one.kind is bool else {}
            if any(_is_list(part) for part in _parts(one.kind)):
                more["nargs"] = "+"
            text = SUPPRESS if one.hidden else _escaped(_help(one))
            groups[one.section].add_argument(one.flag, dest=one.key, metavar=_metavar(one.kind), help=text, **more)

    def _usage(self) -> str:
        words = [f"{one.name.upper()}{' ..' * (one.name in SEVERAL)}" for one in self.options if one.positional]
        required = [one for one in self.options if one.default is MISSING and not one.positional]
        words += [f"{one.flag} {one.name.upper()}" for one in required]
        return " ".join(["defeat", self.name, *words, "[OPTIONS]"])

    def _beside(self, flag: str) -> list[str]:
        """The options that stand beside one that is not known: those of its group, or all without a group."""
        flags = [one.flag for one in self.options if not one.positional and not one.hidden]
        flags += ["--config"] * self.recipes
        prefix = flag.partition(".")[0] + "."
        beside = [one for one in flags if "." in flag and one.startswith(prefix)]
        return beside or [one for one in flags if "." not in one] or flags

    def _from_recipe(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a recipe by key, each converted as if it stood on the command line."""
        inner = {store: group for group, store in GROUPS.items()}
        flat: dict[str, Any] = {}
        for name, value in recipe.items():
            if name in inner and isinstance(value, Mapping):
                flat |= {f"{inner[name]}.{key}": one for key, one in value.items()}
            else:
                flat[f".{name}"] = value
        known = {one.key: one for one in self.options}
        for key in flat:
            if key not in known:
                flag = option(key.strip("."))
                raise unknown_name("option", flag, self._beside(flag))
        return {key: converted(value, known[key].kind, known[key].shown) for key, value in flat.items()}

    def _grouped(self, values: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for one in self.options:
            if one.group:  # complete, so that a file made of it means the same when defaults have changed
                found.setdefault(GROUPS.get(one.group, one.group), {})[one.name] = one.default
        for key, value in values.items():
            group, _, name = key.partition(".")
            (found[GROUPS.get(group, group)] if group else found)[name] = value
        return found


def config_files(words: Sequence[str]) -> list[str]:
    """What stands behind each --config among the words."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", action="append", default=[])
    files: list[str] = parser.parse_known_args(list(words))[0].config
    return files


class _Parser(ArgumentParser):
    """Raises instead of leaving the program."""

    def error(self, message: str) -> NoReturn:
        raise InputError(re.sub(r"^argument (\S+?)(?:/\S+)?: ", r"\1: ", message).rstrip(".") + ".")


def _help(one: Option) -> str:
    if one.default in (MISSING, None, "", {}) or one.default == []:
        return one.help
    value = one.default
    text = f"[{','.join(_short(part) for part in value)}]" if isinstance(value, list | tuple) else _short(value)
    return f"{one.help.rstrip('.')} (default: {text})"


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _metavar(kind: Any) -> str:
    parts = [part for part in _parts(kind) if part is not NoneType]
    names = [name for part in parts if get_origin(part) is Literal for name in get_args(part)]
    if len(parts) == 1 and names:
        return "{" + ",".join(map(str, names)) + "}"
    shown = {int: "INT", float: "NUMBER", bool: "BOOL"}
    return next((shown[part] for part in parts if part in shown), "LIST" if _is_list(parts[0]) else "TEXT")


def _is_list(kind: Any) -> bool:
    return get_origin(kind) in (list, tuple)


def _parts(kind: Any) -> list[Any]:
    """The alternatives of a type; texts come last, because everything is one."""
    parts = list(get_args(kind)) if get_origin(kind) in (Union, UnionType) else [kind]
    return sorted(parts, key=lambda part: part in (str, Path))


def converted(value: Any, kind: Any, flag: str) -> Any:
    """A value of a type from a text of the command line, or from what a file holds.

    Args:
        value: the text, or a value of YAML.
        kind: the type, of which unions are tried part by part.
        flag: how messages call it.

    Raises:
        InputError: it is no such value.
    """
    for part in _parts(kind):
        try:
            return _READERS.get(get_origin(part) or part, _plain)(value, part)
        except (ValueError, TypeError, yaml.YAMLError):
            continue
    expected = " or ".join(_described(part) for part in _parts(kind))
    raise InputError(f"{flag}: {value!r} is not valid (expected {expected}).")


def _described(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    names = {NoneType: "null", str: "text", Path: "path", int: "integer", float: "number", bool: "true or false"}
    if _is_list(kind):
        return f"list of {_described(get_args(kind)[0])}"
    return names.get(kind, "map" if get_origin(kind) is dict else str(kind))


def _one_of(value: Any, kind: Any) -> Any:
    if value not in get_args(kind):
        raise ValueError
    return value


def _nothing(value: Any, _: Any) -> None:
    if value is not None and value not in ("null", "~"):
        raise ValueError


def _bool(value: Any, _: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = _text(value).lower()
    return word == "true" if word in ("true", "false") else _no()


def _no() -> NoReturn:
    raise ValueError


def _int(value: Any, _: Any) -> int:
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"[+-]?\d{1,4000}", value.strip()) else _no()
    return value if type(value) is int else _no()


def _float(value: Any, _: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError
    return float(value)


def _text(value: Any, _: Any = None) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError
    return str(value)


def _path(value: Any, _: Any) -> Path:
    return Path(_text(value))


def _list(value: Any, kind: Any) -> Any:
    """A list: `[a, b]`, or several words; names may also stand between commas."""
    inner = get_args(kind)[0]
    if isinstance(value, str):
        named = inner is str or get_origin(inner) is Literal
        value = value.split(",") if named and value[:1] not in ("[", "{") else yaml.safe_load(value)
    if not isinstance(value, list | tuple) or (inner is str and not all(isinstance(one, str) for one in value)):
        raise ValueError
    try:
        made = [converted(one, inner, "") for one in value]
    except InputError as error:
        raise ValueError from error
    return tuple(made) if get_origin(kind) is tuple else made


def _dict(value: Any, _: Any) -> dict[str, Any]:
    if isinstance(value, str):
        value = yaml.safe_load(value) if value.lstrip().startswith("{") else None
    return value if isinstance(value, dict) else _no()


def _plain(value: Any, _: Any) -> Any:
    return value


_READERS: dict[Any, Callable[[Any, Any], Any]] = {
    Literal: _one_of,
    NoneType: _nothing,
    bool: _bool,
    int: _int,
    float: _float,
    str: _text,
    Path: _path,
    list: _list,
    tuple: _list,
    dict: _dict,
}
