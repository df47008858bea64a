"""Large COCO files are read into arrays; the result must be that of the careful reader, also of unusual files."""

import json
import math
from random import Random

import numpy as np
import pytest
import torch

from defeat.data import open_dataset
from defeat.data.columns import AnnotationColumns, clip
from defeat.data.dataset import Annotation, SplitBuilder
from defeat.data.formats import coco
from defeat.data.formats.coco import columns
from defeat.data.formats.coco.columns import read_columns
from defeat.errors import InputError
from tests.data.folders import coco_content, write_image

FILE = "annotations/instances_train2017.json"
ODD = [None, True, False, -1, 0, 9, 9.0, 7.5, 1e308, -1e308, 10**18, 2**63, -(2**63), 10**25, "9", "x", "", "a.png", []]
ODD += [
    {},
    [1],
    [1, 2, 3, 4],
    [1e308, 0, 1e308, 5],
    [-0.0, 1, 5, 5],
    ["1", 2, 3, 4],
    "../a.png",
    "./a.png",
    "sub//b.png",
]
ODD += ["a\0b", "\ud800", "sub\\b.png", "c:a.png", "}]", "},{", {"images": [{"id": 1}]}, [{"a": 1}, {"a": 2}]]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "annotations").mkdir()
    write_image(tmp_path / "train2017/a.png")
    write_image(tmp_path / "train2017/sub/b.png")
    return tmp_path


def content_with_extras():
    """Every case that the arrays can express: background, an orphan, a duplicate, clipped, empty and crowd boxes."""
    content = coco_content()
    rows = [
        (9, 2, [1, 1, 5, 5]),
        (9, 2, [1, 1.0, 5, 5]),
        (5, 2, [1, 1, 5, 5]),
        (4, 7, [-0.0, -3, 99, 5]),
        (9, 7, [2, 2, 0, 1]),
    ]
    for number, (image, category, box) in enumerate(rows):
        content["annotations"].append({"id": 10 + number, "image_id": image, "category_id": category, "bbox": box})
    return {"info": {"year": 2017, "note": '"images": ['}, "licenses": [{"id": 1, "name": "}]"}]} | content


def result(folder, **options):
    """Everything that a reader says about a data set."""
    try:
        dataset = open_dataset(folder, "train", **options)
    except InputError as error:
        return str(error)
    return dataset.fingerprint(), list(dataset.samples), dataset.classes, dataset.problems, dataset.split


def is_read_into_arrays(folder):
    return read_columns(folder / FILE) is not None


def assert_readers_agree(folder, text, monkeypatch, **options):
    (folder / FILE).write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    by_columns = result(folder, **options)
    with monkeypatch.context() as patch:
        patch.setattr(coco, "read_usual", lambda file, folders: None)
        patch.setattr(coco, "read_columns", lambda file: None)
        assert result(folder, **options) == by_columns


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("options", [{}, {"classes": ["dog"]}, {"on_bad_data": "skip"}])
@pytest.mark.parametrize("layout", [{}, {"indent": 2}, {"separators": (",", ":")}])
def test_arrays_give_what_the_careful_reader_gives(folder, monkeypatch, block, options, layout):
    monkeypatch.setattr(columns, "_BLOCK", block)
    text = json.dumps(content_with_extras(), **layout)
    assert_readers_agree(folder, text, monkeypatch, **options)
    assert is_read_into_arrays(folder)


