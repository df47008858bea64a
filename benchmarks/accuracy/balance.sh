#!/bin/bash
# Fixed weights, published and default, against those that --balance finds, with three seeds; on voc15 (Faster R-CNN) or
# bccd (RetinaNet), with the teacher of the matrix of that name. It goes on where it was stopped.
#   benchmarks/accuracy/balance.sh voc15|bccd DATA RUNS [options of defeat bench]
set -euo pipefail
name=$1 data=$2 runs=$3
shift 3
here=$(dirname "$0")
source "$here/_matrix.sh"
recipe=small/retinanet
if [ "$name" = voc15 ]; then
  recipe=small/photographs
  [ -d "$runs/held_out" ] || python "$here/../hold_out.py" "$data" "$runs/held_out"
  data=$runs/held_out
fi
matrix "$name" "$recipe" "$data" "$runs" --ablate balance --out "$runs/balance_$name" "$@"
