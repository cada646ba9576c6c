"""The process that sends a journal while another one trains, and its handle there.

A thread would take the GIL from the training, for 5 ms at a time. The process is started 2 s after
the journal was opened, so that a shorter fit pays nothing for it. It ends when it is told to, or
when all is sent and whoever started it has died.

It is given, on stdin, a JSON object: `journal`, the path of the journal; `uri`, that of the store;
`folder`, the logger's; `node`, the number of this machine if it is to be measured; and `give_up_s`,
how long it tries without any success once it is told to end. Then comes a line `close`: send all
and end. It writes its messages to stdout, a line each with its level before it, and the handle
repeats them in the training's process.
"""

from __future__ import annotations

import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from raylit.loggers.mlflow.journal import Journal
from raylit.runtime.messages import info, log

if TYPE_CHECKING:
    from raylit.loggers.mlflow.delivery import Delivery
    from raylit.loggers.mlflow.journal import JournalReader

START_AFTER_S = 2.0
SEND_EVERY_S = 0.5
MAX_PAUSE_S = 30.0
GIVE_UP_S = 30.0  # without any progress, when somebody waits
GIVE_UP_AGAIN_S = 2.0  # on a store for which that was waited in vain in this process
SHOW_AFTER_S = 5.0
_silent: set[str] = set()  # URIs of such stores
MODULE = "raylit.loggers.mlflow.sender"


class Sender:
    """Has a journal sent by a process of its own.

    Args:
        journal: of this process.
        uri: of the store.
        folder: of the logger, where journals of processes before this one may lie.
        environment: variables for the process, beside those of this one.
        node: number of this machine, if it is to be measured.
    """

    def __init__(
        self,
        journal: Journal,
        uri: str,
        folder: str,
        environment: Mapping[str, str],
        node: int | None = None,
    ) -> None:
        self._journal = journal
        self._uri = uri
        self._job = {"journal": journal.path, "uri": uri, "folder": folder, "node": node}
        self._environment = environment
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._teller: threading.Thread | None = None
        self._clock = threading.Timer(START_AFTER_S, self.start)
        self._clock.daemon = True
        self._clock.start()

    def start(self) -> None:
        """Start the process, unless it runs."""
        with self._lock:
            if self._process is not None:
                return
            root = str(Path(__file__).parents[3])
            paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", MODULE],  # -P: no module of the user's folder
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | dict(self._environment) | {"PYTHONPATH": os.pathsep.join(paths)},
                start_new_session=True,  # Ctrl-C is for the training; the end is to be sent yet
            )
            self._process = process
            patience = GIVE_UP_AGAIN_S if self._uri in _silent else GIVE_UP_S
            self._tell(json.dumps(self._job | {"give_up_s": patience}))
            self._teller = threading.Thread(
                target=_repeat, args=(process,), name="raylit-sender", daemon=True
            )
            self._teller.start()

    @property
    def is_started(self) -> bool:
        """Whether the process was started."""
        return self._process is not None

    def stop(self) -> None:
        """Start no process any more by the clock."""
        self._clock.cancel()
        # It may be starting the process: `is_started` then decides who sends the rest
        self._clock.join()

    def finish(self) -> None:
        """Wait until all is sent and the journal deleted, or nothing could be for a while."""
        self.stop()
        self.start()
        self._tell("close")
        process = self._process
        assert process is not None
        start = time.monotonic()
        told = start
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.02 if time.monotonic() - start < 1 else 0.2)
            if time.monotonic() - told > SHOW_AFTER_S:
                told = time.monotonic()
                num_bytes = self._journal.position - self._journal.acked
                left = f"{num_bytes / 1e3:.0f} kB are left" if num_bytes else "nearly done"
                info(f"Sending to MLflow what was logged: {left}.")
        if self._teller is not None:
            self._teller.join()
        if process.stdin is not None:
            with suppress(BrokenPipeError):
                process.stdin.close()
        if self._journal.position > self._journal.acked:
            _silent.add(self._uri)
        else:
            _silent.discard(self._uri)

    def _tell(self, line: str) -> None:
        process = self._process
        if process is not None and process.stdin is not None:
            with suppress(BrokenPipeError, ValueError):  # it has ended
                process.stdin.write(line + "\n")
                process.stdin.flush()


