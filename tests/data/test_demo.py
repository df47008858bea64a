import pytest
import torch

from defeat.data import DemoDataset, open_dataset, split_names
from defeat.data.scenes import CLASSES, Shape
from defeat.errors import InputError


@pytest.fixture(scope="module")
def scenes() -> DemoDataset:
    return DemoDataset("val")


def test_splits_and_classes():
    assert split_names("demo") == ["test", "train", "val"]
    dataset = open_dataset("demo", "val", ["star", "disc"])
    assert (len(dataset), dataset.classes, dataset.name) == (80, ("star", "disc"), "demo")
    with pytest.raises(InputError, match="no split 'valid'"):
        open_dataset("demo", "valid")
    with pytest.raises(InputError, match="Did you mean 'star'"):
        open_dataset("demo", "val", ["stat"])


def test_scene_depends_on_seed_split_and_index_alone(scenes):
    again = DemoDataset("val")
    assert torch.equal(scenes[7][0], again[7][0])
    assert torch.equal(scenes[3][0], again[3][0])
    assert scenes.fingerprint() == again.fingerprint() != DemoDataset("val", seed=1).fingerprint()
    assert not torch.equal(scenes[0][0], scenes[1][0])
    assert not torch.equal(scenes[0][0], DemoDataset("test")[0][0])


def test_targets_keep_their_contract(scenes):
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


def test_boxes_are_tight_around_shapes_of_which_enough_is_seen(scenes):
    for index in range(20):
        shapes: list[Shape] = scenes._shapes(index)
        for place, shape in enumerate(shapes):
            solid = torch.from_numpy(shape.solid)
            rows, columns = solid.any(dim=1).nonzero(), solid.any(dim=0).nonzero()
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert scenes.target(index).boxes[place].tolist() == [float(value) for value in box]
            visible = solid.clone()
            for above in shapes[place + 1 :]:
                visible &= ~torch.from_numpy(above.solid)
            # 30 % of the whole shape, so at least that of its part within the scene.
            assert visible.sum() >= 0.3 * solid.sum()


def test_pixels_are_not_shared_with_the_data_set(scenes):
    first = scenes[0][0]
    first.zero_()
    assert scenes[0][0].any()


def test_side_scales_the_scene():
    image, target = DemoDataset("val", side=64)[2]
    assert image.shape == (3, 64, 64)
    assert image.dtype == torch.uint8
    assert target.size == (64, 64)
