"""One rank, apart from the launcher that waits for it; whole fits: test_process_launcher.py."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest
import torch

import raylit as pl
from raylit.callbacks import ModelCheckpoint
from raylit.checkpoint import find
from raylit.core.job import Job
from raylit.launch.processes.carried import failures_in, num_failed, result_in
from raylit.launch.processes.launcher import RANK_MAIN
from raylit.launch.processes.rank import JOB, SEED, SETTINGS, RankSettings, be_forked
from raylit.launch.processes.screen import drawing
from raylit.parallel.meeting import before_group
from raylit.testing import TinyModel
from tests.deadlines import stretched
from tests.quiet import trainer


class Tells(TinyModel):
    """Writes down what its process is like when training begins, and the epochs that it trains."""

    def on_fit_start(self) -> None:
        seen = {
            "rank": self.global_rank,
            "size": self.trainer.world_size,
            "draw": float(torch.rand(())),
            "seed": os.environ.get(SEED),
            "is_leader": os.getsid(0) == os.getpid(),
            "ignores": signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
            "threads": torch.get_num_threads(),
        }
        Path(self.trainer.default_root_dir, f"seen-{self.global_rank}").write_text(json.dumps(seen))

    def on_train_epoch_start(self) -> None:
        with Path(self.trainer.default_root_dir, f"epochs-{self.global_rank}").open("a") as file:
            file.write(f"{self.current_epoch}\n")


class Fails(TinyModel):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        raise LookupError("bad batch")


def job_of(folder: Path, model: pl.LightningModule, *callbacks: Any, **arguments: Any) -> Job:
    return Job("fit", trainer(folder, *callbacks, **arguments), model, returns_state=True)


def plan_of(size: int = 1, **more: Any) -> RankSettings:
    usual: dict[str, Any] = {
        "parent": os.getpid(),
        "timeout_s": stretched(30),
        "backend": None,
        "seed": None,
        "before": {},
        "search_path": (),
        "imports": (),
        "draws": False,
    }
    return RankSettings(size=size, **{**usual, **more})


def forked(job: Job, settings: RankSettings, folder: Path) -> list[int | None]:
    """Fork all ranks of a job, and return their exit codes."""
    folder.mkdir(exist_ok=True)
    before_group()  # once for all tests, rather than a second in each rank
    context = multiprocessing.get_context("fork")
    ranks = [
        context.Process(target=be_forked, args=(job, settings, folder, rank))
        for rank in range(settings.size)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(stretched(60))
    return [rank.exitcode for rank in ranks]


def seen(folder: Path, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"seen-{rank}").read_text())
    return found


def epochs(folder: Path) -> list[int]:
    """The epochs that rank 0 has trained since this was asked last."""
    file = folder / "epochs-0"
    found = [int(line) for line in file.read_text().split()]
    file.unlink()
    return found


def test_forked_ranks_are_alike_but_for_what_they_draw(tmp_path: Path) -> None:
    """And have nothing of what the parent does at a Ctrl-C, which the parent hands on."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        codes = forked(job_of(tmp_path, Tells()), plan_of(2, seed="5"), tmp_path / "job")
    finally:
        signal.signal(signal.SIGINT, before)
    assert codes == [0, 0]
    first, second = (seen(tmp_path, rank) for rank in range(2))
    assert (first["rank"], second["rank"]) == (0, 1)
    assert first.pop("draw") != second.pop("draw"), "which is dropout, not the weights"
    expected = {"size": 2, "seed": "5", "is_leader": True, "ignores": False, "threads": 1}
    for rank, found in enumerate((first, second)):
        assert found == {"rank": rank, **expected}
    result = result_in(tmp_path / "job")
    assert result is not None and result.epochs == 1
    assert num_failed(tmp_path / "job") == 0


