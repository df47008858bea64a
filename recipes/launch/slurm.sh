#!/bin/bash
# A distillation on several nodes of a SLURM cluster. Set the three paths, then: sbatch recipes/launch/slurm.sh
#SBATCH --job-name=defeat
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8     # one process per GPU: the same number as --devices
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=6
#SBATCH --signal=SIGINT@120     # two minutes before the end: stop between two steps and write a checkpoint
set -euo pipefail
DATA=/path/to/coco
TEACHER=/path/to/runs/teacher
OUT=/path/to/runs/student

# SLURM tells each process its rank. A stopped job resumes from its checkpoint.
resume=()
[ -f "$OUT/checkpoints/last.ckpt" ] && resume=(--resume)
srun defeat distill --config coco/faster_rcnn_r152_r50_defeat_1x --data "$DATA" --teacher "$TEACHER" \
  --nodes "$SLURM_JOB_NUM_NODES" --devices 8 --batch-size 1 --workers 5 --out "$OUT" "${resume[@]}"
