from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lazy import mlflow


@pytest.fixture(autouse=True)
def no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that is set up, which takes MLflow some seconds.

    Copy it for a store of your own.
    """
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").create_experiment(
        "warm", artifact_location=str(path.parent / "mlruns")
    )
    return path


@pytest.fixture(scope="session")
def uri(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store for all tests that do not look at how it lies on the disk."""
    path = shutil.copy(empty_database, tmp_path_factory.mktemp("shared") / "mlflow.db")
    client = mlflow.MlflowClient(f"sqlite:///{path}")
    for name in ("lightning_logs", "theirs"):
        client.create_experiment(name, artifact_location=str(Path(path).parent / "mlruns"))
    return f"sqlite:///{path}"


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What raylit says through its logger."""
    texts: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: texts.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("raylit").addHandler(handler)
    yield texts
    logging.getLogger("raylit").removeHandler(handler)
