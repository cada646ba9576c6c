"""Runs as the command line finds, judges, ends and sends them, in a real store."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest

from raylit.errors import ConfigError
from raylit.loggers.mlflow import runs
from raylit.loggers.mlflow.journal import Journal, reading
from raylit.loggers.mlflow.runs import SILENT_S
from raylit.loggers.mlflow.store import PARENT_TAG, PROCESS_TAG, REASON_TAG
from raylit.runtime.processes import ProcessName
from tests.loggers.mlflow_store import free_port

GONE = str(dataclasses.replace(ProcessName.of_this(), started=1))
ELSEWHERE = "elsewhere:b:n:1:2"


def test_a_given_store_comes_before_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert runs.default_uri() == "sqlite:///mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert runs.default_uri() == runs.default_uri("") == "http://host:5000"
    assert runs.default_uri("sqlite:///x.db") == "sqlite:///x.db"


def test_a_store_that_is_not_there_is_said_and_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"no MLflow store {tmp_path}/a b.db"):
        runs.open_store("sqlite:///a b.db")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError) as raised:
        runs.open_store(f"http://me:hunter2@127.0.0.1:{free_port()}")
    assert "does not answer: http://me:***@127" in str(raised.value)
    assert "hunter2" not in str(raised.value)
    with pytest.raises(ConfigError, match="does not answer: ftp://host/x"):
        runs.open_store("ftp://host/x")


def test_a_store_is_opened_from_wherever_one_stands(
    empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_database, "own.db")
    client = runs.open_store("sqlite:///own.db")
    monkeypatch.chdir("/")
    assert {one.name for one in runs.experiments(client, None)} == {"Default", "warm"}


def test_experiments_have_a_name_and_an_id(client: Any, experiment: str, tmp_path: Path) -> None:
    for name in (tmp_path.name, experiment):
        (found,) = runs.experiments(client, name)
        assert found.experiment_id == experiment
    assert experiment in {one.experiment_id for one in runs.experiments(client, None)}
    with pytest.raises(ConfigError, match=f"no experiment '{tmp_path.name}x'.*{tmp_path.name}"):
        runs.experiments(client, f"{tmp_path.name}x")


def new_run(client: Any, experiment: str, name: str, start: int, **tags: str) -> str:
    made: str = client.create_run(
        experiment, start_time=start, run_name=name, tags=tags
    ).info.run_id
    return made


def names(found: Any) -> list[str]:
    return [one.info.run_name for one in found]


def test_runs_are_found_newest_first_filtered_ordered_and_counted(
    client: Any, experiment: str
) -> None:
    for number in range(5):
        run_id = new_run(client, experiment, f"run {number}", 1000 + number)
        client.log_metric(run_id, "val loss", number % 3)
    assert names(runs.search(client, [experiment])) == [f"run {n}" for n in (4, 3, 2, 1, 0)]
    assert names(runs.search(client, [experiment], most=2)) == ["run 4", "run 3"]
    assert runs.search(client, [experiment], most=0) == []
    found = runs.search(client, [experiment], "metrics.`val loss` > 0", ["metrics.`val loss` DESC"])
    assert names(found)[0] == "run 2" and {*names(found)} == {"run 1", "run 2", "run 4"}
    for query, order in (("loss <", []), ("", ["nothing.x DESC"])):
        with pytest.raises(ConfigError, match="A filter looks like"):
            runs.search(client, [experiment], query, order)


def test_a_run_is_meant_by_id_its_beginning_name_or_as_the_last(
    client: Any, experiment: str, tmp_path: Path
) -> None:
    first = new_run(client, experiment, "first ü", 1000)
    second = new_run(client, experiment, first[:8], 3000)  # a name comes before a beginning
    third = new_run(client, experiment, "third", 2000)

    def meant(name: str) -> str:
        found: str = runs.find(client, name, tmp_path.name).info.run_id
        return found

    assert (meant(first), meant("first ü"), meant(first[:9])) == (first, first, first)
    assert (meant(first[:8]), meant("last"), meant("third")) == (second, second, third)
    new_run(client, experiment, "third", 2500)
    with pytest.raises(ConfigError, match=rf"2 runs are meant by 'third': .*{third[:12]}"):
        meant("third")
    for name in ("", "nobody", third[:3], "0" * 32, "x" * 32, third[1:]):
        with pytest.raises(ConfigError, match=f"There is no run '{name}' in sqlite:"):
            meant(name)


def test_signs_in_a_name_stand_for_themselves(client: Any, experiment: str) -> None:
    new_run(client, experiment, "Annas run", 1)
    hers = new_run(client, experiment, "Anna's run", 2)
    assert runs.find(client, "Anna's run").info.run_id == hers
    for name in ("%%%%", "____", "Anna%", "a\"b'c"):
        with pytest.raises(ConfigError, match="There is no run"):
            runs.find(client, name)


def test_a_run_is_looked_for_in_the_experiment_alone(
    client: Any, experiment: str, tmp_path: Path
) -> None:
    other = client.create_experiment(f"{tmp_path.name} other", str(tmp_path))
    new_run(client, experiment, "same", 1000)
    run_id = new_run(client, other, "same", 2000)
    assert runs.find(client, "same", other).info.run_id == run_id
    with pytest.raises(ConfigError, match="no experiment"):
        runs.find(client, "same", "nothing")


def test_a_run_that_is_said_to_be_running_is_judged_by_its_process(
    client: Any, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ms = int(time.time() * 1000)
    old_ms = now_ms - int(SILENT_S * 1000) - 5000

    def judged(start: int, process: str | None, ended: bool = False, logged: int = 0) -> str:
        tags = {} if process is None else {PROCESS_TAG: process}
        run_id = new_run(client, experiment, "judged", start, **tags)
        if logged:
            client.log_metric(run_id, "loss", 0.5, timestamp=logged)
            client.log_metric(run_id, "acc", 0.5, timestamp=old_ms)
        if ended:
            client.set_terminated(run_id)
        run = client.get_run(run_id)
        assert runs.heard_of(run) == max(start, logged) / 1000
        return runs.condition(run)

    assert judged(old_ms, str(ProcessName.of_this())) == "as told"
    assert judged(now_ms, GONE) == "gone"
    assert judged(now_ms, GONE, ended=True) == "as told"
    assert judged(old_ms, None) == judged(old_ms, "no process") == "as told"
    assert judged(now_ms, ELSEWHERE) == "as told"
    assert judged(old_ms, ELSEWHERE) == "lost"
    assert judged(old_ms, ELSEWHERE, logged=now_ms) == "as told"
    assert judged(old_ms, ELSEWHERE, logged=old_ms + 1000) == "lost"


def test_runs_whose_process_is_gone_are_ended_and_lost_ones_if_wanted(
    client: Any, experiment: str
) -> None:
    ids = {
        name: new_run(client, experiment, name, 1000, **{PROCESS_TAG: process})
        for name, process in (
            ("gone", GONE),
            ("lost", ELSEWHERE),
            ("alive", str(ProcessName.of_this())),
            ("no process", ""),
        )
    }

    def statuses() -> dict[str, str]:
        return {name: client.get_run(run_id).info.status for name, run_id in ids.items()}

    running = dict.fromkeys(ids, "RUNNING")
    assert runs.end_gone(client, [experiment]) == 1
    assert statuses() == running | {"gone": "KILLED"}
    assert runs.end_gone(client, [experiment]) == 0
    assert runs.end_gone(client, [experiment], lost=True) == 1
    assert statuses() == running | {"gone": "KILLED", "lost": "KILLED"}
    reasons = {
        name: client.get_run(run_id).data.tags.get(REASON_TAG) for name, run_id in ids.items()
    }
    assert reasons == {
        "gone": "its process is gone",
        "lost": "nothing was heard of it",
        "alive": None,
        "no process": None,
    }


def test_a_run_that_went_on_since_it_was_listed_is_left(
    client: Any, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may have taken it up: between the list and the lock, with its own name."""
    run_id = new_run(client, experiment, "goes on", 1000, **{PROCESS_TAG: GONE})
    listed = runs.search(client, [experiment])
    client.set_tag(run_id, PROCESS_TAG, str(ProcessName.of_this()))
    monkeypatch.setattr(runs, "search", lambda *args: listed)
    runs.end_gone(client, [experiment])
    run = client.get_run(run_id)
    assert run.info.status == "RUNNING" and REASON_TAG not in run.data.tags


