"""What users import of Lightning's is found under `raylit.as_lightning`, or refused by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.deadlines import stretched

SCRIPT = '''
import raylit.as_lightning
import importlib
import torch

NAMES = """
lightning.pytorch.accelerators CPUAccelerator CUDAAccelerator MPSAccelerator \
find_usable_cuda_devices
lightning.pytorch.plugins MixedPrecision HalfPrecision DoublePrecision TorchSyncBatchNorm \
CheckpointIO
lightning.pytorch.plugins.environments SLURMEnvironment LightningEnvironment TorchElasticEnvironment
lightning.pytorch.plugins.io TorchCheckpointIO AsyncCheckpointIO
lightning.pytorch.plugins.precision MixedPrecision
lightning.pytorch.strategies DDPStrategy FSDPStrategy SingleDeviceStrategy ParallelStrategy Strategy
lightning.pytorch.strategies.parallel ParallelStrategy
lightning.pytorch.strategies.single_device SingleDeviceStrategy
lightning.pytorch.strategies.model_parallel ModelParallelStrategy
lightning.pytorch.tuner.tuning Tuner
lightning.pytorch.tuner.lr_finder _LRFinder
lightning.pytorch.loops _FitLoop _EvaluationLoop
lightning.pytorch.loops.optimization.automatic _AutomaticOptimization
lightning.pytorch.overrides.distributed UnrepeatedDistributedSampler
lightning.pytorch.core.saving load_hparams_from_yaml save_hparams_to_yaml
lightning.pytorch.core.hooks DataHooks CheckpointHooks ModelHooks
lightning.pytorch.utilities.compile from_compiled to_uncompiled
lightning.pytorch.utilities.parsing AttributeDict
lightning.pytorch.utilities.memory is_oom_error is_cuda_out_of_memory
lightning.pytorch.utilities.model_summary ModelSummary LayerSummary get_human_readable_count
lightning.pytorch.demos Transformer LightningLSTM DemoModel BoringModel
lightning.pytorch.demos.boring_classes ManualOptimBoringModel BoringDataModuleNoLen
lightning.pytorch.demos.lstm SimpleLSTM SequenceSampler
lightning.pytorch.loggers CSVLogger TensorBoardLogger MLFlowLogger
lightning.pytorch.loggers.csv_logs ExperimentWriter
lightning.pytorch.loggers.logger merge_dicts DummyLogger
lightning.pytorch.callbacks.early_stopping EarlyStopping EarlyStoppingReason
lightning.pytorch.callbacks.finetuning multiplicative
lightning.pytorch.profilers SimpleProfiler PyTorchProfiler
lightning.fabric.utilities AttributeDict LightningEnum Throughput measure_flops
lightning.fabric.strategies DDPStrategy ParallelStrategy
lightning.fabric.plugins MixedPrecision
lightning.fabric.accelerators CPUAccelerator
"""
for line in NAMES.strip().splitlines():
    path, *names = line.split()
    module = importlib.import_module(path)
    for name in names:
        if not hasattr(module, name):
            print("MISSING", path, name)

import lightning.pytorch as pl
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.plugins import BitsandbytesPrecision, XLAPrecision
from lightning.pytorch.profilers import XLAProfiler
from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy, ParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

for refused in (
    BitsandbytesPrecision, XLAPrecision, XLAProfiler, DeepSpeedStrategy, ModelParallelStrategy,
    BoringModel().to_torchscript,
):
    try:
        refused()
        print("NOT REFUSED", refused)
    except MisconfigurationException as error:
        assert "raylit" in str(error)

assert isinstance(pl.strategies.DDPStrategy(), ParallelStrategy)
assert pl.callbacks.EarlyStopping("a", mode="max").monitor_op is torch.gt
assert pl.callbacks.EarlyStopping("a").monitor_op is torch.lt


class Looks(pl.Callback):
    def on_train_batch_end(self, trainer, *args):
        loop = trainer.fit_loop.epoch_loop
        print("batch", loop.batch_progress.current.ready, loop.batch_progress.total.ready)

    def on_train_epoch_end(self, trainer, module):
        print("epoch", trainer.fit_loop.epoch_progress.current.started, trainer.val_check_batch)


trainer = pl.Trainer(
    max_epochs=2, limit_train_batches=2, limit_val_batches=1, callbacks=Looks(), logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    strategy=pl.strategies.SingleDeviceStrategy(),
)
trainer.fit(BoringModel())
print(trainer.fit_loop.epoch_progress.current.completed, trainer.validate_loop.max_batches)
'''


def test_names_are_found_or_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=stretched(120),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "batch 1 1",
        "batch 2 2",
        "epoch 1 2",
        "batch 1 3",
        "batch 2 4",
        "epoch 2 2",
        "2 [1]",
    ]
