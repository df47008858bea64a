"""Detect objects with a file of `defeat export`, without this package and without torch.

    pip install numpy onnxruntime pillow
    python detect_onnx.py student.onnx photo.jpg [photo.jpg ...]

The file says itself how images are prepared (see `ExportDescription`). This example is for --nms inside, the default.
"""

import json
import sys
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def prepare(image: Image.Image, about: dict[str, Any]) -> tuple[np.ndarray, tuple[int, int]]:
    """The input (1, 3, H, W) for an image, and the height and width of the image in it."""
    width, height = image.size
    if about["square"]:
        new = (about["size"], about["size"])
    else:
        scale = min(about["size"] / min(height, width), about["max_size"] / max(height, width))
        new = (max(1, int(height * scale)), max(1, int(width * scale)))
    shrink = min(1.0, (about["height"] or new[0]) / new[0], (about["width"] or new[1]) / new[1])
    new = (max(1, int(new[0] * shrink)), max(1, int(new[1] * shrink)))
    resized = image.resize((new[1], new[0]), Image.Resampling.BILINEAR)
    sides = (about["height"] or new[0], about["width"] or new[1])
    canvas = np.empty((1, 3, *sides), dtype=np.float32)
    canvas[:] = np.array(about["fill"], dtype=np.float32)[:, None, None]
    canvas[0, :, : new[0], : new[1]] = np.asarray(resized, dtype=np.float32).transpose(2, 0, 1) / 255 * about["white"]
    return canvas, new


def detect(session: onnxruntime.InferenceSession, image: Image.Image) -> list[dict[str, Any]]:
    """Objects in an image, the best first: `label`, `score` in 0..1, and `box`, x1 y1 x2 y2 in pixels."""
    about = json.loads(session.get_modelmeta().custom_metadata_map["defeat"])
    image = ImageOps.exif_transpose(image).convert("RGB")
    prepared, (height, width) = prepare(image, about)
    boxes, scores, labels = session.run(["boxes", "scores", "labels"], {"images": prepared})
    boxes = np.clip(boxes, 0, [width, height, width, height])
    boxes *= np.array([image.width / width, image.height / height] * 2, dtype=np.float32)
    return [
        {"label": about["classes"][label], "score": float(score), "box": box.tolist()}
        for box, score, label in zip(boxes, scores, labels, strict=True)
    ]


def main() -> None:
    """Print the objects with a score of at least 0.5 in each image."""
    session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    for path in sys.argv[2:]:
        for found in detect(session, Image.open(path)):
            if found["score"] >= 0.5:
                corners = " ".join(f"{side:.0f}" for side in found["box"])
                print(f"{path}: {found['label']} {found['score']:.2f} at {corners}")


if __name__ == "__main__":
    main()
