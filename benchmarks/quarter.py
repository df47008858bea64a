"""Make a VOC folder in which a part of the training images keeps its annotations, and a folder with the other images.

    python benchmarks/quarter.py VOC_FOLDER NEW_FOLDER [--part 0.25] [--seed 0]

Images and annotations are linked, not copied. The new folder has the splits `train` (the part) and `test`; the other
training images are in NEW_FOLDER/unlabelled.
"""

import argparse
import random
from pathlib import Path


def main() -> None:
    """Write the new folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", type=float, default=0.25)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    lists, unlabelled = given.folder / "ImageSets" / "Main", given.folder / "unlabelled"
    lists.mkdir(parents=True)
    unlabelled.mkdir()
    for part in ("Annotations", "JPEGImages"):
        (given.folder / part).symlink_to((given.source / part).resolve(), target_is_directory=True)
    source = given.source / "ImageSets" / "Main"
    train = (source / "train.txt").read_text().split()
    shuffled = train.copy()
    random.Random(given.seed).shuffle(shuffled)  # noqa: S311 (no secret)
    kept = set(shuffled[: round(given.part * len(train))])
    splits = {"train": [stem for stem in train if stem in kept], "test": (source / "test.txt").read_text().split()}
    for split, stems in splits.items():
        (lists / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
        print(f"{split}: {len(stems)} images")
    others = [stem for stem in train if stem not in kept]
    for stem in others:
        (image,) = (given.source / "JPEGImages").glob(f"{stem}.*")
        (unlabelled / image.name).symlink_to(image.resolve())
    print(f"unlabelled: {len(others)} images")


if __name__ == "__main__":
    main()
