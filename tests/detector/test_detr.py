"""Detection transformers: what they compute is what transformers computes, and what they say about it is true."""

import builtins
import json
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from defeat.detector import DetectorSpec, build, load, save_model, transformers_models
from defeat.detector.cells import cell_labels
from defeat.detector.families.detr import KINDS, DETROptions
from defeat.detector.statistics import ObjectStatistics
from defeat.errors import InputError
from tests.detector.equal_to_transformers import count_equal_predictions
from tests.detector.tiny import (
    BACKBONE,
    CLASSES,
    images,
    keep_statistics,
    needs_transformers,
    of_transformers,
    target,
    tiny_batch,
    tiny_detector,
    tiny_options,
)

pytestmark = needs_transformers
every_kind = pytest.mark.parametrize("kind", [of_transformers(kind) for kind in KINDS])
ALL = {"score_thresh": 0.0, "detections_per_img": 1000}
PUBLISHED = {"score_thresh": 0.0, "detections_per_img": 300}


def spread(detector):
    """Weights and statistics under which scores differ: those of a tiny random detector are nearly all equal."""
    torch.manual_seed(5)
    for layer in detector.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    with torch.no_grad():
        detector.train()
        for _ in range(5):  # running statistics that fit the weights
            detector.forward_maps(tiny_batch(detector))
    return detector.eval()


def as_transformers(detector):
    """A model of transformers with the weights of a detector, put together again."""
    config = detector.spec.options["config"]
    model = transformers_models.model_of(config, detector.info.classes)
    state = {}
    for name, tensor in detector.state_dict().items():
        for ours, theirs in renamed(detector.spec.family).items():
            if name.startswith(ours):
                state[theirs + name.removeprefix(ours)] = tensor
                break
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert unexpected == []
    assert all(name.startswith(("class_embed", "bbox_embed")) for name in missing)  # tied to those of the decoder
    return model.eval()


def renamed(family):
    body = "model.conv_encoder" if family == "deimv2" else "model.backbone"
    projections = "model.conv_encoder.encoder_input_proj." if family == "deimv2" else "model.encoder_input_proj."
    return {
        "backbone.body.": f"{body}.model._backbone.",
        "backbone.fpn.projections.": projections,
        "backbone.fpn.encoder.": "model.encoder.",
        "head.": "model.",
    }


