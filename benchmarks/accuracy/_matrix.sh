# Sourced by the matrices of this folder: trains a teacher for long, with augmentation, and keeps the epoch that was best on
# a held-out part of the training images; then every cell. Its learning curve is in its results.json.
# Goes on where it was stopped. --jobs N trains N cells at a time.
#   matrix NAME RECIPE DATA RUNS [options of defeat bench]
METHODS=none,none+inherit,imitation,fgfi,tadf,defeat,imitation+inherit,fgfi+inherit,tadf+inherit,defeat+inherit
# trained RUN COMMAND [options]: trains unless the run is finished; goes on where it was stopped.
trained() {
  local run=$1 resume=()
  shift
  [ -f "$run/results.json" ] && return
  [ -f "$run/checkpoints/last.ckpt" ] && resume=(--resume)
  defeat "$@" --out "$run" "${resume[@]}"
}
matrix() {
  local name=$1 recipe=$2 data=$3 runs=$4
  shift 4
  local shared=(--config "$recipe" --data "$data" --workers 1 --neck-channels 64) teacher="$runs/teacher_$name"
  trained "$teacher" train "${shared[@]}" --backbone tf_efficientnet_lite2 --epochs "${TEACHER_EPOCHS:-30}" \
    --schedule flat_cosine --augment standard --eval-every 3 --eval-split val --keep best
  defeat bench "${shared[@]}" --backbone tf_efficientnet_lite0 --teacher "$teacher" \
    --eval-every 0 --seeds 3 --out "$runs/bench_$name" "$@"
}
