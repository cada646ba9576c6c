"""Reports of a trial whose fit runs in Ray workers: from rank 0 to the process of the trial."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, TypeAlias

import ray

from raylit.tune.report import Decision, Reporter, TrialReport

Answer: TypeAlias = Decision | OSError

HEAR_S = 0.2  # between two looks whether the trial is over


class _Exchange:
    """Holds a message of rank 0 until the trial asks for it, and the answer until rank 0 does."""

    def __init__(self) -> None:
        self._said: asyncio.Queue[tuple[str, object]] = asyncio.Queue()
        self._answers: asyncio.Queue[Answer] = asyncio.Queue()

    async def say(self, kind: str, content: object) -> Answer:
        """Say something; returns the answer."""
        await self._said.put((kind, content))
        return await self._answers.get()

    async def hear(self, timeout_s: float) -> tuple[str, object] | None:
        """Return the next message, or None after a while."""
        try:
            return await asyncio.wait_for(self._said.get(), timeout_s)
        except TimeoutError:
            return None

    async def answer(self, answer: Answer) -> None:
        """Answer the message that was heard last."""
        await self._answers.put(answer)


class RemoteReports:
    """Where rank 0 of a trial's workers reports; pickled with its callback.

    Args:
        exchange: an actor.
    """

    def __init__(self, exchange: Any) -> None:
        self._exchange = exchange

    def begin(self, run_id: str) -> None:
        self._say("begin", run_id)

    def report(self, metrics: TrialReport) -> Decision:
        return self._say("report", metrics)

    def _say(self, kind: str, content: object) -> Decision:
        answer: Answer = ray.get(self._exchange.say.remote(kind, content))
        if isinstance(answer, OSError):
            raise answer
        return answer


class Listener:
    """Hands the reports of rank 0 to the trial's own reporter, which decides, in a thread.

    Args:
        reporter: the trial's.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        actor: Any = ray.remote(_Exchange)
        self._exchange = actor.options(num_cpus=0, max_concurrency=8).remote()
        self.reports = RemoteReports(self._exchange)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="raylit-reports", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while not self._is_over.is_set():
            said = ray.get(self._exchange.hear.remote(HEAR_S))
            if said is None:
                continue
            try:
                answer = self._tell(*said)
            except OSError as error:  # of the trial's file, such as a full disk
                answer = error  # rank 0 waits, and fails as it would without workers
            ray.get(self._exchange.answer.remote(answer))

    def _tell(self, kind: str, content: Any) -> Answer:
        if kind == "begin":
            self._reporter.begin(content)
            return "go on"
        return self._reporter.report(content)

    def close(self) -> None:
        """End, with the actor."""
        self._is_over.set()
        self._reporter.go_on()
        self._thread.join(10)
        ray.kill(self._exchange)
