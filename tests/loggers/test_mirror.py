"""Files that are written here and are to be at a URL, where nothing can be appended to."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from raylit.loggers.mirror import Mirror, downloaded_if_there
from tests.deadlines import stretched
from tests.loggers.mlflow_store import free_port

# A file system in this process's memory, which the thread that copies shares; see `bucket` in
# tests/loggers/test_csv.py for one with a server.
FILES = fsspec.filesystem("memory")


@pytest.fixture
def url() -> Iterator[str]:
    """The URL of a folder that is not there yet."""
    name = f"/{uuid.uuid4().hex}"
    yield f"memory://{name}/run"
    if FILES.exists(name):
        FILES.rm(name, recursive=True)


def write(mirror: Mirror, name: str, text: str) -> None:
    path = Path(mirror.folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def there(url: str) -> dict[str, str]:
    """Return what is at a URL: texts by their path."""
    root = url.removeprefix("memory://")
    return {
        str(path).removeprefix(f"{root}/"): FILES.cat_file(path).decode()
        for path in FILES.find(root)
    }


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + stretched(10)
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_all_files_are_there_at_the_end_and_the_local_ones_are_gone(url: str) -> None:
    mirror = Mirror(url, "metrics.csv")
    texts = {"metrics.csv": "a,b\n", "plots/loss/step-1.png": "é", "a b/%20 ü.txt": "", "e": "3"}
    for name, text in texts.items():
        write(mirror, name, text)
    mirror.close()
    assert there(url) == texts
    assert not os.path.exists(mirror.folder)


def test_a_file_that_is_being_written_is_not_copied(url: str) -> None:
    """CSVLogger writes a file anew beside the old one, and then puts it in its place."""
    mirror = Mirror(url, "metrics.csv")
    write(mirror, "metrics.csv.tmp", "a,")
    mirror.copy(soon=True)
    write(mirror, "note.txt", "hello")
    mirror.close()
    assert there(url) == {"note.txt": "hello"}


def test_what_is_there_already_is_gone_on_with(url: str) -> None:
    for name, text in (("metrics.csv", "loss,step\n0.5,0\n"), ("hparams.yaml", "{}\n")):
        FILES.pipe_file(f"{url}/{name}", text.encode())
    mirror = Mirror(url, "metrics.csv")
    assert os.listdir(mirror.folder) == ["metrics.csv"], "only what is appended to is fetched"
    with Path(mirror.folder, "metrics.csv").open("a") as file:
        file.write("0.25,1\n")
    mirror.close()
    assert there(url) == {
        "metrics.csv": "loss,step\n0.5,0\n0.25,1\n",
        "hparams.yaml": "{}\n",
    }


def test_what_did_not_change_is_not_written_again(url: str) -> None:
    """What another one has put there since stays."""
    FILES.pipe_file(f"{url}/metrics.csv", b"old\n")
    mirror = Mirror(url, "metrics.csv")
    FILES.pipe_file(f"{url}/metrics.csv", b"of another one")
    write(mirror, "note.txt", "hello")
    mirror.copy(soon=True)
    wait_for(lambda: "note.txt" in there(url))
    FILES.pipe_file(f"{url}/note.txt", b"of another one")
    write(mirror, "plot.png", "x")
    mirror.close()
    assert there(url) == {
        "metrics.csv": "of another one",
        "note.txt": "of another one",
        "plot.png": "x",
    }


def test_soon_is_now_and_else_is_at_the_next_time(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raylit.loggers.mirror.COPY_EVERY_S", 1000.0)
    mirror = Mirror(url, "metrics.csv")
    mirror.copy(soon=True)  # nothing has changed
    write(mirror, "metrics.csv", "1")
    mirror.copy()
    wait_for(lambda: there(url) == {"metrics.csv": "1"})  # the first at once
    write(mirror, "metrics.csv", "2")
    mirror.copy()
    time.sleep(0.2)
    assert there(url) == {"metrics.csv": "1"}
    mirror.copy(soon=True)
    wait_for(lambda: there(url) == {"metrics.csv": "2"})
    write(mirror, "metrics.csv", "3")
    mirror.close()  # nor does the end wait for the next time
    assert there(url) == {"metrics.csv": "3"}


def test_a_store_that_fails_is_said_once_and_gets_all_when_it_works_again(
    url: str, said: list[str]
) -> None:
    parent = url.removesuffix("/run")
    mirror = Mirror(url, "metrics.csv")
    FILES.pipe_file(parent, b"a file, where a folder is wanted")
    for step in range(3):
        write(mirror, "metrics.csv", f"{step}")
        mirror.copy(soon=True)
    wait_for(lambda: bool(said))
    assert f"files to {url}" in said[0] and "Training goes on" in said[0]
    FILES.rm_file(parent)
    write(mirror, "note.txt", "hello")
    mirror.close()
    assert there(url) == {"metrics.csv": "2", "note.txt": "hello"}
    assert len([text for text in said if "Could not write" in text]) == 1
    assert any("works again" in text for text in said)


def test_a_file_at_a_url_is_a_local_one_for_a_while(url: str) -> None:
    FILES.pipe_file(f"{url}/ü.csv", "loss\r\né".encode())
    with downloaded_if_there(f"{url}/ü.csv") as here:
        assert Path(here).read_bytes() == "loss\r\né".encode()
    assert not os.path.exists(here)


def test_what_is_not_there_is_an_empty_file(url: str, tmp_path: Path) -> None:
    with downloaded_if_there(f"{url}/metrics.csv") as here:
        assert Path(here).read_bytes() == b""
    path = tmp_path / "metrics.csv"
    path.write_text("loss\n")
    with downloaded_if_there(str(path)) as here:
        assert here == str(path)
    assert path.exists(), "a local file is itself, and stays"


def test_a_file_that_cannot_be_fetched_is_an_error_and_not_an_empty_one() -> None:
    """Else a run that goes on would put an empty table in place of the one that is there."""
    wrong = f"http://127.0.0.1:{free_port()}/run"
    with pytest.raises(OSError), downloaded_if_there(f"{wrong}/metrics.csv"):
        raise AssertionError
    with pytest.raises(OSError):
        Mirror(wrong, "metrics.csv")
