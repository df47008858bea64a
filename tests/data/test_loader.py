import random

import numpy as np
import pytest
import torch
from PIL import Image

from defeat.data import DetectionDataset, evaluation_loader, open_dataset, training_loader
from defeat.data.sampling import AspectRatioBatchSampler, seeded_generator
from defeat.data.transforms import HorizontalFlip, flip
from defeat.errors import InputError
from defeat.types import Target
from tests.data.folders import voc_object, write_image, write_voc

WIDE, TALL = (10, 20), (20, 10)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> DetectionDataset:
    """Seven wide and three tall images; image number n has n % 3 boxes, the first column of pixels is black."""
    folder = tmp_path_factory.mktemp("voc")
    for tall, numbers in ((False, range(7)), (True, range(7, 10))):
        width, height = (10, 20) if tall else (20, 10)
        images = {f"{n}": "".join(voc_object("cat", (2, 1, 5 + k, 9)) for k in range(n % 3)) for n in numbers}
        write_voc(folder, {f"part{int(tall)}": images}, width, height)
    (folder / "ImageSets/Main/train.txt").write_text("".join(f"{n}\n" for n in range(10)))
    for path in (folder / "JPEGImages").iterdir():
        image = write_image(path, *((20, 10) if int(path.stem) < 7 else (10, 20)))
        with Image.open(image) as opened:
            pixels = opened.copy()
        pixels.paste((0, 0, 0), (0, 0, 1, 20))
        pixels.save(path)
    return open_dataset(folder, "train")


def contents(batches):
    return [
        [(t.image_id, t.boxes.tolist(), t.labels.tolist(), i.sum(dim=(0, 1)).tolist()) for i, t in zip(*b, strict=True)]
        for b in batches
    ]


def epochs(loader, count=2):
    result = []
    for epoch in range(count):
        loader.batch_sampler.set_epoch(epoch)
        result.append(contents(loader))
    return result


def test_flip_mirrors_pixels_and_boxes():
    nothing = torch.zeros(1, dtype=torch.bool)
    target = Target(torch.tensor([[1.0, 2.0, 4.0, 5.0]]), torch.tensor([0]), nothing, nothing, 3, (6, 10))
    image = torch.zeros(3, 6, 10, dtype=torch.uint8)
    image[:, 2:5, 1:4] = 9
    flipped, mirrored = flip(image, target)
    # x1 y1 x2 y2 -> width - x2, y1, width - x1, y2
    assert mirrored.boxes.tolist() == [[6, 2, 9, 5]]
    assert (flipped[:, 2:5, 6:9] == 9).all()
    assert target.boxes.tolist() == [[1, 2, 4, 5]]
    twice, back = flip(flipped, mirrored)
    assert torch.equal(twice, image)
    assert torch.equal(back.boxes, target.boxes)


def test_flip_happens_with_its_probability():
    target, image = Target.empty(0, (1, 2)), torch.tensor([[[1, 2]]] * 3, dtype=torch.uint8)
    draws = [HorizontalFlip(0.25)(image, target, seeded_generator(n))[0][0, 0, 0].item() for n in range(400)]
    assert 70 < draws.count(2) < 130  # 100 expected, standard deviation 8.7
    with pytest.raises(InputError, match=r"0\.\.1"):
        HorizontalFlip(1.5)


@pytest.mark.parametrize("flipped", [0.0, 1.0])
def test_flip_of_no_or_all_images(dataset, flipped):
    loader = training_loader(dataset, batch_size=4, seed=0, workers=0, augmentation=HorizontalFlip(flipped))
    for images, _ in loader:
        for image in images:
            black = (image == 0).all(dim=0).all(dim=0).nonzero().flatten().tolist()
            assert black == ([image.shape[2] - 1] if flipped else [0])


def test_batches_are_full_and_contain_images_of_one_orientation(dataset):
    loader = training_loader(dataset, batch_size=3, seed=0, workers=0)
    batches = list(loader)
    assert len(loader) == len(batches) == 4  # 7 wide: 3 batches; 3 tall: 1
    seen = set()
    for images, targets in batches:
        assert len(images) == len(targets) == len({target.image_id for target in targets}) == 3
        assert len({image.shape for image in images}) == 1
        assert all(tuple(image.shape) == (3, *target.size) for image, target in zip(images, targets, strict=True))
        seen |= {target.image_id for target in targets}
    assert seen == set(range(10))


