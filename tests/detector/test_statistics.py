"""Options derived from the objects of a training split: anchors, and the numbers of each family."""

import itertools
from dataclasses import asdict, fields

import pytest
import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from defeat.data.dataset import BoxTable, DetectionDataset, Sample
from defeat.detector import make_options
from defeat.detector.options import automatic, with_usual_values
from defeat.detector.statistics import ObjectStatistics, best_overlaps, fit_sides, object_statistics
from defeat.errors import InputError
from tests.detector.tiny import COMPOSED as FAMILIES
from tests.detector.tiny import FITTED_ANCHORS, images, target, tiny_detector, tiny_options

every_family = pytest.mark.parametrize("family", FAMILIES)
fitted_anchors = pytest.mark.parametrize("family", FITTED_ANCHORS)


def dataset(boxes, size=(100, 200), images=2, difficult=()):
    """The boxes are those of the first image."""
    samples = [
        Sample("-", "-", index, size, True, 0 if index == 0 else len(boxes), len(boxes)) for index in range(images)
    ]
    flags = torch.tensor([index in difficult for index in range(len(boxes))], dtype=torch.bool)
    labels = torch.zeros(len(boxes), dtype=torch.int64)
    table = BoxTable(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), labels, flags, torch.zeros_like(flags))
    return DetectionDataset(name="-", split="train", classes=["cat"], samples=samples, table=table)


def squares(*sides, size=160, each=20):
    """Objects of these sides all over an image of 160 x 160 pixels."""
    generator = torch.Generator().manual_seed(0)
    side = torch.tensor([float(value) for value in sides]).repeat_interleave(each)
    corner = torch.rand(len(side), 2, generator=generator) * (160 - side)[:, None]
    boxes = torch.cat([corner, corner + side[:, None]], dim=1)
    return ObjectStatistics(size, boxes, torch.full((len(side), 2), 160.0), torch.tensor([float(len(side))]))


def test_objects_are_measured_in_pixels_of_the_resized_image():
    # A short side of 100 becomes 50: everything halves. Difficult boxes are not learned, so they count for nothing.
    measured = object_statistics(dataset([[0, 0, 20, 40], [0, 0, 9, 9], [100, 50, 200, 100]], difficult=[1]), 50, 1000)
    assert measured.boxes.tolist() == [[0, 0, 10, 20], [50, 25, 100, 50]]
    assert measured.image_sizes.tolist() == [[50, 100]] * 2
    assert measured.per_image.tolist() == [2, 0]
    assert measured.objects_per_image(0.9) == 2  # images without objects do not count


def test_a_sample_of_many_objects_is_used(monkeypatch):
    monkeypatch.setattr("defeat.detector.statistics.MAX_OBJECTS", 3)
    measured = object_statistics(dataset([[0, 0, side, side] for side in range(1, 9)]), 100, 1000)
    assert measured.boxes[:, 2].tolist() == [1, 4, 7]
    assert measured.per_image.tolist() == [8, 0]


@fitted_anchors
@pytest.mark.parametrize("rounded", [True, False])
def test_best_overlaps_are_those_with_the_anchors_of_the_detector(family, rounded):
    options = tiny_options(family, anchor_sizes=[9, 18, 36, 72, 144], round_anchors=rounded)
    detector = tiny_detector(family, options=options)
    boxes = [[3.0, 5, 21, 40], [0, 0, 64, 64], [40, 50, 64, 64], [30.5, 30.5, 34, 35], [1, 20, 90, 44]]
    batch = detector.prepare(images((64, 96)), [target(boxes, [0] * 5, (64, 96))])
    generator = detector.rpn.anchor_generator if family == "faster_rcnn" else detector.anchor_generator
    maps = list(detector.forward_maps(batch).neck.values())
    (anchors,) = generator(ImageList(batch.images, batch.sizes), maps)
    expected = box_iou(torch.tensor(boxes), anchors).max(dim=1).values
    statistics = ObjectStatistics(64, torch.tensor(boxes), torch.tensor([[64.0, 96.0]] * 5), torch.tensor([5.0]))
    overlaps = best_overlaps(statistics, tuple(detector.info.neck), generator.sizes, rounded)
    torch.testing.assert_close(overlaps, expected)


