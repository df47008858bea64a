"""Make a VOC folder with a part of the training images, and a folder with the other images without annotations.

    python benchmarks/quarter.py VOC_FOLDER NEW_FOLDER [--part 0.25] [--seed 0]

Images and annotations are linked, not copied. The new folder has the splits `train` (the part) and `test`; the other
training images are in NEW_FOLDER/unlabelled.
"""

import argparse
from pathlib import Path

from hold_out import link_splits, random_split, training_stems


def main() -> None:
    """Write the new folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", type=float, default=0.25)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    annotated, others = random_split(training_stems(given.source), given.part, given.seed)
    link_splits(given.source, given.folder, {"train": annotated})
    unlabelled = given.folder / "unlabelled"
    unlabelled.mkdir()
    for stem in others:
        (image,) = (given.source / "JPEGImages").glob(f"{stem}.*")
        (unlabelled / image.name).symlink_to(image.resolve())
    print(f"unlabelled: {len(others)} images")


if __name__ == "__main__":
    main()
