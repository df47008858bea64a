import numpy as np
import pytest
import torch

from defeat.data import DemoDataset, open_dataset, split_names
from defeat.data.demo import LARGEST_SEED, MAX_TRAINING
from defeat.data.drawn.outlines import DISTANCES, Outline
from defeat.data.drawn.painting import paint
from defeat.data.drawn.scenes import CLASSES, Shape
from defeat.errors import InputError


@pytest.fixture(scope="module")
def scenes() -> DemoDataset:
    return DemoDataset("val")


def test_splits_and_classes():
    assert split_names("demo") == split_names("demo:7:30") == ["test", "train", "val"]
    dataset = open_dataset("demo", "val", ["star", "disc"])
    assert (len(dataset), dataset.classes, dataset.name) == (80, ("star", "disc"), "demo")
    with pytest.raises(InputError, match="no split 'valid'"):
        open_dataset("demo", "valid")
    with pytest.raises(InputError, match="Did you mean 'star'"):
        open_dataset("demo", "val", ["stat"])


def test_a_path_names_the_seed_and_the_number_of_training_scenes():
    first = open_dataset("demo", "val")
    assert open_dataset("demo:0", "val").fingerprint() == first.fingerprint()
    other = open_dataset("demo:7", "val")
    assert (len(other), other.name) == (80, "demo-7")
    assert other.fingerprint() != first.fingerprint()
    assert open_dataset("demo:7:30", "val").fingerprint() == other.fingerprint()
    few, more = open_dataset("demo:7:3", "train"), open_dataset("demo:7:5", "train")
    assert (len(few), len(more)) == (3, 5)
    assert few.fingerprint() != more.fingerprint()
    assert all(torch.equal(few[index][0], more[index][0]) for index in range(3))


@pytest.mark.parametrize(
    "path",
    [
        "demo:",
        "demo:seven",
        "demo:-1",
        "demo:7:",
        "demo:7:0",
        "demo:7:20:1",
        "demo:\u0667",  # a digit of another script
        f"demo:{LARGEST_SEED + 1}",
        f"demo:0:{MAX_TRAINING + 1}",
        "demo:7,VOC2007",
    ],
)
def test_an_invalid_name_is_refused_with_the_valid_ones(path):
    with pytest.raises(InputError, match=r"demo:SEED:TRAIN with a seed from 0 to 4294967295"):
        open_dataset(path, "train")


@pytest.mark.parametrize("arguments", [{"seed": -1}, {"seed": LARGEST_SEED + 1}, {"training": 0}, {"side": 31}])
def test_invalid_arguments_are_refused(arguments):
    with pytest.raises(InputError, match=str(next(iter(arguments.values())))):
        DemoDataset("val", **arguments)


def test_scene_depends_only_on_seed_split_and_index(scenes):
    again = DemoDataset("val")
    assert torch.equal(scenes[7][0], again[7][0])
    assert torch.equal(scenes[3][0], again[3][0])
    assert scenes.fingerprint() == again.fingerprint() != DemoDataset("val", seed=1).fingerprint()
    assert not torch.equal(scenes[0][0], scenes[1][0])
    assert not torch.equal(scenes[0][0], DemoDataset("test")[0][0])


def test_no_training_scene_of_another_seed_is_a_held_out_scene():
    held_out = [DemoDataset(split) for split in ("val", "test")]
    scenes = {dataset[index][0].numpy().tobytes() for dataset in held_out for index in range(10)}
    states = {_state(dataset, index) for dataset in held_out for index in range(len(dataset))}
    assert (len(scenes), len(states)) == (20, 200)
    for seed in (1, 7, LARGEST_SEED):
        training = DemoDataset("train", seed=seed, training=10)
        assert not states & {_state(training, index) for index in range(200)}
        assert not scenes & {training[index][0].numpy().tobytes() for index in range(10)}


def _state(dataset: DemoDataset, index: int) -> str:
    """Scenes are equal only if the initial states of their generators are equal."""
    return str(dataset._generator(index, stage=0).bit_generator.state)


def test_identities_of_different_scenes_differ():
    datasets = [DemoDataset("val"), DemoDataset("test"), DemoDataset("val", seed=1), DemoDataset("val", side=64)]
    identities = {dataset.identity(index) for dataset in datasets for index in range(20)}
    assert len(identities) == 80
    assert DemoDataset("train", training=5).identity(4) == DemoDataset("train", training=6).identity(4)


def test_targets_are_valid(scenes):
    assert scenes.report() is None
    seen = set()
    for index in range(len(scenes)):
        target = scenes.target(index)
        assert target.size == scenes.sizes[index] == (128, 128)
        assert target.image_id == index
        seen |= set(target.labels.tolist())
        if len(target.boxes):
            assert target.boxes.min() >= 0
            assert target.boxes.max() <= 128
            assert (target.boxes[:, 2:] - target.boxes[:, :2]).min() >= 4
    assert seen == set(range(len(CLASSES)))
    extents = scenes.table.boxes[:, 2:] - scenes.table.boxes[:, :2]
    assert extents.max() > 50
    assert extents.min() < 18


