#!/bin/bash
# From annotated photographs to a distilled ONNX model and a report.
#   examples/get_started.sh DATA
set -euo pipefail
DATA=$1

# --8<-- [start:data]
defeat data "$DATA" --out data.html
# --8<-- [end:data]

# --8<-- [start:teacher]
defeat train --data "$DATA" --backbone tf_efficientnet_lite2 --size 320 \
    --epochs 60 --augment standard --out runs/teacher
# --8<-- [end:teacher]

# --8<-- [start:students]
defeat train --data "$DATA" --backbone tf_efficientnet_lite0 --size 320 \
    --epochs 24 --out runs/baseline
defeat distill --data "$DATA" --backbone tf_efficientnet_lite0 --size 320 \
    --epochs 24 --teacher runs/teacher --out runs/distilled
# --8<-- [end:students]

# --8<-- [start:compare]
defeat compare runs/teacher runs/baseline runs/distilled --out report.html
# --8<-- [end:compare]

# --8<-- [start:export]
defeat export runs/distilled --out student.onnx --verify full
defeat predict student.onnx photos --out pictures
# --8<-- [end:export]
