"""Prints the recipes of the package: published figures and commands."""

import shlex
from typing import Any

from rich.console import Console
from rich.text import Text

from defeat.assembly.recipes import expected, read_recipe, recipe_files

DATA = {"voc": "VOC2007:trainval,VOC2012:trainval", "coco": "COCO"}


def print_recipes(console: Console) -> None:
    """Print each recipe with its published figure and its commands."""
    for name, path in recipe_files().items():
        settings = read_recipe(path)
        figure = expected(settings.get("expected"))
        reached = f"{figure.metric} {figure.value:g} ({figure.source})" if figure else "no published figure"
        console.print(Text.assemble((name, "bold"), f"  {reached}"))
        for command in commands(name, settings):
            console.print(Text(f"    {command}", style="dim"), soft_wrap=True)


def commands(name: str, settings: dict[str, Any]) -> list[str]:
    """Commands of a recipe: with its published number of devices, and with the same total batch size on one device."""
    command = "distill" if "method" in settings else "train"
    arguments = ["defeat", command, "--config", name, "--data", DATA.get(name.split("/")[0], "DATA")]
    if command == "distill":
        arguments += ["--teacher", settings.get("teacher") or "RUN"]
    if "backbone" not in settings:
        arguments += ["--backbone", "NAME"]
    arguments += ["--out", f"runs/{name.replace('/', '_')}"]
    devices = int(settings.get("devices", 1))
    variants = [arguments]
    if devices > 1:
        variants.append([*arguments, "--devices", "1", "--batch-size", str(devices * int(settings["batch_size"]))])
    return [shlex.join(variant) for variant in variants]
