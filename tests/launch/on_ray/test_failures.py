"""What goes wrong on Ray workers, one thing after another in one fit, changes no weights.

The weights are those of the fit in which nothing went wrong.
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
from raylit.errors import LaunchError
from raylit.launch.on_ray.failure import failure_of
from raylit.launch.on_ray.mailbox import reasons_of
from raylit.launch.on_ray.private import groups
from raylit.launch.on_ray.watch import FIRST_S
from tests.deadlines import stretched
from tests.lazy import ray
from tests.quiet import UNLOGGED

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
HANGS_S = 8  # until the other ranks lose patience


class Fragile(pl.LightningModule):
    """A regression in which rank 1 fails once in each of the named ways.

    It does so the first time it comes to a batch.
    """

    def __init__(self, faults: dict[int, str], folder: Path) -> None:
        super().__init__()
        self.net = nn.Linear(3, 1)
        self.faults, self.folder = faults, folder

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        fault = self.faults.get(self.trainer.progress.total_batches)
        if fault and self.global_rank == 1 and not (self.folder / fault).exists():
            (self.folder / fault).touch()
            self.fail(fault)
        loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def fail(self, fault: str) -> None:
        if fault == "raise":
            raise ArithmeticError("a bad batch")
        if fault == "hang":
            time.sleep(1000)
        os.kill(os.getpid(), {"terminate": signal.SIGTERM, "kill": signal.SIGKILL}[fault])
        time.sleep(1.5)  # until the signal is seen

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.05)


def fit(folder: Path, faults: dict[int, str], **arguments: Any) -> dict[str, Tensor]:
    folder.mkdir()
    torch.manual_seed(0)
    module = Fragile(faults, folder)
    x = torch.randn(48, 3, generator=torch.Generator().manual_seed(1))
    batch_size = 4 if arguments.get("num_workers") else 8
    saver = pl.callbacks.RecoveryCheckpoint(every_n_steps=1)
    trainer = pl.Trainer(
        max_epochs=4,
        default_root_dir=folder,
        callbacks=[saver],
        **UNLOGGED,
        **arguments,
    )
    trainer.fit(module, DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size))
    return dict(module.state_dict())


RESTARTS = {
    "raise": "Restart {} of {}, from the newest checkpoint: rank 1: ArithmeticError: a bad batch.",
    "terminate": (
        "Restart {} because of a notice that a node goes away, from the newest checkpoint."
    ),
    "hang": r"Restart {} of {}.*rank 0.*Timed out",
    "kill": "Restart {} of {}",
}


@pytest.mark.timeout(stretched(150))
@pytest.mark.parametrize(
    "faults",
    [
        {5: "raise", 9: "terminate"},
        pytest.param({5: "raise", 9: "hang", 15: "terminate", 19: "kill"}, marks=pytest.mark.long),
    ],
)
def test_every_failure_ends_in_a_restart(
    faults: dict[int, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RAYLIT_TIMEOUT_S", str(HANGS_S))
    whole = fit(tmp_path / "whole", {})
    num_failures = len(faults) - 1  # a notice is none
    pieces = fit(
        tmp_path / "pieces",
        faults,
        num_workers=2,
        max_failures=ray.train.FailureConfig(num_failures),
    )
    assert {path.name for path in (tmp_path / "pieces").iterdir()} > {*faults.values()}
    for name, value in whole.items():
        torch.testing.assert_close(pieces[name], value, rtol=1e-5, atol=1e-6)
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("Restart")]
    assert len(told) == len(faults)
    failed = 0
    for line, fault in zip(told, faults.values(), strict=True):
        failed += fault != "terminate"
        number = 1 if fault == "terminate" else failed
        assert re.match(RESTARTS[fault].format(number, num_failures), line)


@pytest.mark.long
def test_preemptions_have_a_budget_of_their_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    holder = ray.remote(num_cpus=3)(Holder).remote()
    ray.get(holder.is_there.remote())
    threading.Timer(FIRST_S + 3, ray.kill, [holder]).start()
    with pytest.raises(LaunchError, match="max_preemption_failures=0"):
        fit(
            tmp_path / "run",
            {5: "terminate"},
            num_workers=2,
            max_failures=ray.train.FailureConfig(max_preemption_failures=0),
        )
    assert re.search(
        r"Waiting .* since \d+ s: 2 workers ask for 2 CPU; it has 4 CPU \(\d free\) on 1 node",
        capfd.readouterr().err,
    )
    assert not [group for group in groups().values() if group["name"].startswith("fit-")]


class Holder:
    """An actor that takes its CPUs from others."""

    def is_there(self) -> None:
        """Answers once it has them."""


def test_a_traceback_begins_with_the_lines_of_the_user() -> None:
    try:
        torch.zeros(2) + torch.zeros(3)
    except RuntimeError as error:
        failure = failure_of(error)
    lines = failure.text.splitlines()
    assert "test_failures.py" in lines[1]
    assert reasons_of({1: failure, 0: ValueError("lost")}) == [
        "rank 0: lost",
        f"rank 1: {lines[-1]}",
    ]


class HangsOnce(Fragile):
    """Alone, it hangs in its third batch, once."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if self.trainer.progress.total_batches == 3 and not (self.folder / "hung").exists():
            (self.folder / "hung").touch()
            time.sleep(1000)
        return super().training_step(batch, batch_idx)


@pytest.mark.long
def test_a_single_worker_that_hangs_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAYLIT_TIMEOUT_S", "3")
    module, x = HangsOnce({}, tmp_path), torch.ones(24, 3)
    saver = pl.callbacks.RecoveryCheckpoint(every_n_steps=1, every_s=None)
    trainer = pl.Trainer(
        max_epochs=1,
        num_workers=1,
        max_failures=1,
        default_root_dir=tmp_path,
        callbacks=[saver],
        **UNLOGGED,
    )
    trainer.fit(module, DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), 4))
    said = capfd.readouterr().err
    assert (
        re.search(
            r"Rank 0 has not reached its next batch for \d+ s and is stopped now\. It is here:",
            said,
        )
        and "time.sleep(1000)" in said
    )
    assert "Restart 1 of 1, from the newest checkpoint" in said
    assert trainer.global_step == 6
