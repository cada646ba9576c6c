from __future__ import annotations

import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import raylit as pl
from raylit.callbacks import Callback, ThroughputMonitor
from raylit.errors import ConfigError
from raylit.runtime.throughput import Throughput, get_available_flops, peak_flops
from raylit.testing import CallbackConformance, TinyModel
from tests.ranks import run_on_two_ranks


class TestThroughputMonitor(CallbackConformance):
    trainer_arguments: dict[str, Any] = {"logger": True}  # noqa: RUF012

    @pytest.fixture
    def make(self) -> Callable[[], Callback]:
        return lambda: ThroughputMonitor(len, window_size=2)


class Slow(TinyModel):
    """Each batch takes 10 ms, each validation half a second."""

    flops_per_batch = 500

    def training_step(self, *args: Any) -> Any:
        time.sleep(0.01)
        return super().training_step(*args)

    def on_validation_epoch_start(self) -> None:
        time.sleep(0.5)


def values(folder: Path | str, name: str) -> list[float]:
    (path,) = Path(folder).rglob("metrics.csv")
    with path.open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def fit(folder: Path | str, **arguments: Any) -> None:
    pl.Trainer(
        callbacks=ThroughputMonitor(len, **arguments),
        default_root_dir=folder,
        logger=pl.CSVLogger(folder, version=0),
        max_epochs=3,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_checkpointing=False,
        accelerator="cpu",
    ).fit(Slow())


def test_validation_is_not_in_the_time_of_training(tmp_path: Path) -> None:
    fit(tmp_path, window_size=4, available_flops=1e6)
    rates = values(tmp_path, "train/device/batches_per_sec")
    assert rates
    assert all(8 < rate <= 100 for rate in rates)  # with the validations it would be about 6
    assert values(tmp_path, "train/device/mfu") == pytest.approx(
        [rate / 1e6 for rate in values(tmp_path, "train/device/flops_per_sec")], rel=1e-4
    )


def fit_on_two(folder: str) -> None:
    fit(folder, window_size=2)


def test_ranks_are_added_up(tmp_path: Path) -> None:
    run_on_two_ranks(fit_on_two, tmp_path)
    alone, together = (
        values(tmp_path, f"train/{device}samples_per_sec") for device in ("device/", "")
    )
    assert alone
    assert together == pytest.approx([2 * rate for rate in alone], rel=1e-4)


@pytest.mark.parametrize("arguments", [{"world_size": 0}, {"window_size": 1}], ids=str)
def test_bad_arguments(arguments: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least 1 device and a window of at least 2"):
        Throughput(**arguments)


def test_peaks() -> None:
    assert get_available_flops(torch.device("cpu"), torch.float32) is None
    for name, dtype, expected in [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989.5e12),
        ("NVIDIA H100 PCIe", torch.bfloat16, 756e12),
        ("NVIDIA H100 NVL", torch.float16, 835.5e12),
        ("NVIDIA H200", torch.bfloat16, 989.5e12),
        ("NVIDIA A100-SXM4-40GB", torch.float32, 19.5e12),
        ("NVIDIA A10G", torch.float16, 70e12),
        ("NVIDIA A10", torch.float16, 125e12),
        ("NVIDIA L4", torch.float16, 121e12),
        ("NVIDIA L40S", torch.float16, 362e12),
        ("NVIDIA L40", torch.float16, 181e12),
        ("Tesla T4", torch.float16, 65e12),
        ("Tesla T4", torch.bfloat16, None),
        ("Tesla V100-PCIE-16GB", torch.float16, 112e12),
        ("Tesla V100-SXM2-32GB", torch.float32, 15.7e12),
        ("NVIDIA A100-SXM4-40GB", torch.int8, None),
        ("NVIDIA T400", torch.float16, None),
        ("NVIDIA RTX A4000", torch.float16, None),
        ("Some other chip", torch.float32, None),
    ]:
        assert peak_flops(name, dtype) == expected, name


def test_float32_may_be_computed_as_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert peak_flops("NVIDIA A100-SXM4-40GB", torch.float32) == 156e12
        assert peak_flops("Tesla V100-SXM2-32GB", torch.float32) == 15.7e12
    finally:
        torch.set_float32_matmul_precision(before)
