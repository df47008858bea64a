"""torchvision's detectors, loaded from a file with their state dict, give the same predictions."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from defeat.detector import load
from defeat.detector.pretrained import CONVERTERS
from defeat.errors import InputError
from tests.detector.tiny import images, tiny_batch

SIZE, MAX_SIZE = 96, 128
PICTURES = [picture / 255 for picture in images((100, 120), (128, 96))]
FEW_PROPOSALS = {"training": 100, "testing": 100}  # the thousand that are usual take seconds


def spread(model, layer, deviation):
    """Scale a layer so that its outputs have this deviation: at first all scores are nearly equal."""
    outputs = []
    layer.bias.zero_()
    hook = layer.register_forward_hook(lambda _layer, _inputs, output: outputs.append(output.flatten()))
    model(PICTURES)
    hook.remove()
    layer.weight.mul_(deviation / max(level.std() for level in outputs))


def original(name):
    """torchvision's model for four classes and the background, with weights at which scores are well spread."""
    torch.manual_seed(1)  # a draw of which no two boxes are so near that rounding chooses between them
    sizes = {} if name.startswith("ssdlite") else {"min_size": SIZE, "max_size": MAX_SIZE}
    model = get_model(name, weights=None, weights_backbone=None, num_classes=5, **sizes)
    with torch.no_grad():
        # Random layers change the scale of features; one pass with momentum 1 makes the statistics fit them.
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        prepared, _ = model.transform(PICTURES)
        model.backbone.train()(prepared.tensors)
        model.eval()
        if hasattr(model, "roi_heads"):
            model.rpn._post_nms_top_n = FEW_PROPOSALS
            predictor = model.roi_heads.box_predictor
            spread(model, predictor.cls_score, 0.5)
            spread(model, predictor.bbox_pred, 1.0)
        elif name.startswith("ssdlite"):
            model.topk_candidates = 20  # the usual 300 of each class take seconds
            for layers, deviation in ((model.head.classification_head, 1.0), (model.head.regression_head, 2.0)):
                for level in layers.module_list:
                    spread(model, level[1], deviation)
        else:
            head = model.head
            spread(model, head.classification_head.cls_logits, 1.0)
            spread(model, head.regression_head.bbox_reg, 3.0 if name.startswith("fcos") else 0.3)
            # Nothing is ever annotated as background, so a trained model gives it next to no score.
            head.classification_head.cls_logits.bias.view(-1, 5)[:, 0] = -100
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", CONVERTERS)
def test_predictions_equal_those_of_torchvision(name, tmp_path):
    model = original(name)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    detector = load(f"torchvision:{name}", weights=tmp_path / "weights.pth")
    assert not detector.training
    stretches = detector.info.square
    assert (detector.info.size, detector.info.max_size) == ((320, 320) if stretches else (800, 1333))
    assert detector.info.classes == ("class 0", "class 1", "class 2", "class 3")
    if not stretches:
        detector.info = replace(detector.info, size=SIZE, max_size=MAX_SIZE)
    if name.startswith("ssdlite"):
        detector.topk_candidates = model.topk_candidates
    if hasattr(detector, "rpn"):
        detector.rpn._post_nms_top_n = FEW_PROPOSALS
    with torch.no_grad():
        # One by one: torchvision pads a batch to its largest image, on which its detections depend.
        expected = [model([picture])[0] for picture in PICTURES]
    for detections, reference in zip(detector.predict(PICTURES), expected, strict=True):
        assert len(reference["scores"]) > 10
        assert reference["scores"].max() - reference["scores"].min() > 0.1
        assert torch.allclose(detections.scores, reference["scores"], atol=1e-4)
        # Nearly equal scores may change places: every detection must have its counterpart, wherever it stands.
        distance = (detections.boxes[:, None] - reference["boxes"]).abs().amax(2)
        distance += 100 * (detections.scores[:, None] - reference["scores"]).abs()
        distance += 100 * (detections.labels[:, None] + 1 != reference["labels"])  # 0 is the background
        assert distance.min(dim=0).values.max() < 0.01
        assert distance.min(dim=1).values.max() < 0.01


def test_a_loaded_model_teaches_with_labels_from_zero(tmp_path):
    torch.save(original("retinanet_resnet50_fpn").state_dict(), tmp_path / "weights.pth")
    detector = load("torchvision:retinanet_resnet50_fpn", weights=tmp_path / "weights.pth")
    detector.info = replace(detector.info, size=64, max_size=96)
    batch = tiny_batch(detector)
    dense = detector.forward_teacher(batch).dense
    # The column of the background, with its logits near -100, is left out.
    assert dense.logits.shape[-1] == 4
    assert dense.logits.abs().max() < 50
    assert {0, 1, 2, 4} <= set(dense.labels.flatten().tolist()) <= {-1, 0, 1, 2, 4}


def test_the_background_column_is_not_detected(tmp_path):
    model = original("retinanet_resnet50_fpn")
    with torch.no_grad():
        model.head.classification_head.cls_logits.bias.view(9, 5)[:, 0] = 100
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    detector = load("torchvision:retinanet_resnet50_fpn", weights=tmp_path / "weights.pth")
    detector.info = replace(detector.info, size=64, max_size=96)
    (detections,) = detector.predict(images((64, 64)))
    assert len(detections.labels) > 0
    assert detections.labels.min() >= 0
    assert detections.labels.max() <= 3


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'retinanet_resnet50_fpn'"):
        load("torchvision:retinanet_resnet50")


def test_other_weights_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"layer.weight": torch.zeros(3)}, path)
    with pytest.raises(InputError, match="no classification layer"):
        load("torchvision:retinanet_resnet50_fpn", weights=path)
    torch.save({"head.classification_head.cls_logits.bias": torch.zeros(45)}, path)
    with pytest.raises(InputError, match="does not fit") as caught:
        load("torchvision:retinanet_resnet50_fpn", weights=path)
    assert "\n" not in str(caught.value)
    path.write_text("not weights")
    with pytest.raises(InputError, match="can't be read") as caught:
        load("torchvision:retinanet_resnet50_fpn", weights=path)
    assert "\n" not in str(caught.value)
