"""Bad images: refused in a sentence that names the file, or decoded."""

import builtins
import io
import os
import struct
import zlib

import pytest
import torch
from PIL import Image

from defeat.data import open_dataset
from defeat.data.images import read_header, read_image
from defeat.data.unlabelled import UnlabelledImages
from defeat.inference.predict import predict
from tests.bad_input.cases import refusal, table
from tests.data.folders import write_coco, write_yolo
from tests.detector.tiny import UNSELECTIVE, tiny_detector, tiny_options
from tests.engine.tiny_runs import save_teacher

COLOUR = (200, 100, 50)
PLAIN = Image.new("RGB", (50, 40), COLOUR)
LATER = {"save_all": True, "append_images": [Image.new("RGB", (50, 40))]}
NOISE = Image.effect_noise((50, 40), 80)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, *more):
    """A PNG file whose header has this size, with almost no pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )


def deep_png(width, height):
    """A PNG file with 16 bits per colour, which Pillow can't write."""
    row = b"\0" + struct.pack(">HHH", *(value * 257 for value in COLOUR)) * width
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(row * height)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def exif(kind, value):
    """EXIF data whose orientation is of the given type: a TIFF file with one entry."""
    return b"Exif\0\0II*\0" + struct.pack("<IHHHI", 8, 1, 0x0112, kind, 1) + value + b"\0" * 12


def decoded(path):
    """Read the header of an image, then its pixels."""
    return read_image(path, read_header(path).upright, prefer_upright=True)


WHOLE = {kind: encoded(NOISE, kind) for kind in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")}
TEXTS = chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 100_000_000))
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 40\n%%EndComments\n(owned) print\n%%EOF\n"