def test_dropped_clipped_and_duplicated_boxes_are_counted(folder):
    (folder / FILE).write_text(json.dumps(content_with_extras()))
    assert open_dataset(folder, "train", classes=["dog"]).problems == [
        "1 annotations dropped (their image is not in the file)",
        "1 of 6 boxes dropped (no extent after clipping)",
        "1 clipped to the image",
        "3 dropped (other classes)",
    ]
    assert "1 duplicated (same class and corners, kept)" in open_dataset(folder, "train").problems


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"images": [', '"images": [], "images": ['),  # the last key counts
        ('"images": [', '"im\\u0061ges": [], "images": ['),
        ('"annotations": [', '"annotations": null, "x": {"annotations": ['),
        ('"categories"', '"annotations": [], "categories"'),
        ('{"images"', '{"x": {"images": [{"id": 3}]}, "images"'),
        ('"file_name": "a.png"', '"file_name": "b.png", "file_name": "a.png"'),
        ('"bbox": [2, 3, 10, 20]', '"bbox": [2, 3, NaN, 20]'),
        ('"bbox": [2, 3, 10, 20]', '"bbox": [2, 3, 1e999, 20]'),
        ('"bbox": [2, 3, 10, 20]', '"bbox": [2, 3, 1' + "0" * 400 + ", 20]"),
        ('"bbox": [2, 3, 10, 20]', '"bbox": [2, 3, 1' + "0" * 5000 + ", 20]"),
        ('"bbox": [2, 3, 10, 20]', '"bbox": [-0, 3, 10, 20]'),
        ('"bbox": [2, 3, 10, 20]', '"bbox": [2, 3, 0.1000000000000000055511151231257827021181583404541015625e2, 20]'),
        ('"id": 1,', '"id": 1, "note": Infinity,'),
        ('"id": 1,', '"id": 1, "note": "\\ud800",'),
        ('"id": 1,', '"id": 1, "note": "\x01",'),
        ('"id": 1,', '"id": 1, "note": ' + "[" * 100_000 + "]" * 100_000 + ","),
        ('"id": 1,', '"id": 1, "note": [{"a": "}]"}, {"a": "},{"}],'),
        ('"id": 1,', '"id": 1, "note": 01,'),
        ('}, {"id": 2', '}\x0b, {"id": 2'),
        ('}, {"id": 2', '},, {"id": 2'),
        ('}, {"id": 2', '}, {"id": 2,'),
        ('"annotations": [', '"annotations": [ \r\n\t '),
        ('"annotations": [', '"annotations": [1, '),
        ('"annotations": [', '"annotations": ["}", '),
        ('"iscrowd": 1', '"iscrowd": true'),
        ('"iscrowd": 1', '"iscrowd": null'),
        ('"iscrowd": 1', '"iscrowd": 2'),
        ('"iscrowd": 1', '"iscrowd": "1"'),
        ('"name": "dog"', '"name": "cat"'),
        ('"id": 7,', '"id": 2,'),
        ('"id": 7,', '"id": "7",'),
        ('"image_id": 9', '"image_id": 1'),
        ('"width": 40, ', ""),
        ('"id": 4', '"id": 9'),
        ("sub/b.png", "a.png"),
        ("sub/b.png", "./a.png"),
    ],
)
@pytest.mark.parametrize("block", [16, 1 << 20])
def test_unusual_text_is_read_as_by_the_careful_reader(folder, monkeypatch, old, new, block):
    monkeypatch.setattr(columns, "_BLOCK", block)
    text = json.dumps(coco_content())
    assert old in text
    assert_readers_agree(folder, text.replace(old, new), monkeypatch)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: b"\xef\xbb\xbf\xef\xbb\xbf" + text,
        lambda text: text.decode().encode("utf-16"),
        lambda text: text.replace(b"dog", b"d\xe9g"),
        lambda text: text.replace(b'"id": 1,', b'"id": 1, "note": "\xff",'),  # in a value that is not used
        lambda text: text.replace(b"dog", "d\u00f6g".encode()),
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: text + b" \n",
        lambda text: text + b"x",
        lambda text: text + text,
        lambda text: text[:-1],
        lambda text: b"[" + text + b"]",
        lambda text: b"",
    ],
)
def test_unusual_encodings_and_ends_are_read_as_by_the_careful_reader(folder, monkeypatch, change):
    assert_readers_agree(folder, change(json.dumps(coco_content(), indent=1).encode()), monkeypatch)


@pytest.mark.parametrize("length", range(0, 560, 9))
def test_truncated_files_are_read_as_by_the_careful_reader(folder, monkeypatch, length):
    monkeypatch.setattr(columns, "_BLOCK", 32)
    assert_readers_agree(folder, json.dumps(coco_content())[:length], monkeypatch)


