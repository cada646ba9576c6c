"""The beginning and the end of a job in the user's process, wherever the job runs."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Iterator
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any

from raylit.callbacks import Checkpoint, ModelCheckpoint
from raylit.checkpoint import find, folder
from raylit.checkpoint.format import outline
from raylit.core.datamodule import LightningDataModule
from raylit.core.job import Job
from raylit.core.logger import as_loggers
from raylit.core.module import LightningModule
from raylit.core.states import TrainerStatus
from raylit.errors import CheckpointError, ConfigError, WrongTypeError, foreign_hint, what_it_is
from raylit.loggers import Logger
from raylit.runtime.aliases import Loaders, StateDict
from raylit.runtime.messages import rank, warn
from raylit.runtime.storage import is_url, unwritable
from raylit.runtime.tracebacks import hide_own_frames
from raylit.trainer.resolved import config_text
from raylit.version import __version__

if TYPE_CHECKING:
    from raylit.launch import Launcher
    from raylit.launch.on_ray.pool import KeptWorkers
    from raylit.trainer.trainer import Trainer


def check_model(fn: str, model: Any) -> LightningModule:
    """Return `model` if it is a LightningModule.

    Of `torch.compile(model)`, the model, which remembers how it is to be compiled.

    Raises:
        WrongTypeError: it is something else.
    """
    wrapped = getattr(model, "_orig_mod", None)
    if isinstance(wrapped, LightningModule):
        wrapped._torch_compile = model.dynamo_ctx
        return wrapped
    if not isinstance(model, LightningModule):
        raise WrongTypeError(
            f"`model` must be a `LightningModule` or `torch._dynamo.OptimizedModule`, got"
            f" `{type(model).__name__}`: Trainer.{fn} wants a LightningModule, but got"
            f" {what_it_is(model)}.{foreign_hint(model)}"
        )
    return model


def check_data(
    fn: str, data: dict[str, Loaders], datamodule: LightningDataModule | None
) -> tuple[dict[str, Loaders], LightningDataModule | None]:
    """Return the loaders by stage, and the datamodule.

    A datamodule may have been given in the place of the first loaders.

    Raises:
        ConfigError: the data is given twice.
    """
    first = next(iter(data))
    if isinstance(data[first], LightningDataModule):
        if datamodule is not None:
            raise ConfigError(f"Trainer.{fn} got two datamodules. Give one.")
        datamodule = data[first]
        data = {stage: loader for stage, loader in data.items() if stage != first}
    given = {stage: loader for stage, loader in data.items() if loader is not None}
    for stage, loader in given.items():
        if isinstance(loader, (str, bytes)):
            raise WrongTypeError(
                f"Trainer.{fn} got the text {loader!r} as {stage} data, and would read its letters."
                " Give a DataLoader; or a datamodule that reads files, such as ParquetDataModule."
            )
    _check_kind(fn, datamodule)
    if given and datamodule is not None:
        passed = (
            "`train_dataloader` or `val_dataloaders` to `trainer.fit(datamodule=...)`"
            if fn == "fit"
            else f"both `trainer.{fn}(dataloaders=..., datamodule=...)`"
        )
        raise ConfigError(
            f"You cannot pass {passed}: Trainer.{fn} got both loaders and a datamodule. Give one of"
            " the two."
        )
    return given, datamodule


def origin_of(model: LightningModule) -> find.Origin:
    """Return the model whose checkpoints `best` and `last` may find."""
    cls = type(model)
    return find.Origin(f"{cls.__module__}.{cls.__qualname__}", dict(model.hparams))


def _check_kind(fn: str, datamodule: object) -> None:
    """Check that the object given as a datamodule is one.

    Raises:
        ConfigError: it is not.
    """
    if datamodule is None or isinstance(datamodule, LightningDataModule):
        return
    hint = foreign_hint(datamodule)
    if not hint and not isinstance(datamodule, type):
        hint = " Loaders go before it: fit(model, train_loader, val_loader)."
    raise ConfigError(
        f"Trainer.{fn}(datamodule=...) wants a LightningDataModule, but got"
        f" {what_it_is(datamodule)}.{hint}"
    )


def check_places(fn: str, trainer: Trainer) -> None:
    """Find out whether the folders and URLs that a job would write to can be written to.

    Raises:
        NotSavedError: a URL cannot.
        MissingPackageError: a package for one is not installed.
        ConfigError: a folder cannot, or sharded checkpoints were to be saved at a URL.
    """
    # A fast dev run in this process leaves no file
    if trainer.fast_dev_run and not trainer.num_workers:
        return
    own = (
        {saver: getattr(saver, "dirpath", None) for saver in trainer.savers} if fn == "fit" else {}
    )
    default = trainer.storage_url or trainer.default_root_dir
    if trainer.strategy.saves_folders:
        for saver, dirpath in own.items():
            if isinstance(saver, Checkpoint) and is_url(dirpath or default):
                raise ConfigError(
                    f"{type(saver).__name__} would save to {dirpath or default}, but a sharded"
                    " checkpoint needs a folder that all ranks reach. Give it one with"
                    " dirpath='/mnt/shared/run', or use state_dict_type='full'."
                )
    loggers = as_loggers(trainer.loggers) if fn != "predict" else []
    places = [*own.values(), *(logger.save_dir for logger in loggers)]
    if trainer.num_workers or None in own.values():
        places.append(default)
    for one in sorted(
        {os.fspath(place) for place in places if isinstance(place, (str, os.PathLike))}
    ):
        if is_url(one):
            folder.check_writable(one)
        elif (problem := unwritable(os.path.abspath(one))) is not None:
            raise ConfigError(
                f"The run would write to {one}, but nothing can be written there: {problem}. Give"
                " another folder (default_root_dir, storage_path, the dirpath of the checkpoint"
                " callback, the save_dir of the logger), or correct that."
            )


def check_cluster(trainer: Trainer) -> None:
    """Find out whether the Ray cluster asked for answers, before loggers make their folders.

    Raises:
        ConfigError: RAY_ADDRESS names none that does.
    """
    if trainer.num_workers and trainer.launcher != "local" and os.environ.get("RAY_ADDRESS"):
        from raylit.launch.on_ray.address import check_cluster_of_environment

        check_cluster_of_environment()


def best_by_default(
    fn: str,
    module: LightningModule | None,
    saver: Checkpoint | None,
    ckpt_path: str | os.PathLike[str] | None,
) -> str | os.PathLike[str] | None:
    """Return the checkpoint for a job that names no model: the best one of the last fit.

    Raises:
        TypeError: there was no job before.
    """
    if module is None:
        raise TypeError(
            f"`Trainer.{fn}()` requires a `LightningModule` when it hasn't been passed in a"
            f" previous run: Trainer.{fn} needs a model: give it, or call fit before."
        )
    if ckpt_path is not None or not isinstance(saver, ModelCheckpoint) or not saver.best_model_path:
        return ckpt_path
    warn(
        f"Trainer.{fn} was given neither a model nor ckpt_path: the best checkpoint of the last fit"
        f" is loaded ({saver.best_model_path})."
    )
    return "best"


def launcher_for(job: Job) -> Launcher:
    """Return the launcher for a job: this process, others of this machine, or Ray's workers."""
    if job.trainer.num_workers == 0:
        # Under torchrun each process comes here, and one starts the tasks for all
        if job.trainer.async_validation and job.fn == "fit" and rank() == 0:
            from raylit.launch.on_ray.validation import ValidationTasks, check_validation_room

            job.validation_starter = ValidationTasks(job)
            check_validation_room(job.trainer, {})
        from raylit.launch.local import LocalLauncher

        return LocalLauncher()
    if getattr(job.module, "_torch_compile", None) is not None:
        raise ConfigError(
            "What torch.compile(model) returned cannot be sent to workers. Give them the model"
            " itself, and Trainer(compile=True)."
        )
    if job.trainer.launcher == "local":
        from raylit.launch.processes.launcher import ProcessLauncher

        return ProcessLauncher()
    kept = _kept.get()
    if kept is not None and not job.trainer.is_elastic:
        from raylit.launch.on_ray.pool import KeptWorkers

        if not kept:
            kept.append(KeptWorkers())
        return kept[0]
    for workers in kept or ():
        workers.release()  # what they hold, it may want
    from raylit.launch.on_ray.launcher import RayTrainLauncher

    return RayTrainLauncher()


