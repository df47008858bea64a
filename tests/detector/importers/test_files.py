"""Files that can't be imported, and what is said about them; the command; and an imported teacher."""

import json
import pickle
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import detection
from torchvision.transforms.functional import to_pil_image

from defeat.cli import main
from defeat.detector import load
from defeat.detector.importers import import_checkpoint
from defeat.detector.selection import Selection
from defeat.errors import InputError
from tests.detector.importers import random_states
from tests.detector.importers.random_states import CLASSES
from tests.detector.tiny import images, needs_transformers
from tests.engine.tiny_runs import CLASSES as SHAPES
from tests.engine.tiny_runs import lines, tiny_run


@pytest.fixture(scope="module")
def retinanet():
    """Tensors of a RetinaNet of MMDetection."""
    return dict(random_states.mmdet_retinanet())


def refused(tmp_path, content=None, name="model.pth", **options) -> str:
    if content is not None:
        torch.save(content, tmp_path / name)
    with pytest.raises(InputError) as caught:
        import_checkpoint(str(tmp_path / name), str(tmp_path / "run"), **options)
    assert not (tmp_path / "run").exists()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


def content(state, **meta):
    return {"state_dict": state, "meta": {"CLASSES": CLASSES, **meta}}


def test_a_missing_tensor_is_named(tmp_path, retinanet):
    state = {name: tensor for name, tensor in retinanet.items() if name != "bbox_head.retina_reg.bias"}
    message = refused(tmp_path, content(state))
    assert "1 tensors are missing, such as those for head.regression_head.bbox_reg.bias." in message


def test_unknown_tensors_are_named_but_only_the_first_few(tmp_path, retinanet):
    extra = {f"student_adaptor.{index}.weight": torch.zeros(1) for index in range(9)}
    message = refused(tmp_path, content(retinanet | extra))
    assert "9 of its tensors are of layers that this library doesn't have" in message
    assert "student_adaptor.0.weight, student_adaptor.1.weight, student_adaptor.2.weight, ..." in message


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tmp_path, retinanet):
    changed = {"neck.fpn_convs.1.conv.weight": torch.zeros(64, 64, 1, 1)}
    message = refused(tmp_path, content(retinanet | changed))
    assert "neck.fpn_convs.1.conv.weight (64, 64, 1, 1) instead of (64, 64, 3, 3)" in message


@pytest.mark.parametrize("shape", [(), (5,), (0, 64, 3, 3), (64, 64, 3, 3, 1)])
@pytest.mark.parametrize(
    "name", ["bbox_head.retina_cls.weight", "neck.lateral_convs.0.conv.weight", "neck.fpn_convs.3.conv.weight"]
)
def test_tensors_from_which_sizes_are_read_may_have_any_shape(tmp_path, retinanet, name, shape):
    refused(tmp_path, content(retinanet | {name: torch.zeros(shape)}))


def test_a_wrong_number_of_classes_is_refused(tmp_path, retinanet):
    message = refused(tmp_path, content(retinanet, CLASSES=("cat", "dog")))
    assert "a detector of 3 classes, but it names 2" in message
    assert "--classes has 4" in refused(tmp_path, content(retinanet), classes=["a", "b", "c", "d"])
    assert "'a' is there twice" in refused(tmp_path, content(retinanet), classes=["a", "b", "a"])
    assert "give them with --classes" in refused(tmp_path, {"state_dict": retinanet})


def test_version_1_is_refused(tmp_path, retinanet):
    assert "MMDetection 1" in refused(tmp_path, content(retinanet, mmdet_version="1.2.0"))
    two_stages = {"bbox_head.fc_cls.weight": torch.zeros(4, 8), "rpn_head.rpn_conv.weight": torch.zeros(1)}
    assert "MMDetection 1" in refused(tmp_path, content(two_stages))


def test_other_heads_and_tools_are_refused(tmp_path, retinanet):
    backbone = {name: tensor for name, tensor in retinanet.items() if not name.startswith("bbox_head")}
    message = refused(tmp_path, content(backbone | {"bbox_head.atss_cls.weight": torch.zeros(3, 64, 3, 3)}))
    assert (
        "none of MMDetection's faster_rcnn, retinanet, fcos, gfl: its head has the layers bbox_head.atss_cls" in message
    )
    assert "is not of a tool that this library knows" in refused(tmp_path, {"model.0.conv.weight": torch.zeros(1)})
    assert "is a retinanet, not a fcos" in refused(tmp_path, content(retinanet), detector="fcos")
    assert "Did you mean 'retinanet'" in refused(tmp_path, content(retinanet), detector="retinanets")


class Planted:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_with_other_objects_is_refused_and_not_executed(tmp_path, retinanet):
    planted = tmp_path / "ran"
    message = refused(tmp_path, content(retinanet) | {"message_hub": Planted(planted)})
    assert "contains objects of" in message
    assert "save its state dict with torch.save" in message
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": Planted(planted)}))
    assert "is a pickle, and reading it would execute code" in refused(tmp_path, name="model.pkl")
    assert not planted.exists()


