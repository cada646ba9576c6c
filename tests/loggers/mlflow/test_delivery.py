"""Journals that are sent: in order, each value once, whatever is asked twice or fails between."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from raylit.loggers.mlflow.delivery import (
    Delivery,
    deliver,
    deliver_left_behind,
    deliver_of,
    num_waiting,
)
from raylit.loggers.mlflow.journal import Journal, Record, reading
from raylit.loggers.mlflow.store import RunStore
from tests.lazy import mlflow

NewJournal = Callable[..., Journal]


def points(client: Any, run_id: str, key: str = "loss") -> list[tuple[int, float]]:
    return [(one.step, one.value) for one in client.get_metric_history(run_id, key)]


def filled(journal: Journal, steps: range) -> Journal:
    for step in steps:
        journal.log_metrics({"loss": step / 2}, step)
    return journal


def test_all_is_sent_in_order_and_the_journal_deleted(
    client: Any, uri: str, run_id: str, new_journal: NewJournal
) -> None:
    journal = filled(new_journal(), range(2500))  # of several batches
    journal.log(Record("param", "lr", "0.1"))
    journal.log(Record("tag", "ü", "é"))
    journal.log(Record("text", "notes/a b.txt", "hello ü"))
    journal.log(Record("status", "", "FINISHED"))
    journal.close()
    assert deliver(journal.path, uri)
    assert not os.path.exists(journal.path)
    assert points(client, run_id) == [(step, step / 2) for step in range(2500)]
    run = client.get_run(run_id)
    assert (run.data.params, run.data.tags["ü"]) == ({"lr": "0.1"}, "é")
    assert run.info.status == "FINISHED"
    text = Path(client.download_artifacts(run_id, "notes/a b.txt")).read_text("utf-8")
    assert text == "hello ü"
    assert deliver(journal.path, uri), "another process was quicker"


def test_an_empty_journal_is_sent_too(uri: str, new_journal: NewJournal) -> None:
    journal = new_journal()
    journal.close()
    assert deliver(journal.path, uri)
    assert not os.path.exists(journal.path)


def test_more_values_than_mlflow_takes_at_once_come_whole(
    client: Any, uri: str, run_id: str, new_journal: NewJournal
) -> None:
    journal = new_journal()
    journal.log_metrics({f"weights/{number}": float(number) for number in range(1500)}, 3)
    journal.close()
    assert deliver(journal.path, uri)
    metrics = client.get_run(run_id).data.metrics
    assert metrics == {f"weights/{number}": float(number) for number in range(1500)}


def test_what_was_acknowledged_is_not_sent_again(
    client: Any, uri: str, run_id: str, new_journal: NewJournal
) -> None:
    journal = filled(new_journal(), range(3))
    journal.log(Record("tag", "state", "of the fit"))
    with reading(journal.path) as reader:
        assert num_waiting(reader) == 4
    with reading(journal.path) as reader:
        delivery = Delivery(reader, RunStore(uri, run_id))
        assert delivery.send() and not delivery.send()
        assert (delivery.num_sent, reader.acked) == (4, journal.position)
    client.set_tag(run_id, "state", "of the user")
    with reading(journal.path) as reader:
        assert num_waiting(reader) == 0
    journal.close()
    assert deliver(journal.path, uri)
    assert client.get_run(run_id).data.tags["state"] == "of the user"
    assert points(client, run_id) == [(step, step / 2) for step in range(3)]


def test_what_is_appended_meanwhile_comes_with_the_next_call(
    client: Any, uri: str, run_id: str, new_journal: NewJournal
) -> None:
    journal = new_journal()
    with reading(journal.path) as reader:
        delivery = Delivery(reader, RunStore(uri, run_id))
        assert not delivery.send()
        for step in range(3):
            journal.log_metrics({"loss": step / 2}, step)
            assert delivery.send() and not delivery.send()
            assert points(client, run_id)[-1] == (step, step / 2)
            assert journal.acked == journal.position


@pytest.mark.parametrize("at_once", [False, True])
def test_one_that_always_fails_is_left_out_wherever_it_stands(
    client: Any,
    uri: str,
    run_id: str,
    tmp_path: Path,
    new_journal: NewJournal,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    at_once: bool,
) -> None:
    """As where artifacts cannot be stored, but metrics can."""

    def failing(*args: object) -> None:
        raise PermissionError("no credentials")

    monkeypatch.setattr(mlflow.MlflowClient, "log_artifact", failing)
    monkeypatch.setattr("raylit.loggers.mlflow.delivery.RETRY_S", 0.0)
    staged = tmp_path / "staged" / "plot.png"
    staged.parent.mkdir()
    staged.write_text("a picture")
    journal = filled(new_journal(), range(3))
    journal.log(Record("file", "plots/plot.png", str(staged)))
    filled(journal, range(3, 5))
    if at_once:
        journal.close()
        assert deliver(journal.path, uri)
    else:
        with reading(journal.path) as reader:
            delivery = Delivery(reader, RunStore(uri, run_id))
            for _ in range(2):
                with pytest.raises(PermissionError):
                    delivery.send()
            assert delivery.send() and not delivery.send()
    assert points(client, run_id) == [(step, step / 2) for step in range(5)]
    assert not staged.parent.exists()
    assert any("no credentials" in text for text in said)


@contextmanager
def away(path: Path) -> Iterator[None]:
    """Within, the database in a file is not there."""
    path.rename(f"{path}.away")
    yield
    Path(f"{path}.away").rename(path)


def test_a_store_that_goes_away_in_between_gets_each_value_once(
    empty_database: Path, tmp_path: Path, new_journal: NewJournal
) -> None:
    path = Path(shutil.copy(empty_database, tmp_path / "own.db"))
    uri = f"sqlite:///{path}"
    client = mlflow.MlflowClient(uri)
    run_id = client.create_run("0").info.run_id
    journal = filled(new_journal(run_id=run_id, uri=uri), range(1500))
    with reading(journal.path) as reader:
        delivery = Delivery(reader, RunStore(uri, run_id))
        assert delivery.send()
        acked = reader.acked
        with away(path):
            for _ in range(2):
                with pytest.raises(Exception, match="database"):
                    delivery.send()
        assert reader.acked == acked < journal.position
        while delivery.send():
            pass
        assert reader.acked == journal.position
    assert points(client, run_id) == [(step, step / 2) for step in range(1500)]


def test_a_batch_whose_answer_was_lost_is_sent_again_without_harm(
    client: Any, uri: str, run_id: str, new_journal: NewJournal
) -> None:
    journal = new_journal()
    journal.log(Record("param", "lr", "0.1"))
    filled(journal, range(5))
    with reading(journal.path) as reader:
        start = reader.acked
        for _ in range(2):
            assert Delivery(reader, RunStore(uri, run_id)).send()
            reader.acknowledge(start)  # as if its process had died before it wrote that down
            reader.position = start
    run = client.get_run(run_id)
    assert points(client, run_id) == [(step, step / 2) for step in range(5)]
    assert run.data.params == {"lr": "0.1"}
    assert not [key for key in run.data.tags if key.startswith("raylit.resume")]


# ---- a fit that goes on from a checkpoint ----


def sent(journal: Journal, uri: str) -> None:
    journal.close()
    assert deliver(journal.path, uri)


def test_what_a_fit_logs_again_is_left_out_as_often_as_it_is_there(
    client: Any, uri: str, run_id: str, new_journal: NewJournal
) -> None:
    """By name and step: the values of the second fit are a little different."""
    first = filled(new_journal(), range(3))
    since_ms = first.mark()  # a checkpoint
    time.sleep(0.01)
    for value in (1.0, 2.0):  # twice at one step, as by hand
        first.log_metrics({"loss": value, "acc": value}, 3)
    first.log_metrics({"only first": 1.0}, 4)
    sent(first, uri)
    again = new_journal(since_ms=since_ms)
    for value in (10.0, 20.0, 30.0):
        again.log_metrics({"loss": value, "new": value}, 3)
    again.log_metrics({"loss": 40.0}, 4)
    sent(again, uri)
    assert points(client, run_id)[3:] == [(3, 1.0), (3, 2.0), (3, 30.0), (4, 40.0)]
    assert points(client, run_id, "acc") == [(3, 1.0), (3, 2.0)]
    assert points(client, run_id, "new") == [(3, 10.0), (3, 20.0), (3, 30.0)]


def test_images_that_come_again_are_left_out(
    client: Any, uri: str, run_id: str, tmp_path: Path, new_journal: NewJournal
) -> None:
    from PIL import Image

    def log_image(journal: Journal, name: str, step: int) -> Path:
        path = Path(tempfile.mkdtemp(dir=tmp_path)) / "image.png"
        Image.new("L", (2, 2)).save(path)
        journal.log(Record("image", name, str(path), step=step))
        return path.parent

    def files() -> list[str]:
        found = [one.path for one in client.list_artifacts(run_id, "images")]
        return sorted(one.partition("+timestamp")[0] for one in found if one.endswith(".png"))

    first = new_journal()
    log_image(first, "a/b: c", 1)
    since_ms = first.mark()  # a checkpoint
    time.sleep(0.01)
    log_image(first, "a/b: c", 2)
    sent(first, uri)
    before = files()
    again = new_journal(since_ms=since_ms)
    staged = [log_image(again, "a/b: c", step) for step in (2, 3)]
    sent(again, uri)
    assert len(before) == 2
    assert files() == [*before, before[0].replace("+step+1", "+step+3")]
    assert not any(path.exists() for path in staged)


def test_replays_are_known_by_the_name_that_they_have_in_the_store(
    client: Any, uri: str, run_id: str, new_journal: NewJournal
) -> None:
    first = new_journal()
    first.log_metrics({"acc@1": 1.0}, 0)
    sent(first, uri)
    again = new_journal(since_ms=1)
    again.log_metrics({"acc@1": 2.0}, 0)
    again.log_metrics({"acc@1": 3.0}, 1)
    sent(again, uri)
    assert points(client, run_id, "acc1") == [(0, 1.0), (1, 3.0)]


def test_values_of_the_journal_itself_are_no_replays(
    client: Any, uri: str, run_id: str, new_journal: NewJournal
) -> None:
    """A sender was killed after the store had a part; the next one finds it there."""
    journal = new_journal(since_ms=1)
    journal.log_metrics({"loss": 1.0}, 0)
    with reading(journal.path) as reader:
        assert Delivery(reader, RunStore(uri, run_id)).send()
    journal.log_metrics({"loss": 2.0}, 0)
    sent(journal, uri)
    assert points(client, run_id) == [(0, 1.0), (0, 2.0)]


def test_once_all_replays_are_behind_it_the_process_is_told(
    uri: str, run_id: str, new_journal: NewJournal
) -> None:
    """What it logs from then on belongs to the next checkpoint: see `Journal.mark`."""
    first = new_journal()
    first.log_metrics({"loss": 1.0}, 0)
    first.log_metrics({"loss": 2.0}, 1)
    sent(first, uri)
    again = new_journal(since_ms=1)
    with reading(again.path) as reader:
        delivery = Delivery(reader, RunStore(uri, run_id))
        marks = []
        for step in range(2):
            again.log_metrics({"loss": 3.0}, step)
            assert delivery.send()
            marks.append(again.mark())
    assert marks[0] == 1 < marks[1]


# ---- journals that others have left ----


def test_a_journal_that_another_one_sends_is_left_to_it(uri: str, new_journal: NewJournal) -> None:
    journal = filled(new_journal(), range(2))
    journal.close()
    with reading(journal.path) as other:
        assert other.lock(0)
        assert not deliver(journal.path, uri, wait_s=0.1)
        assert os.path.exists(journal.path)
    assert deliver(journal.path, uri, wait_s=0)


def test_a_store_that_is_not_there_leaves_the_journal(
    new_journal: NewJournal, tmp_path: Path
) -> None:
    journal = filled(new_journal(), range(2))
    journal.close()
    with pytest.raises(OSError, match="nowhere"):
        deliver(journal.path, f"sqlite:///{tmp_path}/nowhere/mlflow.db", wait_s=0)
    assert os.path.exists(journal.path)


def test_what_stands_before_the_damage_is_sent_and_the_file_kept(
    client: Any, uri: str, run_id: str, new_journal: NewJournal, said: list[str]
) -> None:
    journal = filled(new_journal(), range(10))
    middle = journal.position
    filled(journal, range(10, 20))
    journal.close()
    content = bytearray(Path(journal.path).read_bytes())
    content[middle + 20] ^= 0xFF
    Path(journal.path).write_bytes(content)
    assert deliver(journal.path, uri)
    assert points(client, run_id) == [(step, step / 2) for step in range(10)]
    assert [path.name for path in Path(journal.path).parent.iterdir()] == [
        f"{Path(journal.path).name}.damaged"
    ]
    assert f"damaged behind byte {middle}" in said[-1]


def test_only_what_nobody_appends_to_is_sent(
    client: Any, uri: str, run_id: str, tmp_path: Path, new_journal: NewJournal
) -> None:
    running = filled(new_journal(), range(2))
    elsewhere = filled(new_journal(process="elsewhere:b:n:1:2"), range(2, 4))
    other_store = filled(new_journal(uri="sqlite:////other.db"), range(4, 6))
    other_store.close()
    own = filled(new_journal(), range(6, 8))
    own.close()
    left = filled(new_journal(), range(8, 10))
    left.close()
    assert deliver_left_behind(str(tmp_path), uri, own=own.path) == 1
    assert [step for step, _ in points(client, run_id)] == [8, 9]
    assert deliver_left_behind(str(tmp_path), uri, "another run", own=own.path) == 0
    # a run that goes on here has ended wherever it ran before
    assert deliver_left_behind(str(tmp_path), uri, run_id, own=own.path) == 1
    assert {step for step, _ in points(client, run_id)} == {2, 3, 8, 9}
    kept = {str(path) for path in (tmp_path / "journals").iterdir()}
    assert kept == {running.path, other_store.path, own.path}
    assert not os.path.exists(elsewhere.path)


def test_journals_are_sent_in_the_order_in_which_they_were_written(
    client: Any, uri: str, run_id: str, tmp_path: Path, new_journal: NewJournal, said: list[str]
) -> None:
    journals = [new_journal() for _ in range(4)]
    for age, journal in enumerate(journals):
        journal.log(Record("tag", "last", str(age)))
        journal.close()
        os.utime(journal.path, (time.time() - age, time.time() - age))
    assert deliver_left_behind(str(tmp_path), uri) == 4
    assert client.get_run(run_id).data.tags["last"] == "0", "the youngest comes last"
    assert sum("1 records" in text for text in said) == 4


def test_one_that_cannot_be_sent_is_said_and_the_next_is_sent(
    client: Any, uri: str, run_id: str, tmp_path: Path, new_journal: NewJournal, said: list[str]
) -> None:
    gone = filled(new_journal(run_id="0" * 32), range(2))
    gone.close()
    (tmp_path / "journals" / "x.journal").write_text("no journal")
    good = filled(new_journal(), range(2))
    good.close()
    assert deliver_left_behind(str(tmp_path), uri) == 1
    assert len(points(client, run_id)) == 2
    kept = {path.name for path in (tmp_path / "journals").iterdir()}
    assert kept == {"x.journal", Path(gone.path).name}
    assert any("x.journal is no journal" in text for text in said)
    assert any(gone.path in text and "stays there" in text for text in said)
    assert deliver_left_behind(str(tmp_path / "nowhere"), uri) == 0


def test_journals_of_some_runs_are_waited_for(
    client: Any, uri: str, run_id: str, tmp_path: Path, new_journal: NewJournal
) -> None:
    running = filled(new_journal(), range(2))
    filled(new_journal(run_id="another"), range(2))
    (tmp_path / "journals" / "x.journal").write_text("no journal")
    start = time.monotonic()
    assert deliver_of(str(tmp_path), uri, [run_id], 0.3) == [running.path]
    assert time.monotonic() - start >= 0.3
    running.close()
    assert deliver_of(str(tmp_path), uri, [run_id], 100) == []
    assert len(points(client, run_id)) == 2
    assert deliver_of(str(tmp_path), uri, [], 100) == []
