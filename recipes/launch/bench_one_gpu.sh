#!/bin/bash
# A comparison on one GPU, several cells at a time. A small detector leaves a GPU idle most of the time, because its steps wait
# for the CPU to launch kernels; with NVIDIA's Multi-Process Service the kernels of several trainings run concurrently
# (docs/performance.md). Each training needs one CPU core.
#   recipes/launch/bench_one_gpu.sh CELLS PROCESSES --data DATA --teacher RUN --backbone NAME --out FOLDER [options of defeat bench]
# CELLS is the number of cells that `defeat bench ... --plan` prints. Repeat the command after an interruption.
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
echo "The output of each cell is in $logs"
seq "$cells" | xargs -P "$processes" -I{} \
  bash -c 'defeat bench "${@:3}" --cells "$2" > "$1/cell-$2.log" 2>&1' train "$logs" {} "$@" || echo "Some cells failed."
defeat bench "$@" # the report; failed cells are retried once
