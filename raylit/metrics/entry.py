"""Entry: the values logged under one name, until they are one value of an epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from raylit.errors import ConfigError

SHORTEN_EVERY = 100  # values kept each as it is, so that an endless epoch does not grow

Settings = tuple[
    Any, ...
]  # prog_bar, logger, on_step, on_epoch, reduce_fx, sync_dist, add_dataloader_idx, rank_zero_only


class Entry:
    """The values logged under one name, in one hook, for one loader."""

    __slots__ = (
        "computed",
        "dataloader_idx",
        "dtype",
        "fresh",
        "hook",
        "last",
        "logger",
        "metric",
        "metric_path",
        "name",
        "on_epoch",
        "on_step",
        "prog_bar",
        "rank_zero_only",
        "reduce",
        "settings",
        "stacked",
        "suffix",
        "sync_epoch",
        "sync_step",
        "total",
        "values",
        "weight",
        "weights",
    )

    def __init__(
        self,
        hook: str,
        name: str,
        reduce: str,
        on_step: bool,
        on_epoch: bool,
        dataloader_idx: int | None,
    ) -> None:
        self.hook = hook
        self.name = name
        self.reduce = reduce
        self.on_step = on_step
        self.on_epoch = on_epoch
        self.dataloader_idx = dataloader_idx
        self.dtype = (
            _default_dtype()
        )  # of Python numbers, in the hook where they are logged: float64 in the steps of 64-true
        self.suffix = ""
        self.prog_bar = self.logger = self.sync_step = self.rank_zero_only = False
        self.sync_epoch = True
        self.settings: Settings = ()
        self.metric: Any = None  # a torchmetrics.Metric, which keeps its own state
        self.metric_path: str | None = (
            None  # where in the module it is; None if there is no Metric, "" if it is elsewhere
        )
        self.last: Tensor | float | None = None
        self.reset()

    def reset(self) -> None:
        """Forget the epoch."""
        self.values: list[
            Tensor | float
        ] = []  # not yet summed up, oldest first, with their weights for a mean;
        self.stacked: list[Tensor] = []  # before them come these, which are many values each
        self.weights: list[int] = []
        self.total: np.floating[Any] | None = None
        self.weight = 0
        self.computed: Tensor | None = None
        self.fresh = False
        if self.metric is not None:
            self.metric.reset()

    def blank(self) -> Entry:
        """A copy without values, for the ranks that logged nothing under this name."""
        copy = Entry(
            self.hook, self.name, self.reduce, self.on_step, self.on_epoch, self.dataloader_idx
        )
        for setting in (
            "dtype",
            "settings",
            "logger",
            "metric_path",
            "prog_bar",
            "rank_zero_only",
            "suffix",
            "sync_epoch",
            "sync_step",
        ):
            setattr(copy, setting, getattr(self, setting))
        return copy

    def state(self) -> dict[str, Any]:
        """Return what was logged in this epoch as plain data."""
        self.fold()
        arguments = ("hook", "name", "reduce", "on_step", "on_epoch", "dataloader_idx")
        kept = (
            "suffix",
            "prog_bar",
            "logger",
            "sync_epoch",
            "sync_step",
            "rank_zero_only",
            "metric_path",
            "last",
            "weight",
            "fresh",
        )
        total = None if self.total is None else torch.from_numpy(np.asarray(self.total))
        return {
            "arguments": [getattr(self, name) for name in arguments],
            "kept": {name: getattr(self, name) for name in kept},
            "total": total,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], module: torch.nn.Module | None) -> Entry:
        """Return the Entry that `state` was taken of.

        Its settings are those of the next call of `log`.
        """
        entry = cls(*state["arguments"])
        for name, value in state["kept"].items():
            setattr(entry, name, value)
        entry.total = None if state["total"] is None else state["total"].numpy()[()]
        if entry.metric_path and module is not None:
            entry.metric = module.get_submodule(entry.metric_path)
        return entry

    def shorten(self) -> None:
        """Let the values take less room, without waiting for the device they are on."""
        self.stacked.append(_stack(self.values, self.dtype))
        self.values = []
        if self.stacked[-1].device.type == "cpu":
            self.fold()

    def fold(self) -> None:
        """Bring the values to the host and add them up, in the order they came."""
        if self.values:
            self.stacked.append(_stack(self.values, self.dtype))
        if not self.stacked:
            return
        numbers = (
            (self.stacked[0] if len(self.stacked) == 1 else torch.cat(self.stacked)).cpu().numpy()
        )
        self.values, self.stacked = [], []
        if self.reduce == "mean":
            numbers = numbers * np.asarray(self.weights, dtype=numbers.dtype)
            self.weight += sum(self.weights)
            self.weights = []
        if self.reduce in ("mean", "sum"):
            # add.accumulate rounds after every addition, as adding up batch by batch does; sum()
            # would add pairwise
            start = numbers.dtype.type(0) if self.total is None else self.total
            self.total = np.add.accumulate(np.concatenate(([start], numbers)))[-1]
        else:
            pick = np.min if self.reduce == "min" else np.max
            self.total = (
                pick(numbers)
                if self.total is None
                else pick(np.asarray([self.total, pick(numbers)]))
            )

    def local(self) -> Tensor:
        """The epoch's value on this rank alone."""
        if self.computed is None:
            if self.metric is not None:
                self.computed = _require_tensor(self.metric.compute(), self.name)
            else:
                self.fold()
                assert self.total is not None
                value = (
                    self.total / self.total.dtype.type(self.weight)
                    if self.reduce == "mean"
                    else self.total
                )
                self.computed = torch.tensor(
                    value.item(),
                    dtype=torch.float64 if value.dtype == np.float64 else torch.float32,
                )
        return self.computed


def _default_dtype() -> torch.dtype:
    dtype = torch.get_default_dtype()
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


def as_tensor(value: Tensor | float, dtype: torch.dtype) -> Tensor:
    """Return a logged value as a tensor without dimensions.

    Of `dtype`, unless it is a float32 or float64 tensor already.
    """
    if not isinstance(value, Tensor):
        return torch.tensor(value, dtype=dtype)
    if value.dtype not in (torch.float32, torch.float64):
        value = value.to(dtype)
    return value.reshape(()) if value.ndim else value


def _stack(values: list[Any], dtype: torch.dtype) -> Tensor:
    """Return logged values as one float32 or float64 tensor (`dtype` if they are neither), on the device of those that are on one."""
    if all(isinstance(value, (int, float)) for value in values):
        return torch.tensor(values, dtype=dtype)
    try:
        stacked = torch.stack(values).detach().reshape(-1)
    except (
        TypeError,
        RuntimeError,
    ):  # numbers are among them, or tensors of several shapes or devices
        tensors = [as_tensor(value, dtype).detach() for value in values]
        device = next(
            (tensor.device for tensor in tensors if tensor.device.type != "cpu"),
            torch.device("cpu"),
        )
        stacked = torch.stack([tensor.to(device) for tensor in tensors])
    return stacked if stacked.dtype in (torch.float32, torch.float64) else stacked.to(dtype)


def _require_tensor(value: Any, name: str) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise ConfigError(
            f"The Metric logged as {name!r} computed {value!r}; one number as a tensor is wanted."
            " Log the parts of it with log_dict."
        )
    return value.detach()
