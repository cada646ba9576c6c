"""Runs a job in the actors of a Ray Train worker group. The only place for Ray Train."""

from __future__ import annotations

import os
import time
import uuid
from typing import Any

from ray import cloudpickle
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer

from raylit.errors import LaunchError
from raylit.job import Job, Result
from raylit.launch.cluster import connect
from raylit.launch.relay import Relay
from raylit.rng import seed_everything
from raylit.worker import run_job

# Ray Train polls its workers every 2 s by default, which every fit waits for at its end.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")


class RayTrainLauncher:
    """Starts `num_workers` actors through Ray Train's TorchTrainer, which makes torch's process group and restarts actors that died.

    A cluster is joined if `RAY_ADDRESS` names one or `ray.init` was called; else one is started on this machine and kept until this process
    ends, so that only the first fit pays for it.
    """

    def launch(self, job: Job) -> Result:
        """See `Launcher.launch`."""
        trainer = job.trainer
        resources = {"CPU": 1.0, **({"GPU": 1.0} if trainer.use_gpu else {}), **(trainer.resources_per_worker or {})}
        connect(trainer.num_workers, resources)
        with Relay() as relay:
            job.display, job.returns_state = relay.screen, True
            ray_trainer = TorchTrainer(
                _Work(job),
                torch_config=TorchConfig(),
                scaling_config=ScalingConfig(num_workers=trainer.num_workers, use_gpu=trainer.use_gpu, resources_per_worker=resources),
                run_config=RunConfig(
                    name=f"{job.fn}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}",
                    storage_path=trainer.storage_path or os.path.join(trainer.default_root_dir, "raylit_runs"),
                    failure_config=FailureConfig(max_failures=trainer.max_failures),
                ),
            )
            try:
                result: Any = ray_trainer.fit().return_value
            except TrainingFailedError as error:
                _raise_original(error)
        if not isinstance(result, Result):
            raise LaunchError("Ray Train ended without a result of rank 0. Its log is in the Ray dashboard under Train.")
        return result


class _Work:
    """What each worker calls; a class, so that what it needs is pickled with it."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.started_at = time.time()
        self.seed = os.environ.get("PL_GLOBAL_SEED")

    def __call__(self) -> Result | None:
        rank = int(os.environ.get("RANK", "0"))
        if self.seed is not None:
            # the same weights come from the driver; what is drawn during training (dropout) differs between ranks
            seed_everything(int(self.seed) + rank, verbose=False)
            os.environ["PL_GLOBAL_SEED"] = self.seed
        if self.job.fn == "fit":
            self.job.ckpt_path = newest_since(self.job, self.started_at) or self.job.ckpt_path
        try:
            result = run_job(self.job)
        except Exception as error:
            raise _portable(error) from error.__cause__
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


def _portable(error: Exception) -> Exception:
    """Return the exception, or one with the same text if it does not survive the way to the driver."""
    try:
        cloudpickle.loads(cloudpickle.dumps(error))
    except Exception as problem:
        stand_in = LaunchError(f"{type(error).__qualname__}: {error}")
        for note in [*getattr(error, "__notes__", ()), f"the original exception cannot be pickled: {problem!r}"]:
            stand_in.add_note(note)
        return stand_in
    return error


def _raise_original(error: TrainingFailedError) -> None:
    """Raise the user's own exception that ended the run: the first, if several ranks failed.

    Raises:
        LaunchError: no exception of user code ended it: a worker died or could not be started.
    """
    failures = getattr(error, "worker_failures", {})
    own = [(failure._base_exc, failure._traceback_str) for failure in failures.values() if hasattr(failure, "_base_exc")]
    if own:
        first, text = min(own, key=lambda pair: getattr(pair[0], "raylit_failed_at", float("inf")))
        raise first from WorkerTraceback(text)
    reasons = "; ".join(
        f"rank {rank}: {str(failure).strip().splitlines()[0] if str(failure).strip() else type(failure).__name__}"
        for rank, failure in failures.items()
    )
    raise LaunchError(
        f"The Ray workers ended without finishing ({reasons or str(error).strip().splitlines()[-1]}). Set max_failures to have them restarted."
    ) from error


class WorkerTraceback(Exception):
    """The traceback of an exception in a worker, as text, since tracebacks do not travel."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'
