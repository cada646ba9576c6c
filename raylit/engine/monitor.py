"""Measurements of a fit that raylit makes by itself, for loggers that want them.

Drawn when step values go to the loggers, on rank 0: nothing is measured in between, and nothing
waits for the device or for other ranks more than the values of the user do.

    perf/step_time_s, perf/samples_per_s    since the values before, without validation
    perf/data_wait                          the share of that time in which data was waited for
    perf/tflops_per_s, perf/mfu             of one device, where the module has `flops_per_batch`;
                                            mfu is their share of the device's peak, where
                                            known
    perf/gpu_memory_megabytes               the most that tensors took
    optim/lr                                of each group of parameters
    optim/grad_norm                         as the optimizer got the gradients: after clipping
    optim/loss_scale                        of `16-mixed`
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from raylit.metrics.metrics import to_numbers
from raylit.runtime.batch import size_of
from raylit.runtime.messages import warn_once
from raylit.runtime.throughput import peak_flops

if TYPE_CHECKING:
    from raylit.core.logger import Logger
    from raylit.engine.run import Run


class Monitor:
    """Measures one fit.

    Args:
        run: the run.
        loggers: those that may want something.
    """

    def __init__(self, run: Run, loggers: Sequence[Logger]) -> None:
        self._run = run
        self._loggers = [one for one in loggers if one.measured_groups]
        wanted = {group for logger in self._loggers for group in logger.measured_groups}
        self._perf = "perf" in wanted
        self._optim = "optim" in wanted
        self._before = (0, 0.0, 0.0)
        self._peak: int | None = None
        if self._perf and run.device.type == "cuda":
            name = torch.cuda.get_device_name(run.device)
            self._peak = peak_flops(name, run.precision.dtype)

    def log(self) -> None:
        """Send the measurements since the last time to the loggers that want them."""
        if not (self._perf or self._optim):
            return
        values = {**(self._speed() if self._perf else {}), **(self._steps() if self._optim else {})}
        if not values:
            return
        numbers = to_numbers(values)
        for logger in self._loggers:
            groups = logger.measured_groups
            own = {key: one for key, one in numbers.items() if key.partition("/")[0] in groups}
            if own:
                logger.log_metrics(own, self._run.progress.log_steps)

    def _speed(self) -> dict[str, float | Tensor]:
        run = self._run
        wait = run.data.wait
        now = (run.progress.total_batches, wait.trained_s, wait.waited_s)
        batches, trained_s, waited_s = (
            one - before for one, before in zip(now, self._before, strict=True)
        )
        is_first = self._before[1] == 0.0
        self._before = now
        if batches < 1 or trained_s <= 0 or is_first:  # the first has what is done once in it
            return {}
        per_step = run.limits.accumulate_grad_batches
        found: dict[str, float | Tensor] = {
            "perf/step_time_s": trained_s * per_step / batches,
            "perf/data_wait": min(waited_s / trained_s, 1.0),
        }
        size = self._batch_size()
        if size:
            found["perf/samples_per_s"] = size * batches * run.world.size / trained_s
        flops = getattr(run.module, "flops_per_batch", None)  # as ThroughputMonitor takes it
        if isinstance(flops, (int, float)) and flops:  # a method of that name is the user's own
            per_s = flops * batches / trained_s
            found["perf/tflops_per_s"] = per_s / 1e12
            if self._peak:
                found["perf/mfu"] = per_s / self._peak
        if run.device.type == "cuda":
            found["perf/gpu_memory_megabytes"] = torch.cuda.max_memory_allocated(run.device) / 1e6
        return found

    def _batch_size(self) -> int | None:
        """Return the samples of the batch that runs; None if it does not tell."""
        metrics = self._run.metrics
        if metrics.batch_size is None and isinstance(metrics.batch, (Tensor, list, tuple, dict)):
            try:
                return size_of(metrics.batch, check=False)
            except Exception as error:
                warn_once(f"perf/samples_per_s is left out: {error}", key="samples_per_s")
        return metrics.batch_size

    def _steps(self) -> dict[str, float | Tensor]:
        run = self._run
        found = dict(self._learning_rates())
        scaler = run.precision.scaler
        if scaler is not None:
            found["optim/loss_scale"] = scaler.get_scale()
        if not run.strategy.shards:  # where a norm takes all ranks
            gradients = [
                parameter.grad
                for optimizer in run.optimizers
                for group in optimizer.param_groups
                for parameter in group["params"]
                if parameter.grad is not None and not parameter.grad.is_sparse
            ]
            if gradients:
                found["optim/grad_norm"] = torch.nn.utils.get_total_norm(gradients).detach()
        return found

    def _learning_rates(self) -> Iterator[tuple[str, float | Tensor]]:
        optimizers = self._run.optimizers
        for number, optimizer in enumerate(optimizers):
            groups = optimizer.param_groups
            name = "optim/lr" if len(optimizers) == 1 else f"optim/lr_{number}"
            for place, group in enumerate(groups):
                of_group = "" if len(groups) == 1 else f"_{group.get('name', f'pg{place + 1}')}"
                yield f"{name}{of_group}", group["lr"]
