#!/bin/bash
# None, DeFeat and what each of its regions teaches, with three seeds, on BCCD with RetinaNet. It goes on where it was
# stopped. About 3 core-hours on a processor: several shells can share the cells (--cells 1-7 ..).
#   benchmarks/accuracy/bccd.sh BCCD RUNS [options of defeat bench]
set -euo pipefail
data=$(realpath "$1") runs=$2
shift 2
recipe=$(realpath "$(dirname "$0")/../../recipes/small/retinanet.yaml")
mkdir -p "$runs"
cd "$runs"
shared=(--config "$recipe" --data "$data" --workers 1 --eval-every 0)
if [ ! -f teacher_bccd/results.json ]; then
  resume=()
  [ -f teacher_bccd/checkpoints/last.ckpt ] && resume=(--resume)
  defeat train "${shared[@]}" --backbone tf_efficientnet_lite2 --neck-channels 128 --epochs 24 --out teacher_bccd "${resume[@]}"
fi
defeat bench "${shared[@]}" --backbone tf_efficientnet_lite0 --neck-channels 64 --teacher teacher_bccd \
  --ablate regions --seeds 3 --out bench_bccd "$@"