# One, once there is a job for it
_kept: ContextVar[list[KeptWorkers] | None] = ContextVar("kept workers", default=None)


@contextlib.contextmanager
def keep_workers() -> Iterator[None]:
    """Run the jobs of a `with` block on the same Ray workers, of whatever Trainer they are.

    Only the first job waits for workers to start. Between jobs they keep their resources. A job
    that wants other workers (in number, resources or `max_failures`) ends them and starts its own,
    as does an elastic job, and the first job after one that failed. `max_failures` counts for all
    jobs of the same workers. Jobs with `num_workers=0` are not affected.

    Example:
        >>> with raylit.keep_workers():
        ...     trainer.fit(model, datamodule=data)
        ...     trainer.test(model, datamodule=data)
    """
    if _kept.get() is not None:
        yield
        return
    kept: list[KeptWorkers] = []
    token = _kept.set(kept)
    try:
        yield
    finally:
        _kept.reset(token)
        for workers in kept:
            workers.release()


def _goes_on(logger: Logger) -> bool:
    own = type(logger)
    return own.resume is not Logger.resume or own.load_state_dict is not Logger.load_state_dict


def _joins(logger: Logger) -> bool:
    return type(logger).join is not Logger.join


def _is_newest(path: str, own: StateDict) -> bool:
    """Tell whether no newer checkpoint of the same run lies beside one, or among its recoveries.

    Args:
        path: of the checkpoint.
        own: what it says of itself.
    """
    beside = os.path.dirname(path)
    if os.path.basename(beside) == "recovery":
        beside = os.path.dirname(beside)
    for folder_of_it in (beside, os.path.join(beside, "recovery")):
        for other in folder.newest_first(folder_of_it, "*.ckpt"):
            try:
                its = outline(other).get("raylit", {})
            except CheckpointError:
                continue  # damaged
            if its.get("run_id") == own["run_id"] and _batches(its) > _batches(own):
                return False
    return True


