#!/bin/bash
# Teacher and student of different kinds on BCCD, two seeds: a D-FINE student with a Faster R-CNN teacher, and the other way
# round. Both teachers are trained with augmentation, and keep the epoch that was best on the split val. It goes on where it was
# stopped.
#   benchmarks/accuracy/mixed.sh BCCD RUNS
set -euo pipefail
data=$1 runs=$2
source "$(dirname "$0")/_matrix.sh"
shared=(--data "$data" --size 160 --neck-channels 64 --batch-size 8 --workers 1)
d_fine=(--detector d_fine --lr 0.0005 --backbone-lr-factor 0.2 --grad-clip 0.1)
faster_rcnn=(--config small/faster_rcnn)

teacher() { # NAME OPTION..
  local out="$runs/teacher_mixed_$1"
  shift
  trained "$out" train "${shared[@]}" --backbone tf_efficientnet_lite2 --augment standard --schedule flat_cosine \
    --eval-every 5 --eval-split val --keep best "$@"
}
students() { # NAME TEACHER OPTION..
  local out="$runs/bench_mixed_$1" of="$runs/teacher_mixed_$2"
  shift 2
  defeat bench "${shared[@]}" --backbone tf_efficientnet_lite0 --teacher "$of" --eval-every 0 --eval-split test --seeds 2 \
    --out "$out" "$@"
}
teacher faster_rcnn "${faster_rcnn[@]}" --epochs 30
teacher d_fine "${d_fine[@]}" --epochs 60
students d_fine faster_rcnn "${d_fine[@]}" --epochs 30 --methods none,defeat,imitation,boxes
students faster_rcnn d_fine "${faster_rcnn[@]}" --epochs 12 --methods none,defeat,imitation,boxes
