from __future__ import annotations

import logging
import math
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from raylit.errors import ConfigError
from raylit.loggers import Logger, MLFlowLogger
from raylit.testing.loggers import LoggerConformance, log_in_another_process


@pytest.fixture(autouse=True)
def no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.delenv(name, raising=False)
    yield
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # Lightning's logger sets it


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that is set up, which takes MLflow some seconds; copy it for a store of your own."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").create_experiment("warm", artifact_location=str(path.parent / "mlruns"))
    return path


@pytest.fixture(scope="session")
def uri(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store for all tests that do not look at how it lies on the disk."""
    path = shutil.copy(empty_database, tmp_path_factory.mktemp("shared") / "mlflow.db")
    client = MlflowClient(f"sqlite:///{path}")
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


def opened(logger: MLFlowLogger, tmp_path: Path, **tags: str) -> MLFlowLogger:
    logger.open(default_root_dir=str(tmp_path), tags=tags)
    return logger


def run_of(logger: Any) -> Run:
    run: Run = logger.experiment.get_run(logger.run_id)
    return run


def history(logger: Any, key: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in logger.experiment.get_metric_history(logger.run_id, key)]


def artifacts(logger: Any, path: str | None = None) -> list[str]:
    found: list[str] = []
    for item in logger.experiment.list_artifacts(logger.run_id, path):
        found += artifacts(logger, item.path) if item.is_dir else [item.path]
    return sorted(found)


class TestConformance(LoggerConformance):
    @pytest.fixture
    def make(self, uri: str, tmp_path: Path) -> Callable[[], Logger]:
        return lambda: MLFlowLogger("conformance", tracking_uri=uri)

    def history(self, logger: Logger) -> list[tuple[str, int, float]]:
        assert isinstance(logger, MLFlowLogger)
        return [(key, *point) for key in run_of(logger).data.metrics for point in history(logger, key)]

    def hyperparams(self, logger: Logger) -> Mapping[str, Any] | None:
        assert isinstance(logger, MLFlowLogger)
        return dict(run_of(logger).data.params)

    def status(self, logger: Logger) -> str | None:
        assert isinstance(logger, MLFlowLogger)
        return str(run_of(logger).info.status)


# --- what is recorded ---


def test_a_run_knows_who_where_and_what(uri: str, tmp_path: Path) -> None:
    logger = opened(MLFlowLogger(run_name="first", tracking_uri=uri, tags={"team": "blue", "n": 3}), tmp_path, **{"raylit.version": "0.1"})
    run = run_of(logger)
    assert run.info.run_name == "first"
    assert run.info.status == "RUNNING"
    assert (run.info.experiment_id, run.info.run_id) == (logger.name, logger.version) == (logger.experiment_id, logger.run_id)
    assert run.data.tags.items() >= {"team": "blue", "n": "3", "raylit.version": "0.1"}.items()
    assert run.data.tags.keys() >= {"mlflow.user", "mlflow.source.name"}
    logger.close("killed")
    assert run_of(logger).info.status == "KILLED"
    assert run_of(logger).info.end_time


def test_metrics_are_those_that_lightning_records(uri: str, tmp_path: Path) -> None:
    from lightning.pytorch.loggers import MLFlowLogger as LightningMLFlowLogger

    ours = MLFlowLogger("theirs", tracking_uri=uri, prefix="p")
    theirs: Any = LightningMLFlowLogger("theirs", tracking_uri=uri, prefix="p")
    for logger in (ours, theirs):
        logger.log_hyperparams({"lr": 0.1, "layers": [1, 2], "none": None, "flag": True})
        for step in range(3):
            logger.log_metrics({"train/loss": 0.1 * step, "acc (top@5)": 1, "epoch": 0}, step)
        values: Any = {"text": "no number", "no_step": 2.5}
        logger.log_metrics(values)
        logger.finalize("success")
    our_run, their_run = run_of(ours), run_of(theirs)
    assert our_run.data.params == their_run.data.params
    assert our_run.data.metrics.keys() == their_run.data.metrics.keys()
    for key in our_run.data.metrics:
        assert sorted(history(ours, key)) == sorted(history(theirs, key))
    assert our_run.info.status == their_run.info.status == "FINISHED"


def test_nan_and_infinity(uri: str, tmp_path: Path) -> None:
    logger = opened(MLFlowLogger(tracking_uri=uri), tmp_path)
    logger.log_metrics({"nan": math.nan, "inf": math.inf}, 1)
    logger.finalize("success")
    assert math.isnan(history(logger, "nan")[0][1])
    assert history(logger, "inf")[0][1] > 1e308
    logger.close("success")


def test_names_are_made_fit(uri: str, tmp_path: Path) -> None:
    logger = opened(MLFlowLogger(tracking_uri=uri), tmp_path)
    logger.log_metrics({"/a//b/../c/": 1.0, "": 2.0, "x" * 300 + "1": 3.0, "x" * 300 + "2": 4.0, "val:acc é": 5.0}, 0)
    logger.log_hyperparams({"a=b?": 1, "../up": 2})
    logger.finalize("success")
    metrics = run_of(logger).data.metrics
    assert sorted(metrics.values()) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert metrics.items() >= {"a/b/c": 1.0, "_": 2.0, "val:acc é": 5.0}.items()
    assert run_of(logger).data.params == {"ab": "1", "up": "2"}
    logger.close("success")


def test_many_and_long_hyperparameters(uri: str, tmp_path: Path) -> None:
    logger = opened(MLFlowLogger(tracking_uri=uri), tmp_path)
    logger.log_hyperparams({"group": {f"p{number}": number for number in range(250)}, "long": "x" * 7000})
    logger.finalize("success")
    params = run_of(logger).data.params
    assert len(params) == 251
    assert params["group.p249"] == "249"
    assert len(params["long"]) == 6000
    logger.close("success")


def test_a_changed_hyperparameter_becomes_a_tag(uri: str, tmp_path: Path) -> None:
    logger = opened(MLFlowLogger(tracking_uri=uri), tmp_path)
    logger.log_hyperparams({"lr": 0.1, "width": 32})
    logger.finalize("failed")
    logger.experiment.log_param(str(logger.run_id), "depth", 2)  # by the user
    logger.log_hyperparams({"lr": 0.2, "width": 32, "depth": 3, "new": 1})
    logger.finalize("success")
    run = run_of(logger)
    assert run.data.params == {"lr": "0.1", "width": "32", "depth": "2", "new": "1"}
    assert {key: value for key, value in run.data.tags.items() if key.startswith("raylit.resume")} == {
        "raylit.resume.lr": "0.2",
        "raylit.resume.depth": "3",
    }
    logger.close("success")


def test_the_status_is_set_by_close_alone_once_there_was_a_trainer(uri: str, tmp_path: Path) -> None:
    logger = opened(MLFlowLogger(tracking_uri=uri), tmp_path)
    logger.finalize("failed")
    assert run_of(logger).info.status == "RUNNING"  # workers may be started again
    logger.close("success")
    logger.finalize("failed")
    assert run_of(logger).info.status == "FINISHED"


# --- which run ---


def test_a_given_run_is_continued(uri: str, tmp_path: Path) -> None:
    first = opened(MLFlowLogger(tracking_uri=uri), tmp_path)
    first.log_metrics({"loss": 1.0}, 0)
    first.finalize("success")
    first.close("success")
    again = opened(MLFlowLogger(tracking_uri=uri, run_id=first.run_id), tmp_path, attempt="2")
    assert run_of(again).info.status == "RUNNING"
    log_in_another_process(again, [({"loss": 2.0}, 0)])  # a new training in an old run: nothing of it is taken for a replay
    again.close("failed")
    assert [value for _, value in sorted(history(again, "loss"))] == [1.0, 2.0]
    assert run_of(first).info.status == "FAILED"
    assert run_of(first).data.tags["attempt"] == "2"


def test_a_run_is_resumed_from_a_checkpoint_with_each_step_once(uri: str, tmp_path: Path) -> None:
    first = opened(MLFlowLogger(tracking_uri=uri), tmp_path)
    for step in range(6):  # killed at step 6
        first.log_metrics({"loss": float(step), "epoch": 0.0}, step)
    first.finalize("failed")
    again = MLFlowLogger(tracking_uri=uri)
    assert first.run_id is not None
    again.resume(first.run_id)
    opened(again, tmp_path)
    assert again.run_id == first.run_id
    for step in range(4, 9):  # from the checkpoint of step 4
        again.log_metrics({"loss": float(step), "epoch": 0.0} | ({"val": 1.0} if step == 5 else {}), step)
    again.finalize("success")
    again.close("success")
    assert sorted(history(again, "loss")) == [(step, float(step)) for step in range(9)]
    assert history(again, "val") == [(5, 1.0)]


def test_resuming_a_run_that_is_not_there_creates_one(uri: str, tmp_path: Path) -> None:
    logger = MLFlowLogger(tracking_uri=uri)
    logger.resume("0" * 32)
    with pytest.warns(UserWarning, match="a new one is created"):
        opened(logger, tmp_path)
    assert logger.run_id != "0" * 32
    logger.close("success")


def test_the_active_run_of_the_user_is_used_and_not_ended(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow.set_tracking_uri(uri)
    experiment_id = MlflowClient(uri).create_experiment("of the user")
    with mlflow.start_run(experiment_id=experiment_id) as active:
        logger = opened(MLFlowLogger(), tmp_path, **{"raylit.version": "0.1"})
        assert (logger.run_id, logger.experiment_id) == (active.info.run_id, experiment_id)
        child = opened(logger.child("nested", {}), tmp_path)  # a run of its own, although one is active
        assert child.run_id != active.info.run_id
        child.close("success")
        logger.log_metrics({"loss": 1.0}, 0)
        logger.finalize("failed")
        logger.close("failed")
        assert run_of(logger).info.status == "RUNNING"
        elsewhere = MLFlowLogger(tracking_uri=f"sqlite:///{tmp_path}/other.db")
        shutil.copy(uri.removeprefix("sqlite:///"), tmp_path / "other.db")
        assert opened(elsewhere, tmp_path).run_id != active.info.run_id
        elsewhere.close("success")
    assert run_of(logger).info.status == "FINISHED"
    assert run_of(logger).data.metrics == {"loss": 1.0}
    second = opened(logger, tmp_path)  # that run is over
    assert second.run_id != active.info.run_id
    second.close("success")
    monkeypatch.setenv("MLFLOW_RUN_ID", active.info.run_id)
    assert opened(MLFlowLogger(), tmp_path).run_id == active.info.run_id
    assert os.environ["MLFLOW_RUN_ID"]


def test_children_are_nested_and_opened_elsewhere(uri: str, tmp_path: Path) -> None:
    parent = opened(MLFlowLogger("sweep", run_name="parent", tracking_uri=uri), tmp_path)
    child: MLFlowLogger = pickle.loads(pickle.dumps(parent.child("trial-007", {"raylit.trial_id": "007"})))
    opened(child, tmp_path / "trial", **{"raylit.version": "0.1"})
    log_in_another_process(child, [({"loss": 0.5}, 0)], params={"lr": 0.1})
    child.close("killed")
    parent.close("success")
    run, parent_run = run_of(child), run_of(parent)
    assert run.info.experiment_id == parent_run.info.experiment_id
    assert (run.info.run_name, run.info.status) == ("trial-007", "KILLED")
    assert run.data.tags["mlflow.parentRunId"] == parent.run_id
    assert run.data.tags["raylit.trial_id"] == "007"
    assert run.data.tags["mlflow.source.name"] == parent_run.data.tags["mlflow.source.name"]
    assert (run.data.metrics, run.data.params) == ({"loss": 0.5}, {"lr": "0.1"})


def test_a_deleted_experiment(uri: str, tmp_path: Path) -> None:
    client = MlflowClient(uri)
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(ConfigError, match="mlflow experiments restore"):
        opened(MLFlowLogger("gone", tracking_uri=uri), tmp_path)


# --- where it lies ---


def test_by_default_all_lies_in_the_root_folder(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "a b"  # a new database, with a blank in its path
    logger = MLFlowLogger()
    assert logger.save_dir == str(tmp_path / "mlruns")
    assert logger.log_dir is None  # nothing was created by asking
    opened(logger, root)
    logger.experiment.log_text(str(logger.run_id), "hello", "note.txt")
    folder = root / "mlruns" / str(logger.name) / str(logger.version)
    assert logger.tracking_uri == f"sqlite:///{root}/mlflow.db"
    assert logger.where() == f"mlflow ui --backend-store-uri 'sqlite:///{root}/mlflow.db'"
    assert logger.save_dir == str(root / "mlruns")
    assert str(logger.log_dir) == str(folder)
    assert (folder / "artifacts" / "note.txt").read_text() == "hello"
    assert [path.name for path in tmp_path.iterdir()] == ["a b"]
    logger.close("success")
    second = opened(MLFlowLogger(), root)
    assert second.experiment_id == logger.experiment_id
    second.close("success")


@pytest.mark.parametrize("arguments", [{"save_dir": "runs"}, {"tracking_uri": "file:./runs"}, {"tracking_uri": "./runs"}], ids=str)
def test_a_folder_gets_a_database(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_database, tmp_path / "runs")
    logger = opened(MLFlowLogger(**arguments), tmp_path / "root")  # type: ignore[arg-type]
    assert logger.tracking_uri == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert logger.log_dir == f"{tmp_path}/runs/{logger.name}/{logger.version}"
    assert run_of(logger).info.artifact_uri == f"{logger.log_dir}/artifacts"
    logger.close("success")


def test_relative_databases_and_the_environment(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_database, tmp_path / "my.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///my.db")
    logger = opened(MLFlowLogger(), tmp_path / "root")
    monkeypatch.chdir("/")
    assert logger.tracking_uri == f"sqlite:///{tmp_path}/my.db"
    assert logger.save_dir == str(tmp_path / "root" / "mlruns")
    logger.close("success")
    assert run_of(logger).info.status == "FINISHED"


def test_a_store_of_plain_files_is_not_hidden_by_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "mlruns" / "0").mkdir(parents=True)
    (tmp_path / "mlruns" / "0" / "meta.yaml").touch()
    with pytest.raises(ConfigError, match="mlflow migrate-filestore --source"):
        opened(MLFlowLogger(tracking_uri=f"file:{tmp_path}/mlruns"), tmp_path)


def test_links_and_passwords() -> None:
    logger = MLFlowLogger(tracking_uri="http://me:secret@host:5000")
    logger._has_run, logger._experiment_id, logger._run_id = True, "4", "abc"
    assert logger.where() == "http://me:***@host:5000/#/experiments/4/runs/abc"


# --- checkpoints ---


class Callback:
    """Has the attributes of a ModelCheckpoint and writes real files."""

    def __init__(self, folder: Path, save_top_k: int = 1) -> None:
        self.folder, self.save_top_k = folder, save_top_k
        self.monitor, self.mode, self.save_last, self.save_weights_only = "val_loss", "min", None, False
        self.best_model_path, self.last_model_path = "", ""
        self.best_model_score: float | None = None
        self.current_score: float | None = None
        self.best_k_models: dict[str, float] = {}
        folder.mkdir(parents=True)

    def save(self, name: str, score: float, keep: int = 1) -> None:
        path = str(self.folder / name)
        Path(path).write_text(f"weights {score}")
        self.current_score = self.best_k_models[path] = score
        while len(self.best_k_models) > keep:
            worst = max(self.best_k_models, key=self.best_k_models.__getitem__)
            del self.best_k_models[worst]
            Path(worst).unlink()
        self.best_model_path = min(self.best_k_models, key=self.best_k_models.__getitem__)
        self.best_model_score = self.best_k_models[self.best_model_path]


@pytest.mark.parametrize(("log_model", "save_top_k"), [(True, 2), ("all", 2), (True, -1), (False, 2)])
def test_checkpoints_become_artifacts_as_in_lightning(uri: str, tmp_path: Path, log_model: Any, save_top_k: int) -> None:
    from lightning.pytorch.loggers import MLFlowLogger as LightningMLFlowLogger

    ours = opened(MLFlowLogger(tracking_uri=uri, log_model=log_model), tmp_path)
    theirs: Any = LightningMLFlowLogger(tracking_uri=uri, log_model=log_model)
    for logger, folder in ((ours, tmp_path / "ours"), (theirs, tmp_path / "theirs")):
        logger.log_metrics({"val_loss": 0.3}, 1)
        callback: Any = Callback(folder, save_top_k)
        for step, score in enumerate([0.3, 0.4, 0.2, 0.1]):
            callback.save(f"epoch={step}-val_loss={score}.ckpt", score, keep=2 if save_top_k > 0 else 100)
            logger.after_save_checkpoint(callback)
        logger.finalize("success")
    assert artifacts(ours) == artifacts(theirs)
    assert bool(artifacts(ours)) is bool(log_model)
    for path in artifacts(ours):
        if not path.endswith("aliases.txt"):  # Lightning's tell the time of the upload, by which "all" may be "best" for a while
            read = [Path(logger.experiment.download_artifacts(str(logger.run_id), path)).read_text() for logger in (ours, theirs)]
            assert read[0] == read[1]
    assert not list((tmp_path / "ours").glob(".*")), "the links made for uploads are gone"
    tags = run_of(ours).data.tags
    assert tags["raylit.best_model_path"] == str(tmp_path / "ours" / "epoch=3-val_loss=0.1.ckpt")
    assert float(tags["raylit.best_model_score"]) == 0.1
    ours.close("success")


def test_a_checkpoint_that_is_deleted_at_once_is_uploaded_all_the_same(uri: str, tmp_path: Path) -> None:
    logger = opened(MLFlowLogger(tracking_uri=uri, log_model="all"), tmp_path)
    callback: Any = Callback(tmp_path / "checkpoints")
    for step in range(5):
        callback.save(f"step={step}.ckpt", 1.0 - step / 10, keep=1)
        logger.after_save_checkpoint(callback)
    assert len(list((tmp_path / "checkpoints").glob("*.ckpt"))) == 1
    logger.finalize("success")
    logger.close("success")
    assert [path for path in artifacts(logger) if path.endswith(".ckpt")] == [f"step={step}/step={step}.ckpt" for step in range(5)]


def test_several_callbacks_and_sharded_checkpoints(uri: str, tmp_path: Path) -> None:
    logger = opened(MLFlowLogger(tracking_uri=uri, log_model=True), tmp_path)
    one: Any = Callback(tmp_path / "one")
    two: Any = Callback(tmp_path / "two")
    two.monitor = None
    (tmp_path / "two" / "sharded").mkdir()
    (tmp_path / "two" / "sharded" / "rank_0.distcp").write_text("weights")
    two.best_model_path = str(tmp_path / "two" / "sharded")
    one.save("one.ckpt", 0.5)
    logger.after_save_checkpoint(two)
    logger.after_save_checkpoint(one)
    logger.finalize("success")
    logger.close("success")
    assert [path for path in artifacts(logger) if "." in path and not path.endswith((".yaml", ".txt"))] == [
        "one/one.ckpt",
        "sharded/sharded/rank_0.distcp",
    ]
    assert run_of(logger).data.tags["raylit.best_model_score"] == "0.5"


# --- when it breaks ---


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def test_a_server_that_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(ConfigError, match=r"cannot reach its store http://.*\n.*mlflow server") as raised:
        opened(MLFlowLogger(tracking_uri=f"http://me:secret@127.0.0.1:{free_port()}"), tmp_path)
    assert "secret" not in str(raised.value)
    with pytest.raises(ConfigError, match="cannot reach its store postgresql://me:"):
        opened(MLFlowLogger(tracking_uri=f"postgresql://me:secret@127.0.0.1:{free_port()}/db"), tmp_path)
    assert time.monotonic() - start < 15


def test_a_folder_that_cannot_be_made_is_an_error_at_once() -> None:
    with pytest.raises(ConfigError, match="cannot reach its store sqlite:"):
        opened(MLFlowLogger(), Path("/proc/nowhere"))


def test_a_database_that_goes_away_and_comes_back(empty_database: Path, tmp_path: Path, said: list[str]) -> None:
    path = Path(shutil.copy(empty_database, tmp_path / "mlflow.db"))
    driver = opened(MLFlowLogger(tracking_uri=f"sqlite:///{path}"), tmp_path)
    worker: MLFlowLogger = pickle.loads(pickle.dumps(driver))
    path.rename(tmp_path / "away.db")
    start = time.monotonic()
    worker.log_hyperparams({"lr": 0.1})
    for step in range(100):
        worker.log_metrics({"loss": float(step)}, step)
    assert time.monotonic() - start < 2  # mlflow is loaded already
    time.sleep(0.5)
    with pytest.raises(FileNotFoundError, match="need a server"):
        _ = worker.experiment
    assert not path.exists(), "no empty database may be made in its place"
    assert len([text for text in said if "is not on this machine" in text]) == 1
    (tmp_path / "away.db").rename(path)
    worker.finalize("success")
    driver.close("success")
    assert history(driver, "loss") == [(step, float(step)) for step in range(100)]
    assert run_of(driver).data.params == {"lr": "0.1"}
    assert run_of(driver).info.status == "FINISHED"


def test_a_server_that_goes_away_for_good(uri: str, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from raylit.loggers.writer import BackgroundWriter

    monkeypatch.setattr(BackgroundWriter.close, "__defaults__", (1.0, None))  # instead of 30 s
    logger = opened(MLFlowLogger(tracking_uri=uri), tmp_path)
    logger._tracking_uri = f"http://127.0.0.1:{free_port()}"
    start = time.monotonic()
    for step in range(100):
        logger.log_metrics({"loss": float(step)}, step)
    assert time.monotonic() - start < 0.5
    logger.finalize("success")
    with pytest.warns(UserWarning, match="may go on showing"):
        logger.close("success")
    assert time.monotonic() - start < 12
    assert any("100 for which there was no time" in text for text in said)


def start_server(database: Path, port: int) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        f"sqlite:///{database}",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    env = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return subprocess.Popen(
        command, cwd=database.parent, env=env, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def wait_for_server(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError("the MLflow server did not start")


@pytest.mark.slow
def test_a_server_that_is_restarted_loses_nothing(empty_database: Path, tmp_path: Path, said: list[str]) -> None:
    database, port = Path(shutil.copy(empty_database, tmp_path / "mlflow.db")), free_port()
    server = start_server(database, port)
    try:
        wait_for_server(port)
        logger = opened(MLFlowLogger(tracking_uri=f"http://127.0.0.1:{port}", log_model=True), tmp_path)
        assert logger.where() == f"http://127.0.0.1:{port}/#/experiments/{logger.name}/runs/{logger.version}"
        slowest_s = 0.0
        for step in range(60):
            if step == 20:
                time.sleep(1)  # let some be written
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()
            if step == 40:
                time.sleep(1)
                server = start_server(database, port)
            start = time.monotonic()
            logger.log_metrics({"loss": float(step), "epoch": 0.0}, step)
            slowest_s = max(slowest_s, time.monotonic() - start)
        callback: Any = Callback(tmp_path / "checkpoints")
        callback.save("best.ckpt", 0.5)
        logger.after_save_checkpoint(callback)
        logger.finalize("success")
        logger.close("success")
        assert slowest_s < 0.1
        assert history(logger, "loss") == [(step, float(step)) for step in range(60)]
        assert artifacts(logger) == ["best/aliases.txt", "best/best.ckpt", "best/metadata.yaml"]
        assert run_of(logger).info.status == "FINISHED"
        assert len([text for text in said if "Could not write (metrics" in text]) == 1
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_arguments_are_checked() -> None:
    with pytest.raises(ConfigError, match="log_model='best'"):
        MLFlowLogger(log_model="best")  # type: ignore[arg-type]