def test_torn_and_other_files_are_refused(tmp_path, retinanet):
    torch.save(content(retinanet), tmp_path / "whole.pth")
    (tmp_path / "model.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:-5000])
    assert "can't be read as weights" in refused(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"hello")
    assert "can't be read as weights" in refused(tmp_path, name="model.safetensors")
    assert "does not exist" in refused(tmp_path, name="none.pth")
    assert "contains no state dict" in refused(tmp_path, torch.zeros(3))
    assert "'step' is not the name of a tensor" in refused(tmp_path, {"step": 3})
    wrong = retinanet | {"bbox_head.retina_reg.bias": torch.full((36,), torch.nan)}
    assert "not finite (bbox_head.retina_reg.bias)" in refused(tmp_path, content(wrong))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("model = dict(backbone=dict(type='ResNeXt'))", "only ResNet works"),
        ("model = dict(test_cfg=dict(nms=dict(type='soft_nms')))", "only nms works"),
        ("model = dict(bbox_head=dict(anchor_generator=dict(ratios=[1.0])))", "only [0.5, 1.0, 2.0] works"),
        ("model = dict(test_cfg=dict(score_thr='low'))", "'low', not a number"),
        ("model = dict(test_cfg=dict(score_thr=3.0))", "between 0 and 1"),
        ("model = dict(", "can't be read (SyntaxError)"),
        ("img_norm_cfg = dict(mean=[1, 2], std=[1, 1, 1])", "three numbers"),
    ],
)
def test_configurations_that_would_give_other_boxes_are_refused(tmp_path, retinanet, line, message):
    assert message in refused(tmp_path, content(retinanet, config=line))


CONFIG = """
img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
model = dict(
    type='RetinaNet',
    backbone=dict(type='ResNet', depth=18, style='caffe', norm_cfg=dict(type='BN', requires_grad=False)),
    test_cfg=dict(nms_pre=500, min_bbox_size=0, score_thr=0.1, nms=dict(type='nms', iou_threshold=0.4), max_per_img=50))
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=(1000, 600), transforms=[dict(type='Resize', keep_ratio=True)])]
x = __import__('os').getcwd()
"""


def test_the_configuration_decides_about_input_and_selection(tmp_path, retinanet):
    torch.save(content(retinanet, config="x = 1"), tmp_path / "model.pth")
    (tmp_path / "config.py").write_text(CONFIG)
    folder = tmp_path / "run"
    import_checkpoint(str(tmp_path / "model.pth"), str(folder), tool_config=str(tmp_path / "config.py"))
    detector = load(folder)
    assert (detector.info.size, detector.info.max_size) == (600, 1000)
    assert detector.info.mean == pytest.approx((123.675 / 255, 116.28 / 255, 103.53 / 255))
    assert detector.info.std == pytest.approx((1 / 255,) * 3)
    assert detector.selection == Selection(0.1, 50, 0.4, 500)
    assert detector.spec.norm == "frozen"
    first = detector.backbone.body.conv1.weight
    assert torch.equal(first, retinanet["backbone.conv1.weight"].flip(1))


def test_classes_may_be_lines_of_a_file_and_weights_safetensors(tmp_path, retinanet):
    save_file({name: tensor.contiguous() for name, tensor in retinanet.items()}, tmp_path / "model.safetensors")
    (tmp_path / "names.txt").write_text("cat\ndog\n\nbarn owl\n")
    result = import_checkpoint(
        str(tmp_path / "model.safetensors"), str(tmp_path / "run"), classes=[str(tmp_path / "names.txt")]
    )
    assert result.detector.info.classes == ("cat", "dog", "barn owl")


def test_an_existing_folder_with_files_is_not_written(tmp_path, retinanet):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.json").write_text("{}")
    torch.save(content(retinanet), tmp_path / "model.pth")
    with pytest.raises(InputError, match="is not empty"):
        import_checkpoint(str(tmp_path / "model.pth"), str(tmp_path / "run"))
    assert (tmp_path / "run" / "model.json").read_text() == "{}"


def test_the_command_writes_a_run_directory_that_predict_takes(tmp_path, capsys, retinanet):
    torch.save(content(retinanet), tmp_path / "model.pth")
    run = tmp_path / "run"
    assert main(["import", str(tmp_path / "model.pth"), "--out", str(run), "--size", "64", "--max-size", "96"]) == 0
    printed = capsys.readouterr()
    assert "contains the retinanet of MMDetection with 3 classes" in printed.out
    assert "Give the file that MMDetection wrote beside it with --tool-config" in printed.err
    description = json.loads((run / "model.json").read_text())
    assert (description["family"], description["backbone"]) == ("retinanet", "resnet18")
    assert sorted(path.name for path in run.iterdir()) == ["model.json", "model.safetensors"]
    to_pil_image(images((64, 96))[0]).save(tmp_path / "picture.png")
    assert main(["predict", str(run), str(tmp_path / "picture.png"), "--out", str(tmp_path / "pictures")]) == 0


