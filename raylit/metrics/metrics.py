"""What `self.log` fills and when it is reduced.

`log` resolves its arguments once per key into an `Entry`; from then on a call only appends the
detached value to a list. No collective, no copy from the device and no conversion to a Python
number happens in it. Values become numbers in bulk, when somebody looks: the loggers every
`log_every_n_steps`, the progress bar when it draws, callbacks when an epoch ends. Over ranks, sums
and weights are gathered in float64 and divided once, so an epoch's mean is exact whatever the
ranks' batch counts are, and a key that only some ranks logged is no hazard.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from raylit.core.hooks import HOOKS
from raylit.errors import ConfigError
from raylit.metrics.entry import SHORTEN_EVERY, Entry, Settings, as_tensor
from raylit.runtime.batch import size_of

if TYPE_CHECKING:
    from raylit.parallel import World

REDUCTIONS = ("mean", "sum", "min", "max")
SYNC_DIST, ADD_DATALOADER_IDX = 5, 6  # their places among the settings
PICK: dict[str, Callable[[list[float]], float]] = {
    "sum": sum,
    "min": min,
    "max": max,
}  # of the ranks' values


class Metrics:
    """All that is logged in a run.

    Attributes:
        hook: name of the event that runs now; the loop sets it. It decides what `log` may do.
        batch: the batch being worked on, for its size.
        dataloader_idx: number of the evaluation loader being read, None if there is only one.
        entries: what the running loop logs, by hook, name and loader; `train_entries` are those of
            training.
        in_batch: whether a batch of the running loop has begun and its epoch has not ended: then
            step values count, afterwards epoch values.
    """

    def __init__(self, world: World, module: torch.nn.Module | None = None) -> None:
        self.world = world
        self.module = module
        self.entries: dict[tuple[Any, ...], Entry] = {}
        self.train_entries = self.entries
        self.training = True
        self.hook: str | None = None
        self.batch: Any = None
        self.batch_size: int | None = None
        self.dataloader_idx: int | None = None
        self.in_batch = False
        self.callback: dict[str, Tensor] = {}
        self.logged: dict[str, Tensor] = {}
        self.progress_bar: dict[str, Tensor] = {}

    # ---- filled by users ----

    def log(
        self, name: str, value: Any, settings: Settings, enable_graph: bool, batch_size: int | None
    ) -> None:
        """See `LightningModule.log`."""
        key = (self.hook, name, self.dataloader_idx if settings[ADD_DATALOADER_IDX] else None)
        entry = self.entries.get(key)
        if entry is None:
            entry = self.entries[key] = self._register(name, value, settings)
        elif not entry.settings:  # it came from a checkpoint
            entry.settings = settings
        elif (
            entry.settings != settings and not _differ_in_sync_only(entry.settings, settings)
        ) or entry.dataloader_idx != self.dataloader_idx:
            raise ConfigError(
                f"self.log({name!r}, ...) was called twice in {self.hook} with different arguments,"
                " or for two loaders with add_dataloader_idx=False. Use the same arguments, or"
                " another name."
            )
        if entry.metric is not None:
            if entry.metric is not value:
                self._replace(entry, value)
            entry.last = value._forward_cache
            entry.computed = None
            entry.fresh = True
            return
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ConfigError(
                    f"self.log({name!r}, value): the tensor has shape {tuple(value.shape)}, but one"
                    " element is wanted. Reduce it first, or log its parts."
                )
            # cloned, because the user may go on to change the tensor in place
            value = value.clone() if enable_graph else value.detach().clone()
        elif isinstance(value, (Decimal, Fraction)):
            value = float(value)
        elif not isinstance(value, (int, float, np.number)):
            raise ConfigError(
                f"self.log({name!r}, {value!r}): a {type(value).__name__} cannot be logged. Give a"
                " number, a tensor with one element or a torchmetrics.Metric."
            )
        entry.last = value
        entry.fresh = True
        if entry.on_epoch:
            if entry.reduce == "mean":
                if batch_size is None:
                    batch_size = self.batch_size
                    if batch_size is None:
                        batch_size = self.batch_size = (
                            1 if self.batch is None else size_of(self.batch, check=not entry.weight)
                        )
                entry.weights.append(batch_size)
            entry.values.append(value)
            entry.computed = None
            if len(entry.values) == SHORTEN_EVERY:
                entry.shorten()

    def _register(self, name: str, value: Any, settings: Settings) -> Entry:
        """Check the arguments of the first call under a key, and keep them."""
        (
            prog_bar,
            logger,
            on_step,
            on_epoch,
            reduce_fx,
            sync_dist,
            add_dataloader_idx,
            rank_zero_only,
        ) = settings
        hook, dataloader_idx = self.hook, self.dataloader_idx
        rule = HOOKS[hook].log if hook in HOOKS else None
        if hook is None or rule is None:
            where = f"inside {hook}" if hook else "here: no hook of the loop is running"
            raise ConfigError(
                f"self.log({name!r}, ...) cannot be used {where}. Write to the logger itself:"
                f" self.logger.log_metrics({{{name!r}: ...}})."
            )
        if "/dataloader_idx_" in name:
            raise ConfigError(
                f"self.log({name!r}, ...): the loader's number is appended to the name by itself."
                " Leave it out."
            )
        if isinstance(value, dict):
            raise ConfigError(
                f"self.log({name!r}, ...) got a dict. Use self.log_dict, whose values must be"
                " numbers, not dicts."
            )
        default_step, default_epoch, may_step = rule
        on_step = default_step if on_step is None else on_step
        on_epoch = default_epoch if on_epoch is None else on_epoch
        if not on_step and not on_epoch:
            raise ConfigError(
                f"self.log({name!r}, on_step=False, on_epoch=False) records nothing. Set one of"
                " them."
            )
        if not may_step and (on_step or not on_epoch):
            raise ConfigError(
                f"self.log({name!r}, on_step=True) is not possible in {hook}, which runs once per"
                " epoch. Use on_epoch=True."
            )
        entry = Entry(hook, name, _reduction(reduce_fx, name), on_step, on_epoch, dataloader_idx)
        entry.settings = settings
        entry.prog_bar = prog_bar
        entry.logger = logger is not False
        entry.rank_zero_only = rank_zero_only
        entry.sync_epoch, entry.sync_step = sync_dist is not False, bool(sync_dist)
        if add_dataloader_idx and dataloader_idx is not None:
            entry.suffix = f"/dataloader_idx_{dataloader_idx}"
        if is_metric(value):
            entry.metric = value
            named = self.module.named_modules() if self.module is not None else ()
            entry.metric_path = next((path for path, one in named if one is value), "")
        return entry

    @staticmethod
    def _replace(entry: Entry, value: Any) -> None:
        """Take another Metric under the same name, which is possible between epochs only.

        Its state is that of the epoch.
        """
        if entry.fresh or not is_metric(value):
            raise ConfigError(
                f"self.log({entry.name!r}, ...) was given a Metric before, and now {value!r}. Make"
                " the Metric once, in __init__, and log the same one."
            )
        entry.metric = value

    # ---- driven by the loop ----

    def begin_batch(self, batch: Any, dataloader_idx: int | None = None) -> None:
        """A batch begins: values logged from now on are its."""
        self.batch = batch
        self.batch_size = None
        self.dataloader_idx = dataloader_idx
        self.in_batch = True

    def end_epoch(self) -> None:
        """The last batch has ended: from now on epoch values count."""
        if self.batch is not None:
            self.refresh()  # else a validation came after it, whose values are newer
        self.batch = None
        self.batch_size = None
        self.dataloader_idx = None
        self.in_batch = False

    def reset(self) -> None:
        """Forget the values of the loop that ended; what `callback` and `logged` hold remains."""
        for entry in self.entries.values():
            entry.reset()
        self.in_batch = False

    @contextmanager
    def switched(self, entries: dict[tuple[Any, ...], Entry], training: bool) -> Iterator[None]:
        """Within, between two batches of a loop, another's entries are filled."""
        self.refresh()
        before = (self.entries, self.training, self.in_batch, self.hook)
        self.entries = entries
        self.training = training
        self.in_batch = False
        self.batch = None
        self.batch_size = None
        self.dataloader_idx = None
        try:
            yield
        finally:
            self.entries, self.training, self.in_batch, self.hook = before
            self.batch = None
            self.batch_size = None
            self.dataloader_idx = None

    def is_of_training(self, name: str) -> bool:
        """Tell whether training has logged a value of this name."""
        return any(
            name in (entry.name, f"{entry.name}_step", f"{entry.name}_epoch")
            for entry in self.train_entries.values()
        )

    def clear(self) -> None:
        """Forget everything that was logged."""
        self.callback = {}
        self.logged = {}
        self.progress_bar = {}

    # ---- kept in checkpoints ----

    def values(self) -> dict[str, dict[str, Tensor]]:
        """Return the latest values of everything, as callbacks, loggers and progress bar see them."""
        self.refresh()
        return {"callback": self.callback, "logged": self.logged, "progress_bar": self.progress_bar}

    def load_values(self, values: dict[str, dict[str, Tensor]]) -> None:
        """Take what `values` returned."""
        self.callback, self.logged, self.progress_bar = (
            dict(values[name]) for name in ("callback", "logged", "progress_bar")
        )

    def partial_sums(self) -> list[dict[str, Any]]:
        """Return what training logged in the epoch that runs, as plain data."""
        return [entry.state() for entry in self.train_entries.values()]

    def load_partial_sums(self, states: list[dict[str, Any]]) -> None:
        """Take what `partial_sums` returned."""
        for state in states:
            entry = Entry.from_state(state, self.module)
            self.train_entries[(entry.hook, entry.name, entry.dataloader_idx)] = entry
        self.in_batch = True  # values of the epoch are not to be had before its end

    def reduce_over_ranks(self) -> None:
        """Make the epoch's values those of all ranks.

        Every rank must call it, whatever it logged: it is one collective.
        """
        if self.world.size == 1:
            return
        mine = []
        for key, entry in self.entries.items():
            counts = entry.metric is not None or (
                entry.sync_epoch and (self.world.is_zero or not entry.rank_zero_only)
            )
            if counts and entry.fresh and entry.on_epoch and entry.computed is None:
                entry.fold()
                mine.append((key, entry.blank(), entry.total, entry.weight))
        found: dict[Any, list[tuple[Entry, Any, int]]] = {}
        for one in self.world.all_gather_object(mine):
            for key, *part in one:
                found.setdefault(key, []).append(tuple(part))
        for key, parts in found.items():
            entry = self.entries.setdefault(
                key, parts[0][0]
            )  # other ranks may have logged it, and this one not
            entry.fresh = True
            if entry.metric_path is not None:
                self._take_part(entry, everywhere=len(parts) == self.world.size)
                continue
            sums = [float(total) for _, total, _ in parts]
            value = (
                sum(sums) / sum(weight for *_, weight in parts)
                if entry.reduce == "mean"
                else PICK[entry.reduce](sums)
            )
            is_double = any(total.dtype == np.float64 for _, total, _ in parts)
            entry.computed = torch.tensor(
                value, dtype=torch.float64 if is_double else torch.float32
            )

    def _take_part(self, entry: Entry, everywhere: bool) -> None:
        """Compute a Metric on all ranks at once, as its own collectives want it, also on those that had nothing to add to it."""
        if not everywhere and not entry.metric_path:
            raise ConfigError(
                f"The Metric logged as {entry.name!r} was logged on some ranks only, and the others"
                " do not find it in the module. Make it an attribute in __init__, or log it on all"
                " ranks."
            )
        if entry.metric is None:
            assert self.module is not None
            entry.metric = self.module.get_submodule(str(entry.metric_path))
        entry.local()

    def reduce_steps_over_ranks(self) -> None:
        """Make the step values logged with `sync_dist=True` those of all ranks.

        Called by all ranks when the loggers are due.
        """
        entries = {
            key: entry
            for key, entry in self.entries.items()
            if entry.sync_step and entry.on_step and entry.fresh and entry.metric is None
        }
        if self.world.size == 1 or not entries:
            return
        gathered = self.world.all_gather_object(
            {key: float(_number(entry.last)) for key, entry in entries.items()}
        )
        for key, entry in entries.items():
            values = [ranks[key] for ranks in gathered if key in ranks]
            entry.last = (
                sum(values) / len(values) if entry.reduce == "mean" else PICK[entry.reduce](values)
            )

    # ---- read by callbacks, loggers and the progress bar ----

    def refresh(self) -> None:
        """Bring `callback`, `logged` and `progress_bar` up to date with what was logged."""
        on_step = self.in_batch
        for entry in self.entries.values():
            if not entry.fresh or entry.dataloader_idx != self.dataloader_idx:
                continue
            if on_step and entry.on_step:
                if entry.last is None:
                    continue
                value = as_tensor(entry.last, entry.dtype)
            elif not on_step and entry.on_epoch:
                value = entry.local()
            else:
                continue
            name = entry.name + entry.suffix
            forked = (
                f"{entry.name}_{'step' if on_step else 'epoch'}{entry.suffix}"
                if entry.on_step and entry.on_epoch
                else name
            )
            if entry.logger:
                self.logged[forked] = value
            if self.training or (entry.on_epoch and not on_step):
                self.callback[name] = value
                self.callback[forked] = value
            if entry.prog_bar:
                self.progress_bar[forked] = value

    def to_log(self) -> dict[str, Tensor]:
        """Return what the loggers are due: step values within a batch, epoch values after it."""
        kept = self.logged
        self.logged = {}
        self.refresh()
        due = self.logged
        self.logged = {**kept, **self.logged}
        return due

    def loader_values(self, dataloader_idx: int | None) -> dict[str, Tensor]:
        """Return what the loggers are due of one evaluation loader once its epoch has ended."""
        self.dataloader_idx = dataloader_idx
        return self.to_log()


