"""Runs a job in the actors of a Ray Train worker group. The only place for Ray Train."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import ray
from ray import cloudpickle
from ray.train import LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raylit.callbacks import RecoveryCheckpoint
from raylit.core.job import Job, Result
from raylit.errors import LaunchError, Terminated
from raylit.launch.on_ray import elastic, mailbox
from raylit.launch.on_ray.cluster import connect, is_verbose, resources_of, say_dashboard
from raylit.launch.on_ray.elastic import AsManyAsFit, LostNodesAreNoFailures, Room
from raylit.launch.on_ray.failure import (
    DEAD,
    ControllerDied,
    advice,
    failure_config,
    less,
    raise_original,
)
from raylit.launch.on_ray.mailbox import ProcessGroup, Restarts, last_line, reason
from raylit.launch.on_ray.nodes import check_shared
from raylit.launch.on_ray.relay import Relay
from raylit.launch.on_ray.watch import Watch, groups, remove_groups
from raylit.launch.on_ray.worker_main import Preempted, Work, checkpoint_folders
from raylit.runtime.messages import info

if TYPE_CHECKING:
    from raylit.core.trainer import JobTrainer

# Ray Train polls its workers every 2 s by default, which every fit waits for at its end.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
# Relative paths of user code mean the same in every process.
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
# Ray Train would write each printed line a second time.
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")

cloudpickle.register_pickle_by_value(mailbox)
cloudpickle.register_pickle_by_value(elastic)

# Ray Train's own: what removes the groups that `remove_groups` removes, and what serves Ray
# Datasets, of which the workers get none.
RESIZE_EVERY_S = 10.0  # how often an elastic fit looks whether there is room for more workers
ABORT_S = 30.0  # for a running controller; one that waits for the cluster does not listen
NOT_NEEDED = ("PlacementGroupCleanerCallback", "DatasetsCallback")


class RayTrainLauncher:
    """Starts `num_workers` actors through Ray Train's TorchTrainer, which makes torch's process group and restarts actors that died.

    A cluster is joined if `RAY_ADDRESS` names one or `ray.init` was called; else one is started on this machine and kept until this process
    ends, so that only the first fit pays for it.
    """

    _ray_trainer: Any = None  # that runs
    _before: Collection[str] | None = None  # groups of reserved resources that are others'
    is_ended = False  # by the driver

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
            except (KeyboardInterrupt, SystemExit):
                self.end(job, relay)
                raise
        if not isinstance(result, Result):
            raise LaunchError(
                "Ray Train ended without a result of rank 0. Its log is in the Ray dashboard under"
                " Train."
            )
        return result

    def prepare(self, job: Job) -> Work:
        """Connect to the cluster, and return what the workers are to do, but for the screen that it is shown on."""
        trainer = job.trainer
        self.resources = resources_of(trainer)
        job.returns_state = True
        work = Work(job)
        work.shows_prints = connect(trainer.num_workers, self.resources, trainer.min_workers)
        check_shared(_folders(job))
        return work

    def say_start(self, job: Job) -> None:
        """Say that workers are started."""
        each = ", ".join(f"{amount:g} {name}" for name, amount in self.resources.items())
        info(f"Starting {job.trainer.workers_wanted} Ray workers, each with {each}.")

    def watch_for(self, trainer: JobTrainer) -> Watch:
        """Return what follows the workers of a Trainer."""
        return Watch(
            trainer.min_workers, self.resources, trainer.num_workers if trainer.is_elastic else 0
        )

    def run(self, job: Job, work: Callable[[], bytes | None], relay: Relay) -> Any:
        """Have Ray Train call `work` on all workers, again if they are to be started anew.

        Return what rank 0 returned.

        Raises:
            LaunchError: the workers could not be started, or died too often.
            BaseException: what the user's code raised.
        """
        failures = failure_config(job.trainer.max_failures)
        num_preemptions = 0
        while True:
            result = self._run(job, work, failures, relay)
            if self.is_ended:
                return result
            if isinstance(result, ControllerDied):
                self._may_restart(result, failures, relay.watch)
                continue
            if not isinstance(result, Preempted):
                return result
            num_preemptions += 1
            if (
                failures.max_preemption_failures != -1
                and num_preemptions > failures.max_preemption_failures
            ):
                raise LaunchError(
                    f"A node was taken away for the {num_preemptions}. time, and"
                    f" FailureConfig(max_preemption_failures={failures.max_preemption_failures})"
                    " allows no further restart. fit(ckpt_path='last') goes on."
                )
            relay.watch.restart(
                f"Restart {num_preemptions} because of a notice that a node goes away, from the"
                " newest checkpoint."
            )

    def end(self, job: Job, relay: Relay) -> None:
        """Have the workers of a running job save it and leave, and give back what they reserved.

        An interrupt meanwhile ends them at once.
        """
        self.is_ended = True
        with contextlib.suppress(KeyboardInterrupt):
            for logger in job.trainer.loggers if job.fn != "predict" else ():
                logger.announce(
                    "killed"
                    # Whoever sends a SIGTERM may not wait for the workers: `ray job stop` does for 3 s
                )
            relay.end_workers()
        self.abort(relay.watch)

    def abort(self, watch: Watch) -> None:
        """End the workers at once, and give back what they reserved."""
        self.is_ended = True
        if self._ray_trainer is not None:
            self._ray_trainer.abort(ABORT_S if watch.is_running else ABORT_S / 10)
        if self._before is not None:
            remove_groups(self.resources, self._before)

    def _may_restart(self, died: ControllerDied, failures: Any, watch: Watch) -> None:
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
            f"Restart {watch.num_failures + 1}, from the newest checkpoint: the process that"
            f" watches the workers died: {died.why}."
        )

    def _run(self, job: Job, work: Callable[[], bytes | None], failures: Any, relay: Relay) -> Any:
        """Have Ray Train call `work` on all workers, once; return what rank 0 returned."""
        trainer = job.trainer
        num_failures = relay.watch.num_failures
        restarts: Any = Restarts(relay.mailbox, failures.max_failures, num_failures)
        self._before = before = groups()
        size = (
            (trainer.min_workers, trainer.num_workers)
            if trainer.is_elastic
            else trainer.num_workers
        )
        every_s = float(os.environ.get("RAYLIT_RESIZE_EVERY_S", RESIZE_EVERY_S))
        scaling: Any = ScalingConfig(  # type: ignore[call-arg]  # mypy sees Ray Train's first version, which v2 replaces at run time
            num_workers=size,  # type: ignore[arg-type]
            use_gpu=trainer.use_gpu,
            resources_per_worker=self.resources,
            elastic_resize_monitor_interval_s=every_s,
        )
        ray_trainer: Any = _Trainer(
            work,  # type: ignore[arg-type]  # it wants a function
            torch_config=ProcessGroup(
                {name: value for name, value in os.environ.items() if name.startswith("RAYLIT_")}
            ),  # type: ignore[arg-type]  # it only wants what every backend has
            scaling_config=scaling,
            run_config=RunConfig(  # type: ignore[call-arg]  # likewise
                # Ray Train would go on with a run of the same name
                name=f"{job.fn}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}",
                storage_path=_storage(job),
                failure_config=less(failures, num_failures),
                callbacks=[] if trainer.is_elastic else [restarts],
                logging_config=LoggingConfig(log_level="INFO" if is_verbose() else "WARNING"),
            ),
        )
        if trainer.is_elastic:
            room = Room(self.resources, before)
            ray_trainer.policies = {
                "scaling_policy": AsManyAsFit(scaling, room, relay.mailbox, grows=_goes_on(job)),
                "failure_policy": LostNodesAreNoFailures(
                    ray_trainer.run_config.failure_config, room, restarts
                ),
            }
        self._ray_trainer = ray_trainer
        try:
            returned = ray_trainer.fit().return_value
            return None if returned is None else cloudpickle.loads(returned)
        except TrainingFailedError as error:
            raise_original(error)
        except DEAD as error:
            remove_groups(self.resources, before)
            if "creation task" in str(error):  # it would die again
                raise LaunchError(f"Ray Train could not begin: {last_line(str(error))}") from error
            return ControllerDied(reason(error))
        except Exception:
            remove_groups(self.resources, before)
            raise


class _Trainer(TorchTrainer):
    """A TorchTrainer that Ctrl-C ends as Python says.

    Ray's own handler would end the process, with exit code 1 and without a word.
    """

    _controller: Any = None
    policies: Mapping[str, Any] = MappingProxyType({})  # instead of Ray's own

    def _create_default_callbacks(self) -> list[Any]:
        """Without those for whose sake each run would start one more process."""
        made = super()._create_default_callbacks()  # type: ignore[misc]  # likewise
        return [callback for callback in made if type(callback).__name__ not in NOT_NEEDED]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        """As Ray does, but remember the controller, and leave Ctrl-C to Python."""
        here: Any = NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        env = {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0", **get_env_vars_to_propagate()}
        actor: Any = ray.remote(
            num_cpus=0, scheduling_strategy=here, runtime_env={"env_vars": env}
        )(TrainController)
        self._controller = actor.remote(**{**arguments, **self.policies})
        ray.get(self._controller.run.remote())
        return ray.get(self._controller.get_result.remote())

    def abort(self, timeout_s: float) -> None:
        """Stop the workers and what holds their resources."""
        if self._controller is None:
            return
        try:
            ray.get(self._controller.abort.remote(), timeout=timeout_s)
        except DEAD:
            return  # how it ends
        except ray.exceptions.GetTimeoutError:
            ray.kill(self._controller)


@contextlib.contextmanager
def terminated_by_sigterm() -> Iterator[None]:
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
    return [_storage(job), *checkpoint_folders(job)]


def say_where_to_look(job: Job) -> None:
    """Say where the job can be followed and what it leaves."""
    for logger in job.trainer.loggers if job.fn != "predict" else ():
        if hasattr(logger, "where"):
            info(f"MLflow: {logger.where()}")
    say_dashboard()
    if folders := checkpoint_folders(job):
        info(f"Checkpoints: {', '.join(folders)}")
