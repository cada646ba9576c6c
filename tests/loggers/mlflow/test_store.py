"""Addresses, names and requests of a store; tests/tracking/test_store.py has broken ones."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from raylit.errors import ConfigError
from raylit.loggers.mlflow import store
from raylit.loggers.mlflow.journal import Record
from raylit.loggers.mlflow.store import MAX_NAME_LENGTH, Names, RunStore, clean_name
from raylit.loggers.mlflow.uploads import Upload
from raylit.loggers.queue import Rejected
from tests.deadlines import stretched
from tests.lazy import mlflow
from tests.loggers.mlflow_store import free_port

# ---- where it lies ----


@pytest.mark.parametrize(
    "name", ["plain", "a b", "50%", "what?", "%3F", "ü", "a#b", "a+b", "a&b=c"]
)
def test_the_file_of_an_address_is_the_file_that_it_was_made_of(name: str) -> None:
    file = f"/runs/{name}/mlflow.db"
    uri = store.sqlite_uri(file)
    assert store.sqlite_file(uri) == file
    assert store.sqlite_file(f"{uri}?mode=ro&uri=true") == file
    assert store.absolute(uri) == uri


def test_a_database_is_where_its_address_says_whatever_letters_are_in_it(
    empty_database: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "50% sure? #1 ü+%3F"
    folder.mkdir()
    file = folder / "mlflow.db"
    shutil.copy(empty_database, file)
    client = store.client_of(store.sqlite_uri(str(file)))
    made = store.find_experiment(client, "new", None, str(folder / "mlruns"))
    run_id = client.create_run(made).info.run_id
    client.log_text(run_id, "hello", "a.txt")
    (text,) = folder.rglob("a.txt")
    assert text.read_text() == "hello"


def test_an_address_is_made_absolute_and_keeps_its_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert store.absolute("sqlite:///a/b.db?mode=ro") == f"sqlite:///{tmp_path}/a/b.db?mode=ro"
    assert store.absolute("http://host:5000/") == "http://host:5000"
    for other in ("http://host/sqlite:///x", "postgresql://host/db", "databricks"):
        assert store.sqlite_file(other) is None
        assert store.absolute(other) == other


def test_a_page_is_looked_at_by_its_address_or_by_what_serves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = store.page_of_run("3", "abc")
    assert store.look("http://me:hunter2@host", page) == f"http://me:***@host{page}"
    here = f"sqlite:///{tmp_path}/mlflow.db"
    assert store.look(here, page) == f"raylit ui   then http://127.0.0.1:5000{page}"
    assert store.look("sqlite:////x y/a.db", page).startswith(
        "raylit ui --backend-store-uri 'sqlite:////x y/a.db'   then"
    )


# ---- names ----


@pytest.mark.parametrize(
    ("given", "clean"),
    [
        ("val/loss", "val/loss"),
        ("acc@5 (top)", "acc5 top"),
        ("//a/./../b/", "a/b"),
        ("", "_"),
        ("@@", "_"),
        ("é:ü-1.0 _", "é:ü-1.0 _"),
        ("a\nb", "ab"),
    ],
)
def test_a_name_keeps_what_mlflow_takes(client: Any, run_id: str, given: str, clean: str) -> None:
    assert clean_name(given) == clean
    client.log_metric(run_id, clean, 0.5)
    assert clean_name(clean) == clean


def test_long_names_are_cut_and_stay_different() -> None:
    names = [f"{'x' * 300}/{number}" for number in range(3)]
    cut = {clean_name(name) for name in names}
    assert len(cut) == 3 and {len(name) for name in cut} == {MAX_NAME_LENGTH}
    known = Names()
    given = [f"{'y' * MAX_NAME_LENGTH}{mark}" for mark in ("", "@", "?")]
    found = [known.of(name) for name in given]
    assert len({*found}) == 3 and max(map(len, found)) <= MAX_NAME_LENGTH
    assert [known.of(name) for name in given] == found, "always the same"


def test_an_image_may_have_any_name(client: Any, uri: str, run_id: str, tmp_path: Path) -> None:
    from PIL import Image

    names = ("val: cats", "val? cats", "größe", "x" * 300)
    for number, name in enumerate(names):
        (tmp_path / str(number)).mkdir()
        path = tmp_path / str(number) / "image.png"
        Image.new("L", (2, 2)).save(path)
        RunStore(uri, run_id).write([Record("image", name, str(path), 1, 0)])
    found = {one.path.partition("+")[0] for one in client.list_artifacts(run_id, "images")}
    assert len(found) == len(names)
    assert store.image_key("cats/a-b_c. 1") == "cats/a-b_c. 1"


def test_names_that_could_not_be_told_are_new_again() -> None:
    names = Names({"known": "known@"})
    assert names.of("known@") == "known" and names.take_new() == {}
    names.of("a@")
    new = names.take_new()
    names.give_back(new | {"stranger": "s"})
    assert names.take_new() == {"a": "a@"}


@dataclass
class Options:
    lr: float = 0.1
    more: dict[str, Any] = field(default_factory=dict)


def test_nested_parameters_get_names_with_dots() -> None:
    params = {
        "model": Namespace(width=3, inner=Options(more={"depth": 2})),
        "layers": [1, {"a": 2}],
        "none": None,
        "empty": {},
        "blank": Namespace(),
        "kind": Options,
        7: "seven",
        "uri": "postgresql://me:hunter2@host/db",
    }
    assert dict(store.flatten(params)) == {
        "model.width": "3",
        "model.inner.lr": "0.1",
        "model.inner.more.depth": "2",
        "layers": "[1, {'a': 2}]",
        "none": "None",
        "empty": "{}",
        "blank": "Namespace()",
        "kind": str(Options),
        "7": "seven",
        "uri": "postgresql://me:***@host/db",
    }
    assert dict(store.flatten(Namespace(a=1), "x.")) == {"x.a": "1"}


# ---- what is written ----


def test_a_batch_that_is_refused_leaves_the_names_to_be_told(
    client: Any, uri: str, run_id: str
) -> None:
    run_store = RunStore(uri, run_id)
    bad = [Record("metric", "acc@1", 1.0, -1, 0), Record("param", "a@", "1")]
    with pytest.raises(Rejected):  # of a time before 1970
        run_store.write(bad)
    assert "raylit.name.acc1" not in client.get_run(run_id).data.tags
    run_store.write([bad[0]._replace(time_ms=1000), bad[1]])
    data = client.get_run(run_id).data
    assert (data.metrics, data.params) == ({"acc1": 1.0}, {"a": "1"})
    assert (data.tags["raylit.name.acc1"], data.tags["raylit.name.a"]) == ("acc@1", "a@")
    again = RunStore(uri, run_id)
    again.write([Record("metric", "acc1", 2.0, 1000, 0)])
    assert again.name_of("acc@1") == "acc1" != again.name_of("acc1")


def test_a_store_that_refuses_everything_loses_nothing(uri: str) -> None:
    """It is whoever sends that it refuses, or the run that is gone: no value is to blame."""
    gone = RunStore(uri, "0" * 32)
    assert not gone.takes_anything()
    with pytest.raises(Exception) as raised:
        gone.write([Record("metric", "loss", 1.0, 1, 0)])
    assert not isinstance(raised.value, Rejected)


def test_a_parameter_does_not_change_and_says_what_it_was_then(
    client: Any, uri: str, run_id: str
) -> None:
    client.set_tag(run_id, "raylit.attempt", "3")
    run_store = RunStore(uri, run_id)
    run_store.write([Record("param", "lr", "0.1"), Record("param", "lr", "0.2")])
    run_store.write([Record("param", "lr", "0.1"), Record("param", "width", "8")])
    data = client.get_run(run_id).data
    assert data.params == {"lr": "0.1", "width": "8"}
    assert data.tags["raylit.resume.3.lr"] == "0.2"


def test_files_are_sent_once_and_then_deleted(
    client: Any, uri: str, run_id: str, tmp_path: Path
) -> None:
    (tmp_path / "x").mkdir()
    path = tmp_path / "x" / "step-1.png"
    path.write_bytes(b"picture")
    entry = Record("file", "plots/a/step-1.png", str(path))
    for _ in range(2):  # the answer was lost, and it comes again
        RunStore(uri, run_id).write([entry])
        assert not path.parent.exists()
    (file,) = client.list_artifacts(run_id, "plots/a")
    assert (file.path, file.file_size) == ("plots/a/step-1.png", 7)


def test_a_checkpoint_that_is_gone_is_left_out(uri: str, run_id: str, tmp_path: Path) -> None:
    gone = Upload(str(tmp_path / "a.ckpt"), {}, ["latest"], False)
    with pytest.raises(Rejected, match=r"a\.ckpt was deleted before"):
        RunStore(uri, run_id).upload([gone])


def test_only_newer_values_are_counted(client: Any, uri: str, run_id: str) -> None:
    for key, step, time_ms in (("a", 0, 10), ("a", 1, 20), ("a", 1, 30), ("b", 5, 20)):
        client.log_metric(run_id, key, time_ms / 10, timestamp=time_ms, step=step)
    client.log_metric(run_id, "a", 7.0, timestamp=30, step=1)
    # no fit logs these again
    client.log_metric(run_id, "system/node_0/cpu", 7.0, timestamp=40, step=1)
    run_store = RunStore(uri, run_id)
    assert run_store.newer_than(20) == {("metric", "a", 1, 30): 2}
    assert run_store.newer_than(30) == {}
    assert sum(run_store.newer_than(0).values()) == 5


def test_runs_below_another_are_found_by_how_they_stand(
    client: Any, experiment: str, run_id: str
) -> None:
    made = [client.create_run(experiment, tags={store.PARENT_TAG: run_id}) for _ in range(3)]
    ids = [one.info.run_id for one in made]
    client.log_param(ids[0], "lr", 0.1)
    client.log_metric(ids[0], "loss", 0.5)
    assert store.children_of(client, run_id) == []
    client.set_terminated(ids[0], "FINISHED")
    client.set_terminated(ids[1], "FAILED")
    assert store.running_children(client, experiment, run_id) == [ids[2]]
    assert store.children_of(client, run_id) == [({"lr": "0.1"}, {"loss": 0.5})]
    assert store.children_of(client, "0" * 32) is None


# ---- who may, and who answers ----

HOLDS = (
    "import sys\nfrom raylit.loggers.mlflow.store import locked\n"
    "with locked(sys.argv[1]):\n    print('mine', flush=True)\n    sys.stdin.readline()\n"
)


def test_a_local_database_has_one_writer_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    uri = store.sqlite_uri(str(tmp_path / "mlflow.db"))
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    taken: list[float] = []

    def take() -> None:
        with store.locked(uri):
            taken.append(time.monotonic())

    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, uri],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "mine\n"
        thread = Thread(target=take, daemon=True)
        thread.start()
        thread.join(0.3)
        assert not taken
        process.kill()
        thread.join(stretched(10))
        assert len(taken) == 1
    with store.locked("http://host"):  # a server sees to that itself
        assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db.lock"}


def test_requests_are_short_for_a_while_unless_the_user_said_how_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT")
    monkeypatch.delenv(names[0], raising=False)
    monkeypatch.setenv(names[1], "700")

    def said() -> list[str | None]:
        return [os.environ.get(name) for name in names]

    with pytest.raises(KeyError), store.short_requests():
        with store.short_requests():
            assert said() == ["1", "700"]
        assert said() == ["1", "700"]
        raise KeyError
    assert said() == [None, "700"]


class Answers(BaseHTTPRequestHandler):
    """Answers with a status."""

    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def test_a_server_answers_unless_it_says_that_it_is_away() -> None:
    server = HTTPServer(("127.0.0.1", 0), Answers)
    Thread(target=server.serve_forever, daemon=True).start()
    uri = f"http://127.0.0.1:{server.server_port}"
    try:
        for Answers.status in (200, 401, 404):
            store.check_answers(uri)
        for Answers.status in (502, 503, 504):
            with pytest.raises(ConnectionError, match=f"HTTP status {Answers.status}"):
                store.check_answers(uri)
    finally:
        server.shutdown()
        server.server_close()
    start = time.monotonic()
    with pytest.raises(ConnectionError):
        store.check_answers(uri)
    with pytest.raises(OSError):
        store.check_answers(f"postgresql://127.0.0.1:{free_port()}/db")
    assert time.monotonic() - start < stretched(10)
    for local in ("sqlite:////nowhere/x.db", "databricks", "file:///x"):
        store.check_answers(local)


def test_a_database_that_nobody_can_speak_to_is_said_with_what_to_install() -> None:
    with pytest.raises(ConfigError, match="pip install mysqlclient"):
        store.check_driver("mysql://me:hunter2@host/db")
    with pytest.raises(ConfigError, match="is no address of a database") as raised:
        store.check_driver("postgresql+nonsense://me:hunter2@host/db")
    assert "hunter2" not in str(raised.value)
    store.check_driver("http://host")
    store.check_driver("sqlite:///x.db")


def test_a_database_of_another_machine_is_not_made_here(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="Workers on several machines need a server"):
        store.client_of(store.sqlite_uri(str(tmp_path / "mlflow.db")))
    assert not list(tmp_path.iterdir())


def test_an_experiment_is_made_once_and_a_deleted_one_is_said(client: Any, tmp_path: Path) -> None:
    name = f"{tmp_path.name} ü/1"
    made = store.find_experiment(client, name, str(tmp_path), None)
    assert store.find_experiment(client, name, None, None) == made
    assert client.get_experiment(made).artifact_location.endswith(str(tmp_path))
    client.delete_experiment(made)
    with pytest.raises(ConfigError, match=f"mlflow experiments restore --experiment-id {made}"):
        store.find_experiment(client, name, None, None)


def test_the_run_of_the_user_counts_in_its_own_store_alone(
    uri: str, client: Any, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.active_run_id(uri) is None
    monkeypatch.setenv("MLFLOW_RUN_ID", "of the environment")
    assert store.active_run_id(uri) == "of the environment"
    monkeypatch.delenv("MLFLOW_RUN_ID")
    with mlflow.start_run(experiment_id=experiment) as active:
        monkeypatch.setenv("MLFLOW_RUN_ID", "of the environment")
        assert store.active_run_id(uri) == active.info.run_id
        assert store.active_run_id("sqlite:////other.db") is None


def test_curves_have_a_picture_for_each_group() -> None:
    rows: list[dict[str, float]] = [
        {"epoch": 0, "step": 3, "train/loss": 0.5, "val/loss": 0.75, "acc": 0.1},
        {"epoch": 1, "step": 7, "val/loss": float("nan"), "acc": 0.2},
    ]
    axes = store.curves(rows).get_axes()
    drawn = {
        str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())[:1])  # type: ignore[arg-type]
        for one in axes
        for line in one.get_lines()
    }
    assert len(axes) == 2
    assert drawn == {
        "acc": ([3, 7], [0.1]),
        "train/loss": ([3], [0.5]),
        "val/loss": ([3, 7], [0.75]),
    }
    many = [{"step": 1.0, **{f"m{number}": 0.0 for number in range(50)}}]
    assert len(store.curves(many).get_axes()) == store.MOST_CURVES
