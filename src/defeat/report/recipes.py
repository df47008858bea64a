"""The recipes that come with the project: what they should reach, and how they are run."""

import shlex
from typing import Any

from rich.console import Console
from rich.text import Text

from defeat.assembly.recipes import expected, read_recipe, recipe_files

DATA = {"voc": "VOC2007:trainval,VOC2012:trainval", "coco": "COCO"}


def print_recipes(console: Console) -> None:
    """Print each recipe with its figure, and its command for one device and for as many as it was published with."""
    for name, path in recipe_files().items():
        settings = read_recipe(path)
        figure = expected(settings.get("expected"))
        reached = f"{figure.metric} {figure.value:g} ({figure.source})" if figure else "no published figure"
        console.print(Text.assemble((name, "bold"), f"  {reached}"))
        for command in commands(name, settings):
            console.print(Text(f"    {command}", style="dim"), soft_wrap=True)


def commands(name: str, settings: dict[str, Any]) -> list[str]:
    """The commands of a recipe: on its own number of devices, and with the same batch on one device."""
    command = "distill" if "method" in settings else "train"
    words = ["defeat", command, "--config", name, "--data", DATA.get(name.split("/")[0], "DATA")]
    if command == "distill":
        words += ["--teacher", settings.get("teacher") or "RUN"]
    if "backbone" not in settings:
        words += ["--backbone", "NAME"]
    words += ["--out", f"runs/{name.replace('/', '_')}"]
    devices = int(settings.get("devices", 1))
    found = [words]
    if devices > 1:
        found.append([*words, "--devices", "1", "--batch-size", str(devices * int(settings["batch_size"]))])
    return [shlex.join(one) for one in found]