def _batches(own: StateDict) -> int:
    return int(own.get("progress", {}).get("total_batches", 0))


def _keeps_config(job: Job) -> bool:
    """Tell whether a callback keeps the config from which the fit was made."""
    return any(getattr(callback, "keeps_config", False) for callback in job.trainer.callbacks)


class Driving:
    """The `with` block in which a job runs: loggers are open, a notebook sees no frames of ours.

    Args:
        job: what runs.
    """

    def __init__(self, job: Job) -> None:
        self._loggers = _loggers_open(job)

    def __enter__(self) -> None:
        self._loggers.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loggers.__exit__(kind, error, trace)
        if error is not None:
            hide_own_frames(error)  # here: `contextmanager` would set the traceback back


@contextlib.contextmanager
def _loggers_open(job: Job) -> Iterator[None]:
    """Open the loggers before any process starts, close them after the last has ended.

    The job runs in the `with` block; loggers are told how it ended.
    """
    trainer = job.trainer
    status = "failed"
    opened: list[Logger] = []
    try:
        if job.fn != "predict":
            _open_loggers(job, opened)
        yield
        status = "success"
        if job.fn == "fit" and trainer.should_stop:
            for logger in opened:
                logger.explain("stopped early")
    # Loggers are told of Ctrl-C and SystemExit too
    except BaseException as error:
        from raylit.engine.worker import status_of

        status = status_of(error)
        trainer.state.status = TrainerStatus.INTERRUPTED
        text = "".join(traceback.format_exception(error)) if status == "failed" else ""
        first = str(error).partition("\n")[0]
        for logger in opened:
            logger.explain(f"{type(error).__name__}: {first}".removesuffix(": "), text)
        raise
    finally:
        for logger in opened:
            logger.close(status)


def _open_loggers(job: Job, opened: list[Logger]) -> None:
    """Open the loggers of a job, with the run that its checkpoint names.

    Args:
        job: not a prediction, which logs nothing.
        opened: gets each that is open, so that those are closed if the next cannot be opened.
    """
    trainer = job.trainer
    own = _logged_before(job)
    run_id = own.get("run_id")
    log_steps = own.get("progress", {}).get("log_steps", 0)
    # There may be more loggers now than when the checkpoint was saved
    states = [*own.get("loggers", []), *({} for _ in trainer.loggers)]
    may_branch = job.fn == "fit" and job.is_picked and run_id is not None
    is_newest = not may_branch or _is_newest(str(job.ckpt_path), own)
    tags = {"raylit.version": __version__, "raylit.num_workers": trainer.workers_wanted}
    for logger, state in zip(as_loggers(trainer.loggers), states, strict=False):
        if job.fn != "fit":
            # the x of the checkpoint's newest values: `log_steps` counts them from 1, x from 0
            logger.join(run_id, max(0, log_steps - 1))
        elif run_id is not None:
            logger.resume(run_id)
            if may_branch:
                logger.branch(log_steps, is_newest=is_newest)
        elif not job.ckpt_path and not trainer.progress.total_batches:
            logger.start_over()
        if job.fn == "fit":
            logger.load_state_dict(state)
        logger.open(default_root_dir=trainer.default_root_dir, tags=tags)
        opened.append(logger)
    keeps = any(type(one).log_config is not Logger.log_config for one in opened)
    if job.fn == "fit" and keeps and not _keeps_config(job):
        goes_on = run_id in {one.run_id for one in opened}
        try:
            job.config = config_text(job, goes_on=goes_on)
        except Exception as error:  # it looks into objects of any class
            warn(
                "The loggers keep no config of this fit, since it could not be written:"
                f" {type(error).__name__}: {error}"
            )


def _logged_before(job: Job) -> StateDict:
    """Return what raylit keeps in the job's checkpoint, if a logger wants to know of it."""
    wants_to_know = _goes_on if job.fn == "fit" else _joins
    loggers = as_loggers(job.trainer.loggers)
    if job.task is not None or not job.ckpt_path or not any(map(wants_to_know, loggers)):
        return {}
    io = job.trainer.checkpoint_io
    found = job.opened.get(job.ckpt_path)
    if io is not None:
        found = io.load_checkpoint(job.ckpt_path, "cpu", job.weights_only)
    elif found is None:
        # Without the tensors, which the job reads: so it takes a moment for a large file too
        found = outline(job.ckpt_path, weights_only=job.weights_only)
    own: StateDict = found.get("raylit", {})
    return own
