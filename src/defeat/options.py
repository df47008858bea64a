"""Options of the command line, derived from the signatures of typed functions and dataclasses."""

import inspect
import re
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from types import NoneType
from typing import Any, Literal, NoReturn, Unpack, get_args, get_origin, get_type_hints

from docstring_parser import parse

from defeat.errors import InputError, unknown_name
from defeat.option_values import alternatives, converted, is_list
from defeat.settings import field_docs
from defeat.settings import option as flag_of

POSITIONAL = {"run", "runs", "images", "network", "path", "checkpoint", "name", "repository"}
OPTIONAL = {"name"}  # may be left out
SEVERAL = {"runs", "images"}  # take one or more arguments
GROUPS = {"detector": "detector_options", "method": "method_options"}  # --GROUP.NAME -> setting with the values


@dataclass(frozen=True)
class Option:
    """An option of a command.

    Attributes:
        name: name of the setting, with underscores.
        kind: type.
        default: default value; MISSING for a required option.
        help: one line of help.
        group: of an option --GROUP.NAME, `detector`, `method` or the name of a method; else empty.
        section: title of its section in the help.
        hidden: whether the help omits it.
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
        """Its name on the command line."""
        return flag_of(f"{self.group}.{self.name}" if self.group else self.name)

    @property
    def positional(self) -> bool:
        """Whether it is a positional argument."""
        required = self.default is MISSING or self.name in OPTIONAL
        return self.name in POSITIONAL and required and not self.group

    @property
    def key(self) -> str:
        """Its destination in argparse."""
        return f"{self.group}.{self.name}"

    @property
    def shown(self) -> str:
        """Its name in messages."""
        return self.name.upper() if self.positional else self.flag


def options_of(source: Callable[..., Any], group: str = "", skip: Collection[str] = ()) -> list[Option]:
    """Options from the fields of a dataclass, or from the parameters of a function or class.

    Args:
        source: the dataclass, function or class; its docstrings provide the help.
        group: as in `Option`.
        skip: names to leave out.
    """
    section = f"{group} options" if group else "options"
    if is_dataclass(source):
        return [option for option in _field_options(source, group) if option.name not in skip]
    hints = get_type_hints(source.__init__ if inspect.isclass(source) else source)
    documented = {param.arg_name: param.description or "" for param in parse(inspect.getdoc(source) or "").params}
    options = []
    for name, parameter in inspect.signature(source).parameters.items():
        if name in skip:
            continue
        if parameter.kind is parameter.VAR_KEYWORD:
            options += _shared_options(source, hints.get(name), group, section)
            continue
        default = MISSING if parameter.default is parameter.empty else parameter.default
        text = " ".join(documented.get(name, "").split())
        options.append(Option(name, hints[name], default, text, group, section))
    return options


def _shared_options(source: Any, hint: Any, group: str, section: str) -> list[Option]:
    """Options that several methods share: `**options: Unpack[TYPED_DICT]`, with defaults in `source.shared`."""
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
    for param in parse(inspect.getdoc(kind) or "").params:
        documented.setdefault(param.arg_name, " ".join((param.description or "").split()))
    for entry in fields(kind):
        home = next(base for base in kind.__mro__ if entry.name in inspect.get_annotations(base))
        section = f"{group} options" if group else (inspect.getdoc(home) or "options").splitlines()[0].rstrip(".")
        default = entry.default if entry.default_factory is MISSING else entry.default_factory()
        hidden = entry.metadata.get("hidden", False)
        yield Option(entry.name, hints[entry.name], default, documented.get(entry.name, ""), group, section, hidden)


@dataclass
class Command:
    """A command and its options.

    Attributes:
        name: name of the command.
        description: one line of help.
        options: all of its options.
        recipes: whether it has --config.
    """

    name: str
    description: str = ""
    options: list[Option] = field(default_factory=list)
    recipes: bool = False

    def read(self, arguments: Sequence[str], recipe: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Parse arguments.

        Args:
            arguments: the arguments after the command.
            recipe: values of a file; arguments take precedence.

        Returns:
            Values by name; those of a group in a dict under its name. Only the group `detector` includes defaults.

        Raises:
            InputError: an option is unknown, missing or not valid; the message names it.
        """
        given, extras = self.parser().parse_known_args(list(arguments))
        for extra in extras:
            if extra.startswith("--"):
                flag = extra.partition("=")[0]
                raise unknown_name("option", flag, self._candidates(flag))
            raise InputError(f"Unexpected argument {extra!r}.")
        texts = vars(given)
        texts.pop("config", None)
        values = self._from_recipe(recipe or {})
        known = {option.key: option for option in self.options}
        for key, text in texts.items():
            several = isinstance(text, list) and len(text) != 1
            value = text if several or not isinstance(text, list) else text[0]
            values[key] = converted(value, known[key].kind, known[key].shown)
        missing = [option.shown for key, option in known.items() if option.default is MISSING and key not in values]
        if missing:
            raise InputError(f"Missing: {', '.join(missing)}.")
        return self._grouped(values)

    def parser(self) -> ArgumentParser:
        """A parser with its options, which prints its help."""
        parser = _Parser(
            prog=f"defeat {self.name}",
            usage=self._usage(),
            description=self.description,
            allow_abbrev=False,
            argument_default=SUPPRESS,
        )
        self._add_to(parser)
        return parser

    def peek(self, arguments: Sequence[str]) -> dict[str, str]:
        """The texts of its options among arguments that include others; the last text of an option given twice."""
        parser = _Parser(add_help=False, allow_abbrev=False, argument_default=SUPPRESS)
        for option in self.options:
            parser.add_argument(option.flag, dest=option.key, nargs="?", const="")
        return {key.removeprefix("."): text for key, text in vars(parser.parse_known_args(list(arguments))[0]).items()}

    def _add_to(self, parser: ArgumentParser) -> None:
        if self.recipes:
            text = "recipe or config.yaml, by path or name; it may set any option"
            parser.add_argument("--config", action="append", metavar="FILE", help=text)
        groups: dict[str, Any] = {"options": parser}
        for option in self.options:
            if option.positional:
                nargs = "*" if option.name in SEVERAL else "?"
                parser.add_argument(
                    option.key, nargs=nargs, metavar=_positional(option).strip("[]"), help=_escaped(option.help)
                )
                continue
            if option.section not in groups:
                groups[option.section] = parser.add_argument_group(option.section)
            more: dict[str, Any] = {"nargs": "?", "const": "true"} if option.kind is bool else {}
            if any(is_list(kind) for kind in alternatives(option.kind)):
                more["nargs"] = "+"
            more["help"] = SUPPRESS if option.hidden else _escaped(_help(option))
            groups[option.section].add_argument(option.flag, dest=option.key, metavar=_metavar(option.kind), **more)

    def _usage(self) -> str:
        parts = [_positional(option) for option in self.options if option.positional]
        required = [option for option in self.options if option.default is MISSING and not option.positional]
        parts += [f"{option.flag} {option.name.upper()}" for option in required]
        return " ".join(["defeat", self.name, *parts, "[OPTIONS]"])

    def _candidates(self, unknown: str) -> list[str]:
        """Valid options in place of an unknown one: those of its group, or all without a group."""
        flags = [option.flag for option in self.options if not option.positional and not option.hidden]
        flags += ["--config"] * self.recipes
        prefix = unknown.partition(".")[0] + "."
        same_group = [flag for flag in flags if "." in unknown and flag.startswith(prefix)]
        return same_group or [flag for flag in flags if "." not in flag] or flags

    def _from_recipe(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a recipe by key, converted as on the command line."""
        groups = {setting: group for group, setting in GROUPS.items()}
        flat: dict[str, Any] = {}
        for name, value in recipe.items():
            if name in groups and isinstance(value, Mapping):
                flat |= {key if "." in key else f"{groups[name]}.{key}": part for key, part in value.items()}
            else:
                flat[f".{name}"] = value
        known = {option.key: option for option in self.options}
        for key in flat:
            if key not in known:
                flag = flag_of(key.strip("."))
                raise unknown_name("option", flag, self._candidates(flag))
        return {key: converted(value, known[key].kind, known[key].shown) for key, value in flat.items()}

    def _grouped(self, values: Mapping[str, Any]) -> dict[str, Any]:
        grouped: dict[str, Any] = {}
        for option in self.options:
            if option.group == "detector":  # options of methods get their defaults when a run starts
                grouped.setdefault(GROUPS.get(option.group, option.group), {})[option.name] = option.default
        for key, value in values.items():
            group, _, name = key.partition(".")
            (grouped.setdefault(GROUPS.get(group, group), {}) if group else grouped)[name] = value
        return grouped


def config_files(arguments: Sequence[str]) -> list[str]:
    """The file of each --config among the arguments."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", action="append", default=[])
    files: list[str] = parser.parse_known_args(list(arguments))[0].config
    return files


