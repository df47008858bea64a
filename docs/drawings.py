"""Drawings of the documentation as SVG, and the regions of a scene as the code paints them."""

import io
from html import escape

WIDTH = 720
SIDE = 768  # pixels of the scene
STYLE = (
    "text{font:14px system-ui,sans-serif;fill:#16202c}.soft{fill:#5b6878}"
    ".box{fill:#eef4f6;stroke:#0f6e84;stroke-width:1.5}.student{fill:#fdf1ea;stroke:#d9622b;stroke-width:1.5}"
    ".arrow{stroke:#16202c;stroke-width:1.5;fill:none;marker-end:url(#tip)}"
    ".pull{stroke:#d9622b;stroke-width:2;stroke-dasharray:5 4;fill:none;marker-end:url(#tip)}"
)
TIP = (
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0L8 4L0 8z" fill="#16202c"/></marker></defs>'
)


def all_drawings() -> dict[str, bytes]:
    """Content of each file by its name."""
    return {"networks.svg": networks().encode(), "inheritance.svg": inheritance().encode(), "regions.png": regions()}


def networks() -> str:
    """Teacher and student on the same image, and where they are compared."""
    parts = [_text(10, 24, "image"), _rect(10, 34, 90, 150, "box"), _text(22, 114, "batch", "soft")]
    for y, kind, name in ((34, "box", "teacher, frozen"), (134, "student", "student, trained")):
        parts.append(_text(150, y - 8, name))
        for x, part in ((150, "backbone"), (290, "neck"), (430, "head")):
            parts += [_rect(x, y, 110, 50, kind), _text(x + 14, y + 30, part)]
        parts += [_arrow(100, y + 25, 148, y + 25), _arrow(260, y + 25, 288, y + 25), _arrow(400, y + 25, 428, y + 25)]
        parts.append(_arrow(540, y + 25, 578, y + 25))
        parts.append(_text(584, y + 30, "detections"))
    parts.append(f'<path class="pull" d="M345 134V92"/>{_text(352, 118, "feature maps: objects, background", "soft")}')
    parts.append(f'<path class="pull" d="M624 148V76"/>{_text(560, 210, "class scores, boxes", "soft")}')
    return _svg("Teacher and student see the same batch; their feature maps and predictions are compared", parts, 220)


def inheritance() -> str:
    """Which weights the student starts from."""
    parts = []
    for y, kind, name in ((34, "box", "teacher"), (154, "student", "student")):
        parts.append(_text(10, y + 30, name))
        for x, part in ((110, "large backbone" if kind == "box" else "small backbone"), (310, "neck"), (510, "head")):
            parts += [_rect(x, y, 150, 50, kind), _text(x + 18, y + 30, part)]
        parts += [_arrow(260, y + 25, 308, y + 25), _arrow(460, y + 25, 508, y + 25)]
    parts += [
        _arrow(385, 86, 385, 152),
        _arrow(585, 86, 585, 152),
        _text(398, 124, "copied at the start", "soft"),
    ]
    return _svg("The student starts with the teacher's neck and head", parts, 220)


def regions() -> bytes:
    """A scene, and the cells of each level on which DeFeat weights objects, as a PNG."""
    import torch
    from PIL import Image

    from defeat.data import open_dataset
    from defeat.detector import build
    from defeat.distillation import build_method

    image, target = open_dataset("demo", "val")[0]
    # Enlarged to the size for which the levels of objects are meant.
    large = torch.nn.functional.interpolate(image[None].float() / 255, (SIDE, SIDE), mode="bilinear")[0]
    boxes = target.resized((SIDE, SIDE)).boxes
    student = build("retinanet", "none", backbone="resnet18", classes=("a",), size=SIDE, neck_channels=16)
    method = build_method("defeat", student.info, student.info, {})
    painted = method.painted([boxes], {stride: (SIDE // stride, SIDE // stride) for stride in student.info.neck})[
        "object"
    ]
    panels, colour = [large], torch.tensor([0.85, 0.38, 0.17])[:, None, None]
    for stride in (8, 16, 32):
        cells = painted[stride][0].float()[None, None]
        mask = torch.nn.functional.interpolate(cells, (SIDE, SIDE))[0, 0]
        panels.append(large * (1 - 0.6 * mask) + colour * 0.6 * mask)
    gap = torch.ones(3, SIDE, 24)
    row = torch.cat([part for panel in panels for part in (panel, gap)][:-1], dim=2)
    pixels = (row.permute(1, 2, 0) * 255).round().byte().numpy()
    picture = Image.fromarray(pixels).resize((pixels.shape[1] // 3, SIDE // 3), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def _svg(label: str, parts: list[str], height: int) -> str:
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(label)}">'
        f"<style>{STYLE}</style>{TIP}{''.join(parts)}</svg>"
    )


def _rect(x: int, y: int, width: int, height: int, kind: str) -> str:
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="8"/>'


def _text(x: int, y: int, text: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x}" y="{y}">{escape(text)}</text>'


def _arrow(x: int, y: int, to_x: int, to_y: int) -> str:
    return f'<path class="arrow" d="M{x} {y}L{to_x} {to_y}"/>'
