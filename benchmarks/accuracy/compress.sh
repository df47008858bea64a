#!/bin/bash
# Smaller students on BCCD with RetinaNet, with the teacher and the students of bccd.sh: a student with half of the teacher's
# own channels (three seeds), and students in int8, with and without training for it (two seeds; AP on the test split, in
# RUNS/int8/*.json). It goes on where it was stopped.
#   benchmarks/accuracy/compress.sh BCCD RUNS
set -euo pipefail
data=$1 runs=$2
source "$(dirname "$0")/_matrix.sh"
matrix bccd small/retinanet "$data" "$runs" --methods none,defeat+inherit
teacher="$runs/teacher_bccd"
mkdir -p "$runs/int8"

continued() { # NAME RUN TEACHER OPTION..: four more epochs of a trained student
  local out="$runs/int8/$1" run=$2
  shift 2
  trained "$out" "$@" --config "$run/config.yaml" --data "$data" --weights "$run" --lr 0.001 --epochs 4
}
exported() { # NAME RUN
  for suffix in onnx xml; do
    [ -f "$runs/int8/$1.$suffix.json" ] || defeat export "$2" --data "$data" --split test --precision int8 --verify full \
      --max-drop 100 --out "$runs/int8/$1.$suffix"
  done
}
for seed in 0 1; do
  student="$runs/bench_bccd/defeat-inherit-seed$seed" baseline="$runs/bench_bccd/none-seed$seed"
  continued "more-$seed" "$student" distill --teacher "$teacher"
  continued "trained-$seed" "$student" distill --teacher "$teacher" --quantise int8
  continued "baseline-trained-$seed" "$baseline" train --quantise int8
  exported "baseline-$seed" "$baseline"
  exported "distilled-$seed" "$student"
  for name in more trained baseline-trained; do exported "$name-$seed" "$runs/int8/$name-$seed"; done
done
defeat bench --config small/retinanet --data "$data" --workers 1 --teacher "$teacher" --student-from "$teacher" --width 0.5 \
  --eval-every 0 --seeds 3 --methods none,defeat --out "$runs/bench_slim_bccd"
