"""Fits where Ray is already in use: in threads, in a task, in an actor, in a job."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

import raylit as pl
from raylit.launch.on_ray import private
from raylit.testing import TinyModel
from tests.lazy import ray

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


class Told(TinyModel):
    """Learns what its process sees of the driver's environment, and its prints are heard."""

    def on_fit_start(self) -> None:
        self.variable = os.environ.get("SET_BETWEEN_FITS")
        self.password = os.environ.get("MLFLOW_TRACKING_PASSWORD")
        self.batches_left = self.trainer.fast_dev_run
        print(f"rank {self.global_rank} sees {self.variable} and {self.password}")


def fit(folder: Path, **arguments: Any) -> tuple[int, Any]:
    settings: dict[str, Any] = {
        "num_workers": 1,
        "max_epochs": 2,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer = pl.Trainer(default_root_dir=folder, **{**settings, **arguments})
    return trainer.fit(Told()).epochs, trainer


@pytest.mark.timeout(600)
def test_fits_at_once_in_a_thread_a_task_and_an_actor(tmp_path: Path) -> None:
    """Each reserves and gives back its own; one that fails takes none of the others along."""

    class Actor:
        def fit(self, folder: Path) -> int:
            return fit(folder)[0]

    before = set(private.groups())
    in_task = ray.remote(num_cpus=0)(lambda folder: fit(folder)[0]).remote(tmp_path / "task")
    actor = ray.remote(num_cpus=0)(Actor).remote()
    in_actor = actor.fit.remote(tmp_path / "actor")
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(fit(tmp_path / "thread")[0]))
    thread.start()
    with pytest.raises(ZeroDivisionError):
        pl.Trainer(
            num_workers=1, max_epochs=1, default_root_dir=tmp_path / "fails", logger=False
        ).fit(Fails())
    thread.join(300)
    assert found == [2]
    assert ray.get([in_task, in_actor], timeout=300) == [2, 2]
    ray.kill(actor)
    assert set(private.groups()) == before


class Fails(TinyModel):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return 1 / 0


@pytest.mark.timeout(300)
def test_a_trial_run_on_two_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It leaves no file, also in folders of odd names; rank 0 alone gets MLflow's password."""
    folder = tmp_path / "what? a%20b ü"
    monkeypatch.setenv("SET_BETWEEN_FITS", "yes")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    fit(folder, num_workers=2, fast_dev_run=True, enable_checkpointing=None)
    said = "".join(capfd.readouterr())
    assert "rank 0 sees yes and hunter2" in said
    assert "[rank 1] rank 1 sees yes and None" in said
    assert not list(tmp_path.iterdir())


def test_a_fit_in_a_folder_of_an_odd_name(tmp_path: Path) -> None:
    folder = tmp_path / "what? a%20b ü#"
    logger = pl.MLFlowLogger("odd", save_dir=str(folder))
    _, trainer = fit(folder, logger=logger, enable_checkpointing=None)
    # mlflow itself makes an empty folder, named as the database's URI has it
    assert {path for path in tmp_path.iterdir() if list(path.iterdir())} == {folder}
    assert Path(trainer.checkpoint_callback.best_model_path).is_file()
    assert folder in Path(trainer.checkpoint_callback.best_model_path).parents
    assert (folder / "mlflow.db").is_file()
    logger.experiment.log_text(logger.run_id, "said", "note.txt")
    assert list(folder.rglob("artifacts/note.txt"))
