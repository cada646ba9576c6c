"""ThroughputMonitor: brings samples per second and the like to the loggers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from raylit.core.callback import Callback
from raylit.runtime.aliases import Batch, StepOutput
from raylit.runtime.messages import warn_once
from raylit.runtime.throughput import Throughput, get_available_flops

if TYPE_CHECKING:
    from raylit.core.module import LightningModule
    from raylit.core.trainer import RunningTrainer


class StageCourse:
    """The counts of one stage so far.

    Attributes:
        throughput: the rates.
        totals: batches over all runs of the stage, by entry point; the x-axis of evaluations.
    """

    def __init__(self) -> None:
        self.throughput = Throughput()
        self.started = 0.0
        self.batches = self.samples = self.lengths = 0
        self.totals: Counter[str | None] = Counter()
        self.elapsed_s = 0.0


class ThroughputMonitor(Callback):
    """Logs the rates of `Throughput`, those of each stage below its own name, as `train/...`.

    If the module has an attribute `flops_per_batch` (see `measure_flops`), FLOPs are logged too,
    and with a known GPU their share of its peak. Only when values are due at the loggers does it
    wait for the GPU, to be exact.

    Args:
        batch_size_fn: from a batch to the number of its samples.
        length_fn: from a batch to the number of its items, such as tokens.
        kwargs: arguments of `Throughput`, such as `window_size`; `available_flops` for a GPU that
            is not in its table.

    Example:
        >>> trainer = Trainer(
        ...     callbacks=[
        ...         ThroughputMonitor(batch_size_fn=lambda batch: batch[0].size(0), window_size=10)
        ...     ]
        ... )
    """

    def __init__(
        self,
        batch_size_fn: Callable[[Batch], int],
        length_fn: Callable[[Batch], int] | None = None,
        **kwargs: Any,
    ) -> None:
        self.batch_size_fn = batch_size_fn
        self.length_fn = length_fn
        self.kwargs = kwargs
        self.available_flops: float | None = None
        self._courses: dict[str, StageCourse] = {}

    def setup(self, trainer: RunningTrainer, pl_module: LightningModule, stage: str) -> None:
        self.available_flops = self.kwargs.get("available_flops") or get_available_flops(
            trainer.world.device, trainer.precision_plugin.dtype
        )
        arguments = {
            "world_size": trainer.world_size,
            **self.kwargs,
            "available_flops": self.available_flops,
        }
        for name in ("train", "validate") if stage == "fit" else (stage,):
            self._courses.setdefault(name, StageCourse()).throughput = Throughput(**arguments)

    def on_train_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        self._start("train", anew=True)

    def on_train_epoch_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        self._courses["validate"].totals[trainer.state.fn] = (
            0  # the x-axis of validation begins anew in each epoch, as in Lightning
        )

    def on_train_batch_end(
        self,
        trainer: RunningTrainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        progress = trainer.progress
        # So that the step is in the time
        has_stepped = (
            progress.batch % trainer.accumulate_grad_batches == 0 or progress.is_last_batch
        )
        self._update(
            trainer, pl_module, "train", batch, trainer.should_log_step and has_stepped, step=None
        )

    def on_validation_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._start("validate", anew=trainer.state.fn == "fit")

    def on_validation_batch_end(
        self,
        trainer: RunningTrainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.sanity_checking:
            self._evaluated(trainer, pl_module, "validate", batch, batch_idx, dataloader_idx)

    def on_validation_end(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        # The time of the validation is none of training's
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            train = self._courses["train"]
            validation = self._courses["validate"]
            train.started = validation.started + validation.elapsed_s - train.elapsed_s

    def on_test_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        self._start("test")

    def on_test_batch_end(
        self,
        trainer: RunningTrainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._evaluated(trainer, pl_module, "test", batch, batch_idx, dataloader_idx)

    def on_predict_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        self._start("predict")

    def on_predict_batch_end(
        self,
        trainer: RunningTrainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._evaluated(trainer, pl_module, "predict", batch, batch_idx, dataloader_idx)

    def _start(self, stage: str, anew: bool = False) -> None:
        course = self._courses[stage]
        if anew:
            course.throughput.reset()
            course.batches = course.samples = course.lengths = 0
        course.elapsed_s = 0.0
        course.started = time.perf_counter()

    def _evaluated(
        self,
        trainer: RunningTrainer,
        pl_module: LightningModule,
        stage: str,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        is_due = trainer.should_log_batch(batch_idx, dataloader_idx)
        self._update(
            trainer,
            pl_module,
            stage,
            batch,
            is_due,
            step=self._courses[stage].totals[trainer.state.fn] + 1,
        )

    def _update(
        self,
        trainer: RunningTrainer,
        pl_module: LightningModule,
        stage: str,
        batch: Batch,
        is_due: bool,
        step: int | None,
    ) -> None:
        """Count a batch, and log if it is time to."""
        if not trainer.is_global_zero:
            return
        course = self._courses[stage]
        if is_due and trainer.world.device.type == "cuda":
            torch.cuda.synchronize()
        course.elapsed_s = time.perf_counter() - course.started
        with torch.inference_mode():
            course.samples += self.batch_size_fn(batch)
            if self.length_fn is not None:
                course.lengths += self.length_fn(batch)
        course.batches += 1
        course.totals[trainer.state.fn] += 1
        flops = getattr(pl_module, "flops_per_batch", None)
        if flops is None:
            warn_once(
                f"ThroughputMonitor counts no FLOPs: {type(pl_module).__name__} has no attribute"
                " flops_per_batch (see measure_flops)."
            )
        lengths = None if self.length_fn is None else course.lengths
        course.throughput.update(
            time=course.elapsed_s,
            batches=course.batches,
            samples=course.samples,
            lengths=lengths,
            flops=flops,
        )
        if is_due:
            separator = course.throughput.separator
            trainer.log_metrics(
                {
                    f"{stage}{separator}{name}": value
                    for name, value in course.throughput.compute().items()
                },
                step=step,
            )
