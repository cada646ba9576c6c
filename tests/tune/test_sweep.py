"""Sweeps on a real Ray cluster, read back from a real MLflow store."""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from ray import tune
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import raylit as pl
from raylit.callbacks import ModelCheckpoint
from raylit.cli.rerun import rerun
from raylit.errors import ConfigError, LaunchError
from raylit.runtime.rng import isolated, seed_everything
from raylit.tune import SweepResult
from raylit.tune.process import seed_of
from raylit.tune.record import FILE, read_lines
from raylit.tune.sweep import _check_trainer, _why_all_failed
from tests.deadlines import stretched
from tests.lazy import mlflow

ROOT = Path(__file__).parents[2]
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


def runs_of(
    folder: Path, result: SweepResult
) -> tuple[mlflow.entities.Run, dict[str, mlflow.entities.Run]]:
    """Return the sweep's run and its children by name, from the store."""
    client = mlflow.MlflowClient(store(folder))
    experiment = client.get_experiment_by_name("lines")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert [run.info.run_id for run in parents] == [result.run_id]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == result.run_id]
    assert len(children) + 1 == len(runs)
    assert len({run.info.run_name for run in children}) == len(children), "a run for each trial"
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
        assert {trial.status for trial in result.trials if trial.iterations == 4} == {"finished"}
        assert {trial.status for trial in result.trials if trial.iterations < 4} == {"stopped"}

    def test_best_checkpoint_is_the_best_trials(self, result: SweepResult) -> None:
        assert result.best.checkpoint is not None
        loaded = Line.load_from_checkpoint(result.best.checkpoint)
        assert loaded.hparams.lr == result.best.config["model.lr"]
        loss = nn.functional.mse_loss(loaded.layer(X), 2 * X).item()
        assert loss == pytest.approx(result.best.score, rel=1e-5)
        assert len({trial.checkpoint for trial in result.trials}) == 5

    def test_a_trial_is_bit_for_bit_a_fit_with_its_seed(self, result: SweepResult) -> None:
        trial = max(result.trials, key=lambda trial: trial.number)  # its process had run others
        assert trial.number >= 2
        with isolated():
            seed_everything(seed_of(7, trial.number), verbose=False)
            trainer = pl.Trainer(
                max_epochs=trial.iterations,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
            )
            trainer.fit(Line(trial.config["model.lr"]), datamodule=Data(16))
        assert trainer.callback_metrics["val_loss"].item() == trial.last["val_loss"]

    def test_a_trial_leaves_only_what_it_was_asked_to(
        self, folder: Path, result: SweepResult
    ) -> None:
        names = {path.name for path in (Path(result.folder) / "trial-000").rglob("*")}
        assert not names & {"result.json", "progress.csv", "params.json"}
        assert "best.yaml" in os.listdir(result.folder)
        assert float(result.best.config["model.lr"]) > 0.1

    def test_best_loads_as_a_module(self, result: SweepResult) -> None:
        assert result.best.load(Line).hparams.lr == result.best.config["model.lr"]

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
        assert [axes.get_xlabel() for axes in result.plot().axes] == ["model.lr"]
        for kind in ("history", "parallel"):
            assert result.plot(kind).axes
        with pytest.raises(ConfigError, match="Did you mean 'history'"):
            result.plot("histroy")

    def test_each_trial_is_a_child_run(self, folder: Path, result: SweepResult) -> None:
        parent, children = runs_of(folder, result)
        assert parent.info.status == "FINISHED"
        assert parent.data.metrics["best/val_loss"] == pytest.approx(result.best.score)
        assert set(children) == {trial.name for trial in result.trials}
        for trial in result.trials:
            run = children[trial.name]
            assert run.info.run_id == trial.run_id
            assert run.info.status == "FINISHED"
            for key, value in trial.config.items():
                assert float(run.data.params[key]) == value
            assert run.data.metrics["best/val_loss"] == pytest.approx(trial.score)
            reason = "scheduler: asha" if trial.status == "stopped" else None
            assert trial.stop_reason == run.data.tags.get("raylit.stop_reason") == reason
            history = mlflow.MlflowClient(store(folder)).get_metric_history(
                run.info.run_id, "val_loss"
            )
            assert len(history) == trial.iterations
            assert min(point.value for point in history) == pytest.approx(trial.score)

    def test_a_stopped_trial_is_fitted_again_and_compared_as_far_as_it_came(
        self, folder: Path, result: SweepResult, capsys: pytest.CaptureFixture[str]
    ) -> None:
        stopped = next(trial for trial in result.trials if trial.status == "stopped")
        rerun([str(stopped.run_id), "--store", store(folder)])
        said = capsys.readouterr().out
        assert "Its sweep stopped it (scheduler: asha)" in said
        assert "The same came out" in said

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
        max_concurrent=2,
    )
    ended = {
        (trial.config["model.lr"], trial.config["trainer.max_epochs"]): trial
        for trial in result.trials
    }
    assert set(ended) == {(0.0, 1), (0.0, 2), (0.2, 1), (0.2, 2)}
    assert result.best is ended[0.2, 2]
    assert [ended[0.2, epochs].iterations for epochs in (1, 2)] == [1, 2]
    assert all("learns nothing" in str(ended[0.0, epochs].error) for epochs in (1, 2))
    failed = ended[0.0, 1]
    text = (Path(result.folder) / failed.name / "traceback.txt").read_text()
    assert "in training_step" in text and "learns nothing" in text
    parent, children = runs_of(tmp_path, result)
    assert parent.info.status == "FINISHED"
    assert {name: run.info.status for name, run in children.items()} == {
        trial.name: "FAILED" if trial.error else "FINISHED" for trial in result.trials
    }


