"""Entry: the values logged under one name, until they are one value of an epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from raylit.metrics import torchmetric
from raylit.runtime.aliases import StateDict

if TYPE_CHECKING:
    from torchmetrics import Metric

SHORTEN_EVERY = 100  # values kept each as it is, so that an endless epoch does not grow
MOST_COPIES = 4  # on their way from the device; the oldest then began 400 values ago

Key = tuple[str | None, str, int | None]  # hook, name, number of the loader
Value = Tensor | float
# prog_bar, logger, on_step, on_epoch, reduce_fx, sync_dist, add_dataloader_idx, rank_zero_only
Settings = tuple[Any, ...]


class Part(NamedTuple):
    """The sum of one rank's values in an epoch, or their least or greatest, and their weight."""

    total: float
    weight: float
    is_double: bool


class Copy(NamedTuple):
    """Values on their way from the device, and their weights.

    `arrived` is a torch.cuda.Event.
    """

    values: Tensor
    weights: list[int]
    arrived: torch.cuda.Event


class StepOfAll(NamedTuple):
    """A step value over all ranks, which holds as long as this rank has logged no other."""

    own: Value | None
    value: float


class Entry:
    """The values logged under one name, in one hook, for one loader.

    Written by `Metrics`.

    Attributes:
        last: the newest value on this rank.
        fresh: whether this rank or another has logged a value in this epoch.
        is_known: whether all ranks have an entry under this key.
        reduced: the epoch's value over all ranks; None as long as it has not been reduced, and
            again once more is logged.
        parts: by rank, the sums that were last reduced.
        metric: a torchmetrics.Metric, which keeps its own sums.
        metric_path: where it is in the module; "" if it is elsewhere, None if there is no Metric.
    """

    __slots__ = (
        "copies",
        "dataloader_idx",
        "dtype",
        "fresh",
        "hook",
        "is_known",
        "last",
        "logger",
        "metric",
        "metric_before",
        "metric_path",
        "name",
        "on_epoch",
        "on_step",
        "parts",
        "prog_bar",
        "rank_zero_only",
        "reduce",
        "reduced",
        "settings",
        "step_of_all",
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
        # of Python numbers, in the hook where they are logged: float64 in the steps of 64-true
        self.dtype = _default_dtype()
        self.suffix = ""
        self.prog_bar = False
        self.logger = False
        self.rank_zero_only = False
        self.sync_step = False
        self.sync_epoch = True
        self.settings: Settings = ()
        self.metric: Metric | None = None
        self.metric_path: str | None = None
        self.last: Value | None = None
        self.step_of_all: StepOfAll | None = None
        self.is_known = False
        self.reset()

    def reset(self) -> None:
        """Forget the epoch."""
        # Not yet summed up: `values`, on whatever device, came after those of `copies`. Only means
        # have weights.
        self.values: list[Value] = []
        self.weights: list[int] = []
        self.copies: list[Copy] = []
        self.total: np.floating | None = None
        self.weight = 0
        self.parts: dict[int, Part] = {}
        self.reduced: Tensor | None = None
        self.fresh = False
        # what a Metric that is not in the module had taken in before this process
        self.metric_before: list[torchmetric.State] = []
        if self.metric is not None:
            self.metric.reset()

    def blank(self) -> Entry:
        """Return a copy without values, for the ranks that logged nothing under this name."""
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

    def state(self) -> StateDict:
        """Return the sums of this epoch as plain data."""
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
        state = {
            "arguments": [getattr(self, name) for name in arguments],
            "kept": {name: getattr(self, name) for name in kept},
            "total": total,
        }
        if self.metric_path == "":  # the states of those in the module are kept with it
            own = [] if self.metric is None else [torchmetric.state_of(self.metric)]
            state["metric"] = self.metric_before + own
        return state

    @classmethod
    def from_state(cls, state: StateDict, module: torch.nn.Module | None) -> Entry:
        """Return the Entry that `state` was taken of.

        Its settings are those of the next call of `log`.
        """
        entry = cls(*state["arguments"])
        for name, value in state["kept"].items():
            setattr(entry, name, value)
        entry.total = None if state["total"] is None else state["total"].numpy()[()]
        entry.metric_before = state.get("metric", [])
        if entry.metric_path and module is not None:
            entry.metric = module.get_submodule(entry.metric_path)  # type: ignore[assignment]
        return entry

    # ---- adding up ----

    def shorten(self) -> None:
        """Let the values take less room, without waiting for the device they are on."""
        stacked = _stack(self.values, self.dtype)
        weights = self.weights
        self.values = []
        self.weights = []
        if not stacked.is_cuda:
            self._add(stacked.cpu(), weights)
            return
        copy = stacked.to("cpu", non_blocking=True)  # to pinned memory
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(stacked.device))
        self.copies.append(Copy(copy, weights, arrived))
        self.take_in(MOST_COPIES)

    def take_in(self, most: int) -> None:
        """Add up the copies that have arrived; wait for the oldest if more than `most` have not."""
        while self.copies and (len(self.copies) > most or self.copies[0].arrived.query()):
            copy = self.copies.pop(0)
            copy.arrived.synchronize()
            self._add(copy.values, copy.weights)

    def fold(self) -> None:
        """Bring all values to the host and add them up, in the order they came."""
        self.take_in(0)
        if self.values:
            self._add(_stack(self.values, self.dtype).cpu(), self.weights)
            self.values = []
            self.weights = []

    def _add(self, values: Tensor, weights: list[int]) -> None:
        numbers = values.numpy()
        if self.reduce == "mean":
            numbers = numbers * np.asarray(weights, dtype=numbers.dtype)
            self.weight += sum(weights)
        if self.reduce in ("mean", "sum"):
            # add.accumulate rounds after every addition, as adding up batch by batch does; sum()
            # would add pairwise
            start = numbers.dtype.type(0) if self.total is None else self.total
            self.total = np.add.accumulate(np.concatenate(([start], numbers)))[-1]
            return
        before = [] if self.total is None else [self.total]
        pick = np.min if self.reduce == "min" else np.max
        self.total = pick(np.concatenate((before, numbers)).astype(numbers.dtype))

    # ---- the value of the epoch ----

    def local(self) -> Tensor | None:
        """Return the epoch's value so far on this rank alone; None if it logged nothing.

        Never stored: it is no value of all ranks, and more may be logged.
        """
        if self.metric is not None:
            return torchmetric.as_number(torchmetric.compute_alone(self.metric), self.name)
        self.fold()
        if self.total is None:
            return None
        value = self.total
        if self.reduce == "mean":
            with np.errstate(invalid="ignore", divide="ignore"):  # a mean of nothing is NaN
                value = value / value.dtype.type(self.weight)
        return _as_value(value.item(), value.dtype == np.float64)

    def part(self) -> Part | None:
        """Return this rank's part in the epoch's value of all; None if it logged nothing."""
        self.fold()
        if self.total is None:
            return None
        return Part(float(self.total), self.weight, self.total.dtype == np.float64)

    def reduce_parts(self) -> None:
        """Make `reduced` of the parts of all ranks."""
        parts = [self.parts[rank] for rank in sorted(self.parts)]
        value = combined(self.reduce, [part.total for part in parts])
        if self.reduce == "mean":
            weight = sum(part.weight for part in parts)
            value = sum(part.total for part in parts) / weight if weight else math.nan
        self.reduced = _as_value(value, any(part.is_double for part in parts))

    @property
    def step(self) -> Value | None:
        """The newest value: that of all ranks, if it was reduced since."""
        shared = self.step_of_all
        return shared.value if shared is not None and shared.own is self.last else self.last

    @property
    def shared_step(self) -> Value | None:
        """The value that was last reduced over the ranks."""
        return None if self.step_of_all is None else self.step_of_all.value