def test_boxes_are_tight_around_sufficiently_visible_shapes(scenes):
    for index in range(20):
        shapes: list[Shape] = scenes._shapes(index)
        for number, shape in enumerate(shapes):
            solid = torch.from_numpy(shape.solid)
            rows, columns = solid.any(dim=1).nonzero(), solid.any(dim=0).nonzero()
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert scenes.target(index).boxes[number].tolist() == [float(value) for value in box]
            visible = solid.clone()
            for above in shapes[number + 1 :]:
                visible &= ~torch.from_numpy(above.solid)
            # 30 % of the whole shape, so at least that of its part within the scene.
            assert visible.sum() >= 0.3 * solid.sum()


def test_colours_are_spread_and_not_clipped(scenes):
    pixels = torch.stack([scenes[index][0] for index in range(40)]).float()  # (B, 3, H, W)
    means = pixels.mean(dim=(2, 3))
    assert 60 < means.mean() < 190
    assert means.std(dim=0).min() > 15  # scenes differ
    assert pixels.std(dim=(2, 3)).min() > 2  # none is empty of all structure
    assert ((pixels == 0) | (pixels == 255)).float().mean() < 0.1
    assert (pixels.amax(dim=1) - pixels.amin(dim=1)).mean() > 20  # they have colour


def test_shapes_are_painted_where_their_boxes_are_and_mostly_in_the_usual_colour():
    # Red is the usual colour of crosses. Over many paintings of the same cross nothing else is as red as it is.
    outline = Outline("cross", 70, 50, 72, 0.3, 0.9)
    solid = outline.distance(np.arange(128)[None] + 0.5, np.arange(128)[:, None] + 0.5) <= 0
    pictures = np.stack([paint([outline], np.random.default_rng(seed), 128) for seed in range(50)]).astype(float)
    redness = pictures[..., 0] - pictures[..., 1:].max(axis=-1)  # (B, H, W)
    mean = redness.mean(axis=0)
    red = mean > (mean[solid].mean() + mean[~solid].mean()) / 2
    assert (red & solid).sum() / (red | solid).sum() > 0.9
    # Three of four, expected 37.5 of 50 with a deviation of 3; a few of the others are red by chance.
    usual = (np.median(redness[:, solid], axis=1) > 50).sum()
    assert 28 <= usual <= 46


@pytest.mark.parametrize("name", sorted(DISTANCES))
def test_distances_are_negative_inside_and_grow_by_one_per_pixel(name):
    outline = Outline(name, 40, 40, 60, 0.4, roundness=0.08)
    centres = np.arange(80) + 0.5
    distance = outline.distance(centres[None], centres[:, None])
    assert distance.min() < 0 < distance.max()
    # Where one part of the outline is nearest, its gradient has length 1; nowhere does it change by more.
    assert np.median(np.hypot(*np.gradient(distance))) == pytest.approx(1, abs=0.01)
    for axis in (0, 1):
        assert np.abs(np.diff(distance, axis=axis)).max() < 1 + 1e-9
    # All of it lies in the circle of its size.
    radius = np.hypot(centres[None] - 40, centres[:, None] - 40)
    assert (distance[radius > 30.5] > 0).all()


def test_outlines_have_the_areas_of_their_figures():
    # Of half size 1: pi r^2; a square with the diagonal 2; a triangle in the unit circle, 3 sqrt(3) / 4; a ring between
    # 0.56 and 1; a star of ten triangles of 0.42 sin(36 degrees) / 2; a cross of two bars of 1.9 by 0.6.
    areas = {"disc": np.pi, "square": 2.0, "triangle": 1.2990, "ring": np.pi * (1 - 0.56**2), "star": 1.2343}
    areas["cross"] = 2 * 1.9 * 0.6 - 0.6**2
    centres = np.arange(210) + 0.5
    for name, area in areas.items():
        covered = Outline(name, 105, 105, 200, 0.7).distance(centres[None], centres[:, None]) <= 0
        assert covered.sum() / 100**2 == pytest.approx(area, rel=0.01)


def test_pixels_are_not_shared_with_the_data_set(scenes):
    first = scenes[0][0]
    first.zero_()
    assert scenes[0][0].any()


def test_side_scales_the_scene():
    image, target = DemoDataset("val", side=64)[2]
    assert image.shape == (3, 64, 64)
    assert image.dtype == torch.uint8
    assert target.size == (64, 64)
    assert paint([], np.random.default_rng(0), 33).shape == (33, 33, 3)
