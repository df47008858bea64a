#!/bin/bash
# A comparison on one GPU, several cells at a time. A small detector leaves a GPU idle most of the time, because a step waits
# for the processor that starts its kernels; with NVIDIA's Multi-Process Service the kernels of several trainings run side by
# side (docs/performance.md). Each training wants a core of the processor.
#   recipes/launch/bench_one_gpu.sh CELLS PROCESSES --data DATA --teacher RUN --backbone NAME --out FOLDER [options of defeat bench]
# CELLS is what `defeat bench ... --plan` counts. Repeat the command after an interruption.
set -euo pipefail
cells=$1 processes=$2
shift 2
export OMP_NUM_THREADS=1
if command -v nvidia-cuda-mps-control > /dev/null; then
  export CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
  CUDA_MPS_PIPE_DIRECTORY=$(mktemp -d) CUDA_MPS_LOG_DIRECTORY=$(mktemp -d)
  nvidia-cuda-mps-control -d
  trap 'echo quit | nvidia-cuda-mps-control' EXIT
fi
logs=$(mktemp -d)
echo "What each cell prints is in $logs"
seq "$cells" | xargs -P "$processes" -I{} \
  bash -c 'defeat bench "${@:3}" --cells "$2" > "$1/cell-$2.log" 2>&1' train "$logs" {} "$@" || echo "Some cells failed."
defeat bench "$@" # the report; cells that failed are tried once more
