"""What importers of other tools' checkpoints share: reading a file, renaming its tensors, building the detector."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from defeat.detector.backbone import CAFFE
from defeat.detector.base import DetectorSpec
from defeat.detector.weights import first_not_finite
from defeat.errors import InputError, quoted

Style = Literal["auto", "pytorch", "caffe"]
SHOWN = 3  # names of tensors in a message
COUNTER = "num_batches_tracked"  # of batch normalisation, has no effect on a trained detector

# Blocks of the four stages of a ResNet, and whether a block is a bottleneck.
RESNETS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}


@dataclass(frozen=True)
class Source:
    """A checkpoint of another tool, and what the user says about it.

    Attributes:
        path: the file.
        tensors: tensors by their names in the file, float32.
        content: everything else in the file.
        detector: name of the architecture, if given.
        classes: names of the classes, if given.
        style: of a ResNet: `pytorch` (the stride of a stage in the 3 x 3 convolution) or `caffe` (in the first 1 x 1).
        size: short side of the input in pixels, if given.
        max_size: upper limit of the long side, if given.
        config: text of the tool's configuration, if given.
    """

    path: Path
    tensors: dict[str, Tensor]
    content: dict[str, Any] = field(default_factory=dict)
    detector: str | None = None
    classes: tuple[str, ...] | None = None
    style: Style = "auto"
    size: int | None = None
    max_size: int | None = None
    config: str | None = None

    def rows(self, name: str) -> int:
        """Number of rows of a tensor.

        Raises:
            InputError: it is missing.
        """
        return int(self.tensor(name).shape[0])

    def tensor(self, name: str) -> Tensor:
        """A tensor by its name in the file.

        Raises:
            InputError: it is missing, or a number.
        """
        if name not in self.tensors or not self.tensors[name].ndim:
            raise InputError(f"{self.path} does not contain a whole detector: {name} is missing.")
        return self.tensors[name]

    def names(self, count: int, known: Sequence[str] | None, advice: str = "") -> tuple[str, ...]:
        """Names of the classes: those given, or those that the file names.

        Args:
            count: number of classes of the detector.
            known: names in the file.
            advice: where the names come from, for the message.

        Raises:
            InputError: there are none, or another number, or one is there twice.
        """
        names = self.classes if self.classes is not None else known
        if names is None:
            raise InputError(f"{self.path} does not name its {count} classes{advice}: give them with --classes.")
        if len(names) != count:
            origin = "--classes has" if self.classes is not None else "it names"
            raise InputError(f"{self.path} is a detector of {count} classes, but {origin} {len(names)}.")
        twice = next((name for name, times in Counter(names).items() if times > 1), None)
        if twice is not None:
            raise InputError(f"{self.path}: the class {quoted(twice)} is there twice; give other names with --classes.")
        return tuple(str(name) for name in names)


@dataclass(frozen=True)
class Imported:
    """A detector of another tool, described as one of ours.

    Attributes:
        spec: the description.
        state: its tensors under our names.
        origins: name in the file of each.
        notes: sentences for the user on what was assumed.
    """

    spec: DetectorSpec
    state: dict[str, Tensor]
    origins: dict[str, str]
    notes: tuple[str, ...] = ()


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors of a checkpoint, and what else is in it; no code in it is executed.

    Args:
        path: a `.safetensors` file, or a file of `torch.save`.

    Raises:
        InputError: the file can't be read without executing code, or contains no state dict with finite values.
    """
    content = _loaded(path)
    state: Any = content
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state:
        raise InputError(f"{path} contains no state dict (a mapping from names to tensors).")
    wrong = [name for name, value in state.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if wrong:
        raise InputError(f"{path} contains no state dict: {quoted(wrong[0])} is not the name of a tensor.")
    if (name := first_not_finite(state)) is not None:
        raise InputError(f"{path} contains weights that are not finite ({name}).")
    tensors = {name.removeprefix("module."): value.float() for name, value in state.items()}
    return tensors, content if state is not content else {}


def _loaded(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path} does not exist.")
    if path.suffix == ".pkl":
        raise InputError(
            f"{path} is a pickle, and reading it would execute code in it: load it in the tool that wrote it, and save "
            "its state dict with torch.save or as safetensors."
        )
    try:
        loaded: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # each library raises its own exceptions
        needed = re.search(r"GLOBAL (\S+)", str(error))
        if needed is None:
            raise InputError(
                f"{path} can't be read as weights ({type(error).__name__}); give a .safetensors file, or a file of "
                "torch.save."
            ) from error
        raise InputError(
            f"{path} contains objects of {needed[1]} besides tensors, and reading them would execute code: where you "
            "trust the file, load it in the tool that wrote it, and save its state dict with torch.save."
        ) from error
    if not isinstance(loaded, dict):
        raise InputError(f"{path} contains no state dict (a mapping from names to tensors).")
    return loaded


def renamed(source: Source, rules: Sequence[tuple[str, str]]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Rename the tensors of a checkpoint.

    Args:
        source: the checkpoint.
        rules: regular expressions for whole names, and our names; the first match counts. Tensors whose new name is
            empty are left out.

    Returns:
        Tensors by our names, and the names in the file by ours.

    Raises:
        InputError: a tensor matches no rule.
    """
    patterns = [(re.compile(pattern), new) for pattern, new in rules]
    state, origins, unknown = {}, {}, []
    for name, tensor in source.tensors.items():
        match = next(((found, new) for pattern, new in patterns if (found := pattern.fullmatch(name))), None)
        if match is None:
            unknown.append(name)
        elif new_name := match[0].expand(match[1]):
            state[new_name], origins[new_name] = tensor, name
    if unknown:
        raise InputError(
            f"{source.path} can't be imported: {len(unknown)} of its tensors are of layers that this library doesn't "
            f"have, such as {listed(unknown)}."
        )
    return state, origins


def listed(names: Sequence[str]) -> str:
    """The first few names, for a message."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def resnet_of(state: Mapping[str, Tensor], path: Path, style: str) -> str:
    """Name of the ResNet whose tensors have the names of torchvision after `backbone.body.`.

    Args:
        state: tensors by our names.
        path: the file, for messages.
        style: `pytorch` or `caffe`.

    Raises:
        InputError: it is another network.
    """
    blocks: list[set[int]] = [set(), set(), set(), set()]
    for name in state:
        if found := re.match(r"backbone\.body\.layer([1-4])\.(\d+)\.", name):
            blocks[int(found[1]) - 1].add(int(found[2]))
    bottleneck = "backbone.body.layer1.0.conv3.weight" in state
    counts = tuple(map(len, blocks))
    network = RESNETS.get((counts, bottleneck))
    if network is None:
        raise InputError(
            f"{path}: the backbone is not one of {', '.join(RESNETS.values())}; its stages have {counts} blocks."
        )
    return f"{network}{CAFFE}" if style == "caffe" and bottleneck else network


def map_rows(state: dict[str, Tensor], layer: str, change: Callable[[Tensor], Tensor]) -> None:
    """Change the rows of weight and bias of a layer, where they exist."""
    for kind in ("weight", "bias"):
        if f"{layer}.{kind}" in state:
            state[f"{layer}.{kind}"] = change(state[f"{layer}.{kind}"])


def complete(imported: Imported, expected: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The whole state dict of an imported detector.

    Args:
        imported: the detector.
        expected: state dict of a detector of its description.
        path: the file, for messages.

    Raises:
        InputError: tensors are missing, unknown or of another shape; it lists the first few.
    """
    state = {name: tensor for name, tensor in imported.state.items() if not name.endswith(COUNTER)}
    counters = {name: tensor for name, tensor in expected.items() if name.endswith(COUNTER)}
    missing = [name for name in expected if name not in state and name not in counters]
    unknown = [name for name in state if name not in expected]
    shapes = [
        f"{imported.origins.get(name, name)} {tuple(tensor.shape)} instead of {tuple(expected[name].shape)}"
        for name, tensor in state.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    problems = []
    if missing:
        problems.append(f"{len(missing)} tensors are missing, such as those for {listed(missing)}")
    if unknown:
        names = [imported.origins.get(name, name) for name in unknown]
        problems.append(f"{len(unknown)} tensors have no place, such as {listed(names)}")
    if shapes:
        problems.append(f"{len(shapes)} tensors have another shape, such as {listed(shapes)}")
    if problems:
        spec = imported.spec
        raise InputError(f"{path} does not fit {spec.family} with {spec.backbone}: {'; '.join(problems)}.")
    return state | {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in counters.items()}
