"""Which outputs of a network are maps: how to write that down, how to read them by forward hooks, and how to find them.

A tap is written `NAME`, `NAME:CALL`, `NAME[KEY]` or `NAME:CALL[KEY][KEY]`:

- `NAME` is a submodule as in `named_modules`, such as `layer2.0`; nothing stands for the network's own output.
- `:CALL` counts from 0 which call is meant, where the module runs several times: `head.conv:2` is the third.
- `[KEY]` is the place or key in a tuple, list or dict: `backbone.fpn[pool]`, `[features][3]`.
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
TOKEN_STRIDES = (4, 8, 16, 32, 14)  # of transformers, those that a candidate may have; of equals the first
MOST_PREFIX_TOKENS = 8  # class and register tokens that a candidate may have
DEPTH = 3  # of tuples and dicts that are looked into
LONGEST_REASON = 160  # characters


@dataclass(frozen=True)
class Tap:
    """Which output of a network is a map.

    Attributes:
        name: of the submodule; empty for the network itself.
        call: which of its calls in a forward pass is meant, from 0; None where it has only one.
        keys: places or keys that lead from its output to the map.
        layout: `maps` (B, C, H, W), `channels_last` (B, H, W, C) or `tokens` (B, N, C).
        prefix_tokens: tokens before that of the first cell, such as a class token.
    """

    name: str
    call: int | None = None
    keys: tuple[str, ...] = ()
    layout: Layout = "maps"
    prefix_tokens: int = 0

    @classmethod
    def parse(cls, text: str, layout: Layout = "maps", prefix_tokens: int = 0) -> "Tap":
        """Read a tap such as `head.conv:2` or `backbone.fpn[pool]`.

        Raises:
            InputError: the text is not one.
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
        """The map in what the submodule gave.

        Raises:
            InputError: it is not there.
        """
        for key in self.keys:
            valid = _items(output)
            if key not in valid:
                raise unknown_name(f"key of the output of {self.name!r}", key, valid)
            output = valid[key]
        if not isinstance(output, Tensor):
            parts = ", ".join(f"'{self}[{key}]'" for key in _items(output)) or "none"
            raise InputError(f"The output of '{self}' is a {type(output).__name__}, not a map. Its parts: {parts}.")
        return output


class Recorder:
    """A forward hook that keeps what a tap reads.

    It keeps a copy, because an in-place layer that follows may overwrite the map, and in float32, because the network
    may run under autocast. It refers to no module, so that copies and pickles of a network take theirs along.
    """

    def __init__(self, tap: Tap) -> None:
        self.tap, self.active, self.calls = tap, False, 0
        self.maps: list[Tensor] = []

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Note one call of the submodule."""
        if self.active:
            if self.tap.call is None or self.tap.call == self.calls:
                self.maps.append(self.tap.read(output).detach().to(torch.float32, copy=True))
            self.calls += 1

    def start(self) -> None:
        """Forget all calls, and note those that follow."""
        self.active, self.calls, self.maps = True, 0, []

    def stop(self) -> None:
        """Note no more calls; what was kept is forgotten."""
        self.active, self.calls, self.maps = False, 0, []

    def only_map(self) -> Tensor:
        """The map that was kept.

        Raises:
            InputError: there is none, or more than one.
        """
        if len(self.maps) == 1:
            return self.maps[0]
        if not self.calls:
            raise InputError(
                f"The module {self.tap.name!r} did not run, or a compiled network that ran before hides its calls: "
                "make the TappedTeacher before the first call, or of the network before compilation."
            )
        last = self.calls - 1
        if self.tap.call is None:
            chosen = replace(self.tap, call=last)
            raise InputError(f"'{self.tap}' runs {self.calls} times: choose a call from 0 to {last}, e.g. '{chosen}'.")
        raise InputError(f"'{self.tap}': the module runs {self.calls} times; choose a call from 0 to {last}.")


@dataclass(frozen=True)
class Candidate:
    """An output of a network that may be tapped.

    Attributes:
        name: the tap.
        shape: of the output for one image.
        stride: pixels of the image per cell.
        layout: `maps`, `channels_last` or `tokens`.
        prefix_tokens: tokens before that of the first cell, if the layout is that of tokens.
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


