"""SIGTERM and Ctrl-C: what they do to a run."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from raylit.engine.run import Run
from raylit.runtime.messages import info

# Where the handler is from that `ray.init` sets: it would end the process in the middle of a batch
RAYS = "ray._private.worker"


@contextlib.contextmanager
def catching_signals(run: Run) -> Iterator[None]:
    """Within, SIGTERM and a first Ctrl-C set flags that the loop honours at the end of a batch, a Ctrl-C only where the run is to be saved then."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def current() -> Run:  # which may be the rehearsal of a finder
        return found if isinstance(found := run.trainer.run, Run) else run

    def terminate(number: int, frame: Any) -> None:
        agreement = current().agreement
        agreement.received_sigterm = True
        agreement.pauses = True
        own = before[signal.SIGTERM]
        if callable(own) and getattr(own, "__module__", "") != RAYS:
            own(number, frame)

    def interrupt(number: int, frame: Any) -> None:
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
