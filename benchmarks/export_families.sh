#!/bin/bash
# A short training of each kind of detector on BCCD, and its files for ONNX Runtime and OpenVINO, compared with the detector on
# every test image. Prints the share of equal detections, AP of both and the largest differences. It goes on where it was stopped.
#   benchmarks/export_families.sh BCCD RUNS
set -euo pipefail
data=$1 runs=$2
source "$(dirname "$0")/accuracy/_matrix.sh"
exported() { # NAME OPTION..: options of the training
  local run="$runs/export_$1"
  shift
  trained "$run" train --data "$data" --size 160 --batch-size 8 --workers 1 --eval-every 0 --eval-split test "$@"
  for suffix in onnx xml; do
    [ -f "$run/student.$suffix.json" ] ||
      defeat export "$run" --data "$data" --split test --verify full --out "$run/student.$suffix"
  done
}
small=(--backbone tf_efficientnet_lite0 --neck-channels 64)
exported retinanet --detector retinanet "${small[@]}" --epochs 4
exported faster_rcnn --detector faster_rcnn "${small[@]}" --epochs 4
exported fcos --detector fcos "${small[@]}" --epochs 4
exported gfl --detector gfl "${small[@]}" --epochs 4
exported d_fine --detector d_fine "${small[@]}" --lr 0.0005 --epochs 12
exported rt_detr_v2 --detector rt_detr_v2 "${small[@]}" --lr 0.0005 --epochs 12
exported ssdlite --detector ssdlite --backbone mobilenet_v3_large --weights none --epochs 12
exported yolo9 --detector yolo9 --backbone yolo9_t --weights none --max-size 160 --epochs 10
exported yolox --detector yolox --backbone yolox_n --weights none --max-size 160 --epochs 10
python - "$runs" <<'SCRIPT'
import json
import sys
from pathlib import Path

print("| file | images | equal detections | largest difference (px, score) | AP of run and file | MB | ms |")
print("|---|---|---|---|---|---|---|")
for path in sorted(Path(sys.argv[1]).glob("export_*/student.*.json")):
    report = json.loads(path.read_text())
    parity, name = report["parity"], f"{path.parent.name.removeprefix('export_')}{Path(path.stem).suffix}"
    accuracy = [report[one]["metrics"]["AP"] for one in ("evaluation_before", "evaluation")]
    differences = f"{parity['largest_box_difference']:.2g}, {parity['largest_score_difference']:.2g}"
    latency = f"{report['latency']['median_ms']:.0f}"
    print(
        f"| {name} | {parity['images']} | {100 * parity['matched']:.2f} % | {differences} | "
        f"{accuracy[0]:.2f}, {accuracy[1]:.2f} | {report['bytes'] / 1e6:.1f} | {latency} |"
    )
SCRIPT
