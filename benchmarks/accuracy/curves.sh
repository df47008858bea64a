#!/bin/bash
# AP of baseline and distilled student after 1, 2 and 4 times the usual epochs, two seeds, with the teachers of bccd.sh and
# neu.sh: how many epochs of baseline training does a distilled student save? It goes on where it was stopped.
#   benchmarks/accuracy/curves.sh bccd|neu DATA RUNS [options of defeat bench]
set -euo pipefail
name=$1 data=$2 runs=$3
shift 3
source "$(dirname "$0")/_matrix.sh"
case $name in
  bccd) recipe=small/retinanet epochs=12 ;;
  neu) recipe=small/surfaces epochs=4 data=$runs/held_out_neu ;;
esac
for factor in 1 2 4; do
  matrix "$name" "$recipe" "$data" "$runs" --methods none,defeat+inherit --seeds 2 --epochs $((factor * epochs)) \
    --out "$runs/curve_${name}_$factor" "$@"
done
