"""Use any network as a teacher: forward hooks read its feature maps, and the network itself is unchanged."""

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

from defeat.detector.base import output_of
from defeat.detector.hooks import (
    Candidate,
    Layout,
    Recorder,
    Size,
    Takes,
    Tap,
    candidate_taps,
    cells,
    class_name,
    device_of,
    first_working_form,
    force_eager,
    has_stride,
    is_compiled,
    is_torchvision_detector,
    resolve_tap,
    stride_of,
    submodules,
    traced_candidates,
)
from defeat.detector.preparation import fill_padding, input_size, normalised, padded_batch, resized_batch, rounded_up
from defeat.detector.teacher import MAPS, PREDICT, batch_detections
from defeat.detector.weights import IMAGENET_MEAN, IMAGENET_STD
from defeat.errors import InputError, first_line
from defeat.types import Batch, Detections, DetectorInfo, DetectorOutput, Maps

__all__ = ["Candidate", "Predictor", "Tap", "TappedTeacher", "candidate_taps"]

Predictor = Callable[[list[Tensor]], Sequence[Detections | Mapping[str, Tensor]]]

PROBE_SIDE = 256  # minimum side of the dummy image in pixels
LONG_SIDE = 1333 / 800  # default of `max_size` over `size`
LAYOUTS = {"maps": "maps (B, C, H, W)", "channels_last": "maps (B, H, W, C)", "tokens": "tokens (B, N, C)"}
MAX_LISTED = 6  # modules in a message


