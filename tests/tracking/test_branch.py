"""Which run a fit logs into that goes on from a checkpoint, or begins again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import raylit as pl
from raylit.loggers import MLFlowLogger
from raylit.testing import TinyModel
from tests.lazy import mlflow
from tests.loggers.mlflow_store import history, opened, run_of


def fit(uri: str, folder: Path, max_epochs: int, ckpt_path: str | None = None) -> Any:
    """Fit four steps an epoch, with a checkpoint of each; returns the Result."""
    keep = pl.callbacks.ModelCheckpoint(folder / "checkpoints", save_top_k=-1, save_last=True)
    trainer = pl.Trainer(
        max_epochs=max_epochs,
        logger=MLFlowLogger("branches", tracking_uri=uri, save_dir=folder),
        callbacks=[keep],
        default_root_dir=folder,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return trainer.fit(TinyModel(), ckpt_path=ckpt_path)


def steps(uri: str, run_id: str) -> list[int]:
    found = mlflow.MlflowClient(uri).get_metric_history(run_id, "train_loss")
    return [one.step for one in found]


def test_an_older_checkpoint_is_a_branch_and_the_newest_is_not(uri: str, tmp_path: Path) -> None:
    first = fit(uri, tmp_path, 3)
    folder = tmp_path / "checkpoints"
    longer = fit(uri, tmp_path, 4, str(folder / "last.ckpt"))
    assert longer.run_id == first.run_id
    assert steps(uri, first.run_id) == list(range(16))
    branch = fit(uri, tmp_path, 4, str(folder / "epoch=1-step=8.ckpt"))
    assert branch.run_id != first.run_id
    assert steps(uri, branch.run_id) == list(range(8, 16))
    assert steps(uri, first.run_id) == list(range(16))
    client = mlflow.MlflowClient(uri)
    tags = client.get_run(branch.run_id).data.tags
    assert (tags["raylit.branched_from"], tags["raylit.branched_at_step"]) == (first.run_id, "8")
    assert client.get_run(first.run_id).data.tags["raylit.branches"] == branch.run_id
    assert fit(uri, tmp_path, 5, "last").run_id == branch.run_id


def test_the_only_checkpoint_left_of_a_run_that_ended_is_a_branch(uri: str, tmp_path: Path) -> None:
    first = fit(uri, tmp_path, 3)
    folder = tmp_path / "checkpoints"
    for name in ("last.ckpt", "epoch=1-step=8.ckpt", "epoch=2-step=12.ckpt"):
        (folder / name).unlink()
    assert fit(uri, tmp_path, 3, str(folder / "epoch=0-step=4.ckpt")).run_id != first.run_id


def test_the_newest_of_a_run_that_was_killed_stays_in_it(uri: str, tmp_path: Path) -> None:
    first = fit(uri, tmp_path, 3)
    folder = tmp_path / "checkpoints"
    for name in ("last.ckpt", "epoch=2-step=12.ckpt"):
        (folder / name).unlink()
    mlflow.MlflowClient(uri).set_terminated(first.run_id, "KILLED")
    again = fit(uri, tmp_path, 4, str(folder / "epoch=1-step=8.ckpt"))
    assert again.run_id == first.run_id
    assert steps(uri, first.run_id) == list(range(16))


def test_a_fit_from_scratch_is_a_run_of_its_own(uri: str, tmp_path: Path) -> None:
    logger = MLFlowLogger("twice", tracking_uri=uri, save_dir=tmp_path)

    def trainer() -> pl.Trainer:
        return pl.Trainer(
            max_epochs=1,
            logger=logger,
            default_root_dir=tmp_path,
            log_every_n_steps=1,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    first = trainer().fit(TinyModel())
    trainer().validate(TinyModel())
    assert logger.run_id == first.run_id
    second = trainer().fit(TinyModel())
    assert second.run_id != first.run_id
    assert steps(uri, first.run_id) == steps(uri, second.run_id) == list(range(4))


def test_a_fit_that_is_made_longer_stays_in_its_run(uri: str, tmp_path: Path) -> None:
    logger = MLFlowLogger("longer", tracking_uri=uri, save_dir=tmp_path)
    trainer = pl.Trainer(
        max_epochs=1,
        logger=logger,
        default_root_dir=tmp_path,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = TinyModel()
    first = trainer.fit(model)
    trainer.fit_loop.max_epochs = 2
    assert trainer.fit(model).run_id == first.run_id
    assert steps(uri, first.run_id) == list(range(8))


def test_two_fits_in_one_given_run_are_said(uri: str, tmp_path: Path) -> None:
    given = opened(MLFlowLogger("given", tracking_uri=uri, save_dir=tmp_path), tmp_path)
    given.close("success")
    logger = MLFlowLogger("given", tracking_uri=uri, save_dir=tmp_path, run_id=given.run_id)
    for value in range(2):
        if value:
            with pytest.warns(UserWarning, match="already holds a fit"):
                logger.start_over()
        else:
            logger.start_over()
        opened(logger, tmp_path).log_metrics({"loss": float(value)}, 0)
        logger.finalize("success")
        logger.close("success")
    assert run_of(logger).info.run_id == given.run_id
    assert history(logger, "loss") == [(0, 0.0), (0, 1.0)]
