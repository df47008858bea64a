"""Make a VOC folder whose training images are parted in two, so that options can be chosen without the test split.

    python benchmarks/hold_out.py VOC_FOLDER NEW_FOLDER [--images 150] [--seed 0]

Images and annotations are linked, not copied. The new folder has the splits `train`, `val` (held out) and `test`.
"""

import argparse
import random
from pathlib import Path


def main() -> None:
    """Write the new folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    lists = given.folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for part in ("Annotations", "JPEGImages"):
        (given.folder / part).symlink_to((given.source / part).resolve(), target_is_directory=True)
    source = given.source / "ImageSets" / "Main"
    train = (source / "train.txt").read_text().split()
    shuffled = train.copy()
    random.Random(given.seed).shuffle(shuffled)  # noqa: S311 (no secret)
    held_out = set(shuffled[: given.images])
    splits = {
        "train": [stem for stem in train if stem not in held_out],
        "val": [stem for stem in train if stem in held_out],
        "test": (source / "test.txt").read_text().split(),
    }
    for split, stems in splits.items():
        (lists / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
        print(f"{split}: {len(stems)} images")


if __name__ == "__main__":
    main()
