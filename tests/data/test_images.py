import numpy as np
import pytest
import torch
from PIL import Image, features

from defeat.data import images, open_dataset
from defeat.data.files import is_image
from defeat.data.images import MAX_PIXELS_VARIABLE, max_pixels, read_header, read_image, set_max_pixels
from defeat.data.unlabelled import UnlabelledImages
from defeat.errors import InputError
from tests.data.folders import write_image, write_yolo


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
def own_limit(monkeypatch):
    """Restores the limits of pixels afterwards."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, "1")
    monkeypatch.delenv(MAX_PIXELS_VARIABLE)


@pytest.mark.usefixtures("own_limit")
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "avif"])
def test_an_image_of_too_many_pixels_is_refused_with_a_way_out(tmp_path, suffix, recwarn):
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF decoder")
    path = saved(tmp_path / f"a.{suffix}", Image.new("RGB", (60, 20)))
    with pytest.raises(InputError, match=r" 1,200 pixels, more than the limit of 1,000: cut it into tiles, or"):
        read_header(path)
    set_max_pixels(1200)
    assert read_header(path).stored == (20, 60)
    assert read_image(path, (20, 60), prefer_upright=True).shape == (3, 20, 60)
    set_max_pixels(1199)
    with pytest.raises(InputError, match="more than the limit of 1,199"):
        read_image(path, (20, 60), prefer_upright=True)
    assert [str(warning.message) for warning in recwarn.list] == []


@pytest.mark.usefixtures("own_limit")
def test_the_limit_of_pixels_is_pillows_unless_it_is_set(monkeypatch):
    assert max_pixels() == 1000
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert max_pixels() is None
    set_max_pixels(7)
    assert max_pixels() == 7


@pytest.mark.usefixtures("own_limit")
@pytest.mark.parametrize("text", ["", "many", "0", "-1", "1e9", "9" * 30])
def test_a_wrong_limit_of_pixels_is_refused(tmp_path, monkeypatch, text):
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, text)
    with pytest.raises(InputError, match="DEFEAT_MAX_PIXELS must be a positive integer"):
        read_header(saved(tmp_path / "a.png", Image.new("RGB", (5, 3))))
    with pytest.raises(InputError, match="must be positive, not 0"):
        set_max_pixels(0)


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
        InputError, match=r"2 of 3 images cannot be read, such as b\.heic: .*pip install pillow-heif\.$"
    ):
        UnlabelledImages(tmp_path)


@pytest.mark.usefixtures("without_heif")
def test_an_annotated_image_whose_decoder_is_missing_says_what_to_install(tmp_path):
    folder = write_yolo(tmp_path, {"a": "0 .5 .5 1 1", "b": "0 .5 .5 1 1"})
    (folder / "images/train/b.png").unlink()
    (folder / "images/train/b.heic").write_bytes(HEIC)
    with pytest.raises(InputError, match=r"b\.heic cannot be read: .*pip install pillow-heif"):
        open_dataset(folder, "train")
    assert len(open_dataset(folder, "train", on_bad_data="skip")) == 1


def test_a_missing_avif_decoder_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(images.features, "check", lambda _: False)
    (tmp_path / "a.avif").write_bytes(HEIC.replace(b"heic", b"avif"))
    with pytest.raises(InputError, match=r"a\.avif cannot be read: AVIF images need Pillow 11\.3"):
        read_header(tmp_path / "a.avif")


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
