"""Time and memory of a training step with and without distillation.

    python benchmarks/step.py [--family faster_rcnn] [--size 160] [--batch 8] [--repeats 10]
    python benchmarks/step.py --size 640 --device cuda --precision bf16 [--channels-last]

The steps of all cases are interleaved in one process and compared by their medians. Peak memory is that of a process of
its own for each case, because an allocator does not give back what another case has used; on a GPU it is that of the
tensors there.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from measure import interleaved, peak_memory

from defeat.data import open_dataset
from defeat.detector import DetectorSpec, build
from defeat.distillation import DeFeat
from defeat.engine.provenance import commit, machine, versions
from defeat.engine.step import step_losses, total_loss
from defeat.engine.teacher_cache import TeacherCache
from defeat.types import Progress

CASES = (
    "student alone",
    "teacher forward",
    "distilled, neck",
    "distilled, neck, kept maps",
    "distilled, neck and head",
)
OPTIONS = {
    "faster_rcnn": {
        "anchor_sizes": (16, 32, 64, 128, 256),
        "rpn_post_nms_top_n_train": 500,
        "rpn_post_nms_top_n_test": 300,
        "box_batch_size_per_image": 128,
        "box_representation_size": 512,
    },
    "retinanet": {"anchor_sizes": (16, 32, 64, 128, 256), "head_norm": "gn"},
}


def step_of(
    case: str,
    family: str,
    size: int,
    batch: int,
    device: str = "cpu",
    precision: str = "32",
    channels_last: bool = False,
) -> Callable[[], None]:
    """Build detectors and one batch of drawn scenes, and give back a function that makes one step of a case."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    dataset = open_dataset("demo", "train")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images, targets = zip(*(dataset[index] for index in range(batch)), strict=True)

    def detector(backbone: str, channels: int) -> torch.nn.Module:
        spec = DetectorSpec(
            family, backbone, dataset.classes, size, size * 2, neck_channels=channels, options=OPTIONS[family]
        )
        return build(spec, weights="none").to(device, memory_format=layout)  # type: ignore[call-overload,no-any-return]

    student, teacher = detector("tf_efficientnet_lite0", 64).train(), detector("tf_efficientnet_lite2", 128).eval()
    head = 0.5 if case.endswith("head") else 0.0
    cache = None
    if case.endswith("kept maps"):
        names = {(True, target.image_id): f"image-{target.image_id}" for target in targets}
        cache = TeacherCache(Path(tempfile.mkdtemp()), ["neck"], names)
    method = DeFeat(student.info, teacher.info, positive_weight=head, negative_weight=head).to(device)
    parameters = [*student.parameters(), *method.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)

    def step() -> None:
        prepared = student.prepare(images, targets)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
            if case == "teacher forward":
                with torch.no_grad():
                    teacher.forward_teacher(teacher.adopt(prepared), method.needs)
                return
            helped = (method, teacher, cache) if case.startswith("distilled") else ()
            output, terms = step_losses(student, prepared, Progress(500, 1000), *helped)
        optimizer.zero_grad()
        total_loss(output.losses | terms).backward()
        optimizer.step()

    return step


def main() -> None:
    """Measure every case and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", default="faster_rcnn", choices=sorted(OPTIONS))
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="32", choices=["32", "bf16"])
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    setting = {
        name: getattr(given, name) for name in ("family", "size", "batch", "device", "precision", "channels_last")
    }
    steps = {case: step_of(case, **setting) for case in CASES}
    milliseconds = interleaved(steps, given.repeats)
    alone = milliseconds[CASES[0]]
    rows = {
        case: {
            "step_ms": round(value, 1),
            "ratio": round(value / alone, 3),
            "images_per_second": round(1000 * given.batch / value, 1),
            "peak_mib": round(peak_memory(step_of, case, *setting.values())),
        }
        for case, value in milliseconds.items()
    }
    for case, row in rows.items():
        time, memory = f"{row['step_ms']:>10} ms{row['ratio']:>8} x", f"{row['peak_mib']:>8} MiB"
        print(f"{case:26}{time}{row['images_per_second']:>9} images/s{memory}")
    if given.out:
        origin = {"versions": versions(), "commit": commit(), "machine": machine()}
        result = {"setting": setting | {"repeats": given.repeats}, "cases": rows} | origin
        given.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
