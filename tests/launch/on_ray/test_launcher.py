"""Fits on real Ray workers.

Each costs about ten seconds, so one fit answers as many questions as it can.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import raylit as pl
from raylit.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from raylit.errors import ConfigError, LaunchError
from raylit.launch.on_ray.failure import failure_of
from tests.actors import left_of_fits
from tests.lazy import mlflow

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


class Regression(pl.LightningModule):
    """A small network whose batches may raise an exception or kill their worker.

    Once, or always.
    """

    def __init__(self, fault: str | None = None, marker: str = "") -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        self.fault, self.marker = fault, marker

    def loss(self, batch: list[Tensor]) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if self.fault and self.global_rank == 1 and batch_idx == 2 and self.current_epoch == 1:
            self.fail()
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def fail(self) -> None:
        if self.fault == "raise":
            raise OddError("bad batch", 2)
        if self.fault == "die" or not os.path.exists(self.marker):
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return batch[1]

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


class OddError(Exception):
    """Wants other arguments than it hands to its base, so plain pickle could not bring it back."""

    def __init__(self, what: str, number: int) -> None:
        super().__init__(f"{what} {number}")
        self.number = number


def loaders(batch_size: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Training data of 48 samples, validation data of 13, which two ranks cannot share evenly."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(61, 3, generator=generator)
    y = x.sum(dim=1, keepdim=True).sin()
    return DataLoader(TensorDataset(x[:48], y[:48]), batch_size), DataLoader(
        TensorDataset(x[48:], y[48:]), batch_size
    )


def model(fault: str | None = None, marker: str = "") -> Regression:
    torch.manual_seed(0)
    return Regression(fault, marker)


def trainer(folder: Path, **arguments: Any) -> pl.Trainer:
    defaults: dict[str, Any] = {
        "max_epochs": 3,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(default_root_dir=folder, **{**defaults, **arguments})


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory, ray_cluster: str) -> dict[str, Any]:
    """One fit in two workers with half the batch each, and one in one process with all of it."""
    fits = {}
    for name, num_workers, batch_size in (("local", 0, 8), ("ray", 2, 4)):
        folder = tmp_path_factory.mktemp(name)
        callbacks = [
            ModelCheckpoint(monitor="val_loss"),
            EarlyStopping("val_loss", patience=5),
            LearningRateMonitor(),
        ]
        logger = pl.MLFlowLogger("regression", tracking_uri=f"sqlite:///{folder}/mlflow.db")
        pl_trainer = trainer(
            folder, num_workers=num_workers, logger=logger, callbacks=callbacks, log_every_n_steps=2
        )
        module = model()
        fits[name] = (pl_trainer.fit(module, *loaders(batch_size)), pl_trainer, module, folder)
    return fits


class TestTwoWorkers:
    """They leave what one process leaves."""

    def test_same_weights_and_losses(self, fits: dict[str, Any]) -> None:
        (local, _, local_module, _), (ray, _, ray_module, _) = fits["local"], fits["ray"]
        for key, value in local_module.state_dict().items():
            torch.testing.assert_close(ray_module.state_dict()[key], value, rtol=1e-5, atol=1e-6)
        assert len(ray.history) == len(local.history) == 3
        for ours, theirs in zip(ray.history, local.history, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)

    def test_driver_holds_what_the_workers_made(self, fits: dict[str, Any]) -> None:
        (_, local, _, _), (result, pl_trainer, _, folder) = fits["local"], fits["ray"]
        assert (pl_trainer.current_epoch, pl_trainer.global_step, pl_trainer.state.status) == (
            3,
            18,
            "finished",
        )
        assert {k: v.item() for k, v in pl_trainer.callback_metrics.items()} == pytest.approx(
            {k: v.item() for k, v in local.callback_metrics.items()}, rel=1e-5
        )
        saver, stopper = pl_trainer.checkpoint_callback, pl_trainer.early_stopping_callback
        assert isinstance(saver, ModelCheckpoint)
        assert stopper is not None
        assert saver.best_model_path == result.best_model_path
        assert Path(saver.best_model_path).is_relative_to(folder)
        # It would bring the worker's module along
        assert all(callback._log is None for callback in pl_trainer.callbacks)
        assert (
            stopper.best_score
            == saver.best_model_score
            == pytest.approx(pl_trainer.callback_metrics["val_loss"].item())
        )

    def test_best_checkpoint_holds_the_weights(self, fits: dict[str, Any]) -> None:
        result, _, module, _ = fits["ray"]
        loaded = Regression.load_from_checkpoint(result.best_model_path)
        for key, value in module.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value)

    def test_one_mlflow_run_with_each_value_once(self, fits: dict[str, Any]) -> None:
        runs = {}
        for name in ("local", "ray"):
            result, _, _, folder = fits[name]
            client = mlflow.tracking.MlflowClient(f"sqlite:///{folder}/mlflow.db")
            experiment = client.get_experiment_by_name("regression")
            (run,) = client.search_runs([experiment.experiment_id])
            assert (run.info.run_id, run.info.status) == (result.run_id, "FINISHED")
            history = {
                key: client.get_metric_history(run.info.run_id, key)
                for key in run.data.metrics
                if not key.startswith(("system/", "perf/"))  # of machines and times
            }
            runs[name] = {
                key: [(point.step, pytest.approx(point.value, rel=1e-5)) for point in points]
                for key, points in history.items()
            }
        assert runs["ray"] == runs["local"]
        assert [step for step, _ in runs["ray"]["val_loss"]] == [5, 11, 17]

    def test_no_actor_is_left(self, fits: dict[str, Any], ray_cluster: str) -> None:
        assert left_of_fits(ray_cluster) == []


def test_exception_of_a_worker_reaches_the_user(tmp_path: Path, ray_cluster: str) -> None:
    with pytest.raises(OddError, match="bad batch 2") as caught:
        trainer(tmp_path, num_workers=2).fit(model("raise"), loaders(4)[0])
    assert caught.value.number == 2
    assert caught.value.__notes__ == [
        "(raylit) rank 1 of 2, epoch 1, batch_idx 2, step 8, in train"
    ]
    assert "self.fail()" in str(caught.value.__cause__)
    assert left_of_fits(ray_cluster) == [], "not even while its traceback is kept"


def test_dead_worker_is_restarted_from_the_newest_checkpoint(tmp_path: Path) -> None:
    undisturbed, disturbed = model(), model("die once", marker=str(tmp_path / "died"))
    expected = trainer(tmp_path / "local").fit(undisturbed, loaders(8)[0])
    result = trainer(tmp_path / "ray", num_workers=2, max_failures=1).fit(disturbed, loaders(4)[0])
    assert (tmp_path / "died").exists()
    for key, value in undisturbed.state_dict().items():
        torch.testing.assert_close(disturbed.state_dict()[key], value, rtol=1e-5, atol=1e-6)
    assert [row["train_loss"] for row in result.history] == pytest.approx(
        [row["train_loss"] for row in expected.history], rel=1e-5
    )


@pytest.mark.long
def test_dead_worker_without_restarts_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"rank 1: .*max_failures=1"):
        trainer(tmp_path, num_workers=2).fit(
            model("die", marker=str(tmp_path / "died")), loaders(4)[0]
        )


@pytest.mark.long
def test_a_long_epoch_is_told_of_in_between(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a terminal, and more often than once an epoch."""

    class Slow(Regression):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            time.sleep(1.0)
            return super().training_step(batch, batch_idx)

    trainer(tmp_path, num_workers=1, max_epochs=1, enable_progress_bar=True).fit(
        Slow(), loaders(2)[0]
    )
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch 1/1")]
    assert len(lines) >= 3, lines
    within = re.fullmatch(
        r"epoch 1/1 (\d+)/24  [\d.]+ it/s  0:\d\d left, 0:\d\d of the fit", lines[0]
    )
    assert within and 0 < int(within[1]) < 24, lines
    assert lines[-1].startswith("epoch 1/1 24/24")


@pytest.mark.long  # a Ray Dataset's are looked at in each run
def test_predictions_are_in_the_order_of_the_data(tmp_path: Path) -> None:
    data = loaders(4)[1]
    predictions = trainer(tmp_path, num_workers=2).predict(model(), data)
    assert torch.equal(torch.cat(predictions), data.dataset[:][1])


def test_what_cannot_be_sent_is_named_before_anything_starts(tmp_path: Path) -> None:
    module = model()
    module.lock = threading.Lock()
    with pytest.raises(ConfigError, match="The LightningModule cannot be sent to the workers"):
        trainer(tmp_path, num_workers=2).fit(module, loaders(4)[0])
    assert not list(tmp_path.iterdir())


def test_exception_that_cannot_be_pickled_is_told() -> None:
    try:
        raise OddError("held", threading.Lock())  # type: ignore[arg-type]
    except OddError as error:
        found = failure_of(error).original()
    assert isinstance(found, LaunchError)
    assert "OddError: held" in str(found)
