"""Regions and losses equal the published implementation's, for every golden file and every output in it."""

import re
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from defeat.distillation.classification import ClassTerm, Predictions
from defeat.distillation.differences import DIFFERENCES
from defeat.distillation.losses import region_mean
from defeat.distillation.regions import (
    backbone_regions,
    gaussian_regions,
    near_object_regions,
    object_regions,
    paint_boxes,
    whole_regions,
)
from tests.shared_data import shared_folder

REGIONS = {
    "gt": object_regions,
    "anchor_phi0.5": partial(near_object_regions, phi=0.5),
    "gaussian": gaussian_regions,
}
IMITATION_REGIONS = {"l2": "anchor_phi0.5", "l1": "gt", "div": "gt"}
DIFFERENCE_NAMES = {"l2": "squared", "l1": "absolute", "div": "divisive"}


class Golden:
    """A golden file: its inputs, and the values that DeFeat computes from them."""

    def __init__(self, path):
        self.values = load_file(path)
        self.boxes = [self.values[f"in.boxes.{image}"] for image in range(self.count("in.boxes"))]
        height, width = self.values["in.image_size"].tolist()
        self.strides = self.values["in.strides"].tolist()
        self.shapes = {stride: (-(-height // stride), -(-width // stride)) for stride in self.strides}
        self.outputs = {name: value for name, value in self.values.items() if name.startswith("out.")}

    def count(self, prefix):
        return sum(bool(re.fullmatch(rf"{re.escape(prefix)}\.\d+", name)) for name in self.values)

    def maps(self, side):
        return [self.values[f"in.{side}.{level}"] for level in range(self.count(f"in.{side}"))]

    def regions(self, name):
        return list(REGIONS[name](self.boxes, self.shapes).values())

    def neck(self, regions, difference="squared"):
        """Mean over the levels of the difference on a region of each."""
        pairs = zip(self.maps("student"), self.maps("teacher"), regions, strict=True)
        terms = [region_mean(DIFFERENCES[difference](s, t), region, s.shape[1]) for s, t, region in pairs]
        return torch.stack(terms).mean()

    def backbone(self, background):
        pairs = list(zip(self.maps("student_backbone"), self.maps("teacher_backbone"), strict=True))
        shapes = {4 << level: tuple(student.shape[-2:]) for level, (student, _) in enumerate(pairs)}
        regions = list(backbone_regions(self.boxes, shapes).values())
        return torch.stack(
            [
                region_mean(DIFFERENCES["squared"](*pairs[level]), ~regions[level] if background else regions[level],
                            pairs[level][0].shape[1])
                for level in (1, 2, 3)
            ]
        ).mean()  # fmt: skip

    def head(self, group, comparison="kl", temperature=1.0):
        predictions = Predictions(
            self.values["in.student_logits"],
            self.values["in.teacher_logits"],
            self.values["in.labels_background_last"],
            classes=20,
        )
        return ClassTerm(1.0, group, comparison, temperature)(predictions)


def mask(golden, name, level):
    return golden.regions(name)[int(level)]


def backbone_mask(golden):
    return paint_boxes(golden.boxes, 4, golden.shapes[4])


def decoupled(golden, part, decay=""):
    regions = golden.regions("gt")
    factor = 0.25 if decay else 1.0
    return factor * (3 * golden.neck(regions) if part == "obj" else 12 * golden.neck([~region for region in regions]))


def imitation(golden, difference):
    return 3 * golden.neck(golden.regions(IMITATION_REGIONS[difference]), DIFFERENCE_NAMES[difference])


def everywhere(golden):
    return 3 * golden.neck(list(whole_regions(golden.boxes, golden.shapes).values()))


def backbone(golden, part):
    return 2 * golden.backbone(background=False) if part == "obj" else 5 * golden.backbone(background=True)


def divergence(golden, group, temperature):
    return golden.head(group, temperature=float(temperature))


def cross_entropy(golden, group):
    return golden.head(group, "bce")


# Functions that compute an output, by a pattern of its name; the groups of the pattern are their arguments.
CHECKS = {
    r"out\.mask\.(gt|anchor_phi0\.5|gaussian)\.(\d+)": mask,
    r"out\.mask\.backbone_gt": backbone_mask,
    r"out\.neck\.decoupled\.(obj|bg)": decoupled,
    r"out\.neck\.decoupled(?P<decay>_decay)\.(?P<part>obj|bg)": decoupled,
    r"out\.neck\.imitation_(l2|l1|div)\.obj": imitation,
    r"out\.neck\.all_l2\.obj": everywhere,
    r"out\.backbone\.decoupled\.(obj|bg)": backbone,
    r"out\.head\.kl\.(positive|negative|all|teacher_correct|positive_teacher_correct)\.T(\d+)": divergence,
    r"out\.head\.bce\.(positive|teacher_correct)": cross_entropy,
}


def golden_files():
    return sorted(shared_folder("DEFEAT_PARITY", "../shared/parity").glob("defeat_original_*.safetensors"))


def computed(golden, name):
    for pattern, compute in CHECKS.items():
        if match := re.fullmatch(pattern, name):
            named = match.groupdict()
            return compute(golden, **named) if named else compute(golden, *match.groups())
    raise AssertionError(f"no test covers {name}")


def test_there_are_golden_files():
    assert golden_files()


def test_every_output_equals_the_original():
    wrong = []
    for path in golden_files():
        golden = Golden(path)
        assert golden.outputs
        for name, expected in golden.outputs.items():
            value = computed(golden, name)
            if expected.dtype == torch.bool:
                equal = torch.equal(value, expected)
            elif ".mask." in name:
                equal = torch.allclose(value.double(), expected.double(), rtol=0, atol=1e-6)
            else:
                equal = torch.allclose(value.double(), expected.double(), rtol=1e-5, atol=0)
            if not equal:
                wrong.append(f"{path.name} {name}")
    assert not wrong


def test_an_output_that_no_test_covers_is_an_error():
    with pytest.raises(AssertionError, match=r"no test covers out\.neck\.unknown"):
        computed(None, "out.neck.unknown")
