"""Devices and processes of a run."""

import os
from typing import Literal

import torch

from defeat.errors import InputError
from defeat.settings import Checked, Role, at_least, setting, settings_part

MOST_NODES = 10_000
Precision = Literal["32-true", "16-mixed", "bf16-mixed"]


@settings_part
class DeviceSettings(Checked):
    """Devices."""

    devices: int | Literal["auto"] = setting(default=1)
    """Number of devices on each node, or auto for all."""
    nodes: int = setting(default=1)
    """Number of nodes."""
    accelerator: Literal["auto", "cpu", "gpu"] = setting(default="auto", role=Role.DEVICE, compared=False)
    """Kind of device: auto, cpu or gpu."""
    precision: Precision = setting(default="32-true")
    """Precision of the training: 32-true, 16-mixed or bf16-mixed."""

    def check(self) -> None:
        """Refuse invalid values."""
        at_least("nodes", self.nodes, 1, MOST_NODES)

    @property
    def on_cpu(self) -> bool:
        """Whether the run computes on the CPU of this machine."""
        return self.accelerator == "cpu" or (self.accelerator == "auto" and accelerators() == 0)

    @property
    def processes(self) -> int:
        """Number of training processes, each with its own batch."""
        if self.devices != "auto":
            return self.nodes * self.devices
        return self.nodes * (1 if self.on_cpu else accelerators())

    @property
    def one_process(self) -> bool:
        """Whether a single process trains, on one device."""
        return self.devices == 1 and self.nodes == 1


def accelerators() -> int:
    """Number of GPUs, or other accelerators, of this machine."""
    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def require_devices(settings: DeviceSettings) -> None:
    """Refuse devices that do not exist, before anything is read or written.

    Raises:
        InputError: naming the option.
    """
    available, on_cpu = accelerators(), settings.on_cpu
    if settings.accelerator == "gpu" and available == 0:
        raise InputError("--accelerator gpu: no GPU was found; give --accelerator cpu, or auto.")
    if settings.devices != "auto" and settings.devices < 1:
        raise InputError(f"--devices must be 1 or more, or auto, not {settings.devices}.")
    if not on_cpu and settings.devices != "auto" and settings.devices > available:
        raise InputError(
            f"--devices {settings.devices}: only {available} found; a larger --batch-size keeps the total batch size."
        )
    limit = max(16, os.cpu_count() or 1)
    if on_cpu and settings.devices != "auto" and settings.devices > limit:
        raise InputError(f"--devices {settings.devices}: each would be a process on this CPU; give {limit} or less.")
    if on_cpu and settings.precision == "16-mixed":
        raise InputError("--precision 16-mixed needs a GPU; give 32-true or bf16-mixed.")


def training_device(settings: DeviceSettings) -> torch.device:
    """The device of this process, for computations before the training starts."""
    if settings.accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