class Rising(Line):
    """Is best after its first epoch; a width of 2 gives NaN."""

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", math.nan if self.hparams.width == 2 else 1.0 + self.current_epoch)
        self.log("other", -1.0 * self.current_epoch)


@pytest.mark.ray
def test_the_best_checkpoint_is_that_of_the_best_score(tmp_path: Path, ray_cluster: str) -> None:
    logger = pl.CSVLogger(tmp_path / "logs", name="lines", prefix="own")
    trainer = pl.Trainer(max_epochs=3, logger=logger, default_root_dir=tmp_path)
    result = pl.Tuner(trainer).sweep(
        Rising,
        Data(),
        space={"model.width": {"grid": [1, 2]}},
        metric="val_loss",
        search="grid",
        max_concurrent=1,
    )
    assert [trial.score for trial in result.trials] == [1.0, None]
    assert result.best.epoch == 0
    assert "epoch=0" in str(result.best.checkpoint)
    name = Path(result.folder).name  # so that another sweep writes elsewhere
    for trial in result.trials:
        rows = (tmp_path / "logs/lines" / name / trial.name / "metrics.csv").read_text()
        assert "own-val_loss" in rows.partition("\n")[0]
    for mode, wanted in (("min", "other"), ("max", "val_loss")):
        other = trainer.replaced(callbacks=[ModelCheckpoint(monitor=wanted, mode=mode)])
        with pytest.warns(UserWarning, match=f"the best by '{wanted}', which is not where"):
            _check_trainer(other, result.spec)
    own = trainer.replaced(callbacks=[ModelCheckpoint(monitor="val_loss")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _check_trainer(own, result.spec)
        _check_trainer(trainer, result.spec)
    result.trials = result.trials[1:]
    assert "all values were NaN or infinite" in _why_all_failed(result)


SCRIPT = """
import json
import sys
from pathlib import Path
from tests.tune.test_sweep import Slow, swept
if __name__ == "__main__":
    swept(Path(sys.argv[1]), Slow, **json.loads(sys.argv[2]))
"""


class Slow(Line):
    """Takes long enough for a sweep of it to be ended in the middle."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        time.sleep(0.05)
        return super().training_step(batch, batch_idx)


def swept(folder: Path, cls: type[Line], **settings: Any) -> SweepResult:
    trainer = pl.Trainer(
        max_epochs=3,
        logger=pl.MLFlowLogger("lines", tracking_uri=store(folder)),
        default_root_dir=folder,
    )
    return pl.Tuner(trainer).sweep(
        cls,
        Data,
        name="slow",
        space={"model.lr": {"loguniform": [1e-4, 0.3]}},
        metric="val_loss",
        num_samples=5,
        max_concurrent=2,
        seed=3,
        **settings,
    )


@pytest.mark.ray
@pytest.mark.parametrize(
    ("sent", "num_ended"),
    [
        (signal.SIGKILL, 1),
        pytest.param(signal.SIGKILL, 0, marks=pytest.mark.long),
        pytest.param(signal.SIGKILL, 2, marks=pytest.mark.long),
        pytest.param(signal.SIGKILL, 4, marks=pytest.mark.long),
        pytest.param(signal.SIGINT, 1, marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, 1, marks=pytest.mark.long),
    ],
)
def test_a_sweep_whose_driver_ended_goes_on(
    sent: signal.Signals, num_ended: int, tmp_path: Path, ray_cluster: str
) -> None:
    environment = {**os.environ, "RAY_ADDRESS": ray_cluster, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path), "{}"],
        env=environment,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    ) as driver:
        deadline = time.monotonic() + stretched(60)
        while True:
            lines = [
                line
                for path in tmp_path.glob(f"raylit_runs/*/{FILE}")
                for line in read_lines(str(path))
            ]
            begun = any("start" in line for line in lines)
            if begun and sum("end" in line for line in lines) >= num_ended:
                break
            assert time.monotonic() < deadline and driver.poll() is None
            time.sleep(0.05)
        driver.send_signal(sent)
        said = driver.communicate()[1]
    if sent != signal.SIGKILL:
        assert driver.returncode != 0 and "It goes on with resume=" in said, said
    result = swept(tmp_path, Slow, resume=True)
    undisturbed = swept(tmp_path / "undisturbed", Line)

    def outcome(result: SweepResult) -> list[Any]:
        return sorted((t.name, t.config, t.score, t.iterations, t.status) for t in result.trials)

    assert outcome(result) == outcome(undisturbed)
    parent, children = runs_of(tmp_path, result)
    assert parent.info.status == "FINISHED"
    assert set(children) == {trial.name for trial in result.trials}
    client = mlflow.MlflowClient(store(tmp_path))
    for run in children.values():
        assert run.info.status == "FINISHED"
        history = client.get_metric_history(run.info.run_id, "val_loss")
        assert len({point.step for point in history}) == len(history) == 3


@pytest.mark.ray
@pytest.mark.long
def test_pbt_whose_driver_died_has_one_run_a_trial(tmp_path: Path, ray_cluster: str) -> None:
    """Also for a trial whose newest checkpoint is not the one that it goes on from."""
    environment = {**os.environ, "RAY_ADDRESS": ray_cluster, "PYTHONPATH": str(ROOT)}
    scheduler = {"scheduler": {"name": "pbt", "perturbation_interval": 2}}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), json.dumps(scheduler)]
    with subprocess.Popen(command, env=environment, cwd=ROOT) as driver:
        deadline = time.monotonic() + stretched(90)
        while len(list(tmp_path.glob("raylit_runs/*/*/paused/*.ckpt"))) < 3:
            assert time.monotonic() < deadline and driver.poll() is None
            time.sleep(0.05)
        driver.send_signal(signal.SIGKILL)
    result = swept(tmp_path, Slow, resume=True, **scheduler)
    _, children = runs_of(tmp_path, result)
    assert set(children) == {trial.name for trial in result.trials}
    for run in children.values():
        assert run.info.status == "FINISHED" and "raylit.branched_from" not in run.data.tags
        history = mlflow.MlflowClient(store(tmp_path)).get_metric_history(
            run.info.run_id, "val_loss"
        )
        assert len({point.step for point in history}) == 3 <= len(history)


class Held(pl.Callback):
    """Writes down, at the start and the end of each epoch, the weight and the rate.

    No trial is more than an epoch ahead of the others: a trial that has ended before another has
    begun is not there to be copied.
    """

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._write("start", trainer, pl_module)
        end = time.monotonic() + stretched(120)
        while self._slowest(trainer) < trainer.current_epoch - 1:
            assert time.monotonic() < end, "the other trial does not go on"
            time.sleep(0.05)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._write("end", trainer, pl_module)

    def _slowest(self, trainer: pl.Trainer) -> int:
        """Return the last epoch that both trials have ended, or -1."""
        files = list(Path(trainer.default_root_dir).glob("held-*"))
        rows = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
        ended = [max((row[1] for row in each if row[0] == "end"), default=-1) for each in rows]
        return min(ended) if len(ended) == 2 else -1

    def _write(self, what: str, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        group = trainer.optimizers[0].param_groups[0]
        row = [what, trainer.current_epoch, module.layer.weight.item(), group["lr"]]
        row.append(module.hparams.lr)
        with open(Path(trainer.default_root_dir) / f"held-{trainer.logger.run_id}", "a") as file:
            file.write(json.dumps(row) + "\n")


@pytest.mark.ray
def test_pbt_goes_on_from_the_donor(tmp_path: Path, ray_cluster: str) -> None:
    trainer = pl.Trainer(
        max_epochs=5,
        logger=pl.MLFlowLogger("lines", tracking_uri=store(tmp_path)),
        callbacks=[Held()],
        default_root_dir=tmp_path,
    )
    result = pl.Tuner(trainer).sweep(
        Line,
        Data,
        space={"model.lr": {"choice": [0.2, 1e-4]}},
        points=[{"model.lr": 0.2}, {"model.lr": 1e-4}],
        metric="val_loss",
        scheduler={
            "name": "pbt",
            "perturbation_interval": 1,
            "quantile_fraction": 0.5,
            "hyperparam_mutations": {"model.lr": {"uniform": [0.01, 0.4]}},
        },
        num_samples=2,
        max_concurrent=2,
        seed=1,
    )
    assert [trial.status for trial in result.trials] == ["finished"] * 2
    good, bad = sorted(result.trials, key=lambda trial: trial.number)
    rows = {
        trial.name: [
            json.loads(line)
            for line in (tmp_path / f"held-{trial.run_id}").read_text().splitlines()
        ]
        for trial in (good, bad)
    }
    ends = {weight for what, _, weight, *_ in rows[good.name] if what == "end"}
    taken = [row for row in rows[bad.name] if row[0] == "start" and row[2] in ends]
    assert taken, rows
    for _, epoch, _, rate, wanted in taken:
        assert epoch > 0 and rate == pytest.approx(wanted), "the trial's own rate, not the donor's"
    assert bad.config["model.lr"] != 1e-4
    assert float(bad.score or 1) < 0.5, "with its own rate it would have learned nothing"
    _, children = runs_of(tmp_path, result)
    for trial in (good, bad):  # its own best, not the one of the checkpoint it went on from
        assert children[trial.name].data.metrics["best/val_loss"] == pytest.approx(trial.score)


class Worse(Line):
    """Its score says which value and epoch gave it, and an epoch's is worse than the one before."""

    @staticmethod
    def score_of(lr: float, epoch: int) -> float:
        return abs(lr - 0.3) + 0.02 * epoch

    def on_validation_epoch_end(self) -> None:
        self.log("score", self.score_of(self.hparams.lr, self.current_epoch))


def sweep_of_two(trainer: pl.Trainer, model: type[Worse], quantile_fraction: float) -> SweepResult:
    """A synchronous population of two trials, of which that with 0.31 is the better."""
    return pl.Tuner(trainer).sweep(
        model,
        Data,
        space={"model.lr": {"uniform": [0.0, 0.5]}},
        points=[{"model.lr": 0.31}, {"model.lr": 0.5}],
        metric="score",
        mode="min",
        scheduler={
            "name": "pbt",
            "perturbation_interval": 1,
            "quantile_fraction": quantile_fraction,
            "synch": True,  # else one may end before the other has begun
        },
        num_samples=2,
        max_concurrent=2,
        seed=1,
    )


@pytest.mark.ray
def test_score_values_and_checkpoint_of_pbt_belong_together(
    tmp_path: Path, ray_cluster: str
) -> None:
    trainer = pl.Trainer(
        max_epochs=3,
        logger=pl.MLFlowLogger("lines", tracking_uri=store(tmp_path)),
        default_root_dir=tmp_path,
    )
    result = sweep_of_two(trainer, Worse, quantile_fraction=0.5)
    _, children = runs_of(tmp_path, result)
    lines = (Path(result.folder) / "sweep.jsonl").read_text().splitlines()
    begun = [line["config"] for line in map(json.loads, lines) if "start" in line]
    assert len(begun) > 2, "the scheduler changed nothing"
    assert all(0.0 <= config["model.lr"] <= 0.5 for config in begun)
    for trial in result.trials:
        lr = trial.config["model.lr"]
        assert trial.score == pytest.approx(Worse.score_of(lr, trial.epoch or 0), abs=1e-6)
        saved = torch.load(trial.checkpoint or "", weights_only=True)
        assert saved["hyper_parameters"]["lr"] == lr
        assert saved["epoch"] == trial.epoch
        files = sorted(path.name for path in Path(trial.checkpoint or "").parent.iterdir())
        assert len(files) <= 2, files
        tags = children[trial.name].data.tags
        assert float(tags.get("raylit.best.model.lr", lr)) == lr
        for held in Path(result.folder, trial.name).glob("checkpoint_*/*.pkl"):
            number = int(held.parent.name.removeprefix("checkpoint_"))
            named = pickle.loads(held.read_bytes())["ckpt_path"]
            assert named.endswith(f"report={number}.ckpt"), "none is written over another"
    assert f"lr: {result.best.config['model.lr']}" in Path(result.best_config).read_text()


class FailsLate(Worse):
    """With a learning rate of 0.5 it fails in its second epoch."""

    def on_train_epoch_start(self) -> None:
        if self.hparams.lr == 0.5 and self.current_epoch == 1:
            raise ArithmeticError("it has diverged")


@pytest.mark.ray
def test_the_others_of_a_population_go_on_when_one_has_failed(
    tmp_path: Path, ray_cluster: str
) -> None:
    trainer = pl.Trainer(max_epochs=3, logger=False, default_root_dir=tmp_path)
    # 0: none takes the values of the other
    result = sweep_of_two(trainer, FailsLate, quantile_fraction=0.0)
    assert {trial.config["model.lr"]: trial.status for trial in result.trials} == {
        0.31: "finished",
        0.5: "failed",
    }
    assert result.best.config == {"model.lr": 0.31}


@pytest.mark.ray
@pytest.mark.parametrize(
    ("search", "scheduler"),
    [
        pytest.param("tpe", "median", marks=pytest.mark.long),
        pytest.param("nsga2", "none", marks=pytest.mark.long),
        pytest.param("random", "hyperband", marks=pytest.mark.long),
        pytest.param("gp", "none", marks=pytest.mark.long),
        pytest.param("qmc", "asha", marks=pytest.mark.long),
        pytest.param("random", "pb2", marks=pytest.mark.long),
    ],
)
def test_every_search_and_scheduler_runs(
    search: str, scheduler: str, tmp_path: Path, ray_cluster: str
) -> None:
    settings = {"perturbation_interval": 1} if scheduler == "pb2" else {}
    several = [{"name": "val_loss", "mode": "min"}, {"name": "loss", "mode": "max"}]
    trainer = pl.Trainer(max_epochs=3, logger=False, default_root_dir=tmp_path)
    result = pl.Tuner(trainer).sweep(
        Logging,
        Data,
        space={"model.lr": {"loguniform": [1e-3, 0.3]}},
        metric=several if search in ("tpe", "nsga2") else "val_loss",
        search=search,
        scheduler={"name": scheduler, **settings},
        num_samples=5 if scheduler == "hyperband" else 4,
        max_concurrent=2,
        seed=1,
    )
    assert all(trial.score is not None for trial in result.trials)
    if scheduler == "hyperband":  # a bracket of 2 that runs to the end, one of 3 that keeps 1
        numbered = sorted(result.trials, key=lambda trial: trial.number)
        reports = [trial.iterations for trial in numbered]
        assert reports[:2] == [3, 3] and sorted(reports[2:]) == [1, 1, 3]
        assert max(numbered[2:], key=lambda trial: trial.iterations).status == "finished"
    else:
        assert len(result.trials) == 4
    if len(result.spec.metrics) == 2:
        assert result.best in result.front
        assert result.plot("front").axes
        values = [[one.metrics["val_loss"], one.metrics["loss"]] for one in result.trials]
        for trial in result.front:
            own = [trial.metrics["val_loss"], trial.metrics["loss"]]
            assert not any(a < own[0] and b > own[1] for a, b in values)


class Logging(Line):
    """Logs its training loss too."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        return loss


@pytest.mark.ray
def test_more_than_the_cluster_has_is_refused(tmp_path: Path, ray_cluster: str) -> None:
    tuner = pl.Tuner(pl.Trainer(max_epochs=1, logger=False, default_root_dir=tmp_path))
    with pytest.raises(ConfigError, match="asks for 64 CPU, but the Ray cluster has 4 CPU"):
        tuner.sweep(Line, Data, space={"model.lr": 0.1}, metric="val_loss", resources={"CPU": 64})
    assert not (tmp_path / "raylit_runs").exists()


@pytest.mark.ray
@pytest.mark.long
def test_trials_of_two_workers(tmp_path: Path, ray_cluster: str) -> None:
    trainer = pl.Trainer(
        max_epochs=2,
        logger=pl.MLFlowLogger("lines", tracking_uri=store(tmp_path)),
        default_root_dir=tmp_path,
    )
    result = pl.Tuner(trainer).sweep(
        Line,
        Data,
        space={"model.lr": {"grid": [0.05, 0.1, 0.2, 0.3]}},
        metric="val_loss",
        resources={"num_workers": 2, "CPU": 1},
    )
    assert len(result.trials) == 4
    assert {trial.status for trial in result.trials} == {"finished"}
    assert result.best.iterations == 2
    assert result.best.load(Line).hparams.lr == result.best.config["model.lr"]


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
        ({"n_trials": 3}, "no setting 'n_trials'.*Did you mean 'trials'"),
        ({"metric": None}, "needs the metric to optimize"),
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


def test_a_folder_of_another_sweep_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "raylit_runs" / "lines-1"
    folder.mkdir(parents=True)
    head = {"sweep": "lines", "space": {"model.lr": "0.2"}, "metrics": {"val_loss": "min"}}
    (folder / FILE).write_text(json.dumps({"sweep": head}) + "\n")
    tuner = pl.Tuner(pl.Trainer(max_epochs=1, logger=False, default_root_dir=tmp_path))
    settings: dict[str, Any] = {"space": {"model.lr": 0.1}, "metric": "val_loss"}
    with pytest.raises(ConfigError, match=r"lines-1 is another one: its space was .*'0.2'"):
        tuner.sweep(Line, Data, resume="lines-1", **settings)
    with pytest.raises(ConfigError, match=r"no sweep 'lines-2'.*Did you mean 'lines-1'"):
        tuner.sweep(Line, Data, resume="lines-2", **settings)


def test_async_validation_in_a_trial_is_refused(tmp_path: Path) -> None:
    tuner = pl.Tuner(pl.Trainer(async_validation=True, max_epochs=1, default_root_dir=tmp_path))
    with pytest.raises(ConfigError, match="Leave async_validation out"):
        tuner.sweep(Line, Data, space={"model.lr": 0.1}, metric="val_loss")


def test_several_workers_in_a_trial_are_refused(tmp_path: Path) -> None:
    tuner = pl.Tuner(pl.Trainer(num_workers=2, max_epochs=1, default_root_dir=tmp_path))
    with pytest.raises(ConfigError, match="runs in one process"):
        tuner.sweep(Line, Data, space={"model.lr": 0.1}, metric="val_loss")
