"""A signal to the driver of a fit on Ray workers.

The run is saved, and nothing of it stays on the cluster.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raylit.errors import Terminated
from raylit.launch.on_ray.private import groups
from tests.actors import left_of_fits
from tests.callbacks.checkpoints.test_recovery_checkpoint import (
    At,
    Tiny,
    loader,
    names,
    terminate,
    trainer,
)
from tests.deadlines import stretched

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

SCRIPT = """
import sys
import time
import raylit as pl
from raylit.testing.modules import TinyModel

FOLDER = sys.argv[1]

class Slow(TinyModel):
    def training_step(self, batch, batch_idx):
        time.sleep(0.2)
        if self.trainer.progress.total_batches == 4:
            open(FOLDER + "/going", "w").close()
        return super().training_step(batch, batch_idx)

pl.Trainer(
    num_workers=2, max_epochs=1000, default_root_dir=FOLDER, logger=False,
    enable_progress_bar=False,
).fit(Slow())
"""


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)]
)
def test_the_run_is_saved_and_nothing_stays(
    number: signal.Signals, ray_cluster: str, tmp_path: Path
) -> None:
    before = set(groups())
    env = os.environ | {"RAY_ADDRESS": ray_cluster}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path)],
        env=env,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + stretched(90)
        while not (tmp_path / "going").exists():
            assert process.poll() is None and time.monotonic() < deadline, process.communicate(
                timeout=1
            )[1]
            time.sleep(0.1)
        process.send_signal(number)
        errors = process.communicate(timeout=stretched(60))[1]
    finally:
        process.kill()
    if number == signal.SIGTERM:
        assert process.returncode == 143, errors
    else:
        assert process.returncode and errors.rstrip().endswith("KeyboardInterrupt"), errors
    assert "Saving the run after this batch" in errors
    assert list((tmp_path / "checkpoints" / "recovery").glob("*.ckpt")), errors
    assert left_of_fits(ray_cluster) == []
    assert set(groups()) <= before


def test_a_fit_in_a_process_that_uses_ray_ends_after_its_batch(tmp_path: Path) -> None:
    with pytest.raises(Terminated):
        trainer(tmp_path, At(7, terminate)).fit(Tiny(), loader(8))
    assert names(tmp_path / "checkpoints" / "recovery") == ["batch=7.ckpt"]
