"""One job after the other on the same Ray workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch.utils.data import DataLoader

import raylit as pl
from raylit.launch import Launcher
from raylit.launch.on_ray.pool import KeptWorkers
from raylit.launch.on_ray.private import groups
from raylit.testing import LauncherConformance, RandomDataset, TinyModel
from raylit.testing.launchers import Fails, Mistake
from tests import quiet
from tests.deadlines import stretched

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def kept(ray_cluster: str) -> Iterator[KeptWorkers]:
    workers = KeptWorkers()
    yield workers
    workers.release()


class TestKeptWorkers(LauncherConformance):
    """All that holds of a launcher, on workers that did other jobs before."""

    trainer_arguments = {"num_workers": 2}  # noqa: RUF012
    num_ranks = 2

    @pytest.fixture
    def make(self, kept: KeptWorkers) -> Callable[[], Launcher]:  # type: ignore[override]
        return lambda: kept

    def test_the_user_s_exception_is_raised_here(self, trainer: Callable[..., pl.Trainer]) -> None:
        """With the traceback of the worker."""
        with pytest.raises(Mistake, match="in the third step") as raised:
            trainer().fit(self.model(Fails))
        assert "Mistake: in the third step\n(raylit) rank" in str(raised.value.__cause__)
        assert trainer(max_epochs=1).fit(self.model()).epochs == 1


class Process(pl.Callback):
    """Writes down the processes that fit and test; in a second fit rank 1 kills its own once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        with (self.folder / f"{stage}-{trainer.global_rank}").open("a") as file:
            file.write(f"{os.getpid()}\n")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if (
            (self.folder / "kill").exists()
            and trainer.global_rank == 1
            and trainer.global_step == 3
        ):
            (self.folder / "kill").unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    def processes(self, stage: str) -> list[list[str]]:
        return [(self.folder / f"{stage}-{rank}").read_text().split() for rank in range(2)]


trainer = partial(quiet.trainer, num_workers=2, max_epochs=2, enable_checkpointing=None)


def model() -> TinyModel:
    torch.manual_seed(0)
    made = TinyModel()
    made.dropout.p = 0.0
    return made


def loader() -> DataLoader[Any]:
    return DataLoader(RandomDataset(32, 16), batch_size=2)


def test_jobs_in_one_block_share_workers_that_are_gone_after_it(tmp_path: Path) -> None:
    """A worker that dies is started anew, and goes on where the job that runs was saved."""
    process = Process(tmp_path)
    saver = pl.callbacks.RecoveryCheckpoint(tmp_path / "recovery", every_n_steps=1, every_s=None)
    ours = model()
    before = set(groups())
    with pl.keep_workers():
        trainer(tmp_path, callbacks=process, max_failures=1).fit(ours, loader())
        tested = trainer(tmp_path, callbacks=process, max_failures=1).test(
            ours, loader(), verbose=False
        )
        assert process.processes("fit") == process.processes("test")
        (tmp_path / "kill").touch()
        result = trainer(tmp_path, callbacks=[process, saver], max_failures=1).fit(ours, loader())
        trainer(tmp_path, callbacks=process, max_failures=1).validate(ours, loader(), verbose=False)
    assert set(groups()) == before
    assert not (tmp_path / "kill").exists()
    for ran, validated in zip(process.processes("fit"), process.processes("validate"), strict=True):
        assert [ran[0] == ran[1], ran[1] == ran[2], ran[2:] == validated] == [True, False, True]
    assert result.steps == 8
    here, theirs, whole = (
        trainer(tmp_path / "plain", num_workers=0),
        model(),
        DataLoader(RandomDataset(32, 16), batch_size=4),
    )
    here.fit(theirs, whole)
    tested_here = here.test(theirs, loader(), verbose=False)
    trainer(tmp_path / "plain", num_workers=0).fit(theirs, whole)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    assert tested == [pytest.approx(values) for values in tested_here]


@pytest.mark.long
def test_other_jobs_end_the_workers_and_start_their_own(tmp_path: Path) -> None:
    ours, theirs = model(), model()
    process = Process(tmp_path)
    before = set(groups())
    with pl.keep_workers():
        trainer(tmp_path, callbacks=process).fit(ours, loader())
        for pids in process.processes("fit"):
            os.kill(int(pids[-1]), signal.SIGKILL)  # between two jobs
        trainer(tmp_path, callbacks=process).test(ours, loader(), verbose=False)
        trainer(tmp_path, num_workers=1).test(ours, loader(), verbose=False)
        trainer(tmp_path, num_workers=0).validate(ours, loader(), verbose=False)
        # As many as there may be
        trainer(tmp_path, num_workers=(1, 4)).validate(ours, loader(), verbose=False)
        trainer(tmp_path, num_workers=2).fit(ours, loader())
    assert set(groups()) == before
    assert not {*process.processes("fit")[0]} & {*process.processes("test")[0]}
    for _ in range(2):
        trainer(tmp_path / "plain").fit(theirs, loader())
    assert all(
        torch.equal(ours.state_dict()[name], value) for name, value in theirs.state_dict().items()
    )


SCRIPT = """
import sys, time
import raylit as pl
from raylit.testing import TinyModel

folder = sys.argv[1]

class Slow(TinyModel):
    def training_step(self, batch, batch_idx):
        open(folder + "/trains", "w").close()
        time.sleep(0.1)
        return super().training_step(batch, batch_idx)

logger = pl.MLFlowLogger("kept", tracking_uri=f"sqlite:///{folder}/mlflow.db")
trainer = pl.Trainer(
    num_workers=2, max_epochs=-1, max_failures=1, default_root_dir=folder, logger=logger,
    accelerator="cpu",
)
with pl.keep_workers():
    trainer.validate(TinyModel())
    trainer.fit(Slow())
"""


@pytest.mark.long
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_job_that_runs_and_ends_the_workers(
    tmp_path: Path, number: int, code: int
) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "PYTHONPATH": str(ROOT)
    }
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path)]
    process = subprocess.Popen(command, env=env, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "trains").exists():
        assert process.poll() is None
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    _, said = process.communicate(timeout=stretched(60))
    assert process.returncode == code, said
    assert "Saving the run after this batch" in said and "Restart" not in said
    assert list(tmp_path.glob("mlruns/*/*/checkpoints/recovery/*.ckpt"))
    _, alive = psutil.wait_procs(children, timeout=stretched(30))
    assert not alive
