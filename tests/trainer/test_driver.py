from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

import raylit as pl
from raylit.callbacks import ModelCheckpoint
from raylit.errors import ConfigError
from raylit.loggers import CSVLogger
from raylit.testing import BoringDataModule, TinyModel
from tests.lazy import lightning
from tests.quiet import trainer


@pytest.mark.parametrize("fn", ["fit", "validate", "test", "predict"])
def test_a_model_of_lightning_is_told_apart(tmp_path: Path, fn: str) -> None:
    with pytest.raises(TypeError, match="import raylit as pl"):
        getattr(trainer(tmp_path), fn)(lightning.pytorch.LightningModule())


def test_data_is_given_once(tmp_path: Path) -> None:
    data = BoringDataModule()
    data.setup("fit")
    with pytest.raises(ConfigError, match="both loaders and a datamodule"):
        trainer(tmp_path).fit(TinyModel(), data.train_dataloader(), datamodule=data)
    with pytest.raises(ConfigError, match="two datamodules"):
        trainer(tmp_path).fit(TinyModel(), data, datamodule=data)


@pytest.mark.parametrize("fn", ["validate", "test", "predict"])
def test_an_evaluation_needs_a_model_or_a_fit_before(tmp_path: Path, fn: str) -> None:
    one = trainer(tmp_path)
    with pytest.raises(TypeError, match="needs a model"):
        getattr(one, fn)()


def test_without_a_model_the_best_weights_of_the_last_fit_are_taken(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, monitor="val_loss", mode="max")
    one, model = (
        trainer(tmp_path, callbacks=[saver], max_epochs=3, enable_checkpointing=None),
        TinyModel(),
    )
    one.fit(model)
    with pytest.warns(UserWarning, match="the best checkpoint of the last fit is loaded"):
        (found,) = one.validate(verbose=False)
    assert found["val_loss"] == pytest.approx(float(saver.best_model_score), rel=1e-6)  # type: ignore[arg-type]


def test_the_loggers_are_closed_however_the_job_ends(tmp_path: Path) -> None:
    class Fails(TinyModel):
        def on_train_start(self) -> None:
            raise ZeroDivisionError

    class Notes(CSVLogger):
        closed: str | None = None

        def close(self, status: str = "success") -> None:
            super().close(status)
            self.closed = status

    for model, status, state in (
        (TinyModel(), "success", "finished"),
        (Fails(), "failed", "interrupted"),
    ):
        one = trainer(tmp_path, logger=[Notes(tmp_path), Notes(tmp_path)])
        with contextlib.suppress(ZeroDivisionError):
            one.fit(model)
        assert [logger.closed for logger in one.loggers] == [status, status]
        assert one.state.status == state


def test_folders_that_are_files_are_found_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    file = str(tmp_path / "file")
    places: list[dict[str, Any]] = [
        {"logger": CSVLogger(file)},
        {"logger": pl.MLFlowLogger(save_dir=file)},
        {"callbacks": [ModelCheckpoint(dirpath=f"{file}/x")], "enable_checkpointing": True},
        {"callbacks": [pl.callbacks.RecoveryCheckpoint(dirpath=file)]},
    ]
    for arguments in places:
        with pytest.raises(ConfigError, match=r"nothing can be written there: .*file is a file"):
            trainer(tmp_path, **arguments).fit(TinyModel())
