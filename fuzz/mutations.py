"""Mutations that keep the structure of an input: its files, and the JSON, XML, CSV or lines in them."""

import csv
import io
import json
from collections.abc import Callable
from random import Random
from typing import Any
from xml.etree.ElementTree import ParseError, tostring  # written only

import atheris
from defusedxml.ElementTree import fromstring

SEPARATOR = b"\n=====\n"
ODD_NUMBERS: list[Any] = [-1, 0, 1, 2, 1.5, 1e308, 5e-324, float("nan"), float("inf"), 10**9, 10**18, 10**400]
ODD_TEXTS = [
    "",
    "x",
    "x" * 300,
    "..",
    "/",
    ".",
    "a\0b",
    "\ud800",
    "a\nb",
    "cat",
    "a.png",
    "12",
    "1e1",
    "0",
    "nan",
    "1e999",
]
ODD_TEXTS += ["../a", "../outside/a.png", "{HERE}/outside/a.png", "{HERE}/data/a.png", "{HERE}/outside/list.txt"]
ODD_TEXTS += [
    "C:\\data\\a.png",
    "\\\\host\\a.png",
    "https://x/a.png",
    "sub/b.png",
    "sub\\b.png",
    "/x/sub/b.png",
    "train",
]
ODD: list[Any] = [None, True, False, [], {}, [[]], [0, 0, 9, 9], [[1, 1, 9, 9, 1, 9]], *ODD_NUMBERS, *ODD_TEXTS]
OPTIONS = ["skip", "background", "drop", "error", "pictures", "hold-out", "file", "folder", "prefix"]
FOLDERS = ["", "train/", "valid/", "val/", "test/", "images/", "labels/", "images/train/", "labels/train/", "data/"]
FOLDERS += ["annotations/", "Annotations/", "ImageSets/Main/", "JPEGImages/", "__MACOSX/", ".x/"]
FILES = ["a.png", "b.png", "a.txt", "b.txt", "a.xml", "a.json", "a.b.png", "A.PNG", "a.jpg", "._a.png", "list.txt"]
FILES += ["train.txt", "valid.txt", "trainval.txt", "classes.txt", "obj.names", "obj.data", "data.yaml", "x.yaml"]
FILES += ["train.json", "instances_train.json", "_annotations.coco.json", "labels.json", "via.csv", "annotations.xml"]


def mutate_parts(data: bytes, size: int, seed: int) -> bytes:
    """Change one of the files of an input."""
    random = Random(seed)  # noqa: S311
    parts = data.split(SEPARATOR)
    index = random.randrange(len(parts))
    parts[index] = _changed(parts[index], size, random)
    return SEPARATOR.join(parts)[:size]


def mutate_folder(data: bytes, size: int, seed: int) -> bytes:
    """Change the options, the path or the content of a file, or which files there are."""
    random = Random(seed)  # noqa: S311
    options, *files = data.split(SEPARATOR)
    action = random.randrange(12)
    if action == 0 or not files:
        options = " ".join(random.sample(OPTIONS, random.randrange(4))).encode() if random.random() < 0.8 else options
        if files and random.random() < 0.3:
            options += b" @" + random.choice(files).partition(b"\n")[0]
    elif action == 1:
        del files[random.randrange(len(files))]
    elif action == 2:
        files.append(random.choice(files))
    elif action in (3, 4):
        index = random.randrange(len(files))
        _, separator, content = files[index].partition(b"\n")
        files[index] = _new_path(files, index, random) + separator + content
    elif action == 5:
        return bytes(atheris.Mutate(data, size))
    else:
        index = random.randrange(len(files))
        name, separator, content = files[index].partition(b"\n")
        files[index] = name + separator + _changed(content, size, random)
    return SEPARATOR.join([options, *files])[:size]


def _new_path(files: list[bytes], index: int, random: Random) -> bytes:
    """Another path of a file: in another folder, of another name, or near the path of another file."""
    names = [part.partition(b"\n")[0].decode(errors="replace") for part in (files[index], random.choice(files))]
    folder, name = (names[0].rpartition("/")[0] + "/", names[0].rpartition("/")[2])
    other = names[1].rpartition("/")[2]
    return random.choice((
        random.choice(FOLDERS) + name,
        folder + random.choice(FILES),
        folder + other.rpartition(".")[0] + "." + name.rpartition(".")[2],
        random.choice(FOLDERS) + random.choice(FILES),
    )).encode()  # fmt: skip


