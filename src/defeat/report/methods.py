"""Prints the list of distillation methods."""

from inspect import getdoc

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from defeat.distillation import METHODS, method_defaults

# Fields of `DetectorOutput` in words.
FIELDS = {
    "neck": "feature maps of the neck",
    "backbone": "feature maps of the backbone",
    "proposals": "proposals (two-stage detectors)",
    "dense": "predictions at the same anchors or points (one-stage detectors)",
    "queries": "object queries (detection transformers)",
}


def print_methods(console: Console) -> None:
    """Print each method with its summary, paper, the outputs that it reads, and its options with defaults."""
    for name, method in METHODS.items():
        console.print(Text(name, style="bold"), Text((getdoc(method) or "").splitlines()[0]))
        facts = {
            "paper": method.paper,
            "reads": ", ".join(FIELDS[field] for field in method.reads),
            "options": " ".join(_options(name)),
        }
        for title, fact in facts.items():
            console.print(Padding(Text.assemble((f"{title}: ", "dim"), fact), (0, 0, 0, 4)))
        console.print()


def _options(method: str) -> list[str]:
    """Options in the notation of the command line, with their defaults."""
    return [f"--method.{name.replace('_', '-')}={_text(value)}" for name, value in method_defaults(method).items()]


def _text(value: object) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else str(value).lower()
