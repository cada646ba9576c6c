"""Runs a job in the actors of a Ray Train worker group."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ray import cloudpickle

from raylit.callbacks import RecoveryCheckpoint
from raylit.core.job import Job, Result
from raylit.core.logger import as_loggers
from raylit.errors import LaunchError, Terminated
from raylit.launch.carried_error import WorkerTraceback
from raylit.launch.job_parts import checkpoint_folders, origin_of_restart
from raylit.launch.on_ray import elastic, mailbox, private
from raylit.launch.on_ray.cluster import (
    connect,
    inherited,
    say_dashboard,
    started_here,
)
from raylit.launch.on_ray.elastic import AsManyAsFit, LostNodesAreNoFailures, Room, SaysRestarts
from raylit.launch.on_ray.failure import (
    DEAD,
    ControllerDied,
    advice,
    failure_config,
    less,
    raise_original,
)
from raylit.launch.on_ray.mailbox import ProcessGroup, Restarts, last_line, reason
from raylit.launch.on_ray.nodes import check_shared, missing_folders
from raylit.launch.on_ray.relay import Relay
from raylit.launch.on_ray.resources import check_room, choose_gpu, resources_of
from raylit.launch.on_ray.validation import check_validation_room
from raylit.launch.on_ray.variables import Variables
from raylit.launch.on_ray.watch import Watch
from raylit.launch.on_ray.watchdog import TIMEOUT_S, TIMEOUT_VARIABLE
from raylit.launch.on_ray.worker_main import Preempted, WorkerMain
from raylit.runtime import storage
from raylit.runtime.environment import seconds
from raylit.runtime.messages import info, is_verbose, number_of

if TYPE_CHECKING:
    from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.exceptions import TrainingFailedError

    from raylit.core.trainer import JobTrainer
else:  # the same, but mypy does not see that they are of Ray Train 2
    from ray.train import LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError

# Ray Train polls its workers every 2 s by default, which every fit waits for at its end.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
# Relative paths of user code mean the same in every process.
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
# Ray Train would write each printed line a second time.
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")

for module in (mailbox, elastic, private):
    cloudpickle.register_pickle_by_value(module)

RESIZE_VARIABLE = "RAYLIT_RESIZE_EVERY_S"
RESIZE_EVERY_S = 10.0  # how often an elastic fit looks whether there is room for more workers
ABORT_S = 30.0  # for a running controller; one that waits for the cluster does not listen


class RayTrainLauncher:
    """Starts `num_workers` actors through Ray Train, which restarts actors that died.

    A cluster is joined if `RAY_ADDRESS` names one or `ray.init` was called; else one is started on
    this machine and kept until this process ends, so that only the first fit pays for it.

    Attributes:
        is_ended: whether the driver has ended the workers.
        gpu: whether each worker has a GPU; `prepare` decides.
        resources: what each worker reserves, likewise.
    """

    def __init__(self) -> None:
        self.is_ended = False
        self.gpu = False
        self.resources: dict[str, float] = {}
        self._train_run: private.TrainRun | None = None  # the one that runs
        self._names: list[str] = []  # of Ray Train's runs, one for each start

    def launch(self, job: Job) -> Result:
        """See `Launcher.launch`."""
        work = self.prepare(job)
        self.say_start(job)
        say_where_to_look(job)
        with Relay(self.watch_for(job.trainer)) as relay:
            work.screen = relay.screen
            try:
                with terminated_by_sigterm():
                    result = self.run(job, work, relay)
            except (KeyboardInterrupt, SystemExit) as error:
                if not isinstance(error.__cause__, WorkerTraceback):  # the workers have ended then
                    self.end(job, relay)
                raise
        if not isinstance(result, Result):
            raise LaunchError(
                "Ray Train ended without a result of rank 0. Its log is in the Ray dashboard under"
                " Train."
            )
        return result

    def prepare(self, job: Job) -> WorkerMain:
        """Connect to the cluster, and return the work for the workers, still without their screen.

        Raises:
            ConfigError: the job cannot be sent or run there; no worker was started.
        """
        trainer = job.trainer
        for variable, default in ((TIMEOUT_VARIABLE, TIMEOUT_S), (RESIZE_VARIABLE, RESIZE_EVERY_S)):
            seconds(variable, default)  # a worker would find out long after this
        job.returns_state = True
        work = WorkerMain(job)
        cpus = resources_of(trainer, gpu=False)["CPU"] * trainer.num_workers
        work.shows_prints = connect(cpus)
        work.pickled.store()
        work.variables = Variables.here(inherited())
        self.gpu = choose_gpu(trainer)
        self.resources = resources_of(trainer, self.gpu)
        check_room(trainer.num_workers, trainer.min_workers, self.resources, started_here())
        if trainer.async_validation and job.fn == "fit":
            check_validation_room(trainer, self.resources)  # a worker would find out 20 s later
        work.accelerator = "gpu" if self.gpu else "cpu"
        work.resources = self.resources
        check_shared(_folders(job))
        return work

    def say_start(self, job: Job) -> None:
        """Say that workers are started."""
        each = ", ".join(f"{amount:g} {name}" for name, amount in self.resources.items())
        info(f"Starting {job.trainer.workers_wanted} Ray workers, each with {each}.")

    def watch_for(self, trainer: JobTrainer) -> Watch:
        """Return a watch over the workers of a Trainer."""
        return Watch(
            trainer.min_workers, self.resources, trainer.num_workers if trainer.is_elastic else 0
        )

    def run(self, job: Job, work: Callable[[], bytes | None], relay: Relay) -> object:
        """Have Ray Train call `work` on all workers, and again if they are to be restarted.

        Return the result of rank 0.

        Raises:
            LaunchError: the workers could not be started, or died too often.
            BaseException: what the user's code raised.
        """
        if not job.trainer.fast_dev_run:
            return self._run_until_done(job, work, relay)
        with leaving_nothing(_storage(job), self._names):
            return self._run_until_done(job, work, relay)

    def _run_until_done(self, job: Job, work: Callable[[], bytes | None], relay: Relay) -> object:
        failures = failure_config(job.trainer.max_failures)
        num_preemptions = 0
        while True:
            result = self._run(job, work, failures, relay)
            if self.is_ended:
                return result
            if isinstance(result, ControllerDied):
                self._may_restart(job, result, failures, relay.watch)
                continue
            if not isinstance(result, Preempted):
                return result
            num_preemptions += 1
            if (
                failures.max_preemption_failures != -1
                and num_preemptions > failures.max_preemption_failures
            ):
                raise LaunchError(
                    f"{number_of(num_preemptions, 'node was', 'nodes were')} taken away, and"
                    f" FailureConfig(max_preemption_failures={failures.max_preemption_failures})"
                    " allows no further restart. fit(ckpt_path='last') goes on."
                )
            relay.watch.restart(
                f"Restart {num_preemptions} because of a notice that a node goes away,"
                f" {origin_of_restart(job)}."
            )

    def end(self, job: Job, relay: Relay) -> None:
        """Have the workers of a running job save it and leave, and free their resources.

        An interrupt meanwhile ends them at once.
        """
        self.is_ended = True
        with contextlib.suppress(KeyboardInterrupt):
            for logger in as_loggers(job.trainer.loggers) if job.fn != "predict" else ():
                # whoever sends a SIGTERM may not wait for the workers: `ray job stop` does for 3 s
                logger.announce("killed")
            relay.end_workers()
        self.abort(relay.watch)

    def abort(self, watch: Watch) -> None:
        """End the workers at once, and free their resources."""
        self.is_ended = True
        if self._train_run is not None:
            self._train_run.abort(ABORT_S if watch.is_running else ABORT_S / 10)
        if watch.run:
            private.remove_groups(watch.run)

    def _may_restart(
        self, job: Job, died: ControllerDied, failures: FailureConfig, watch: Watch
    ) -> None:
        """Count a failure that Ray Train could not count itself.

        Raises:
            LaunchError: it was one too many.
        """
        if failures.max_failures != -1 and watch.num_failures >= failures.max_failures:
            raise LaunchError(
                "The process in which Ray Train watches the workers has died"
                f" ({died.why}).{advice([died.why])}"
            )
        watch.failed(
            f"Restart {watch.num_failures + 1}, {origin_of_restart(job)}: the process that"
            f" watches the workers died: {died.why}."
        )

    def _run(
        self, job: Job, work: Callable[[], bytes | None], failures: FailureConfig, relay: Relay
    ) -> object:
        """Have Ray Train call `work` on all workers, once; return the result of rank 0."""
        trainer = job.trainer
        num_failures = relay.watch.num_failures
        restarts = Restarts(
            relay.mailbox, failures.max_failures, num_failures, origin_of_restart(job)
        )
        # another one each time: Ray Train would go on with a run of the same name
        name = f"{job.fn}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
        relay.watch.run = name
        self._names.append(name)
        size: int | tuple[int, int] = trainer.num_workers
        if trainer.is_elastic:
            size = (trainer.min_workers, trainer.num_workers)
        scaling = ScalingConfig(
            num_workers=size,
            use_gpu=self.gpu,
            resources_per_worker=self.resources,
            elastic_resize_monitor_interval_s=seconds(RESIZE_VARIABLE, RESIZE_EVERY_S),
        )
        # A controller that died has taken its count of failures along
        allowed = less(failures, num_failures)
        config = RunConfig(
            name=name,
            storage_path=_storage(job),
            failure_config=allowed,
            logging_config=LoggingConfig(log_level="INFO" if is_verbose() else "WARNING"),
        )
        own = {key: value for key, value in os.environ.items() if key.startswith("RAYLIT_")}
        run: Any = private.TrainRun(
            work,
            # It only wants what every backend has.
            torch_config=ProcessGroup(own),  # type: ignore[arg-type]
            scaling_config=scaling,
            run_config=config,
        )
        run.policies = {"failure_policy": SaysRestarts(allowed, restarts)}
        if trainer.is_elastic:
            room = Room(self.resources, name)
            run.policies = {
                "scaling_policy": AsManyAsFit(scaling, room, relay.mailbox, grows=_goes_on(job)),
                "failure_policy": LostNodesAreNoFailures(allowed, room, restarts),
            }
        self._train_run = run
        try:
            returned = run.fit().return_value
            return None if returned is None else cloudpickle.loads(returned)
        except TrainingFailedError as error:
            raise_original(error)
        except DEAD as error:
            private.remove_groups(name)
            if "creation task" in str(error):  # it would die again
                raise LaunchError(f"Ray Train could not begin: {last_line(str(error))}") from error
            return ControllerDied(reason(error))
        except Exception:
            private.remove_groups(name)
            raise


@contextlib.contextmanager
def terminated_by_sigterm() -> Iterator[None]:
    """Context in which SIGTERM raises Terminated: that of `ray.init` ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received = False

    def interrupt(number: int, frame: object) -> None:
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


