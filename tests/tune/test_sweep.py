"""Sweeps on a real Ray cluster, read back from a real MLflow store."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from ray import tune
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import raylit as pl
from raylit.callbacks import ModelCheckpoint
from raylit.errors import ConfigError, LaunchError
from raylit.tune import SweepResult
from tests.deadlines import stretched

X = torch.linspace(-1, 1, 64).reshape(-1, 1)


class Line(pl.LightningModule):
    """Fits y = 2x; a learning rate of 0 fails."""

    def __init__(self, lr: float = 0.1, width: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(1, 1)
        nn.init.zeros_(self.layer.weight)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if self.hparams.lr == 0:
            raise ValueError("a learning rate of 0 learns nothing")
        return nn.functional.mse_loss(self.layer(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", nn.functional.mse_loss(self.layer(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


class Data(pl.LightningDataModule):
    def __init__(self, batch_size: int = 16) -> None:
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(X, 2 * X), self.batch_size)

    val_dataloader = train_dataloader


def store(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


def runs_of(folder: Path, result: SweepResult) -> tuple[Run, dict[str, Run]]:
    """Return the sweep's run and its children by name, from the store."""
    client = MlflowClient(store(folder))
    experiment = client.get_experiment_by_name("lines")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert [run.info.run_id for run in parents] == [result.run_id]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == result.run_id]
    assert len(children) + 1 == len(runs)
    return parents[0], {run.info.run_name: run for run in children}


@pytest.mark.ray
class TestSweep:
    """One random sweep with early stopping of trials."""

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("sweep")

    @pytest.fixture(scope="class")
    @classmethod
    def result(cls, folder: Path, ray_cluster: str) -> SweepResult:
        trainer = pl.Trainer(
            max_epochs=4,
            logger=pl.MLFlowLogger("lines", tracking_uri=store(folder)),
            callbacks=[ModelCheckpoint(monitor="val_loss")],
            default_root_dir=folder,
        )
        return pl.Tuner(trainer).sweep(
            Line,
            Data,
            name="lr",
            space={"model.lr": {"choice": [0.3, 0.2, 1e-6]}, "data.batch_size": tune.choice([16])},
            metric="val_loss",
            num_samples=5,
            scheduler={"name": "asha", "max_t": 4, "grace_period": 1, "reduction_factor": 2},
            max_concurrent=2,
            seed=7,
        )

    def test_best_first(self, result: SweepResult) -> None:
        scores = [trial.score for trial in result.trials]
        assert len(scores) == 5
        assert scores == sorted(scores)
        assert result.best is result.trials[0]
        assert result.best.config["model.lr"] > 0.1
        assert {trial.config["model.lr"] for trial in result.trials} <= {0.3, 0.2, 1e-6}

    def test_ctrl_c_means_what_it_meant_before(self, result: SweepResult) -> None:
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL

    def test_bad_trials_were_stopped_early(self, result: SweepResult) -> None:
        assert result.best.iterations == 4
        assert min(trial.iterations for trial in result.trials) < 4

    def test_best_checkpoint_is_the_best_trials(self, result: SweepResult) -> None:
        assert result.best.checkpoint is not None
        loaded = Line.load_from_checkpoint(result.best.checkpoint)
        assert loaded.hparams.lr == result.best.config["model.lr"]
        loss = nn.functional.mse_loss(loaded.layer(X), 2 * X).item()
        assert loss == pytest.approx(result.best.score, rel=1e-5)
        assert len({trial.checkpoint for trial in result.trials}) == 5

    def test_table(self, result: SweepResult) -> None:
        frame = result.dataframe
        assert list(frame["trial"]) == [trial.name for trial in result.trials]
        assert {
            "model.lr",
            "data.batch_size",
            "val_loss",
            "iterations",
            "checkpoint",
            "run_id",
        } <= set(frame.columns)

    def test_plot_has_a_panel_for_each_key(self, result: SweepResult) -> None:
        assert [axes.get_xlabel() for axes in result.plot().axes] == ["data.batch_size", "model.lr"]

    def test_each_trial_is_a_child_run(self, folder: Path, result: SweepResult) -> None:
        parent, children = runs_of(folder, result)
        assert parent.info.status == "FINISHED"
        assert parent.data.metrics["best/val_loss"] == pytest.approx(result.best.score)
        assert set(children) == {trial.name for trial in result.trials}
        for trial in result.trials:
            run = children[trial.name]
            assert run.info.run_id == trial.run_id
            assert run.info.status == "FINISHED"
            assert float(run.data.params["lr"]) == trial.config["model.lr"]
            history = MlflowClient(store(folder)).get_metric_history(run.info.run_id, "val_loss")
            assert len(history) == trial.iterations
            assert min(point.value for point in history) == pytest.approx(trial.score)

    def test_no_placement_group_is_left(self, result: SweepResult, ray_cluster: str) -> None:
        from ray.util.state import list_placement_groups

        deadline = time.monotonic() + stretched(20)
        while left := [
            group for group in list_placement_groups(ray_cluster) if group.state == "CREATED"
        ]:
            assert time.monotonic() < deadline, left


