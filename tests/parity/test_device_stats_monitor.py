"""When DeviceStatsMonitor logs what; the values are those of the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.parity.harness import errors, loader, model_class, parity, rows, trainer


@parity
@pytest.mark.parametrize("cpu_stats", [None, True, False])
@pytest.mark.parametrize(
    "settings",
    [{}, {"accumulate_grad_batches": 2}, {"log_every_n_steps": 0}, {"val_check_interval": 2}],
    ids=str,
)
def test_rows(pl: Any, tmp_path: Path, settings: dict[str, Any], cpu_stats: bool | None) -> Any:
    class Two(model_class(pl)):  # type: ignore[misc]
        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return super().test_step(batch, batch_idx)

    callback = pl.callbacks.DeviceStatsMonitor(cpu_stats)
    one = trainer(
        pl,
        tmp_path,
        **{"callbacks": [callback], "logger": True, "log_every_n_steps": 2, **settings},
    )
    model = Two()
    one.fit(model, loader(5), loader(3, seed=1))
    one.validate(model, loader(3), verbose=False)
    one.test(model, [loader(3), loader(2)], verbose=False)
    ours = [
        sorted((key, value if key == "step" else "") for key, value in row.items())
        for row in rows(one)
    ]
    return [
        row
        for row in ours
        if cpu_stats is False or any("DeviceStatsMonitor" in key for key, _ in row)
    ] or ["none"]


@parity
def test_the_name_is_that_of_the_class(pl: Any, tmp_path: Path) -> Any:
    class Mine(pl.callbacks.DeviceStatsMonitor):  # type: ignore[misc]
        pass

    Mine.__qualname__ = "Mine"
    one = trainer(pl, tmp_path, callbacks=[Mine()], logger=True, log_every_n_steps=1)
    one.fit(model_class(pl)(), loader(2))
    return sorted({key for row in rows(one) for key in row})


@errors
def test_without_a_logger(pl: Any, tmp_path: Path) -> Any:
    trainer(pl, tmp_path, callbacks=[pl.callbacks.DeviceStatsMonitor()]).fit(
        model_class(pl)(), loader(2)
    )


@parity
def test_without_a_logger_evaluation_runs(pl: Any, tmp_path: Path) -> Any:
    return trainer(
        pl, tmp_path, callbacks=[pl.callbacks.DeviceStatsMonitor()], log_every_n_steps=1
    ).test(model_class(pl)(), loader(2), verbose=False)
