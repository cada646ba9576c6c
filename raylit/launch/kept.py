"""Runs one job after the other on the same Ray workers, which start once: for Ray Train all are one run, in which the workers ask for jobs."""

from __future__ import annotations

import threading
import time
from typing import Any

import ray
from ray import cloudpickle

from raylit.errors import LaunchError
from raylit.job import Job, Result
from raylit.launch.cluster import resources_of
from raylit.launch.failure import failure_config
from raylit.launch.ray_train import RayTrainLauncher, say_where_to_look, terminated_by_sigterm
from raylit.launch.relay import Relay
from raylit.launch.work import END, Work, Works
from raylit.messages import info

END_S = 60.0  # for workers that have nothing to do


class KeptWorkers:
    """Starts workers for the first job, and gives them those that follow. A context manager around the jobs."""

    def __init__(self) -> None:
        self._group: Group | None = None
        self._kind: Any = None  # of its workers

    def __enter__(self) -> KeptWorkers:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._group is not None:
            self._group.close()
            self._group = None

    def launch(self, job: Job) -> Result:
        """See `Launcher.launch`."""
        trainer = job.trainer
        kind = (trainer.num_workers, trainer.use_gpu, resources_of(trainer), failure_config(trainer.max_failures))
        if self._group is not None and (kind != self._kind or not self._group.is_alive):
            self._group.close()
            self._group = None
        launcher = RayTrainLauncher() if self._group is None else self._group.launcher
        work = launcher.prepare(job)
        if self._group is None:
            launcher.say_start(job)
        else:
            info(f"Going on with the {trainer.num_workers} Ray workers that there are.")
        say_where_to_look(job)
        if self._group is None:
            self._group, self._kind = Group(launcher, job), kind
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
        self._relay = Relay(launcher.watch_for(job.trainer))
        self._relay.__enter__()
        self._thread = threading.Thread(target=self._run, args=(job,), name="raylit-workers", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether they wait for jobs, or do one."""
        return self._thread.is_alive() and not self.launcher.is_ended

    def _run(self, job: Job) -> None:
        try:
            self.launcher.run(job, Works(self._relay.screen), self._relay)
        except BaseException as error:  # is raised where the job's result is waited for
            self._error = error

    def do(self, job: Job, work: Work) -> Result:
        """Have them do a job; returns its result.

        Raises:
            LaunchError: they ended without one.
            BaseException: whatever the user's code raised.
        """
        work.screen, results = self._relay.screen, self._relay.watch.results
        sent = ray.put(work)
        self._relay.mailbox.give.remote([sent])
        try:
            with terminated_by_sigterm():
                while results.empty() and self.is_alive:
                    time.sleep(0.02)
        except (KeyboardInterrupt, SystemExit):
            self.launcher.end(job, self._relay)
            raise
        if results.empty():
            raise self._error or LaunchError("The Ray workers ended without a result of rank 0.")
        (result,) = results.get()
        found: Result = cloudpickle.loads(ray.get(result))
        return found

    def close(self) -> None:
        """Let them end, and wait until they have."""
        self._relay.mailbox.give.remote(END)
        self._thread.join(END_S)
        self._relay.__exit__()
