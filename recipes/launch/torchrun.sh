#!/bin/bash
# A distillation on several machines without a scheduler: run this on each machine, with its number.
#   recipes/launch/torchrun.sh NUMBER ADDRESS_OF_MACHINE_0
# On one machine this is not needed: `defeat distill ... --devices 8` starts the processes itself.
set -euo pipefail
NODES=2
DEVICES=8
torchrun --nnodes "$NODES" --node-rank "$1" --nproc-per-node "$DEVICES" --master-addr "$2" --master-port 29500 \
  --module defeat.cli distill --config coco/faster_rcnn_r152_r50_defeat_1x --data /path/to/coco \
  --teacher /path/to/runs/teacher --nodes "$NODES" --devices "$DEVICES" --batch-size 1 --out /path/to/runs/student