class TappedTeacher(nn.Module):
    """A teacher based on any network; satisfies `Teacher`.

    The network is not copied: it is set to eval mode permanently, and its parameters no longer require gradients. A
    forward pass runs all of it. For a detector, it is cheaper to tap only the backbone with its neck, and to pass the
    whole detector as `predict`:

        TappedTeacher(fcos.backbone, {8: "fpn[0]", 16: "fpn[1]"}, classes=names, predict=fcos, first_label=1)

    The hooks of a compiled network are registered once, before its first call, and remain: compiled code ignores later
    hooks. Otherwise they exist only during a forward pass. A wrapper for distributed training is removed.

    Args:
        module: the trained network; its input is (B, 3, H, W), or a list of (3, H, W) as in torchvision's detectors, of
            any size.
        neck: taps of the neck's feature maps by stride in pixels, such as {8: "fpn.0", 16: "fpn.1"}.
        backbone: taps of the backbone's feature maps by stride.
        classes: names of the K classes in the order of the labels; empty if only feature maps are used.
        mean: mean of R, G, B to subtract, for values in 0..1. None for that of ImageNet, or 0 for a detector of
            torchvision, which normalises its input itself.
        std: standard deviation of R, G, B to divide by, likewise.
        size: short side in pixels of the network's input. None to use the student's batch without resizing.
        max_size: upper limit of the long side in pixels, with `size`; None for 1333 / 800 of `size`.
        size_divisor: height and width of the batch are padded to multiples of it.
        predict: computes the detections of a list of RGB images, (3, H, W) float32 in 0..1: one `Detections` per image,
            or a dict with `boxes`, `labels` and `scores` as in torchvision.
        first_label: label of the first class in such dicts: 1 for torchvision's detectors.
        preprocess: converts (B, 3, H, W) float32 RGB in 0..1 to the input of the network, with the same height and
            width, instead of `mean` and `std`. Padding is set to zero afterwards in either case.
        channels_last: whether taps given as text read (B, H, W, C).
        tokens: number of prefix tokens, such as a class token, if taps given as text read tokens (B, N, C). None if
            they read feature maps.
        takes: input of the network, `tensor` or `list`; None to detect it. A list contains images without padding.

    Attributes:
        info: its properties; `size` and `max_size` are 0 if `size` is None.
        capabilities: its optional capabilities.
        dtype: autocast precision of the network; None for no autocast. Feature maps are always float32.

    Raises:
        InputError: unknown module, wrong stride, or a network that fails to run.
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
            raise InputError("Give channels_last or tokens, not both; use Tap objects if the layouts of taps differ.")
        if preprocess is not None and (mean or std):
            raise InputError("preprocess replaces mean and std; give one or the other.")
        layout: Layout = "channels_last" if channels_last else "maps" if tokens is None else "tokens"
        self._recorders = {
            (part, int(stride)): Recorder(resolve_tap(tap, module, layout, tokens or 0))
            for part, levels in (("backbone", backbone or {}), ("neck", neck))
            for stride, tap in sorted(levels.items(), key=lambda level: int(level[0]))
        }
        if not self._recorders or min(stride for _, stride in self._recorders) < 1:
            raise InputError("A teacher needs at least one tap, and a stride of 1 or more for each.")
        self.module, self.predictor, self.preprocess = module, predict, preprocess
        self.first_label = first_label
        no_normalisation = preprocess is not None or is_torchvision_detector(module)
        self.info = DetectorInfo(
            family=class_name(module),
            classes=tuple(classes),
            neck={},
            backbone={},
            size=size or 0,
            max_size=0 if size is None else max_size or round(size * LONG_SIDE),
            size_divisor=size_divisor,
            mean=tuple(mean or ((0.0, 0.0, 0.0) if no_normalisation else IMAGENET_MEAN)),
            std=tuple(std or ((1.0, 1.0, 1.0) if no_normalisation else IMAGENET_STD)),
            activation="sigmoid",
            background="none",
        )
        self.capabilities = frozenset({MAPS} if predict is None else {MAPS, PREDICT})
        self.train().requires_grad_(False)
        maps = self._probe(takes)
        neck_channels, channels = (
            {stride: level.shape[1] for stride, level in part.items()} for part in (maps.neck, maps.backbone)
        )
        self.info = replace(self.info, neck=neck_channels, backbone=channels)
        self._keep_hooks()

    def train(self, mode: bool = True) -> "TappedTeacher":
        """Stay in eval mode; `mode` is ignored."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return device_of(self.module)

    @property
    def description(self) -> str:
        """Everything that determines the feature maps besides weights and `info`; equal texts mean equal maps."""
        preprocess = getattr(self.preprocess, "__qualname__", type(self.preprocess).__qualname__)
        taps = [f"{part} {stride}: {recorder.tap!r}" for (part, stride), recorder in self._recorders.items()]
        return f"takes={self.takes}, preprocess={preprocess}, {', '.join(taps)}"

    def extra_repr(self) -> str:
        """The taps, for `print`."""
        return self.description

    def resized_size(self, height: int, width: int, scale: float = 1.0) -> Size:
        """Height and width of an image after resizing, for its `Target.scale`."""
        return input_size(self.info, height, width, scale)

    def padded_size(self, height: int, width: int, scale: float = 1.0) -> tuple[int, ...]:
        """Height and width of an image after resizing and padding, in a batch of its own.

        Args:
            height: height in pixels of the original image, or if `info.size` is 0, in pixels of the student's batch.
            width: likewise.
            scale: `Target.scale`.
        """
        return tuple(rounded_up(side, self.info.size_divisor) for side in self.resized_size(height, width, scale))

    def adopt(self, batch: Batch) -> Batch:
        """Convert a batch that the student prepared: resize it if the input sizes differ, and pad it."""
        return padded_batch(resized_batch(self.info, batch), self.info.size_divisor)

    @torch.no_grad()
    def forward_maps(self, batch: Batch) -> Maps:
        """Compute feature maps by stride, (B, C, H, W) float32, H and W those of the batch over the stride.

        Raises:
            InputError: a tapped module did not run, or the size of its output does not match the stride.
        """
        self._keep_hooks()
        return self._read(batch)

    def forward_teacher(
        self, batch: Batch, reads: Collection[str] | None = None, maps: Maps | None = None
    ) -> DetectorOutput:
        """Compute the feature maps that a student learns from; see `Teacher`."""
        output = output_of(batch, maps or self.forward_maps(batch))
        if "detections" in (reads or ()):
            return replace(output, detections=batch_detections(self, batch))
        return output

    @torch.no_grad()
    def predict(self, images: Sequence[Tensor]) -> list[Detections]:
        """Detect objects in RGB images, each (3, H, W), uint8 in 0..255 or float32 in 0..1; sorted by score.

        Raises:
            InputError: the teacher has no `predict`, or its labels do not match `classes`.
        """
        if self.predictor is None:
            raise InputError("This teacher can't detect objects: give TappedTeacher a `predict`.")
        self._ensure_eval()
        floats = [transforms.to_dtype(image.to(self.device), torch.float32, scale=True) for image in images]
        return [self._detections(output) for output in self.predictor(floats)]

    def _detections(self, output: Detections | Mapping[str, Tensor]) -> Detections:
        if not isinstance(output, Detections):
            output = self._from_dict(output)
        if self.info.classes and bool((output.labels >= len(self.info.classes)).any()):
            raise InputError(
                f"The teacher detected label {int(output.labels.max())}, but has {len(self.info.classes)} classes, "
                "counted from 0. Give first_label=1 if the labels of `predict` start at 1."
            )
        order = output.scores.argsort(descending=True, stable=True)
        order = order[output.labels[order] >= 0]
        return Detections(*(field[order] for field in (output.boxes, output.scores, output.labels)))

    def _from_dict(self, output: Mapping[str, Tensor]) -> Detections:
        try:
            boxes, scores, labels = (
                torch.as_tensor(output[name], device=self.device) for name in ("boxes", "scores", "labels")
            )
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                "The teacher's predict must return Detections, or a dict of tensors or lists with 'boxes', 'scores' "
                f"and 'labels', for each image ({first_line(error)})."
            ) from error
        return Detections(boxes.reshape(-1, 4), scores, labels.long() - self.first_label)

    def _inputs(self, batch: Batch) -> Tensor | list[Tensor]:
        """Prepare the input of the network."""
        if self.preprocess is None:
            images = normalised(batch.images, self.info)
        else:
            images = self.preprocess(batch.images.clone())
            if images.shape[-2:] != batch.images.shape[-2:]:
                shapes = f"{tuple(batch.images.shape)} to {tuple(images.shape)}"
                raise InputError(f"preprocess must keep height and width, but changed {shapes}; use size= to resize.")
        fill_padding(images, batch.sizes)
        if self.takes == "tensor":
            return images
        return [image[:, :height, :width] for image, (height, width) in zip(images, batch.sizes, strict=True)]

    def _read(self, batch: Batch) -> Maps:
        """Run a forward pass and return the feature maps."""
        self._ensure_eval()
        inputs, image = self._inputs(batch), cast(Size, tuple(batch.images.shape[-2:]))
        autocast = nullcontext() if self.dtype is None else torch.autocast(batch.images.device.type, self.dtype)
        maps = Maps({}, {})
        with self._recording():
            with autocast:
                output = self.module(inputs)
            for (part, stride), recorder in self._recorders.items():
                if not recorder.tap.name:
                    recorder(self.module, (), output)
                recorded = recorder.only_map()
                level = _as_map(recorded, recorder.tap, stride, image)
                if level is None or len(level) != len(batch.sizes) or not self._has_stride(level, stride, image):
                    raise self._wrong_output(part, stride, recorder.tap, recorded, inputs, image)
                getattr(maps, part)[stride] = _cropped(level, cells(image[0], stride), cells(image[1], stride))
        return maps

    def _probe(self, takes: Takes | None) -> Maps:
        """Feature maps of a black image, from the first form of input that works; without compilation."""
        info, largest = self.info, max(stride for _, stride in self._recorders)
        height = info.size or rounded_up(max(PROBE_SIDE, largest), info.size_divisor)
        width = info.size or rounded_up(height * 5 // 4, info.size_divisor)
        padded = [rounded_up(side, info.size_divisor) for side in (height, width)]
        images = torch.zeros(1, 3, *padded, device=self.device)
        batch = Batch(images, [(height, width)], [], [(height, width)], len(info.classes))

        def attempt(form: Takes) -> Maps:
            self.takes = form
            return self._read(batch)

        with torch.no_grad(), torch.random.fork_rng(devices=[]), force_eager(self.module):
            return first_working_form(self.module, images, takes, attempt)

    def _ensure_eval(self) -> None:
        """Restore eval mode if the network was set to training from outside."""
        if any(child.training for child in self.children()):
            self.eval()

    def _keep_hooks(self) -> None:
        """Register permanent hooks if the network is compiled; copies lose those of compiled parts."""
        if is_compiled(self.module):
            self._register_hooks()

    def _register_hooks(self) -> list[RemovableHandle]:
        """Register the missing hooks, and return their handles."""
        modules, recorders = submodules(self.module), [each for each in self._recorders.values() if each.tap.name]
        missing = [each for each in recorders if each not in modules[each.tap.name]._forward_hooks.values()]
        return [modules[each.tap.name].register_forward_hook(each) for each in missing]

    @contextmanager
    def _recording(self) -> Iterator[None]:
        handles = self._register_hooks()  # none if they are permanent
        for recorder in self._recorders.values():
            recorder.start()
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for recorder in self._recorders.values():
                recorder.stop()

    def _has_stride(self, level: Tensor, stride: int, image: Size) -> bool:
        """Whether a feature map has the stride; a network whose input is a list may use another padding."""
        if self.takes == "tensor" or not self.info.neck | self.info.backbone:
            return has_stride(level.shape[-2:], image, stride)
        tolerance = self.info.size_divisor + stride
        return all(abs(count * stride - side) <= tolerance for count, side in zip(level.shape[-2:], image, strict=True))

    def _wrong_output(
        self, part: str, stride: int, tap: Tap, recorded: Tensor, inputs: Tensor | list[Tensor], image: Size
    ) -> InputError:
        """Build the error for a tap whose output does not match its stride; it lists modules of that stride."""
        shape, pixels = tuple(recorded.shape), f"{image[0]} x {image[1]} pixels"
        level = _as_map(recorded, tap, stride, image)
        actual_stride = None if level is None else stride_of(level.shape[-2:], image)
        problem = f"{part} {stride}: '{tap}' gives {shape} for {len(inputs)} x {pixels}"
        if actual_stride == stride:
            return InputError(f"{problem}: expected one feature map per image.")
        if level is None:
            problem += f", not {LAYOUTS[tap.layout]} of stride {stride}"
        elif actual_stride is None:
            problem += ", which matches no stride"
        else:
            problem += f", which is stride {actual_stride}, not {stride}"
        candidates = traced_candidates(self.module, inputs[:1], image)
        matching = [candidate for candidate in candidates if candidate.stride == stride]
        matching.sort(key=lambda candidate: candidate.name.count("."))
        more = f" and {len(matching) - MAX_LISTED} more" if len(matching) > MAX_LISTED else ""
        advice = f"Modules of stride {stride}: {', '.join(map(str, matching[:MAX_LISTED]))}{more}."
        if not matching:
            strides = ", ".join(map(str, sorted({candidate.stride for candidate in candidates}))) or "none"
            advice = f"No module has stride {stride}; available strides: {strides}."
        if is_torchvision_detector(self.module):
            advice += " The network resizes images itself: give the same size= here, or tap only its backbone."
        return InputError(f"{problem}. {advice}")


def _as_map(recorded: Tensor, tap: Tap, stride: int, image: Size) -> Tensor | None:
    """Convert a recorded output to (B, C, H, W); None if its shape does not allow that."""
    if recorded.ndim != (3 if tap.layout == "tokens" else 4):
        return None
    if tap.layout == "maps":
        return recorded
    if tap.layout == "tokens":
        recorded = recorded[:, tap.prefix_tokens :]  # (B, N, C)
        sides = [(cells(image[0], stride), cells(image[1], stride)), (image[0] // stride, image[1] // stride)]
        matching = [side for side in sides if side[0] * side[1] == recorded.shape[1]]
        if not matching:
            return None
        recorded = recorded.unflatten(1, matching[0])  # (B, H, W, C)
    return recorded.permute(0, 3, 1, 2)


def _cropped(level: Tensor, height: int, width: int) -> Tensor:
    """Crop a feature map (B, C, H, W) to the cells of the batch; missing cells at the border repeat the last one."""
    level = level[..., :height, :width]
    missing = (0, width - level.shape[-1], 0, height - level.shape[-2])
    return F.pad(level, missing, mode="replicate") if any(missing) else level
