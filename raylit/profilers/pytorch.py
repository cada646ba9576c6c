"""PyTorchProfiler: which operators the time went to, on CPU and GPU, by torch.profiler."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd.profiler import record_function

from raylit.errors import ConfigError, did_you_mean
from raylit.profilers.base import Profiler
from raylit.profilers.schedule import STEPS, StepSchedule, default_schedule
from raylit.runtime.aliases import Arguments, StateDict
from raylit.runtime.messages import warn, warn_once

OWN_KWARGS = ("export_to_flame_graph", "metric")
BATCH = "run_training_batch"


class PyTorchProfiler(Profiler):
    """Records operators during some steps of each stage, and reports a table of them.

    By default one step of each kind is left out, one warms up and three are recorded. The traces
    are for Perfetto or Chrome.

    Args:
        dirpath: see `Profiler`; traces go there too.
        filename: see `Profiler`.
        group_by_input_shapes: whether operators with inputs of different shapes are rows of their
            own; needs `record_shapes=True`.
        emit_nvtx: whether to mark operators for NVIDIA's Nsight Systems instead of recording them;
            needs CUDA.
        export_to_chrome: whether to write traces (`.pt.trace.json`).
        row_limit: rows of the table; -1 for all.
        sort_by_key: what rows are sorted by, one of AVAILABLE_SORT_KEYS. Default: `cuda_time_total`
            with a GPU, else `cpu_time_total`.
        record_module_names: whether to label the operators of each submodule's forward.
        table_kwargs: further arguments of the table, see
            `torch.autograd.profiler_util.EventList.table`.
        profiler_kwargs: arguments of `torch.profiler.profile`, such as `schedule`, `activities`,
            `on_trace_ready` or `profile_memory`. Besides: `export_to_flame_graph` writes stacks
            (`.stack`) with the value of `metric` (default `self_cpu_time_total`).

    Attributes:
        profiler: torch's profiler while it runs.
        function_events: what was recorded, once it has ended.

    Raises:
        ConfigError: `sort_by_key`, `schedule` or a name in `profiler_kwargs` is not known.
        KeyError: a name in `table_kwargs` is not known.

    Source: https://docs.pytorch.org/docs/stable/profiler.html

    Example:
        >>> profiler = PyTorchProfiler(
        ...     "profiles",
        ...     "operators",
        ...     schedule=torch.profiler.schedule(wait=10, warmup=2, active=5),
        ... )
        >>> trainer = Trainer(profiler=profiler)
    """

    STEP_FUNCTIONS = frozenset(STEPS)
    AVAILABLE_SORT_KEYS = frozenset(
        ["count"]
        + [
            f"{device}_{what}"
            for device in ("cpu", "cuda")
            for what in ("time", "time_total", "memory_usage")
        ]
        + [f"self_{device}_memory_usage" for device in ("cpu", "cuda")]
    )

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        group_by_input_shapes: bool = False,
        emit_nvtx: bool = False,
        export_to_chrome: bool = True,
        row_limit: int = 20,
        sort_by_key: str | None = None,
        record_module_names: bool = True,
        table_kwargs: Arguments | None = None,
        **profiler_kwargs: Any,
    ) -> None:
        super().__init__(dirpath, filename)
        self._group_by_input_shapes = group_by_input_shapes and profiler_kwargs.get(
            "record_shapes", False
        )
        self._emit_nvtx = emit_nvtx
        self._export_to_chrome = export_to_chrome
        self._row_limit = row_limit
        self._record_module_names = record_module_names
        self._table_kwargs = table_kwargs or {}
        self._export_to_flame_graph = profiler_kwargs.get("export_to_flame_graph", False)
        self._metric = profiler_kwargs.get("metric", "self_cpu_time_total")
        self._kwargs = {
            key: value for key, value in profiler_kwargs.items() if key not in OWN_KWARGS
        }
        self._kwargs["activities"] = self._kwargs.get("activities") or _default_activities()
        self._kwargs["with_stack"] = (
            self._kwargs.get("with_stack", False) or self._export_to_flame_graph
        )
        schedule = self._kwargs.get("schedule", default_schedule)
        has_cuda = torch.profiler.ProfilerActivity.CUDA in self._kwargs["activities"]
        self._sort_by_key = sort_by_key or f"{'cuda' if has_cuda else 'cpu'}_time_total"
        self._check(schedule, profiler_kwargs)
        self._schedule = None if schedule is None else StepSchedule(schedule)
        self._forget()

    def _check(self, schedule: object, profiler_kwargs: dict[str, object]) -> None:
        if self._sort_by_key not in self.AVAILABLE_SORT_KEYS:
            raise ConfigError(
                f"PyTorchProfiler(sort_by_key={self._sort_by_key!r}) is not known. Use one of:"
                f" {', '.join(sorted(self.AVAILABLE_SORT_KEYS))}."
            )
        known = {*inspect.signature(torch.profiler.profile).parameters, *OWN_KWARGS}
        for name in profiler_kwargs:
            if name not in known:
                raise ConfigError(
                    f"PyTorchProfiler({name}=...): torch.profiler.profile has no such"
                    f" argument.{did_you_mean(name, known)}"
                )
        if schedule is not None and not (
            callable(schedule) and isinstance(schedule(0), torch.profiler.ProfilerAction)
        ):
            raise ConfigError(
                f"PyTorchProfiler(schedule={schedule!r}): give a function from the number of a step"
                " to a torch.profiler.ProfilerAction, such as torch.profiler.schedule makes."
            )
        columns = set(
            inspect.signature(torch.autograd.profiler_util.EventList.table).parameters
        ) - {"self", "sort_by", "row_limit"}
        for name in self._table_kwargs:
            if name not in columns:
                why = (
                    "is an argument of PyTorchProfiler itself"
                    if name in ("sort_by", "row_limit")
                    else "is not known"
                )
                raise KeyError(
                    f"table_kwargs={{{name!r}: ...}} {why}. Use: {', '.join(sorted(columns))}."
                )

    def _forget(self) -> None:
        """Be as before the first action."""
        self.profiler: Any = None
        self.function_events: Any = None
        self._parent: Any = None
        self._names: ModuleNames | None = None
        self._running: dict[str, record_function] = {}
        self._step: str | None = None  # what is to be counted as a step when the batch has ended

    def start(self, action_name: str) -> None:
        if self.profiler is None:
            self._begin(action_name)
        if self._names is None and self._record_module_names and self._lightning_module is not None:
            self._names = ModuleNames(self._lightning_module)
        if action_name not in self._running:
            self._begin_label(action_name)

    def stop(self, action_name: str) -> None:
        running = self._running.pop(action_name, None)
        if running is not None:
            running.__exit__(None, None, None)
        if action_name.endswith("training_step") and BATCH in self._running:
            self._step = action_name  # the backward pass and the optimizer's step belong to it
        elif action_name == BATCH and self._step is not None:
            self._take_step(self._step)
            self._step = None
        elif action_name.endswith(STEPS):
            self._take_step(action_name)

    def _take_step(self, action_name: str) -> None:
        """Let the schedule say whether the next step is recorded.

        Actions that run meanwhile are labelled anew: a label must not outlast the recording it
        began in.

        torch writes the end of a label to memory that it freed when the recording ended, if another
        one has begun.
        """
        if self._emit_nvtx or self.profiler is None:
            return
        kind = next(step for step in STEPS if action_name.endswith(step))
        if self._schedule is not None:
            self._schedule.kind = kind
            if self._schedule.schedule is default_schedule and self._total_steps(kind) < 5:
                warn_once(
                    "PyTorchProfiler: there are fewer steps than its default schedule leaves out"
                    " and records, so all are recorded."
                )
                self._schedule = None
                self.profiler.schedule = torch.profiler.profiler._default_schedule_fn
        if "on_trace_ready" not in self._kwargs:
            self.profiler.on_trace_ready = lambda profiler: self._export(profiler, action_name)
        if self._schedule is not None:
            self.profiler.step_num = self._schedule.num_step
        goes_on = self.profiler.current_action is torch.profiler.ProfilerAction.RECORD
        labels = [] if goes_on else list(self._running)
        self._end_labels(labels)
        self.profiler.step()
        for label in labels:
            self._begin_label(label)
        self.profiler.add_metadata("Framework", "raylit")

    def _begin_label(self, action_name: str) -> None:
        self._running[action_name] = record_function(f"[pl][profile]{action_name}")
        self._running[action_name].__enter__()

    def _end_labels(self, action_names: list[str]) -> None:
        for name in reversed(action_names):
            self._running.pop(name).__exit__(None, None, None)

    def summary(self) -> str:
        self._end()
        if not self.function_events:
            return ""
        averages = self.function_events.key_averages(
            group_by_input_shapes=self._group_by_input_shapes
        )
        return self._stats_to_str(
            {
                "records": averages.table(
                    sort_by=self._sort_by_key, row_limit=self._row_limit, **self._table_kwargs
                )
            }
        )

    def teardown(self, stage: str | None) -> None:
        self._end()
        self._end_labels(list(self._running))
        super().teardown(stage)

    def _begin(self, action_name: str) -> None:
        if torch._C._autograd._profiler_enabled():  # left by another profiler: there can be one
            torch._C._autograd._disable_profiler()
        if self._schedule is not None:
            self._schedule.within_fit = self._stage == "fit"
        if self._emit_nvtx:
            self.profiler = torch.autograd.profiler.emit_nvtx()
            self._parent = torch.cuda.profiler.profile()
        else:
            self.profiler = torch.profiler.profile(**{**self._kwargs, "schedule": self._schedule})
        self.profiler.__enter__()
        if self._parent is not None:
            self._parent.__enter__()

    def _end(self) -> None:
        if self.profiler is not None:
            self.profiler.__exit__(None, None, None)
            if not self._emit_nvtx:
                self.function_events = self._events()
            self.profiler = None
        if self._parent is not None:
            self._parent.__exit__(None, None, None)
            self._parent = None
        if self._schedule is not None:
            self._schedule.reset()
        if self._names is not None:
            self._names.remove()
            self._names = None

    def _events(self) -> Any:
        """Return what was recorded; None if that is nothing."""
        # torch's profiler has none of its own before its schedule has warmed one up
        events = self.profiler.events() if self.profiler.profiler is not None else None
        if not events:
            warn(
                "PyTorchProfiler has recorded nothing, so there is no report: the run ended before"
                " a step that its schedule records."
            )
        return events or None

    def _export(self, profiler: torch.profiler.profile, action_name: str) -> None:
        """Write the records to files."""
        if self.dirpath is None:
            warn(
                "PyTorchProfiler has no folder for its traces. Give it dirpath=..., or the Trainer"
                " a logger."
            )
            return
        if self._export_to_chrome:
            torch.profiler.tensorboard_trace_handler(
                os.fspath(self.dirpath), self._prepare_filename(action_name, "")
            )(profiler)
        if self._export_to_flame_graph:
            os.makedirs(self.dirpath, exist_ok=True)
            profiler.export_stacks(
                os.path.join(self.dirpath, self._prepare_filename(action_name, ".stack")),
                metric=self._metric,
            )

    def _total_steps(self, kind: str) -> float:
        """Return how many steps of a kind there will be."""
        if self._lightning_module is None:
            return float("inf")
        trainer = self._lightning_module.trainer
        if kind == "training_step":
            return float(trainer.num_training_batches)
        if kind == "validation_step":
            return float(sum(trainer.num_val_batches) + sum(trainer.num_sanity_val_batches))
        return float(
            sum(trainer.num_test_batches if kind == "test_step" else trainer.num_predict_batches)
        )

    def __getstate__(self) -> StateDict:
        left_out = dict.fromkeys(("profiler", "function_events", "_parent", "_names", "_step"))
        return super().__getstate__() | left_out | {"_running": {}}


class ModuleNames:
    """Labels the operators of each submodule's forward with its class and name.

    Args:
        module: whose submodules are labelled until `remove` is called.
    """

    def __init__(self, module: nn.Module) -> None:
        self._handles = []
        self._running: dict[str, list[record_function]] = {}
        for name, child in module.named_modules():
            if name:
                label = f"[pl][module]{type(child).__module__}.{type(child).__name__}: {name}"
                self._handles.append(child.register_forward_pre_hook(self._starting(label)))
                self._handles.append(
                    child.register_forward_hook(self._stopping(label), always_call=True)
                )

    def remove(self) -> None:
        """Take the labels off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _starting(self, label: str) -> Callable[..., None]:
        def start(module: nn.Module, inputs: object) -> None:
            self._running.setdefault(label, []).append(record_function(label))
            self._running[label][-1].__enter__()

        return start

    def _stopping(self, label: str) -> Callable[..., None]:
        def stop(module: nn.Module, inputs: object, output: object) -> None:
            if self._running.get(label):
                self._running[label].pop().__exit__(None, None, None)

        return stop


def _default_activities() -> list[torch.profiler.ProfilerActivity]:
    activities = [torch.profiler.ProfilerActivity.CPU]
    return (
        [*activities, torch.profiler.ProfilerActivity.CUDA]
        if torch.cuda.is_available()
        else activities
    )
