"""Runs a job in the actors of a Ray Train worker group. The only place for Ray Train."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import traceback
import uuid
from collections.abc import Iterator
from typing import Any

import ray
from ray import cloudpickle
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from raylit.errors import LaunchError, Terminated
from raylit.job import Job, Result
from raylit.launch.cluster import connect, is_verbose
from raylit.launch.network import ProcessGroup
from raylit.launch.parcel import Parcel
from raylit.launch.relay import Relay, RemoteScreen, echoing
from raylit.messages import info
from raylit.parallel import is_lost_peer
from raylit.rng import seed_everything
from raylit.worker import run_job

# Ray Train polls its workers every 2 s by default, which every fit waits for at its end.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
# Relative paths of user code mean the same in every process.
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
# Ray Train would write each printed line a second time.
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")


class RayTrainLauncher:
    """Starts `num_workers` actors through Ray Train's TorchTrainer, which makes torch's process group and restarts actors that died.

    A cluster is joined if `RAY_ADDRESS` names one or `ray.init` was called; else one is started on this machine and kept until this process
    ends, so that only the first fit pays for it.
    """

    def launch(self, job: Job) -> Result:
        """See `Launcher.launch`."""
        trainer = job.trainer
        resources = {"CPU": 1.0, **({"GPU": 1.0} if trainer.use_gpu else {}), **(trainer.resources_per_worker or {})}
        job.returns_state = True
        work = _Work(job)
        work.shows_prints = connect(trainer.num_workers, resources)
        info(
            f"Starting {trainer.num_workers} Ray workers, each with {', '.join(f'{amount:g} {name}' for name, amount in resources.items())}."
        )
        with Relay() as relay:
            work.screen = relay.screen
            ray_trainer: Any = _Trainer(
                work,  # type: ignore[arg-type]  # likewise
                torch_config=ProcessGroup(),
                scaling_config=ScalingConfig(num_workers=trainer.num_workers, use_gpu=trainer.use_gpu, resources_per_worker=resources),
                run_config=RunConfig(  # type: ignore[call-arg]  # mypy sees Ray Train's first version, which v2 replaces at run time
                    name=f"{job.fn}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}",
                    storage_path=trainer.storage_path or os.path.join(trainer.default_root_dir, "raylit_runs"),
                    failure_config=FailureConfig(max_failures=trainer.max_failures),
                    logging_config=LoggingConfig(log_level="INFO" if is_verbose() else "WARNING"),
                ),
            )
            try:
                with _terminated_by_sigterm():
                    result = ray_trainer.fit().return_value
            except TrainingFailedError as error:
                _raise_original(error)
            except (KeyboardInterrupt, SystemExit):
                ray_trainer.abort()
                raise
        if not isinstance(result, Result):
            raise LaunchError("Ray Train ended without a result of rank 0. Its log is in the Ray dashboard under Train.")
        return result


class _Trainer(TorchTrainer):
    """A TorchTrainer that Ctrl-C ends as Python says: Ray's own handler would end the process, with exit code 1 and without a word."""

    _controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        self._controller = controller

    def abort(self, timeout_s: float = 30) -> None:
        """Stop the workers and what holds their resources."""
        if self._controller is None:
            return
        try:
            ray.get(self._controller.abort.remote(), timeout=timeout_s)
        except ray.exceptions.RayActorError:
            return  # how it ends
        except ray.exceptions.GetTimeoutError:
            ray.kill(self._controller)


