#!/bin/bash
# None, DeFeat and what each of its regions teaches, with three seeds, on BCCD with RetinaNet; the teacher is trained twice as
# long as the students. It goes on where it was stopped. About 3 core-hours on a processor: several shells can share the
# cells (--cells 1-7 ..).
#   benchmarks/accuracy/bccd.sh BCCD RUNS [options of defeat bench]
set -euo pipefail
data=$1 runs=$2
shift 2
source "$(dirname "$0")/_matrix.sh"
matrix bccd small/retinanet "$data" "$runs" --ablate regions "$@"
