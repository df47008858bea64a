"""Taps, the outputs of a network that are feature maps: their notation, reading them by forward hooks, finding them.

A tap is written `NAME`, `NAME:CALL`, `NAME[KEY]` or `NAME:CALL[KEY][KEY]`:

- `NAME` is a submodule as in `named_modules`, such as `layer2.0`; it is empty for the output of the network.
- `:CALL` is the index of the call if the module runs several times: `head.conv:2` is the third call.
- `[KEY]` is an index or key of a tuple, list or dict: `backbone.fpn[pool]`, `[features][3]`.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from defeat.errors import InputError, unknown_name

Layout = Literal["maps", "channels_last", "tokens"]
Takes = Literal["tensor", "list"]
Size = tuple[int, int]  # height and width
Result = TypeVar("Result")

TAP = re.compile(r"(?P<name>[^:\[\]]*)(?::(?P<call>\d+))?(?P<keys>(?:\[[^\[\]]+\])*)")
TOKEN_STRIDES = (4, 8, 16, 32, 14)  # strides that a candidate with tokens can have; the first has precedence
MAX_PREFIX_TOKENS = 8  # class and register tokens that a candidate can have
MAX_DEPTH = 3  # levels of nested tuples and dicts that are searched
MAX_REASON_LENGTH = 160  # characters


@dataclass(frozen=True)
class Tap:
    """An output of a network that is a feature map.

    Attributes:
        name: name of the submodule; empty for the network itself.
        call: index of its call in a forward pass; None if it is called once.
        keys: indices or keys that lead from its output to the feature map.
        layout: `maps` (B, C, H, W), `channels_last` (B, H, W, C) or `tokens` (B, N, C).
        prefix_tokens: number of tokens before that of the first cell, such as a class token.
    """

    name: str
    call: int | None = None
    keys: tuple[str, ...] = ()
    layout: Layout = "maps"
    prefix_tokens: int = 0

    @classmethod
    def parse(cls, text: str, layout: Layout = "maps", prefix_tokens: int = 0) -> "Tap":
        """Parse a tap such as `head.conv:2` or `backbone.fpn[pool]`.

        Raises:
            InputError: invalid notation.
        """
        parts = TAP.fullmatch(text)
        if parts is None:
            raise InputError(f"{text!r} is not a tap: write NAME, NAME:CALL, NAME[KEY] or NAME:CALL[KEY].")
        call = None if parts["call"] is None else int(parts["call"])
        return cls(parts["name"], call, tuple(re.findall(r"\[([^\[\]]+)\]", parts["keys"])), layout, prefix_tokens)

    def __str__(self) -> str:
        call = "" if self.call is None else f":{self.call}"
        return f"{self.name}{call}{''.join(f'[{key}]' for key in self.keys)}"

    def read(self, output: Any) -> Tensor:
        """Get the feature map from the output of the submodule.

        Raises:
            InputError: the output does not contain it.
        """
        for key in self.keys:
            valid = _items(output)
            if key not in valid:
                raise unknown_name(f"key of the output of {self.name!r}", key, valid)
            output = valid[key]
        if not isinstance(output, Tensor):
            parts = ", ".join(f"'{self}[{key}]'" for key in _items(output)) or "none"
            actual = type(output).__name__
            raise InputError(f"The output of '{self}' is a {actual}, not a feature map. Its parts: {parts}.")
        return output


class Recorder:
    """A forward hook that records the feature map of a tap.

    It records a copy, because a following in-place layer may overwrite the output, and in float32, because the network
    may run under autocast. It has no reference to a module, so that copies and pickles of a network include it.
    """

    def __init__(self, tap: Tap) -> None:
        self.tap, self.active, self.calls = tap, False, 0
        self.maps: list[Tensor] = []

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Record a call of the submodule."""
        if self.active:
            if self.tap.call is None or self.tap.call == self.calls:
                self.maps.append(self.tap.read(output).detach().to(torch.float32, copy=True))
            self.calls += 1

    def start(self) -> None:
        """Clear all records and start recording."""
        self.active, self.calls, self.maps = True, 0, []

    def stop(self) -> None:
        """Stop recording and clear all records."""
        self.active, self.calls, self.maps = False, 0, []

    def only_map(self) -> Tensor:
        """Get the recorded feature map.

        Raises:
            InputError: none or several were recorded.
        """
        if len(self.maps) == 1:
            return self.maps[0]
        if not self.calls:
            raise InputError(
                f"The module {self.tap.name!r} did not run, or its network was compiled and called before: create the "
                "TappedTeacher before the first call, or from the uncompiled network."
            )
        last = self.calls - 1
        if self.tap.call is None:
            example = replace(self.tap, call=last)
            raise InputError(f"'{self.tap}' runs {self.calls} times: choose a call from 0 to {last}, e.g. '{example}'.")
        raise InputError(f"'{self.tap}': the module runs {self.calls} times; choose a call from 0 to {last}.")


