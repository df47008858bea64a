"""FGD: focal and global distillation (Yang et al., CVPR 2022, arXiv 2111.11837)."""

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor, nn

from defeat.distillation.base import checked_weights
from defeat.distillation.maps import LevelMethod, LevelOptions, MapPair, published_weight
from defeat.distillation.regions import inverse_area_regions
from defeat.errors import InputError
from defeat.types import DetectorInfo, Target


class FGD(LevelMethod):
    """The student imitates objects and background where the teacher attends, its attention, and global relations.

    With the teacher's attention to the H W cells, A_s = H W softmax(mean over channels of |F| / T), and to the C
    channels, A_c = C softmax(mean over cells of |F| / T) (equations 1 to 4 of the paper), the squared difference of the
    maps times both is added over objects, where a cell weighs one over the area of the smallest box on it, and over the
    background, where the weights of an image add up to one (equations 5 to 9). `attention` is the L1 distance of both
    attentions of student and teacher (equation 10), and `relation` the squared distance of both maps after a global
    context block each (GcBlock, equations 12 and 13), which is trained along with the student. All are divided by the
    number of images; levels are added. Cells on padding don't count.

    The published weights are for features of ResNets with 256 channels and images of 800 pixels; neck and head are
    inherited (`--inherit neck+head`).

    Args:
        student: description of the student.
        teacher: description of the teacher.
        object_weight: weight of objects, alpha; None for the published one, 0.001 (one-stage) or 0.00005.
        background_weight: weight of the background, beta; None for the published one, 0.0005 or 0.000025.
        attention_weight: weight of the attention, gamma; None for the published one, 0.0005 or 0.00005.
        relation_weight: weight of the relations, lambda; None for the published one, 0.000005 or 0.0000005.
        temperature: temperature T of the attention, above 0 (published: 0.5, for FCOS 0.8).
        options: options of the methods that compare levels, see `LevelOptions`.

    Raises:
        InputError: an option is not valid, or the two necks share no stride.
    """

    paper = "Yang et al., CVPR 2022, arXiv 2111.11837"

    def __init__(
        self,
        student: DetectorInfo,
        teacher: DetectorInfo,
        *,
        object_weight: float | None = None,
        background_weight: float | None = None,
        attention_weight: float | None = None,
        relation_weight: float | None = None,
        temperature: float = 0.5,
        **options: Unpack[LevelOptions],
    ) -> None:
        if not 0 < temperature < float("inf"):
            raise InputError(f"temperature must be above 0, not {temperature}.")
        weights = checked_weights(
            object_weight=published_weight(object_weight, 1e-3, 5e-5, student),
            background_weight=published_weight(background_weight, 5e-4, 2.5e-5, student),
            attention_weight=published_weight(attention_weight, 5e-4, 5e-5, student),
            relation_weight=published_weight(relation_weight, 5e-6, 5e-7, student),
        )
        super().__init__(student, teacher, weights, **options)
        self.temperature = temperature
        related = self.maps.levels if self.wants("relation") else {}
        self.contexts = nn.ModuleDict(
            {
                f"{side}{stride}": GlobalContext(level.teacher_channels)
                for side in ("student", "teacher")
                for stride, level in related.items()
            }
        )

    def level_losses(self, maps: MapPair, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Compute `object`, `background`, `attention` and `relation`, those with a weight above zero."""
        images, valid = len(maps.student), maps.valid
        student_cells, student_channels = self._attention(maps.student, valid)
        teacher_cells, teacher_channels = self._attention(maps.teacher, valid)
        losses: dict[str, Tensor] = {}
        if self.wants("object") or self.wants("background"):
            difference = (maps.student - maps.teacher).square() * teacher_channels[:, :, None, None]
            per_cell = difference.sum(dim=1) * teacher_cells
            boxes = [target.boxes for target in targets]
            shape = valid.shape[-2], valid.shape[-1]
            objects = inverse_area_regions(boxes, {maps.stride: shape})[maps.stride].to(per_cell) * valid
            background = (objects == 0) & valid
            shares = background / background.sum(dim=(1, 2), keepdim=True).clamp(min=1)
            losses |= {"object": (per_cell * objects).sum() / images, "background": (per_cell * shares).sum() / images}
        if self.wants("attention"):
            cells = (student_cells - teacher_cells).abs().sum()
            losses["attention"] = (cells + (student_channels - teacher_channels).abs().sum()) / images
        if self.wants("relation"):
            student = self.contexts[f"student{maps.stride}"](maps.student, valid)
            teacher = self.contexts[f"teacher{maps.stride}"](maps.teacher, valid)
            losses["relation"] = (student - teacher).masked_fill(~valid[:, None], 0).square().sum() / images
        return {name: loss for name, loss in losses.items() if self.wants(name)}

    def _attention(self, level: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of a map (B, C, H, W) to cells, (B, H, W), zero on padding, and to channels, (B, C)."""
        magnitude = level.abs()
        count = valid.sum(dim=(1, 2))[:, None]  # (B, 1)
        over_cells = (magnitude.mean(dim=1) / self.temperature).flatten(1).masked_fill(~valid.flatten(1), float("-inf"))
        cells = (over_cells.softmax(dim=1) * count).view_as(valid)
        means = (magnitude * valid[:, None]).sum(dim=(2, 3)) / count
        return cells, (means / self.temperature).softmax(dim=1) * level.shape[1]


class GlobalContext(nn.Module):
    """A global context block (Cao et al., GCNet, 2019): each map plus a transform of its weighted mean over the cells.

    Args:
        channels: channels of the map; the transform has half as many inside.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 2)
        self.attention = nn.Conv2d(channels, 1, kernel_size=1)
        nn.init.kaiming_normal_(self.attention.weight, mode="fan_in")
        nn.init.zeros_(self.attention.bias)  # type: ignore[arg-type]
        self.transform = nn.Sequential(
            nn.Linear(channels, inner), nn.LayerNorm(inner), nn.ReLU(), nn.Linear(inner, channels)
        )
        last = self.transform[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)  # begins as the identity
        nn.init.zeros_(last.bias)

    def forward(self, level: Tensor, valid: Tensor) -> Tensor:
        """Add the context of the valid cells (B, H, W) to a map (B, C, H, W)."""
        logits = self.attention(level).flatten(2).masked_fill(~valid.flatten(1)[:, None], float("-inf"))
        context = torch.einsum("bcn,bn->bc", level.flatten(2), logits.softmax(dim=2)[:, 0])
        added: Tensor = self.transform(context)[:, :, None, None]
        return level + added
