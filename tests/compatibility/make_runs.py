"""Writes the runs of version 0.1 that `test_version_0_1.py` reads; run with that version, commit fc45c2a.

    PYTHONPATH=SOURCE_OF_0_1/src python tests/compatibility/make_runs.py tests/compatibility/version_0_1

`bench` is a comparison with the defaults of its version. `stopped` is its distilled run again, interrupted at step 4
of 6.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image, ImageDraw

SIZE, IMAGES = 64, {"train": 6, "val": 4}
COMMON = [
    "--data",
    "data",
    "--detector",
    "retinanet",
    "--backbone",
    "test_efficientnet",
    "--size",
    "64",
    "--epochs",
    "2",
    "--batch-size",
    "2",
    "--workers",
    "0",
    "--weights",
    "none",
    "--lr",
    "0.001",
    "--log-every",
    "1",
    "--eval-every",
    "0",
    "--checkpoint-every",
    "1",
    "--detector.score-thresh",
    "0",
    "--detector.detections-per-img",
    "20",
]
KEPT = {
    "bench.json",
    "bench.yaml",
    "config.yaml",
    "model.json",
    "model.safetensors",
    "metrics.jsonl",
    "results.json",
    "detections.safetensors",
}


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    os.chdir(folder)
    for split, count in IMAGES.items():
        _write_split(split, count)
    _defeat("train", *COMMON, "--neck-channels", "12", "--seed", "7", "--out", "teacher")
    with_teacher = [*COMMON, "--neck-channels", "8", "--teacher", "teacher", "--allow-weak-teacher"]
    _defeat("bench", *with_teacher, "--methods", "none,defeat", "--seeds", "1", "--out", "bench")
    cell = next(Path("bench").glob("*defeat*/config.yaml"))
    process = subprocess.Popen(_command("distill", "--config", str(cell), "--out", "stopped"))
    metrics = Path("stopped/metrics.jsonl")
    while not metrics.exists() or metrics.read_text().count("\n") < 4:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    process.wait()
    for path in Path().rglob("*"):
        kept = path.name in KEPT or path.parts[0] == "data" or path.parts[:2] == ("stopped", "checkpoints")
        if path.is_file() and not kept:
            path.unlink()


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "defeat.cli", *arguments]


def _defeat(*arguments: str) -> None:
    subprocess.run(_command(*arguments), check=True)


def _write_split(split: str, count: int) -> None:
    """A COCO split of images with two coloured rectangles each."""
    images = Path("data") / split
    images.mkdir(parents=True)
    generator = random.Random(split)  # noqa: S311
    content: dict[str, list[dict[str, object]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}],
    }
    for number in range(count):
        picture = Image.new("RGB", (SIZE, SIZE), "grey")
        for category, colour in ((1, "red"), (2, "blue")):
            left, top = generator.randint(0, 32), generator.randint(0, 32)
            width, height = generator.randint(12, 30), generator.randint(12, 30)
            ImageDraw.Draw(picture).rectangle((left, top, left + width - 1, top + height - 1), fill=colour)
            content["annotations"].append(
                {
                    "id": len(content["annotations"]),
                    "image_id": number,
                    "category_id": category,
                    "bbox": [left, top, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                }
            )
        picture.save(images / f"{number}.png")
        content["images"].append({"id": number, "file_name": f"{number}.png", "width": SIZE, "height": SIZE})
    (Path("data") / "annotations").mkdir(exist_ok=True)
    (Path("data") / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


if __name__ == "__main__":
    main()
