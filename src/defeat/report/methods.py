"""What the distillation methods are, for people who choose one."""

from inspect import getdoc

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from defeat.distillation import METHODS, method_defaults

# What the fields of a `DetectorOutput` are called outside the code.
FIELDS = {
    "neck": "neck maps",
    "backbone": "backbone maps",
    "proposals": "proposals (two-stage detectors)",
    "dense": "predictions at the same anchors (one-stage detectors)",
}


def print_methods(console: Console) -> None:
    """Print a paragraph for each method: what it does, paper, what it reads of both detectors, options and defaults."""
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
    """Options as they are written on the command line, with their defaults."""
    return [f"--method.{name.replace('_', '-')}={_written(value)}" for name, value in method_defaults(method).items()]


def _written(value: object) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else str(value).lower()
