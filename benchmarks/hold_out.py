"""Make a VOC folder whose training images are parted in two, so that options can be chosen without the test split.

    python benchmarks/hold_out.py VOC_FOLDER NEW_FOLDER [--images 150] [--seed 0]

Images and annotations are linked, not copied. The new folder has the splits `train`, `val` (held out) and `test`.
"""

import argparse
import random
from pathlib import Path


def parted(source: Path, part: float, seed: int) -> tuple[list[str], list[str]]:
    """Names of the training images of a VOC folder: a random part of them, and the others; each in the list's order."""
    train = (source / "ImageSets" / "Main" / "train.txt").read_text().split()
    shuffled = train.copy()
    random.Random(seed).shuffle(shuffled)  # noqa: S311 (no secret)
    chosen = set(shuffled[: round(part * len(train))])
    return [stem for stem in train if stem in chosen], [stem for stem in train if stem not in chosen]


def link_splits(source: Path, folder: Path, splits: dict[str, list[str]]) -> None:
    """Write a VOC folder with these splits and the source's `test`, whose images and annotations are links."""
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for name in ("Annotations", "JPEGImages"):
        (folder / name).symlink_to((source / name).resolve(), target_is_directory=True)
    test = (source / "ImageSets" / "Main" / "test.txt").read_text().split()
    for split, stems in (splits | {"test": test}).items():
        (lists / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
        print(f"{split}: {len(stems)} images")


def main() -> None:
    """Write the new folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    total = len((given.source / "ImageSets" / "Main" / "train.txt").read_text().split())
    held_out, train = parted(given.source, given.images / total, given.seed)
    link_splits(given.source, given.folder, {"train": train, "val": held_out})


if __name__ == "__main__":
    main()
