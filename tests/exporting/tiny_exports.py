"""Small detectors in exported files."""

import json

import pytest
import torch

from defeat.detector import save_model
from defeat.exporting import export
from tests.detector.tiny import images, tiny_detector, tiny_options

pytest.importorskip("onnx")
SPREAD = 30
PICTURES = images((64, 64), (50, 80), (90, 60), (64, 64), seed=1)
# Everything is detected and nothing cut off, so that equal scores at a limit make no difference.
EVERYTHING = {"score_thresh": 0.0, "box_score_thresh": 0.0, "detections_per_img": 5000, "box_detections_per_img": 5000}


def all_options(family, **more):
    """Options with which a detector shows everything; SSDlite's background needs a limit, or there are thousands."""
    limits = {"score_thresh": 0.3, "topk_candidates": 300} if family == "ssdlite" else {"topk_candidates": 5000}
    return tiny_options(family, **(EVERYTHING | limits | more))


def saved(folder, family="retinanet", **spec):
    """A run directory with a small detector, and the detector."""
    folder.mkdir(exist_ok=True)
    detector = tiny_detector(family, **({"options": all_options(family)} | spec)).eval()
    with torch.no_grad():  # random scores are alike, and equal ones come in any order
        for name in detector.class_rows():
            detector.get_parameter(name).mul_(SPREAD if name.endswith("weight") else 1)
    save_model(detector, folder)
    return detector


def with_data(folder, detector):
    """Let a run directory name the data that it was trained on."""
    (folder / "config.yaml").write_text(json.dumps({"data": "demo", "eval_split": "val"}))
    return detector


def exported(folder, family="retinanet", name="file.onnx", **options):
    """A small detector, and the path of the file to which it was exported without a comparison."""
    detector = saved(folder / "run", family)
    export(folder / "run", folder / name, verify="none", **options)
    return detector, folder / name
