"""SpikeDetection: ends training when the loss jumps, and writes down which batches to leave out."""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from raylit.core.callback import Callback
from raylit.errors import ConfigError, TrainingSpikeException
from raylit.runtime.aliases import Batch, StateDict, StepOutput

if TYPE_CHECKING:
    from raylit.core.module import LightningModule
    from raylit.core.trainer import RunningTrainer

JUDGED_TOGETHER = 16  # batches


class SpikeDetection(Callback):
    """Ends training on all ranks when a rank's loss jumps away from the mean of its last ones.

    It writes down the batches to leave out. These are the batch of the jump, whose data may be
    wrong, and the one before, which may have spoilt the weights. A value is a spike if it is worse
    than the one before and as far from the mean as both tolerances say. On one CPU every batch is
    judged at once. On a GPU that would make each batch wait for the device, and on several ranks
    for the others: there 16 batches are judged together, and at the end of an epoch the rest, so
    that training ends up to 15 batches late. The batches written down are exact, but a checkpoint
    may have been saved in between: go on from one that was saved before the spike.

    Args:
        mode: `min` if a lower loss is better, `max` if a higher one is.
        window: how many values the mean is taken of.
        warmup: how many batches of each epoch are not judged.
        atol: how far from the mean a spike is at least. None: any distance.
        rtol: the same as a multiple of the mean. None: any distance.
        exclude_batches_path: the JSON file for the numbers of batches within the epoch, or its
            folder; by default in `default_root_dir`.
        finite_only: whether NaN and infinity are spikes. False: they are left out of the mean, and
            infinity is judged as any value.

    Raises:
        ConfigError: `mode` is neither `min` nor `max`, or the window is empty.
        TrainingSpikeException: while training, when there was a spike.

    Example:
        >>> trainer = Trainer(
        ...     max_epochs=10, callbacks=[SpikeDetection(window=50, warmup=20, rtol=3.0)]
        ... )
    """

    def __init__(
        self,
        mode: Literal["min", "max"] = "min",
        window: int = 10,
        warmup: int = 1,
        atol: float | None = None,
        rtol: float | None = 2.0,
        exclude_batches_path: str | os.PathLike[str] | None = None,
        finite_only: bool = True,
    ) -> None:
        if mode not in ("min", "max"):
            raise ConfigError(
                f"SpikeDetection(mode={mode!r}) is not known. Use 'min' if a lower loss is better,"
                " 'max' if a higher one is."
            )
        if window < 1:
            raise ConfigError(
                f"SpikeDetection(window={window}) leaves nothing to take the mean of. Give a number"
                " from 1 on, such as 10."
            )
        self.mode = mode
        self.warmup = warmup
        self.atol = atol
        self.rtol = rtol
        self.exclude_batches_path = exclude_batches_path
        self.finite_only = finite_only
        self.bad_batches: list[int] = []
        self.last_val = 0.0
        self._values: deque[float] = deque(maxlen=window)
        # Batches not judged yet, and their losses where they were computed
        self._pending: list[tuple[int, Tensor]] = []

    def setup(self, trainer: RunningTrainer, pl_module: LightningModule, stage: str) -> None:
        self._pending = []

    def on_train_batch_end(
        self,
        trainer: RunningTrainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if loss is not None and not isinstance(loss, Tensor):
            raise TypeError(
                "SpikeDetection needs the loss as a tensor, but training_step gave"
                f" {type(loss).__name__}."
            )
        if loss is not None:  # else training_step left the batch out
            self._pending.append((batch_idx, loss.detach()))
        at_once = trainer.world.size == 1 and pl_module.device.type == "cpu"
        # By the number of the batch: another rank may have left out other batches
        if at_once or (batch_idx + 1) % JUDGED_TOGETHER == 0:
            self._judge_pending(trainer)

    def on_train_epoch_end(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        self._judge_pending(trainer)

    def state_dict(self) -> StateDict:
        return {
            "last_val": self.last_val,
            "values": list(self._values),
            "bad_batches": self.bad_batches,
            "pending": list(
                zip([number for number, _ in self._pending], self._losses(), strict=True)
            ),
        }

    def load_state_dict(self, state_dict: StateDict) -> None:
        last = state_dict["last_val"]
        self.last_val = last if math.isfinite(last) else 0.0
        self.bad_batches = list(state_dict["bad_batches"])
        self._values.clear()
        self._values.extend(filter(math.isfinite, state_dict.get("values", ())))
        self._pending = [
            (number, torch.tensor(loss)) for number, loss in state_dict.get("pending", ())
        ]

    def _losses(self) -> list[float]:
        """Bring the pending losses to the host, in one copy."""
        if not self._pending:
            return []
        device = self._pending[-1][1].device
        losses: list[float] = torch.stack(
            [loss.float().mean().to(device) for _, loss in self._pending]
        ).tolist()
        return losses

    def _judge_pending(self, trainer: RunningTrainer) -> None:
        """Judge the pending batches, in their order.

        All ranks end training with the first spike of any.
        """
        numbers = [number for number, _ in self._pending]
        judged = zip(numbers, self._losses(), strict=True)
        self._pending = []
        first = next((number for number, loss in judged if self._is_spike(number, loss)), None)
        firsts = trainer.world.all_gather_object(first)
        spikes = [number for number in firsts if number is not None]
        if spikes:
            self._end(trainer, min(spikes))

    def _is_spike(self, batch_idx: int, loss: float) -> bool:
        """Judge one loss, and take it into the mean if it is none."""
        if batch_idx >= self.warmup and self._is_far(loss):
            return True
        # a NaN would make the mean, and with it every distance, NaN for a whole window
        if math.isfinite(loss):
            self._values.append(loss)
            self.last_val = loss
        return False

    def _is_far(self, loss: float) -> bool:
        if self.finite_only and not math.isfinite(loss):
            return True
        if loss <= self.last_val if self.mode == "min" else loss >= self.last_val:
            return False
        mean = sum(self._values) / len(self._values) if self._values else math.nan
        distance = abs(loss - mean)
        return (self.atol is None or distance >= abs(self.atol)) and (
            self.rtol is None or distance >= abs(self.rtol * mean)
        )

    def _end(self, trainer: RunningTrainer, batch_idx: int) -> None:
        """Write the batches down and end training."""
        self.bad_batches += [batch_idx - 1, batch_idx]
        path = Path(
            trainer.default_root_dir
            if self.exclude_batches_path is None
            else self.exclude_batches_path
        )
        if path.suffix != ".json":
            path = path / "skip_batches.json"
        if trainer.is_global_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self.bad_batches, indent=4))
        raise TrainingSpikeException(batch_idx)