def positions(tree):
    """Container and key of every value in a tree."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield tree, key
        yield from positions(tree[key])


@pytest.mark.parametrize("seed", range(150))
def test_changed_values_are_read_as_by_the_careful_reader(folder, monkeypatch, seed):
    random = Random(seed)  # noqa: S311
    monkeypatch.setattr(columns, "_BLOCK", random.choice((16, 1 << 20)))
    content = content_with_extras()
    for _ in range(random.choice((1, 1, 2))):
        container, key = random.choice(list(positions(content)))
        action = random.randrange(4)
        if action == 0 and isinstance(container, dict):
            del container[key]
        elif action == 1 and isinstance(container, list):
            container.insert(key, container[key])
        else:
            container[key] = random.choice(ODD)
    assert_readers_agree(folder, json.dumps(content), monkeypatch)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["annotations"][0].update(id="text"),
        lambda c: c["annotations"][0].pop("id"),
        lambda c: c["annotations"][0].update(segmentation={"counts": "x", "size": [1, 2]}, iscrowd=False),
        lambda c: c["annotations"][0].update(bbox=[10**25, 0.5, -3, 4]),
        lambda c: c.update(annotations=[]),
        lambda c: c.update(info=None),
    ],
)
def test_harmless_differences_need_no_careful_reader(folder, change):
    content = coco_content()
    change(content)
    (folder / FILE).write_text(json.dumps(content))
    assert is_read_into_arrays(folder)


def test_missing_file_is_named_by_the_careful_reader(folder, monkeypatch):
    (folder / "train2017/sub/b.png").unlink()
    text = json.dumps(coco_content())
    assert_readers_agree(folder, text, monkeypatch)
    assert_readers_agree(folder, text, monkeypatch, on_bad_data="skip")


def test_image_that_cannot_be_decoded_is_skipped(folder, monkeypatch):
    (folder / "train2017/a.png").write_bytes(b"no image")
    text = json.dumps(content_with_extras())
    assert_readers_agree(folder, text, monkeypatch, on_bad_data="skip")
    assert len(open_dataset(folder, "train", on_bad_data="skip")) == 1


def test_supercategory_of_all_others_is_not_a_class_unless_used(folder, monkeypatch):
    content = coco_content()
    content["categories"] = [{"id": 0, "name": "all", "supercategory": "none"}] + [
        category | {"supercategory": "all"} for category in content["categories"]
    ]
    assert_readers_agree(folder, json.dumps(content), monkeypatch)
    assert open_dataset(folder, "train").classes == ("cat", "dog")
    content["annotations"][0]["category_id"] = 0
    assert_readers_agree(folder, json.dumps(content), monkeypatch)
    assert open_dataset(folder, "train").classes == ("all", "cat", "dog")


@pytest.mark.parametrize("seed", range(20))
def test_boxes_are_clipped_alike_one_by_one_and_all_at_once(seed):
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, 60, (6, 2))
    values = [-0.0, 0.0, -1e-3, 1e-7, 0.01, 0.4, 0.5, 0.51, 29.5, 30.0, 1e9, 1e300, -math.inf, math.inf]
    corners = np.where(
        generator.random((80, 4)) < 0.3, generator.choice(values, (80, 4)), generator.uniform(-5, 70, (80, 4))
    )
    corners[40:] = corners[generator.integers(0, 40, 40)]  # duplicates
    images, labels = generator.integers(0, 6, 80), generator.integers(-1, 2, 80)
    crowd = generator.random(80) < 0.5
    builder = SplitBuilder(["cat", "dog"])
    for index, (height, width) in enumerate(sizes.tolist()):
        rows = np.flatnonzero(images == index)
        names = ["cat", "dog", "other"]
        boxes = [Annotation(tuple(corners[row].tolist()), names[labels[row]], crowd=bool(crowd[row])) for row in rows]
        builder.add("-", "-", (height, width), boxes)
    expected = builder.finish("-", "-", "-")

    at_once = clip(AnnotationColumns(images, corners, labels, crowd), sizes)
    assert at_once.boxes.tobytes() == expected.table.boxes.numpy().tobytes()
    assert at_once.annotations.labels.tolist() == expected.table.labels.tolist()
    assert at_once.annotations.crowd.tolist() == expected.table.crowd.tolist()
    assert at_once.ends(6)[1:].tolist() == [sample.last for sample in expected.samples]
    counts = (builder._empty, builder._clipped, builder._other_class, builder._duplicates)
    assert (at_once.empty, at_once.clipped, at_once.other_class, at_once.duplicates()) == counts


def test_a_split_holds_arrays_and_no_object_per_image(folder):
    (folder / FILE).write_text(json.dumps(content_with_extras()))
    dataset = open_dataset(folder, "train")
    table, samples = dataset.table, dataset.samples
    tensors = [*vars(table).values(), samples.image_ids, samples.sizes, samples.prefer_upright, samples.rows]
    tensors += [samples.paths.data, samples.paths.ends, samples.names.data, samples.names.ends]
    assert all(isinstance(value, torch.Tensor) and value.is_contiguous() for value in tensors)
    assert not any(isinstance(value, list | dict) for value in [*vars(samples).values(), *vars(samples.paths).values()])
    assert {key for key, value in vars(dataset).items() if isinstance(value, list | dict)} == {"problems"}