def _changed(content: bytes, size: int, random: Random) -> bytes:
    """Change a file by its structure, or its bytes."""
    change = _change_of(content)
    if change is None or random.random() < 0.25:
        return bytes(atheris.Mutate(content, size))
    try:
        return change(content, random)
    except (ValueError, RecursionError, ParseError, csv.Error, LookupError):
        return bytes(atheris.Mutate(content, size))


def _change_of(content: bytes) -> Callable[[bytes, Random], bytes] | None:
    """The function that changes a file of this kind; None for bytes without structure."""
    start = content.lstrip()[:40]
    if start[:1] in (b"{", b"["):
        return _changed_json
    if start[:1] == b"<":
        return _changed_xml
    if b"filename" in start and b"," in start:
        return _changed_csv
    return _changed_lines if start else None


def _changed_json(content: bytes, random: Random) -> bytes:
    tree = json.loads(content)
    if not isinstance(tree, dict | list):
        raise ValueError
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        _change_one(tree, random)
    return json.dumps(tree).encode()


def _change_one(tree: Any, random: Random) -> None:
    positions = list(_positions(tree))
    if not positions:
        return
    container, key = random.choice(positions)
    action = random.randrange(5)
    if action == 0 and isinstance(container, dict):
        del container[key]
    elif action == 1 and isinstance(container, list):
        container.insert(key, container[key])
    elif action == 2:
        other, other_key = random.choice(positions)
        container[key] = json.loads(json.dumps(other[other_key]))
    elif action == 3 and isinstance(container, dict):
        _, other_key = random.choice(positions)
        container[str(other_key)] = json.loads(json.dumps(random.choice(ODD)))
    else:
        container[key] = json.loads(json.dumps(random.choice(ODD)))


def _positions(tree: Any) -> Any:
    """Container and key of every value in a tree."""
    keys: Any = tree.keys() if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from _positions(tree[key])


def _changed_xml(content: bytes, random: Random) -> bytes:
    root = fromstring(content)
    for _ in range(random.choice((1, 1, 2, 4))):
        elements = list(root.iter())
        element, other = random.choice(elements), random.choice(elements)
        action = random.randrange(6)
        if action == 0 and len(element):
            element.remove(random.choice(list(element)))
        elif action == 1 and len(element):
            element.append(random.choice(list(element)))
        elif action == 2:
            element.tag = other.tag
        elif action == 3:
            element.text = _odd_text(random)
        elif element.attrib:
            key = random.choice(list(element.attrib))
            value = _odd_text(random) if random.random() < 0.8 else element.attrib[key] * 2
            element.attrib.update({random.choice([key, *other.attrib]): value})
        else:
            element.attrib.update(other.attrib)
    return bytes(tostring(root))


def _changed_csv(content: bytes, random: Random) -> bytes:
    rows = list(csv.reader(io.StringIO(content.decode(), newline="")))
    row = random.choice(rows)
    index = random.randrange(len(row))
    action = random.randrange(4)
    if action == 0:
        rows.append(list(random.choice(rows)))
    elif action == 1:
        del row[index]
    elif row[index].startswith("{"):
        row[index] = _changed_json(row[index].encode(), random).decode()
    else:
        row[index] = _odd_text(random)
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows(rows)
    return stream.getvalue().encode()


def _changed_lines(content: bytes, random: Random) -> bytes:
    lines = content.split(b"\n")
    index = random.randrange(len(lines))
    action = random.randrange(5)
    if action == 0:
        del lines[index]
    elif action == 1:
        lines.insert(index, random.choice(lines))
    else:
        words = lines[index].split(b" ")
        other = random.choice(random.choice(lines).split(b" "))
        words[random.randrange(len(words))] = other if action == 2 else _odd_text(random).encode()
        lines[index] = b" ".join(words)
    return b"\n".join(lines)


def _odd_text(random: Random) -> str:
    value = random.choice([text for text in ODD_TEXTS if text.isascii() and "\0" not in text] + ODD_NUMBERS)
    return value if isinstance(value, str) else f"{float(value)!r}" if abs(value) < 1e300 else "1" + "0" * 400
