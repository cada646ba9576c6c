"""DeviceStatsMonitor: brings the use of memory and processor to the loggers."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from raylit.core.callback import Callback
from raylit.core.logger import as_loggers
from raylit.errors import ConfigError, MissingPackageError
from raylit.runtime.aliases import Batch, StepOutput

if TYPE_CHECKING:
    from raylit.core.module import LightningModule
    from raylit.core.trainer import RunningTrainer


class DeviceStatsMonitor(Callback):
    """Logs statistics of rank 0's device before and after the batches whose step values are logged.

    The names are `DeviceStatsMonitor.<hook>/<statistic>`: for the CPU `cpu_percent`,
    `cpu_vm_percent` (memory) and `cpu_swap_percent` of the whole machine, for CUDA those of
    `torch.cuda.memory_stats` such as `allocated_bytes.all.peak`. Reading them does not wait for the
    device.

    Args:
        cpu_stats: whether to log those of the CPU. None: if it is the device.

    Raises:
        ConfigError: at the start of a fit, if there is no logger.
        MissingPackageError: likewise, if psutil is wanted and not installed.

    Example:
        >>> trainer = Trainer(callbacks=[DeviceStatsMonitor()], log_every_n_steps=10)
    """

    def __init__(self, cpu_stats: bool | None = None) -> None:
        self._cpu_stats = cpu_stats

    def setup(self, trainer: RunningTrainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and not trainer.loggers and not trainer.fast_dev_run:
            raise ConfigError(
                "Cannot use `DeviceStatsMonitor` callback with `Trainer(logger=False)`: "
                "DeviceStatsMonitor has no logger to write to. Give the Trainer one, such as"
                " logger=CSVLogger('logs'), or leave it out."
            )
        kind = trainer.world.device.type
        if (
            self._cpu_stats or kind == "mps" or (self._cpu_stats is None and kind == "cpu")
        ) and find_spec("psutil") is None:
            raise MissingPackageError("psutil", "DeviceStatsMonitor (cpu_stats=False does without)")

    def on_train_batch_start(
        self, trainer: RunningTrainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self._log_stats(trainer, "on_train_batch_start", trainer.should_log_step)

    def on_train_batch_end(
        self,
        trainer: RunningTrainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        self._log_stats(trainer, "on_train_batch_end", trainer.should_log_step)

    def on_validation_batch_start(
        self,
        trainer: RunningTrainer,
        pl_module: LightningModule,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._log_stats(
            trainer,
            "on_validation_batch_start",
            trainer.should_log_batch(batch_idx, dataloader_idx),
        )

    def on_validation_batch_end(
        self,
        trainer: RunningTrainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._log_stats(
            trainer, "on_validation_batch_end", trainer.should_log_batch(batch_idx, dataloader_idx)
        )

    def on_test_batch_start(
        self,
        trainer: RunningTrainer,
        pl_module: LightningModule,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._log_stats(
            trainer, "on_test_batch_start", trainer.should_log_batch(batch_idx, dataloader_idx)
        )

    def on_test_batch_end(
        self,
        trainer: RunningTrainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._log_stats(
            trainer, "on_test_batch_end", trainer.should_log_batch(batch_idx, dataloader_idx)
        )

    def _log_stats(self, trainer: RunningTrainer, hook: str, is_due: bool) -> None:
        if not is_due or not trainer.loggers or not trainer.is_global_zero:
            return
        values = stats_of(trainer.world.device, self._cpu_stats)
        if values:
            named = {
                f"{type(self).__qualname__}.{hook}/{name}": value for name, value in values.items()
            }
            for logger in as_loggers(trainer.loggers):
                logger.log_metrics(metrics=named, step=trainer.progress.log_steps)


def stats_of(device: torch.device, cpu_stats: bool | None) -> dict[str, float]:
    """Return statistics of a device, and those of the CPU if they are wanted.

    Always, never, or (None) if it is the device.
    """
    values: dict[str, float] = {}
    if device.type == "cuda":
        values = dict(torch.cuda.memory_stats(device))
    elif device.type == "mps":
        values = {f"M1_{name.removeprefix('cpu_')}": value for name, value in _cpu_stats().items()}
    if cpu_stats or (cpu_stats is None and device.type == "cpu"):
        values |= _cpu_stats()
    return values


def _cpu_stats() -> dict[str, float]:
    import psutil

    return {
        "cpu_vm_percent": psutil.virtual_memory().percent,
        "cpu_percent": psutil.cpu_percent(),
        "cpu_swap_percent": psutil.swap_memory().percent,
    }
