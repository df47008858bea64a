"""Prints the list of distillation methods."""

from collections.abc import Mapping
from inspect import getdoc

from docstring_parser import parse
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from defeat.distillation import METHODS, Method, find_method, method_defaults

# Fields of `DetectorOutput` in words.
FIELDS = {
    "neck": "feature maps of the neck",
    "backbone": "feature maps of the backbone",
    "proposals": "proposals (two-stage detectors)",
    "dense": "predictions at the same anchors or points (one-stage detectors)",
    "towers": "feature maps inside heads with towers of convolutions",
    "queries": "object queries (detection transformers)",
    "detections": "the teacher's final boxes",
}


def print_methods(console: Console) -> None:
    """Print each method with its summary, paper, the outputs that it reads, and its options with defaults."""
    for name, method in METHODS.items():
        console.print(Text(name, style="bold"), Text((getdoc(method) or "").splitlines()[0]))
        facts = _facts(method) | {"options": " ".join(_options(name))}
        for title, fact in facts.items():
            console.print(Padding(Text.assemble((f"{title}: ", "dim"), fact), (0, 0, 0, 4)))
        console.print()


def print_method(name: str, options: Mapping[str, tuple[object, str]], console: Console) -> None:
    """Print the whole description of a method, and its options one per line.

    Args:
        name: the method.
        options: default and help of each option by its flag.
        console: where to print.
    """
    method = find_method(name)
    described = parse(getdoc(method) or "")
    paragraphs = f"{described.short_description}\n\n{described.long_description or ''}".strip().split("\n\n")
    console.print(Text(name, style="bold"))
    for paragraph in paragraphs:
        console.print(Text(paragraph if paragraph.startswith("- ") else " ".join(paragraph.split())), end="\n\n")
    for title, fact in _facts(method).items():
        console.print(Text.assemble((f"{title}: ", "dim"), fact))
    console.print()
    for flag, (default, text) in options.items():
        console.print(Text(f"{flag}={_text(default)}", style="bold"))
        console.print(Padding(Text(text), (0, 0, 0, 4)))


def _facts(method: type[Method]) -> dict[str, str]:
    reads = ", ".join(FIELDS[field] for field in method.reads)
    return {"paper": method.paper, "reads": reads} if reads else {"paper": method.paper}


def _options(method: str) -> list[str]:
    """Options in the notation of the command line, with their defaults."""
    return [f"--method.{name.replace('_', '-')}={_text(value)}" for name, value in method_defaults(method).items()]


def _text(value: object) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else str(value).lower()