def _repeat(process: subprocess.Popen[str]) -> None:
    """Repeat in this process the messages of the other."""
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            level, _, text = line.rstrip("\n").partition(" ")
            log.log(int(level) if level.isdigit() else logging.WARNING, text)


class _Told:
    """The instructions that the process got on stdin.

    Attributes:
        closes: whether to end when all is sent.
        is_orphan: whether nobody is there any more to tell anything.
    """

    def __init__(self) -> None:
        self.closes = False
        self.is_orphan = False
        self._rest = b""

    def wait(self, timeout_s: float) -> None:
        """Return when told something, or after a time."""
        if self.is_orphan:
            time.sleep(timeout_s)
            return
        if not select.select([0], [], [], timeout_s)[0]:
            return
        data = os.read(0, 4096)
        self.is_orphan = not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.closes = self.closes or b"close" in lines or self.is_orphan


def main() -> None:
    """Send a journal until told to end."""
    first = b""
    while not first.endswith(b"\n"):
        # Letter by letter: a buffer would swallow the next line, for which `select` then waits
        letter = os.read(0, 1)
        if not letter:
            return
        first += letter
    job = json.loads(first)
    log.handlers.clear()
    said = logging.StreamHandler(sys.stdout)
    said.setFormatter(_OneLine())
    log.addHandler(said)
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from raylit.loggers.mlflow.store import short_requests

    with short_requests():
        _send(job["journal"], job["uri"], job["folder"], job["give_up_s"], job["node"])


def _send(path: str, uri: str, folder: str, give_up_s: float, node: int | None) -> None:
    from raylit.loggers.mlflow.delivery import put_away
    from raylit.loggers.mlflow.journal import reading

    told = _Told()
    with reading(path) as reader:
        if not reader.lock(0):
            return
        delivery: Delivery | None = None
        num_failures = 0
        progressed_at = closing_since = 0.0
        while True:
            try:
                if delivery is None:
                    delivery = _connect(reader, path, uri, folder, node)
                is_done = not delivery.send()
                if num_failures:
                    log.info("Sending to MLflow works again.")
                num_failures = 0
                progressed_at = time.monotonic()
                pause_s = SEND_EVERY_S if is_done else 0.0
            except Exception as error:
                is_done = False
                if not num_failures:
                    log.warning(
                        f"Could not send to MLflow: {error} Training goes on. What it logs is kept"
                        f" in {path} and sent, in order, when that works again."
                    )
                num_failures += 1
                pause_s = min(0.5 * 2 ** min(num_failures, 10), 1 if told.closes else MAX_PAUSE_S)
            if told.closes:
                if is_done:
                    put_away(reader, path)
                    return
                closing_since = closing_since or time.monotonic()
                waited_since = max(closing_since, progressed_at)
                if num_failures and time.monotonic() - waited_since > give_up_s:
                    return
            _pause(pause_s, told, reader)


def _connect(reader: JournalReader, path: str, uri: str, folder: str, node: int | None) -> Delivery:
    """Begin to deliver a journal, after those of the run that were left behind.

    Raises:
        Exception: the store does not answer.
    """
    from raylit.loggers.mlflow.delivery import LOCK_S, Delivery, deliver_left_behind
    from raylit.loggers.mlflow.store import RunStore, check_answers
    from raylit.loggers.mlflow.system import SystemMonitor

    run_id = reader.header.run_id
    check_answers(uri)
    deliver_left_behind(folder, uri, run_id, own=path, wait_s=LOCK_S)
    delivery = Delivery(reader, RunStore(uri, run_id))
    if node is not None:
        SystemMonitor(RunStore(uri, run_id), node, os.getppid()).start()
    return delivery


def _pause(pause_s: float, told: _Told, reader: JournalReader) -> None:
    """Wait for a while, or until told to close."""
    was_closing = told.closes
    deadline = time.monotonic() + pause_s
    while True:
        told.wait(max(deadline - time.monotonic(), 0))
        if reader.header.state == "gone":
            told.closes = True  # a process that it forked may hold our stdin open
        if told.closes != was_closing or time.monotonic() >= deadline:
            return


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage().replace("\n", " ")
        return f"{record.levelno} {text}"


if __name__ == "__main__":
    main()