def test_a_text_that_is_not_there_is_empty(client: Any, run_id: str) -> None:
    client.log_text(run_id, "lr: 0.1 # ü\n", "config/config.yaml")
    run = client.get_run(run_id)
    assert runs.text_of(client, run, "config/config.yaml") == "lr: 0.1 # ü\n"
    for path in ("config.yaml", "config", "config/none/x"):
        assert runs.text_of(client, run, path) == ""


def test_runs_stand_below_those_that_made_them_in_their_order(client: Any, experiment: str) -> None:
    sweep = new_run(client, experiment, "sweep", 1)
    trial = new_run(client, experiment, "trial", 2, **{PARENT_TAG: sweep})
    new_run(client, experiment, "fit of the trial", 3, **{PARENT_TAG: trial})
    new_run(client, experiment, "alone", 4)
    new_run(client, experiment, "next trial", 5, **{PARENT_TAG: sweep})
    new_run(client, experiment, "its parent is not shown", 6, **{PARENT_TAG: "0" * 32})
    found = runs.search(client, [experiment])
    assert [(depth, one.info.run_name) for depth, one in runs.tree(found)] == [
        (0, "its parent is not shown"),
        (0, "alone"),
        (0, "sweep"),
        (1, "next trial"),
        (1, "trial"),
        (2, "fit of the trial"),
    ]
    assert [one for _, one in runs.tree(found[:3])] == found[:3]
    assert list(runs.tree([])) == []


