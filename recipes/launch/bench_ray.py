"""A comparison on a Ray cluster, a cell of the matrix for each task.

    python recipes/launch/bench_ray.py 15 --data /path/to/data --teacher /path/to/runs/teacher --backbone resnet50 \
        --methods none,imitation,fgfi,tadf,defeat --seeds 3 --out /path/to/shared/bench

The first word is the number of cells, as `defeat bench ... --plan` counts them; the rest are options of `defeat bench`.
"""

import sys

import ray

from defeat.cli import main


@ray.remote(num_gpus=1, max_calls=1, max_retries=3)
def train_cell(number: int, options: list[str]) -> None:
    """Train one cell; a task that is started again goes on from the cell's checkpoint.

    Where its machine died, another one cannot know that: what it prints names the file to delete.
    """
    if main(["bench", *options, "--cells", str(number)]) != 0:
        raise RuntimeError(f"Cell {number} was not finished; its reason stands above.")


if __name__ == "__main__":
    cells, options = int(sys.argv[1]), sys.argv[2:]
    ray.get([train_cell.remote(number, options) for number in range(1, cells + 1)])
    sys.exit(main(["bench", *options]))  # nothing is left to train: the report of all cells
