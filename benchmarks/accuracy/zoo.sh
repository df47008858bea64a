#!/bin/bash
# Every method that fits, with inherited weights, with the teacher of bccd.sh or voc15.sh: bccd with RetinaNet, voc15 with
# Faster R-CNN. With the published weights, which drown the detector's own losses in some cases; with --balance X, with
# weights scaled so that the gradient of all terms is X times that of the detector. It goes on where it was stopped.
#   benchmarks/accuracy/zoo.sh bccd|voc15 DATA RUNS [options of defeat bench]
set -euo pipefail
name=$1 data=$2 runs=$3
shift 3
here=$(dirname "$0")
source "$here/_matrix.sh"
methods=none,none+inherit
for method in imitation fgfi tadf defeat pkd cwd mgd fgd classification boxes; do methods=$methods,$method+inherit; done
recipe=small/photographs
if [ "$name" = bccd ]; then
  recipe=small/retinanet
  methods=$methods,bckd+inherit,crosskd+inherit,crosskd+pkd+inherit,defeat+bckd+inherit
else
  [ -d "$runs/held_out" ] || python "$here/../hold_out.py" "$data" "$runs/held_out"
  data=$runs/held_out
fi
matrix "$name" "$recipe" "$data" "$runs" --methods "$methods" --out "$runs/zoo_$name" "$@"
