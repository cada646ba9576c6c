from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raylit.loggers.mlflow import journal as journals
from raylit.loggers.mlflow.journal import Full, Header, Journal, JournalReader, Record, reading
from raylit.runtime.processes import ProcessName
from tests.deadlines import stretched


def header(since_ms: int = 0) -> Header:
    return Header("0" * 32, "sqlite:///x.db", since_ms, str(ProcessName.of_this()))


def records(reader: JournalReader) -> list[Record]:
    found: list[Record] = []
    while True:
        before = reader.position
        for some, _ in reader.read():
            found += some
        if reader.position == before:
            return found


def test_what_was_appended_is_read_in_order(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), header())
    journal.log(Record("param", "lr", "0.1"))
    for step in range(60_000):  # more than one chunk
        journal.log_metrics({"loss": step / 3, "é": float("nan")}, step)
        if step % 1000 == 0:
            journal.log(Record("text", "note.txt", "x" * step))
    with reading(journal.path) as reader:
        found = records(reader)
        assert found[0] == Record("param", "lr", "0.1")
        losses = [(one.step, one.value) for one in found if one.key == "loss"]
        assert losses == [(step, step / 3) for step in range(60_000)]
        times = [one.time_ms for one in found if one.key == "loss"]
        assert times == sorted(times) and abs(times[-1] - time.time() * 1000) < 60_000
        assert [len(str(one.value)) for one in found if one.kind == "text"] == [
            *range(0, 60_000, 1000)
        ]
        assert not reader.is_torn
        journal.log_metrics({"loss": 0.5}, 7)
        assert [one[:3] for one in records(reader)] == [("metric", "loss", 0.5)]
    journal.close()
    with reading(journal.path) as reader:
        assert len(records(reader)) == len(found) + 1
        assert reader.is_left


def test_what_is_no_number_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), header())
    for value, step in (("x", 0), (None, 0), (10**400, 0), (0.5, 2**63), (0.5, 0.5)):
        with pytest.raises((struct.error, TypeError, OverflowError)):
            journal.log_metrics({"loss": value}, step)  # type: ignore[dict-item,arg-type]
    journal.log_metrics({"loss": 1}, -(2**63))
    with reading(journal.path) as reader:
        assert [(one.value, one.step) for one in records(reader)] == [(1.0, -(2**63))]


def test_a_record_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), header())
    for step in range(10):
        journal.log_metrics({"loss": float(step)}, step)
    journal.sync()
    journal.close()
    whole = Path(journal.path).read_bytes()
    for length in range(journals.PAGE, len(whole)):  # cut, as by a power failure
        Path(journal.path).write_bytes(whole[:length] + b"\0" * 100)
        with reading(journal.path) as reader:
            steps = [one.step for one in records(reader)]
        assert steps == list(range(len(steps)))
    for place in range(journals.PAGE + 100, len(whole)):  # a byte that is another
        changed = bytearray(whole)
        changed[place] ^= 0x10
        Path(journal.path).write_bytes(changed)
        with reading(journal.path) as reader:
            steps = [one.step for one in records(reader)]
            assert steps == list(range(len(steps))) and len(steps) < 10
            assert reader.is_torn


def test_what_is_no_journal_is_said(tmp_path: Path) -> None:
    for content in (b"", b"RAYLITJ1", b"x" * 5000):
        (tmp_path / "x.journal").write_bytes(content)
        with pytest.raises(ValueError, match="is no journal"):
            JournalReader(str(tmp_path / "x.journal"))


def test_a_damaged_head_is_said(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), header())
    journal.close()
    path = Path(journal.path)
    whole = path.read_bytes()
    for old, new in ((b"run_id", b"run_ie"), (b'{"', b"[\xff")):
        path.write_bytes(whole.replace(old, new, 1))
        with pytest.raises(ValueError, match="the head of the journal"):
            JournalReader(journal.path)


def test_all_that_was_appended_outlives_sigkill(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom raylit.loggers.mlflow.journal import Header, Journal\n"
        "from raylit.runtime.processes import ProcessName\njournal = Journal(sys.argv[1],"
        " Header('0' * 32, 'u', 0, str(ProcessName.of_this())))\nstep = 0\nwhile True:\n"
        "    journal.log_metrics({'loss': float(step)}, step)\n    step += 1\n"
        "    if step % 1000 == 0: print(step, flush=True)\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(50):
            told = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        told = max([told, *(int(line) for line in process.stdout if line.endswith("\n"))])
        process.wait(stretched(10))
    (path,) = tmp_path.glob("*.journal")
    with reading(str(path)) as reader:
        found = records(reader)
        assert len(found) >= told
        assert [one.step for one in found] == list(range(len(found)))
        assert not reader.is_torn
        assert reader.is_left and reader.header.state == "gone"


def test_a_full_disk_is_an_error_and_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(str(tmp_path), header())

    def full(file: int, start: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        with pytest.raises(Full, match="No space left"):
            while True:
                journal.log_metrics({"loss": 0.5}, 0)
    journal.log_metrics({"loss": 0.25}, 1)
    with reading(journal.path) as reader:
        assert records(reader)[-1].value == 0.25


def test_a_tail_is_taken_over_by_another_journal(tmp_path: Path) -> None:
    first = Journal(str(tmp_path), header())
    first.log_metrics({"loss": 0.0}, 0)
    first.log_metrics({"a": 1.0, "b": 2.0}, 1)
    with reading(first.path) as reader:
        position = max(end for _, end in reader.read())
        reader.acknowledge(position)
    assert first.acked == position
    first.log_metrics({"a": 3.0, "b": 4.0}, 2)
    first.log_metrics({"loss": 5.0}, 3)
    first.log(Record("param", "lr", "0.1"))
    second = Journal(str(tmp_path), header())
    second.log_metrics({"b": 0.5}, 9)
    second.adopt(first.tail())
    second.log_metrics({"a": 6.0, "b": 7.0}, 10)
    with reading(second.path) as reader, reading(first.path) as other:
        theirs = [one for one in records(other) if one.step in (2, 3) or one.kind == "param"]
        assert records(reader)[1:-2] == theirs
    with pytest.raises(ValueError, match="damaged"):
        second.adopt(first.tail()[:-1] + b"x")


def test_times_never_go_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(str(tmp_path), header())
    journal.log_metrics({"loss": 0.5}, 0)
    monkeypatch.setattr(time, "time_ns", lambda: 5_000_000)
    journal.log_metrics({"loss": 0.5}, 1)
    with reading(journal.path) as reader:
        reader.tell_clear()
        marked = journal.mark()
        journal.log_metrics({"loss": 0.5}, 2)
        times = [one.time_ms for one in records(reader)]
    assert times[0] == times[1] == marked < times[2]


def test_a_record_that_is_too_large_is_left_out_alone(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), header())
    journal.log(Record("param", "lr", "0.1"))
    with pytest.warns(UserWarning, match="'book.txt' takes .* is left out. Log it as a file"):
        journal.log(Record("text", "book.txt", "\u00e9" * (journals.MAX_RECORD_BYTES // 6 + 1)))
    journal.log_metrics({"loss": 0.5}, 1)
    journal.close()
    with reading(journal.path) as reader:
        assert [one.key for one in records(reader)] == ["lr", "loss"]
        assert not reader.is_torn
