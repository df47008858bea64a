#!/bin/bash
# A comparison on a SLURM cluster, one job per cell of the matrix. Set the paths, set the array to the number of cells that
# `defeat bench ... --plan` prints, then: sbatch recipes/launch/bench_slurm.sh
#SBATCH --job-name=defeat-bench
#SBATCH --array=1-15
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=6
#SBATCH --signal=SIGINT@120     # two minutes before the end: stop between two steps and write a checkpoint
set -euo pipefail
DATA=/path/to/data
TEACHER=/path/to/runs/teacher
OUT=/path/to/shared/bench

# A stopped job resumes from its checkpoint: submit the array again. Each job reports the cells finished so far.
srun defeat bench --data "$DATA" --teacher "$TEACHER" --backbone resnet50 --methods none,imitation,fgfi,tadf,defeat \
  --seeds 3 --workers 5 --out "$OUT" --cells "$SLURM_ARRAY_TASK_ID"

# Machines without a shared folder write one each; then: defeat bench --merge bench-1 bench-2 --out bench
