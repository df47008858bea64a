"""Where a run trains."""

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
    """How many devices on each node, or auto for all."""
    nodes: int = setting(default=1)
    """How many nodes."""
    accelerator: Literal["auto", "cpu", "gpu"] = setting(default="auto", role=Role.DEVICE, compared=False)
    """Kind of device: auto, cpu or gpu."""
    precision: Precision = setting(default="32-true")
    """Precision of the training: 32-true, 16-mixed or bf16-mixed."""

    def check(self) -> None:
        """Refuse values that can't work."""
        at_least("nodes", self.nodes, 1, MOST_NODES)

    @property
    def on_cpu(self) -> bool:
        """Whether the run computes on the CPU of this machine."""
        return self.accelerator == "cpu" or (self.accelerator == "auto" and accelerators() == 0)

    @property
    def processes(self) -> int:
        """How many processes train, each with a batch of its own."""
        if self.devices != "auto":
            return self.nodes * self.devices
        return self.nodes * (1 if self.on_cpu else accelerators())

    @property
    def one_process(self) -> bool:
        """Whether one process trains, on one device."""
        return self.devices == 1 and self.nodes == 1


def accelerators() -> int:
    """How many GPUs, or other accelerators, this machine has."""
    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def require_devices(settings: DeviceSettings) -> None:
    """Refuse devices that are not there, before anything is read or written.

    Raises:
        InputError: naming the option.
    """
    found, on_cpu = accelerators(), settings.on_cpu
    if settings.accelerator == "gpu" and found == 0:
        raise InputError("--accelerator gpu: no GPU was found; give --accelerator cpu, or auto.")
    if settings.devices != "auto" and settings.devices < 1:
        raise InputError(f"--devices must be 1 or more, or auto, not {settings.devices}.")
    if not on_cpu and settings.devices != "auto" and settings.devices > found:
        raise InputError(f"--devices {settings.devices}: only {found} found; a larger --batch-size keeps the batch.")
    most = max(16, os.cpu_count() or 1)
    if on_cpu and settings.devices != "auto" and settings.devices > most:
        raise InputError(f"--devices {settings.devices}: each would be a process on this CPU; give {most} or less.")
    if on_cpu and settings.precision == "16-mixed":
        raise InputError("--precision 16-mixed needs a GPU; give 32-true or bf16-mixed.")


def training_device(settings: DeviceSettings) -> torch.device:
    """Where a run trains, for what is computed before it begins: of several GPUs that of this process."""
    if settings.accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
