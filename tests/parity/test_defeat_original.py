"""The object region and the neck loss equal the published implementation's, for every golden file that there is."""

import pytest
import torch
from safetensors.torch import load_file

from defeat.distillation.losses import region_mean, softmax_divergence, squared_difference
from defeat.distillation.regions import ground_truth_regions, paint_boxes
from tests.shared_data import shared_folder


def golden_files():
    return sorted(shared_folder("DEFEAT_PARITY", "../shared/parity").glob("defeat_original_*.safetensors"))


def read(path):
    values = load_file(path)
    images = sum(name.startswith("in.boxes.") for name in values)
    boxes = [values[f"in.boxes.{image}"] for image in range(images)]
    height, width = values["in.image_size"].tolist()
    shapes = {stride: (-(-height // stride), -(-width // stride)) for stride in values["in.strides"].tolist()}
    return values, boxes, shapes


def test_there_are_golden_files():
    assert golden_files()


def test_ground_truth_regions_equal_the_original():
    for path in golden_files():
        values, boxes, shapes = read(path)
        regions = ground_truth_regions(boxes, shapes)
        for level, region in enumerate(regions.values()):
            assert torch.equal(region, values[f"out.mask.gt.{level}"]), (path.name, level)


def test_backbone_region_equals_the_original():
    for path in golden_files():
        values, boxes, shapes = read(path)
        assert torch.equal(paint_boxes(boxes, 4, shapes[4]), values["out.mask.backbone_gt"]), path.name


def test_neck_loss_equals_the_original():
    for path in golden_files():
        values, boxes, shapes = read(path)
        regions = ground_truth_regions(boxes, shapes)
        sums = {"obj": torch.zeros(()), "bg": torch.zeros(())}
        for level, region in enumerate(regions.values()):
            student, teacher = values[f"in.student.{level}"], values[f"in.teacher.{level}"]
            per_cell = squared_difference(student, teacher)
            sums["obj"] += 3 * region_mean(per_cell, region, student.shape[1]) / len(regions)
            sums["bg"] += 12 * region_mean(per_cell, ~region, student.shape[1]) / len(regions)
        for name, found in sums.items():
            assert found.item() == pytest.approx(values[f"out.neck.decoupled.{name}"].item(), rel=1e-5), path.name


@pytest.mark.parametrize("temperature", [1, 2, 4])
def test_divergence_of_proposals_equals_the_original(temperature):
    for path in golden_files():
        values, _, _ = read(path)
        labels = values["in.labels_background_last"]
        found = softmax_divergence(values["in.student_logits"], values["in.teacher_logits"], temperature)
        for name, mask in {"positive": labels < 20, "negative": labels == 20}.items():
            expected = values[f"out.head.kl.{name}.T{temperature}"].item()
            assert found[mask].mean().item() == pytest.approx(expected, rel=1e-5), path.name
