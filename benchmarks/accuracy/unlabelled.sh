#!/bin/bash
# A quarter of voc15's training images keeps its annotations, the others are images alone: the student alone and distilled on
# the quarter, distilled on all images, and with pseudo-labels. The teacher, too, knows the annotations of the quarter alone.
# Two seeds; it goes on where it was stopped.
#   benchmarks/accuracy/unlabelled.sh VOC15 RUNS [options of defeat bench]
set -euo pipefail
data=$1 runs=$2
shift 2
here=$(dirname "$0")
source "$here/_matrix.sh"
[ -d "$runs/quarter" ] || python "$here/../quarter.py" "$data" "$runs/quarter"
export TEACHER_EPOCHS=72
matrix quarter small/photographs "$runs/quarter" "$runs" --epochs 24 --ablate unlabelled \
  --unlabelled "$runs/quarter/unlabelled" --seeds 2 "$@"
