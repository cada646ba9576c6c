"""The process that sends a journal while another one trains, and dies of neither."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raylit.loggers.mlflow import sender
from raylit.loggers.mlflow.delivery import deliver
from raylit.loggers.mlflow.journal import Journal, reading
from raylit.loggers.mlflow.sender import Sender
from tests.deadlines import stretched

NewJournal = Callable[..., Journal]


def steps(client: Any, run_id: str) -> list[int]:
    return [one.step for one in client.get_metric_history(run_id, "loss")]


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + stretched(20)
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.long
def test_it_sends_what_comes_survives_the_end_of_the_other_and_is_not_missed_itself(
    client: Any,
    uri: str,
    run_id: str,
    tmp_path: Path,
    new_journal: NewJournal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed, it leaves what the store has not; all else is sent by the next one."""
    monkeypatch.setattr(sender, "START_AFTER_S", 1000.0)
    journal = new_journal()
    journal.log_metrics({"loss": 0.5}, 0)
    first = Sender(journal, uri, str(tmp_path), {})
    first.stop()
    assert not first.is_started
    first.start()
    process = first._process
    first.start()
    assert first.is_started and first._process is process, "one process, however often it is asked"
    wait_for(lambda: steps(client, run_id) == [0])
    with reading(journal.path) as reader:
        assert not reader.lock(0), "nobody else sends it meanwhile"
    assert process is not None
    process.kill()
    process.wait(stretched(10))
    journal.log_metrics({"loss": 0.5}, 1)
    first.finish()  # does not wait for one that is dead
    assert os.path.exists(journal.path) and steps(client, run_id) == [0]
    second = Sender(journal, uri, str(tmp_path), {})
    second.finish()
    assert steps(client, run_id) == [0, 1]
    assert not os.path.exists(journal.path)
    assert second._process is not None and second._process.returncode == 0


TRAINS = """
import os, signal, sys
from raylit.loggers.mlflow.journal import Header, Journal
from raylit.loggers.mlflow.sender import Sender
from raylit.runtime.processes import ProcessName
folder, uri, run_id = sys.argv[1:]
journal = Journal(folder, Header(run_id, uri, 0, str(ProcessName.of_this())))
Sender(journal, uri, folder, {}).start()
for step in range(100):
    journal.log_metrics({"loss": 0.5}, step)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_training_has_logged_is_sent_without_it(
    client: Any, uri: str, run_id: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRAINS, str(tmp_path), uri, run_id],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=stretched(30),
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    wait_for(lambda: not list(tmp_path.glob("*.journal")))
    assert steps(client, run_id) == list(range(100))


def test_a_store_that_is_away_is_said_once_on_one_line_and_given_up(
    tmp_path: Path,
    new_journal: NewJournal,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    client: Any,
    uri: str,
    run_id: str,
) -> None:
    monkeypatch.setattr(sender, "GIVE_UP_S", 0.1)
    journal = new_journal()
    journal.log_metrics({"loss": 0.5}, 0)
    away = f"sqlite:///{tmp_path}/nothing.db"
    Sender(journal, away, str(tmp_path), {}).finish()
    assert away in sender._silent
    (text,) = (one for one in said if "Could not send to MLflow" in one)
    assert "is not on this machine" in text and journal.path in text
    journal.close()
    assert deliver(journal.path, uri), "it is kept whole"
    assert steps(client, run_id) == [0]


def test_without_a_job_or_with_a_journal_that_another_one_sends_it_ends_at_once(
    uri: str, tmp_path: Path, new_journal: NewJournal
) -> None:
    journal = new_journal()
    journal.log_metrics({"loss": 0.5}, 0)
    command = [sys.executable, "-m", sender.MODULE]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    job = {"journal": journal.path, "uri": uri, "folder": str(tmp_path), "node": None}
    with reading(journal.path) as other:
        assert other.lock(0)
        for told in ("", json.dumps(job | {"give_up_s": 1000.0}) + "\nclose\n"):
            done = subprocess.run(
                command, input=told, capture_output=True, text=True, env=env, timeout=stretched(20)
            )
            assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert os.path.exists(journal.path) and journal.acked < journal.position
