"""Validation that training does not wait for.

The same values at the same steps as one that it waits for.
"""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import raylit as pl
from raylit import ValidationConfig
from raylit.callbacks import (
    CalibrationLogger,
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    RecoveryCheckpoint,
)
from raylit.errors import ConfigError
from tests import quiet
from tests.deadlines import stretched
from tests.lazy import mlflow

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
PATIENCE_S = stretched(120)


class Net(pl.LightningModule):
    """Logs in validation all that can be logged there. What else it does, files in its folder say.

    Args:
        folder: `wait`: validation waits until there is `go`, which the last batch of training
            makes; `raise`, `die`: validation does so.
    """

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        self.folder = folder
        self.plateau: str | None = None

    def is_told(self, what: str) -> bool:
        return self.folder is not None and (self.folder / what).exists()

    def loss(self, batch: list[Tensor]) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if self.is_told("stop at 9") and self.global_step == 9:
            raise KeyError("enough")
        if (
            self.is_told("kill at 9")
            and self.global_step == 9
            and self.global_rank == 1
            and self.folder is not None
        ):
            (self.folder / "kill at 9").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.folder is not None and self.global_step == 18:
            (self.folder / "go").touch()

    def validation_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        if not self.trainer.sanity_checking:
            self.act()
        self.log("val_loss", self.loss(batch), on_step=True, on_epoch=True, prog_bar=True)
        self.log("val_epoch", float(self.current_epoch))

    def act(self) -> None:
        began = time.monotonic()
        while (
            self.is_told("wait")
            and not self.is_told("go")
            and time.monotonic() < began + PATIENCE_S
        ):
            time.sleep(0.05)
        if self.is_told("raise"):
            raise LookupError(f"bad batch at step {self.global_step}")
        if self.is_told("die"):
            os.kill(os.getpid(), signal.SIGKILL)

    def on_validation_epoch_end(self) -> None:
        self.log("val_step", float(self.global_step))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        if self.plateau is None:
            return optimizer
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "monitor": self.plateau},
        }


def loaders(batch_size: int = 8) -> tuple[Any, Any]:
    """6 training batches, and two loaders for validation."""
    x = torch.randn(68, 3, generator=torch.Generator().manual_seed(1))
    y = x.sum(dim=1, keepdim=True).sin()
    parts = [TensorDataset(x[a:b], y[a:b]) for a, b in ((0, 48), (48, 61), (61, 68))]
    return DataLoader(parts[0], batch_size), [DataLoader(parts[1], 4), DataLoader(parts[2], 4)]


