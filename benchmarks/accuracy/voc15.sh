#!/bin/bash
# The matrix of methods and seeds on voc15, with a teacher trained three times as long as the students. It goes on where it
# was stopped. About 6 core-hours on a processor with its 15 cells: several shells can share the cells (--cells 1-5 ..).
#   benchmarks/accuracy/voc15.sh VOC15 RUNS [options of defeat bench]
set -euo pipefail
data=$1 runs=$2
shift 2
here=$(dirname "$0")
source "$here/_matrix.sh"
[ -d "$runs/held_out" ] || python "$here/../hold_out.py" "$data" "$runs/held_out"
matrix voc15 small/photographs "$runs/held_out" "$runs" --methods none,imitation,fgfi,tadf,defeat "$@"