def test_the_command_refuses_in_one_line(tmp_path, capsys):
    assert main(["import", str(tmp_path / "none.pth"), "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["import", "--out", str(tmp_path / "run")]) == 2
    assert "Missing: CHECKPOINT." in capsys.readouterr().err


@pytest.mark.slow
def test_an_imported_detector_teaches_and_can_be_trained_further(tmp_path, retinanet, capsys):
    state = dict(random_states.mmdet_retinanet())
    wider = {
        name: tensor.view(9, 3, *tensor.shape[1:]).repeat_interleave(2, dim=1).flatten(0, 1)
        for name, tensor in state.items()
        if name.startswith("bbox_head.retina_cls")
    }
    torch.save({"state_dict": state | wider, "meta": {"CLASSES": SHAPES}}, tmp_path / "model.pth")
    import_checkpoint(str(tmp_path / "model.pth"), str(tmp_path / "teacher"), size=64, max_size=96)
    result = tiny_run(tmp_path / "student", "retinanet", tmp_path / "teacher", max_steps=2)
    assert result.finished
    assert sum("train/loss" in line for line in lines(tmp_path / "student")) == 2
    options = json.loads((tmp_path / "teacher" / "model.json").read_text())["options"]
    changes = {"backbone": "resnet18", "norm": "bn_eval", "neck_channels": 64, "detector_options": options}
    run = tiny_run(tmp_path / "tuned", "retinanet", weights=str(tmp_path / "teacher"), max_steps=2, **changes)
    assert run.finished
    arguments = [str(tmp_path / "teacher"), "--data", "demo", "--split", "test", "--workers", "0", "--device", "cpu"]
    assert main(["evaluate", *arguments]) == 0
    assert "AP" in capsys.readouterr().out


TORCHVISION = ["retinanet_resnet50_fpn", "fcos_resnet50_fpn", "fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn_v2"]


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_a_state_dict_of_torchvision_predicts_as_torchvision_does(tmp_path, name):
    from tests.detector.test_torchvision_parity import FEW_PROPOSALS, MAX_SIZE, PICTURES, SIZE, original

    model = original(name)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    result = import_checkpoint(
        str(tmp_path / "model.pth"),
        str(tmp_path / "run"),
        detector=name,
        size=SIZE,
        max_size=MAX_SIZE,
        classes=["a", "b", "c", "d"],
    )
    assert result.tool == "torchvision"
    detector = result.detector
    if hasattr(detector, "rpn"):
        detector.rpn._post_nms_top_n = FEW_PROPOSALS
    else:
        counts = {name: getattr(model, name) for name in ("topk_candidates", "detections_per_img")}
        detector.selection = replace(detector.selection, **counts)
    with torch.no_grad():
        expected = [model([picture])[0] for picture in PICTURES]
    for detections, reference in zip(detector.predict(PICTURES), expected, strict=True):
        assert len(reference["scores"]) > 10
        distance = (detections.boxes[:, None] - reference["boxes"]).abs().amax(2)
        distance += 100 * (detections.scores[:, None] - reference["scores"]).abs()
        distance += 100 * (detections.labels[:, None] + 1 != reference["labels"])
        assert distance.min(dim=0).values.max() < 0.01
        assert distance.min(dim=1).values.max() < 0.01


def test_the_second_faster_rcnn_of_torchvision_names_what_works(tmp_path):
    names = detection.fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=2).state_dict()
    message = refused(tmp_path, OrderedDict((name, torch.zeros(1)) for name in names))
    assert "--teacher torchvision:fasterrcnn_resnet50_fpn_v2 --teacher-weights" in message


def test_other_anchors_of_detectron2_are_refused(tmp_path):
    state = {"backbone.bottom_up.stem.conv1.weight": torch.zeros(64, 3, 7, 7), "head.cls_score.weight": torch.zeros(27)}
    sides = [32 * 2 ** (octave / 3) for octave in range(3)]
    shapes = [(side / ratio**0.5, side * ratio**0.5) for side in sides for ratio in (0.5, 1.0, 2.0)]
    usual = torch.tensor([[-w / 2, -h / 2, w / 2, h / 2] for w, h in shapes])
    name = "anchor_generator.cell_anchors.0"
    assert "the backbone is not one of" in refused(tmp_path, {"model": state | {name: usual}})
    assert "has other anchors" in refused(tmp_path, {"model": state | {name: usual / 2}})


@needs_transformers
def test_a_folder_of_transformers_is_imported(tmp_path):
    from tests.detector.test_detr import saved

    folder = tmp_path / "hub"
    saved(folder, "rt_detr")
    run = import_checkpoint(str(folder), str(tmp_path / "run"))
    assert run.tool == "transformers"
    picture = images((64, 96))
    (expected,), (found,) = load(folder).predict(picture), load(tmp_path / "run").predict(picture)
    torch.testing.assert_close(found.boxes, expected.boxes)
    torch.testing.assert_close(found.scores, expected.scores)
    with pytest.raises(InputError, match="only --classes can be given"):
        import_checkpoint(str(folder), str(tmp_path / "other"), size=64)