@dataclass(frozen=True)
class Candidate:
    """An output of a network that can be a tap.

    Attributes:
        name: notation of the tap.
        shape: shape of the output for one image.
        stride: pixels of the image per cell.
        layout: `maps`, `channels_last` or `tokens`.
        prefix_tokens: number of tokens before that of the first cell, for the layout `tokens`.
    """

    name: str
    shape: tuple[int, ...]
    stride: int
    layout: Layout
    prefix_tokens: int = 0

    def __str__(self) -> str:
        options = {
            "maps": "",
            "channels_last": " with channels_last=True",
            "tokens": f" with tokens={self.prefix_tokens}",
        }
        return f"'{self.name}' {self.shape}{options[self.layout]}"


class ShapeRecorder:
    """A forward hook that records the shapes of all output tensors of a submodule."""

    def __init__(self, name: str, outputs: list[tuple[str, dict[str, tuple[int, ...]]]]) -> None:
        self.name, self.outputs = name, outputs

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Record one call."""
        self.outputs.append((self.name, dict(_shapes(output))))


def candidate_taps(
    module: nn.Module,
    size: Size = (256, 256),
    takes: Takes | None = None,
    preprocess: Callable[[Tensor], Tensor] | None = None,
) -> list[Candidate]:
    """List the outputs of a network and its submodules that look like feature maps, in the order of computation.

    Outputs of a single cell are omitted. If height and width differ, layouts are not confused.

    Args:
        module: a network whose input is (1, 3, H, W), or a list of (3, H, W).
        size: height and width in pixels of the black image used as input.
        takes: `tensor` or `list`; None to detect it.
        preprocess: converts (1, 3, H, W) float32 in 0..1 to the input of the network.

    Raises:
        InputError: the network fails to run.
    """
    images = torch.zeros(1, 3, *size, device=device_of(module))
    images = images if preprocess is None else preprocess(images)
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        return first_working_form(
            module,
            images,
            takes,
            lambda form: traced_candidates(module, images if form == "tensor" else list(images), size),
        )
    finally:
        for part, mode in modes.items():
            part.training = mode


@torch.no_grad()
def traced_candidates(module: nn.Module, inputs: Tensor | list[Tensor], image: Size) -> list[Candidate]:
    """Find the candidates among the outputs of a forward pass of one image.

    Args:
        module: network in eval mode.
        inputs: its input.
        image: height and width of the image in pixels.
    """
    outputs: list[tuple[str, dict[str, tuple[int, ...]]]] = []
    first = {id(part): name for name, part in reversed(submodules(module).items())}
    handles = [
        part.register_forward_hook(ShapeRecorder(name, outputs))
        for name, part in submodules(module).items()
        if name and first[id(part)] == name
    ]
    try:
        with force_eager(module):
            outputs.append(("", dict(_shapes(module(inputs)))))
    finally:
        for handle in handles:
            handle.remove()
    runs, calls, candidates = Counter(name for name, _ in outputs), Counter[str](), []
    for name, shapes in outputs:
        call = f":{calls[name]}" if runs[name] > 1 else ""
        calls[name] += 1
        for keys, shape in shapes.items():
            candidates += [Candidate(f"{name}{call}{keys}", shape, *layout) for layout in _layouts(shape, image)]
    return candidates


def first_working_form(
    module: nn.Module, images: Tensor, takes: Takes | None, attempt: Callable[[Takes], Result]
) -> Result:
    """Run a network with a tensor or a list of images, whichever works first, and return the result.

    Args:
        module: the network.
        images: (1, 3, H, W), for the message.
        takes: form of the input; None to try both.
        attempt: runs the network with a form of the input.

    Raises:
        InputError: the network fails with both.
    """
    forms: tuple[Takes, ...] = ("list", "tensor") if is_torchvision_detector(module) else ("tensor", "list")
    failures = []
    for form in (takes,) if takes else forms:
        try:
            return attempt(form)
        except InputError:
            raise
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:MAX_REASON_LENGTH]
            shape = tuple(images.shape) if form == "tensor" else tuple(images.shape[1:])
            failures.append(f"with a {'tensor' if form == 'tensor' else 'list of one tensor'} {shape}: {reason}")
    raise InputError(
        f"{class_name(module)} does not run {'; nor '.join(failures)}. Give the part of it whose input is images, an "
        "image size that it accepts, or a preprocess that creates its input."
    )


def submodules(module: nn.Module) -> dict[str, nn.Module]:
    """All submodules by name, without the prefixes that `torch.compile` adds."""
    named: dict[str, nn.Module] = {}
    for name, part in module.named_modules(remove_duplicate=False):
        named.setdefault(".".join(step for step in name.split(".") if step != "_orig_mod"), part)
    return named


def resolve_tap(tap: str | Tap, module: nn.Module, layout: Layout, prefix_tokens: int) -> Tap:
    """Parse a tap given as text, and check that its submodule exists.

    Raises:
        InputError: invalid notation or unknown submodule.
    """
    tap = tap if isinstance(tap, Tap) else Tap.parse(tap, layout, prefix_tokens)
    modules = submodules(module)
    if tap.name not in modules:
        near = get_close_matches(tap.name, modules, n=5) or [name for name, _ in module.named_children()]
        raise InputError(
            f"{unknown_name('module', tap.name, near)} These are the nearest; candidate_taps lists all feature maps."
        )
    return tap


def is_compiled(module: nn.Module) -> bool:
    """Whether any part of a network is compiled by torch."""
    parts = module.modules()
    return any("_orig_mod" in part._modules or part._compiled_call_impl is not None for part in parts)


def force_eager(module: nn.Module) -> AbstractContextManager[Any]:
    """Run a network without compiling it."""
    return torch.compiler.set_stance("force_eager") if is_compiled(module) else nullcontext()


def is_torchvision_detector(module: nn.Module) -> bool:
    """Whether a network is a detector of torchvision, whose input is a list and which resizes and normalises it."""
    return isinstance(getattr(module, "transform", None), GeneralizedRCNNTransform)


def class_name(module: nn.Module) -> str:
    """Name of a network's class."""
    return type(getattr(module, "_orig_mod", module)).__name__


