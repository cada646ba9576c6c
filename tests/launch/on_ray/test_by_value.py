"""Objects on the way to other processes, with the code that they need."""

from __future__ import annotations

import os
import pickle
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from raylit.errors import ConfigError
from raylit.launch.on_ray import by_value
from raylit.launch.on_ray.by_value import Code, Pickled
from tests.lazy import ray


def test_what_cannot_be_sent_is_named() -> None:
    parts = {"The module": 1, "The callback Bad": threading.Lock()}
    with pytest.raises(
        ConfigError, match=r"^The callback Bad cannot be sent to the workers: .*lock"
    ):
        Pickled(list(parts.values()), parts)


def test_a_gigabyte_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_value, "LARGE_BYTES", 100_000)
    Pickled(bytes(90_000), {})
    with pytest.warns(
        UserWarning, match=r"are sent to the workers \(The data: .*Make large data in"
    ):
        Pickled([bytes(200_000), b"1"], {"The module": b"1", "The data": bytes(200_000)})


@pytest.mark.ray
def test_large_objects_are_stored_once(ray_cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = []
    monkeypatch.setattr("ray.put", lambda content, put=ray.put: stored.append(1) or put(content))
    pickled = Pickled({"data": bytes(by_value.STORED_BYTES)}, {})
    assert len(pickle.dumps(Pickled("small", {}))) > 0 and stored == [1]
    ask = ray.remote(num_cpus=0)(lambda: len(pickled.content()["data"]))
    assert ray.get([ask.remote() for _ in range(2)]) == [by_value.STORED_BYTES] * 2
    assert stored == [1]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that has this process stand in a folder and run a script, which it makes."""

    def at(folder: str, script: str | None, *search: str) -> Code:
        for name in (folder, *([os.path.dirname(script)] if script else ())):
            (tmp_path / name).mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(tmp_path / folder)
        path = str(tmp_path / script) if script else None
        if path is not None:
            Path(path).write_text("")
        monkeypatch.setattr(sys.modules["__main__"], "__file__", path, raising=False)
        own = [os.path.dirname(path)] if path else []
        monkeypatch.setattr(sys, "path", [*own, *(str(tmp_path / one) for one in search)])
        return Code.here()

    return at


def test_which_folders_hold_the_code(place: Any, tmp_path: Path) -> None:
    below = place("work", "work/src/train.py")
    assert below.folders == {str(tmp_path / "work"): str(tmp_path / "work/src/train.py")}
    assert below.runtime_env["working_dir"] == str(tmp_path / "work")
    elsewhere = place("data", "app/train.py")
    assert elsewhere.folders == {str(tmp_path / "app"): str(tmp_path / "app/train.py")}
    assert "working_dir" not in elsewhere.runtime_env  # it may be anything, a home folder
    assert elsewhere.runtime_env["py_modules"] == [str(tmp_path / "app")]
    both = place("work", "app/train.py", "work")
    assert list(both.folders) == [str(tmp_path / "work"), str(tmp_path / "app")]
    none = place("work", None)
    assert none.folders == {str(tmp_path / "work"): str(tmp_path / "work")}


def test_an_installed_command_is_no_script(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    code = place("work", None)
    command = os.path.join(os.path.dirname(sys.executable), "raylit")
    monkeypatch.setattr(by_value.sysconfig, "get_path", lambda name: os.path.dirname(command))
    monkeypatch.setattr(sys.modules["__main__"], "__file__", command)
    assert Code.here().folders == code.folders


def test_copies_of_folders_are_found(
    place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on another machine: the folders are not there, Ray has unpacked copies of them."""
    code = place("work", "app/train.py", "work", "work/lib", "app/more")
    (tmp_path / "app/train.py").unlink()
    (tmp_path / "app").rmdir()
    (tmp_path / "work").rename(tmp_path / "unpacked")
    copies = tmp_path / "_ray_pkg_1" / "app"
    copies.mkdir(parents=True)
    (copies / "train.py").write_text("")
    monkeypatch.chdir(tmp_path / "unpacked")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "_ray_pkg_1")])
    code.use()
    assert os.getcwd() == str(tmp_path / "unpacked")
    assert sys.path[1:] == [
        str(copies),
        str(tmp_path / "unpacked"),
        str(tmp_path / "unpacked/lib"),
        str(copies / "more"),
    ]
