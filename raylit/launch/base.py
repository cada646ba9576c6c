"""The contract of a launcher: how the processes of a job come to be.

A launcher is asked once per job, in the driver process. It has `raylit.engine.worker.run_job(job)`
called on every rank, with torch's process group already made if there are several, and gives back
rank 0's Result. Below this seam nobody knows how the processes were started.

Where the ranks are other processes, the job is pickled (cloudpickle: classes from `__main__` and
notebooks travel by value), it must say `returns_state=True`, and the Result carries the state for
the driver's module, callbacks and trainer. An exception of a rank ends all ranks and is raised in
the driver as it is. To test one, run `raylit.testing.LauncherConformance` against it.
"""

from __future__ import annotations

from typing import Protocol

from raylit.core.job import Job, Result


class Launcher(Protocol):
    """Starts the processes of a job."""

    def launch(self, job: Job) -> Result:
        """Run `job` on all ranks.

        Returns:
            Rank 0's result.

        Raises:
            LaunchError: the processes could not be started, or ended without a result.
            BaseException: whatever the user's code raised.
        """
        ...
