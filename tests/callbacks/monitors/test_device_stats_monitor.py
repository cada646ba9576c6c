from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import raylit as pl
from raylit.callbacks import Callback, DeviceStatsMonitor
from raylit.callbacks.monitors.device_stats_monitor import stats_of
from raylit.errors import MissingPackageError
from raylit.testing import CallbackConformance, TinyModel


class TestDeviceStatsMonitor(CallbackConformance):
    trainer_arguments: dict[str, Any] = {"logger": True}  # noqa: RUF012

    @pytest.fixture
    def make(self) -> Callable[[], Callback]:
        return DeviceStatsMonitor


def test_percentages_are_percentages() -> None:
    values = stats_of(torch.device("cpu"), None)
    assert set(values) == {"cpu_percent", "cpu_vm_percent", "cpu_swap_percent"}
    assert all(0 <= value <= 100 * 1024 for value in values.values())
    assert 0 < values["cpu_vm_percent"] <= 100
    assert stats_of(torch.device("cpu"), False) == {}
    assert set(stats_of(torch.device("mps"), None)) == {
        "M1_percent",
        "M1_vm_percent",
        "M1_swap_percent",
    }


@pytest.mark.parametrize("cpu_stats", [None, True, False])
def test_without_psutil(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_stats: bool | None
) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    trainer = pl.Trainer(
        callbacks=DeviceStatsMonitor(cpu_stats),
        default_root_dir=tmp_path,
        max_epochs=1,
        enable_progress_bar=False,
        log_every_n_steps=1,
    )
    if cpu_stats is False:
        trainer.fit(TinyModel())
    else:
        with pytest.raises(MissingPackageError, match=r"psutil.*pip install psutil"):
            trainer.fit(TinyModel())
