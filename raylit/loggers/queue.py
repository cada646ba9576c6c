"""A thread that writes the values of the training thread to the store.

Training never waits for a network or a database.
"""

from __future__ import annotations

import atexit
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from raylit.runtime.messages import log

T = TypeVar("T")


class Rejected(Exception):
    """Raised by a `write` function: the store will never take this, however often it is sent."""


class BackgroundWriter(Generic[T]):
    """Hands items to `write`, in order and in batches, on a daemon thread.

    An exception of `write` never reaches the training thread. `Rejected` leaves out the item that
    caused it (found by halving the batch); any other exception is warned of once and the same batch
    is tried again, so `write` must give the same result when repeated.

    Args:
        write: takes a batch; called on the thread only.
        what: what is written and where, for warnings, such as "metrics to http://host:5000".
        max_batch: items in one call of `write`.
        max_waiting: items kept while the store does not answer; beyond it the oldest are dropped,
            with a warning.
        interval_s: shortest time between two calls of `write`.
        max_backoff_s: longest pause between two attempts.
    """

    def __init__(
        self,
        write: Callable[[list[T]], None],
        what: str,
        *,
        max_batch: int = 1000,
        max_waiting: int = 200_000,
        interval_s: float = 0.5,
        max_backoff_s: float = 30.0,
    ) -> None:
        self._write = write
        self._what = what
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._interval_s = interval_s
        self._max_backoff_s = max_backoff_s
        self._queue: deque[T] = deque()
        self._batch: list[T] = []
        self._wake = threading.Condition()
        self._flush = self._closing = self._abandoned = self._warned = False
        self._num_failures = self._num_dropped = self._num_rejected = 0
        self._changed_at = time.monotonic()  # last success, or the failure that ended the successes
        atexit.register(self.close, 5.0)  # a script that forgot to finalize
        self._thread = threading.Thread(target=self._run, name="raylit-writer", daemon=True)
        self._thread.start()

    def put(self, items: Iterable[T]) -> None:
        """Queue items, which are written in this order; never blocks."""
        with self._wake:
            was_idle = not self._num_waiting()
            self._queue.extend(items)
            num_over = len(self._queue) - self._max_waiting
            for _ in range(num_over):
                self._queue.popleft()
            if num_over > 0:
                if not self._num_dropped:
                    log.warning(
                        f"Too much is waiting to be written ({self._what}): dropped the oldest"
                        f" {num_over}, and will drop more."
                    )
                self._num_dropped += num_over
            # Waking the thread for each call would cost the training thread a switch
            if was_idle or self._is_due():
                self._wake.notify_all()

    def flush_soon(self) -> None:
        """Write the queued items now, not at the end of the interval; does not wait for it."""
        with self._wake:
            self._flush = True
            self._wake.notify_all()

    def close(self, timeout_s: float = 30.0, busy_timeout_s: float | None = None) -> int:
        """Write the queued items and end the thread.

        Args:
            timeout_s: give up when nothing could be written for so long.
            busy_timeout_s: the same while a first attempt is under way that has not failed yet, for
                writes that take long.

        Returns:
            The number of items left, which are lost. A warning says how many, too.
        """
        atexit.unregister(self.close)
        with self._wake:
            self._closing = True
            self._changed_at = time.monotonic()
            self._wake.notify_all()
            while self._num_waiting():
                limit_s = (
                    timeout_s if self._num_failures or busy_timeout_s is None else busy_timeout_s
                )
                remaining_s = self._changed_at + limit_s - time.monotonic()
                if remaining_s <= 0:
                    break
                self._wake.wait(remaining_s)
            num_left = self._num_waiting()
            self._abandoned = True
            self._wake.notify_all()
        if num_left or self._num_dropped or self._num_rejected > 1:
            log.warning(
                f"Not written ({self._what}): {num_left} for which there was no time at the end,"
                f" {self._num_dropped} dropped because too much was waiting, {self._num_rejected}"
                " that the store refused."
            )
        return num_left

    def _num_waiting(self) -> int:
        return len(self._queue) + len(self._batch)

    def _run(self) -> None:
        next_write_at = 0.0
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._num_waiting() or self._closing)
                if self._abandoned or not self._num_waiting():
                    return
                self._wake.wait_for(self._is_due, timeout=max(next_write_at - time.monotonic(), 0))
                self._flush = False
                size = min(len(self._queue), self._max_batch)
                self._batch = [self._queue.popleft() for _ in range(size)]
            self._deliver()
            next_write_at = time.monotonic() + self._interval_s

    def _is_due(self) -> bool:
        return self._flush or self._closing or len(self._queue) >= self._max_batch

    def _deliver(self) -> None:
        """Write the current batch, however many attempts it takes."""
        size = len(self._batch)
        while self._batch and not self._abandoned:
            try:
                self._write(self._batch[:size])
            except Rejected as error:
                if size > 1:
                    size //= 2
                    continue
                if not self._num_rejected:
                    log.warning(f"Left out ({self._what}): {error}")
                self._num_rejected += 1
            except Exception as error:
                self._fail(error)
                continue
            self._succeed(size)
            # Else the rest would be sent in pieces as small as those that found what is refused
            size = len(self._batch)

    def _succeed(self, size: int) -> None:
        with self._wake:
            if self._num_failures:
                log.info(f"Writing works again ({self._what}).")
            self._num_failures = 0
            self._changed_at = time.monotonic()
            del self._batch[:size]
            self._wake.notify_all()

    def _fail(self, error: Exception) -> None:
        """Say so once, and pause.

        Longer with each failure in a row, but short when somebody waits in `close`.
        """
        with self._wake:
            if not self._warned:
                self._warned = True
                log.warning(
                    f"Could not write ({self._what}): {error} Training goes on. What comes is kept"
                    f" (the last {self._max_waiting}) and written in order when it works again."
                )
            if not self._num_failures:
                self._changed_at = time.monotonic()
            self._num_failures += 1
            self._wake.notify_all()
            was_closing = self._closing
            pause_s = min(
                0.5 * 2 ** min(self._num_failures, 10),
                self._max_backoff_s,
                1.0 if was_closing else math.inf,
            )
            self._wake.wait_for(
                lambda: self._abandoned or self._closing != was_closing, timeout=pause_s
            )