def test_anchors_double_from_level_to_level_and_fit_the_objects():
    # Squares of 20, 40, 80 pixels: a series through 20 (10 or 20 first) reaches them all with high IoU.
    sides = fit_sides(squares(20, 40, 80), (4, 8, 16, 32, 64))
    assert all(later == 2 * earlier for earlier, later in itertools.pairwise(sides))
    assert min(abs(side - 20) for side in sides) <= 4
    statistics = squares(20, 40, 80)
    old = best_overlaps(statistics, (4, 8, 16, 32, 64), [[32.0 * 2**level] for level in range(5)])
    new = best_overlaps(statistics, (4, 8, 16, 32, 64), [[side] for side in sides])
    assert (new >= 0.6).float().mean() > (old >= 0.6).float().mean()


def test_without_objects_anchors_are_in_proportion_to_the_size():
    nothing = ObjectStatistics(400, torch.zeros(0, 4), torch.zeros(0, 2), torch.zeros(3))
    assert fit_sides(nothing, (4, 8, 16, 32, 64)) == (16, 32, 64, 128, 256)
    assert nothing.objects_per_image(0.9) == 0


@every_family
def test_at_800_pixels_all_options_but_anchors_and_head_norm_are_those_of_torchvision(family):
    fitted = asdict(make_options(family, {}).fitted(squares(100, size=800, each=3), 64))
    usual = asdict(with_usual_values(make_options(family, {})))
    assert {name for name in fitted if fitted[name] != usual[name]} - {"anchor_sizes", "head_norm"} == set()


@fitted_anchors
def test_fitting_replaces_auto_and_keeps_given_values(family):
    options = make_options(family, {"anchor_sizes": [1, 2, 4, 8, 16]}).fitted(squares(20), 64)
    assert automatic(options) == []
    assert options.anchor_sizes == [1, 2, 4, 8, 16]
    for field in fields(options):
        if "usual" in field.metadata and field.name != "anchor_sizes":
            given = {field.name: field.metadata["usual"]}
            assert getattr(make_options(family, given).fitted(squares(20), 64), field.name) == field.metadata["usual"]


def test_a_head_is_normalised_in_groups_of_several_channels():
    options = make_options("retinanet", {})
    norms = {width: options.fitted(squares(20), width).head_norm for width in (1, 16, 32, 256)}
    assert norms == {1: "none", 16: "gn", 32: "gn", 256: "gn"}
    for width, groups in {16: 8, 24: 8, 32: 16, 64: 32, 256: 32}.items():
        detector = tiny_detector("retinanet", neck_channels=width, options=tiny_options("retinanet", head_norm="gn"))
        norms = [layer for layer in detector.head.modules() if isinstance(layer, torch.nn.GroupNorm)]
        assert {norm.num_groups for norm in norms} == {groups}


def test_small_images_get_fewer_proposals_and_crowded_ones_more():
    def numbers(objects):
        fitted = make_options("faster_rcnn", {}).fitted(squares(20, each=objects), 64)
        return fitted.rpn_post_nms_top_n_train, fitted.rpn_post_nms_top_n_test, fitted.box_batch_size_per_image

    assert numbers(4) == (400, 208, 112)  # a fifth, in steps of 16
    assert numbers(40) == (640, 320, 320)  # 16, 8 and 8 for each object
    assert numbers(900) == (2000, 1000, 512)


@fitted_anchors
def test_without_data_options_are_those_of_torchvision(family):
    small = {"options": tiny_options(family)}
    del small["options"]["anchor_sizes"]
    said = tiny_detector(family, options=small["options"] | {"anchor_sizes": "auto"})
    unsaid = tiny_detector(family, **small)
    assert said.info.anchors == unsaid.info.anchors
    assert "(32," in unsaid.info.anchors
    assert "anchor_sizes" not in said.spec.options


@fitted_anchors
def test_values_that_are_neither_auto_nor_valid_are_refused(family):
    with pytest.raises(InputError, match=r"--detector\.anchor-sizes must be 5 sides of 1 pixel or more, or auto, not"):
        make_options(family, {"anchor_sizes": "automatic"})
