"""`import lightning` finds raylit, in every process that works for the one that asked for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.deadlines import stretched

SCRIPT = """
import sys
import lightning as L
import lightning.pytorch as pl
import pytorch_lightning
import torch
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.callbacks.lr_monitor import LearningRateMonitor
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector
from lightning.pytorch.utilities.rank_zero import rank_prefixed_message, rank_zero_only


class Model(BoringModel):
    def on_train_start(self):
        import lightning.pytorch.callbacks.lr_monitor as again
        import mine

        assert again.LearningRateMonitor is LearningRateMonitor
        assert isinstance(self, mine.pl.LightningModule)
        self.register_buffer("seen", torch.ones(()))

    def state_dict(self, *args, **kwargs):
        found = super().state_dict(*args, **kwargs)
        found.setdefault("seen", torch.zeros(()))
        return found


if __name__ == "__main__":
    workers = int(sys.argv[1])
    model = Model()
    model.register_buffer("seen", torch.zeros(()))
    trainer = L.Trainer(max_steps=1, num_workers=workers, logger=False, enable_progress_bar=False,
                        enable_model_summary=False, enable_checkpointing=False)
    trainer.fit(model)
    loader = torch.utils.data.DataLoader(RandomDataset(32, 4), num_workers=1,
                                         multiprocessing_context="spawn")
    print(L.__version__, pl.__version__, pytorch_lightning is pl, pl.Trainer.__module__,
          int(model.seen), len(list(loader)), _AcceleratorConnector()._accelerator_flag,
          rank_prefixed_message("x", 1))
"""


def run(code: str, tmp_path: Path, *command: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "script.py").write_text(code)
    (tmp_path / "mine.py").write_text("import pytorch_lightning as pl\n")
    return subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=stretched(180),
        check=False,
    )


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=[pytest.mark.ray, pytest.mark.long])])
def test_a_script_runs_unchanged(tmp_path: Path, workers: int) -> None:
    done = run(SCRIPT, tmp_path, "-m", "raylit.as_lightning", "script.py", str(workers))
    assert done.returncode == 0, done.stderr
    *_, said = done.stdout.splitlines()
    assert said == "2.6.6 2.6.6 True raylit.trainer.trainer 1 4 cpu [rank: 1] x"
    assert done.stderr.count("raylit stands in for lightning 2.6.6") == 1


def test_it_is_an_error_after_the_real_lightning(tmp_path: Path) -> None:
    done = run("import lightning.pytorch\nimport raylit.as_lightning\n", tmp_path, "script.py")
    assert done.returncode == 1
    assert "raylit.as_lightning came too late: lightning, lightning.fabric," in done.stderr


MODULES = """
accelerators accelerators.cpu callbacks callbacks.lr_monitor callbacks.progress.rich_progress
callbacks.progress.tqdm_progress cli core core.hooks core.mixins core.mixins.hparams_mixin
core.saving demos demos.boring_classes demos.transformer loggers loggers.csv_logs loops
loops.fit_loop overrides.distributed plugins plugins.environments plugins.io
plugins.io.async_plugin plugins.precision plugins.precision.amp profilers strategies strategies.ddp
strategies.single_device trainer trainer.states trainer.connectors.accelerator_connector tuner
tuner.lr_finder tuner.tuning utilities utilities.compile utilities.exceptions
utilities.model_summary utilities.model_summary.model_summary utilities.parsing utilities.types
"""


def test_modules_of_lightning_are_found(tmp_path: Path) -> None:
    code = f"""
import importlib
import raylit.as_lightning
for name in {MODULES.split()!r}:
    one, other = (importlib.import_module(f"{{package}}.{{name}}")
                  for package in ("lightning.pytorch", "pytorch_lightning"))
    assert one is other, name
try:
    import lightning.pytorch.no_such_thing
except ModuleNotFoundError as error:
    print(error)
try:
    from lightning import Fabric
except ImportError as error:
    print(error)
"""
    done = run(code, tmp_path, "script.py")
    assert done.returncode == 0, done.stderr
    assert "raylit, which stands in for Lightning, has none" in done.stdout


def test_a_script_that_is_not_there(tmp_path: Path) -> None:
    done = run("", tmp_path, "-m", "raylit.as_lightning", "other.py")
    assert done.returncode == 1
    assert "there is no file 'other.py'" in done.stderr


def test_tests_run_unchanged(tmp_path: Path) -> None:
    test = (
        "import lightning.pytorch as pl\n\n\n"
        "def test_it():\n    assert pl.Trainer.__module__ == 'raylit.trainer.trainer'\n"
    )
    (tmp_path / "test_own.py").write_text(test)
    done = run("", tmp_path, "-m", "pytest", "-q", "-p", "raylit.as_lightning", "test_own.py")
    assert done.returncode == 0 and "1 passed" in done.stdout, done
