"""The run as a profiler sees it.

Whatever is worth measuring is wrapped once, when the run is prepared.

A run without a profiler is a plain `Run` and pays nothing for this file.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from raylit.core.datamodule import LightningDataModule
from raylit.data import CombinedLoader
from raylit.data.index_once import IndexedOnce
from raylit.engine.run import STEP_OF, Run
from raylit.profilers import PassThroughProfiler, Profiler
from raylit.runtime.messages import warn

if TYPE_CHECKING:
    from raylit.core.job import Job
    from raylit.parallel import World

FETCH = {  # Lightning's names
    "train": "[_TrainingEpochLoop].train_dataloader_next",
    "val": "[_EvaluationLoop].val_next",
    "test": "[_EvaluationLoop].test_next",
    "predict": "[_PredictionLoop].predict_next",
}
INDEXED_ONCE = "[TensorDataset].index_once"  # raylit's own, within the fetching


def make_run(job: Job, world: World) -> Run:
    """Return the run of a job, measured if its Trainer has a profiler."""
    return (
        Run(job, world)
        if type(job.trainer.profiler) is PassThroughProfiler
        else ProfiledRun(job, world)
    )


class Measured:
    """A function whose calls are an action of a profiler.

    It passes for the function everywhere, and is pickled and copied as it.
    """

    def __init__(self, profiler: Profiler, action: str, function: Callable[..., object]) -> None:
        self.__wrapped__ = function
        self._profiler = profiler
        self._action = action

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Call the function while the profiler looks."""
        with self._profiler.profile(self._action):
            return self.__wrapped__(*args, **kwargs)

    def __getattr__(self, name: str) -> object:
        return getattr(self.__dict__["__wrapped__"], name)

    def __reduce__(self) -> tuple[object, ...]:
        function = self.__wrapped__
        return getattr, (function.__self__, function.__name__)  # type: ignore[attr-defined]


class ProfiledRun(Run):
    """A run that tells `trainer.profiler` of its actions, under Lightning's names."""

    def __init__(self, job: Job, world: World) -> None:
        super().__init__(job, world)
        trainer = job.trainer
        assert isinstance(trainer.profiler, Profiler)
        self.profiler = trainer.profiler
        self.profiler._lightning_module = weakref.proxy(self.module)
        log_dir = world.broadcast_object(trainer.log_dir if world.is_zero else None)
        self.profiler.setup(
            stage=job.fn, local_rank=world.local_rank if world.size > 1 else None, log_dir=log_dir
        )
        strategy = "SingleDeviceStrategy" if world.size == 1 else type(trainer.strategy).__name__
        self._strategy = f"[Strategy]{strategy}"
        self._wrapped: list[tuple[object, str, object]] = []
        self._wrap(
            self.module, "configure_optimizers", self._name_of(self.module, "configure_optimizers")
        )

    def call(self, owner: object, name: str, *args: object, **kwargs: object) -> Any:
        """Call one hook of the module, the datamodule or a callback."""
        with self.profiler.profile(self._name_of(owner, name)):
            return super().call(owner, name, *args, **kwargs)

    def watch(
        self, owner: object, name: str, function: Callable[..., object]
    ) -> Callable[..., object]:
        """Return the hook `name` of `owner` as an action."""
        return Measured(self.profiler, self._name_of(owner, name), function)

    def timed(self, action: str, function: Callable[..., object]) -> Callable[..., object]:
        """Return `function` as an action."""
        return Measured(self.profiler, action, function)

    def load(self, stage: str, in_order: bool = False) -> CombinedLoader:
        """Return the loader of a stage, the fetching of whose batches is an action."""
        loader = super().load(stage, in_order)
        loader.watch = partial(self.profiler.profile, FETCH[stage])
        for reader in loader.readers:
            dataset = getattr(reader, "dataset", None)
            if isinstance(dataset, IndexedOnce):
                dataset.measure = partial(self.profiler.profile, INDEXED_ONCE)
        return loader

    def resolve_calls(self) -> None:
        """Resolve the functions that the loop is to call, and wrap them."""
        super().resolve_calls()
        for step in STEP_OF.values():
            self._wrap(self.module, step, f"{self._strategy}.{step}")
        self._wrap(
            self.module,
            "configure_gradient_clipping",
            self._name_of(self.module, "configure_gradient_clipping"),
        )
        if self.module.automatic_optimization:  # the loop takes its longer ways, through `call`
            self.calls = replace(
                self.calls,
                overrides_backward=True,
                overrides_zero_grad=True,
                needs_closure=self.job.fn == "fit",
            )
        else:
            for optimizer in self.wrapped_optimizers:
                self._wrap(optimizer, "step", "optimizer_step")

    def _choose_transfer(self) -> Callable[[object, int], object] | None:
        transfer = super()._choose_transfer()
        return (
            None if transfer is None else self.timed(f"{self._strategy}.batch_to_device", transfer)
        )

    def close(self) -> None:
        """Take the wrappers off and let the profiler report."""
        super().close()
        for owner, name, before in reversed(self._wrapped):
            owner.__dict__.pop(name, None)
            if before is not None:
                owner.__dict__[name] = before
        self._wrapped = []
        try:
            self.profiler.describe()
        except OSError as error:
            warn(
                f"{type(self.profiler).__name__} could not write its report: {error}. The run"
                " itself is not affected."
            )
        self.profiler._lightning_module = None

    def _wrap(self, owner: object, name: str, action: str) -> None:
        self._wrapped.append((owner, name, owner.__dict__.get(name)))
        owner.__dict__[name] = Measured(self.profiler, action, getattr(owner, name))

    def _name_of(self, owner: object, name: str) -> str:
        if owner is self.module:
            return (
                f"{self._strategy}.backward"
                if name == "backward"
                else f"[LightningModule]{type(owner).__name__}.{name}"
            )
        if isinstance(owner, LightningDataModule):
            return f"[LightningDataModule]{type(owner).__name__}.{name}"
        return f"[Callback]{getattr(owner, 'state_key', type(owner).__name__)}.{name}"
