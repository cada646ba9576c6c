"""Carries the progress of rank 0 from its worker to the screen of the driver."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import ray

from raylit.callbacks.screen import make_screen


class _Mailbox:
    """An actor that holds what was sent until it is taken; the newest picture of a stage replaces an older one that nobody took."""

    def __init__(self) -> None:
        self.items: list[tuple[str, Any]] = []
        self.arrived = asyncio.Event()

    async def send(self, kind: str, content: Any) -> None:
        last = self.items[-1] if self.items else None
        if last and kind == "show" == last[0] and not last[1]["is_last"] and last[1]["stage"] == content["stage"]:
            self.items.pop()
        self.items.append((kind, content))
        self.arrived.set()

    async def take(self, timeout_s: float) -> list[tuple[str, Any]]:
        try:
            await asyncio.wait_for(self.arrived.wait(), timeout_s)
        except TimeoutError:
            return []
        items, self.items = self.items, []
        self.arrived.clear()
        return items


class RemoteScreen:
    """What the ProgressBar of rank 0 draws on: sends and does not wait."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def show(self, shown: dict[str, Any]) -> None:
        """Send a picture."""
        self._mailbox.send.remote("show", shown)

    def print(self, text: str) -> None:
        """Send a line."""
        self._mailbox.send.remote("print", text)

    def close(self) -> None:
        """The driver closes the screen, when the job has ended."""


class Relay:
    """Draws on the driver, in a thread, what rank 0 sends. Used as a context manager around a job."""

    def __init__(self) -> None:
        actor = ray.remote(num_cpus=0)(_Mailbox)
        self._mailbox = actor.remote()
        self.screen = RemoteScreen(self._mailbox)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._draw, name="raylit-progress", daemon=True)

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join(timeout=10)
        ray.kill(self._mailbox)

    def _draw(self) -> None:
        screen = make_screen()
        while True:
            ended = self._ended.is_set()
            items = ray.get(self._mailbox.take.remote(0.05 if ended else 1.0))
            for kind, content in items if screen is not None else ():
                getattr(screen, kind)(content)
            if ended and not items:
                break
        if screen is not None:
            screen.close()
