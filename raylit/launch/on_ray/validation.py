"""Validates checkpoints in Ray tasks, for `raylit.async_validation`."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import ray

from raylit.core.callback import Callback
from raylit.core.job import Job
from raylit.engine.run import Run
from raylit.errors import ConfigError
from raylit.launch.job_parts import by_class
from raylit.launch.on_ray.by_value import Pickled
from raylit.launch.on_ray.cluster import connect
from raylit.launch.on_ray.failure import failure_of
from raylit.launch.on_ray.mailbox import WorkerFailure, is_ours
from raylit.loggers.dummy import DummyLogger

if TYPE_CHECKING:
    from raylit.core.module import LightningModule
    from raylit.core.trainer import JobTrainer, RunningTrainer
    from raylit.metrics.metrics import Metrics


class Recorder(DummyLogger):
    """Keeps the values that a validation sends to loggers.

    Attributes:
        rows: what sent it (see `kind`); number of the loader; values; the x-axis.
        metrics: those of the run, whose state tells who logs.
    """

    metrics: Metrics

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[str, int, dict[str, float], int | None]] = []

    @property
    def kind(self) -> str:
        """Who logs: the loop for a `batch` or at its `end`, or the `user` in a hook."""
        if self.metrics.hook is not None:
            return "user"
        return "batch" if self.metrics.in_batch else "end"

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        loader = self.metrics.dataloader_idx or 0
        self.rows.append((self.kind, loader, dict(metrics), step))


class Tells(Callback):
    """Shows a Recorder the metrics of the run."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def setup(self, trainer: RunningTrainer, pl_module: LightningModule, stage: str) -> None:
        run = trainer.run
        assert isinstance(run, Run)
        self.recorder.metrics = run.metrics


class ValidationTasks:
    """Starts the tasks of one fit, and holds them until their values are taken.

    Args:
        job: the fit, as yet untouched: the tasks get copies of its module and its validation data.

    Raises:
        ConfigError: they cannot be sent.
    """

    def __init__(self, job: Job) -> None:
        trainer = job.trainer
        config = job.trainer.async_validation
        assert config is not None
        connect()
        callbacks = [one for one in trainer.callbacks if _takes_part(one)]
        validating = trainer.replaced(
            num_workers=0,
            devices=None,
            num_nodes=1,
            use_gpu=None,
            accelerator="gpu" if config.num_gpus else "cpu",
            strategy="auto",
            resources_per_worker=None,
            max_failures=0,
            logger=Recorder(),
            callbacks=callbacks,
            max_epochs=1,
            max_time=None,
            profiler=None,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            async_validation=False,
        )
        content = (validating, job.module, job.data.get("val"), job.datamodule, job.weights_only)
        parts = {
            "The LightningModule": job.module,
            "The LightningDataModule": job.datamodule,
            "The val data": job.data.get("val"),
            **by_class("The callback", callbacks),
        }
        self._pickled = ray.put(Pickled(content, parts))
        self._validate = ray.remote(_validate).options(
            num_cpus=config.num_cpus,
            num_gpus=config.num_gpus,
            resources=config.resources or None,
            scheduling_strategy="SPREAD",  # not among the resources of the worker that asks for it
        )
        self._futures: dict[str, concurrent.futures.Future[object]] = {}
        self._refs: dict[str, ray.ObjectRef[object]] = {}

    def start(self, path: str, progress: dict[str, object], then: Callable[[], None]) -> None:
        """Have the checkpoint at `path` validated.

        `then` is called, in another thread, once that has ended.
        """
        self._refs[path] = self._validate.remote(self._pickled, path, progress)
        future = self._refs[path].future()
        self._futures[path] = future
        future.add_done_callback(lambda _: then())

    def has(self, path: str) -> bool:
        """Tell whether it was started."""
        return path in self._futures

    def is_ready(self, path: str) -> bool:
        """Tell whether it has ended."""
        return path in self._futures and self._futures[path].done()

    def wait(self, path: str, seconds: float) -> None:
        """Wait until it has ended, but no longer than this."""
        if path in self._futures:
            concurrent.futures.wait([self._futures[path]], timeout=seconds)

    def outcome(self, path: str) -> object:
        """Return its result, the WorkerFailure it ended with, or in words why there is no result.

        The validation is forgotten then.
        """
        del self._refs[path]
        try:
            found = self._futures.pop(path).result()
        except (ray.exceptions.RayError, concurrent.futures.CancelledError) as error:
            text = str(error).strip()
            return f"its task was lost ({text.splitlines()[0] if text else type(error).__name__})."
        # This process's own class, to be sent to the other ranks
        return WorkerFailure(*found.args) if is_ours(found) else found

    def cancel(self) -> None:
        """End the validations that run."""
        for ref in self._refs.values():
            ray.cancel(ref, force=True)
        self._refs = {}
        self._futures = {}


