"""Provenance of results: versions, commit and machine."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from defeat.errors import DISTRIBUTION

PACKAGES = {"defeat": DISTRIBUTION} | {
    name: name for name in ("torch", "torchvision", "timm", "lightning", "faster-coco-eval")
}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    numbers = {"python": platform.python_version()}
    for name, distribution in PACKAGES.items():
        try:
            numbers[name] = version(distribution)
        except PackageNotFoundError:
            numbers[name] = "unknown"
    return numbers


def commit() -> str | None:
    """The git commit of this program's source, with `+changes` if it was edited; None outside a checkout."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(  # noqa: S603
            ["git", *arguments],  # noqa: S607
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        # An installed copy inside another checkout must not report the commit of that checkout.
        if not git("ls-files", __file__):
            return None
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", str(folder)) else "")
    except (OSError, subprocess.SubprocessError):
        return None


def machine() -> dict[str, Any]:
    """Processor, cores, threads and accelerator."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
