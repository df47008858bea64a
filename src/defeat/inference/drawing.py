"""Draws boxes, regions and heat maps on images."""

import colorsys
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_dtype, to_pil_image
from torchvision.utils import draw_bounding_boxes

from defeat.data.images import rgb_tensor
from defeat.inference.fonts import font_for
from defeat.types import Detections, Target

GOLDEN = 0.61803398875  # hue steps of the golden ratio keep the colours of consecutive classes far apart
SMALLEST_TEXT = 10  # pixels
TINT = 0.45  # opacity of a region or a heat map where it is strongest


def class_color(label: int) -> tuple[int, int, int]:
    """R, G, B in 0..255 of a class: saturated, and different from those of neighbouring labels."""
    red, green, blue = colorsys.hsv_to_rgb((label * GOLDEN) % 1.0, 0.85, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_detections(
    image: Tensor, detections: Detections, classes: Sequence[str], threshold: float | Tensor = 0.3
) -> Tensor:
    """Draw boxes, class names and scores on a copy of an image.

    Args:
        image: (3, H, W) uint8 RGB.
        detections: detections in pixels of that image.
        classes: names of the K classes.
        threshold: least score of a drawn detection, 0..1; or (K,), that of each class.

    Returns:
        (3, H, W) uint8 on the CPU.
    """
    detections, image = detections.cpu(), image.cpu()
    boxes, scores, labels = detections.boxes, detections.scores, detections.labels
    least = threshold[labels] if isinstance(threshold, Tensor) else threshold
    keep = (scores >= least) & (boxes[:, 2:] >= boxes[:, :2]).all(dim=1)
    order = scores[keep].argsort()  # the best is drawn last, on top
    boxes, scores, labels = (field[keep][order] for field in (boxes, scores, labels))
    if len(boxes) == 0:
        return image.clone()
    texts = [f"{classes[label]} {score:.2f}" for label, score in zip(labels.tolist(), scores.tolist(), strict=True)]
    return _draw(image, boxes, labels, texts)


def draw(image: object, detections: Detections, classes: Sequence[str], threshold: float = 0.3) -> Image.Image:
    """Draw boxes, class names and scores on an image.

    Args:
        image: path of a file, PIL image, array (H, W, 3) of uint8, or tensor (3, H, W), uint8 in 0..255 or
            floating-point in 0..1.
        detections: detections in pixels of that image.
        classes: names of the K classes, such as `detector.info.classes`.
        threshold: least score of a drawn detection, 0..1.

    Returns:
        A PIL image, which notebooks show.

    Raises:
        InputError: the image can't be read.
    """
    picture = to_dtype(rgb_tensor(image), torch.uint8, scale=True)
    drawn: Image.Image = to_pil_image(draw_detections(picture, detections, classes, threshold))
    return drawn


def draw_target(image: Tensor, target: Target, classes: Sequence[str]) -> Tensor:
    """Draw annotated boxes and class names on a copy of an image, without difficult and crowd boxes.

    Args:
        image: (3, H, W) uint8 RGB.
        target: annotations in pixels of that image.
        classes: names of the K classes.

    Returns:
        (3, H, W) uint8 on the CPU.
    """
    target = target.to(torch.device("cpu")).trainable()
    if len(target.boxes) == 0:
        return image.cpu().clone()
    return _draw(image.cpu(), target.boxes, target.labels, [classes[label] for label in target.labels.tolist()])


def paint_regions(image: Tensor, regions: Sequence[Tensor], colors: Sequence[tuple[int, int, int]]) -> Tensor:
    """Tint regions of a copy of an image, each in its own colour.

    Args:
        image: (3, H, W) uint8 RGB.
        regions: (h, w) each, in 0..1, of any resolution, covering the whole image.
        colors: R, G, B in 0..255 per region.

    Returns:
        (3, H, W) uint8 on the CPU.
    """
    picture = image.cpu().float()
    for region, color in zip(regions, colors, strict=True):
        share = TINT * enlarged(region.float().cpu(), picture.shape[-2:], "nearest")
        picture = picture * (1 - share) + torch.tensor(color)[:, None, None] * share
    return picture.round().clamp(0, 255).to(torch.uint8)


def paint_heat(image: Tensor, heat: Tensor) -> Tensor:
    """Overlay a heat map on a grey copy of an image: transparent at 0, then red, yellow at 1.

    Args:
        image: (3, H, W) uint8 RGB.
        heat: (h, w) in 0..1, of any resolution, covering the whole image.

    Returns:
        (3, H, W) uint8 on the CPU.
    """
    grey = image.cpu().float().mean(dim=0, keepdim=True).expand(3, -1, -1)
    level = enlarged(heat.float().cpu().clamp(0, 1), grey.shape[-2:], "bilinear")
    color = torch.stack([torch.full_like(level, 255.0), 255 * (2 * level - 1).clamp(min=0), torch.zeros_like(level)])
    share = (2 * TINT * level).clamp(max=0.9)
    return (grey * (1 - share) + color * share).round().clamp(0, 255).to(torch.uint8)


def side_by_side(pictures: Sequence[Tensor], gap: int = 4) -> Tensor:
    """Join pictures of one size from left to right, with a white gap: (3, H, W)."""
    if len(pictures) == 1:
        return pictures[0]
    white = pictures[0].new_full((3, pictures[0].shape[-2], gap), 255)
    return torch.cat([pictures[0], *(part for picture in pictures[1:] for part in (white, picture))], dim=2)


def titled(picture: Tensor, title: str) -> Tensor:
    """Add a title on a white strip above a picture (3, H, W) uint8: (3, H + strip, W) uint8."""
    size = max(SMALLEST_TEXT, round(min(picture.shape[-2:]) / 16))
    strip = Image.new("RGB", (int(picture.shape[-1]), 2 * size), "white")
    font = ImageFont.truetype(font_for([title]), size)
    ImageDraw.Draw(strip).text((size // 2, size), title, fill="black", font=font, anchor="lm")
    return torch.cat([pil_to_tensor(strip), picture.cpu()], dim=1)


def enlarged(level: Tensor, size: Sequence[int], mode: str = "bilinear") -> Tensor:
    """Resize a (h, w) map."""
    return torch.nn.functional.interpolate(level[None, None], size=tuple(size), mode=mode)[0, 0]


def _draw(image: Tensor, boxes: Tensor, labels: Tensor, texts: Sequence[str]) -> Tensor:
    edges = boxes - torch.tensor([0.0, 0.0, 1.0, 1.0])  # boxes end one pixel after their last pixel
    edges[:, 2:] = torch.maximum(edges[:, 2:], edges[:, :2])
    colors = [class_color(label) for label in labels.tolist()]
    side = min(image.shape[-2:])
    drawn: Tensor = draw_bounding_boxes(
        image,
        edges,
        labels=list(texts),
        colors=colors,
        width=max(1, round(side / 150)),
        font=font_for(texts),
        font_size=max(SMALLEST_TEXT, round(side / 36)),
        label_colors=["black" if _is_light(color) else "white" for color in colors],
        fill_labels=True,
    )
    return drawn


def _is_light(color: tuple[int, int, int]) -> bool:
    red, green, blue = color
    return 0.299 * red + 0.587 * green + 0.114 * blue > 140  # luma (ITU-R BT.601), 0..255
