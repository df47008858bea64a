"""PASCAL VOC average precision equals that of the original implementation."""

import pytest
import torch
from safetensors.torch import load_file

from defeat.evaluation.average_precision import Scene, mean_without_none, voc_average_precision
from defeat.types import Detections, Target
from tests.shared_data import shared_folder

Tensors = dict[str, torch.Tensor]


def _scenes(tensors: Tensors) -> list[Scene]:
    images = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("in.")})
    scenes = []
    for image in images:
        detected = {name: tensors[f"in.{image}.{name}"] for name in ("boxes", "scores", "labels")}
        objects = {name: tensors[f"in.{image}.gt_{name}"] for name in ("boxes", "labels", "difficult")}
        target = Target(**objects, crowd=torch.zeros_like(objects["difficult"]), image_id=image, size=(512, 512))
        scenes.append(Scene.from_image(Detections(**detected), target))
    return scenes


def test_average_precision_equals_the_original() -> None:
    files = sorted(shared_folder("DEFEAT_PARITY", "../shared/parity").glob("voc_map_original_*.safetensors"))
    assert files, "no voc_map_original_*.safetensors among the golden values"
    for file in files:
        tensors = load_file(file)
        expected = {rule: tensors[f"out.{rule}.ap_per_class"].tolist() for rule in ("voc07_11point", "voc_area")}
        result = voc_average_precision(_scenes(tensors), len(expected["voc_area"]))
        for rule, values in (("voc07_11point", result.eleven_points), ("voc_area", result.area)):
            assert values == pytest.approx(expected[rule], abs=1e-6), (file.name, rule)
            mean = float(tensors[f"out.{rule}.mean_ap"])
            assert mean_without_none(values) == pytest.approx(mean, abs=1e-6), (file.name, rule)
