"""Fits where Ray is already in use: in threads, in a task, in an actor, in a job."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import raylit as pl
from raylit.launch.on_ray import private
from raylit.testing import TinyModel
from tests.deadlines import stretched
from tests.lazy import ray

ROOT = Path(__file__).parents[3]
pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


class Told(TinyModel):
    """Learns what its process sees of the driver's environment, and its prints are heard."""

    def on_fit_start(self) -> None:
        self.variable = os.environ.get("SET_BETWEEN_FITS")
        self.password = os.environ.get("MLFLOW_TRACKING_PASSWORD")
        self.batches_left = self.trainer.fast_dev_run
        print(f"rank {self.global_rank} sees {self.variable} and {self.password}")

    def on_train_epoch_end(self) -> None:
        self.log("sees_own", float(self.variable == "the task's"))


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


def fits_in_a_thread_while_another_fails(folder: Path) -> int:
    """Return the epochs of the first, which the end of the other must not touch."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(fit(folder / "thread")[0]))
    thread.start()
    with pytest.raises(ZeroDivisionError):
        pl.Trainer(
            num_workers=1, max_epochs=1, default_root_dir=folder / "fails", logger=False
        ).fit(Fails())
    thread.join(300)
    return int(found[0])


@pytest.mark.timeout(300)
def test_a_fit_that_fails_takes_none_of_the_others_along(tmp_path: Path) -> None:
    before = set(private.groups())
    assert fits_in_a_thread_while_another_fails(tmp_path) == 2
    assert set(private.groups()) == before


@pytest.mark.long
@pytest.mark.timeout(600)
def test_fits_at_once_in_a_thread_a_task_and_an_actor(tmp_path: Path) -> None:
    """Each reserves and gives back its own; one that fails takes none of the others along."""

    class Actor:
        def fit(self, folder: Path) -> int:
            return fit(folder)[0]

    def task(folder: Path) -> tuple[int, float]:
        epochs, trainer = fit(folder)
        return epochs, float(trainer.callback_metrics["sees_own"])

    before = set(private.groups())
    own = {"env_vars": {"SET_BETWEEN_FITS": "the task's"}}
    in_task = ray.remote(num_cpus=0, runtime_env=own)(task).remote(tmp_path / "task")
    actor = ray.remote(num_cpus=0)(Actor).remote()
    in_actor = actor.fit.remote(tmp_path / "actor")
    assert fits_in_a_thread_while_another_fails(tmp_path) == 2
    assert ray.get([in_task, in_actor], timeout=300) == [(2, 1.0), 2]
    ray.kill(actor)
    assert set(private.groups()) == before


JOB = """
import os
import ray
import raylit as pl
import its_own
from raylit.testing import TinyModel

class Said(TinyModel):
    def on_fit_start(self):
        variables = os.environ.get("OF_THE_JOB"), os.environ.get("OF_INIT")
        print("worker:", *variables, its_own.NAME)

ray.init(runtime_env={"env_vars": {"OF_INIT": "of ray.init"}})
trainer = pl.Trainer(num_workers=1, max_epochs=2, default_root_dir="FOLDER", logger=False)
assert trainer.fit(Said()).epochs == 2
"""


@pytest.mark.long
@pytest.mark.timeout(stretched(300))
def test_a_fit_in_a_ray_job_with_a_runtime_environment_of_its_own(tmp_path: Path) -> None:
    """Its variables, those of its `ray.init`, and modules of its working directory."""
    from ray.job_submission import JobStatus, JobSubmissionClient

    work = tmp_path / "work"
    work.mkdir()
    (work / "train.py").write_text(JOB.replace("FOLDER", str(tmp_path / "out")))
    (work / "its_own.py").write_text("NAME = 'module'\n")
    client = JobSubmissionClient(f"http://{private.dashboard_url()}")
    job = client.submit_job(
        entrypoint="python train.py",
        runtime_env={
            "working_dir": str(work),
            "env_vars": {"OF_THE_JOB": "of the job", "PYTHONPATH": str(ROOT)},
        },
    )
    while not client.get_job_status(job).is_terminal():
        time.sleep(0.5)
    said = client.get_job_logs(job)
    assert client.get_job_status(job) == JobStatus.SUCCEEDED, said
    assert "worker: of the job of ray.init module" in said
    assert list((tmp_path / "out").rglob("*.ckpt"))


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


@pytest.mark.long
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