def combined(reduce: str, values: Sequence[float]) -> float:
    """Return one value of several; NaN if one of them is, which Python's min and max may hide."""
    if reduce == "mean":
        return sum(values) / len(values)
    if reduce == "sum":
        return sum(values)
    if any(math.isnan(value) for value in values):
        return math.nan
    return min(values) if reduce == "min" else max(values)


def _as_value(value: float, is_double: bool) -> Tensor:
    return torch.tensor(value, dtype=torch.float64 if is_double else torch.float32)


def _default_dtype() -> torch.dtype:
    dtype = torch.get_default_dtype()
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


def as_tensor(value: Value, dtype: torch.dtype) -> Tensor:
    """Return a logged value as a tensor without dimensions.

    Of `dtype`, unless it is a float32 or float64 tensor already.
    """
    if not isinstance(value, Tensor):
        return torch.tensor(value, dtype=dtype)
    if value.dtype not in (torch.float32, torch.float64):
        value = value.to(dtype)
    return value.reshape(()) if value.ndim else value


def _stack(values: list[Any], dtype: torch.dtype) -> Tensor:
    """Return logged values as one float32 or float64 tensor, on the device of those on one.

    Of `dtype` if they are neither.
    """
    if all(isinstance(value, (int, float)) for value in values):
        return torch.tensor(values, dtype=dtype)
    try:
        stacked = torch.stack(values).detach().reshape(-1)
    except (TypeError, RuntimeError):
        # numbers are among them, or tensors of several shapes or devices
        tensors = [as_tensor(value, dtype).detach() for value in values]
        devices = (tensor.device for tensor in tensors if tensor.device.type != "cpu")
        device = next(devices, torch.device("cpu"))
        stacked = torch.stack([tensor.to(device) for tensor in tensors])
    return stacked if stacked.dtype in (torch.float32, torch.float64) else stacked.to(dtype)