def test_a_rank_goes_on_from_what_its_own_job_has_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is started again, but not from what was there before its job began."""
    monkeypatch.delenv(SEED, raising=False)
    saver = ModelCheckpoint(tmp_path / "ckpt")
    job = job_of(tmp_path, Tells(), saver, enable_checkpointing=None)
    assert forked(job, plan_of(), tmp_path / "first") == [0]
    assert epochs(tmp_path) == [0]
    assert seen(tmp_path, 0)["seed"] is None, "none was set"
    old = find.times_of([str(tmp_path / "ckpt")])
    assert len(old) == 1
    job.trainer.max_epochs = 2
    assert forked(job, plan_of(before=old), tmp_path / "anew") == [0]
    assert epochs(tmp_path) == [0, 1]
    job.trainer.max_epochs = 3
    assert forked(job, plan_of(before=old), tmp_path / "again") == [0]
    assert epochs(tmp_path) == [2]


def test_a_rank_that_fails_leaves_why_and_is_no_failure_to_torch(tmp_path: Path) -> None:
    """Torch's launcher would kill the others for it, before they have saved."""
    assert forked(job_of(tmp_path, Fails()), plan_of(), tmp_path / "job") == [0]
    assert result_in(tmp_path / "job") is None
    (failure,) = failures_in(tmp_path / "job")
    assert failure.rank == 0 and not failure.is_consequence
    with pytest.raises(LookupError, match="bad batch"):
        failure.raise_original()


def test_a_rank_without_its_parent_does_not_begin(tmp_path: Path) -> None:
    """It may have died before the rank could ask to be told."""
    settings = plan_of(parent=os.getppid())
    assert forked(job_of(tmp_path, Tells()), settings, tmp_path / "job") == [1]
    assert not (tmp_path / "seen-0").exists() and result_in(tmp_path / "job") is None


@pytest.mark.parametrize("is_drawn_here", [True, False])
def test_the_parent_draws_rank_0_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    is_drawn_here: bool,
) -> None:
    kernel = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setitem(sys.modules, "IPython", kernel)  # type: ignore[arg-type]
    monkeypatch.setenv("RAYLIT_PROGRESS", "plain")
    job = job_of(tmp_path, TinyModel(), enable_progress_bar=True, limit_val_batches=0)
    folder = tmp_path / "job"
    folder.mkdir()
    printed: list[str] = []
    monkeypatch.setattr(
        "raylit.callbacks.display.screen.PlainScreen.print",
        lambda self, text: printed.append(text),
    )
    with drawing(folder):
        assert forked(job, plan_of(2, draws=is_drawn_here), folder) == [0, 0]
    shown = [line for line in printed if line.startswith("epoch 1/1")]
    assert len(shown) == is_drawn_here
    assert capfd.readouterr().out == ""


def in_a_new_process(folder: Path, rank: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", RANK_MAIN, str(folder), str(rank)],
        capture_output=True,
        text=True,
        timeout=stretched(60),
        check=False,
    )


LAB = """
from raylit.testing import TinyModel

class Net(TinyModel):
    pass
"""


@pytest.mark.long
def test_a_new_rank_finds_what_its_parent_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modules beside the parent's script, after those that change what other imports find.

    A rank that cannot says so by the same files.
    """
    (tmp_path / "code").mkdir()
    (tmp_path / "code/lab_of_a_rank.py").write_text(LAB)
    mark = tmp_path / "imported"
    (tmp_path / "code/first_of_a_rank.py").write_text(
        f"import sys\nopen({str(mark)!r}, 'w').write(str('lab_of_a_rank' in sys.modules))\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "code")
    net: Any = __import__("lab_of_a_rank").Net
    job = job_of(tmp_path, net())
    settings = plan_of(search_path=(str(tmp_path / "code"),), imports=("first_of_a_rank",))
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / JOB).write_bytes(cloudpickle.dumps(job))
    for number, given in enumerate((replace(settings, search_path=(), imports=()), settings)):
        (folder / SETTINGS).write_bytes(pickle.dumps(given))
        done = in_a_new_process(folder, 0)
        assert done.returncode == (1, 0)[number], done
        if number == 0:
            assert done.stderr == "", "its parent says it"
            (failure,) = failures_in(folder)
            with pytest.raises(ModuleNotFoundError, match="lab_of_a_rank"):
                failure.raise_original()
            assert failure.rank == 0 and result_in(folder) is None
    assert mark.read_text() == "False"
    result = result_in(folder)
    assert result is not None and result.epochs == 1
