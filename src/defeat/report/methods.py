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

# Time of a training step relative to that of the baseline, for RetinaNet and for Faster R-CNN (where it fits), as
# `python -m benchmarks.method_costs` measured it on a CPU with a teacher of twice the student's cost.
COSTS: dict[str, tuple[float | None, float | None]] = {
    "bckd": (1.31, None),
    "boxes": (1.32, 1.51),
    "classification": (1.34, 2.2),
    "crosskd": (1.4, None),
    "cwd": (1.24, 1.03),
    "defeat": (1.25, 1.06),
    "fgd": (1.28, 1.04),
    "fgfi": (1.26, 1.05),
    "imitation": (1.26, 1.03),
    "mgd": (1.28, 1.06),
    "pkd": (1.24, 1.02),
    "tadf": (1.25, 1.05),
}
LICENCE = (
    "All methods are implemented from their papers, under the licence of this package (Apache-2.0). Code that their "
    "authors published has its own licence, which is CC BY-NC 4.0 for crosskd."
)


def print_methods(console: Console) -> None:
    """Print each method with its summary, paper, the outputs that it reads, its cost, and its options with defaults."""
    for name, method in METHODS.items():
        console.print(Text(name, style="bold"), Text((getdoc(method) or "").splitlines()[0]))
        facts = _facts(method, name) | {"options": " ".join(_options(name))}
        for title, fact in facts.items():
            console.print(Padding(Text.assemble((f"{title}: ", "dim"), fact), (0, 0, 0, 4)))
        console.print()
    console.print(Text(LICENCE))


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
        items = ["- " + " ".join(item.split()) for item in paragraph.removeprefix("- ").split("\n- ")]
        text = "\n".join(items) if paragraph.startswith("- ") else " ".join(paragraph.split())
        console.print(Text(text), end="\n\n")
    for title, fact in _facts(method, name).items():
        console.print(Text.assemble((f"{title}: ", "dim"), fact))
    console.print()
    for flag, (default, text) in options.items():
        console.print(Text(f"{flag}={_text(default)}", style="bold"))
        console.print(Padding(Text(text), (0, 0, 0, 4)))


def _facts(method: type[Method], name: str) -> dict[str, str]:
    reads = ", ".join(FIELDS[field] for field in method.reads)
    facts = {"paper": method.paper, "reads": reads, "cost": _cost(name)}
    return {title: fact for title, fact in facts.items() if fact}


def _cost(name: str) -> str:
    """Time of a step relative to the baseline, in words; empty where it was not measured."""
    families = zip(("RetinaNet", "Faster R-CNN"), COSTS.get(name, (None, None)), strict=True)
    known = [f"{ratio:.2f} ({family})" for family, ratio in families if ratio is not None]
    return f"{', '.join(known)} times the step of the baseline" if known else ""


def _options(method: str) -> list[str]:
    """Options in the notation of the command line, with their defaults."""
    return [f"--method.{name.replace('_', '-')}={_text(value)}" for name, value in method_defaults(method).items()]


def _text(value: object) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else str(value).lower()