class _Parser(ArgumentParser):
    """Raises InputError instead of exiting."""

    def error(self, message: str) -> NoReturn:
        raise InputError(re.sub(r"^argument (\S+?)(?:/\S+)?: ", r"\1: ", message).rstrip(".") + ".")


def _positional(option: Option) -> str:
    name = f"{option.name.upper()}{' ..' * (option.name in SEVERAL)}"
    return f"[{name}]" if option.name in OPTIONAL else name


def _help(option: Option) -> str:
    value = option.default
    if value in (MISSING, None, "", {}) or value == []:
        return option.help
    text = f"[{','.join(_short(part) for part in value)}]" if isinstance(value, list | tuple) else _short(value)
    return f"{option.help.rstrip('.')} (default: {text})"


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _metavar(kind: Any) -> str:
    kinds = [alternative for alternative in alternatives(kind) if alternative is not NoneType]
    choices = [
        choice for alternative in kinds if get_origin(alternative) is Literal for choice in get_args(alternative)
    ]
    if len(kinds) == 1 and choices:
        return "{" + ",".join(map(str, choices)) + "}"
    names = {int: "INT", float: "NUMBER", bool: "BOOL"}
    number = next((names[alternative] for alternative in kinds if alternative in names), None)
    return number or ("LIST" if is_list(kinds[0]) else "TEXT")
