"""Lightning's paths lead somewhere, and to the same names."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import raylit
from tests.deadlines import stretched

PATHS = {
    "callbacks.batch_size_finder": ["BatchSizeFinder"],
    "callbacks.callback": ["Callback"],
    "callbacks.checkpoint": ["Checkpoint"],
    "callbacks.device_stats_monitor": ["DeviceStatsMonitor"],
    "callbacks.early_stopping": ["EarlyStopping"],
    "callbacks.finetuning": ["BackboneFinetuning", "BaseFinetuning"],
    "callbacks.gradient_accumulation_scheduler": ["GradientAccumulationScheduler"],
    "callbacks.lambda_function": ["LambdaCallback"],
    "callbacks.lr_finder": ["LearningRateFinder"],
    "callbacks.lr_monitor": ["LearningRateMonitor"],
    "callbacks.model_checkpoint": ["ModelCheckpoint"],
    "callbacks.model_summary": ["ModelSummary"],
    "callbacks.on_exception_checkpoint": ["OnExceptionCheckpoint"],
    "callbacks.prediction_writer": ["BasePredictionWriter"],
    "callbacks.progress": ["ProgressBar", "RichProgressBar", "TQDMProgressBar"],
    "callbacks.progress.progress_bar": ["ProgressBar"],
    "callbacks.progress.rich_progress": ["RichProgressBar"],
    "callbacks.progress.tqdm_progress": ["TQDMProgressBar"],
    "callbacks.pruning": ["ModelPruning"],
    "callbacks.rich_model_summary": ["RichModelSummary"],
    "callbacks.stochastic_weight_avg": ["StochasticWeightAveraging"],
    "callbacks.throughput_monitor": ["ThroughputMonitor"],
    "callbacks.timer": ["Timer"],
    "callbacks.weight_averaging": ["EMAWeightAveraging", "WeightAveraging"],
    "core": ["LightningDataModule", "LightningModule"],
    "core.datamodule": ["LightningDataModule"],
    "core.hooks": ["ModelHooks"],
    "core.mixins": ["HyperparametersMixin"],
    "core.module": ["LightningModule"],
    "core.optimizer": ["LightningOptimizer"],
    "demos.boring_classes": ["BoringDataModule", "BoringModel", "RandomDataset"],
    "loggers.csv_logs": ["CSVLogger"],
    "loggers.logger": ["DummyExperiment", "DummyLogger", "Logger", "rank_zero_experiment"],
    "loggers.mlflow": ["MLFlowLogger"],
    "loggers.tensorboard": ["TensorBoardLogger"],
    "profilers.advanced": ["AdvancedProfiler"],
    "profilers.pytorch": ["PyTorchProfiler"],
    "profilers.simple": ["SimpleProfiler"],
    "strategies.ddp": ["DDPStrategy"],
    "strategies.fsdp": ["FSDPStrategy"],
    "trainer.states": ["RunningStage", "TrainerFn", "TrainerState", "TrainerStatus"],
    "trainer.trainer": ["Trainer"],
    "utilities.combined_loader": ["CombinedLoader"],
    "utilities.data": ["extract_batch_size"],
    "utilities.enums": ["GradClipAlgorithmType", "LightningEnum"],
    "utilities.exceptions": ["MisconfigurationException"],
    "utilities.grads": ["grad_norm"],
    "utilities.memory": ["garbage_collection_cuda"],
    "utilities.model_summary": ["ModelSummary", "summarize"],
    "utilities.parameter_tying": ["find_shared_parameters", "set_shared_parameters"],
    "utilities.parsing": ["AttributeDict", "is_picklable"],
    "utilities.rank_zero": ["rank_zero_info", "rank_zero_only", "rank_zero_warn"],
    "utilities.seed": ["isolate_rng"],
    "utilities.types": ["STEP_OUTPUT"],
    "utilities.warnings": ["PossibleUserWarning"],
}
OURS = {  # modules that Lightning has under another name or not at all
    "callbacks.learning_rate_finder": ["LearningRateFinder"],
    "callbacks.learning_rate_monitor": ["LearningRateMonitor"],
    "callbacks.progress_bar": ["ProgressBar"],
    "callbacks.recovery_checkpoint": ["RecoveryCheckpoint"],
    "callbacks.regularization": ["Regularization"],
    "callbacks.spike_detection": ["SpikeDetection"],
    "callbacks.stochastic_weight_averaging": ["StochasticWeightAveraging"],
    "testing": [
        "BoringModel",
        "CallbackConformance",
        "LauncherConformance",
        "LoggerConformance",
        "TinyModel",
    ],
    "tune": ["SweepResult", "SweepSpec", "TrialResult", "Tuner"],
    "tuner": ["Tuner"],
}


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_lightnings(path: str) -> None:
    ours, theirs = (
        importlib.import_module(f"raylit.{path}"),
        importlib.import_module(f"lightning.pytorch.{path}"),
    )
    assert [
        name for name in PATHS[path] if not hasattr(theirs, name) or not hasattr(ours, name)
    ] == []


@pytest.mark.parametrize("path", PATHS | OURS)
def test_a_path_is_a_file(path: str) -> None:
    spec = importlib.util.find_spec(f"raylit.{path}")
    assert spec is not None and spec.origin is not None and Path(spec.origin).is_file()
    found = importlib.import_module(f"raylit.{path}")
    assert [name for name in (PATHS | OURS)[path] if not hasattr(found, name)] == []


@pytest.mark.parametrize("path", sorted({path.partition(".")[0] for path in PATHS}))
def test_a_package_lets_its_modules_be_found(path: str) -> None:
    package = importlib.import_module(f"raylit.{path}")
    names = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert {name.split(".")[1] for name in PATHS if name.startswith(f"{path}.")} <= names


@pytest.mark.parametrize("name", raylit.__all__)
def test_a_public_name_is_there(name: str) -> None:
    assert getattr(raylit, name) is not None


def test_an_unknown_name_is_no_attribute() -> None:
    with pytest.raises(
        AttributeError, match=r"module 'raylit\.callbacks' has no attribute 'NoSuchThing'"
    ):
        _ = raylit.callbacks.NoSuchThing


def test_they_are_imported_as_users_do() -> None:
    script = (
        "from raylit.core.module import LightningModule\nfrom raylit.trainer.states import"
        " TrainerFn\nimport raylit as pl\nassert"
        " pl.callbacks.progress.tqdm_progress.TQDMProgressBar is"
        " pl.callbacks.TQDMProgressBar\nimport raylit.callbacks.lr_monitor as lr_monitor\nassert"
        " pl.LightningModule is LightningModule is pl.core.LightningModule\nassert"
        " lr_monitor.LearningRateMonitor is pl.callbacks.LearningRateMonitor\nassert"
        " pl.callbacks.progress.TQDMProgressBar is pl.callbacks.TQDMProgressBar\nassert"
        " pl.core.datamodule.LightningDataModule is pl.LightningDataModule\nassert"
        " pl.trainer.Trainer is pl.Trainer and pl.utilities.parsing.AttributeDict is"
        " pl.utilities.AttributeDict\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=stretched(120),
        check=False,
    )
    assert done.returncode == 0, done.stderr
