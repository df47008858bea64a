import pickle
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image, features

from defeat.assembly.earlier import recorded_settings
from defeat.assembly.settings import FREE_IN_RESUMED, TrainSettings
from defeat.data import DataSource, evaluation_loader, images, open_dataset
from defeat.data.files import is_image
from defeat.data.images import MAX_PIXELS, missing_decoder, read_header, read_image, rgb_tensor
from defeat.data.objects import ObjectDataset
from defeat.data.problems import Problems
from defeat.data.unlabelled import UnlabelledImages
from defeat.errors import InputError
from tests.data.folders import voc_object, write_coco, write_image, write_voc, write_yolo


def saved(path, image, **options):
    image.save(path, **options)
    return path


def one_colour(path):
    pixels = read_image(path, (3, 5), prefer_upright=True)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3, 3, 5)
    assert pixels.is_contiguous()
    return pixels[:, 0, 0].tolist()


def test_grey_is_repeated(tmp_path):
    assert one_colour(saved(tmp_path / "a.png", Image.new("L", (5, 3), 70))) == [70, 70, 70]


def test_one_bit_becomes_black_and_white(tmp_path):
    assert one_colour(saved(tmp_path / "a.png", Image.new("1", (5, 3), 1))) == [255, 255, 255]


@pytest.mark.parametrize("transparency", [None, 0, b"\x00\x80"])
def test_palette_is_looked_up(tmp_path, transparency, recwarn):
    image = Image.new("P", (5, 3), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    options = {} if transparency is None else {"transparency": transparency}
    assert one_colour(saved(tmp_path / "a.png", image, **options)) == [10, 20, 30]
    assert not recwarn.list


@pytest.mark.parametrize(("mode", "colour"), [("RGBA", (10, 20, 30, 0)), ("LA", (20, 0))])
def test_alpha_is_dropped(tmp_path, mode, colour):
    expected = [10, 20, 30] if mode == "RGBA" else [20, 20, 20]
    assert one_colour(saved(tmp_path / "a.png", Image.new(mode, (5, 3), colour))) == expected


def test_cmyk_becomes_rgb(tmp_path):
    path = saved(tmp_path / "a.jpg", Image.new("CMYK", (5, 3), (255, 0, 0, 0)), quality=100)
    red, green, blue = one_colour(path)
    assert red < 5
    assert green > 250
    assert blue > 250


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, suffix):
    image = Image.fromarray(np.full((3, 5), 40 * 256 + 99, dtype=np.uint16))
    assert one_colour(saved(tmp_path / f"a.{suffix}", image)) == [40, 40, 40]


# Where the white upper left pixel of the stored image is shown, by EXIF orientation: (row, column) of a 3 x 5 image.
@pytest.mark.parametrize(
    ("orientation", "size", "position"),
    [
        (1, (3, 5), (0, 0)),
        (2, (3, 5), (0, 4)),
        (3, (3, 5), (2, 4)),
        (4, (3, 5), (2, 0)),
        (5, (5, 3), (0, 0)),
        (6, (5, 3), (0, 2)),
        (7, (5, 3), (4, 2)),
        (8, (5, 3), (4, 0)),
    ],
)
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_orientation_is_applied(tmp_path, orientation, size, position, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.new("RGB", (5, 3))
    image.putpixel((0, 0), (255, 255, 255))
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"a.{suffix}", image, exif=exif, **options)
    assert read_header(path).upright == size
    pixels = read_image(path, size, prefer_upright=True)
    assert (pixels[0] == 255).nonzero().tolist() == [list(position)]


