#!/bin/bash
# The README's four commands on 160 photographs of voc15 at 160 pixels, as a user runs them: the time that they take together,
# and AP of the three detectors on the split test.
#   benchmarks/four_commands.sh VOC15 NEW_FOLDER [TEACHER_EPOCHS]
set -euo pipefail
source=$1 folder=$2 epochs=${3:-60}
python "$(dirname "$0")/quarter.py" "$source" "$folder/data" --part 0.2186
shared=(--data "$folder/data" --size 160)
start=$SECONDS
defeat train "${shared[@]}" --backbone tf_efficientnet_lite2 --epochs "$epochs" --augment standard --out "$folder/teacher"
defeat train "${shared[@]}" --backbone tf_efficientnet_lite0 --out "$folder/baseline"
defeat distill "${shared[@]}" --backbone tf_efficientnet_lite0 --teacher "$folder/teacher" --out "$folder/distilled"
defeat compare "$folder/teacher" "$folder/baseline" "$folder/distilled" --out "$folder/report.html"
echo "four commands: $(( (SECONDS - start) / 60 )) min $(( (SECONDS - start) % 60 )) s"
