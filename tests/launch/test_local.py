from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import raylit as pl
from raylit.errors import Terminated
from raylit.launch import Launcher, LocalLauncher
from raylit.loggers import CSVLogger
from raylit.testing import LauncherConformance, TinyModel
from tests.deadlines import stretched


class TestLocalLauncher(LauncherConformance):
    @pytest.fixture
    def make(self) -> Callable[[], Launcher]:
        return LocalLauncher


def settings(folder: Path) -> dict[str, Any]:
    return {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }


def test_the_objects_are_used_as_they_are(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Sees(pl.Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            seen.extend([trainer, pl_module, self])

    callback, model = Sees(), TinyModel()
    trainer = pl.Trainer(
        max_epochs=1, callbacks=callback, enable_checkpointing=False, **settings(tmp_path)
    )
    trainer.fit(model)
    assert seen == [trainer, model, callback]


def test_no_process_is_started(tmp_path: Path) -> None:
    script = (
        "import sys, raylit as pl; from raylit.testing import TinyModel\n"
        f"pl.Trainer(max_epochs=1, **{settings(tmp_path)!r}).fit(TinyModel())\n"
        "print(*{'ray', 'mlflow', 'pyarrow', 'pytest'} & set(sys.modules))\n"
    ).replace("PosixPath", "str")
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=stretched(120),
        check=True,
    )
    assert done.stdout.split() == []


class Ends(TinyModel):
    """Is asked to end while it is being set up."""

    def setup(self, stage: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)


class Statuses(CSVLogger):
    """Keeps how its runs ended."""

    ended: list[str] = []  # noqa: RUF012

    def close(self, status: str) -> None:
        self.ended.append(status)


def test_sigterm_during_setup_ends_the_run_as_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Statuses, "ended", [])
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        trainer = pl.Trainer(max_epochs=1, **{**settings(tmp_path), "logger": Statuses(tmp_path)})
        with pytest.raises(Terminated) as raised:
            trainer.fit(Ends())
        assert raised.value.code == 143
        assert Statuses.ended == ["killed"]
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        seen: list[int] = []
        own = lambda number, frame: seen.append(number)  # noqa: E731
        signal.signal(signal.SIGTERM, own)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        trainer.fit(Ends())
        assert seen == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


def test_under_torchrun_this_process_is_one_of_the_ranks(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    script = tmp_path / "script.py"
    script.write_text(
        "import torch, raylit as pl; from raylit.testing import"
        " TinyModel\ntorch.manual_seed(0)\nmodel = TinyModel()\ntrainer = pl.Trainer(max_epochs=1,"
        f" enable_checkpointing=False, **{settings(tmp_path)!r})\n".replace("PosixPath", "str")
        + "result = trainer.fit(model)\n"
        f"torch.save((result.steps, model.layer.weight), {str(tmp_path)!r} +"
        ' f\'/{__import__("os").environ["RANK"]}.pt\')\n'
    )
    env = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "TORCHELASTIC_RUN_ID": "test",
        "OMP_NUM_THREADS": "1",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, script], env={**os.environ, **env, "RANK": r, "LOCAL_RANK": r}
        )
        for r in "01"
    ]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    (steps, weight), (other_steps, other_weight) = (
        torch.load(tmp_path / f"{rank}.pt") for rank in "01"
    )
    assert steps == other_steps == 2
    assert torch.equal(weight, other_weight)
