"""Runs one job after the other on the same Ray workers, which start once.

For Ray Train all are one run, in which the workers ask for jobs.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading

import ray
from ray import cloudpickle

from raylit.core.job import Job, Result
from raylit.errors import LaunchError
from raylit.launch.on_ray.failure import failure_config
from raylit.launch.on_ray.launcher import RayTrainLauncher, say_where_to_look, terminated_by_sigterm
from raylit.launch.on_ray.relay import Relay
from raylit.launch.on_ray.worker_main import END, KeptWorkerMain, WorkerMain
from raylit.runtime.messages import info

END_S = 60.0  # for workers that have nothing to do


class KeptWorkers:
    """Starts workers for the first job, and gives them the next ones, until they are released."""

    def __init__(self) -> None:
        self._group: Group | None = None
        self._kind: object = None  # of its workers

    def release(self) -> None:
        """Let the workers end, if there are any."""
        if self._group is not None:
            group = self._group
            self._group = None
            group.close()

    def launch(self, job: Job) -> Result:
        """See `Launcher.launch`."""
        trainer = job.trainer
        kind = (
            trainer.num_workers,
            trainer.use_gpu,
            trainer.resources_per_worker,
            failure_config(trainer.max_failures),
            # of the process group, which they make once
            trainer.strategy.timeout_s(),
            trainer.strategy.process_group_backend,
            {key: value for key, value in os.environ.items() if key.startswith("RAYLIT_")},
        )
        if self._group is not None and (kind != self._kind or not self._group.is_alive):
            self.release()
        launcher = RayTrainLauncher() if self._group is None else self._group.launcher
        work = launcher.prepare(job)
        if self._group is not None:
            info(f"Going on with the {trainer.num_workers} Ray workers that there are.")
            say_where_to_look(job)
            try:
                return self._group.do(job, work)
            except LaunchError:
                if self._group.has_begun:
                    raise
            info("The Ray workers have ended between two jobs.")
            return self.launch(job)
        launcher.say_start(job)
        say_where_to_look(job)
        self._group = Group(launcher, job)
        self._kind = kind
        return self._group.do(job, work)


class Group:
    """Workers that do jobs until they are told that there are no more.

    Args:
        launcher: starts them, in a thread that waits for them.
        job: the first.
    """

    def __init__(self, launcher: RayTrainLauncher, job: Job) -> None:
        self.launcher = launcher
        self._error: BaseException | None = None
        self._number = self._starts_before = 0  # of jobs; of starts before the last job
        self._relay = Relay(launcher.watch_for(job.trainer))
        self._relay.__enter__()
        self._thread = threading.Thread(
            target=self._run, args=(job,), name="raylit-workers", daemon=True
        )
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether they wait for jobs, or do one."""
        return self._thread.is_alive() and self._relay.is_alive and not self.launcher.is_ended

    @property
    def has_begun(self) -> bool:
        """Whether they began with the last job, or may have."""
        return self._relay.watch.num_starts > self._starts_before or not self._relay.is_alive

    def _run(self, job: Job) -> None:
        try:
            self.launcher.run(job, KeptWorkerMain(self._relay.screen), self._relay)
        except BaseException as error:  # is raised where the job's result is waited for
            self._error = error

    def do(self, job: Job, work: WorkerMain) -> Result:
        """Have them do a job; returns its result.

        Raises:
            LaunchError: they ended without one.
            BaseException: whatever the user's code raised.
        """
        watch = self._relay.watch
        self._number = self._number + 1
        self._starts_before = watch.num_starts
        work.screen = self._relay.screen
        sent = ray.put(work)  # kept until the job is done
        result = None
        try:
            with terminated_by_sigterm():
                # In a list: a reference that is an argument itself is replaced by its value
                self._give([sent])
                while result is None and self.is_alive:
                    result = self._result()
        except (KeyboardInterrupt, SystemExit):
            self._number += 1
            self._give(END)
            self.launcher.end(job, self._relay)
            raise
        except BaseException:  # a signal handler of the user's
            self.launcher.abort(watch)
            raise
        if result is None:
            if not self._relay.is_alive:
                self.launcher.abort(watch)
            raise self._error or LaunchError("The Ray workers ended without a result of rank 0.")
        try:
            found: Result = cloudpickle.loads(ray.get(result))
        except ray.exceptions.RayError as error:
            raise LaunchError(
                "Rank 0 has died after the job was done, before its result had come here. What it"
                " saved is there."
            ) from error
        return found

    def _give(self, job: object) -> None:
        self._relay.mailbox.give.remote(self._number, job)

    def _result(self) -> ray.ObjectRef[bytes] | None:
        """Return a reference to the result of the job, or None after a moment."""
        with contextlib.suppress(queue.Empty):
            number, (result,) = self._relay.watch.results.get(timeout=0.02)
            if number == self._number:
                return result
        return None

    def close(self) -> None:
        """Let them end, and wait until they have."""
        watch = self._relay.watch
        self._number += 1
        try:
            self._give(END)
            # Workers that have not all started, for want of room, do not ask for a job
            self._thread.join(END_S if watch.is_running else 0)
            if self._thread.is_alive():
                self.launcher.abort(watch)
                self._thread.join(END_S)
        except BaseException:
            self.launcher.abort(watch)
            raise
        finally:
            self._relay.__exit__()
