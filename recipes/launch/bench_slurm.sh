#!/bin/bash
# A comparison on a SLURM cluster, a cell of the matrix for each job. Set the paths, ask for as many jobs as
# `defeat bench ... --plan` counts cells, then: sbatch recipes/launch/bench_slurm.sh
#SBATCH --job-name=defeat-bench
#SBATCH --array=1-15
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=6
#SBATCH --signal=SIGINT@120     # two minutes before the end: stop between two steps and write a checkpoint
set -euo pipefail
DATA=/path/to/data
TEACHER=/path/to/runs/teacher
OUT=/path/to/shared/bench

# A job that was stopped goes on from its checkpoint: submit the array again. Each job reports what is finished so far.
srun defeat bench --data "$DATA" --teacher "$TEACHER" --backbone resnet50 --methods none,imitation,fgfi,tadf,defeat \
  --seeds 3 --workers 5 --out "$OUT" --cells "$SLURM_ARRAY_TASK_ID"

# Machines that share no folder write one each; then: defeat bench --merge bench-1 bench-2 --out bench
