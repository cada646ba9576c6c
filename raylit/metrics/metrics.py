"""The values of `self.log`: where they are kept, and when they are reduced.

`log` resolves its arguments once per key into an `Entry`; from then on a call only appends the
detached value to a list. No collective, no copy from the device and no conversion to a Python
number happens in it. Values become numbers in bulk, when somebody looks: the loggers every
`log_every_n_steps`, the progress bar when it draws, callbacks when an epoch ends.

Over ranks: an epoch's values are reduced after its batches, and again after each group of hooks
that may log more, whether anything was logged or not. Step values with `sync_dist=True` are reduced
when the loggers are due; in between only the one that a scheduler is stepped with. Each of these is
one collective in host memory, called by all ranks at the same place, in which they first tell each
other their keys: so a key that only some ranks logged is no hazard, and who reads a value, and
when, changes nothing. A value that is read before it was reduced is this rank's own, and is not
kept. Sums and weights go over in float64 and are divided once, so a mean is exact whatever the
ranks' batch counts are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Number
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from raylit.core.hooks import HOOKS
from raylit.errors import ConfigError
from raylit.metrics import torchmetric
from raylit.metrics.entry import (
    SHORTEN_EVERY,
    Entry,
    Key,
    Part,
    Settings,
    StepOfAll,
    as_tensor,
    combined,
)
from raylit.runtime.aliases import Batch, StateDict
from raylit.runtime.batch import size_of

if TYPE_CHECKING:
    from raylit.parallel import World

K = TypeVar("K")
REDUCTIONS = ("mean", "sum", "min", "max")
# places in `core.module.LogSettings`
SYNC_DIST = 5
ADD_DATALOADER_IDX = 6


class Offer(NamedTuple):
    """One key, as a rank tells the others of it.

    Attributes:
        key: the key.
        entry: the entry without its values, if the others may not have it.
        step: the newest step value, if it is to be reduced.
        part: the part in the epoch's value, likewise.
        has_metric: whether a Metric was logged that is to be computed.
    """

    key: Key
    entry: Entry | None
    step: float | None
    part: Part | None
    has_metric: bool


class Shown(NamedTuple):
    """A value of this rank alone, which stands among the others only until it is read again.

    Attributes:
        values: where it stands.
        name: under which name.
        value: itself.
        before: what stood there before it, if anything did.
    """

    values: dict[str, Tensor]
    name: str
    value: Tensor
    before: Tensor | None


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
        renewals: how often a name has got a new epoch value; `taken` is, for each scheduler, how
            often it had when that was stepped last.
    """

    def __init__(self, world: World, module: torch.nn.Module | None = None) -> None:
        self.world = world
        self.module = module
        self.entries: dict[Key, Entry] = {}
        self.train_entries = self.entries
        self.training = True
        self.hook: str | None = None
        self.batch: Batch = None
        self.batch_size: int | None = None
        self.dataloader_idx: int | None = None
        self.in_batch = False
        self.callback: dict[str, Tensor] = {}
        self.logged: dict[str, Tensor] = {}
        self.progress_bar: dict[str, Tensor] = {}
        self.renewals: dict[str, int] = {}
        self.taken: dict[str, int] = {}
        self._shown: list[Shown] = []

    # ---- filled by users ----

    def log(
        self, name: str, value: Any, settings: Settings, enable_graph: bool, batch_size: int | None
    ) -> None:
        """See `LightningModule.log`."""
        key = (self.hook, name, self.dataloader_idx if settings[ADD_DATALOADER_IDX] else None)
        entry = self.entries.get(key)
        if entry is None:
            entry = self.entries[key] = self._register(name, value, settings)
        elif entry.settings != settings or entry.dataloader_idx != self.dataloader_idx:
            self._settle(entry, name, settings)
        if entry.metric_path is not None:
            self._log_metric(entry, value)
            return
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ConfigError(
                    f"self.log({name!r}, value): the tensor has shape {tuple(value.shape)}, but one"
                    " element is wanted. Reduce it first, or log its parts."
                )
            # cloned, because the user may go on to change the tensor in place
            value = value.clone() if enable_graph else value.detach().clone()
        elif not isinstance(value, (int, float, np.number)):
            value = _as_float(name, value)
        entry.last = value
        entry.fresh = True
        if entry.on_epoch:
            entry.reduced = None
            if entry.reduce == "mean":
                if batch_size is None:
                    batch_size = self.batch_size
                    if batch_size is None:
                        batch_size = self.batch_size = (
                            1 if self.batch is None else size_of(self.batch, check=not entry.weight)
                        )
                entry.weights.append(batch_size)
            entry.values.append(
                value.detach() if enable_graph and isinstance(value, Tensor) else value
            )
            if len(entry.values) == SHORTEN_EVERY:
                entry.shorten()

    def _register(self, name: str, value: object, settings: Settings) -> Entry:
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
        hook = self.hook
        dataloader_idx = self.dataloader_idx
        rule = HOOKS[hook].log if hook in HOOKS else None
        if hook is None or rule is None:
            where = f"inside {hook}" if hook else "here: no hook of the loop is running"
            raise ConfigError(
                f"self.log({name!r}, ...) cannot be used {where}. Write to the logger itself:"
                f" self.logger.log_metrics({{{name!r}: ...}})."
            )
        if "/dataloader_idx_" in name:
            raise ConfigError(
                f"You called `self.log` with the key `{name}` but it should not contain information"
                " about `dataloader_idx`. "
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
                "`self.log(on_step=False, on_epoch=False)` is not useful. "
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
        # Without `sync_dist` the value of an epoch is that of all ranks, and one of a step its own
        entry.sync_epoch = sync_dist is not False
        entry.sync_step = bool(sync_dist)
        if add_dataloader_idx and dataloader_idx is not None:
            entry.suffix = f"/dataloader_idx_{dataloader_idx}"
        if torchmetric.is_metric(value):
            entry.metric = value
            entry.metric_path = torchmetric.path_of(value, self.module)
        return entry

    def _settle(self, entry: Entry, name: str, settings: Settings) -> None:
        """Let an entry go on with arguments that are not those it was last logged with.

        Raises:
            ConfigError: they mean something else.
        """
        if not entry.settings:  # it came from a checkpoint
            entry.settings = settings
        if not entry.fresh:  # in another epoch there may be more loaders, or fewer
            entry.dataloader_idx = self.dataloader_idx
        same = entry.settings == settings or _differ_in_sync_only(entry.settings, settings)
        if not same or entry.dataloader_idx != self.dataloader_idx:
            raise ConfigError(
                f"self.log({name!r}, ...) was called twice in {self.hook} with different arguments,"
                " or for two loaders with add_dataloader_idx=False. Use the same arguments, or"
                " another name."
            )

    def _log_metric(self, entry: Entry, value: object) -> None:
        if entry.metric is not value:
            self._replace(entry, value)
        metric = entry.metric
        assert metric is not None
        if entry.metric_before:
            torchmetric.put_before(metric, entry.metric_before)
            entry.metric_before = []
        # The value of this batch alone, which torchmetrics keeps when the Metric is called
        entry.last = metric._forward_cache
        entry.reduced = None
        entry.fresh = True

    @staticmethod
    def _replace(entry: Entry, value: object) -> None:
        """Take another Metric under the same name, which is possible between epochs only.

        Its state is that of the epoch.

        Raises:
            ConfigError: it is none, or the epoch has begun with another.
        """
        is_first = entry.metric is None  # a checkpoint, or another rank, has made the entry
        if not torchmetric.is_metric(value) or (entry.fresh and not is_first):
            raise ConfigError(
                f"self.log({entry.name!r}, ...) was given a Metric before, and now {value!r}. Make"
                " the Metric once, in __init__, and log the same one."
            )
        entry.metric = value

    # ---- driven by the loop ----

    def begin_batch(self, batch: Batch, dataloader_idx: int | None = None) -> None:
        """A batch begins: values logged from now on are its."""
        self.batch = batch
        self.batch_size = None
        self.dataloader_idx = dataloader_idx
        self.in_batch = True

    def end_epoch(self) -> None:
        """Reduce the values logged in the epoch, after its last batch.

        From now on epoch values count. To be called on all ranks.
        """
        self.reduce(steps=True)
        if self.batch is not None:
            self.refresh()  # else a validation came after it, whose values are newer
        self.batch = None
        self.batch_size = None
        self.dataloader_idx = None
        self.in_batch = False

    def reset(self) -> None:
        """Forget the values of the loop that ended; those in `callback` and `logged` remain."""
        for entry in self.entries.values():
            entry.reset()
        self.in_batch = False

    @contextmanager
    def switched(self, entries: dict[Key, Entry], training: bool) -> Iterator[None]:
        """Fill the entries of another loop for a while, between two batches of one.

        To be called on all ranks.
        """
        if self.in_batch:
            self.reduce_steps()
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
        """Tell whether training has logged a value of this name, as all ranks know."""
        return any(
            name in (entry.name, f"{entry.name}_step", f"{entry.name}_epoch")
            for entry in self.train_entries.values()
            # What this rank alone has logged would have it refuse a scheduler, or not, by itself
            if entry.is_known or self.world.size == 1
        )

    def kind_in_training(self, name: str) -> str | None:
        """Tell which value of training a name stands for within a batch.

        Returns:
            `step`, `epoch`, or None for neither; as this rank knows.
        """
        kinds = set()
        for entry in self.train_entries.values():
            if entry.on_step and name in (entry.name, _forked(entry, on_step=True)):
                kinds.add("step")
            if entry.on_epoch and name == _forked(entry, on_step=False):
                kinds.add("epoch")
        return "step" if "step" in kinds else next(iter(kinds), None)

    def clear(self) -> None:
        """Forget the values that callbacks, loggers and the progress bar see; entries stay."""
        self.callback = {}
        self.logged = {}
        self.progress_bar = {}

    # ---- kept in checkpoints ----

    def values(self) -> dict[str, StateDict]:
        """Return the latest values of everything, as callbacks, loggers and progress bar see them.

        Without those of this rank alone, which a fit that goes on reduces again.
        """
        self.refresh()
        self._take_back()
        return {
            "callback": self.callback,
            "logged": self.logged,
            "progress_bar": self.progress_bar,
            "renewals": self.renewals,
            "taken": self.taken,
        }

    def load_values(self, values: dict[str, StateDict]) -> None:
        """Load the values of `values`."""
        self.callback = dict(values["callback"])
        self.logged = dict(values["logged"])
        self.progress_bar = dict(values["progress_bar"])
        self.renewals = dict(values.get("renewals", {}))  # earlier versions had none
        self.taken = dict(values.get("taken", {}))

    def partial_sums(self) -> list[StateDict]:
        """Return the values that training logged in the epoch that runs, as plain data."""
        return [entry.state() for entry in self.train_entries.values()]

    def load_partial_sums(self, states: list[dict[str, object]]) -> None:
        """Load the values of `partial_sums`."""
        for state in states:
            entry = Entry.from_state(state, self.module)
            self.train_entries[(entry.hook, entry.name, entry.dataloader_idx)] = entry
        self.in_batch = True  # values of the epoch are not to be had before its end

    # ---- reduced over ranks ----

    def reduce(self, *, steps: bool = False) -> None:
        """Reduce the epoch's values that were logged since this was last called.

        To be called on all ranks, whatever they logged: on several it is one collective. It comes
        after the batches, and after each group of hooks in which more may be logged.

        Args:
            steps: also reduce the step values with `sync_dist=True`.
        """
        if self.world.size == 1:
            return  # each is reduced when it is first read
        self._exchange(steps=steps, epoch=True)
        for entry in self.entries.values():
            is_due = entry.fresh and entry.on_epoch and entry.reduced is None
            if is_due and (self._counts(entry) or not entry.sync_epoch):
                self._reduce_alone(entry)

    def reduce_steps(self) -> None:
        """Reduce the step values that were logged with `sync_dist=True`.

        To be called on all ranks, when the loggers are due.
        """
        if self.world.size > 1:
            self._exchange(steps=True, epoch=False)

    def _exchange(self, *, steps: bool, epoch: bool) -> None:
        """Tell the other ranks of this one's values, and make one value of all.

        Raises:
            ConfigError: ranks mean different things by one key; on all of them.
        """
        found: dict[Key, dict[int, Offer]] = {}
        for rank, offers in enumerate(self.world.all_gather_object(self._offers(steps, epoch))):
            for offer in offers:
                found.setdefault(offer.key, {})[rank] = offer
        # Before `_make_known`: these stand in the same order on all ranks already
        known = {key: None for key, entry in self.entries.items() if entry.is_known}
        for by_rank in found.values():
            self._make_known(by_rank)
        if not known.keys() >= found.keys():
            self._put_in_order([*(known | dict.fromkeys(found))])
        for key, by_rank in found.items():
            entry = self.entries[key]
            if steps and entry.on_step:
                values = [one.step for one in by_rank.values() if one.step is not None]
                # A rank that has logged nothing under this name takes the value of the others
                if values and (entry.sync_step or entry.last is None):
                    entry.fresh = True
                    entry.step_of_all = StepOfAll(entry.last, combined(entry.reduce, values))
            parts = {rank: one.part for rank, one in by_rank.items() if one.part is not None}
            if parts and (entry.sync_epoch or not entry.fresh):
                entry.fresh = True
                # Beside the parts of before: a rank that has logged nothing since then offers none
                entry.parts.update(parts)
                entry.reduce_parts()
                self._renew(entry)
            ranks = [rank for rank, one in by_rank.items() if one.has_metric]
            if ranks:
                self._compute(entry, everywhere=len(ranks) == self.world.size)
                self._renew(entry)

    def _offers(self, steps: bool, epoch: bool) -> list[Offer]:
        """Return the offers of this rank to the others."""
        entries = {
            key: entry
            for key, entry in self.entries.items()
            if (steps and entry.on_step) or (epoch and entry.on_epoch)
        }
        lasts = {
            key: entry.last
            for key, entry in entries.items()
            if steps and entry.sync_step and self._counts(entry) and entry.last is not None
        }
        # All together: each by itself would wait for the device
        numbers = to_numbers(lasts)
        offers = []
        for key, entry in entries.items():
            is_due = epoch and entry.fresh and entry.on_epoch and entry.reduced is None
            has_metric = is_due and entry.metric is not None
            has_part = is_due and not has_metric and entry.sync_epoch and self._counts(entry)
            offer = Offer(
                key,
                None if entry.is_known else entry.blank(),
                numbers.get(key),
                entry.part() if has_part else None,
                has_metric,
            )
            # A step value of 0.0 is one too: by its truth it would count as none
            if offer.has_metric or any(
                one is not None for one in (offer.entry, offer.step, offer.part)
            ):
                offers.append(offer)
        return offers

    def _counts(self, entry: Entry) -> bool:
        """Tell whether a value of this rank counts."""
        return self.world.is_zero or not entry.rank_zero_only

    def _make_known(self, by_rank: dict[int, Offer]) -> None:
        """Let this rank have an entry under a key, which others have logged."""
        for rank, offer in by_rank.items():
            if offer.entry is None:
                continue
            entry = self.entries.setdefault(offer.key, offer.entry)
            entry.is_known = True
            kinds = [(one.reduce, one.metric_path is None) for one in (entry, offer.entry)]
            if kinds[0] != kinds[1]:
                raise ConfigError(
                    f"self.log({entry.name!r}, ...) in {entry.hook} means different things on"
                    f" different ranks: rank {rank} logs {_in_words(offer.entry)}, another"
                    f" {_in_words(entry)}. Log the same on all ranks, or use another name."
                )

    def _put_in_order(self, keys: list[Key]) -> None:
        """Let the entries stand in the same order on all ranks.

        Of two under one name, from two hooks, the later is seen.
        """
        ordered = {key: self.entries.pop(key) for key in keys}
        others = dict(self.entries)
        self.entries.clear()
        self.entries.update(ordered)
        self.entries.update(others)

    def _compute(self, entry: Entry, everywhere: bool) -> None:
        """Compute a Metric on all ranks at once, as its own collectives want it.

        Also on those that had nothing to add to it.

        Raises:
            ConfigError: one of them does not have it; on all ranks.
        """
        # Its collectives want all ranks, and one that has not logged it finds it by its path alone
        if not everywhere and not entry.metric_path:
            raise ConfigError(
                f"The Metric logged as {entry.name!r} was logged on some ranks only, and the others"
                " do not find it in the module. Make it an attribute in __init__, or log it on all"
                " ranks."
            )
        if entry.metric is None:
            assert self.module is not None
            entry.metric = self.module.get_submodule(str(entry.metric_path))  # type: ignore[assignment]
        assert entry.metric is not None
        entry.fresh = True
        value = torchmetric.compute_together(entry.metric)
        entry.reduced = torchmetric.as_number(value, entry.name)

    def _reduce_alone(self, entry: Entry) -> None:
        """Let the value of this rank be the epoch's: there is no other, or it is not to count."""
        entry.reduced = entry.local()
        self._renew(entry)

    def _renew(self, entry: Entry) -> None:
        for name in {entry.name + entry.suffix, _forked(entry, on_step=False)}:
            self.renewals[name] = self.renewals.get(name, 0) + 1

    # ---- read by schedulers ----

    def watched(self, name: str) -> Tensor | None:
        """Return the value of `name` that a scheduler is stepped with, the same on all ranks.

        None if there is none. To be called on all ranks. A value that differs from rank to rank,
        as step values do, would give each of them another learning rate: it is reduced here.

        Raises:
            ConfigError: only some ranks have it; on all ranks.
        """
        self.refresh()
        value = self.callback.get(name)
        if self.world.size == 1:
            return value
        entry = self._step_entry(name)
        own = value if entry is None or entry.last is None else entry.last
        kept = entry is None or self._counts(entry)
        number = None if own is None else _number(own)
        told = self.world.all_gather_object((number, kept, None if entry is None else entry.reduce))
        numbers = [number for number, _, _ in told]
        having = [rank for rank, number in enumerate(numbers) if number is not None]
        if not having:
            return None
        if len(having) < len(told):
            raise ConfigError(
                f"A learning-rate scheduler watches {name!r}, which was logged on some ranks only:"
                f" {', '.join(map(str, having))} of {len(told)}. Log it on all ranks."
            )
        counting = [number for number, counts, _ in told if counts]
        is_same = len(set(numbers)) == 1
        reduce = next((reduce for *_, reduce in told if reduce is not None), "mean")
        is_step = any(reduce is not None for *_, reduce in told)
        # Of equal values the mean, least and greatest is that value, but the sum is not
        if is_same and value is not None and not (is_step and reduce == "sum"):
            return value
        shared = combined(reduce, counting)
        if entry is not None and entry.sync_step:
            entry.step_of_all = StepOfAll(entry.last, shared)
            self.refresh()
        like = own if value is None else value
        assert like is not None
        return torch.tensor(shared, dtype=as_tensor(like, torch.float32).dtype)

    def has_news(self, reader: str, name: str) -> bool:
        """Tell whether `name` has a value that this scheduler was not stepped with before.

        For values that are logged in steps, and for those that were not logged but set, that cannot
        be told: they count as new.
        """
        renewals = self.renewals.get(name)
        if renewals is None or self._step_entry(name) is not None:
            return True
        is_new = self.taken.get(reader) != renewals
        self.taken[reader] = renewals
        return is_new

    def _step_entry(self, name: str) -> Entry | None:
        """Return the entry of the step value that `name` is within a batch."""
        if not self.in_batch:
            return None
        for entry in self.entries.values():
            if (
                entry.on_step
                and entry.fresh
                and name in (entry.name + entry.suffix, _forked(entry, on_step=True))
            ):
                return entry
        return None

    # ---- read by callbacks, loggers and the progress bar ----

    def refresh(self) -> None:
        """Bring `callback`, `logged` and `progress_bar` up to date with the logged values.

        A value that is not yet reduced over the ranks is shown, and is gone at the next call.
        """
        if self._shown:
            self._take_back()
        on_step = self.in_batch
        for entry in self.entries.values():
            if not entry.fresh or entry.dataloader_idx != self.dataloader_idx:
                continue
            if on_step and entry.on_step:
                # of what counts on rank 0 alone others have the reduced value, or none yet
                step = entry.step if self._counts(entry) else entry.shared_step
                value = None if step is None else as_tensor(step, entry.dtype)
            elif not on_step and entry.on_epoch:
                if entry.reduced is None and not self._counts(entry):
                    continue  # there is no value of rank 0, or not yet
                if entry.reduced is None and self.world.size == 1:
                    self._reduce_alone(entry)
                value = entry.local() if entry.reduced is None else entry.reduced
            else:
                continue
            if value is None:
                continue
            name = entry.name + entry.suffix
            forked = _forked(entry, on_step)
            # As in Lightning: in evaluation callbacks see no values of single steps
            to_callbacks = self.training or not on_step
            if not on_step and entry.reduced is None:
                self._show(self.callback, {name, forked} if to_callbacks else (), value)
                self._show(self.logged, [forked] if entry.logger else (), value)
                self._show(self.progress_bar, [forked] if entry.prog_bar else (), value)
                continue
            if entry.logger:
                self.logged[forked] = value
            if to_callbacks:
                self.callback[name] = value
                self.callback[forked] = value
            if entry.prog_bar:
                self.progress_bar[forked] = value

    def _show(self, values: dict[str, Tensor], names: Iterable[str], value: Tensor) -> None:
        for name in names:
            self._shown.append(Shown(values, name, value, values.get(name)))
            values[name] = value

    def _take_back(self) -> None:
        """Put former values back in place of those of this rank alone, unless others were set."""
        # The last first: a name may have been shown twice, and the first knows what stood before
        for values, name, value, before in reversed(self._shown):
            if values.get(name) is not value:
                continue
            if before is None:
                del values[name]
            else:
                values[name] = before
        self._shown = []

    def to_log(self) -> dict[str, Tensor]:
        """Return the values for the loggers: step values within a batch, epoch values after it."""
        self._take_back()
        # Into an empty dict: loggers get the values of now, not all that `logged` still holds
        kept = self.logged
        self.logged = {}
        self.refresh()
        due = self.logged
        self.logged = {**kept, **self.logged}
        return due

    def loader_values(self, dataloader_idx: int | None) -> dict[str, Tensor]:
        """Return the values for the loggers of one evaluation loader, once its epoch has ended."""
        self.dataloader_idx = dataloader_idx
        return self.to_log()


def to_numbers(metrics: Mapping[K, Any]) -> dict[K, float]:
    """Return metrics as Python numbers; tensors on a device come over in one copy."""
    names = [name for name, value in metrics.items() if isinstance(value, Tensor)]
    numbers: dict[K, float] = {
        name: value for name, value in metrics.items() if not isinstance(value, Tensor)
    }
    there = [name for name in names if metrics[name].device.type != "cpu"]
    if there:
        # Numbers that were logged as such lie on the CPU, beside losses that do not
        device = metrics[there[0]].device
        values = [metrics[name].detach().reshape(()).to(device).double() for name in there]
        numbers.update(zip(there, torch.stack(values).tolist(), strict=True))
    numbers.update((name, metrics[name].item()) for name in names if name not in numbers)
    return {name: numbers[name] for name in metrics}


def _reduction(reduce_fx: str | Callable[..., object], name: str) -> str:
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


def _forked(entry: Entry, on_step: bool) -> str:
    """Return the name of a step value or an epoch value, told apart if there are both."""
    if not (entry.on_step and entry.on_epoch):
        return entry.name + entry.suffix
    return f"{entry.name}_{'step' if on_step else 'epoch'}{entry.suffix}"


def _in_words(entry: Entry) -> str:
    return (
        f"the {entry.reduce} of numbers" if entry.metric_path is None else "a torchmetrics.Metric"
    )


def _number(value: Tensor | float | None) -> float:
    assert value is not None
    return value.item() if isinstance(value, Tensor) else value


def _as_float(name: str, value: object) -> float:
    """Return the value of a Fraction or a Decimal.

    Raises:
        ConfigError: it is neither, nor any other number.
    """
    if not isinstance(value, Number) or isinstance(value, complex):
        raise ConfigError(
            f"`self.log({name}, {value})` was called, but `{type(value).__name__}` values cannot be"
            " logged. Give a number, a tensor with one element or a torchmetrics.Metric."
        )
    return float(value)  # type: ignore[arg-type]
