#!/bin/bash
# What each of DeFeat's regions teaches a student that inherits, three seeds, on BCCD with RetinaNet, with the teacher of
# bccd.sh. It goes on where it was stopped.
#   benchmarks/accuracy/regions.sh BCCD RUNS [options of defeat bench]
set -euo pipefail
data=$1 runs=$2
shift 2
source "$(dirname "$0")/_matrix.sh"
matrix bccd small/retinanet "$data" "$runs" --ablate regions --out "$runs/regions_bccd" "$@"