def to_numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """Return metrics as Python numbers; tensors of one device come over in one copy."""
    names = [name for name, value in metrics.items() if isinstance(value, Tensor)]
    numbers: dict[str, float] = {
        name: value for name, value in metrics.items() if not isinstance(value, Tensor)
    }
    if any(metrics[name].device.type != "cpu" for name in names):
        stacked = torch.stack(
            [metrics[name].detach().reshape(()).double() for name in names]
        ).tolist()
        numbers.update(zip(names, stacked, strict=True))
    else:
        numbers.update((name, metrics[name].item()) for name in names)
    return {name: numbers[name] for name in metrics}


def _reduction(reduce_fx: str | Callable[..., Any], name: str) -> str:
    reduce = reduce_fx.lower() if isinstance(reduce_fx, str) else getattr(reduce_fx, "__name__", "")
    reduce = "mean" if reduce == "avg" else reduce
    is_known = isinstance(reduce_fx, str) or reduce_fx in (
        torch.mean,
        torch.sum,
        torch.min,
        torch.max,
        sum,
        min,
        max,
    )
    if reduce not in REDUCTIONS or not is_known:
        raise ConfigError(
            f"self.log({name!r}, reduce_fx={reduce_fx!r}): only 'mean', 'sum', 'min' and 'max' are"
            " possible. For anything else log a torchmetrics.Metric."
        )
    return reduce


def _differ_in_sync_only(one: Settings, other: Settings) -> bool:
    return (one[:SYNC_DIST], one[SYNC_DIST + 1 :]) == (other[:SYNC_DIST], other[SYNC_DIST + 1 :])


def is_metric(value: Any) -> bool:
    """Tell whether `value` is a torchmetrics.Metric, without importing torchmetrics where nobody else has."""
    torchmetrics = sys.modules.get("torchmetrics")
    return torchmetrics is not None and isinstance(value, torchmetrics.Metric)


def _number(value: Tensor | float | None) -> float:
    assert value is not None
    return value.item() if isinstance(value, Tensor) else value
