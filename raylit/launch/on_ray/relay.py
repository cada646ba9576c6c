"""Carries the output of the workers to the driver.

The progress of rank 0 goes to the driver's screen, the rest to the watch over the workers.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raylit.callbacks.display.screen import make_screen
from raylit.launch.on_ray.failure import DEAD
from raylit.launch.on_ray.mailbox import Mailbox
from raylit.launch.on_ray.watch import Watch
from raylit.runtime.messages import info, warn

if TYPE_CHECKING:
    from raylit.launch.on_ray.private import ActorHandle
    from raylit.launch.on_ray.watch import Where

PATIENCE_S = 30.0  # with workers that are to save the run and leave
LINE_CHARS = 10_000  # of a line that is sent to the driver
CLOSE_S = 2.0  # for what forked processes have printed last


class RemoteScreen:
    """The screen that the ProgressBar of rank 0 draws on: sends and does not wait."""

    def __init__(self, mailbox: ActorHandle) -> None:
        self.mailbox = mailbox

    def show(self, shown: dict[str, object]) -> None:
        """Send a picture."""
        self.mailbox.send.remote("show", shown)

    def print(self, text: str) -> None:
        """Send a line."""
        self.mailbox.send.remote("print", text)

    def started(self, where: Where) -> None:
        """Send where a rank has started."""
        self.mailbox.send.remote("started", where)

    def went_on(self, how: str) -> None:
        """Send where, and how, an elastic job begins or goes on."""
        self.mailbox.send.remote("went_on", how)

    def left(self, rank: int) -> None:
        """Send that a rank is through, well or not."""
        self.mailbox.send.remote("left", rank)

    def say(self, text: str) -> None:
        """Send a text that the driver is to say, whether it draws or not."""
        self.mailbox.send.remote("say", text)

    def wait(self) -> None:
        """Wait until all that was sent has arrived, or nobody is there any more who would look."""
        with contextlib.suppress(*DEAD):
            ray.get(self.mailbox.wait.remote())

    def close(self) -> None:
        """The driver closes the screen, when the job has ended."""


class _Lines:
    """A text stream that also sends each complete line to the driver's screen.

    Of a line that was drawn again and again, as progress bars do with carriage returns, the last
    state is sent, and of a long line its beginning, so that an incomplete line takes little memory.

    The prints of a forked process, such as a worker of a loader, go by a pipe to this one, as Ray
    may not be called there. Other programs write to Ray's log files alone.
    """

    def __init__(self, stream: TextIO, send: Callable[[str], None], forked: _Forked) -> None:
        self._stream = stream
        self._send = send
        self._forked = forked
        self._rest = ""
        self._process = os.getpid()  # that printed it

    def write(self, text: str) -> int:
        self._stream.write(text)
        # A forked process has a copy of the line that its parent has begun, and will print itself
        if self._process != os.getpid():
            self._process = os.getpid()
            self._rest = ""
        *lines, rest = text.split("\n")
        for line in lines:
            self._end(line)
        self._rest = _last_state(self._rest + rest)
        return len(text)

    def _end(self, line: str) -> None:
        whole = _last_state(self._rest + line).removesuffix("\r")
        self._rest = ""
        if not self._forked.send(whole):
            self._send(whole)

    def finish(self) -> None:
        """Send the rest, a line that has no end."""
        if self._rest:
            self._end("")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _last_state(line: str) -> str:
    """Return the last state of a line that a terminal would show, shortened."""
    shown, _, now = line.rpartition("\r")
    if not now and shown:  # the line is about to be drawn again, or has ended as on Windows
        now = shown.rpartition("\r")[2] + "\r"
    return now if len(now) <= LINE_CHARS else now[:LINE_CHARS]


class _Forked:
    """Takes lines from processes that were forked from this one.

    Args:
        send: sends a line to the driver.
    """

    def __init__(self, send: Callable[[str], None]) -> None:
        self._send = send
        self._owner = os.getpid()
        self._source, self._sink = os.pipe()
        os.set_blocking(self._sink, False)  # a loader does not wait for who watches it
        self._thread = threading.Thread(target=self._read, name="raylit-forked", daemon=True)
        self._thread.start()

    def send(self, line: str) -> bool:
        """Send a line if this is a forked process; one that nobody takes is lost to the driver."""
        if os.getpid() == self._owner:
            return False
        with contextlib.suppress(OSError):
            # short enough to arrive in one piece
            os.write(self._sink, line.encode(errors="replace")[: select.PIPE_BUF - 1] + b"\n")
        return True

    def _read(self) -> None:
        with open(self._source, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                self._send(line.removesuffix("\n"))

    def close(self) -> None:
        """Send the remaining lines; forked processes that live on print for nobody."""
        sink = self._sink
        self._sink = -1  # else a process forked later would write into the next file of that number
        os.close(sink)
        self._thread.join(CLOSE_S)


@contextlib.contextmanager
def echoing(screen: RemoteScreen, rank: int) -> Iterator[None]:
    """Show the prints of this worker on the driver too, above the progress bar.

    Those of ranks other than 0 begin with the rank.
    """
    prefix = f"[rank {rank}] " if rank else ""

    def send(line: str) -> None:
        screen.print(prefix + line)

    forked = _Forked(send)
    out = _Lines(sys.stdout, send, forked)
    errors = _Lines(sys.stderr, send, forked)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            yield
    finally:
        out.finish()
        errors.finish()
        forked.close()


class Relay:
    """Draws on the driver, in a thread, the messages of the workers.

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
        self.mailbox: ActorHandle = actor.remote()
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
        """Whether messages of the workers still arrive."""
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
            # What was sent just before the end is taken once more after it
            is_last = self._ended.wait(self.every_s)
            try:
                taken = ray.get(self.mailbox.take.remote())
            except (*DEAD, ray.exceptions.RuntimeEnvSetupError) as error:
                warn(
                    "The process that brings progress here has died, for want of memory it may be,"
                    f" or could not start ({type(error).__name__}). The run goes on, unseen."
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
