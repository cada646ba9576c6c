"""SIGTERM and Ctrl-C, and their effect on a run."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from raylit.engine.run import Run
from raylit.errors import Terminated
from raylit.runtime.messages import info

if TYPE_CHECKING:
    from types import FrameType

# The modules whose handlers would end the process in the middle of a batch: that of `ray.init`, and
# this one, for `terminating`.
NOT_THE_USERS = ("ray._private.worker", __name__)


@contextlib.contextmanager
def terminating() -> Iterator[None]:
    """Have SIGTERM raise Terminated, where Python's default would end the process without a word.

    So a run whose data or model is still being made ends like any other: loggers say that it was
    killed, the exit code is 143. Once it trains, `catching_signals` lets it come to a batch's end.
    """
    before = signal.getsignal(signal.SIGTERM)
    ends_at_once = before is signal.SIG_DFL or getattr(before, "__module__", "") in NOT_THE_USERS
    if threading.current_thread() is not threading.main_thread() or not ends_at_once:
        yield
        return

    def terminate(number: int, frame: object) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def catching_signals(run: Run) -> Iterator[None]:
    """Context in which SIGTERM and a first Ctrl-C set flags, which the loop reads after a batch.

    A Ctrl-C does so only where the run is to be saved then.
    """
    # Python lets the main thread alone set handlers; a fit in another goes without
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def current() -> Run:  # which may be the dry run of a finder
        return found if isinstance(found := run.trainer.run, Run) else run

    def terminate(number: int, frame: FrameType | None) -> None:
        current().request_end()
        own = before[signal.SIGTERM]
        if callable(own) and getattr(own, "__module__", "") not in NOT_THE_USERS:
            # As in Lightning: who had a handler before is told as well
            own(number, frame)

    def interrupt(number: int, frame: object) -> None:
        agreement = current().agreement
        if current().recovery is None or agreement.received_sigint:
            raise KeyboardInterrupt
        agreement.received_sigint = True
        agreement.pauses = True
        info("Ctrl-C: saving the run after this batch. Press it again to end at once.")

    signal.signal(signal.SIGTERM, terminate)
    if before[signal.SIGINT] is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
