"""Runs a job in this process."""

from __future__ import annotations

from raylit.core.job import Job, Result
from raylit.engine.signals import terminating
from raylit.engine.worker import run_job


class LocalLauncher:
    """Runs a job right here: no process is started, the objects of the job are used as they are.

    Under `torchrun`, whose variables name a rank and a world size, this process becomes that rank.
    """

    def launch(self, job: Job) -> Result:
        """See `Launcher.launch`."""
        with terminating():
            return run_job(job)
