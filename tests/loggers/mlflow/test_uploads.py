from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from raylit.errors import ConfigError
from raylit.loggers import MLFlowLogger
from raylit.loggers.mlflow.uploads import CheckpointUploader, remove_link
from tests.loggers.mlflow_store import ManualCheckpoint, artifacts, opened, run_of


def test_by_default_all_lies_in_the_root_folder(
    empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "a b"  # a new database, with a blank in its path
    logger = MLFlowLogger()
    assert logger.save_dir == str(tmp_path / "mlruns")
    assert logger.log_dir is None  # nothing was created by asking
    opened(logger, root)
    logger.experiment.log_text(str(logger.run_id), "hello", "note.txt")
    folder = root / "mlruns" / str(logger.name) / str(logger.version)
    assert logger.tracking_uri == f"sqlite:///{root}/mlflow.db"
    page = f"/#/experiments/{logger.name}/runs/{logger.version}?workflowType=machine_learning"
    store = f"--backend-store-uri 'sqlite:///{root}/mlflow.db'"
    assert logger.where() == f"raylit ui {store}   then http://127.0.0.1:5000{page}"
    assert logger.where_compared(["a", "b"]).endswith(
        "/#/compare-runs?runs=%5B%22a%22%2C%20%22b%22%5D"
        f"&experiments=%5B%22{logger.name}%22%5D&workflowType=machine_learning"
    )
    assert logger.save_dir == str(root / "mlruns")
    assert str(logger.log_dir) == str(folder)
    assert (folder / "artifacts" / "note.txt").read_text() == "hello"
    assert [path.name for path in tmp_path.iterdir()] == ["a b"]
    logger.close("success")
    second = opened(MLFlowLogger(), root)
    assert second.experiment_id == logger.experiment_id
    second.close("success")


@pytest.mark.parametrize(
    "arguments",
    [{"save_dir": "runs"}, {"tracking_uri": "file:./runs"}, {"tracking_uri": "./runs"}],
    ids=str,
)
def test_a_folder_gets_a_database(
    empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_database, tmp_path / "runs")
    logger = opened(MLFlowLogger(**arguments), tmp_path / "root")  # type: ignore[arg-type]
    assert logger.tracking_uri == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert logger.log_dir == f"{tmp_path}/runs/{logger.name}/{logger.version}"
    assert run_of(logger).info.artifact_uri == f"{logger.log_dir}/artifacts"
    logger.close("success")


def test_relative_databases_and_the_environment(
    empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    page = "/#/experiments/4/runs/abc?workflowType=machine_learning"
    assert logger.where() == f"http://me:***@host:5000{page}"


@pytest.mark.parametrize(
    ("log_model", "save_top_k"), [(True, 2), ("all", 2), (True, -1), (False, 2)]
)
def test_checkpoints_become_artifacts_as_in_lightning(
    uri: str, tmp_path: Path, log_model: Any, save_top_k: int
) -> None:
    from lightning.pytorch.loggers import MLFlowLogger as LightningMLFlowLogger

    ours = opened(MLFlowLogger(tracking_uri=uri, log_model=log_model), tmp_path)
    theirs: Any = LightningMLFlowLogger(tracking_uri=uri, log_model=log_model)
    for logger, folder in ((ours, tmp_path / "ours"), (theirs, tmp_path / "theirs")):
        logger.log_metrics({"val_loss": 0.3}, 1)
        callback = ManualCheckpoint(folder, save_top_k)
        for step, score in enumerate([0.3, 0.4, 0.2, 0.1]):
            callback.write(
                f"epoch={step}-val_loss={score}.ckpt", score, keep=2 if save_top_k > 0 else 100
            )
            logger.after_save_checkpoint(callback)
        logger.finalize("success")
    assert artifacts(ours) == artifacts(theirs)
    assert bool(artifacts(ours)) is bool(log_model)
    for path in artifacts(ours):
        # Lightning's tell the time of the upload, by which "all" may be "best" for a while
        if not path.endswith("aliases.txt"):
            read = [
                Path(logger.experiment.download_artifacts(str(logger.run_id), path)).read_text()
                for logger in (ours, theirs)
            ]
            assert read[0] == read[1]
    assert not list((tmp_path / "ours").glob(".*")), "the links made for uploads are gone"
    tags = run_of(ours).data.tags
    assert tags["raylit.best_model_path"] == str(tmp_path / "ours" / "epoch=3-val_loss=0.1.ckpt")
    assert float(tags["raylit.best_model_score"]) == 0.1
    ours.close("success")


def test_a_checkpoint_that_is_deleted_at_once_is_uploaded_all_the_same(
    uri: str, tmp_path: Path
) -> None:
    logger = opened(MLFlowLogger(tracking_uri=uri, log_model="all"), tmp_path)
    callback = ManualCheckpoint(tmp_path / "checkpoints")
    for step in range(5):
        callback.write(f"step={step}.ckpt", 1.0 - step / 10, keep=1)
        logger.after_save_checkpoint(callback)
    assert len(list((tmp_path / "checkpoints").glob("*.ckpt"))) == 1
    logger.finalize("success")
    logger.close("success")
    assert [path for path in artifacts(logger) if path.endswith(".ckpt")] == [
        f"step={step}/step={step}.ckpt" for step in range(5)
    ]


def test_several_callbacks_and_sharded_checkpoints(uri: str, tmp_path: Path) -> None:
    logger = opened(MLFlowLogger(tracking_uri=uri, log_model=True), tmp_path)
    one = ManualCheckpoint(tmp_path / "one")
    two = ManualCheckpoint(tmp_path / "two", monitor=None)
    (tmp_path / "two" / "sharded").mkdir()
    (tmp_path / "two" / "sharded" / "rank_0.distcp").write_text("weights")
    two.best_model_path = str(tmp_path / "two" / "sharded")
    one.write("one.ckpt", 0.5)
    logger.after_save_checkpoint(two)
    logger.after_save_checkpoint(one)
    logger.finalize("success")
    logger.close("success")
    assert [
        path for path in artifacts(logger) if "." in path and not path.endswith((".yaml", ".txt"))
    ] == [
        "one/one.ckpt",
        "sharded/sharded/rank_0.distcp",
    ]
    assert run_of(logger).data.tags["raylit.best_model_score"] == "0.5"


def test_links_that_are_removed_leave_others_and_no_folder(tmp_path: Path) -> None:
    uploader = CheckpointUploader(lambda uploads: None, "run")
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    first, second = (str(uploader._link(str(tmp_path / name), i)) for i, name in enumerate("ab"))
    remove_link(first)
    assert Path(second).read_text() == "b"
    remove_link(second)
    (tmp_path / "folder").mkdir()  # a sharded checkpoint, which can have no second name
    assert uploader._link(str(tmp_path / "folder"), 2) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "folder"]
