import pytest

from defeat.data import open_dataset
from defeat.data.source import DataSource
from defeat.errors import InputError
from tests.data.folders import voc_object, write_image, write_voc


def write_flat(folder, names):
    for number, name in enumerate(names):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path)
        box = voc_object("cat", (1, 1, 2 + number % 30, 9))
        (folder / f"{name}.xml").write_text(f"<annotation><filename>{path.name}</filename>{box}</annotation>")
    return folder


def names_of(dataset):
    return [sample.name for sample in dataset.samples]


def test_both_sides_together_are_the_data_set(tmp_path):
    write_flat(tmp_path, [f"{number:03}" for number in range(100)])
    source = DataSource(str(tmp_path), hold_out=0.2)
    assert source.split_names() == ["train", "val"]
    training, held = source.open("train"), source.open("val")
    whole = open_dataset(tmp_path, "all")
    assert sorted(names_of(training) + names_of(held)) == names_of(whole)
    assert 10 <= len(held) <= 30
    boxes = {sample.name: whole.target(index).boxes.tolist() for index, sample in enumerate(whole.samples)}
    for dataset in (training, held):
        assert dataset.table.boxes.shape == (len(dataset), 4)
        for index, sample in enumerate(dataset.samples):
            assert dataset.target(index).boxes.tolist() == boxes[sample.name]


def test_a_file_stays_on_its_side_when_others_come_and_the_share_grows(tmp_path):
    write_flat(tmp_path, [f"{number:03}" for number in range(60)])
    before = set(names_of(DataSource(str(tmp_path), hold_out=0.2).open("val")))
    grown = set(names_of(DataSource(str(tmp_path), hold_out=0.4).open("val")))
    write_flat(tmp_path, [f"new{number:03}" for number in range(60)])
    after = set(names_of(DataSource(str(tmp_path), hold_out=0.2).open("val")))
    assert before < after
    assert before <= grown


@pytest.mark.parametrize(
    ("by", "key"),
    [
        ("file", lambda name: name.split(".rf.")[0]),
        ("folder", lambda name: name.split("/")[0]),
        ("prefix", lambda name: name.rsplit("_", 1)[0]),
    ],
)
def test_groups_stay_together(tmp_path, by, key):
    frames = [f"place{place}/video{video}_{frame}" for place in range(4) for video in range(4) for frame in range(4)]
    copies = [f"place{place}/photo.rf.{letter}" for place in range(4) for letter in "abc"]
    write_flat(tmp_path, frames + copies)
    source = DataSource(str(tmp_path), hold_out=0.5, hold_out_by=by)
    training, held = ({key(name) for name in names_of(source.open(split))} for split in ("train", "val"))
    assert training
    assert held
    assert not training & held


@pytest.mark.parametrize("count", [2, 3])
def test_no_side_is_empty_however_few_images_there_are(tmp_path, count):
    write_flat(tmp_path, [f"{number}" for number in range(count)])
    for share in (0.01, 0.99):
        source = DataSource(str(tmp_path), hold_out=share)
        assert len(source.open("train")) + len(source.open("val")) == count
        assert min(len(source.open("train")), len(source.open("val"))) >= 1


def test_one_image_is_not_divided(tmp_path):
    with pytest.raises(InputError, match="needs two groups of images"):
        DataSource(str(write_flat(tmp_path, ["a"])), hold_out=0.5).open("train")


def test_the_training_split_is_divided_and_others_stay(tmp_path):
    box = voc_object("cat", (1, 1, 9, 9))
    write_voc(tmp_path, {"trainval": dict.fromkeys("abcdef", box), "test": {"t": box}})
    source = DataSource(str(tmp_path), hold_out=0.5)
    assert source.split_names() == ["test", "train", "val"]
    assert len(source.open("train")) + len(source.open("val")) == 6
    assert names_of(source.open("test")) == ["JPEGImages/t.png"]


def test_data_with_a_validation_split_is_not_divided(tmp_path):
    box = voc_object("cat", (1, 1, 9, 9))
    write_voc(tmp_path, {"train": {"a": box, "b": box}, "val": {"c": box}})
    with pytest.raises(InputError, match="has a split 'val' already"):
        DataSource(str(tmp_path), hold_out=0.5).open("train")