def device_of(module: nn.Module) -> torch.device:
    """Device of a network's parameters and buffers."""
    tensors = (tensor for part in (module.parameters(), module.buffers()) for tensor in part)
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def cells(side: int, stride: int) -> int:
    """Number of cells along a side of an image, including a partial one."""
    return -(-side // stride)


def has_stride(shape: Sequence[int], image: Size, stride: int) -> bool:
    """Whether a feature map of this height and width has a stride; a partial cell may be missing."""
    sides = zip(shape, image, strict=True)
    return all(max(1, side // stride) <= count <= cells(side, stride) for count, side in sides)


def stride_of(shape: Sequence[int], image: Size) -> int | None:
    """Stride of a feature map of this height and width, a power of two if possible; None if it has none."""
    if max(shape) < 2 or min(shape) < 1:
        return None
    powers = [2**power for power in range(max(image).bit_length())]
    strides = (stride for stride in (*powers, round(image[0] / shape[0])) if stride)
    return next((stride for stride in strides if has_stride(shape, image, stride)), None)


def _layouts(shape: tuple[int, ...], image: Size) -> list[tuple[int, Layout, int]]:
    """Stride, layout and prefix tokens of an output that looks like the feature map of one image; else empty."""
    if len(shape) == 4 and shape[0] == 1:
        strides: dict[Layout, int | None] = {
            "maps": stride_of(shape[2:], image),
            "channels_last": stride_of(shape[1:3], image),
        }
        return [(stride, layout, 0) for layout, stride in strides.items() if stride is not None][:1]
    if len(shape) == 3 and shape[0] == 1:
        counts = {stride: (image[0] // stride) * (image[1] // stride) for stride in TOKEN_STRIDES}
        surplus = {stride: shape[1] - count for stride, count in counts.items() if count > 1}
        prefixes = {stride: count for stride, count in surplus.items() if 0 <= count <= MAX_PREFIX_TOKENS}
        likely = min(prefixes, key=prefixes.__getitem__, default=0)
        return [(likely, "tokens", prefixes[likely])] if prefixes else []
    return []


def _items(output: Any) -> dict[str, Any]:
    """Items of a tuple, list or dict by index or key."""
    if isinstance(output, Mapping):
        return {str(key): value for key, value in output.items()}
    if isinstance(output, (tuple, list)):
        return {str(index): value for index, value in enumerate(output)}
    return {}


def _shapes(output: Any, keys: str = "", depth: int = MAX_DEPTH) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Shapes of all tensors in an output, with the keys that lead to them."""
    if isinstance(output, Tensor):
        yield keys, tuple(output.shape)
    elif depth:
        for key, value in _items(output).items():
            yield from _shapes(value, f"{keys}[{key}]", depth - 1)