def test_batches_contain_the_items_of_the_data_set(dataset):
    unchanged = HorizontalFlip(0.0)
    for images, targets in training_loader(dataset, batch_size=3, seed=0, workers=0, augmentation=unchanged):
        for image, target in zip(images, targets, strict=True):
            expected_image, expected = dataset[target.image_id]
            assert torch.equal(image, expected_image)
            for name in ("boxes", "labels", "difficult", "crowd"):
                value, expected_value = getattr(target, name), getattr(expected, name)
                assert torch.equal(value, expected_value)
                assert value.dtype == expected_value.dtype


def test_order_and_flips_do_not_depend_on_workers_or_global_generators(dataset):
    without_workers = epochs(training_loader(dataset, batch_size=3, seed=5, workers=0))
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    with_workers = epochs(training_loader(dataset, batch_size=3, seed=5, workers=2))
    assert without_workers == with_workers
    assert without_workers[0] != without_workers[1]
    assert without_workers != epochs(training_loader(dataset, batch_size=3, seed=6, workers=0))


@pytest.mark.parametrize("workers", [0, 1])
def test_global_generators_are_unchanged(dataset, workers):
    torch.manual_seed(1)
    state, python, numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    list(training_loader(dataset, batch_size=3, seed=0, workers=workers))
    list(evaluation_loader(dataset, batch_size=3, workers=workers))
    assert torch.equal(state, torch.get_rng_state())
    assert python == random.getstate()
    assert (numpy == np.random.get_state()[1]).all()


def test_batches_are_skipped_only_in_their_epoch(dataset):
    loader = training_loader(dataset, batch_size=3, seed=0, workers=0)
    whole = contents(loader)
    loader.batch_sampler.start_batch = 2
    assert contents(loader) == whole[2:]
    loader.batch_sampler.set_epoch(0)  # the epoch that it is in: nothing changes
    assert contents(loader) == whole[2:]
    loader.batch_sampler.set_epoch(1)
    assert len(contents(loader)) == len(whole)
    loader.batch_sampler.set_epoch(0)
    assert contents(loader) == whole


def test_ranks_get_equally_many_batches_and_all_images():
    sizes = [WIDE] * 7 + [TALL] * 4
    samplers = [AspectRatioBatchSampler(sizes, batch_size=2, seed=3, rank=rank, world_size=4) for rank in range(4)]
    shares = [list(sampler) for sampler in samplers]
    # 4 wide and 2 tall batches for 4 ranks: 2 for each, two of them again
    assert [len(share) for share in shares] == [len(sampler) for sampler in samplers] == [2] * 4
    assert {index for share in shares for batch in share for index, _ in batch} == set(range(11))


def test_group_smaller_than_a_batch_is_filled_with_others():
    batches = list(AspectRatioBatchSampler([WIDE] * 6 + [TALL], batch_size=3, seed=0))
    assert [len({index for index, _ in batch}) for batch in batches] == [3, 3, 3]


def test_data_set_smaller_than_a_batch_is_one_small_batch():
    (batch,) = AspectRatioBatchSampler([WIDE, TALL, WIDE], batch_size=8, seed=0)
    assert sorted(index for index, _ in batch) == [0, 1, 2]


@pytest.mark.parametrize(("batch_size", "rank", "world_size"), [(0, 0, 1), (1, 2, 2), (1, -1, 1)])
def test_invalid_batch_sizes_and_ranks_are_refused(batch_size, rank, world_size):
    with pytest.raises(InputError):
        AspectRatioBatchSampler([WIDE], batch_size=batch_size, seed=0, rank=rank, world_size=world_size)


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_every_image_once_and_in_order(dataset, world_size, workers):
    seen = []
    for rank in range(world_size):
        loader = evaluation_loader(dataset, batch_size=4, workers=workers, rank=rank, world_size=world_size)
        numbers = [target.image_id for _, targets in loader for target in targets]
        assert numbers == list(range(rank, 10, world_size))
        seen += numbers
    assert sorted(seen) == list(range(10))


@pytest.mark.parametrize("workers", [0, 1])
def test_error_of_a_worker_is_one_sentence(tmp_path, workers):
    dataset = open_dataset(write_voc(tmp_path, {"train": {"a": voc_object("cat", (1, 1, 9, 9))}}), "train")
    (tmp_path / "JPEGImages/a.png").write_text("broken")
    with pytest.raises(InputError) as caught:
        list(evaluation_loader(dataset, batch_size=1, workers=workers))
    assert "a.png" in str(caught.value)
    assert "\n" not in str(caught.value)