def check_validation_room(trainer: JobTrainer, taken: Mapping[str, float]) -> None:
    """Find that a validation would wait for ever.

    Asked once, before the fit: a cluster that loses a node while it trains may get another.

    Args:
        trainer: of the fit.
        taken: what each of its workers reserves; nothing where it runs in this process.

    Raises:
        ConfigError: it would, beside the workers; or, if they are elastic, could once they are as
            many as they may be.
    """
    config = trainer.async_validation
    assert config is not None
    wanted = {"CPU": config.num_cpus, "GPU": config.num_gpus, **config.resources}
    has = ray.cluster_resources()
    for name, amount in wanted.items():
        # rounded as Ray counts, so that 1 - 0.9 leaves 0.1
        left = round(has.get(name, 0) - trainer.num_workers * taken.get(name, 0), 4)
        is_to_grow = left < 0 and not trainer.is_elastic  # or there would be no workers either
        if amount > max(left, 0) and not is_to_grow:
            raise ConfigError(
                f"An asynchronous validation wants {amount:g} {name}, but beside"
                f" {'up to ' if trainer.is_elastic else 'the '}{trainer.num_workers} workers the"
                f" Ray cluster has {max(left, 0):g}: it would never begin. Leave room for it, or"
                " have it share what the workers reserve:"
                " Trainer(async_validation=ValidationConfig(num_cpus=0))."
            )


def _takes_part(callback: Callback) -> bool:
    """Tell whether a callback of the user's own is called in validation."""
    own = not (type(callback).__module__.startswith("raylit.") or callback.watches_metrics)
    return own and any(
        name.startswith("on_validation")
        for cls in type(callback).__mro__
        if cls not in Callback.__mro__  # whose hooks do nothing
        for name in vars(cls)
    )


def _validate(pickled: Pickled, path: str, progress: dict[str, object]) -> object:
    """Validate a checkpoint, in a process of its own."""
    try:
        # The values go back to the fit, which logs them: no need for MLflow's passwords here.
        # Ray lets this process do other tasks later, of other fits too
        with pickled.variables.applied(tracking=False):
            return _values(pickled, path, progress)
    except BaseException as error:
        return failure_of(error)


def _values(pickled: Pickled, path: str, progress: dict[str, object]) -> dict[str, object]:
    """Return what a validation of the checkpoint gives, for the fit to take."""
    trainer, module, data, datamodule, weights_only = pickled.content()
    (recorder,) = trainer.loggers
    trainer.callbacks.append(Tells(recorder))
    trainer.progress.load_state_dict(progress)
    trainer.validate(
        module,
        data,
        ckpt_path=path,
        datamodule=datamodule,
        weights_only=weights_only,
        verbose=False,
    )
    metrics = trainer.run.metrics
    return {
        "callback": metrics.callback,
        "logged": metrics.logged,
        "progress_bar": metrics.progress_bar,
        "rows": recorder.rows,
        "seen": dict(trainer.run.data.val_batches_seen),
    }
