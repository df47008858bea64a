"""Inputs found by fuzzing and property tests: tracebacks, hangs, excessive memory, broken contracts."""

import json
import math
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

import pytest
import torch

from defeat import load
from defeat.data import open_dataset
from defeat.data.dataset import Annotation, SplitBuilder
from defeat.data.results import read_results
from defeat.detector.exported import ExportDescription
from defeat.distillation.align import resize_map
from defeat.distillation.class_map import ClassMap
from defeat.distillation.differences import standardise
from defeat.distillation.losses import region_mean
from defeat.errors import InputError
from fuzz.contract import CORPUS, run
from fuzz.targets import TARGETS, TINY

DESCRIPTION = {"format": 1, "family": TINY.family, "backbone": TINY.backbone, "classes": ["cat"], "size": 32}
DESCRIPTION |= {"max_size": 32, "norm": "bn", "neck_channels": 1, "frozen_stages": 0, "options": {}}
DESCRIPTION |= {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}
IMAGE = {"id": 1, "file_name": "a.png"}
BOX = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}
COCO = {"images": [IMAGE], "categories": [{"id": 1, "name": "cat"}], "annotations": [BOX]}
DIGITS = "1" * 5000  # Python refuses to read so many
LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{b}: &{b} {{<<: [{','.join([f'*{a}'] * 9)}]}}\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)
YOLO = "train: images/train\nnames: [cat]\n"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A prepared folder of each target."""
    result = {name: tmp_path_factory.mktemp(name) for name in TARGETS}
    for name, folder in result.items():
        TARGETS[name].prepare(folder)
    return result


def coco(**changes):
    return json.dumps(COCO | changes)


REFUSED = {
    "coco": [
        coco().replace('"id": 1', f'"id": {DIGITS}', 1),
        coco(images=[IMAGE | {"file_name": "x" * 300}]),
        coco(images=[IMAGE, {"id": 2, "file_name": "a\nb.png"}]),
        coco(images=[IMAGE, {"id": 2, "file_name": "\ud800"}]),
        coco(images=[IMAGE | {"file_name": "a\0.png"}]),
        coco(images=[IMAGE | {"width": 10**400, "height": 30}]),
        coco(images=[IMAGE | {"width": 1e18, "height": 30}]),
        coco(annotations=[BOX | {"bbox": [0, 0, 10**400, 9]}]),
        coco(annotations=[BOX | {"bbox": json.loads("[" * 900 + "]" * 900)}]),
        "[" * 100_000,
    ],
    "voc": [
        '<?xml version="1.0" encoding="utf-3"?><annotation/>',
        "<annotation/>\n=====\n" + "x" * 300 + " 1\n",
        f"<annotation><filename>a.{'x' * 300}</filename></annotation>\n=====\na\n",
    ],
    "yolo": [
        YOLO + "a: 2001-99-99",
        YOLO + "a: !!timestamp x",
        YOLO + "a: !!int ''",
        YOLO + "a: !!bool x",
        YOLO + f"a: {DIGITS}",
        YOLO + "a: " + "[" * 1500,
        YOLO + "names: {.inf: cat}",
        YOLO + f"names: {{0x{'f' * 5000}: cat}}\n=====\n7 0.5 0.5 0.1 0.1",
        YOLO + f"nc: 0x{'f' * 5000}",
        f"train: {'x' * 300}\nnames: [cat]",
        f"train: nowhere\nnames: [cat]\npath: {'x' * 300}",
        "train: list.txt\nnames: [cat]\n=====\n\n=====\n" + "x" * 300,
        YOLO + LAUGHS + "names: *j",
        LAUGHS + "names: [cat]\ntrain: *j",
        YOLO + LAUGHS + "path: *j",
        YOLO + LAUGHS + "nc: *j",
        YOLO + MERGES,
    ],
    "model": [
        json.dumps(DESCRIPTION | change)
        for change in (
            {"backbone": 1},
            {"family": ["retinanet"]},
            {"classes": "cat"},
            {"classes": [1]},
            {"classes": ["cat", "cat"]},
            {"classes": ["c" * (1 + number) for number in range(2000)]},
            {"neck_channels": 10**9},
            {"neck_channels": 20_000},
            {"neck_channels": -1},
            {"neck_channels": True},
            {"size": 10**9},
            {"size": 0},
            {"std": [0.2, 0.2, 0]},
            {"std": [0.2, 0.2, math.inf]},
            {"mean": [0.5]},
            {"options": []},
            {"options": {"anchor_sizes": [8, 16]}},
            {"options": {"anchor_sizes": [10**400] * 5}},
            {"options": {"head_norm": 1}},
            {"family": "faster_rcnn", "options": {"box_representation_size": 10**6}},
            {"backbone": "resnetv2_152x4_bit"},  # of a billion weights
        )
    ]
    + [
        "[" * 100_000,
        f'{{"format": {DIGITS}}}',
        json.dumps(DESCRIPTION) + "\n=====\n\xff\xff\xff\xff\xff\xff\xff\x7f{}",
        json.dumps(DESCRIPTION) + '\n=====\n{"a": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 4]}}',
        json.dumps(DESCRIPTION) + '\n=====\n{"head.classification_head.cls_logits.bias": null}',
    ],
}
CASES = [(name, text) for name, texts in REFUSED.items() for text in texts]


@pytest.mark.parametrize(("name", "text"), CASES, ids=[f"{name}-{index}" for index, (name, _) in enumerate(CASES)])
def test_hostile_files_are_refused_in_a_sentence(name, text, folders):
    assert not run(TARGETS[name], folders[name], text.encode("latin-1"))


def test_the_valid_variants_are_read(folders):
    # A path that does not exist here is that of another machine: the folder of the YAML file is read.
    assert run(TARGETS["yolo"], folders["yolo"], (YOLO + f"path: {'x' * 300}").encode())
    assert run(TARGETS["coco"], folders["coco"], coco().encode())
    corners = "<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"
    box = f"<object><name>cat</name><bndbox>{corners}</bndbox></object>"
    assert run(TARGETS["voc"], folders["voc"], f"<annotation>{box}</annotation>".encode())
    assert run(TARGETS["yolo"], folders["yolo"], (YOLO + "\n=====\n0 0.5 0.5 0.1 0.1").encode())
    assert run(TARGETS["model"], folders["model"], json.dumps(DESCRIPTION).encode())


def test_a_description_of_a_huge_detector_allocates_no_memory(folders):
    # Its thirteen convolutions of 2000 x 2000 x 3 x 3 weights would take 1.9 GB.
    before = getrusage(RUSAGE_SELF).ru_maxrss
    assert not run(TARGETS["model"], folders["model"], json.dumps(DESCRIPTION | {"neck_channels": 2000}).encode())
    assert getrusage(RUSAGE_SELF).ru_maxrss - before < 500_000  # in kilobytes


def test_a_refusal_names_the_file_and_the_field(folders):
    folder = folders["model"]
    (folder / "model.json").write_text(json.dumps(DESCRIPTION | {"size": "large"}))
    with pytest.raises(InputError) as caught:
        load(folder)
    assert (
        str(caught.value)
        == f"{folder / 'model.json'}: the field 'size' is 'large', not a number of pixels from 1 to 16384."
    )


def test_a_message_escapes_what_cannot_be_printed(folders):
    text = coco(images=[IMAGE, {"id": 2, "file_name": "\x1b[2Ja\u2028.png"}])
    (folders["coco"] / "annotations/instances_train.json").write_text(text)
    with pytest.raises(InputError, match=r"\\x1b\[2Ja\\u2028\.png") as caught:
        open_dataset(folders["coco"], "train")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("index", [0, 1])
def test_a_box_too_thin_for_float32_in_a_wide_image_is_dropped(index):
    # From 2^20 on, float32 knows every eighth of a pixel only: both corners would become 2^20.
    size = [1 << 21, 1 << 21]
    corners = [0.0, 0.0, 9.0, 9.0]
    corners[index], corners[index + 2] = 1048576.0, 1048576.0 + 0.05
    builder = SplitBuilder(("cat",))
    builder.add("a", "a", tuple(size), [Annotation((0.0, 0.0, 9.0, 9.0), "cat"), Annotation(tuple(corners), "cat")])
    dataset = builder.finish("a", "train", "a")
    assert len(dataset.target(0).boxes) == 1
    assert dataset.report() == "1 of 2 boxes dropped (no extent after clipping)"


def test_merged_classes_that_are_nearly_impossible_have_finite_logits():
    # At -104, exp and so softplus are 0 in float32; two such events have twice the probability of one.
    result = ClassMap(("car",), ("car", "car")).teacher_logits(torch.full((1, 2), -104.0))
    assert result.item() == pytest.approx(-104 + math.log(2), abs=1e-4)


def test_a_huge_map_is_standardised_like_a_small_one():
    level, valid = torch.tensor([[[[1.0, 2.0, 3.0]]]]), torch.ones(1, 1, 3, dtype=torch.bool)
    assert torch.allclose(standardise(1e38 * level, valid), standardise(1e3 * level, valid), atol=1e-4)


def test_infinity_outside_a_region_does_not_count():
    per_cell, region = torch.tensor([[[3.0, math.inf]]]), torch.tensor([[[True, False]]])
    assert region_mean(per_cell, region, channels=1) == 1.5


def test_a_map_of_one_column_keeps_its_rows():
    level = torch.tensor([0.0, 0.0, 1.0, 1.0]).view(1, 1, 4, 1).expand(1, 1, 4, 2)
    result = resize_map(level, 2.0, (2, 1)).flatten().tolist()
    # Rows 0 to 2 (weights 3, 3, 1 of 7) and rows 1 to 3.
    assert result == pytest.approx([1 / 7, 6 / 7])


@pytest.mark.parametrize("path", ["/", "//", "/.", "../" * 60])
def test_a_yolo_data_set_is_never_the_whole_machine(path, tmp_path):
    (tmp_path / "data.yaml").write_text(f"path: {path}\ntrain: .\nnames: [cat]\n")
    with pytest.raises(InputError, match="all files of this machine: set it to the folder of the data set"):
        open_dataset(tmp_path, "train")


def test_a_folder_that_disappears_while_it_is_searched_is_named(tmp_path, monkeypatch):
    def rglob(folder, pattern):
        raise FileNotFoundError(2, "No such file or directory", str(folder / "gone"))
        yield

    (tmp_path / "images").mkdir()
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat]\n")
    monkeypatch.setattr(Path, "rglob", rglob)
    with pytest.raises(InputError, match=r"images can't be searched for images: .*gone"):
        open_dataset(tmp_path, "train")


@pytest.mark.parametrize("field", ["fill", "mean", "std", "score_thresh", "nms_thresh"])
@pytest.mark.parametrize("number", [10**400, 1e300, math.nan, math.inf])
def test_a_huge_number_in_the_description_of_an_exported_file_is_refused(field, number):
    content = json.loads((CORPUS / "exported/seed_full").read_text())
    content[field] = [1.0, 2.0, number] if isinstance(content[field], list) else number
    with pytest.raises(InputError, match=f"the field '{field}' is"):
        ExportDescription.read(json.dumps(content), Path("file.onnx"))


@pytest.mark.parametrize("kind", ["images", "categories"])
def test_a_results_file_whose_images_are_a_number_is_refused(kind, tmp_path):
    content = {"images": [], "categories": [], "annotations": [{"bbox": [1, 2, 3, 4]}]} | {kind: 8}
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"'{kind}' is 8, not a list"):
        read_results(tmp_path / "results.json")


@pytest.mark.parametrize("box", [[0, 0, 1e300, 5], [-1e12, 0, 5, 5]])
def test_a_box_of_a_results_file_too_large_for_float32_is_refused(box, tmp_path):
    record = {"file_name": "a.png", "category_name": "cat", "bbox": box, "score": 0.5}
    (tmp_path / "results.json").write_text(json.dumps([record]))
    with pytest.raises(
        InputError, match=r"detection number 0: its bbox is .*, farther from the image than 1e\+09 pixels"
    ):
        read_results(tmp_path / "results.json")
