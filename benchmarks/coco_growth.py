"""Measure how opening a COCO file grows with its images: time, and memory beyond the imported libraries.

    python -m benchmarks.coco_growth [--images 10000 118000 1000000] [--out FILE]

The files have the keys of COCO 2017 and 7 boxes per image, without outlines unless `--outlines` says how many numbers
each has. Every file name is a link to one image. Each size is opened in a new process, which then forks workers that
read all targets, like those of a loader.
"""

import argparse
import gc
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random
from time import perf_counter, process_time
from typing import Any

from PIL import Image

from benchmarks.measure import publish
from defeat.data import DetectionDataset, open_dataset

WIDTH, HEIGHT = 640, 480
WORKERS = 4


def write(folder: Path, images: int, boxes: int, outlines: int) -> Path:
    """Write a data set, element by element."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "train2017").mkdir()
    image = folder / "one.png"
    Image.new("RGB", (WIDTH, HEIGHT)).save(image)
    random = Random(0)  # noqa: S311
    with (folder / "annotations/instances_train2017.json").open("w", encoding="utf-8") as file:
        file.write('{"info": {"year": 2017}, "licenses": [], "images": [')
        for number in range(images):
            name = f"{number:012d}.jpg"
            (folder / "train2017" / name).symlink_to(image)
            entry = {"license": 4, "file_name": name, "coco_url": f"http://images.cocodataset.org/train2017/{name}"}
            entry |= {"height": HEIGHT, "width": WIDTH, "date_captured": "2013-11-14 11:18:45", "id": number + 1}
            file.write(("" if number == 0 else ", ") + json.dumps(entry))
        file.write('], "annotations": [')
        for number in range(boxes):
            x, y, width, height = (round(random.uniform(1, 230), 2) for _ in range(4))
            outline = [[round(random.uniform(0, 480), 2) for _ in range(outlines)]] if outlines else []
            box = {
                "segmentation": outline,
                "area": round(width * height, 4),
                "iscrowd": 0,
                "bbox": [x, y, width, height],
            }
            box |= {"image_id": random.randrange(images) + 1, "category_id": number % 80 + 1, "id": number + 1}
            file.write(("" if number == 0 else ", ") + json.dumps(box))
        categories = [{"supercategory": "thing", "id": number + 1, "name": f"class {number}"} for number in range(80)]
        file.write(f'], "categories": {json.dumps(categories)}}}')
    return folder


def memory(field: str) -> float:
    """A figure of the memory of this process in MiB; Linux only."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def private_memory() -> float:
    """Memory in MiB that this process shares with no other; Linux only."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean:", "Private_Dirty:"))) / 1024


_OPENED: list[DetectionDataset] = []  # what the forked workers find in their memory


def copied_by_worker(_: int) -> float:
    """Memory in MiB that a forked worker copies when it reads the targets of all images."""
    (dataset,) = _OPENED
    gc.freeze()  # as workers of a loader do, see `begin_worker`
    before = private_memory()
    for index in range(len(dataset)):
        dataset.target(index)
        dataset.image_path(index)
    return private_memory() - before


def measure(folder: Path) -> dict[str, float]:
    """Open a data set in this process."""
    libraries = memory("VmRSS")
    clock, cpu = perf_counter(), process_time()
    dataset = open_dataset(folder, "train")
    figures = {"seconds": perf_counter() - clock, "seconds of CPU": process_time() - cpu}
    figures |= {"libraries, MiB": libraries, "peak beyond, MiB": memory("VmHWM") - libraries}
    figures["kept beyond, MiB"] = memory("VmRSS") - libraries
    _OPENED.append(dataset)
    with multiprocessing.get_context("fork").Pool(WORKERS) as pool:
        figures["copied per worker, MiB"] = max(pool.map(copied_by_worker, range(WORKERS), chunksize=1))
    return {name: round(value, 2) for name, value in figures.items()}


def main() -> None:
    """Measure each size in a new process, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 118_000, 1_000_000])
    parser.add_argument("--boxes", type=int, default=7, help="boxes per image")
    parser.add_argument("--outlines", type=int, default=0, help="numbers in the outline of a box")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--open", type=Path, help="only open this folder, and print the figures as JSON")
    options = parser.parse_args()
    if options.open:
        print(json.dumps(measure(options.open)))
        return
    tables: dict[str, dict[str, float]] = {}
    for images in options.images:
        with tempfile.TemporaryDirectory() as folder:
            data = write(Path(folder) / "data", images, images * options.boxes, options.outlines)
            tables[f"{images} images"] = in_new_process(data)
    work: dict[str, Any] = {"boxes per image": options.boxes, "outlines": options.outlines, "workers": WORKERS}
    publish(tables, work, options.out)


def in_new_process(folder: Path) -> dict[str, float]:
    """The figures of a data set, measured in a process that has opened no other."""
    command = [sys.executable, "-m", "benchmarks.coco_growth", "--open", str(folder)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=dict(os.environ)).stdout
    figures: dict[str, float] = json.loads(output.splitlines()[-1])
    return figures


if __name__ == "__main__":
    main()
