"""Progress of rank 0, drawn by the process that has started the ranks.

In a notebook the cell is that process's alone. On a terminal rank 0 draws by itself.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

from raylit.callbacks.display.screen import make_screen
from raylit.runtime.notebook import is_notebook

SOCKET = "screen"  # in the folder of the job's files


class SentScreen:
    """The screen that the ProgressBar of rank 0 draws on: hands pictures on to the other process.

    Args:
        folder: of the job's files.
    """

    def __init__(self, folder: Path) -> None:
        self._connection: Connection | None = Client(str(folder / SOCKET), "AF_UNIX")

    def show(self, shown: dict[str, object]) -> None:
        """Send a picture."""
        self._send("show", shown)

    def print(self, text: str) -> None:
        """Send a line."""
        self._send("print", text)

    def _send(self, kind: str, content: object) -> None:
        if self._connection is None:
            return
        try:
            self._connection.send((kind, content))
        except OSError:  # that process has died, and this one is about to end for it
            self._connection = None

    def close(self) -> None:
        """The other process closes the screen, when the job has ended."""


@contextlib.contextmanager
def drawing(folder: Path) -> Iterator[bool]:
    """Draw in a `with` block the pictures that rank 0 sends.

    Yields:
        Whether it is to send it.
    """
    screen = make_screen() if is_notebook() else None
    if screen is None:
        yield False
        return
    try:
        listener = Listener(str(folder / SOCKET), "AF_UNIX")
    except OSError:  # the folder's name is longer than the system lets a socket's be
        yield False
        return

    def draw() -> None:
        with listener.accept() as connection, contextlib.suppress(EOFError, OSError):
            while True:
                kind, content = connection.recv()
                getattr(screen, kind)(content)

    thread = threading.Thread(target=draw, name="raylit-progress", daemon=True)
    thread.start()
    try:
        yield True
    finally:
        with contextlib.suppress(OSError):  # of ranks that have ended before they connected
            Client(str(folder / SOCKET), "AF_UNIX").close()
        thread.join(10)
        listener.close()
        screen.close()
