from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raylit.loggers.mlflow.journal import Header, Journal
from raylit.runtime.processes import ProcessName
from tests.lazy import mlflow


@pytest.fixture
def client(uri: str) -> Any:
    """Of the store that tests share."""
    mlflow.set_tracking_uri(uri)  # where MLflow looks for models, whatever its client was told
    return mlflow.MlflowClient(uri)


@pytest.fixture
def experiment(client: Any, tmp_path: Path) -> str:
    """The id of an experiment of this test alone."""
    made: str = client.create_experiment(tmp_path.name, str(tmp_path / "mlruns"))
    return made


@pytest.fixture
def run_id(client: Any, experiment: str) -> str:
    """A run of that experiment, as `MLFlowLogger.open` leaves one."""
    made: str = client.create_run(experiment, run_name="first").info.run_id
    return made


@pytest.fixture
def new_journal(uri: str, run_id: str, tmp_path: Path) -> Callable[..., Journal]:
    """Makes a journal of the run below `tmp_path`.

    By default it is of this process. Fields of its header may be given.
    """

    def new(**fields: Any) -> Journal:
        own = {"run_id": run_id, "uri": uri, "since_ms": 0, "process": str(ProcessName.of_this())}
        return Journal(str(tmp_path / "journals"), Header(**{**own, **fields}))

    return new
