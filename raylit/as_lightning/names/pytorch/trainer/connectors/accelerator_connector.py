"""Lightning's place for the choice of a Trainer's devices; packages ask it for a device."""

from __future__ import annotations

from typing import Any

from raylit import Trainer
from raylit.accelerators import CPUAccelerator, CUDAAccelerator, MPSAccelerator
from raylit.parallel.world import choose_device

_KINDS = {"cpu": CPUAccelerator, "cuda": CUDAAccelerator, "mps": MPSAccelerator}


class _AcceleratorConnector:
    """Tells the accelerator and the devices of a Trainer with such arguments.

    Attributes:
        accelerator: the accelerator.
        strategy: the strategy.
    """

    def __init__(
        self, accelerator: str = "auto", devices: int | str | list[int] = "auto", **arguments: Any
    ) -> None:
        trainer = Trainer(
            accelerator=accelerator,
            devices=devices,
            logger=False,
            enable_checkpointing=False,
            max_epochs=0,
            **arguments,
        )
        self.strategy = trainer.strategy
        kind = choose_device(trainer.accelerator, 0).type
        self._accelerator_flag = kind
        self.accelerator = _KINDS[kind]()
        if kind == "cuda":
            self._devices_flag: int | list[int] | None = CUDAAccelerator.parse_devices(
                1 if devices == "auto" else devices
            )
        elif kind == "cpu":
            self._devices_flag = CPUAccelerator.parse_devices(
                1 if devices in ("auto", -1, "-1") else devices
            )
        else:
            self._devices_flag = [0]
