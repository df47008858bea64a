#!/bin/bash
# DeFeat as it is, with the teacher's maps from a cache, in bfloat16, and with small adaptation layers: whether AP stays equal,
# with two seeds on BCCD, RetinaNet, with the teacher of bccd.sh. It goes on where it was stopped; 40 core-minutes and the
# teacher's 20.
#   benchmarks/accuracy/cheaper.sh BCCD RUNS [options of defeat bench]
set -euo pipefail
data=$1 runs=$2
shift 2
source "$(dirname "$0")/_matrix.sh"
cheaper() { # the second and the fourth cell: DeFeat with seeds 0 and 1
  local name=$1
  shift
  matrix bccd small/retinanet "$data" "$runs" --methods defeat --seeds 2 --cells 2,4 --out "$runs/cheaper_$name" "$@"
}
cheaper plain "$@"
cheaper cache --cache-teacher "$runs/cache_bccd" "$@"
cheaper bf16 --distill-precision bf16 "$@"
cheaper kernel1 --defeat.adaptation-kernel 1 "$@"
