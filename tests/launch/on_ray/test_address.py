"""Addresses of clusters, of which none is there: said in seconds, before Ray is started."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest
import ray

import raylit as pl
from raylit.errors import ConfigError
from raylit.launch.on_ray.address import check_address
from raylit.testing import TinyModel


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("foo", "host and port of the head node"),
        ("foo:", "host and port"),
        ("10.0.0.1:0", "host and port"),
        ("10.0.0.1:99999", "host and port"),
        ("10.0.0.1:6379/x", "host and port"),
        (" ", "host and port"),
        ("http://10.0.0.1:8265", "address of a web page"),
        ("ray://10.0.0.1:10001", "ray job submit"),
        ("no-such-host.invalid:6379", "no Ray cluster answers there"),
    ],
)
def test_what_is_no_address(address: str, said: str) -> None:
    began = time.monotonic()
    with pytest.raises(ConfigError, match=said) as raised:
        check_address(address)
    assert repr(address) in str(raised.value)
    assert time.monotonic() - began < 10


def test_what_is_said_of_an_address_holds_no_password() -> None:
    with pytest.raises(
        ConfigError, match=r"ray://u:\*\*\*@10\.0\.0\.1:1'.*\(10\.0\.0\.1:6379\)"
    ) as raised:
        check_address("ray://u:s3cr3t@10.0.0.1:1")
    assert "s3cr3t" not in str(raised.value)


def test_a_closed_port_is_told_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"Connection refused.*ray start --head"):
        check_address(f"127.0.0.1:{port}")
    assert time.monotonic() - began < 10


def test_a_cluster_that_does_not_answer_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{listener.getsockname()[1]}")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # another test may have joined one
    trainer = pl.Trainer(num_workers=2, default_root_dir=tmp_path, max_epochs=1)
    with pytest.raises(ConfigError, match="Connection refused"):
        trainer.fit(TinyModel())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
def test_another_kind_of_server(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(ConfigError, match="another kind of server"):
            check_address(f"127.0.0.1:{listener.getsockname()[1]}")
        thread.join()


@pytest.mark.ray
def test_a_cluster_answers(ray_cluster: str) -> None:
    assert check_address(ray_cluster) == ray_cluster
    assert check_address("auto").rpartition(":")[2].isdigit()


@pytest.mark.ray
@pytest.mark.parametrize(
    ("variable", "value"),
    [("RAYLIT_TIMEOUT_S", "abc"), ("RAYLIT_TIMEOUT_S", "-1"), ("RAYLIT_RESIZE_EVERY_S", "nan")],
)
def test_a_variable_without_seconds(
    variable: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray was started"))
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(ConfigError, match=f"{variable}={value}"):
        trainer = pl.Trainer(num_workers=1, max_epochs=1, default_root_dir=tmp_path, logger=False)
        trainer.fit(TinyModel())
    assert not list(tmp_path.iterdir())