class Watcher:
    """A forward hook that notes the shapes of all tensors that a submodule gives."""

    def __init__(self, name: str, seen: list[tuple[str, dict[str, tuple[int, ...]]]]) -> None:
        self.name, self.seen = name, seen

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Note one call."""
        self.seen.append((self.name, dict(_shapes(output))))


def candidate_taps(
    module: nn.Module,
    size: Size = (256, 256),
    takes: Takes | None = None,
    preprocess: Callable[[Tensor], Tensor] | None = None,
) -> list[Candidate]:
    """List the outputs of a network and its submodules that look like maps, in the order in which they are computed.

    Maps of a single cell are left out. With height and width that differ, no layout is mistaken for another.

    Args:
        module: takes (1, 3, H, W), or a list of (3, H, W).
        size: height and width in pixels of the black image that it is tried with.
        takes: `tensor` or `list`; None to find out.
        preprocess: makes (1, 3, H, W) float32 in 0..1 what the network expects.

    Raises:
        InputError: the network does not run.
    """
    images = torch.zeros(1, 3, *size, device=device_of(module))
    images = images if preprocess is None else preprocess(images)
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        return first_that_runs(
            module, images, takes, lambda form: watched(module, images if form == "tensor" else list(images), size)
        )
    finally:
        for part, mode in modes.items():
            part.training = mode


@torch.no_grad()
def watched(module: nn.Module, inputs: Tensor | list[Tensor], image: Size) -> list[Candidate]:
    """The candidates among the outputs of one forward pass of one image.

    Args:
        module: in eval mode.
        inputs: what it takes.
        image: height and width in pixels.
    """
    seen: list[tuple[str, dict[str, tuple[int, ...]]]] = []
    first = {id(part): name for name, part in reversed(submodules(module).items())}
    handles = [
        part.register_forward_hook(Watcher(name, seen))
        for name, part in submodules(module).items()
        if name and first[id(part)] == name
    ]
    try:
        with eager(module):
            seen.append(("", dict(_shapes(module(inputs)))))
    finally:
        for handle in handles:
            handle.remove()
    runs, calls, candidates = Counter(name for name, _ in seen), Counter[str](), []
    for name, shapes in seen:
        call = f":{calls[name]}" if runs[name] > 1 else ""
        calls[name] += 1
        for keys, shape in shapes.items():
            candidates += [Candidate(f"{name}{call}{keys}", shape, *likeness) for likeness in _likenesses(shape, image)]
    return candidates


def first_that_runs(
    module: nn.Module, images: Tensor, takes: Takes | None, attempt: Callable[[Takes], Result]
) -> Result:
    """The result of the first of the forms in which a network may take images that it runs with.

    Args:
        module: the network.
        images: (1, 3, H, W), for the message.
        takes: the form to use; None to try both.
        attempt: runs the network with images in a form.

    Raises:
        InputError: it runs with none of them.
    """
    forms: tuple[Takes, ...] = ("list", "tensor") if takes_crops(module) else ("tensor", "list")
    failures = []
    for form in (takes,) if takes else forms:
        try:
            return attempt(form)
        except InputError:
            raise
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_REASON]
            shape = tuple(images.shape) if form == "tensor" else tuple(images.shape[1:])
            failures.append(f"with a {'tensor' if form == 'tensor' else 'list of one tensor'} {shape}: {reason}")
    raise InputError(
        f"{kind(module)} does not run {'; nor '.join(failures)}. Hand over the part of it that takes images, an image "
        "size that it accepts, or a preprocess that makes its input."
    )


def submodules(module: nn.Module) -> dict[str, nn.Module]:
    """All submodules by name, without the additions that `torch.compile` makes to names."""
    named: dict[str, nn.Module] = {}
    for name, part in module.named_modules(remove_duplicate=False):
        named.setdefault(".".join(step for step in name.split(".") if step != "_orig_mod"), part)
    return named


def tapped(tap: str | Tap, module: nn.Module, layout: Layout, prefix_tokens: int) -> Tap:
    """The tap that a text or a `Tap` stands for, in a network.

    Raises:
        InputError: the network has no such submodule.
    """
    tap = tap if isinstance(tap, Tap) else Tap.parse(tap, layout, prefix_tokens)
    named = submodules(module)
    if tap.name not in named:
        near = get_close_matches(tap.name, named, n=5) or [name for name, _ in module.named_children()]
        raise InputError(
            f"{unknown_name('module', tap.name, near)} So is every other submodule; candidate_taps lists all maps."
        )
    return tap


def is_compiled(module: nn.Module) -> bool:
    """Whether any part of a network is compiled by torch."""
    parts = module.modules()
    return any("_orig_mod" in part._modules or part._compiled_call_impl is not None for part in parts)


def eager(module: nn.Module) -> AbstractContextManager[Any]:
    """Run a network without its compiled code, for which it may be too early."""
    return torch.compiler.set_stance("force_eager") if is_compiled(module) else nullcontext()


def takes_crops(module: nn.Module) -> bool:
    """Whether a network is one of torchvision's detectors, which take a list, resize and normalise by themselves."""
    return isinstance(getattr(module, "transform", None), GeneralizedRCNNTransform)