def test_stored_pixels_are_kept_when_asked_for(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    image = Image.new("RGB", (5, 3))
    image.putpixel((0, 0), (255, 255, 255))
    pixels = read_image(saved(tmp_path / "a.png", image, exif=exif), (3, 5), prefer_upright=False)
    assert pixels[0, 0, 0] == 255


def test_broken_image_is_named(tmp_path):
    text = tmp_path / "a.jpg"
    text.write_text("no image")
    whole = saved(tmp_path / "b.png", Image.effect_noise((50, 50), 80))
    whole.write_bytes(whole.read_bytes()[:900])
    for path, size in ((text, (3, 5)), (whole, (50, 50))):
        with pytest.raises(InputError, match=f"{path.name} cannot be read as an image"):
            read_image(path, size, prefer_upright=True)
    with pytest.raises(InputError, match=r"c.png does not exist"):
        read_header(tmp_path / "c.png")


def test_other_size_than_annotated_is_an_error(tmp_path):
    path = saved(tmp_path / "a.png", Image.new("RGB", (5, 3)))
    with pytest.raises(InputError, match="is 5 x 3, but its annotations are for 7 x 4"):
        read_image(path, (4, 7), prefer_upright=True)


@pytest.fixture
def low_limit(monkeypatch):
    """Gives Pillow a limit of 1000 pixels."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)


@pytest.mark.usefixtures("low_limit")
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "avif"])
def test_an_image_of_too_many_pixels_is_refused_with_a_way_out(tmp_path, suffix, recwarn):
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF decoder")
    path = saved(tmp_path / f"a.{suffix}", Image.new("RGB", (60, 20)))
    for limit in (400, 1000, 1199):
        way_out = f" 1,200 pixels, more than the limit of {limit:,}: cut it into tiles, or give a larger --max-pixels"
        with pytest.raises(InputError, match=way_out):
            read_header(path, limit)
        with pytest.raises(InputError, match=way_out):
            read_image(path, (20, 60), prefer_upright=True, max_pixels=limit)
    assert read_header(path, 1200).stored == (20, 60)
    assert read_image(path, (20, 60), prefer_upright=True, max_pixels=1200).shape == (3, 20, 60)
    assert rgb_tensor(path, 1200).shape == (3, 20, 60)
    assert [str(warning.message) for warning in recwarn.list] == []
    assert Image.MAX_IMAGE_PIXELS == 500  # Pillow's own limit belongs to the whole process


def test_the_default_limit_is_that_of_pillow():
    # Pillow warns at its limit, and refuses twice as much.
    assert 2 * Image.MAX_IMAGE_PIXELS - 1 <= MAX_PIXELS <= 2 * Image.MAX_IMAGE_PIXELS


@pytest.mark.usefixtures("low_limit")
def test_every_reader_of_images_has_the_limit_of_its_call(tmp_path):
    """Images of 40 x 30 pixels."""
    yolo = write_yolo(tmp_path / "yolo", {"a": "0 .5 .5 1 1", "b": "0 .5 .5 1 1"})
    voc = write_voc(tmp_path / "voc", {"train": {"a": voc_object("cat", (1, 1, 20, 10))}}, 40, 30)
    write_image(tmp_path / "coco/train/a.png", 40, 30)
    for named in ({}, {"width": 40, "height": 30}):
        entry = {"id": 1, "file_name": "a.png", **named}
        content = {"images": [entry], "categories": [{"id": 1, "name": "cat"}], "annotations": []}
        coco = write_coco(tmp_path / "coco", content, "annotations/train.json")
        for folder in (yolo, voc, coco):
            size = open_dataset(folder, "train", max_pixels=10**6).sizes[0]
            dataset = open_dataset(folder, "train", max_pixels=size[0] * size[1])
            assert dataset[0][0].shape[-2:] == size
            assert pickle.loads(pickle.dumps(dataset)).max_pixels == size[0] * size[1]  # noqa: S301
            with pytest.raises(InputError, match="larger --max-pixels"):
                _ = open_dataset(folder, "train", max_pixels=size[0] * size[1] - 1)[0]
    assert Image.MAX_IMAGE_PIXELS == 500


@pytest.mark.parametrize("workers", [0, 1])
def test_the_processes_that_load_images_have_the_limit(tmp_path, workers, monkeypatch):
    size = open_dataset(write_yolo(tmp_path, {"a": "0 .5 .5 1 1"}), "train").sizes[0]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for limit in (10**6, size[0] * size[1]):
        dataset = open_dataset(tmp_path, "train", max_pixels=limit)
        (batch,) = evaluation_loader(dataset, batch_size=1, workers=workers)
        assert batch[0][0].shape[-2:] == size
    dataset.max_pixels = size[0] * size[1] - 1
    with pytest.raises(InputError, match="larger --max-pixels"):
        list(evaluation_loader(dataset, batch_size=1, workers=workers))


def test_unlabelled_images_and_objects_have_the_limit(tmp_path):
    path = saved(tmp_path / "a.png", Image.new("RGB", (60, 20)))
    with pytest.raises(InputError, match="more than the limit of 1,199"):
        UnlabelledImages(tmp_path, Problems(max_pixels=1199))
    assert UnlabelledImages(tmp_path, Problems(max_pixels=1200))[0].shape == (3, 20, 60)
    source = [(path, {"boxes": [], "labels": []})]
    with pytest.raises(InputError, match="more than the limit of 1,199"):
        ObjectDataset(source, ["cat"], max_pixels=1199)
    assert ObjectDataset(source, ["cat"], max_pixels=1200)[0][0].shape == (3, 20, 60)


def test_the_limit_is_recorded_and_older_files_have_the_default():
    settings = TrainSettings(data="photos", out="run", max_pixels=7)
    assert settings.source.max_pixels == DataSource.of(settings.to_dict()).max_pixels == 7
    assert recorded_settings({"command": "train"})["max_pixels"] == MAX_PIXELS
    assert "max_pixels" in FREE_IN_RESUMED  # a broken image may be met in the middle of a run


@pytest.mark.parametrize("value", [0, -1, 0.5, "many", None])
def test_a_wrong_limit_of_pixels_is_refused(tmp_path, value):
    with pytest.raises(InputError, match="--max-pixels must be a whole number above 0, not"):
        open_dataset(write_yolo(tmp_path, {"a": "0 .5 .5 1 1"}), "train", max_pixels=value)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF decoder")
def test_avif_is_read(tmp_path):
    image = Image.new("RGB", (5, 3), (10, 200, 30))
    assert one_colour(saved(tmp_path / "a.avif", image, quality=100)) == pytest.approx([10, 200, 30], abs=3)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path / "b.avif", image, exif=exif)
    assert read_header(path).upright == (5, 3)
    assert read_image(path, (5, 3), prefer_upright=True).shape == (3, 5, 3)


@pytest.fixture
def without_heif(monkeypatch):
    monkeypatch.setattr(images, "_registered_heif", lambda: False)


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


@pytest.mark.usefixtures("without_heif")
def test_images_whose_decoder_is_missing_are_one_sentence(tmp_path):
    write_image(tmp_path / "a.png")
    for name in ("b.heic", "c.HEIF"):
        (tmp_path / name).write_bytes(HEIC)
    with pytest.raises(
        InputError, match=r'^2 images in HEIF need `pip install "defeat-detection\[heif\]"`, such as .*b\.heic\.$'
    ):
        UnlabelledImages(tmp_path)
    skipping = UnlabelledImages(tmp_path, Problems("skip"))
    assert skipping.paths == [tmp_path / "a.png"]
    assert "2 of 3 images skipped (first problem: 2 images in HEIF need `pip install" in skipping.problems[0]


@pytest.mark.usefixtures("without_heif")
@pytest.mark.parametrize("sizes", [{}, {"width": 40, "height": 30}])
def test_annotated_images_whose_decoder_is_missing_are_one_sentence(sizes, tmp_path):
    names = ["a.heic", "b.heif", "c.heic", "d.png"]
    write_image(tmp_path / "train/d.png", 40, 30)
    for name in names[:3]:
        (tmp_path / "train" / name).write_bytes(HEIC)
    content = {
        "images": [{"id": number, "file_name": name, **sizes} for number, name in enumerate(names)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"image_id": 3, "category_id": 1, "bbox": [0, 0, 20, 10]}],
    }
    folder = write_coco(tmp_path, content, "annotations/train.json")
    with pytest.raises(
        InputError, match=r'^3 images in HEIF need `pip install "defeat-detection\[heif\]"`, such as .*a\.heic\.$'
    ):
        open_dataset(folder, "train")
    assert len(open_dataset(folder, "train", on_bad_data="skip")) == 1


@pytest.mark.usefixtures("without_heif")
def test_an_annotated_image_whose_decoder_is_missing_says_what_to_install(tmp_path):
    folder = write_yolo(tmp_path, {"a": "0 .5 .5 1 1", "b": "0 .5 .5 1 1"})
    (folder / "images/train/b.png").unlink()
    (folder / "images/train/b.heic").write_bytes(HEIC)
    with pytest.raises(
        InputError, match=r'^1 image in HEIF needs `pip install "defeat-detection\[heif\]"`: .*b\.heic\.$'
    ):
        open_dataset(folder, "train")
    assert len(open_dataset(folder, "train", on_bad_data="skip")) == 1


@pytest.mark.usefixtures("without_heif")
def test_a_jpeg_with_the_suffix_of_heif_needs_no_decoder(tmp_path):
    folder = write_yolo(tmp_path, {"a": "0 .5 .5 1 1"})
    (folder / "images/train/a.png").rename(folder / "images/train/a.heic")
    assert open_dataset(folder, "train")[0][0].ndim == 3


@pytest.mark.usefixtures("without_heif")
def test_the_error_of_a_missing_decoder_survives_a_process():
    error = missing_decoder("a.heic")
    copied = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (str(copied), copied.path, copied.format) == (str(error), "a.heic", "HEIF")


def test_a_missing_avif_decoder_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(images.features, "check", lambda _: False)
    (tmp_path / "a.avif").write_bytes(HEIC.replace(b"heic", b"avif"))
    with pytest.raises(InputError, match=r"a\.avif cannot be read: images in AVIF need Pillow 11\.3"):
        read_header(tmp_path / "a.avif")


@pytest.mark.skipif(find_spec("pillow_heif") is None, reason="pillow-heif is not installed")
@pytest.mark.parametrize("suffix", ["heic", "heif"])
def test_heif_is_read(suffix, tmp_path):
    missing_decoder("a.heic")  # registers the plugin
    image = Image.new("RGB", (50, 30), (10, 200, 30))
    image.paste((250, 20, 20), (0, 0, 50, 15))
    exif = Image.Exif()
    exif[0x0112] = 6  # the first row of the file is at the right
    path = tmp_path / f"images/train/a.{suffix}"
    folder = write_yolo(tmp_path, {"a": "0 .5 .5 1 1"})
    (folder / "images/train/a.png").unlink()
    image.save(path, "HEIF", quality=100, exif=exif.tobytes())
    assert read_header(path).upright == (50, 30)
    pixels = open_dataset(folder, "train")[0][0]
    assert pixels.shape == (3, 50, 30)
    assert pixels[:, 25, 25].tolist() == pytest.approx([250, 20, 20], abs=4)
    assert pixels[:, 25, 5].tolist() == pytest.approx([10, 200, 30], abs=4)
    assert len(UnlabelledImages(path.parent)) == 1


def test_heif_is_read_by_its_plugin(tmp_path, monkeypatch):
    """In place of pillow-heif, a plugin that reads PNG."""

    class Plugin:
        @staticmethod
        def register_heif_opener():
            Image.preinit()
            Image.register_open("HEIF", *Image.OPEN["PNG"])

    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    monkeypatch.setitem(images.importlib.sys.modules, "pillow_heif", Plugin)
    images._registered_heif.cache_clear()
    try:
        Image.new("RGB", (5, 3), (10, 20, 30)).save(tmp_path / "a.heic", "PNG")
        assert one_colour(tmp_path / "a.heic") == [10, 20, 30]
    finally:
        images._registered_heif.cache_clear()


@pytest.mark.parametrize("name", ["._a.png", ".DS_Store", "__MACOSX/a.png"])
def test_files_of_macos_are_no_images(tmp_path, name):
    write_image(tmp_path / "a.png")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"\0\5\x16\7")
    assert not is_image(tmp_path / name)
    assert [path.name for path in UnlabelledImages(tmp_path).paths] == ["a.png"]
