# Sourced by the matrices of this folder: trains a teacher, for TEACHER_EPOCHS (24), then every cell; goes on where it was
# stopped.
#   matrix NAME RECIPE DATA RUNS [options of defeat bench]
matrix() {
  local name=$1 recipe=$2 data=$3 runs=$4 resume=()
  shift 4
  local shared=(--config "$recipe" --data "$data" --workers 1) teacher="$runs/teacher_$name"
  if [ ! -f "$teacher/results.json" ]; then
    [ -f "$teacher/checkpoints/last.ckpt" ] && resume=(--resume)
    defeat train "${shared[@]}" --backbone tf_efficientnet_lite2 --neck-channels 128 --epochs "${TEACHER_EPOCHS:-24}" --eval-every 4 \
      --out "$teacher" "${resume[@]}"
  fi
  defeat bench "${shared[@]}" --backbone tf_efficientnet_lite0 --neck-channels 64 --teacher "$teacher" \
    --eval-every 0 --seeds 3 --out "$runs/bench_$name" "$@"
}
