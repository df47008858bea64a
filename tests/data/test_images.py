import numpy as np
import pytest
import torch
from PIL import Image

from defeat.data.images import read_header, read_image
from defeat.errors import InputError


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
    ("orientation", "size", "place"),
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
def test_orientation_is_applied(tmp_path, orientation, size, place, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.new("RGB", (5, 3))
    image.putpixel((0, 0), (255, 255, 255))
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"a.{suffix}", image, exif=exif, **options)
    assert read_header(path).upright == size
    pixels = read_image(path, size, prefer_upright=True)
    assert (pixels[0] == 255).nonzero().tolist() == [list(place)]


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
