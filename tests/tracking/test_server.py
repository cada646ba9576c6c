"""A server as a group runs it: PostgreSQL behind HTTP, and a login."""

from __future__ import annotations

import pickle
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import raylit as pl
from raylit.errors import ConfigError
from raylit.loggers import MLFlowLogger
from raylit.loggers.mlflow.store import REASON_TAG
from raylit.testing import TinyModel
from tests.cli.conftest import run_raylit
from tests.lazy import mlflow
from tests.loggers.mlflow_store import artifacts, history, opened, run_of
from tests.tracking.postgres import PASSWORD, USER, Postgres, server_with_login
from tests.tracking.test_kill import check_whole, kill_until_it_ends

pytestmark = pytest.mark.long  # a database and a server take half a minute to start


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    database = Postgres()
    yield database
    database.remove()


@pytest.fixture(scope="module")
def address(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server_with_login(postgres, tmp_path_factory.mktemp("server")) as found:
        yield found


@pytest.fixture
def login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)


def test_whoever_may_not_write_is_told(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = MLFlowLogger(tracking_uri=address, save_dir=tmp_path)
    with pytest.raises(ConfigError, match="set MLFLOW_TRACKING_USERNAME"):
        opened(logger, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "not that one")
    with pytest.raises(ConfigError, match="The server wants to know who asks"):
        opened(logger, tmp_path)


@pytest.mark.usefixtures("login")
def test_a_fit_is_read_back(address: str, tmp_path: Path) -> None:
    logger = MLFlowLogger("fits", tracking_uri=address, save_dir=tmp_path)
    trainer = pl.Trainer(
        max_epochs=3,
        logger=logger,
        default_root_dir=tmp_path,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    result = trainer.fit(TinyModel())
    run = mlflow.MlflowClient(address).get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert [step for step, _ in history(logger, "train_loss")] == list(range(12))
    assert run.data.params["trainer.max_epochs"] == "3"


@pytest.mark.usefixtures("login")
def test_the_page_of_a_run_is_said_when_it_begins(address: str, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "model: raylit.testing.BoringModel\ndata: raylit.testing.BoringDataModule\n"
        "trainer: {max_epochs: 1, limit_train_batches: 2, accelerator: cpu, logger:"
        f" {{class_path: MLFlowLogger, init_args: {{tracking_uri: '{address}'}}}}}}\n"
    )
    done = run_raylit(tmp_path, "fit", "--config", "config.yaml")
    assert done.code == 0, done
    (page,) = re.findall(r"^MLflow: (\S+)$", done.err, re.MULTILINE)
    assert page.startswith(f"{address}/#/experiments/")
    assert re.search(rf"look at it +{re.escape(page)}$", done.out, re.MULTILINE), done
    assert PASSWORD not in done.out + done.err


@pytest.mark.usefixtures("login")
def test_an_error_is_kept_with_its_traceback(address: str, tmp_path: Path) -> None:
    class Breaks(TinyModel):
        def on_train_epoch_end(self) -> None:
            raise ValueError("no such head")

    logger = MLFlowLogger("fits", tracking_uri=address, save_dir=tmp_path)
    trainer = pl.Trainer(
        max_epochs=1,
        logger=logger,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.raises(ValueError, match="no such head"):
        trainer.fit(Breaks())
    assert run_of(logger).info.status == "FAILED"
    assert run_of(logger).data.tags[REASON_TAG] == "ValueError: no such head"
    assert "errors/traceback.txt" in artifacts(logger)


@pytest.mark.usefixtures("login")
def test_many_values_come_in_order(address: str, tmp_path: Path) -> None:
    logger = opened(MLFlowLogger("many", tracking_uri=address, save_dir=tmp_path), tmp_path)
    for step in range(5000):
        logger.log_metrics({f"group/{name}": step / 7 for name in range(20)}, step)
    start = time.monotonic()
    logger.finalize("success")
    print(f"{100_000 / (time.monotonic() - start):.0f} values/s over HTTP with a login")
    logger.close("success")
    for name in (0, 7, 19):
        wanted = [(step, step / 7) for step in range(5000)]
        assert history(logger, f"group/{name}") == wanted


@pytest.mark.usefixtures("login")
@pytest.mark.parametrize("seed", range(2))
def test_the_trainer_and_the_database_are_killed(
    postgres: Postgres, address: str, tmp_path: Path, seed: int
) -> None:
    dice = random.Random(seed)

    def disturb() -> None:
        time.sleep(dice.uniform(0, 3))
        postgres.kill()
        time.sleep(dice.uniform(0, 2))
        postgres.start()

    folder = tmp_path / "run"
    kill_until_it_ends(folder, address, dice, pause_s=0.05, most=3, meanwhile=disturb)
    check_whole(folder, address)


@pytest.mark.usefixtures("login")
def test_a_logger_that_travels_takes_the_login_with_it(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = opened(MLFlowLogger("fits", tracking_uri=address, save_dir=tmp_path), tmp_path)
    travelling = pickle.dumps(driver)
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    worker: MLFlowLogger = pickle.loads(travelling)
    worker.log_metrics({"loss": 0.5}, 0)
    worker.finalize("success")
    driver.close("success")
    assert history(driver, "loss") == [(0, 0.5)]
