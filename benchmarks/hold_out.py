"""Split the training images of a VOC or YOLO folder in two, to choose options without the test split.

    python benchmarks/hold_out.py FOLDER NEW_FOLDER [--images 150] [--seed 0]

Images and annotations are linked, not copied. The new folder has the splits `train`, `val` (held out) and `test`. A
YOLO folder has `images/train` and `images/test`, and labels likewise.
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import yaml


def random_split(stems: Sequence[str], part: float, seed: int) -> tuple[list[str], list[str]]:
    """Split names of images at random into a part and the others, both in the order given."""
    shuffled = list(stems)
    random.Random(seed).shuffle(shuffled)  # noqa: S311 (not for security)
    chosen = set(shuffled[: round(part * len(stems))])
    return [stem for stem in stems if stem in chosen], [stem for stem in stems if stem not in chosen]


def training_stems(source: Path) -> list[str]:
    """Names of the training images of a VOC or YOLO folder, without suffix."""
    if is_yolo(source):
        return sorted(path.stem for path in (source / "images" / "train").iterdir())
    return (source / "ImageSets" / "Main" / "train.txt").read_text().split()


def is_yolo(source: Path) -> bool:
    """Whether a folder has the YOLO layout; otherwise it has the VOC layout."""
    return (source / "data.yaml").is_file()


def link_splits(source: Path, folder: Path, splits: dict[str, list[str]]) -> None:
    """Write a folder with these splits of the training images and the source's `test`, as links."""
    (_link_yolo if is_yolo(source) else _link_voc)(source, folder, splits)


def _link_voc(source: Path, folder: Path, splits: dict[str, list[str]]) -> None:
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for name in ("Annotations", "JPEGImages"):
        (folder / name).symlink_to((source / name).resolve(), target_is_directory=True)
    test = (source / "ImageSets" / "Main" / "test.txt").read_text().split()
    for split, stems in (splits | {"test": test}).items():
        (lists / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
        print(f"{split}: {len(stems)} images")


def _link_yolo(source: Path, folder: Path, splits: dict[str, list[str]]) -> None:
    test = sorted(path.stem for path in (source / "images" / "test").iterdir())
    for split, stems in (splits | {"test": test}).items():
        origin = "test" if split == "test" else "train"
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
            files = {path.stem: path for path in (source / kind / origin).iterdir()}
            for stem in stems:
                if stem in files:  # an image without objects may have no label file
                    (folder / kind / split / files[stem].name).symlink_to(files[stem].resolve())
        print(f"{split}: {len(stems)} images")
    content = yaml.safe_load((source / "data.yaml").read_text())
    paths = {split: f"images/{split}" for split in (*splits, "test")}
    (folder / "data.yaml").write_text(
        yaml.safe_dump({"path": ".", **paths, "names": content["names"]}, sort_keys=False)
    )


def main() -> None:
    """Write the new folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    stems = training_stems(given.source)
    held_out, train = random_split(stems, given.images / len(stems), given.seed)
    link_splits(given.source, given.folder, {"train": train, "val": held_out})


if __name__ == "__main__":
    main()
