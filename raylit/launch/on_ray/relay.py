"""Carries what the workers have to show to the driver.

The progress of rank 0 to its screen, the rest to whoever watches them.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raylit.callbacks.display.screen import make_screen
from raylit.launch.on_ray.failure import DEAD
from raylit.launch.on_ray.mailbox import Mailbox
from raylit.launch.on_ray.watch import Watch
from raylit.runtime.messages import info, warn

PATIENCE_S = 30.0  # with workers that are to save the run and leave


class RemoteScreen:
    """What the ProgressBar of rank 0 draws on: sends and does not wait."""

    def __init__(self, mailbox: Any) -> None:
        self.mailbox = mailbox

    def show(self, shown: dict[str, Any]) -> None:
        """Send a picture."""
        self.mailbox.send.remote("show", shown)

    def print(self, text: str) -> None:
        """Send a line."""
        self.mailbox.send.remote("print", text)

    def started(self, where: dict[str, Any]) -> None:
        """Send where a rank has started."""
        self.mailbox.send.remote("started", where)

    def went_on(self, how: str) -> None:
        """Send where, and how, an elastic job begins or goes on."""
        self.mailbox.send.remote("went_on", how)

    def left(self, rank: int) -> None:
        """Send that a rank is through, well or not."""
        self.mailbox.send.remote("left", rank)

    def say(self, text: str) -> None:
        """Send what the driver is to say, whether it draws or not."""
        self.mailbox.send.remote("say", text)

    def wait(self) -> None:
        """Wait until all that was sent has arrived, or nobody is there any more who would look."""
        with contextlib.suppress(*DEAD):
            ray.get(self.mailbox.wait.remote())

    def close(self) -> None:
        """The driver closes the screen, when the job has ended."""


class _Lines:
    """A text stream that also sends each complete line to the driver's screen."""

    def __init__(self, stream: Any, screen: RemoteScreen, prefix: str) -> None:
        self._stream = stream
        self._screen = screen
        self._prefix = prefix
        self._rest = ""

    def write(self, text: str) -> int:
        self._stream.write(text)
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._screen.print(self._prefix + line)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def echoing(screen: RemoteScreen, rank: int) -> Iterator[None]:
    """Within, what this worker prints is also seen on the driver, above the progress bar.

    Ranks other than 0 are named.
    """
    prefix = f"[rank {rank}] " if rank else ""
    with (
        contextlib.redirect_stdout(_Lines(sys.stdout, screen, prefix)),
        contextlib.redirect_stderr(_Lines(sys.stderr, screen, prefix)),
    ):
        yield


class Relay:
    """Draws on the driver, in a thread, what the workers send.

    Used as a context manager around a job.

    Args:
        watch: is told of starts and restarts, and asked to look every `every_s`.
        every_s: how often what was sent is taken.
    """

    def __init__(self, watch: Watch, every_s: float = 0.2) -> None:
        # on this node, with which the driver ends too
        here: Any = NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        actor = ray.remote(num_cpus=0, scheduling_strategy=here)(Mailbox)
        self.mailbox: Any = actor.remote()
        self.screen = RemoteScreen(self.mailbox)
        self.watch = watch
        self.every_s = every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._draw, name="raylit-progress", daemon=True)

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join(timeout=10)
        ray.kill(self.mailbox)

    @property
    def is_alive(self) -> bool:
        """Whether what the workers send still arrives."""
        return self._thread.is_alive()

    def end_workers(self) -> None:
        """Have the workers save the run and leave, if they train.

        Returns when they have, or after `PATIENCE_S`.
        """
        if self.watch.is_running:
            info("Saving the run after this batch. Press Ctrl-C again to end at once.")
            self.mailbox.end.remote()
            self.watch.all_left.wait(PATIENCE_S)

    def _draw(self) -> None:
        screen = make_screen()
        is_last = False
        while not is_last:
            is_last = self._ended.wait(self.every_s)
            try:
                taken = ray.get(self.mailbox.take.remote())
            except DEAD:
                warn(
                    "The process that brings progress here has died, for want of memory it may be."
                    " The run goes on, unseen."
                )
                self.watch.all_left.set()  # nobody would tell
                break
            for kind, content in taken:
                if kind == "did" and screen is not None:  # the next job draws anew
                    screen.close()
                    screen = make_screen()
                if kind in (
                    "started",
                    "went_on",
                    "failed",
                    "restart",
                    "lacks_room",
                    "left",
                    "say",
                    "did",
                ):
                    getattr(self.watch, kind)(content)
                elif screen is not None:
                    getattr(screen, kind)(content)
            self.watch.look()
        if screen is not None:
            screen.close()
