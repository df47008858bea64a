#!/bin/bash
# The README's four commands on 160 photographs of voc15 at 160 pixels, as a user runs them: a fifth is held out. Prints the
# time that they take together, then AP of the three detectors on the split test of voc15, which none of them has seen.
#   benchmarks/four_commands.sh VOC15 NEW_FOLDER
set -euo pipefail
source=$1 folder=$2
python "$(dirname "$0")/quarter.py" "$source" "$folder/data" --part 0.2186
rm "$folder/data/ImageSets/Main/test.txt"
shared=(--data "$folder/data" --hold-out 0.2 --size 160)
start=$SECONDS
defeat train "${shared[@]}" --backbone tf_efficientnet_lite2 --epochs 50 --augment standard --out "$folder/teacher"
defeat train "${shared[@]}" --backbone tf_efficientnet_lite0 --out "$folder/baseline"
defeat distill "${shared[@]}" --backbone tf_efficientnet_lite0 --teacher "$folder/teacher" --out "$folder/distilled"
defeat compare "$folder/teacher" "$folder/baseline" "$folder/distilled" --out "$folder/report.html"
echo "four commands: $(( (SECONDS - start) / 60 )) min $(( (SECONDS - start) % 60 )) s"
for run in teacher baseline distilled; do
  echo "$run on the split test:"
  defeat evaluate "$folder/$run" --data "$source" --split test | sed -n 2,3p
done
