#!/bin/bash
# Every method with and without inherited weights, three seeds, on NEU-DET (steel surfaces) with RetinaNet at 128 pixels: 30
# cells. 180 of the training images are held out: the teacher is trained until its AP on them is flat. It goes on where it was
# stopped.
#   benchmarks/accuracy/neu.sh NEU_DET RUNS [options of defeat bench]
set -euo pipefail
data=$1 runs=$2
shift 2
here=$(dirname "$0")
source "$here/_matrix.sh"
[ -d "$runs/held_out_neu" ] || python "$here/../hold_out.py" "$data" "$runs/held_out_neu" --images 180
matrix neu small/surfaces "$runs/held_out_neu" "$runs" --methods "$METHODS" "$@"
