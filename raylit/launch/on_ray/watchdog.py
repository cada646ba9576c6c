"""The watchdog: it notices a worker that does not reach its next batch.

It says what the worker does instead, and ends it where RAYLIT_TIMEOUT_S asks for that.

Ranks that wait for a rank that hangs lose patience by themselves, in the collective that does not
end. Nobody waits for a rank that is alone, or for one that hangs where the others have nothing to
ask of it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback

from raylit.core.job import Job
from raylit.engine.run import Run
from raylit.launch.on_ray.relay import RemoteScreen
from raylit.runtime.environment import seconds

TIMEOUT_VARIABLE = "RAYLIT_TIMEOUT_S"
TIMEOUT_S = 1800.0
LONGER = 1.5  # than the collectives, whose error says more


class Watchdog:
    """Looks, in a thread, whether the loop of this worker goes on.

    A context manager around the job.

    Args:
        job: the job.
        screen: where to say it.
        rank: of this worker.
    """

    def __init__(self, job: Job, screen: RemoteScreen, rank: int) -> None:
        self.job = job
        self.screen = screen
        self.rank = rank
        # a step may take an hour: the worker is ended only for users who gave a time
        self.ends = TIMEOUT_VARIABLE in os.environ
        self.limit_s = LONGER * seconds(TIMEOUT_VARIABLE, TIMEOUT_S)
        self._watched = threading.get_ident()
        self._over = threading.Event()

    def __enter__(self) -> Watchdog:
        threading.Thread(target=self._look, name="raylit-watchdog", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()

    def _look(self) -> None:
        before = self._place()
        since = time.monotonic()
        while not self._over.wait(min(self.limit_s / 10, 30)):
            now = self._place()
            if now is None or now != before:
                before = now
                since = time.monotonic()
            elif time.monotonic() - since > self.limit_s:
                self._say(time.monotonic() - since)
                if self.ends:
                    # What is still to be sent would be lost with a process that ends like this
                    self.screen.wait()
                    os._exit(1)  # no exception gets through to a thread that waits
                since = time.monotonic()

    def _place(self) -> object:
        """Return where the loop is.

        None where it is in none, and where a long time is nothing odd.
        """
        run = self.job.trainer.run
        if (
            not isinstance(run, Run)
            or run.stage not in ("train", "validate")
            or self.job.fn != "fit"
        ):
            return None
        return (
            run.stage,
            run.progress.total_batches,
            run.progress.at,
            tuple(run.data.val_batches_seen.copy().values()),
        )

    def _say(self, seconds: float) -> None:
        frame = sys._current_frames().get(self._watched)
        stack = "".join(traceback.format_stack(frame)[-6:]) if frame is not None else ""
        fate = (
            " and is stopped now"
            if self.ends
            else (
                ". To have it stopped, and started again (max_failures), set"
                f" {TIMEOUT_VARIABLE} to the seconds a batch may take"
            )
        )
        self.screen.say(
            f"Rank {self.rank} has not reached its next batch for {seconds:.0f} s{fate}. It is"
            f" here:\n{stack}"
        )
