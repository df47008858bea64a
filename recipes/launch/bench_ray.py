"""A comparison on a Ray cluster, one task per cell of the matrix.

    python recipes/launch/bench_ray.py 15 --data /path/to/data --teacher /path/to/runs/teacher --backbone resnet50 \
        --methods none,imitation,fgfi,tadf,defeat --seeds 3 --out /path/to/shared/bench

The first argument is the number of cells that `defeat bench ... --plan` prints; the rest are options of `defeat bench`.
"""

import sys

import ray

from defeat.cli import main


@ray.remote(num_gpus=1, max_calls=1, max_retries=3)
def train_cell(number: int, options: list[str]) -> None:
    """Train one cell; a restarted task resumes from the cell's checkpoint.

    If the machine of the first attempt died, its lock remains: the error message names the file to delete.
    """
    if main(["bench", *options, "--cells", str(number)]) != 0:
        raise RuntimeError(f"Cell {number} was not finished; the reason is printed above.")


if __name__ == "__main__":
    cells, options = int(sys.argv[1]), sys.argv[2:]
    ray.get([train_cell.remote(number, options) for number in range(1, cells + 1)])
    sys.exit(main(["bench", *options]))  # all cells are trained: only the report
