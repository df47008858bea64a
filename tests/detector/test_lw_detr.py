"""LW-DETR and RF-DETR: what they compute is what transformers computes, with groups of queries in training."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from defeat.detector import DetectorSpec, build, load, save_model, transformers_models
from defeat.detector.families.lw_detr import KINDS, LWDETROptions, RFDETROptions
from defeat.detector.lw_detr_models import cell_anchors, lw_configuration
from defeat.detector.options import with_teacher_values
from defeat.detector.statistics import ObjectStatistics
from defeat.detector.weights import IMAGENET_MEAN, IMAGENET_STD
from defeat.distillation import build_method
from defeat.errors import InputError
from defeat.types import Progress
from tests.detector.equal_to_transformers import count_equal_predictions, student_that_inherits
from tests.detector.test_detr import centred, spread
from tests.detector.tiny import (
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
QUICK = "lw_detr"
every_kind = pytest.mark.parametrize("kind", [of_transformers(kind, QUICK) for kind in KINDS])
# All necks of LW-DETR; and RF-DETR with patches of 14 pixels, a token of pretraining and a layer behind its last map,
# as its first published checkpoints have them.
every_model = pytest.mark.parametrize(
    ("kind", "options", "body"),
    [
        pytest.param("lw_detr", {}, {}, id="lw_detr"),
        pytest.param("lw_detr", {"levels": "P3+P5"}, {}, id="lw_detr-P3+P5", marks=pytest.mark.slow),
        pytest.param("rf_detr", {}, {}, id="rf_detr"),
        pytest.param(
            "rf_detr", {}, {"patch_size": 14, "use_mask_token": True, "out_indices": [1, 2]}, id="rf_detr-patch-14"
        ),
    ],
)
FEW = {"queries": 12}  # the models themselves can't have more queries than cells


def detector_of(kind, options, body=None, **spec):
    """A tiny detector; its transformer may have other values than those that follow from names."""
    options = tiny_options(kind, score_thresh=0.0, detections_per_img=1000, **FEW) | options
    options["antialias"] = kind != "rf_detr"  # as their processors
    if not body:
        return tiny_detector(kind, options=options, **spec)
    size = 4 * body.get("patch_size", 16)
    config = dict(tiny_detector(kind, options=options).spec.options["config"])
    changed = config["backbone_config"] | body | {"image_size": size, "out_features": None}
    config["backbone_config"] = {name: value for name, value in changed.items() if value is not None}
    return tiny_detector(kind, size=size, max_size=size, options=options | {"config": config}, **spec)


def as_transformers(detector):
    """A model of transformers with the weights of a detector, put together again."""
    model = transformers_models.model_of(detector.spec.options["config"], detector.info.classes)
    renamed = {
        "backbone.body.backbone.": "model.backbone.backbone.",
        "backbone.fpn.projector.": "model.backbone.projector.",
        "head.class_embed.": "class_embed.",
        "head.bbox_embed.": "bbox_embed.",
        "head.": "model.",
    }
    state = {}
    for name, tensor in detector.state_dict().items():
        ours = next(prefix for prefix in renamed if name.startswith(prefix))
        state[renamed[ours] + name.removeprefix(ours)] = tensor
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert unexpected == []
    last = max(model.config.backbone_config.out_indices)
    layers = [f"model.backbone.backbone.encoder.layer.{index}." for index in range(last, 3)]  # without effect
    assert all(name.startswith(tuple(layers)) for name in missing)
    return model.eval()


def processor_of(kind, size):
    from transformers import DeformableDetrImageProcessor, RfDetrImageProcessor

    made = RfDetrImageProcessor if kind == "rf_detr" else DeformableDetrImageProcessor
    return made(size={"height": size, "width": size})


def saved(path, detector):
    """Write a detector by `save_pretrained` of transformers."""
    as_transformers(detector).save_pretrained(path)
    processor_of(detector.spec.family, detector.info.size).save_pretrained(path)
    return path


@every_model
def test_predictions_are_those_of_the_models_own_processor_and_post_processing(kind, options, body):
    detector = spread(detector_of(kind, options, body))
    model, processor = as_transformers(detector), processor_of(kind, detector.info.size)
    pictures = images((64, 64), (50, 90), (200, 120))
    inputs = processor(images=pictures, return_tensors="pt")
    batch = detector.prepare(pictures)
    assert torch.allclose(detector.normalise(batch), inputs["pixel_values"], atol=1e-5)
    with torch.no_grad():
        output = model(**inputs)
    sizes = [tuple(picture.shape[-2:]) for picture in pictures]
    expected = processor.post_process_object_detection(output, threshold=0.0, target_sizes=sizes, top_k=12)
    assert count_equal_predictions(detector, pictures, expected) > 20


@every_model
def test_losses_and_their_gradient_are_those_of_the_model(kind, options, body):
    detector = keep_statistics(spread(detector_of(kind, options, body)).train())
    model = keep_statistics(as_transformers(detector).train())
    batch, size = tiny_batch(detector), detector.info.size
    labels = [{"class_labels": of_image.labels, "boxes": centred(of_image.boxes / size)} for of_image in batch.targets]
    total = sum(detector.forward_train(batch).losses.values())
    expected = model(detector.normalise(batch), labels=labels).loss
    assert total.item() == pytest.approx(expected.item(), rel=1e-4)
    total.backward()
    expected.backward()
    pairs = {
        "head.decoder.layers.0.mlp.fc1.weight": model.model.decoder.layers[0].mlp.fc1.weight,
        "head.class_embed.weight": model.class_embed.weight,
        "head.enc_out_bbox_embed.1.layers.0.weight": model.model.enc_out_bbox_embed[1].layers[0].weight,
        "head.query_feat.weight": model.model.query_feat.weight,
    }
    for name, weight in pairs.items():
        own = detector.get_parameter(name).grad
        assert weight.grad.abs().max() > 0, name
        assert torch.allclose(own, weight.grad, rtol=1e-3, atol=1e-4 * weight.grad.abs().max().item()), name


@every_model
def test_every_weight_has_a_gradient_also_without_objects(kind, options, body):
    detector = detector_of(kind, options, body).train()
    for objects in (True, False):
        detector.zero_grad()
        sum(detector.forward_train(tiny_batch(detector, objects)).losses.values()).backward()
        assert [name for name, weight in detector.named_parameters() if weight.grad is None] == []


@every_model
def test_a_folder_of_save_pretrained_is_the_detector(kind, options, body, tmp_path):
    detector = spread(detector_of(kind, options, body))
    loaded = load(saved(tmp_path / "saved", detector))
    assert (loaded.info.family, loaded.info.classes, loaded.info.size) == (kind, CLASSES, detector.info.size)
    assert (loaded.info.mean, loaded.info.std) == (tuple(IMAGENET_MEAN), tuple(IMAGENET_STD))
    assert (loaded.info.neck, loaded.info.size_divisor) == (detector.info.neck, detector.info.size_divisor)
    pictures = images((64, 80))
    (before,), (after,) = detector.predict(pictures), loaded.predict(pictures)
    count = len(after.scores)  # the loaded one has the default threshold
    assert count > 5
    assert torch.allclose(before.scores[:count], after.scores, atol=1e-5)
    assert torch.allclose(before.boxes[:count], after.boxes, atol=1e-3)
    save_model(loaded, tmp_path)  # a run directory of it needs neither the folder nor the network
    again = load(tmp_path)
    assert again.info == loaded.info
    assert torch.equal(again.predict(pictures)[0].boxes, after.boxes)


@every_kind
def test_other_classes_replace_their_rows_and_keep_all_other_weights(kind, tmp_path):
    detector = detector_of(kind, {})
    path = str(saved(tmp_path, detector))
    spec = DetectorSpec(kind, "vit_32x3", ("owl", "ship", "cat", "plane"), size=128, max_size=128)
    student = build(spec, path)
    assert (student.info.classes, student.info.size) == (spec.classes, 128)
    assert "2 of 4 classes have the checkpoint's, and 2 start anew, such as ship" in student.notes[0]
    rows, theirs = student.class_rows(), detector.state_dict()
    assert len(rows) == 2 * (1 + 2)  # weight and bias of the decoder's classes, and of those of the cells in two groups
    for name, tensor in student.state_dict().items():
        if name in rows:
            assert torch.equal(tensor[[0, 2]], theirs[name][[2, 0]]), name  # owl and cat
        else:
            assert torch.equal(tensor, theirs[name]), name
    student.train()
    assert sum(student.forward_train(tiny_batch(student)).losses.values()).isfinite()
    other = next(name for name in KINDS if name != kind)
    with pytest.raises(InputError, match=f"it is a {kind}, not a {other}"):
        build(replace(spec, family=other), path)
    with pytest.raises(InputError, match=f"it is a {kind}, not a d_fine"):
        build(replace(spec, family="d_fine"), path)


def test_a_processor_that_does_not_name_mean_and_size_has_those_of_its_kind(tmp_path):
    detector = detector_of("lw_detr", {})
    as_transformers(detector).save_pretrained(tmp_path)
    loaded = load(tmp_path)  # without a processor
    assert (loaded.info.size, loaded.info.mean) == (640, tuple(IMAGENET_MEAN))
    for settings, mean in (({}, IMAGENET_MEAN), ({"do_normalize": False}, (0.0, 0.0, 0.0))):
        content = {"image_processor_type": "DeformableDetrImageProcessor", "size": {"height": 128, "width": 128}}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(content | settings))
        assert (load(tmp_path).info.size, load(tmp_path).info.mean) == (128, tuple(mean))
    for size in ({"height": 96, "width": 96}, {"shortest_edge": 800, "longest_edge": 1333}):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": size}))
        with pytest.raises(InputError, match="only squares with a side that is a multiple of 64 work"):
            load(tmp_path)


@pytest.mark.parametrize(
    ("name", "antialias"), [("DetrImageProcessor", True), ("RfDetrImageProcessor", False), (None, False)]
)
def test_rf_detr_is_antialiased_by_the_processors_of_other_kinds(name, antialias, tmp_path):
    path = saved(tmp_path, detector_of("rf_detr", {}))
    settings = json.loads((path / "preprocessor_config.json").read_text())
    settings.pop("image_processor_type")
    settings |= {} if name is None else {"image_processor_type": name}
    (path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert load(path).antialias is antialias


def test_a_checkpoint_of_segmentation_is_loaded_as_a_detector(tmp_path):
    from transformers import AutoConfig, RfDetrForInstanceSegmentation

    config = detector_of("rf_detr", {}).spec.options["config"]
    torch.manual_seed(3)
    model = RfDetrForInstanceSegmentation(AutoConfig.for_model(**config))
    model.save_pretrained(tmp_path)
    processor_of("rf_detr", 64).save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert torch.equal(loaded.head.class_embed.weight, model.model.class_embed.weight)
    assert torch.equal(loaded.head.query_feat.weight, model.model.model.query_feat.weight)


@pytest.mark.parametrize("sizes", [[(64, 64)] * 2, [(64, 96), (48, 64)]])
def test_a_teacher_with_patches_of_14_pixels_teaches_the_nearest_level(sizes):
    student = tiny_detector("retinanet").train()
    teacher = detector_of("rf_detr", {}, {"patch_size": 14}, seed=1).eval()
    with pytest.raises(InputError, match="they share no level"):
        build_method("imitation", student.info, teacher.info, {})
    method = build_method("imitation", student.info, teacher.info, {"missing_levels": "nearest"})
    batch = student.prepare(images(*sizes), [target([[8, 8, 40, 40]], [1], size) for size in sizes])
    taught = teacher.forward_teacher(teacher.adopt(batch))
    losses = method(student.forward_train(batch), taught, batch.targets, Progress(step=90, steps=100))
    assert losses
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())


@every_kind
def test_the_first_group_is_what_methods_read_and_what_predicts(kind):
    detector = keep_statistics(tiny_detector(kind, options=tiny_options(kind, groups=3, **FEW)).train())
    batch, drawn = tiny_batch(detector), torch.Generator().manual_seed(0)
    with torch.no_grad():  # every group begins elsewhere
        for embedding in (detector.head.reference_point_embed, detector.head.query_feat):
            embedding.weight.copy_(torch.randn(embedding.weight.shape, generator=drawn) * 0.1)
    calls = []
    detector.head.register_forward_hook(lambda module, given, found: calls.append(found))
    trained = detector.forward_train(batch)
    taught = detector.eval().forward_teacher(batch)
    assert [call.logits.shape for call in calls] == [(3, 2, 36, 3), (3, 2, 12, 3)]
    assert trained.queries.logits.shape == taught.queries.logits.shape == (2, 3, 12, 3)
    assert torch.allclose(trained.queries.logits, taught.queries.logits, atol=1e-5)
    assert torch.allclose(trained.queries.boxes, taught.queries.boxes, atol=1e-3)
    assert torch.allclose(trained.dense.logits, taught.dense.logits, atol=1e-5)
    second = calls[0].logits[:, :, 12:24]
    assert not torch.allclose(second.transpose(0, 1), taught.queries.logits, atol=1e-3)
    detections = detector.predict(images((64, 64)))[0]
    assert len(detections.scores) <= 12


def test_groups_do_not_see_each_other():
    detector = keep_statistics(tiny_detector("lw_detr", options=tiny_options("lw_detr", **FEW)).train())
    outputs = []
    detector.head.register_forward_hook(lambda module, given, found: outputs.append(found))
    batch = tiny_batch(detector)
    detector.forward_train(batch)
    with torch.no_grad():
        detector.head.query_feat.weight[12:] += torch.randn(16, generator=torch.Generator().manual_seed(1))
    detector.forward_train(batch)
    before, after = outputs
    assert torch.equal(before.logits[:, :, :12], after.logits[:, :, :12])
    assert not torch.allclose(before.logits[:, :, 12:], after.logits[:, :, 12:], atol=1e-4)


def test_a_batch_has_no_more_queries_than_cells():
    detector = tiny_detector("rf_detr", options=tiny_options("rf_detr", queries=20)).train()
    small = detector.prepare(images((64, 64)) * 2, [replace(target([[8, 8, 40, 40]], [0]), scale=0.5)] * 2)
    assert small.images.shape[-2:] == (32, 32)
    assert detector.forward_train(small).queries.logits.shape[2] == 2 * 2
    large = tiny_detector("rf_detr", size=128, options=tiny_options("rf_detr", queries=20)).train()
    assert large.forward_train(tiny_batch(large)).queries.logits.shape[2] == 20


@every_kind
def test_the_weight_of_negatives_changes_the_classification_only(kind):
    detector = keep_statistics(spread(detector_of(kind, {})).train())
    batch = tiny_batch(detector)
    losses = {weight: detector.forward_train(batch, weight).losses for weight in (0.0, 0.5, 1.0)}
    for name, whole in losses[1.0].items():
        none, half = losses[0.0][name].item(), losses[0.5][name].item()
        assert half == pytest.approx((none + whole.item()) / 2, rel=1e-4), name
        assert (none < whole.item()) if name == "classification" else none == pytest.approx(whole.item())


def test_anchors_are_boxes_at_the_centres_of_cells():
    anchors, inside = cell_anchors([(1, 2), (1, 1)], torch.zeros(1))
    # Two cells in a row, and one of the coarser level with twice the sides.
    expected = [[0.25, 0.5, 0.05, 0.05], [0.75, 0.5, 0.05, 0.05], [0.5, 0.5, 0.1, 0.1]]
    assert torch.allclose(anchors, torch.tensor(expected))
    assert inside.all()
    anchors, inside = cell_anchors([(64, 64)], torch.zeros(1))  # the outermost centres are at 0.5 / 64 < 0.01
    inside = inside.view(64, 64)
    assert inside[1:-1, 1:-1].all()
    assert not inside[0].any()
    assert not inside[:, -1].any()
    assert (anchors.view(64, 64, 4)[0] == 0).all()


@every_kind
def test_a_rectangle_has_the_map_of_its_padded_square(kind):
    # A teacher may see the batch of a student that keeps aspect ratios; windows divide squares of 64 pixels only.
    detector = spread(detector_of(kind, {}))
    body = detector.backbone.body
    rectangle = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        (features,) = body(rectangle)
        square = torch.zeros(2, 3, *((128, 128) if kind == "lw_detr" else (96, 96)))
        square[:, :, :64, :96] = rectangle
        if kind == "lw_detr":
            square = square[:, :, :64]  # it needs no square
        (expected,) = body(square)
    assert features.shape == (2, 96, 4, 6)
    assert torch.equal(features, expected[:, :, :4, :6])


def test_the_maps_of_a_cell_follow_its_pixels():
    # Windows must be put together in the order in which they were taken apart, also for rectangles.
    for kind in KINDS:
        detector = spread(detector_of(kind, {}))
        body = detector.backbone.body
        for layer in body.backbone.encoder.layer:  # without attention, a cell sees its own patch only
            nn.init.zeros_(layer.attention.o_proj.weight if kind == "lw_detr" else layer.layer_scale1.lambda1)
        pictures = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
        changed = pictures.clone()
        changed[:, :, 32:48, 80:96] += 1.0  # the patch in row 2 and column 5
        with torch.no_grad():
            difference = (body(pictures)[0] - body(changed)[0]).abs().amax(dim=1)[0]  # (4, 6)
        assert difference[2, 5] > 1e-3, kind
        difference[2, 5] = 0
        assert difference.max() < 1e-5, kind


@pytest.mark.parametrize(("size", "windows"), [(128, 16), (96, 4)])
def test_windows_follow_the_size(size, windows):
    detector = tiny_detector("lw_detr", size=size, max_size=size)
    assert detector.spec.options["config"]["backbone_config"]["num_windows"] == windows
    assert detector.info.size_divisor == 16 * math.isqrt(windows)
    assert detector.prepare(images((50, 70))).images.shape[-2:] == (size, size)


def test_sizes_that_windows_do_not_divide_are_refused():
    with pytest.raises(InputError, match="--size of rf_detr must be a multiple of 32, not 100"):
        tiny_detector("rf_detr", size=100)
    config = tiny_detector("lw_detr", size=128).spec.options["config"]  # with 4 x 4 windows
    with pytest.raises(InputError, match="--size of lw_detr must be a multiple of 64, not 96"):
        tiny_detector("lw_detr", size=96, options={"config": config})


@pytest.mark.parametrize("backbone", ["resnet50", "vit_192", "vit_20x4", "vit_32x1", "vit_99999x4", "timm:vit_32x3"])
def test_other_backbones_are_refused_and_the_published_are_named(backbone):
    spec = DetectorSpec("lw_detr", backbone, CLASSES, 64, 64, neck_channels=16)
    with pytest.raises(InputError, match=r"is not a transformer of lw_detr: give vit_CHANNELSxLAYERS.*vit_192x10"):
        build(spec, "none")


def test_weights_of_the_backbone_alone_are_refused():
    spec = DetectorSpec("rf_detr", "vit_32x3", CLASSES, 64, 64, neck_channels=16)
    for weights in ("auto", "missing.safetensors"):
        with pytest.raises(InputError, match="no weights of the backbone of rf_detr alone: give --weights none"):
            build(spec, weights)


def test_names_of_published_bodies_give_the_published_configurations():
    counts = {"queries": 300, "decoder_layers": 3, "groups": 13}
    small = lw_configuration("lw_detr", "vit_192x10", 640, 256, strides=[16], **counts)
    body = small["backbone_config"]
    assert (body["num_attention_heads"], body["num_windows"]) == (12, 16)
    assert body["window_block_indices"] == [0, 1, 3, 6, 7, 9]
    assert (small["decoder_self_attention_heads"], small["decoder_cross_attention_heads"]) == (8, 16)
    assert (small["decoder_ffn_dim"], small["decoder_n_points"]) == (2048, 2)
    tiny = lw_configuration("lw_detr", "vit_192x6", 640, 256, strides=[16], **counts)["backbone_config"]
    assert (tiny["window_block_indices"], tiny["out_indices"]) == ([0, 2, 4], [2, 4, 6])
    large = lw_configuration("lw_detr", "vit_384x10", 640, 384, strides=[8, 32], **counts)
    assert large["projector_scale_factors"] == [2.0, 0.5]
    assert (large["decoder_self_attention_heads"], large["decoder_cross_attention_heads"]) == (12, 24)
    assert (large["decoder_ffn_dim"], large["decoder_n_points"]) == (2048, 4)
    nano = lw_configuration("rf_detr", "vit_384x12", 384, 256, strides=[16], **counts)["backbone_config"]
    assert (nano["num_attention_heads"], nano["num_windows"], nano["out_indices"]) == (6, 2, [3, 6, 9, 12])


def test_options_follow_the_size_and_the_teacher():
    statistics = ObjectStatistics(96, torch.zeros(0, 4), torch.zeros(0, 2), torch.zeros(0))
    fitted = RFDETROptions().fitted(statistics, 64)
    assert (fitted.queries, fitted.decoder_layers, fitted.groups) == (36, 3, 13)
    two = LWDETROptions(levels="P3+P5")
    assert (two.neck_strides, two.fitted(statistics, 64).queries) == ((8, 32), 144 + 9)
    assert LWDETROptions().fitted(statistics, 64).levels == "P4"
    # A student takes from a teacher what decides about the shapes of weights.
    teacher = LWDETROptions(queries=50, decoder_layers=2, groups=4, levels="P3+P5")
    assert with_teacher_values(LWDETROptions(), teacher, same_size=False) == teacher


@every_kind
def test_a_checkpoint_names_the_options_that_its_student_takes(kind, tmp_path):
    options = {"levels": "P3+P5"} if kind == "lw_detr" else {}
    loaded = load(saved(tmp_path, detector_of(kind, options)))
    known = {name: value for name, value in loaded.spec.options.items() if name != "config"}
    assert known == {"queries": 12, "decoder_layers": 2, "groups": 2, "antialias": kind == "lw_detr", **options}


@every_kind
def test_a_student_inherits_neck_and_head(kind):
    student_that_inherits(kind)


@every_kind
def test_stages_of_the_transformer_can_be_frozen(kind):
    detector = tiny_detector(kind, frozen_stages=2)
    frozen = {name for name, weight in detector.named_parameters() if not weight.requires_grad}
    layers = ("backbone.body.backbone.embeddings.", "backbone.body.backbone.encoder.layer.0.")
    assert frozen == {name for name, _ in detector.named_parameters() if name.startswith(layers)}
    with pytest.raises(InputError, match="has 4 stages, give 0 to 4"):
        tiny_detector(kind, frozen_stages=5)
