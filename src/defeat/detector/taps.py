"""A teacher made of any network: forward hooks read its maps, and no line of the network changes."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle
from torchvision.transforms.v2 import functional as transforms

from defeat.detector.base import resized_size, valid_cells
from defeat.detector.hooks import (
    Candidate,
    Layout,
    Recorder,
    Size,
    Takes,
    Tap,
    candidate_taps,
    cells,
    device_of,
    eager,
    first_that_runs,
    is_compiled,
    kind,
    meets,
    stride_of,
    submodules,
    takes_crops,
    tapped,
    watched,
)
from defeat.detector.teacher import MAPS, PREDICT
from defeat.detector.weights import IMAGENET_MEAN, IMAGENET_STD
from defeat.errors import InputError
from defeat.types import Batch, Detections, DetectorInfo, DetectorOutput, Maps

__all__ = ["Candidate", "Predictor", "Tap", "TappedTeacher", "candidate_taps"]

Predictor = Callable[[list[Tensor]], Sequence[Detections | Mapping[str, Tensor]]]

PROBE_SIDE = 256  # least side in pixels of the image that a network is tried with
LONG_SIDE = 1333 / 800  # of the short one, at most, as usual
LAYOUTS = {"maps": "maps (B, C, H, W)", "channels_last": "maps (B, H, W, C)", "tokens": "tokens (B, N, C)"}
SHOWN = 6  # modules in a message


class TappedTeacher(nn.Module):
    """A teacher made of any network; satisfies `Teacher`.

    The network itself is held, not a copy: it is put into eval mode for good, and its weights no longer have a
    gradient. It runs whole, from a student's batch to its own output. Of a detector, it is cheaper to tap the backbone
    with its neck alone, and to give the whole as `predict`:

        TappedTeacher(fcos.backbone, {8: "fpn[0]", 16: "fpn[1]"}, classes=names, predict=fcos, first_label=1)

    Where a network is compiled, its taps are installed once, before its first call, and stay: compiled code ignores
    those that come later. Elsewhere they are there only while the maps are computed. A network that is wrapped for
    distributed training is taken out of the wrapper.

    Args:
        module: the trained network; takes (B, 3, H, W), or a list of (3, H, W) as torchvision's detectors, of any size.
        neck: taps of the maps of the neck by stride in pixels, such as {8: "fpn.0", 16: "fpn.1"}.
        backbone: taps of the maps of the backbone by stride.
        classes: names of the K classes in the order of the labels; none where only maps are learned.
        mean: mean of R, G, B to subtract, for values in 0..1. None for that of ImageNet, or for 0 where the network is
            one of torchvision's detectors, which normalise by themselves.
        std: standard deviation of R, G, B to divide by, likewise.
        size: short side in pixels at which the network sees images. None for the student's pixels as they are.
        max_size: upper limit of the long side in pixels, with `size`; None for 1333 / 800 of `size`.
        size_divisor: height and width of the batch are padded to multiples of it.
        predict: gives the detections of a list of RGB images, (3, H, W) float32 in 0..1: one `Detections` an image, or
            a dict of `boxes`, `labels` and `scores` as torchvision's.
        first_label: with dicts, the label of the first class: 1 for torchvision's own detectors.
        preprocess: makes (B, 3, H, W) float32 RGB in 0..1 what the network expects, of the same height and width,
            instead of `mean` and `std`. Padding is zero afterwards in either case.
        channels_last: whether taps that are given as text read (B, H, W, C).
        tokens: taps that are given as text read (B, N, C), with that many tokens, such as a class token, before that
            of the first cell. None where they read maps.
        takes: `tensor` or `list`: what the network takes; None to find out. A list holds images without padding.

    Attributes:
        info: what others need to know; `size` and `max_size` are 0 for those of the student.
        capabilities: what it can do beside giving maps.
        dtype: precision of autocast in which the network computes; None to leave it as it is. Maps are float32.

    Raises:
        InputError: unknown module, wrong stride, or a network that does not run.
    """

    dtype: torch.dtype | None = None
    takes: Takes

    def __init__(
        self,
        module: nn.Module,
        neck: Mapping[int, str | Tap],
        backbone: Mapping[int, str | Tap] | None = None,
        *,
        classes: Sequence[str] = (),
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        size: int | None = None,
        max_size: int | None = None,
        size_divisor: int = 32,
        predict: Predictor | None = None,
        first_label: int = 0,
        preprocess: Callable[[Tensor], Tensor] | None = None,
        channels_last: bool = False,
        tokens: int | None = None,
        takes: Takes | None = None,
    ) -> None:
        super().__init__()
        while isinstance(module, DistributedDataParallel | nn.DataParallel):
            module = module.module
        if channels_last and tokens is not None:
            raise InputError("Taps read channels-last maps or tokens, not both; give a Tap object where they differ.")
        if preprocess is not None and (mean or std):
            raise InputError("preprocess stands instead of mean and std; give one or the other.")
        layout: Layout = "channels_last" if channels_last else "maps" if tokens is None else "tokens"
        self._recorders = {
            (part, int(stride)): Recorder(tapped(tap, module, layout, tokens or 0))
            for part, levels in (("backbone", backbone or {}), ("neck", neck))
            for stride, tap in sorted(levels.items(), key=lambda level: int(level[0]))
        }
        if not self._recorders or min(stride for _, stride in self._recorders) < 1:
            raise InputError("A teacher needs at least one tap, and a stride of 1 or more for each.")
        self.module, self.predictor, self.preprocess = module, predict, preprocess
        self.first_label = first_label
        plain = preprocess is not None or takes_crops(module)
        self.info = DetectorInfo(
            family=kind(module),
            classes=tuple(classes),
            neck={},
            backbone={},
            size=size or 0,
            max_size=0 if size is None else max_size or round(size * LONG_SIDE),
            size_divisor=size_divisor,
            mean=tuple(mean or ((0.0, 0.0, 0.0) if plain else IMAGENET_MEAN)),
            std=tuple(std or ((1.0, 1.0, 1.0) if plain else IMAGENET_STD)),
            activation="sigmoid",
            background="none",
        )
        self.capabilities = frozenset({MAPS} if predict is None else {MAPS, PREDICT})
        self.train().requires_grad_(False)
        maps = self._tried(takes)
        neck_channels, channels = (
            {stride: level.shape[1] for stride, level in part.items()} for part in (maps.neck, maps.backbone)
        )
        self.info = replace(self.info, neck=neck_channels, backbone=channels)
        self._keep_hooks()

    def train(self, mode: bool = True) -> "TappedTeacher":
        """Stay in eval mode, whatever the mode."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return device_of(self.module)

    @property
    def description(self) -> str:
        """What decides its maps beside its weights and `info`; equal texts mean equal maps."""
        preprocess = getattr(self.preprocess, "__qualname__", type(self.preprocess).__qualname__)
        taps = [f"{part} {stride}: {recorder.tap!r}" for (part, stride), recorder in self._recorders.items()]
        return f"takes={self.takes}, preprocess={preprocess}, {', '.join(taps)}"

    def extra_repr(self) -> str:
        """The taps, for `print`."""
        return self.description

    def resized_size(self, height: int, width: int, scale: float = 1.0) -> Size:
        """Height and width that an image of this height, width and `Target.scale` has after resizing."""
        if not self.info.size:
            return height, width
        return resized_size(height, width, round(self.info.size * scale), self.info.max_size * min(1.0, scale))

    def padded_size(self, height: int, width: int, scale: float = 1.0) -> tuple[int, ...]:
        """Height and width that an image has after resizing and its own padding.

        Args:
            height: in pixels of the original image; where `info.size` is 0, in pixels of the student's batch.
            width: likewise.
            scale: as `Target.scale`.
        """
        return tuple(_rounded_up(side, self.info.size_divisor) for side in self.resized_size(height, width, scale))

    def adopt(self, batch: Batch) -> Batch:
        """Take over a batch that a student prepared: pad it, and resize it where the input sizes differ."""
        drawn = batch.targets[0].scale if batch.targets else 1.0
        height = self.resized_size(*batch.original_sizes[0], drawn)[0] if self.info.size else batch.sizes[0][0]
        scale = height / batch.sizes[0][0]
        if abs(scale - 1) >= 1e-2:
            full = [round(side * scale) for side in batch.images.shape[-2:]]
            images = F.interpolate(batch.images, size=full, mode="bilinear", antialias=scale < 1)
            sizes = [(max(1, round(rows * scale)), max(1, round(columns * scale))) for rows, columns in batch.sizes]
            targets = [target.resized(size) for target, size in zip(batch.targets, sizes, strict=False)]
            batch = replace(batch, images=images, sizes=sizes, targets=targets, scale=scale)
        missing = [-side % self.info.size_divisor for side in batch.images.shape[-2:]]
        return replace(batch, images=F.pad(batch.images, (0, missing[1], 0, missing[0]))) if any(missing) else batch

    @torch.no_grad()
    def forward_maps(self, batch: Batch) -> Maps:
        """Compute the maps of a batch, (B, C, H, W) float32 by stride, H and W those of the batch over the stride.

        Raises:
            InputError: a tap did not run, or gave a map of another size than its stride says.
        """
        self._keep_hooks()
        return self._read(batch)

    def forward_teacher(
        self, batch: Batch, reads: Collection[str] | None = None, maps: Maps | None = None
    ) -> DetectorOutput:
        """Compute the maps that a student may learn from; see `Teacher`."""
        maps = maps or self.forward_maps(batch)
        return DetectorOutput({}, maps.backbone, maps.neck, valid_cells(batch, maps.by_stride), scale=batch.scale)

    @torch.no_grad()
    def predict(self, images: Sequence[Tensor]) -> list[Detections]:
        """Detect objects in RGB images, each (3, H, W), uint8 in 0..255 or float32 in 0..1; best first.

        Raises:
            InputError: the teacher was made without `predict`, or its labels are not those of `classes`.
        """
        if self.predictor is None:
            raise InputError("This teacher gives maps alone; to detect objects, give TappedTeacher a `predict`.")
        self._hold_eval()
        floats = [transforms.to_dtype(image.to(self.device), torch.float32, scale=True) for image in images]
        return [self._detections(output) for output in self.predictor(floats)]

    def _detections(self, output: Detections | Mapping[str, Tensor]) -> Detections:
        if not isinstance(output, Detections):
            output = Detections(output["boxes"], output["scores"], output["labels"].long() - self.first_label)
        if self.info.classes and bool((output.labels >= len(self.info.classes)).any()):
            raise InputError(
                f"The teacher detected label {int(output.labels.max())}, but has {len(self.info.classes)} classes, "
                "counted from 0. Give first_label=1 where the labels of `predict` count from 1."
            )
        order = output.scores.argsort(descending=True, stable=True)
        order = order[output.labels[order] >= 0]
        return Detections(*(field[order] for field in (output.boxes, output.scores, output.labels)))

    def _inputs(self, batch: Batch) -> Tensor | list[Tensor]:
        """What the network takes."""
        if self.preprocess is None:
            mean, std = (batch.images.new_tensor(value)[:, None, None] for value in (self.info.mean, self.info.std))
            images = (batch.images - mean) / std
        else:
            images = self.preprocess(batch.images.clone())
            if images.shape[-2:] != batch.images.shape[-2:]:
                shapes = f"{tuple(batch.images.shape)} to {tuple(images.shape)}"
                raise InputError(f"preprocess must keep height and width, and changed {shapes}; resize with size=.")
        for row, (height, width) in zip(images, batch.sizes, strict=True):
            row[:, height:] = 0
            row[:, :, width:] = 0
        if self.takes == "tensor":
            return images
        return [image[:, :height, :width] for image, (height, width) in zip(images, batch.sizes, strict=True)]

    def _read(self, batch: Batch) -> Maps:
        """The maps of a batch, from one forward pass."""
        self._hold_eval()
        inputs, image = self._inputs(batch), cast(Size, tuple(batch.images.shape[-2:]))
        autocast = nullcontext() if self.dtype is None else torch.autocast(batch.images.device.type, self.dtype)
        maps = Maps({}, {})
        with self._recording():
            with autocast:
                output = self.module(inputs)
            for (part, stride), recorder in self._recorders.items():
                if not recorder.tap.name:
                    recorder(self.module, (), output)
                kept = recorder.only_map()
                level = _as_map(kept, recorder.tap, stride, image)
                if level is None or len(level) != len(batch.sizes) or not self._fits(level, stride, image):
                    raise self._refused(part, stride, recorder.tap, kept, inputs, image)
                getattr(maps, part)[stride] = _fitted(level, cells(image[0], stride), cells(image[1], stride))
        return maps

    def _tried(self, takes: Takes | None) -> Maps:
        """The maps of a black image, from the first form of input with which the network runs; compiled code waits."""
        info, largest = self.info, max(stride for _, stride in self._recorders)
        height = info.size or _rounded_up(max(PROBE_SIDE, largest), info.size_divisor)
        width = info.size or _rounded_up(height * 5 // 4, info.size_divisor)
        padded = [_rounded_up(side, info.size_divisor) for side in (height, width)]
        images = torch.zeros(1, 3, *padded, device=self.device)
        batch = Batch(images, [(height, width)], [], [(height, width)], len(info.classes))

        def attempt(form: Takes) -> Maps:
            self.takes = form
            return self._read(batch)

        with torch.no_grad(), torch.random.fork_rng(devices=[]), eager(self.module):
            return first_that_runs(self.module, images, takes, attempt)

    def _hold_eval(self) -> None:
        """Undo what somebody else's `train()` did to the network."""
        if any(child.training for child in self.children()):
            self.eval()

    def _keep_hooks(self) -> None:
        """Where the network is compiled, install the hooks for good; those of its compiled parts get lost in copies."""
        if is_compiled(self.module):
            self._installed()

    def _installed(self) -> list[RemovableHandle]:
        """Handles of the hooks, which are installed where they are not yet."""
        named, recorders = submodules(self.module), [each for each in self._recorders.values() if each.tap.name]
        missing = [each for each in recorders if each not in named[each.tap.name]._forward_hooks.values()]
        return [named[each.tap.name].register_forward_hook(each) for each in missing]

    @contextmanager
    def _recording(self) -> Iterator[None]:
        handles = self._installed()  # none where they stay
        for recorder in self._recorders.values():
            recorder.start()
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for recorder in self._recorders.values():
                recorder.stop()

    def _fits(self, level: Tensor, stride: int, image: Size) -> bool:
        """Whether a map has its stride; a network that takes a list of crops may pad them by its own rule."""
        if self.takes == "tensor" or not self.info.neck | self.info.backbone:
            return meets(level.shape[-2:], image, stride)
        spare = self.info.size_divisor + stride
        return all(abs(count * stride - side) <= spare for count, side in zip(level.shape[-2:], image, strict=True))

    def _refused(
        self, part: str, stride: int, tap: Tap, kept: Tensor, inputs: Tensor | list[Tensor], image: Size
    ) -> InputError:
        """Say what a tap gave instead of maps of its stride, and which taps give those."""
        shape, pixels = tuple(kept.shape), f"{image[0]} x {image[1]} pixels"
        level = _as_map(kept, tap, stride, image)
        stride_given = None if level is None else stride_of(level.shape[-2:], image)
        given = f"{part} {stride}: '{tap}' gives {shape} for {len(inputs)} x {pixels}"
        if stride_given == stride:
            return InputError(f"{given}: one map for each image was expected.")
        if level is None:
            given += f", not {LAYOUTS[tap.layout]} of stride {stride}"
        else:
            given += (
                ", which fits no stride" if stride_given is None else f", which is stride {stride_given}, not {stride}"
            )
        others = watched(self.module, inputs[:1], image)
        near = sorted((other for other in others if other.stride == stride), key=lambda other: other.name.count("."))
        more = f" and {len(near) - SHOWN} more" if len(near) > SHOWN else ""
        advice = f"With stride {stride} there are {', '.join(map(str, near[:SHOWN]))}{more}."
        if not near:
            strides = ", ".join(map(str, sorted({other.stride for other in others}))) or "none"
            advice = f"No module has stride {stride}; those of its modules are: {strides}."
        if takes_crops(self.module):
            advice += " The network resizes images by itself: give the same size= here, or tap its backbone alone."
        return InputError(f"{given}. {advice}")


def _as_map(kept: Tensor, tap: Tap, stride: int, image: Size) -> Tensor | None:
    """What a tap read as (B, C, H, W); None where its shape does not allow that."""
    if kept.ndim != (3 if tap.layout == "tokens" else 4):
        return None
    if tap.layout == "maps":
        return kept
    if tap.layout == "tokens":
        kept = kept[:, tap.prefix_tokens :]  # (B, N, C)
        sides = [(cells(image[0], stride), cells(image[1], stride)), (image[0] // stride, image[1] // stride)]
        fitting = [side for side in sides if side[0] * side[1] == kept.shape[1]]
        if not fitting:
            return None
        kept = kept.unflatten(1, fitting[0])  # (B, H, W, C)
    return kept.permute(0, 3, 1, 2)


def _fitted(level: Tensor, height: int, width: int) -> Tensor:
    """A map (B, C, H, W) with as many cells as the batch has; cells that are missing at its border repeat the last."""
    level = level[..., :height, :width]
    missing = (0, width - level.shape[-1], 0, height - level.shape[-2])
    return F.pad(level, missing, mode="replicate") if any(missing) else level


def _rounded_up(side: int, divisor: int) -> int:
    return -(-side // divisor) * divisor
