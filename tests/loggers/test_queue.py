from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from raylit.loggers.queue import BackgroundWriter, Rejected
from tests.deadlines import stretched


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What raylit says through its logger."""
    texts: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: texts.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("raylit").addHandler(handler)
    yield texts
    logging.getLogger("raylit").removeHandler(handler)


def test_order_and_batches() -> None:
    batches: list[list[int]] = []
    writer = BackgroundWriter(batches.append, "numbers", max_batch=100, interval_s=0.05)
    for number in range(1000):
        writer.put([number])
    assert writer.close() == 0
    assert [number for batch in batches for number in batch] == list(range(1000))
    assert max(map(len, batches)) <= 100


def test_writes_are_spaced_unless_flushed() -> None:
    times: list[float] = []
    writer: BackgroundWriter[int] = BackgroundWriter(
        lambda batch: times.append(time.monotonic()), "numbers", interval_s=0.3
    )
    for _ in range(2):
        writer.put([1])
        time.sleep(0.05)
    assert len(times) == 1
    time.sleep(0.4)
    assert len(times) == 2
    writer.put([1])
    writer.flush_soon()
    time.sleep(0.1)
    assert len(times) == 3
    writer.close()


def test_failures_are_tried_again_in_order_and_warned_of_once(said: list[str]) -> None:
    written: list[int] = []
    attempts = 0

    def write(batch: list[int]) -> None:
        nonlocal attempts
        attempts += 1
        if attempts < 4:
            raise ConnectionError("no route")
        written.extend(batch)

    writer = BackgroundWriter(write, "numbers", max_batch=2, interval_s=0, max_backoff_s=0.01)
    writer.put(range(5))
    assert writer.close(timeout_s=10) == 0
    assert written == [0, 1, 2, 3, 4]
    assert len([text for text in said if "no route" in text]) == 1
    assert any("works again" in text for text in said)


def test_what_is_rejected_is_left_out_and_the_rest_written(said: list[str]) -> None:
    written: list[int] = []

    def write(batch: list[int]) -> None:
        if any(number % 10 == 7 for number in batch):
            raise Rejected("a seven")
        written.extend(batch)

    writer = BackgroundWriter(write, "numbers")
    writer.put(range(40))
    assert writer.close() == 0
    assert written == [number for number in range(40) if number % 10 != 7]
    assert len([text for text in said if "a seven" in text]) == 1
    assert "4 that the store refused" in said[-1]


def test_the_oldest_are_dropped_beyond_the_bound(said: list[str]) -> None:
    gate = threading.Event()
    begun = threading.Event()
    written: list[int] = []

    def write(batch: list[int]) -> None:
        begun.set()
        gate.wait(10)
        written.extend(batch)

    writer = BackgroundWriter(write, "numbers", max_waiting=10, interval_s=0)
    writer.put([-1])
    assert begun.wait(10)
    for number in range(30):
        writer.put([number])
    gate.set()
    assert writer.close() == 0
    assert written == [-1, *range(20, 30)]
    assert "20 dropped" in said[-1]


def test_put_never_waits_and_close_waits_no_longer_than_told(said: list[str]) -> None:
    gate = threading.Event()

    def write(batch: list[int]) -> None:
        gate.wait(60)

    writer = BackgroundWriter(write, "numbers")
    start = time.monotonic()
    for number in range(1000):
        writer.put([number])
    assert time.monotonic() - start < 0.5
    assert writer.close(timeout_s=0.2) == 1000
    assert time.monotonic() - start < 1.0
    assert "1000 for which there was no time" in said[-1]
    gate.set()


def test_a_write_that_takes_long_is_waited_for_unless_it_fails() -> None:
    def write(batch: list[int]) -> None:
        time.sleep(0.3)
        if batch == [0]:
            raise ConnectionError

    slow = BackgroundWriter(write, "numbers", max_batch=1, interval_s=0)
    slow.put([1, 2, 3])
    assert slow.close(timeout_s=0.1, busy_timeout_s=10) == 0
    failing = BackgroundWriter(write, "numbers", max_batch=1, interval_s=0)
    failing.put([0])
    start = time.monotonic()
    assert failing.close(timeout_s=0.1, busy_timeout_s=10) == 1
    assert time.monotonic() - start < 5


def test_a_script_that_does_not_close_loses_nothing() -> None:
    script = (
        "from raylit.loggers.queue import BackgroundWriter\n"
        "writer = BackgroundWriter(lambda batch: print(*batch), 'numbers', interval_s=60)\n"
        "writer.put([1])\nimport time; time.sleep(0.2)\nwriter.put([2, 3])\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=stretched(60),
        env=env,
        check=True,
    )
    assert done.stdout.split() == ["1", "2", "3"]