def saved(path, kind):
    """Write a detector by `save_pretrained` of transformers, and return it."""
    from transformers import RTDetrImageProcessor

    detector = spread(tiny_detector(kind, options=tiny_options(kind, **PUBLISHED)))
    as_transformers(detector).save_pretrained(path)
    RTDetrImageProcessor(size={"height": 64, "width": 64}).save_pretrained(path)
    return detector


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder written by `save_pretrained`, and the detector from which it was made."""
    path = tmp_path_factory.mktemp("saved")
    return path, saved(path, "d_fine")


@every_kind
def test_predictions_are_those_of_the_models_own_processor_and_post_processing(kind):
    from transformers import RTDetrImageProcessor

    detector = spread(tiny_detector(kind, options=tiny_options(kind, **PUBLISHED)))
    model, processor = as_transformers(detector), RTDetrImageProcessor(size={"height": 64, "width": 64})
    pictures = images((64, 64), (50, 90), (200, 120))
    inputs = processor(images=pictures, return_tensors="pt")
    assert torch.allclose(detector.prepare(pictures).images, inputs["pixel_values"], atol=1e-6)
    with torch.no_grad():
        output = model(**inputs)
    sizes = [tuple(picture.shape[-2:]) for picture in pictures]
    expected = processor.post_process_object_detection(output, threshold=0.0, target_sizes=sizes)
    assert count_equal_predictions(detector, pictures, expected) > 10


@every_kind
def test_losses_are_those_of_the_model(kind):
    detector = tiny_detector(kind, options=tiny_options(kind, denoising=0)).train()
    model = as_transformers(detector).train()
    batch = tiny_batch(detector)
    labels = [{"class_labels": of_image.labels, "boxes": centred(of_image.boxes / 64)} for of_image in batch.targets]
    for network in (model, detector):  # neither normalises by the batch
        keep_statistics(network)
    total = sum(detector.forward_train(batch).losses.values())
    assert total.item() == pytest.approx(model(batch.images, labels=labels).loss.item(), rel=1e-4)


def centred(boxes):
    return torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], dim=1)


@every_kind
def test_images_are_stretched_to_a_square_with_a_ratio_for_each_axis(kind):
    detector = tiny_detector(kind)
    annotated = target([[0, 0, 40, 32], [10, 8, 20, 16]], [0, 1], (32, 80))
    batch = detector.prepare(images((32, 80)), [annotated])
    assert batch.sizes == [(64, 64)]
    # Rows double; columns shrink to 64 / 80 = 0.8.
    assert batch.targets[0].boxes.tolist() == [[0, 0, 32, 64], [8, 16, 16, 32]]
    scaled = detector.prepare(images((32, 80)) * 2, [replace(annotated, scale=1.4), replace(annotated, scale=0.6)])
    assert scaled.sizes == [(96, 96), (32, 32)]  # 89.6 and 38.4, to the nearest multiple of 32


def test_a_side_that_is_no_multiple_of_32_is_refused():
    with pytest.raises(InputError, match="--size of d_fine must be a multiple of 32, not 100"):
        tiny_detector("d_fine", size=100)


@pytest.mark.parametrize("sizes", [[(64, 96)] * 2, [(64, 96), (96, 64)], [(50, 70), (64, 64)]])
def test_a_teacher_that_stretches_sees_the_pixels_of_a_student_that_does_not(sizes):
    student, teacher = tiny_detector("retinanet"), tiny_detector("d_fine", size=96)
    batch = student.prepare(images(*sizes), [target([[8, 16, 40, 48]], [0], size) for size in sizes])
    adopted = teacher.adopt(batch)
    assert tuple(side % 32 for side in adopted.images.shape[-2:]) == (0, 0)
    ratios = torch.tensor([adopted.scale * adopted.stretch, adopted.scale])
    for before, after in zip(batch.targets, adopted.targets, strict=True):
        assert torch.allclose(after.boxes, before.boxes * ratios.repeat(2), rtol=0.02)
    if len(set(sizes)) == 1:  # then exactly the teacher's own square
        assert adopted.sizes == [(96, 96)] * 2
        assert (adopted.scale, adopted.stretch) == pytest.approx((1.5, 64 / 96))
    output = teacher.eval().forward_teacher(adopted)
    assert (output.scale, output.stretch) == (adopted.scale, adopted.stretch)


def test_a_teacher_that_does_not_stretch_gets_back_the_aspect_ratio():
    student, teacher = tiny_detector("d_fine"), tiny_detector("retinanet")
    batch = student.prepare(images((64, 96), (32, 48)), [target([[0, 0, 48, 32]], [0], (64, 96))] * 2)
    adopted = teacher.adopt(batch)
    assert adopted.sizes == [(64, 96)] * 2
    assert adopted.targets[0].boxes.tolist() == [[0, 0, 48, 32]]
    assert (adopted.scale, adopted.stretch) == pytest.approx((1.0, 1.5))
    assert tiny_detector("d_fine", seed=1).adopt(batch) is batch


def test_cells_belong_to_the_smallest_box_around_their_centre():
    centres = torch.tensor([[4.0, 4.0], [12.0, 4.0], [20.0, 4.0], [28.0, 4.0]])  # of a level of stride 8
    strides = torch.full((4,), 8)
    # The first box is around the first three centres; the second is around the second; the third is smaller than a
    # cell, around no centre, and centred in the last cell.
    truth = target([[0, 0, 22, 8], [9, 0, 15, 8], [29, 5, 31, 7]], [0, 1, 2], (8, 32))
    assert cell_labels(truth, centres, strides, 3).tolist() == [0, 1, 0, 2]
    assert cell_labels(target([], []), centres, strides, 3).tolist() == [3] * 4


@every_kind
def test_dense_predictions_on_the_border_are_ignored_at_large_sizes(kind):
    # At 640 pixels the centres of the outermost cells of stride 8 are at 4 / 640 < 0.01: the model has no memory there.
    detector = tiny_detector(kind, size=640, max_size=640).eval()
    batch = detector.prepare(images((640, 640)), [target([[0, 0, 640, 640]], [1], (640, 640))])
    labels = detector.forward_teacher(batch).dense.labels[0]
    finest = labels[: 80 * 80].view(80, 80)
    assert (finest[1:-1, 1:-1] == 1).all()
    assert (finest[0] == -1).all()
    assert (finest[:, -1] == -1).all()
    assert (labels[80 * 80 :] == 1).all()


@every_kind
def test_queries_are_without_those_of_denoising_in_student_and_teacher(kind):
    detector = tiny_detector(kind, norm="frozen").train()
    batch = tiny_batch(detector)
    trained = detector.forward_train(batch).queries
    taught = detector.eval().forward_teacher(batch).queries
    assert trained.logits.shape == taught.logits.shape == (2, 3, 20, 3)
    assert (trained.corners is None) == (kind in ("rt_detr", "rt_detr_v2"))
    plain = tiny_detector(kind, norm="frozen", options=tiny_options(kind, denoising=0)).eval().forward_teacher(batch)
    assert plain.queries.boxes.shape == taught.boxes.shape


def test_a_batch_has_no_more_queries_than_cells():
    detector = tiny_detector("d_fine", options=tiny_options("d_fine", queries=84)).train()
    small = detector.prepare(images((64, 64)) * 2, [replace(target([[8, 8, 40, 40]], [0]), scale=0.5)] * 2)
    assert small.images.shape[-2:] == (32, 32)
    assert detector.forward_train(small).queries.logits.shape[2] == 16 + 4 + 1
    assert detector.forward_train(tiny_batch(detector)).queries.logits.shape[2] == 84


def test_options_follow_the_size_and_the_width():
    statistics = ObjectStatistics(96, torch.zeros(0, 4), torch.zeros(0, 2), torch.zeros(0))
    fitted = DETROptions().fitted(statistics, 64)
    assert (fitted.queries, fitted.decoder_layers) == (144 + 36 + 9, 3)
    assert DETROptions().fitted(replace(statistics, size=640), 256) == replace(fitted, queries=300, decoder_layers=6)


@every_kind
def test_the_weight_of_negatives_changes_the_classification_only(kind):
    detector = tiny_detector(kind, norm="frozen", options=tiny_options(kind, denoising=0)).train()
    batch = tiny_batch(detector)
    losses = {weight: detector.forward_train(batch, weight).losses for weight in (0.0, 0.5, 1.0)}
    for name, whole in losses[1.0].items():
        none, half = losses[0.0][name].item(), losses[0.5][name].item()
        assert half == pytest.approx((none + whole.item()) / 2, rel=1e-4), name
        assert (none < whole.item()) if name == "classification" else none == pytest.approx(whole.item())


@every_kind
def test_a_folder_of_save_pretrained_is_the_detector(kind, tmp_path):
    detector = saved(tmp_path / "saved", kind)
    loaded = load(tmp_path / "saved")
    assert (loaded.info.family, loaded.info.classes, loaded.info.size) == (kind, CLASSES, 64)
    assert (loaded.info.mean, loaded.info.std) == ((0.0,) * 3, (1.0,) * 3)
    pictures = images((64, 80))
    (before,), (after,) = detector.predict(pictures), loaded.predict(pictures)
    count = len(after.scores)  # the loaded one has the default threshold and number of detections
    assert count > 10
    assert torch.allclose(before.scores[:count], after.scores, atol=1e-5)
    assert torch.allclose(before.boxes[:count], after.boxes, atol=1e-3)
    save_model(loaded, tmp_path)  # a run directory of it needs neither the folder nor the network
    again = load(tmp_path)
    assert again.info == loaded.info
    kept, read = loaded.state_dict(), again.state_dict()
    assert kept.keys() == read.keys()
    assert all(torch.equal(kept[name], read[name]) for name in kept)
    assert torch.allclose(again.predict(pictures)[0].boxes, after.boxes, atol=1e-3)


def test_other_classes_replace_their_rows_and_keep_all_other_weights(folder):
    path, detector = folder
    spec = DetectorSpec("d_fine", BACKBONE, ("owl", "ship", "cat", "plane"), size=96, max_size=96)
    student = build(spec, str(path))
    assert (student.info.classes, student.info.size) == (spec.classes, 96)
    assert "2 of 4 classes have the checkpoint's, and 2 start anew, such as ship" in student.notes[0]
    rows, theirs = student.class_rows(), detector.state_dict()
    for name, tensor in student.state_dict().items():
        if name in rows:
            assert torch.equal(tensor[[0, 2]], theirs[name][[2, 0]]), name  # owl and cat
        else:
            assert torch.equal(tensor, theirs[name]), name
    student.train()
    assert sum(student.forward_train(tiny_batch(student)).losses.values()).isfinite()


def test_a_folder_without_safetensors_or_of_another_model_is_refused(folder, tmp_path):
    path, _ = folder
    content = json.loads((path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(InputError, match=r"has no model\.safetensors: weights are read from safetensors only"):
        load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(InputError, match="can't be loaded"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "yolos", "num_labels": 3}))
    with pytest.raises(
        InputError, match="of 'yolos', not of one of rt_detr, rt_detr_v2, d_fine, deimv2, lw_detr, rf_detr"
    ):
        load(tmp_path)
    with pytest.raises(InputError, match="is a d_fine, not a rt_detr"):
        build(DetectorSpec("rt_detr", BACKBONE, CLASSES, 64, 64), str(path))


def test_a_hub_that_can_not_be_reached_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read from the environment when imported
    with pytest.raises(InputError) as refused:
        load("hf:someone/some-detector")
    message = str(refused.value)
    assert message.startswith("hf:someone/some-detector can't be loaded (is the hub reachable")
    assert "\n" not in message


def test_without_transformers_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr(
        transformers_models, "find_spec", lambda name: None if name == "transformers" else find_spec(name)
    )
    with pytest.raises(
        InputError, match=r'^d_fine needs transformers: pip install "defeat-detection\[transformers\]"\.$'
    ):
        tiny_detector("d_fine")


def test_other_families_do_not_import_transformers(monkeypatch):
    imported = []
    original = builtins.__import__

    def watch(name, *arguments, **keywords):
        imported.append(name)
        return original(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", watch)
    tiny_detector("retinanet").predict(images((64, 64)))
    assert not [name for name in imported if name.startswith("transformers")]


def test_a_backbone_with_activation_in_its_normalisation_keeps_it(folder):
    # `freeze_backbone_batch_norms` of transformers replaces timm's BatchNormAct2d by a layer without activation.
    detector = tiny_detector("rt_detr", "tf_efficientnet_lite0", norm="frozen")
    assert detector.spec.options["config"]["freeze_backbone_batch_norms"] is False
    norms = [module for module in detector.backbone.body.modules() if type(module).__name__ == "FrozenBatchNormAct2d"]
    assert any(isinstance(norm.act, nn.ReLU6) for norm in norms)


def test_ties_between_layers_are_saved_and_restored(tmp_path):
    detector = tiny_detector("deimv2")
    config = detector.spec.options["config"] | {"share_bbox_head": True}
    shared = tiny_detector("deimv2", options={"config": config})
    heads = shared.head.decoder.bbox_embed
    assert heads[0].layers[0].weight is heads[1].layers[0].weight
    save_model(shared, tmp_path)
    again = load(tmp_path).head.decoder.bbox_embed
    assert torch.equal(again[1].layers[0].weight, heads[0].layers[0].weight)
