#!/bin/bash
# Every method with and without inherited weights, three seeds, on BCCD with RetinaNet: 30 cells. The teacher is trained until
# its AP on the split val is flat. It goes on where it was stopped.
#   benchmarks/accuracy/bccd.sh BCCD RUNS [options of defeat bench]
set -euo pipefail
data=$1 runs=$2
shift 2
source "$(dirname "$0")/_matrix.sh"
matrix bccd small/retinanet "$data" "$runs" --methods "$METHODS" "$@"
