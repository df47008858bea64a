import numpy as np
import pytest
from PIL import Image, ImageEnhance

from defeat.data import DataSource
from defeat.data.summary import near_duplicates, summarise
from tests.data.folders import voc_object, write_voc


def photograph(seed, size=(120, 90)):
    """An image with structure of all sizes, as photographs have it."""
    generator = np.random.default_rng(seed)
    layers = [
        np.asarray(Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8)).resize(size)).astype(
            float
        )
        for side in (3, 6, 12, 24)
    ]
    return Image.fromarray(np.mean(layers, axis=0).astype(np.uint8))


def write_images(folder, split, images):
    """A folder with a split as LabelImg writes it."""
    (folder / split).mkdir(parents=True)
    for name, image in images.items():
        image.save(folder / split / name)
        box = voc_object("cat", (1, 1, 20, 20))
        text = f"<annotation><filename>{name}</filename>{box}</annotation>"
        (folder / split / f"{name.split('.')[0]}.xml").write_text(text)


def splits_of(folder):
    source = DataSource(str(folder))
    return {name: source.open(name) for name in ("train", "val")}


def test_figures_of_a_split(tmp_path):
    objects = voc_object("cat", (1, 1, 10, 10)) + voc_object("cat", (1, 1, 16, 25)) + voc_object("dog", (1, 1, 40, 30))
    write_voc(tmp_path, {"train": {"a": objects, "b": ""}, "val": {"c": voc_object("owl", (5, 5, 50, 20))}})
    source = DataSource(str(tmp_path))
    summary = summarise(source.open("train"))
    assert (summary.split, summary.images, summary.background, summary.boxes) == ("train", 2, 1, 3)
    assert summary.per_class == {"cat": 2, "dog": 1, "owl": 0}
    # Sides 10, 20 (16 x 25) and sqrt(1200): the median is 20.
    assert summary.box_sides[1] == pytest.approx(20)
    assert summary.image_sizes == ((30, 40),) * 3
    assert summarise(source.open("val")).notes == ("1 of 1 boxes clipped to the image",)


def test_a_split_without_boxes_has_no_box_size(tmp_path):
    write_voc(tmp_path, {"train": {"a": voc_object("cat", (1, 1, 9, 9))}, "val": {"b": ""}})
    summary = summarise(DataSource(str(tmp_path)).open("val"))
    assert summary.box_sides is None
    assert summary.per_class == {"cat": 0}


@pytest.mark.parametrize(
    "changed",
    [
        lambda image: image,
        lambda image: image.resize((80, 60)),
        lambda image: ImageEnhance.Brightness(image).enhance(1.15),
        lambda image: ImageEnhance.Color(image).enhance(0.4),
    ],
    ids=["copy", "resized", "brighter", "paler"],
)
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_changed_copies_in_another_split_are_found(tmp_path, changed, suffix):
    images = {f"{seed}.png": photograph(seed) for seed in range(20)}
    write_images(tmp_path, "train", images)
    write_images(tmp_path, "val", {f"x.{suffix}": changed(images["7.png"]), "y.png": photograph(99)})
    (duplicate,) = near_duplicates(splits_of(tmp_path))
    assert duplicate.splits == ("train", "val")
    assert duplicate.names == ("train/7.png", f"val/x.{suffix}")
    assert duplicate.distance <= 10


def test_other_images_and_images_of_one_split_are_no_duplicates(tmp_path):
    same = photograph(5)
    write_images(tmp_path, "train", {f"{seed}.png": photograph(seed) for seed in range(40)} | {"same.png": same})
    write_images(tmp_path, "val", {f"{seed}.png": photograph(1000 + seed) for seed in range(40)})
    assert near_duplicates(splits_of(tmp_path)) == []
