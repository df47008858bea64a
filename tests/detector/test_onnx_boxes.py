"""Detectors in ONNX: images are prepared and outputs decoded as the description says."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from defeat.detector.boxes import PredictedBoxes
from defeat.detector.onnx_boxes import OnnxDescription, OnnxTeacher, read_onnx_description
from defeat.engine.guards import fingerprint
from defeat.errors import InputError
from tests.bad_input.cases import refusal, table

KINDS = {np.dtype("float32"): TensorProto.FLOAT, np.dtype("int64"): TensorProto.INT64}
CLASSES = ("cat", "dog")
ABOUT = OnnxDescription(CLASSES, min_score=0.1)
# In the network's input of 32 x 64 pixels (height, width).
BOXES = np.array([[[8, 4, 24, 12], [0, 0, 64, 32], [1, 1, 2, 2]]], dtype=np.float32)
SCORES = np.array([[0.5, 0.75, 0.05]], dtype=np.float32)
LABELS = np.array([[1, 0, 1]], dtype=np.int64)
IMAGE = torch.zeros(3, 64, 128, dtype=torch.uint8)  # twice the input


def save(path, outputs, shape=(1, 3, 32, 64), kind=TensorProto.FLOAT, more_inputs=()):
    """A graph that takes images and returns constants."""
    nodes = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))
        for name, value in outputs.items()
    ]
    infos = [helper.make_tensor_value_info(name, KINDS[value.dtype], value.shape) for name, value in outputs.items()]
    inputs = [helper.make_tensor_value_info("images", kind, shape)]
    inputs += [helper.make_tensor_value_info(name, TensorProto.INT64, (1, 2)) for name in more_inputs]
    return save_graph(path, helper.make_graph(nodes, "constant", inputs, infos))


def save_graph(path, graph):
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def predicted(path, about=ABOUT, image=IMAGE):
    (found,) = PredictedBoxes(OnnxTeacher(path, about)).predict([image])
    return [(box, round(score, 4), label) for box, score, label in zip(
        found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
    )]  # fmt: skip


# Boxes in pixels of the image, sorted by score; that with a score of 0.05 is left out.
EXPECTED = [([0, 0, 128, 64], 0.75, 0), ([16, 8, 48, 24], 0.5, 1)]


def centred(boxes):
    upper, lower = boxes[..., :2], boxes[..., 2:]
    return np.concatenate([(upper + lower) / 2, lower - upper], axis=-1)


RELATIVE = BOXES / np.array([64, 32, 64, 32], dtype=np.float32)


@pytest.mark.parametrize(
    ("boxes", "about"),
    [
        (BOXES, ABOUT),
        (BOXES[0], ABOUT),
        (centred(BOXES), replace(ABOUT, boxes="cxcywh")),
        (RELATIVE, replace(ABOUT, unit="relative")),
        (centred(RELATIVE), replace(ABOUT, boxes="cxcywh", unit="relative")),
    ],
    ids=["xyxy", "without a batch", "cxcywh", "relative xyxy", "relative cxcywh"],
)
def test_boxes_scores_and_labels_are_decoded(boxes, about, tmp_path):
    path = save(tmp_path / "model.onnx", {"scores": SCORES, "labels": LABELS, "boxes": boxes})
    assert predicted(path, about) == EXPECTED


def test_scores_of_all_classes_give_the_best_of_each_box(tmp_path):
    scores = np.array([[[0.25, 0.5], [0.75, 0.125], [0.0, 0.05]]], dtype=np.float32)
    path = save(tmp_path / "model.onnx", {"boxes": BOXES, "scores": scores})
    assert predicted(path) == EXPECTED
    assert predicted(path, replace(ABOUT, first_label=1)) == EXPECTED


def test_rows_of_one_output_are_decoded(tmp_path):
    rows = np.concatenate([BOXES, SCORES[..., None], LABELS[..., None].astype(np.float32)], axis=-1)
    assert predicted(save(tmp_path / "model.onnx", {"output0": rows})) == EXPECTED
    path = save(tmp_path / "two.onnx", {"output0": rows, "other": SCORES})
    assert predicted(path, replace(ABOUT, outputs={"rows": "output0"})) == EXPECTED
    with pytest.raises(InputError, match=r"two.onnx has the outputs output0, other: say which are which"):
        predicted(path)


def test_outputs_may_have_other_names_and_labels_another_start(tmp_path):
    outputs = {"a": BOXES, "b": SCORES, "c": LABELS + 1}
    about = replace(ABOUT, outputs={"boxes": "a", "scores": "b", "labels": "c"}, first_label=1)
    assert predicted(save(tmp_path / "model.onnx", outputs), about) == EXPECTED


def test_overlapping_boxes_of_a_class_are_dropped_on_request(tmp_path):
    boxes = np.array([[[0, 0, 10, 10], [1, 0, 10, 10], [0, 0, 10, 10]]], dtype=np.float32)
    scores, labels = np.array([[0.9, 0.8, 0.7]], dtype=np.float32), np.array([[0, 0, 1]])
    path = save(tmp_path / "model.onnx", {"boxes": boxes, "scores": scores, "labels": labels})
    assert [score for _, score, _ in predicted(path)] == [0.9, 0.8, 0.7]
    assert [score for _, score, _ in predicted(path, replace(ABOUT, nms=0.5))] == [0.9, 0.7]


@pytest.mark.parametrize(
    ("resize", "box"),
    [
        ("stretch", [0, 0, 64, 64]),
        # The image of 64 x 64 becomes 32 x 32: x from 16 to 48, or from 0.
        ("letterbox", [-32 + 0, 0, 96, 64]),
        ("pad", [0, 0, 128, 64]),
    ],
)
def test_boxes_return_to_the_image_as_it_was_resized(resize, box, tmp_path):
    path = save(tmp_path / "model.onnx", {"boxes": BOXES[:, 1:2], "scores": SCORES[:, 1:2], "labels": LABELS[:, 1:2]})
    teacher = OnnxTeacher(path, replace(ABOUT, resize=resize))
    (found,) = teacher.predict([torch.zeros(3, 64, 64, dtype=torch.uint8)])
    assert found.boxes.tolist() == [box]


def test_the_input_is_prepared_as_described(tmp_path):
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    image[0], image[1], image[2] = 255, 51, 0
    path = save(tmp_path / "model.onnx", {"boxes": BOXES, "scores": SCORES, "labels": LABELS})
    teacher = OnnxTeacher(path, replace(ABOUT, resize="letterbox", fill=102))
    pixels, _ = teacher._prepared(image)
    assert pixels.shape == (1, 3, 32, 64)
    assert pixels[0, :, 0, 32].tolist() == pytest.approx([1, 0.2, 0])
    assert pixels[0, :, 0, 0].tolist() == pytest.approx([0.4, 0.4, 0.4])
    mean, std = (100, 50, 5), (1, 2, 5)
    about = replace(ABOUT, resize="pad", colours="bgr", white=255, mean=mean, std=std)
    pixels, _ = OnnxTeacher(path, about)._prepared(image)
    assert pixels[0, :, 0, 0].tolist() == pytest.approx([-100, 0.5, 50])  # (0 - 100) / 1, (51 - 50) / 2, (255 - 5) / 5


def test_the_prepared_image_reaches_the_network(tmp_path):
    # The mean of the input is the score.
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
        helper.make_node("Reshape", ["mean", "shape"], ["scores"]),
        helper.make_node("Constant", [], ["boxes"], value=numpy_helper.from_array(BOXES[:, :1])),
        helper.make_node("Constant", [], ["labels"], value=numpy_helper.from_array(LABELS[:, :1])),
    ]
    shapes = {"scores": (TensorProto.FLOAT, (1, 1)), "boxes": (TensorProto.FLOAT, (1, 1, 4))}
    shapes["labels"] = (TensorProto.INT64, (1, 1))
    outputs = [helper.make_tensor_value_info(name, *shape) for name, shape in shapes.items()]
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, ("batch", 3, "height", "width"))]
    shape = numpy_helper.from_array(np.array([1, 1]), "shape")
    path = save_graph(tmp_path / "model.onnx", helper.make_graph(nodes, "mean", inputs, outputs, [shape]))
    image = torch.full((3, 10, 10), 51, dtype=torch.uint8)
    ((_, score, _),) = predicted(path, replace(ABOUT, size=(32, 64)), image)
    assert score == pytest.approx(0.2, abs=1e-4)
    with pytest.raises(InputError, match="has no fixed input size: state it in the description"):
        predicted(path)


def test_a_second_input_gets_the_size_of_the_first(tmp_path):
    # The size, width before height, is the lower right corner of the box.
    nodes = [
        helper.make_node("Cast", ["orig_target_sizes"], ["corner"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["zero", "corner"], ["box"], axis=1),
        helper.make_node("Reshape", ["box", "shape"], ["boxes"]),
        helper.make_node("Constant", [], ["scores"], value=numpy_helper.from_array(SCORES[:, :1])),
        helper.make_node("Constant", [], ["labels"], value=numpy_helper.from_array(LABELS[:, :1])),
    ]
    constants = [
        numpy_helper.from_array(np.zeros((1, 2), np.float32), "zero"),
        numpy_helper.from_array(np.array([1, 1, 4]), "shape"),
    ]
    inputs = [
        helper.make_tensor_value_info("images", TensorProto.FLOAT, (1, 3, 32, 64)),
        helper.make_tensor_value_info("orig_target_sizes", TensorProto.INT64, (1, 2)),
    ]
    outputs = [
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, (1, 1, 4)),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, (1, 1)),
        helper.make_tensor_value_info("labels", TensorProto.INT64, (1, 1)),
    ]
    path = save_graph(tmp_path / "model.onnx", helper.make_graph(nodes, "size", inputs, outputs, constants))
    assert predicted(path, replace(ABOUT, size_input="orig_target_sizes")) == [([0, 0, 128, 64], 0.5, 1)]
    with pytest.raises(InputError, match="must have one input for images, and has 2: images, orig_target_sizes"):
        predicted(path)
    with pytest.raises(InputError, match=r"Unknown input of .* 'sizes'"):
        predicted(path, replace(ABOUT, size_input="sizes"))


def test_the_fingerprint_is_that_of_file_and_description(tmp_path):
    path = save(tmp_path / "model.onnx", {"boxes": BOXES, "scores": SCORES, "labels": LABELS})

    def of(about=ABOUT):
        return fingerprint(PredictedBoxes(OnnxTeacher(path, about)))

    first = of()
    assert of() == first
    assert of(replace(ABOUT, colours="bgr")) != first
    save(path, {"boxes": BOXES + 1, "scores": SCORES, "labels": LABELS})
    assert of() != first


@table(
    ("other size", {}, {"size": (64, 64)}, "takes images of [32, 64] (height, width), not [64, 64]"),
    ("one channel", {"shape": (1, 1, 32, 64)}, {}, "is [1, 1, 32, 64], not (1, 3, height, width)"),
    ("three dimensions", {"shape": (3, 32, 64)}, {}, "not (1, 3, height, width)"),
    ("integers", {"kind": TensorProto.INT64}, {}, "is a tensor(int64), not a tensor of floats"),
    ("unknown output", {}, {"outputs": {"rows": "nothing"}}, "Unknown output of"),
    ("another layout", {}, {"outputs": {"rows": "boxes"}}, "output boxes is (1, 3, 4), not (1, n, 6), which rows are"),
    ("missing label", {}, {"outputs": {"boxes": "boxes", "scores": "scores"}}, "not (1, n, 2), which scores are"),
    ("labels", {}, {"classes": ("cat",)}, "returned label 1, but the teacher has 1 classes"),
)
def test_a_description_that_does_not_fit_is_refused(case, tmp_path):
    graph, changes, expected = case
    path = save(tmp_path / "model.onnx", {"boxes": BOXES, "scores": SCORES, "labels": LABELS}, **graph)
    assert expected in refusal(predicted, path, replace(ABOUT, **changes))


def test_a_file_that_is_not_onnx_is_refused(tmp_path):
    path = tmp_path / "model.onnx"
    assert "does not exist" in refusal(OnnxTeacher, path, ABOUT)
    path.write_text("no graph")
    assert "can't be loaded as ONNX" in refusal(OnnxTeacher, path, ABOUT)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    assert 'pip install "defeat-detection[onnx]"' in refusal(OnnxTeacher, tmp_path / "model.onnx", ABOUT)


def test_a_description_is_read_from_yaml(tmp_path):
    path = tmp_path / "model.yaml"
    path.write_text(
        "classes: [cat, dog]\nsize: [32, 64]\ncolours: bgr\nmean: [1, 2, 3]\noutputs: {rows: a}\nnms: 0.6\n"
    )
    read = read_onnx_description(path)
    assert (read.classes, read.size, read.colours, read.nms) == (["cat", "dog"], [32, 64], "bgr", 0.6)
    assert read.origin == str(path)


@table(
    ("a list", "- cat\n", "give lines such as `classes: [cat, dog]`"),
    ("not YAML", "classes: [", "give lines such as"),
    ("no classes", "size: [1, 2]\n", "has no classes"),
    ("classes a text", "classes: cat\n", "classes must be a list of names, not 'cat'"),
    ("empty classes", "classes: []\n", "classes must be a list of names"),
    ("unknown field", "classes: [cat]\ncolors: bgr\n", "Did you mean 'colours'?"),
    ("unknown choice", "classes: [cat]\nresize: crop\n", "Unknown choice of resize"),
    ("one side", "classes: [cat]\nsize: 640\n", "size must be a height and a width, such as [640, 640], not 640"),
    ("sides below 1", "classes: [cat]\nsize: [0, 640]\n", "size must be a height and a width"),
    ("white", "classes: [cat]\nwhite: 128\n", "white must be 1 or 255, not 128"),
    ("two means", "classes: [cat]\nmean: [1, 2]\n", "mean must be three numbers, not [1, 2]"),
    ("deviation of 0", "classes: [cat]\nstd: [1, 0, 1]\n", "std must be three numbers above 0"),
    ("half a layout", "classes: [cat]\noutputs: {boxes: a}\n", "outputs must be names of rows, or of boxes"),
    ("score", "classes: [cat]\nmin_score: 5\n", "min_score must be a number in 0..1, not 5"),
    ("NaN", "classes: [cat]\nnms: .nan\n", "nms must be a number in 0..1, not nan"),
    ("first label", "classes: [cat]\nfirst_label: a\n", "first_label must be an integer, not 'a'"),
    ("code", "classes: !!python/object/apply:os.getcwd []\n", "give lines such as"),
)
def test_an_invalid_description_is_refused(case, tmp_path):
    text, expected = case
    path = tmp_path / "model.yaml"
    path.write_text(text)
    assert expected in refusal(read_onnx_description, path)


def test_a_missing_description_is_refused(tmp_path):
    assert "can't be read" in refusal(read_onnx_description, tmp_path / "nowhere.yaml")