@contextlib.contextmanager
def _terminated_by_sigterm() -> Iterator[None]:
    """Within, SIGTERM raises Terminated here: `ray.init` has set a handler that ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received = False

    def interrupt(number: int, frame: Any) -> None:
        nonlocal received
        received = True
        raise KeyboardInterrupt  # the only exception that gets out of a waiting `ray.get`

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        if received:
            raise Terminated from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


class _Work:
    """What each worker calls; a class, so that what it needs is pickled with it.

    Attributes:
        screen: where rank 0 shows its progress.
        shows_prints: whether what is printed is shown there too.
    """

    screen: RemoteScreen
    shows_prints: bool

    def __init__(self, job: Job) -> None:
        trainer = job.trainer
        parts = {
            "The LightningModule": job.module,
            "The LightningDataModule": job.datamodule,
            **{f"The {stage} data": loaders for stage, loaders in job.data.items()},
            **{f"The callback {type(callback).__name__}": callback for callback in trainer.callbacks},
            **{f"The logger {type(logger).__name__}": logger for logger in trainer.loggers},
        }
        self.parcel = Parcel(job, parts)
        self.started_at = time.time()
        self.seed = os.environ.get("PL_GLOBAL_SEED")

    def __call__(self) -> Result | None:
        rank = int(os.environ["RANK"])
        with echoing(self.screen, rank) if self.shows_prints else contextlib.nullcontext():
            try:
                job: Job = self.parcel.unpack()
                job.display = self.screen
                if self.seed is not None:
                    # the same weights come from the driver; what is drawn during training (dropout) differs between ranks
                    seed_everything(int(self.seed) + rank, verbose=False)
                    os.environ["PL_GLOBAL_SEED"] = self.seed
                if job.fn == "fit":
                    job.ckpt_path = newest_since(job, self.started_at) or job.ckpt_path
                result = run_job(job)
            except Exception as error:
                raise WorkerFailure.of(error) from None
            finally:
                self.screen.wait()
        return result if rank == 0 else None


def newest_since(job: Job, started_at: float) -> str | None:
    """Return the newest checkpoint that this job has written: there is one when Ray restarted the workers."""
    files: list[tuple[float, str]] = []
    for callback in job.trainer.checkpoint_callbacks:
        folder = getattr(callback, "dirpath", None) or getattr(callback, "resolve_dirpath", lambda trainer: None)(job.trainer)
        if folder and "://" not in folder and os.path.isdir(folder):
            for entry in os.scandir(folder):
                if entry.name.endswith(".ckpt") and entry.stat().st_mtime >= started_at:
                    files.append((entry.stat().st_mtime, entry.path))
    return max(files)[1] if files else None


class WorkerFailure(Exception):
    """Carries an exception of user code from a worker to the driver, whatever arguments its class wants when it is made.

    Attributes:
        at: seconds since the epoch when it was raised.
        text: its traceback, since tracebacks do not travel.
        parts: class, arguments and attributes of the exception, pickled; None if they cannot be.
    """

    def __init__(self, at: float, text: str, parts: bytes | None) -> None:
        super().__init__(at, text, parts)
        self.at, self.text, self.parts = at, text, parts

    @classmethod
    def of(cls, error: Exception) -> WorkerFailure:
        """Return what carries `error`, which is being handled."""
        try:
            parts = cloudpickle.dumps((type(error), error.args, error.__dict__))
            cloudpickle.loads(parts)
        except Exception:  # whatever the user's own attributes raise when pickled
            parts = None
        return cls(time.time(), traceback.format_exc(), parts)

    def original(self) -> Exception:
        """Return the exception, or one with the same text if it cannot be pickled."""
        if self.parts is None:
            return LaunchError(f"{self.text.strip().splitlines()[-1]} (this stands for the original exception, which cannot be pickled)")
        kind, args, attributes = cloudpickle.loads(self.parts)
        error: Exception = kind.__new__(kind, *args)
        error.__dict__.update(attributes)
        return error

    def __str__(self) -> str:
        return self.text


class WorkerTraceback(Exception):
    """The traceback of an exception in a worker, as text."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def _raise_original(error: TrainingFailedError) -> None:
    """Raise the user's own exception that ended the run: the first, if several ranks failed.

    Raises:
        LaunchError: no exception of user code ended it: a worker died or could not be started.
    """
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    own = sorted((failure for failure in failures.values() if isinstance(failure, WorkerFailure)), key=lambda failure: failure.at)
    dead = {rank: failure for rank, failure in failures.items() if not isinstance(failure, WorkerFailure)}
    for failure in own:
        # when a worker dies, those that were waiting for it fail too
        if not dead or not is_lost_peer(failure.original()):
            raise failure.original() from WorkerTraceback(failure.text)
    reasons = [f"rank {rank}: {_reason(failure)}" for rank, failure in dead.items()]
    raise LaunchError(
        f"The Ray workers ended without finishing ({'; '.join(reasons) or str(error).strip().splitlines()[-1]})."
        " Trainer(max_failures=1) has them restarted from the newest checkpoint."
    ) from error


def _reason(failure: Exception) -> str:
    """Return the telling line of one of Ray's errors, without its list of what might have been."""
    lines = (str(failure).strip() or type(failure).__name__).splitlines()
    return next((line for line in lines if line.startswith("The actor is dead")), lines[0]).partition(" Some common causes")[0].rstrip(".")