class Rows(pl.loggers.CSVLogger):
    """Keeps what it is sent, too."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))
        super().log_metrics(metrics, step)


trainer = partial(quiet.trainer, max_epochs=3, enable_checkpointing=None)


def marked(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).touch()
    return folder


def same_weights(one: Any, other: Any) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


SCHEDULES = {
    "in an epoch": {"val_check_interval": 2},
    "once in an epoch": {},
    "every second": {"check_val_every_n_epoch": 2, "max_epochs": 4},
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_same_values_at_the_same_steps(tmp_path: Path, name: str) -> None:
    """Also where all of them arrive after training has ended."""
    found = {}
    for kind in ("sync", "async"):
        folder = tmp_path / kind
        folder.mkdir()
        model = Net(marked(folder, "wait") if kind == "async" else None)
        logger, stopper = Rows(folder), EarlyStopping("val_loss/dataloader_idx_0", patience=100)
        saver = ModelCheckpoint(
            monitor="val_loss/dataloader_idx_1",
            save_top_k=2,
            save_last=True,
            filename="{step}-{val_step:.0f}",
        )
        done = trainer(
            folder,
            logger=logger,
            callbacks=[saver, stopper],
            log_every_n_steps=2,
            async_validation=kind == "async" and ValidationConfig(max_pending=9),
            **SCHEDULES[name],
        )
        result = done.fit(model, *loaders())
        found[kind] = (result, done, model, logger.rows, saver, stopper)
    (
        (ours, done, model, rows, saver, stopper),
        (
            theirs,
            other,
            other_model,
            other_rows,
            other_saver,
            other_stopper,
        ),
    ) = (
        found["async"],
        found["sync"],
    )
    assert same_weights(model.state_dict(), other_model.state_dict())
    assert ours.history == theirs.history
    assert sorted(map(repr, rows)) == sorted(map(repr, other_rows))
    assert [step for step, row in rows if "val_step" in row] == [
        step for step, row in other_rows if "val_step" in row
    ]
    assert ours.metrics == theirs.metrics
    assert done.progress_bar_metrics == other.progress_bar_metrics
    assert stopper.state_dict() == other_stopper.state_dict()
    names = [
        {Path(path).name: value.item() for path, value in one.best_k_models.items()}
        for one in (saver, other_saver)
    ]
    assert names[0] == names[1]
    assert Path(saver.best_model_path).name == Path(other_saver.best_model_path).name
    for path, same in zip(
        sorted(saver.best_k_models), sorted(other_saver.best_k_models), strict=True
    ):
        one, another = (torch.load(file, weights_only=True) for file in (path, same))
        assert same_weights(one["state_dict"], another["state_dict"])
        assert (one["global_step"], one["epoch"]) == (another["global_step"], another["epoch"])
        again = Net()
        trainer(tmp_path / "again", **SCHEDULES[name]).fit(again, *loaders(), ckpt_path=path)
        assert same_weights(again.state_dict(), model.state_dict())
    assert sorted(file.name for file in Path(saver.dirpath or "").iterdir()) == sorted(
        file.name for file in Path(other_saver.dirpath or "").iterdir()
    )


def test_training_does_not_wait(tmp_path: Path) -> None:
    """Validation waits for the last batch of training.

    One that training waits for would never end.
    """
    began = time.monotonic()
    result = trainer(
        marked(tmp_path, "wait"),
        val_check_interval=3,
        max_epochs=3,
        async_validation=ValidationConfig(max_pending=6),
    ).fit(Net(tmp_path), *loaders())
    assert time.monotonic() - began < PATIENCE_S
    assert [row["step"] for row in result.history if "val_step" in row] == [3, 6, 9, 12, 15, 18]
    assert [row["val_step"] for row in result.history if "val_step" in row] == [3, 6, 9, 12, 15, 18]


def test_training_waits_if_too_many_are_pending(tmp_path: Path) -> None:
    class Counts(pl.Callback):
        most = 0

        def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
            self.most = max(self.most, len(trainer._run.validations))

    counts = Counts()
    with pytest.warns(
        UserWarning, match=r"Training waits for its validations, of which 1 have not ended"
    ):
        result = trainer(
            tmp_path,
            val_check_interval=1,
            callbacks=counts,
            max_epochs=1,
            async_validation=ValidationConfig(max_pending=1),
        ).fit(Net(), *loaders())
    assert counts.most == 1
    assert [row["val_step"] for row in result.history] == [1, 2, 3, 4, 5, 6]


def test_a_stop_is_made_once_its_value_has_arrived(tmp_path: Path) -> None:
    stopper = EarlyStopping("val_step", mode="max", stopping_threshold=1.0)
    done = trainer(tmp_path, callbacks=stopper, max_epochs=-1, async_validation=True)
    done.fit(Net(), *loaders())
    assert stopper.stopping_reason.name == "STOPPING_THRESHOLD"
    # Whose weights were good enough, not the one that ran when that was known
    assert stopper.stopped_epoch == 0
    assert done.current_epoch >= 1


def test_what_a_validation_raises_ends_training(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="bad batch at step 6") as caught:
        trainer(marked(tmp_path, "raise"), async_validation=True).fit(Net(tmp_path), *loaders())
    assert any(
        "in the asynchronous validation of step 6, which ran in a Ray task" in note
        for note in caught.value.__notes__
    )
    assert "self.act()" in str(caught.value.__cause__)


def test_a_validation_that_dies_is_warned_of(tmp_path: Path) -> None:
    with pytest.warns(
        RuntimeWarning,
        match=(
            "no values of the asynchronous validation of step 6: its task was lost.*Training"
            " goes on"
        ),
    ):
        result = trainer(marked(tmp_path, "die"), max_epochs=1, async_validation=True).fit(
            Net(tmp_path), *loaders()
        )
    assert result.steps == 6
    assert not [row for row in result.history if "val_step" in row]


def test_a_checkpoint_that_cannot_be_written_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "validation").touch()  # a file where the folder should be
    with pytest.warns(
        RuntimeWarning,
        match=(
            "no values of the asynchronous validation of step 6: its checkpoint could not be"
            " written"
        ),
    ):
        result = trainer(tmp_path, max_epochs=1, async_validation=True).fit(Net(), *loaders())
    assert result.steps == 6


class TestGoingOn:
    """A fit that ends while validations run."""

    def interrupted(self, folder: Path) -> str:
        model = Net(marked(folder, "wait", "stop at 9"))
        with pytest.raises(KeyError, match="enough"):
            trainer(folder, async_validation=True).fit(model, *loaders())
        (saved,) = (folder / "checkpoints" / "recovery").glob("*.ckpt")
        (folder / "stop at 9").unlink()
        return str(saved.rename(folder / "kept.ckpt"))  # a fit that ends well would delete it

    def test_they_are_run_again(self, tmp_path: Path) -> None:
        saved = self.interrupted(tmp_path)
        straight = trainer(tmp_path / "straight").fit(Net(), *loaders())
        saver = ModelCheckpoint(monitor="val_step", mode="min")
        result = trainer(tmp_path, callbacks=saver, async_validation=True).fit(
            Net(tmp_path), *loaders(), ckpt_path=saved
        )
        assert result.history == straight.history
        assert saver.best_model_score == 6.0
        assert torch.load(str(result.best_model_path), weights_only=True)["global_step"] == 6
        assert not (tmp_path / "checkpoints" / "validation").exists()

    def test_or_said_to_be_lost(self, tmp_path: Path) -> None:
        saved = self.interrupted(tmp_path)
        with pytest.warns(
            UserWarning,
            match=(
                "of step 6, had not ended when the checkpoint was saved. Without async_validation"
                " they are lost"
            ),
        ):
            trainer(tmp_path).fit(Net(), *loaders(), ckpt_path=saved)
        for file in (tmp_path / "checkpoints" / "validation").iterdir():
            file.unlink()
        with pytest.warns(
            UserWarning,
            match=(
                "step 6 had not ended when the checkpoint was saved, and its own checkpoint is gone"
            ),
        ):
            result = trainer(tmp_path, async_validation=True).fit(
                Net(), *loaders(), ckpt_path=saved
            )
        assert [row["val_step"] for row in result.history if "val_step" in row] == [12, 18]


def test_callbacks_of_ones_own_take_part(tmp_path: Path) -> None:
    class Own(pl.Callback):
        def on_validation_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *args: Any
        ) -> None:
            pl_module.log(
                "num_rows", float(len(batch[0])), reduce_fx="sum", on_epoch=True, batch_size=1
            )

    train, (val, _) = loaders()
    result = trainer(tmp_path, callbacks=Own(), max_epochs=1, async_validation=True).fit(
        Net(), train, val
    )
    assert result.metrics["num_rows"] == 13


def test_a_trial_run_validates_in_place(tmp_path: Path) -> None:
    with pytest.raises(LookupError) as caught:
        trainer(marked(tmp_path, "raise"), fast_dev_run=True, async_validation=True).fit(
            Net(tmp_path), *loaders()
        )
    assert not any("asynchronous" in note for note in caught.value.__notes__)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"async_validation": 3},
            r"async_validation=3: give True, False or a raylit\.ValidationConfig",
        ),
        (
            {"async_validation": ValidationConfig(num_cpus=1000)},
            r"wants 1000 CPU, but beside the 0 workers the Ray cluster has .*num_cpus=0",
        ),
        ({"async_validation": ValidationConfig(resources={"tpu": 1})}, "wants 1 tpu"),
        (
            {"async_validation": True, "num_workers": (1, 100)},
            "beside up to 100 workers the Ray cluster has 0: it would never begin",
        ),
        (
            {"async_validation": True, "callbacks": EMAWeightAveraging()},
            "EMAWeightAveraging validates with the average",
        ),
        (
            {"async_validation": True, "callbacks": CalibrationLogger(), "logger": True},
            "CalibrationLogger looks at validation as it runs",
        ),
    ],
)
def test_what_cannot_be(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer(tmp_path, **arguments).fit(Net(), *loaders())


@pytest.mark.parametrize(("num_sanity_val_steps", "steps"), [(2, 0), (0, 6)])
def test_a_learning_rate_does_not_wait_for_values(
    tmp_path: Path, num_sanity_val_steps: int, steps: int
) -> None:
    """Said before training, if the sanity check tells of the name.

    Else when the value would be needed.
    """
    model, train, val = Net(), loaders()[0], loaders()[1][0]
    model.plateau = "val_loss"
    done = trainer(tmp_path, async_validation=True, num_sanity_val_steps=num_sanity_val_steps)
    with pytest.raises(
        ConfigError, match="ReduceLROnPlateau watches 'val_loss', which training does not log"
    ):
        done.fit(model, train, val)
    assert done.global_step == steps
    model.plateau = "train_loss"
    assert trainer(tmp_path, async_validation=True).fit(model, train, val).steps == 18


@pytest.mark.parametrize("argument", ["num_cpus", "num_gpus", "max_pending"])
def test_config_is_checked(argument: str) -> None:
    for wrong in (-1, float("nan")):
        with pytest.raises(ConfigError, match=rf"ValidationConfig\({argument}={wrong}\)"):
            ValidationConfig(**{argument: wrong})


def test_two_workers_leave_what_one_process_leaves(tmp_path: Path) -> None:
    """And MLflow has each value once, at its step."""
    runs = {}
    for name, num_workers, batch_size in (("local", 0, 8), ("ray", 2, 4)):
        folder = tmp_path / name
        folder.mkdir()
        saver, stopper = (
            ModelCheckpoint(monitor="val_loss/dataloader_idx_0"),
            EarlyStopping("val_loss/dataloader_idx_0", patience=100),
        )
        logger = pl.MLFlowLogger("validation", tracking_uri=f"sqlite:///{folder}/mlflow.db")
        done = trainer(
            folder,
            num_workers=num_workers,
            logger=logger,
            callbacks=[saver, stopper],
            val_check_interval=3,
            async_validation=num_workers > 0,
        )
        train, val = loaders(batch_size)
        result = done.fit(Net(folder), train, val)
        client = mlflow.tracking.MlflowClient(f"sqlite:///{folder}/mlflow.db")
        keys = [
            key for key in client.get_run(str(result.run_id)).data.metrics if key.startswith("val")
        ]
        history = {key: client.get_metric_history(str(result.run_id), key) for key in keys}
        runs[name] = {
            key: [(point.step, pytest.approx(point.value, rel=1e-4)) for point in points]
            for key, points in history.items()
        }
        runs[name]["best"] = (
            Path(saver.best_model_path).name,
            pytest.approx(float(saver.best_model_score or 0), rel=1e-4),
        )
        runs[name]["stopper"] = pytest.approx(float(stopper.best_score), rel=1e-4)
    assert [step for step, _ in runs["ray"]["val_step"]] == [2, 5, 8, 11, 14, 17]
    assert runs["ray"] == runs["local"]


@pytest.mark.long
@pytest.mark.parametrize("every_n_steps", [4, 5])
def test_what_runs_when_a_worker_is_killed_is_run_again(tmp_path: Path, every_n_steps: int) -> None:
    """The recovery checkpoint of step 8 knows of the validation of step 6, that of step 5 does not.

    There step 6 is validated anew, and the checkpoint of before is not left.
    """
    train, (val, _) = loaders(4)
    saver = ModelCheckpoint(monitor="val_step", mode="min")
    done = trainer(
        marked(tmp_path, "wait", "kill at 9"),
        num_workers=2,
        max_failures=1,
        async_validation=True,
        callbacks=[saver, RecoveryCheckpoint(every_n_steps=every_n_steps, every_s=None)],
    )
    result = done.fit(Net(tmp_path), train, val)
    assert not (tmp_path / "kill at 9").exists()
    assert (
        [row["val_step"] for row in result.history]
        == [row["step"] for row in result.history]
        == [6, 12, 18]
    )
    assert saver.best_model_score == 6.0
    assert not (tmp_path / "checkpoints" / "validation").exists()


def test_what_a_validation_raises_beside_two_workers_reaches_the_user(tmp_path: Path) -> None:
    train, (val, _) = loaders(4)
    with pytest.raises(LookupError, match="bad batch at step 6") as caught:
        trainer(
            marked(tmp_path, "raise"), num_workers=2, async_validation=ValidationConfig(num_cpus=0)
        ).fit(Net(tmp_path), train, val)
    assert any(
        "in the asynchronous validation of step 6" in note for note in caught.value.__notes__
    )