@pytest.mark.ray
def test_failed_trial_does_not_end_a_grid(tmp_path: Path, ray_cluster: str) -> None:
    trainer = pl.Trainer(
        max_epochs=1,
        logger=pl.MLFlowLogger("lines", tracking_uri=store(tmp_path)),
        default_root_dir=tmp_path,
    )
    result = pl.Tuner(trainer).sweep(
        Line,
        Data(),
        space={"model.lr": {"grid": [0.0, 0.2]}, "trainer.max_epochs": {"grid": [1, 2]}},
        metric="val_loss",
        search="grid",
    )
    ended = {
        (trial.config["model.lr"], trial.config["trainer.max_epochs"]): trial
        for trial in result.trials
    }
    assert set(ended) == {(0.0, 1), (0.0, 2), (0.2, 1), (0.2, 2)}
    assert result.best is ended[0.2, 2]
    assert [ended[0.2, epochs].iterations for epochs in (1, 2)] == [1, 2]
    assert all("learns nothing" in str(ended[0.0, epochs].error) for epochs in (1, 2))
    parent, children = runs_of(tmp_path, result)
    assert parent.info.status == "FINISHED"
    assert {name: run.info.status for name, run in children.items()} == {
        trial.name: "FAILED" if trial.error else "FINISHED" for trial in result.trials
    }


@pytest.mark.ray
def test_sweep_whose_metric_nobody_logs_says_so(tmp_path: Path, ray_cluster: str) -> None:
    trainer = pl.Trainer(max_epochs=1, logger=False, default_root_dir=tmp_path)
    with pytest.raises(LaunchError, match=r"'val_los'.*which was not logged. Logged: .*val_loss"):
        pl.Tuner(trainer).sweep(Line, Data, space={"model.lr": 0.1}, metric="val_los")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": Line()}, "Give the class"),
        ({"datamodule": Data(), "space": {"data.batch_size": 4}}, "datamodule is an object"),
        ({"space": {"trainer.max_epoch": 4}}, "max_epochs"),
        ({"space": {"trainer.max_epochs": {"choice": [-7]}}}, "max_epochs"),
        ({"space": None}, "space"),
    ],
)
def test_wrong_arguments_start_nothing(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    tuner = pl.Tuner(pl.Trainer(max_epochs=1, default_root_dir=tmp_path))
    given: dict[str, Any] = {
        "model": Line,
        "datamodule": Data,
        "space": {"model.lr": 0.1},
        "metric": "val_loss",
        **arguments,
    }
    with pytest.raises(ConfigError, match=message):
        tuner.sweep(given.pop("model"), given.pop("datamodule"), **given)
    assert not list(tmp_path.iterdir())


def test_async_validation_in_a_trial_is_refused(tmp_path: Path) -> None:
    tuner = pl.Tuner(pl.Trainer(async_validation=True, max_epochs=1, default_root_dir=tmp_path))
    with pytest.raises(ConfigError, match="Leave async_validation out"):
        tuner.sweep(Line, Data, space={"model.lr": 0.1}, metric="val_loss")


def test_several_workers_in_a_trial_are_refused(tmp_path: Path) -> None:
    tuner = pl.Tuner(pl.Trainer(num_workers=2, max_epochs=1, default_root_dir=tmp_path))
    with pytest.raises(ConfigError, match="runs in one process"):
        tuner.sweep(Line, Data, space={"model.lr": 0.1}, metric="val_loss")
