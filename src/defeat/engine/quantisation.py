"""Quantisation-aware training: the student computes with the rounding of 8-bit integers, as an int8 export does.

Weights get one scale per output channel, activations one range per layer (Jacob et al., CVPR 2018, sections 2.1 and 3).
Gradients pass the rounding unchanged. The weights that are trained and saved stay float32.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from defeat.detector import Detector
from defeat.types import Batch, DetectorOutput

WEIGHTED = (nn.Conv2d, nn.Linear)
MOMENTUM = 0.01  # share of a step in the moving average of the ranges
SMALLEST_SCALE = 1e-8


class SimulatedInt8(nn.Module):
    """The training pass of a student with rounded weights and activations.

    Rounded are the weights and inputs of convolutions and linear layers, the inputs of group normalisation, and the
    outputs of convolutions with a bias. A convolution without a bias is followed by a normalisation, which an export
    folds into it.

    Args:
        student: the detector that is trained; it is not changed, and predicts without rounding.
    """

    low: Tensor
    high: Tensor
    seen: Tensor

    def __init__(self, student: Detector) -> None:
        super().__init__()
        self._outside = (_TrainingPass(student),)  # a tuple hides the student from the module tree
        self._inputs, self._outputs = _rounded_activations(student)
        count = len(self._inputs) + len(self._outputs)
        self.register_buffer("low", torch.zeros(count))
        self.register_buffer("high", torch.zeros(count))
        self.register_buffer("seen", torch.zeros(count, dtype=torch.bool))

    def forward(self, batch: Batch, negative_weight: float = 1.0) -> DetectorOutput:
        """Compute what `Detector.forward_train` does."""
        training = self._outside[0]
        layers = {name: module for name, module in training.named_modules() if isinstance(module, WEIGHTED)}
        weights = {f"{name}.weight": rounded_weight(layer.weight) for name, layer in layers.items()}
        with self._rounding():
            output: DetectorOutput = functional_call(training, weights, (batch, negative_weight))
        return output

    @contextmanager
    def _rounding(self) -> Iterator[None]:
        """Round the activations of the student."""
        modules = dict(self._outside[0].student.named_modules())
        handles = []
        for index, name in enumerate((*self._inputs, *self._outputs)):
            if index < len(self._inputs):
                handles.append(modules[name].register_forward_pre_hook(partial(_rounded_input, self._rounded, index)))
            else:
                handles.append(modules[name].register_forward_hook(partial(_rounded_output, self._rounded, index)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _rounded(self, index: int, activation: Tensor) -> Tensor:
        """Round an activation, and follow its range."""
        if not activation.numel() or not activation.is_floating_point():
            return activation
        self._observe(index, activation.detach())
        return rounded_activation(activation, self.low[index], self.high[index])

    def _observe(self, index: int, activation: Tensor) -> None:
        lowest, highest = (extreme.float() for extreme in torch.aminmax(activation))
        share = torch.where(self.seen[index], MOMENTUM, 1.0)
        self.low[index] += share * (lowest.clamp(max=0) - self.low[index])
        self.high[index] += share * (highest.clamp(min=0) - self.high[index])
        self.seen[index] = True


class _TrainingPass(nn.Module):
    """A student whose `forward` is its training pass, for `functional_call`."""

    def __init__(self, student: Detector) -> None:
        super().__init__()
        self.student = student

    def forward(self, batch: Batch, negative_weight: float) -> DetectorOutput:
        """Compute what `Detector.forward_train` does."""
        return self.student.forward_train(batch, negative_weight)


def rounded_weight(weight: Tensor) -> Tensor:
    """Round a weight to 8-bit integers, symmetric around zero, with one scale per output channel.

    Args:
        weight: (O, ...), the largest absolute value of each row becomes 127.
    """
    scale = weight.detach().float().abs().flatten(1).amax(dim=1).clamp(min=SMALLEST_SCALE) / 127
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight.float(), scale, zero, 0, -128, 127).to(weight.dtype)


def rounded_activation(activation: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Round an activation to 256 steps of a range that contains zero, and clip it to the range.

    Args:
        activation: of any shape.
        low: lower end of the range, 0 or less.
        high: upper end of the range, 0 or more.
    """
    scale = ((high - low) / 255).clamp(min=SMALLEST_SCALE)
    zero = (-low / scale).round().clamp(0, 255).to(torch.int32)
    rounded = torch.fake_quantize_per_tensor_affine(activation.float(), scale, zero, 0, 255)
    return rounded.to(activation.dtype)


def _rounded_activations(student: nn.Module) -> tuple[list[str], list[str]]:
    """Names of the modules whose inputs, and of those whose outputs, are rounded."""
    inputs, outputs = [], []
    for name, module in student.named_modules():
        if isinstance(module, (*WEIGHTED, nn.GroupNorm)):
            inputs.append(name)
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            outputs.append(name)
    return inputs, outputs


Rounding = Callable[[int, Tensor], Tensor]


def _rounded_input(rounded: Rounding, index: int, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return rounded(index, inputs[0]), *inputs[1:]


def _rounded_output(rounded: Rounding, index: int, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return rounded(index, output)
