"""Every family in every format detects what the detector does."""

import pytest
import torch

from defeat.detector import load, save_model
from defeat.errors import InputError
from defeat.exporting import export
from defeat.exporting.parity import measure_parity
from tests.detector.tiny import FAMILIES_IN_RUNS, STRETCHING, images
from tests.exporting.tiny_exports import PICTURES, all_options, exported, saved

pytest.importorskip("openvino")

ALIKE = 0.95  # random weights have scores and overlaps that are equal but for rounding, and decide otherwise
# Exports take seconds: one family is fast.
FAMILIES = [
    pytest.param(family, marks=pytest.mark.slow) if family == "faster_rcnn" else family for family in FAMILIES_IN_RUNS
]
SUFFIXES = [".onnx", *[pytest.param(suffix, marks=pytest.mark.slow) for suffix in (".xml", ".torchscript")]]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_detects_what_the_detector_does(family, suffix, tmp_path):
    detector, path = exported(tmp_path, family, f"file{suffix}")
    parity = measure_parity(detector, load(path), PICTURES)
    assert parity.detections >= len(PICTURES)
    assert parity.matched >= ALIKE
    assert parity.largest_box_difference < 0.05


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_proposals_of_equal_objectness_are_chosen_alike(suffix, tmp_path):
    # A network that was trained for a few steps has levels without features, where all anchors are equal.
    few = {"rpn_pre_nms_top_n_test": 20, "rpn_post_nms_top_n_test": 20}
    detector = saved(tmp_path / "run", "faster_rcnn", options=all_options("faster_rcnn", **few))
    with torch.no_grad():
        detector.rpn.head.cls_logits.weight.zero_()
    save_model(detector, tmp_path / "run")
    export(tmp_path / "run", tmp_path / f"file{suffix}", verify="none")
    parity = measure_parity(detector, load(tmp_path / f"file{suffix}"), PICTURES)
    assert parity.detections >= 20
    assert parity.matched == 1


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_without_detections_gives_empty_tensors(family, suffix, tmp_path):
    limits = {"score_thresh": 1.0, "box_score_thresh": 1.0}
    saved(tmp_path / "run", family, options=all_options(family, **limits))
    export(tmp_path / "run", tmp_path / f"file{suffix}", verify="none")
    (found,) = load(tmp_path / f"file{suffix}").predict(PICTURES[:1])
    assert found.boxes.shape == (0, 4)
    assert len(found.scores) == len(found.labels) == 0


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_candidates_outside_of_the_file_are_selected_alike_and_come_in_batches(family, tmp_path):
    if family == "faster_rcnn":
        pytest.skip("it has proposals")
    if family in ("lw_detr", "rf_detr"):  # the number of images is a constant in transformers' attention
        with pytest.raises(InputError, match=f"the network of {family} takes one image at a time"):
            exported(tmp_path, family, nms="outside", dynamic="batch")
        exported(tmp_path, family, nms="outside")
        return
    detector, path = exported(tmp_path, family, nms="outside", dynamic="batch")
    file = load(path)
    side = detector.info.size
    batch = torch.stack(images(*[(side, side)] * 3)).float().numpy()
    together = file.runtime.run(batch)
    one_by_one = [file.runtime.run(batch[[index]]) for index in range(3)]
    assert together["scores"].shape == (3, together["boxes"].shape[1], 3)
    for index, single in enumerate(one_by_one):
        best = torch.from_numpy(together["scores"][index]).flatten().topk(20).values
        assert torch.allclose(best, torch.from_numpy(single["scores"][0]).flatten().topk(20).values, atol=1e-4)
    if family not in STRETCHING and not detector.info.square:
        square = images((64, 64), (128, 128))  # fit the fixed input, 64 x 64
        assert measure_parity(detector, file, square).matched >= ALIKE