# ---- journals ----


def test_each_journal_is_sent_to_its_own_store_or_says_why_not(
    client: Any, uri: str, run_id: str, tmp_path: Path, new_journal: Callable[..., Journal]
) -> None:
    deep = tmp_path / "runs" / "deep"
    fields: dict[str, dict[str, Any]] = {
        "sent": {},
        "running": {},
        "elsewhere": {"process": ELSEWHERE},
        "silent": {"process": ELSEWHERE},
        "no store": {"uri": f"sqlite:///{tmp_path}/nothing.db"},
        "no run": {"run_id": "0" * 32},
        "taken": {},
    }
    paths = {}
    for place, (name, own) in enumerate(fields.items()):
        journal = new_journal(**own)
        for step in range(place + 1):
            journal.log_metrics({name: 1.0}, step)
        paths[name] = journal.path
        if name not in ("running", "elsewhere", "silent"):
            journal.close()
        os.utime(journal.path, (time.time() - 3600 - 100 + place,) * 2)
    os.utime(paths["elsewhere"])
    deep.mkdir(parents=True)
    (deep / "x.journal").write_text("no journal")
    with reading(paths["taken"]) as other:
        assert other.lock(0)
        found = {one.path: one for one in runs.sync(str(tmp_path), None)}
    problems = {name: found[path].problem for name, path in paths.items()}
    assert problems["sent"] == problems["silent"] == ""
    assert problems["running"] == problems["elsewhere"] == "its fit is running"
    assert problems["taken"] == "another process is sending it"
    assert "There is no MLflow store" in problems["no store"]
    assert "0" * 32 in problems["no run"]
    assert "is no journal" in found[str(deep / "x.journal")].problem
    left = {name for name, path in paths.items() if os.path.exists(path)}
    assert left == {*fields} - {"sent", "silent"}
    assert {*client.get_run(run_id).data.metrics} == {"sent", "silent"}
    assert [found[path].num for path in paths.values()] == [1, 2, 3, 4, 5, 6, 7]
    assert found[paths["sent"]].run_id == run_id and found[paths["sent"]].uri == uri
    assert 3500 < found[paths["sent"]].age_s < 3800


class Away(BaseHTTPRequestHandler):
    """Is a proxy whose server is away, and notes who asks."""

    asked: ClassVar[set[str]] = set()

    def do_GET(self) -> None:
        self.asked.add(self.headers.get("Authorization", "nobody"))
        self.send_error(503)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize(("login", "asks"), [("me:***@", "Basic bWU6aHVudGVyMg=="), ("", "nobody")])
def test_a_password_that_no_journal_holds_is_given_again_for_its_store_alone(
    tmp_path: Path, new_journal: Callable[..., Journal], login: str, asks: str
) -> None:
    server = HTTPServer(("127.0.0.1", 0), Away)
    Thread(target=server.serve_forever, daemon=True).start()
    host = f"127.0.0.1:{server.server_port}"
    new_journal(uri=f"http://{login}{host}").close()
    Away.asked.clear()
    try:
        (found,) = runs.sync(str(tmp_path), f"http://me:hunter2@{host}")
    finally:
        server.shutdown()
        server.server_close()
    assert Away.asked == {asks}
    assert "does not answer" in found.problem
    assert "hunter2" not in str(found)


def test_where_no_journal_is_nothing_is_sent(tmp_path: Path) -> None:
    assert list(runs.sync(str(tmp_path), None)) == []
    assert list(runs.sync(str(tmp_path / "nowhere"), None)) == []