@table(
    *[(f"{kind} cut off", "a.jpg", content[: len(content) // 2]) for kind, content in WHOLE.items()],
    *[(f"{kind} cut off in its head", "a.jpg", content[:12]) for kind, content in WHOLE.items()],
    ("no byte", "a.jpg", b""),
    ("text", "a.jpg", b"This is no image."),
    ("page of a web server", "a.jpg", b"<html>404 not found</html>"),
    ("archive", "a.png", b"PK\x03\x04" + b"\0" * 60),
    ("a bomb of text", "a.png", png(50, 40, TEXTS)),
    ("no width", "a.png", png(0, 40)),
    ("fewer pixels than said", "a.png", png(50, 40)),
    ("wrong sum", "a.png", WHOLE["PNG"].replace(WHOLE["PNG"][40:44], b"\0\1\2\3")),
    ("floating point", "a.tif", encoded(Image.new("F", (5, 4), 0.5), "TIFF")),
    ("a program in PostScript", "a.jpg", POSTSCRIPT),
)  # fmt: skip
def test_an_image_is_refused(case, tmp_path):
    name, content = case
    path = tmp_path / name
    path.write_bytes(content)
    assert f"{path} cannot be read as an image: " in refusal(decoded, path)


@table(
    ("PNG", "a.png", png(100_000, 100_000), "100000 x 100000 = 10,000,000,000 pixels"),
    ("PNG called .jpg", "a.jpg", png(50_000, 30_000), "50000 x 30000 = 1,500,000,000 pixels"),
    ("PNG called .avif", "a.avif", png(100_000, 100_000), "100000 x 100000 = 10,000,000,000 pixels"),
    ("PNG called .heic", "a.heic", png(100_000, 100_000), "100000 x 100000 = 10,000,000,000 pixels"),
)
def test_an_image_with_more_pixels_than_the_limit_is_refused(case, tmp_path):
    name, content, expected = case
    path = tmp_path / name
    path.write_bytes(content)
    message = refusal(decoded, path)
    assert expected in message
    assert "cut it into tiles" in message
    assert "--max-pixels" in message


def test_an_image_starts_no_other_program(tmp_path, monkeypatch):
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    started = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *words, **_: started.append(words))
    (tmp_path / "a.jpg").write_bytes(POSTSCRIPT)
    refusal(decoded, tmp_path / "a.jpg")
    assert not started


@table(
    ("PNG called .jpg", "a.jpg", encoded(PLAIN, "PNG")),
    ("BMP called .png", "a.png", encoded(PLAIN, "BMP")),
    ("suffix in capitals", "a.PNG", encoded(PLAIN, "PNG")),
    ("spaces", " a  b .png", encoded(PLAIN, "PNG")),
    ("unicode", "ü 图像 🐈.png", encoded(PLAIN, "PNG")),
    ("line ends", "a\nb\rc.png", encoded(PLAIN, "PNG")),
    ("separator of lines in unicode", "a\u2028b\x85c.png", encoded(PLAIN, "PNG")),
    ("percent, quotes and brackets", "100%'\"[/b].png", encoded(PLAIN, "PNG")),
    ("name that is no UTF-8", os.fsdecode(b"a\xff.png"), encoded(PLAIN, "PNG")),
    ("16 bits a colour", "a.png", deep_png(50, 40)),
    ("CMYK", "a.jpg", encoded(PLAIN.convert("CMYK"), "JPEG", quality=100)),
    ("first frame of a GIF", "a.gif", encoded(PLAIN, "GIF", **LATER)),
    ("first frame of a PNG", "a.png", encoded(PLAIN, "PNG", **LATER)),
    ("first frame of a WebP", "a.webp", encoded(PLAIN, "WEBP", lossless=True, **LATER)),
    ("first page of a TIFF", "a.tif", encoded(PLAIN, "TIFF", **LATER)),
    ("transparency", "a.png", encoded(Image.new("RGBA", (50, 40), (*COLOUR, 3)), "PNG")),
    ("palette", "a.png", encoded(PLAIN.convert("P", palette=Image.Palette.ADAPTIVE), "PNG")),
    ("EXIF that is none", "a.png", encoded(PLAIN, "PNG", exif=b"Exif\0\0nonsense")),
    ("EXIF cut off", "a.png", encoded(PLAIN, "PNG", exif=exif(3, b"\6\0")[:20])),
    ("orientation 0", "a.png", encoded(PLAIN, "PNG", exif=exif(3, b"\0\0\0\0"))),
    ("orientation 77", "a.png", encoded(PLAIN, "PNG", exif=exif(3, b"\x4d\0\0\0"))),
    ("orientation in words", "a.png", encoded(PLAIN, "PNG", exif=exif(2, b"up\0\0"))),
    ("orientation one part of nothing", "a.png", encoded(PLAIN, "PNG", exif=exif(5, struct.pack("<I", 26)))),
    ("orientation infinite", "a.png", encoded(PLAIN, "PNG", exif=exif(11, struct.pack("<f", float("inf"))))),
)  # fmt: skip
def test_an_unusual_image_is_decoded(case, tmp_path):
    name, content = case
    folder = write_yolo(tmp_path / "data", {"x": "0 .5 .5 1 1"})
    (folder / "images/train/x.png").unlink()
    path = folder / "images/train" / name.replace("/", "_")
    path.write_bytes(content)
    (folder / f"labels/train/{path.stem}.txt").write_text("0 .5 .5 1 1")
    if path.suffix == ".gif":  # an unusual suffix, which COCO can name
        (folder / "data.yaml").unlink()
        content = {
            "images": [{"id": 1, "file_name": path.name}],
            "categories": [{"id": 1, "name": "cat"}],
            "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 50, 40]}],
        }
        write_coco(folder, content, "annotations/train.json")
    image, target = open_dataset(folder, "train")[0]
    assert target.boxes.tolist() == [[0, 0, 50, 40]]
    assert image.shape == (3, 40, 50)
    assert (image.flatten(1).float().mean(1) - torch.tensor(COLOUR)).abs().max() < 4


SIZES = [(1, 1), (30_000, 10), (10, 30_000), (1, 500)]


@pytest.mark.parametrize("family", ["faster_rcnn", "retinanet"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_detection_works_for_any_image_size(size, family, tmp_path):
    width, height = size
    Image.new("RGB", size, COLOUR).save(tmp_path / "a.png")
    image = decoded(tmp_path / "a.png")
    assert image.shape == (3, height, width)
    detector = tiny_detector(family, options=tiny_options(family, **UNSELECTIVE))
    (detections,) = detector.predict([image])
    assert len(detections.boxes) > 0
    assert detections.scores.isfinite().all()
    limits = torch.tensor([width, height, width, height])
    assert ((detections.boxes >= 0) & (detections.boxes <= limits)).all()


def forbidden(path, monkeypatch):
    """Remove the permission to read a file, also for the user `root`."""
    path.chmod(0)
    if os.access(path, os.R_OK):
        original = builtins.open

        def refuse(name, *arguments, **options):
            if str(name) == str(path):
                raise PermissionError(13, "Permission denied", str(path))
            return original(name, *arguments, **options)

        monkeypatch.setattr(builtins, "open", refuse)


def test_an_image_without_read_permission_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    PLAIN.save(path)
    forbidden(path, monkeypatch)
    assert f"{path} cannot be read: permission denied" in refusal(decoded, path)


def a_folder(path):
    path.mkdir()


def a_pipe(path):
    os.mkfifo(path)  # opening it would block


def a_loop(path):
    path.symlink_to(path)


def a_broken_link(path):
    path.symlink_to(path.with_name("nowhere.png"))


@table(("folder", a_folder), ("pipe", a_pipe), ("link to itself", a_loop), ("link to nothing", a_broken_link))
def test_paths_that_are_not_files_are_not_images(case, tmp_path):
    (plant,) = case
    folder = write_yolo(tmp_path, {"a": "0 .5 .5 1 1"}, "train: list.txt\nnames: [cat]")
    plant(folder / "images/train/b.png")
    (folder / "list.txt").write_text("images/train/a.png\nimages/train/b.png\n")
    message = refusal(open_dataset, folder, "train")
    assert "list.txt, line 2: the image" in message
    assert "b.png does not exist" in message
    # It is omitted when the images are read from a folder.
    (folder / "data.yaml").write_text("train: images/train\nnames: [cat]")
    assert len(open_dataset(folder, "train")) == 1


@table(("a.jpg", b"text"), ("b.png", WHOLE["PNG"][:300]), ("c.webp", b""))
def test_a_broken_unannotated_image_is_refused_or_reported(case, tmp_path, request):
    (content,) = case
    name = request.node.callspec.id
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / name).write_bytes(content)
    PLAIN.save(tmp_path / "images/whole.png")
    if name == "b.png":  # its header is intact
        images = UnlabelledImages(tmp_path / "images")
        assert name in refusal(images.__getitem__, 0)
    else:
        assert name in refusal(UnlabelledImages, tmp_path / "images")
    result = predict(save_teacher(tmp_path / "run"), tmp_path / "images", tmp_path / "drawn")
    assert [path.name for path in result.pictures] == ["whole.jpg"]
    (sentence,) = result.skipped
    assert name in sentence


def test_unusual_file_names_are_kept(tmp_path):
    names = [" a  b .png", "ü 图像 🐈.png", "a\nb.png", os.fsdecode(b"a\xff.png")]
    (tmp_path / "images").mkdir()
    for name in names:
        PLAIN.save(tmp_path / "images" / name, "PNG")
    result = predict(save_teacher(tmp_path / "run"), tmp_path / "images", tmp_path / "drawn")
    assert sorted(path.stem + ".png" for path in result.pictures) == sorted(names)
    assert not result.skipped
