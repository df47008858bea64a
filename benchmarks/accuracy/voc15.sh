#!/bin/bash
# Every method with and without inherited weights, three seeds, on voc15 with Faster R-CNN: 30 cells. 150 of the training
# images are held out: the teacher is trained until its AP on them is flat. It goes on where it was stopped.
#   benchmarks/accuracy/voc15.sh VOC15 RUNS [options of defeat bench]
set -euo pipefail
data=$1 runs=$2
shift 2
here=$(dirname "$0")
source "$here/_matrix.sh"
[ -d "$runs/held_out" ] || python "$here/../hold_out.py" "$data" "$runs/held_out"
matrix voc15 small/photographs "$runs/held_out" "$runs" --methods "$METHODS" "$@"
