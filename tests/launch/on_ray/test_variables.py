"""Environment variables that go along with a job."""

from __future__ import annotations

import os
import pickle
from typing import Any

import pytest

from raylit.launch.on_ray.variables import Variables


def test_what_the_code_has_set_goes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWN", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    found = Variables.here({})
    assert found.changed["OWN"] == "1"
    assert not {"CUDA_VISIBLE_DEVICES", "RANK", "RAY_ADDRESS", "MLFLOW_TRACKING_PASSWORD"} & set(
        found.changed
    )
    assert found.tracking == {"MLFLOW_TRACKING_PASSWORD": "hunter2"}
    assert "hunter2" not in repr(found)


def test_what_has_changed_since_the_cluster_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAME", "1")
    monkeypatch.setenv("OTHER", "2")
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD", raising=False)
    inherited = {"SAME": "1", "OTHER": "1", "GONE": "1", "PATH": "/bin"}
    found = Variables.here({**inherited, "MLFLOW_TRACKING_PASSWORD": "of the server before"})
    assert found.removed == ("GONE", "MLFLOW_TRACKING_PASSWORD")
    assert found.changed["OTHER"] == "2" and "SAME" not in found.changed


@pytest.mark.parametrize("tracking", [True, False])
def test_they_hold_for_one_job(monkeypatch: pytest.MonkeyPatch, tracking: bool) -> None:
    monkeypatch.setenv("CHANGED", "old")
    monkeypatch.setenv("GONE", "old")
    monkeypatch.delenv("NEW", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN", raising=False)
    made: Any = Variables({"CHANGED": "1", "NEW": "1"}, ("GONE",), {"MLFLOW_TRACKING_TOKEN": "t"})
    before = dict(os.environ)
    with pickle.loads(pickle.dumps(made)).applied(tracking):
        assert (os.environ["CHANGED"], os.environ["NEW"], os.environ.get("GONE")) == (
            "1",
            "1",
            None,
        )
        assert os.environ.get("MLFLOW_TRACKING_TOKEN") == ("t" if tracking else None)
    assert dict(os.environ) == before
