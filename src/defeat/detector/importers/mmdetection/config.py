"""Configurations of MMDetection, as text: Python assignments of plain values, which are read without executing them."""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from defeat.errors import InputError, quoted


@dataclass(frozen=True)
class Config:
    """A configuration.

    Attributes:
        content: its values by name; empty where the checkpoint has none.
        origin: the checkpoint or the file, for messages.
    """

    content: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""

    @classmethod
    def of(cls, text: str, origin: str) -> "Config":
        """Read a configuration.

        Args:
            text: Python code; only assignments of numbers, texts, lists, tuples and dicts are read.
            origin: where it is from, for messages.

        Raises:
            InputError: it is not Python code.
        """
        try:
            module = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise InputError(f"The configuration of {origin} can't be read ({type(error).__name__}).") from error
        content: dict[str, Any] = {}
        for statement in module.body:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                content[statement.targets[0].id] = _value(statement.value, content)
        return cls(content, origin)

    def get(self, path: str, default: Any = None) -> Any:
        """The value at a path such as `model.neck.type`; the default where there is none."""
        value: Any = self.content
        for name in path.split("."):
            if not isinstance(value, Mapping) or name not in value:
                return default
            value = value[name]
        return default if value is None else value

    def first(self, *paths: str, default: Any = None) -> Any:
        """The value at the first of these paths that exists."""
        values = (self.get(path) for path in paths)
        return next((value for value in values if value is not None), default)

    def number(self, *paths: str, default: float) -> Any:
        """The number at the first of these paths that exists.

        Raises:
            InputError: it is no number.
        """
        value = self.first(*paths, default=default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{self.origin}: {paths[0]} of its configuration is {quoted(value)}, not a number.")
        return value

    def require(self, path: str, *valid: Any) -> None:
        """Refuse a value that our families can't have; a value that is missing is the default, and valid.

        Raises:
            InputError: the message names the value and the valid ones.
        """
        value = self.get(path)
        value = list(value) if isinstance(value, tuple) else value
        if value is not None and value not in valid:
            expected = " or ".join(map(str, valid))
            raise InputError(f"{self.origin}: {path} of its configuration is {quoted(value)}; only {expected} works.")

    def input_size(self) -> tuple[int, int] | None:
        """Short side and upper limit of the long side of a test image in pixels; None where they are not named."""
        for step in _steps(self.first("test_pipeline", "data.test.pipeline", "test_dataloader.dataset.pipeline")):
            sides = step.get("img_scale") or step.get("scale")
            if isinstance(sides, list | tuple) and len(sides) == 2 and all(type(side) is int for side in sides):
                return min(sides), max(sides)
        return None


def _steps(value: Any) -> Iterator[Mapping[str, Any]]:
    """All steps of a pipeline, also within others."""
    if isinstance(value, Mapping):
        yield value
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from _steps(part)


def _value(node: ast.expr, known: Mapping[str, Any]) -> Any:
    """A plain value; None for everything else."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item, known) for item in node.elts]
    if isinstance(node, ast.Dict):
        pairs = [(key, item) for key, item in zip(node.keys, node.values, strict=True) if isinstance(key, ast.Constant)]
        return {key.value: _value(item, known) for key, item in pairs}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {keyword.arg: _value(keyword.value, known) for keyword in node.keywords if keyword.arg}
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        number = _value(node.operand, known)
        return -number if isinstance(number, int | float) else None
    return None
