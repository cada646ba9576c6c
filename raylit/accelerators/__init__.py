"""Lightning's place for the devices that ranks compute on, as in `Trainer(accelerator="gpu")`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from raylit.errors import ConfigError
from raylit.parallel.world import Accelerator

__all__ = [
    "Accelerator",
    "CPUAccelerator",
    "CUDAAccelerator",
    "MPSAccelerator",
    "find_usable_cuda_devices",
]


class CPUAccelerator(Accelerator):
    """Ranks compute on the CPU."""

    name = "cpu"

    @staticmethod
    def parse_devices(devices: int | str | Sequence[int]) -> int:
        """Return how many ranks a number or a text means.

        Raises:
            ConfigError: it means none.
        """
        number = int(str(devices)) if str(devices).isdigit() else 0
        if number < 1:
            raise ConfigError(
                f"`devices` selected with `CPUAccelerator` should be an int > 0, but it is"
                f" {devices!r}. Give a whole number of at least 1."
            )
        return number

    @staticmethod
    def get_parallel_devices(devices: int | str) -> list[torch.device]:
        """Return a device for each rank."""
        return [torch.device("cpu")] * CPUAccelerator.parse_devices(devices)

    @staticmethod
    def auto_device_count() -> int:
        """Return how many ranks `devices="auto"` means."""
        return 1

    @staticmethod
    def is_available() -> bool:
        """Tell whether this machine has one."""
        return True


class CUDAAccelerator(Accelerator):
    """Each rank computes on a GPU of its own."""

    name = "cuda"

    @staticmethod
    def parse_devices(devices: int | str | Sequence[int]) -> list[int] | None:
        """Return the numbers of the GPUs that a number, a text or a list means; None for none."""
        if isinstance(devices, (list, tuple)):
            return list(devices) or None
        text = str(devices)
        if "," in text:
            return [int(part) for part in text.split(",") if part.strip()]
        number = torch.cuda.device_count() if text in ("-1", "auto") else int(text)
        return list(range(number)) or None

    @staticmethod
    def get_parallel_devices(devices: list[int]) -> list[torch.device]:
        """Return a device for each rank."""
        return [torch.device("cuda", index) for index in devices]

    @staticmethod
    def auto_device_count() -> int:
        """Return how many ranks `devices="auto"` means."""
        return torch.cuda.device_count()

    @staticmethod
    def is_available() -> bool:
        """Tell whether this machine has one."""
        return torch.cuda.is_available()


class MPSAccelerator(Accelerator):
    """The one rank computes on the GPU of a Mac."""

    name = "mps"

    @staticmethod
    def auto_device_count() -> int:
        """Return how many ranks `devices="auto"` means."""
        return 1

    @staticmethod
    def is_available() -> bool:
        """Tell whether this machine has one."""
        return torch.backends.mps.is_available()


def find_usable_cuda_devices(num_devices: int = -1) -> list[int]:
    """Return the numbers of GPUs that this process can compute on.

    Args:
        num_devices: how many; -1 for all.

    Raises:
        ValueError: there are fewer GPUs.
        RuntimeError: fewer of them can be used.
    """
    if num_devices == 0:
        return []
    visible = torch.cuda.device_count()
    if num_devices > visible:
        raise ValueError(
            f"You requested to find {num_devices} devices but this machine only has {visible} GPUs."
            " Ask for fewer, or use -1 for all."
        )
    usable = []
    for index in range(visible):
        try:
            torch.tensor(0, device=torch.device("cuda", index))
        except RuntimeError:  # another process holds it exclusively
            continue
        usable.append(index)
        if len(usable) == num_devices:
            break
    if num_devices != -1 and len(usable) != num_devices:
        raise RuntimeError(
            f"You requested to find {num_devices} devices but only {len(usable)} of {visible} can"
            " be used: other processes hold the rest. Ask for fewer, or end those."
        )
    return usable