@contextlib.contextmanager
def leaving_nothing(folder: str, names: list[str]) -> Iterator[None]:
    """Delete at the end the files of Ray Train's runs in `names`, which may grow until then."""
    missing = [] if "://" in folder else missing_folders(folder)
    try:
        yield
    finally:
        with contextlib.suppress(OSError), storage.asking():
            for name in names:
                if "://" in folder:
                    fs, inner = storage.fresh(f"{folder}/{name}")
                    fs.rm(inner, recursive=True)
                else:
                    shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
        for made in missing:
            with contextlib.suppress(OSError):  # another run has begun to use it
                os.rmdir(made)


def _storage(job: Job) -> str:
    """Return where Ray Train keeps its own files of the run."""
    return job.trainer.storage_path or os.path.join(job.trainer.default_root_dir, "raylit_runs")


def _goes_on(job: Job) -> bool:
    """Tell whether the job can be interrupted at any batch and lose nothing."""
    return job.fn == "fit" and any(
        isinstance(callback, RecoveryCheckpoint) for callback in job.trainer.callbacks
    )


def _folders(job: Job) -> list[str]:
    """Return the folders that the workers write to."""
    return [_storage(job), *(checkpoint_folders(job) if not job.trainer.fast_dev_run else ())]


def say_where_to_look(job: Job) -> None:
    """Say where the job can be followed and where its checkpoints are."""
    for logger in job.trainer.loggers if job.fn != "predict" else ():
        if hasattr(logger, "where"):
            info(f"MLflow: {logger.where()}")
    say_dashboard()
    if folders := checkpoint_folders(job):
        info(f"Checkpoints: {', '.join(folders)}")
