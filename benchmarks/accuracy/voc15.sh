#!/bin/bash
# The matrix of methods and seeds on voc15, with a teacher trained three times as long as the students. It goes on where it
# was stopped. About 7 core-hours on a processor: several shells can share the cells (--cells 1-5 ..).
#   benchmarks/accuracy/voc15.sh VOC15 RUNS [options of defeat bench]
set -euo pipefail
data=$1 runs=$2
shift 2
cd "$(dirname "$0")/../.."
[ -d "$runs/held_out" ] || python benchmarks/hold_out.py "$data" "$runs/held_out"
shared=(--config small/photographs --data "$runs/held_out" --workers 1)
teacher=(--backbone tf_efficientnet_lite2 --neck-channels 128 --epochs 24 --eval-every 4)
if [ ! -f "$runs/teacher/results.json" ]; then
  resume=()
  [ -f "$runs/teacher/checkpoints/last.ckpt" ] && resume=(--resume)
  defeat train "${shared[@]}" "${teacher[@]}" --out "$runs/teacher" "${resume[@]}"
fi
defeat bench "${shared[@]}" --backbone tf_efficientnet_lite0 --neck-channels 64 --teacher "$runs/teacher" \
  --methods none,imitation,fgfi,tadf,defeat --seeds 3 --eval-every 0 --out "$runs/bench_voc15" "$@"