def kind(module: nn.Module) -> str:
    """The name of a network's class."""
    return type(getattr(module, "_orig_mod", module)).__name__


def device_of(module: nn.Module) -> torch.device:
    """Where a network's weights are."""
    tensors = (tensor for part in (module.parameters(), module.buffers()) for tensor in part)
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def cells(side: int, stride: int) -> int:
    """How many cells of a stride a side of an image has, counting one that is cut off."""
    return -(-side // stride)


def meets(shape: Sequence[int], image: Size, stride: int) -> bool:
    """Whether a map of this height and width has a stride; a cell that is cut off may be left out."""
    sides = zip(shape, image, strict=True)
    return all(max(1, side // stride) <= count <= cells(side, stride) for count, side in sides)


def stride_of(shape: Sequence[int], image: Size) -> int | None:
    """The stride of a map of this height and width, a power of two if possible; None where it has none."""
    if max(shape) < 2 or min(shape) < 1:
        return None
    powers = [2**power for power in range(max(image).bit_length())]
    return next(
        (stride for stride in (*powers, round(image[0] / shape[0])) if stride and meets(shape, image, stride)), None
    )


def _likenesses(shape: tuple[int, ...], image: Size) -> list[tuple[int, Layout, int]]:
    """Stride, layout and prefix tokens, if an output's shape looks like that of one image's map; else nothing."""
    if len(shape) == 4 and shape[0] == 1:
        strides: dict[Layout, int | None] = {
            "maps": stride_of(shape[2:], image),
            "channels_last": stride_of(shape[1:3], image),
        }
        return [(stride, layout, 0) for layout, stride in strides.items() if stride is not None][:1]
    if len(shape) == 3 and shape[0] == 1:
        counts = {stride: (image[0] // stride) * (image[1] // stride) for stride in TOKEN_STRIDES}
        surplus = {stride: shape[1] - count for stride, count in counts.items() if count > 1}
        likely = {stride: more for stride, more in surplus.items() if 0 <= more <= MOST_PREFIX_TOKENS}
        fewest = min(likely, key=likely.__getitem__, default=0)
        return [(fewest, "tokens", likely[fewest])] if likely else []
    return []


def _items(output: Any) -> dict[str, Any]:
    """The parts of a tuple, list or dict, by place or key."""
    if isinstance(output, Mapping):
        return {str(key): value for key, value in output.items()}
    if isinstance(output, (tuple, list)):
        return {str(place): value for place, value in enumerate(output)}
    return {}


def _shapes(output: Any, keys: str = "", depth: int = DEPTH) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The shapes of all tensors in an output, with the keys that lead to them."""
    if isinstance(output, Tensor):
        yield keys, tuple(output.shape)
    elif depth:
        for key, value in _items(output).items():
            yield from _shapes(value, f"{keys}[{key}]", depth - 1)
