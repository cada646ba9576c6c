"""What a run holds: one fit that goes on once, read back through MLflow's client."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils.data import DataLoader, TensorDataset

import raylit as pl
from raylit.errors import ConfigError
from raylit.loggers import MLFlowLogger
from raylit.loggers.mlflow.logger import GROUPS
from raylit.loggers.mlflow.models import models_of, register
from tests.deadlines import stretched
from tests.lazy import mlflow
from tests.loggers.mlflow_store import artifacts, history, opened, run_of


class Lines(pl.LightningModule):
    flops_per_batch = 192  # forward and backward of 4 samples, 4 x 2 weights

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.net(x)
        return found

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = torch.nn.functional.mse_loss(self(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", torch.nn.functional.mse_loss(self(batch[0]), batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", torch.nn.functional.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams["lr"], momentum=0.5)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


class Points(pl.LightningDataModule):
    def __init__(self, batch_size: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.batch_size = batch_size

    def _loader(self, length: int, **more: Any) -> DataLoader[Any]:
        x = torch.linspace(-1, 1, length * 4).reshape(length, 4)
        return DataLoader(TensorDataset(x, x[:, :2] * 0.5), self.batch_size, **more)

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(24, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(8)

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader(12)


@dataclass
class Fitted:
    logger: MLFlowLogger
    folder: Path
    checkpoint: pl.callbacks.ModelCheckpoint

    @property
    def run(self) -> Any:
        return run_of(self.logger)

    def artifact(self, path: str) -> str:
        client = self.logger.experiment
        return Path(client.download_artifacts(str(self.logger.run_id), path)).read_text()


@pytest.fixture(scope="module")
def fitted(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fitted]:
    """Two epochs, and two more after a restart of the Trainer."""
    folder = tmp_path_factory.mktemp("fit")
    shutil.copy(empty_database, folder / "mlflow.db")
    for max_epochs, ckpt_path in ((2, None), (4, "last")):
        pl.seed_everything(3, workers=True, verbose=False)
        logger = MLFlowLogger("held", save_dir=folder, log_model=max_epochs == 4)
        checkpoint = pl.callbacks.ModelCheckpoint(folder / "kept", monitor="val/loss", save_top_k=2)
        trainer = pl.Trainer(
            max_epochs=max_epochs,
            accelerator="cpu",
            gradient_clip_val=0.5,
            log_every_n_steps=2,
            callbacks=[checkpoint],
            logger=logger,
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=True,
        )
        trainer.fit(Lines(), datamodule=Points(), ckpt_path=ckpt_path)
    yield Fitted(logger, folder, checkpoint)


def test_it_is_one_run_with_each_value_once(fitted: Fitted) -> None:
    assert fitted.run.info.status == "FINISHED"
    assert [step for step, _ in history(fitted.logger, "val/loss")] == [5, 11, 17, 23]
    steps = [step for step, _ in history(fitted.logger, "train/loss")]
    assert steps == list(range(1, 24, 2))


def test_what_raylit_measures_stands_in_groups(fitted: Fitted) -> None:
    metrics = fitted.run.data.metrics
    found = {key for key in metrics if key.startswith(("perf/", "optim/"))}
    assert found == {
        "perf/step_time_s",
        "perf/samples_per_s",
        "perf/data_wait",
        "perf/tflops_per_s",
        "optim/lr",
        "optim/grad_norm",
    }
    rates = history(fitted.logger, "optim/lr")
    assert [step for step, _ in rates] == list(range(1, 24, 2))
    assert rates[0][1] == pytest.approx(0.1)
    assert rates[-1][1] == pytest.approx(0.1 / 16)
    norms = [value for _, value in history(fitted.logger, "optim/grad_norm")]
    assert 0 < max(norms) <= 0.5 + 1e-6, "clipped"
    assert 0 <= metrics["perf/data_wait"] <= 1
    assert metrics["perf/tflops_per_s"] * 1e12 * metrics["perf/step_time_s"] == pytest.approx(192)


def test_inputs_tell_what_data_was_read(fitted: Fitted) -> None:
    inputs = fitted.run.inputs.dataset_inputs
    found = {one.tags[0].value: one.dataset for one in inputs}
    assert {*found} == {"train", "validation"}
    assert len(inputs) == 2, "the fit that went on read the same"
    assert found["train"].name == "TensorDataset"
    assert json.loads(found["train"].profile) == {"num_rows": 24}
    assert json.loads(found["validation"].profile) == {"num_rows": 8}
    assert len(found["train"].digest) == 32
    assert found["train"].digest != found["validation"].digest
    assert "float32" in found["train"].schema


def models(fitted: Fitted) -> dict[str, Any]:
    run = fitted.run
    found = models_of(fitted.logger.experiment, run.info.experiment_id, run.info.run_id)
    assert all(str(one.status) == "READY" for one in found)
    return {one.name: one for one in found}


def test_the_checkpoints_that_are_kept_are_models(fitted: Fitted) -> None:
    found = models(fitted)
    final = found.pop("model")
    assert final.tags["raylit.step"] == "24"
    kept = {
        f"checkpoint {Path(path).stem}": score
        for path, score in fitted.checkpoint.best_k_models.items()
    }
    assert {*found} == {*kept}
    paths = {one.tags["raylit.checkpoint"] for one in found.values()}
    assert paths == {*fitted.checkpoint.best_k_models}
    for name, score in kept.items():
        (metric,) = found[name].metrics
        assert (metric.key, metric.value) == ("val/loss", pytest.approx(float(score)))
        assert f"step={metric.step + 1}" in name
        digests = {one.dataset.digest for one in fitted.run.inputs.dataset_inputs}
        assert metric.dataset_digest in digests
    best = "checkpoint " + Path(fitted.checkpoint.best_model_path).stem
    assert [name for name, one in found.items() if one.tags["raylit.alias"] == "best"] == [best]
    assert fitted.run.data.tags["raylit.model_id"] == final.model_id


def test_the_models_that_are_left_are_outputs(fitted: Fitted) -> None:
    """MLflow's page of a run lists its outputs, and leaves out those that were deleted."""
    outputs = fitted.run.outputs.model_outputs
    ids = [one.model_id for one in outputs]
    assert len(ids) == len({*ids}), "the fit that went on told those again that were there"
    steps = {one.model_id: one.step for one in outputs}
    for model in models(fitted).values():
        assert steps[model.model_id] == int(model.tags["raylit.step"])


def test_the_final_model_predicts_the_same_where_nothing_of_ours_is(fitted: Fitted) -> None:
    client = fitted.logger.experiment
    mlflow.set_tracking_uri(str(fitted.logger.tracking_uri))
    assert register(client, str(fitted.logger.run_id), "lines", "champion") == "1"
    x = torch.linspace(-2, 2, 12).reshape(3, 4)
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(fitted.logger.tracking_uri)],
        input=json.dumps(x.tolist()),
        capture_output=True,
        text=True,
        cwd=fitted.folder,
        check=True,
    )
    weights = torch.load(fitted.checkpoint.best_model_path, weights_only=True)["state_dict"]
    assert fitted.checkpoint.best_model_path.endswith("step=24.ckpt")
    wanted = x @ weights["net.weight"].T + weights["net.bias"]
    for got in json.loads(done.stdout.splitlines()[-1]):
        assert torch.allclose(torch.tensor(got), wanted, atol=1e-6)


def one_epoch(logger: MLFlowLogger, folder: Path, **more: Any) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=logger,
        default_root_dir=folder,
        enable_progress_bar=False,
        **more,
    )


@pytest.mark.parametrize("num_sanity_val_steps", [0, 2])
def test_a_fit_that_ends_before_steps_are_logged_holds_data_and_model(
    empty_database: Path, tmp_path: Path, num_sanity_val_steps: int
) -> None:
    uri = f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}"
    logger = MLFlowLogger("held", tracking_uri=uri, log_model=True)
    trainer = one_epoch(logger, tmp_path, num_sanity_val_steps=num_sanity_val_steps)
    trainer.fit(Lines(), datamodule=Points(batch_size=3))
    run = run_of(logger)
    assert {one.tags[0].value for one in run.inputs.dataset_inputs} == {"train", "validation"}
    (model,) = (
        one
        for one in models_of(logger.experiment, run.info.experiment_id, run.info.run_id)
        if one.model_id == run.data.tags["raylit.model_id"]
    )
    assert model.tags["raylit.form"] == "pt2"


def test_a_fit_that_trains_nothing_keeps_no_model(empty_database: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}"
    logger = MLFlowLogger("held", tracking_uri=uri, log_model=True)
    trainer = one_epoch(logger, tmp_path)
    trainer.fit(Lines(), datamodule=Points())
    before = run_of(logger).data.tags["raylit.model_id"]
    trainer.fit(Lines(), datamodule=Points())  # an epoch has been trained, and no more are wanted
    assert run_of(logger).data.tags["raylit.model_id"] == before


def test_data_that_two_stages_share_is_told_of_both(empty_database: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}"
    logger = MLFlowLogger("held", tracking_uri=uri)
    trainer = one_epoch(logger, tmp_path)
    loader = Points().val_dataloader()
    trainer.fit(Lines(), loader, loader)
    trainer.test(Lines(), loader, ckpt_path="best")
    found = {one.tags[0].value: one.dataset for one in run_of(logger).inputs.dataset_inputs}
    assert {*found} == {"train", "validation", "test"}
    assert found["validation"].name == "TensorDataset"
    assert found["train"].name == "TensorDataset (train)"
    assert len({one.digest for one in found.values()}) == 1


def test_an_evaluation_that_fails_leaves_the_end_of_the_fit(
    empty_database: Path, tmp_path: Path
) -> None:
    uri = f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}"
    logger = MLFlowLogger("held", tracking_uri=uri)
    trainer = one_epoch(logger, tmp_path)
    module = Lines()
    trainer.fit(module, datamodule=Points())
    run_id = logger.run_id
    with pytest.raises(TypeError):
        trainer.test(module, DataLoader([None]))
    assert (logger.run_id, run_of(logger).info.status) == (run_id, "FINISHED")
    trainer.test(module, datamodule=Points())
    assert (logger.run_id, run_of(logger).info.status) == (run_id, "FINISHED")
    assert len(history(logger, "test/loss")) == 1
    logger.log_hyperparams({"by hand": 3})  # of the user, once the evaluation is over
    logger.finalize("success")
    assert run_of(logger).data.params["by hand"] == "3"
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, datamodule=Points(), ckpt_path="last")
    assert (logger.run_id, run_of(logger).info.status) == (run_id, "FINISHED")


def test_predicting_makes_no_run(empty_database: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}"
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=MLFlowLogger("held", tracking_uri=uri),
        default_root_dir=tmp_path,
        enable_progress_bar=False,
    )
    assert trainer.predict(pl.testing.BoringModel())
    assert mlflow.MlflowClient(uri).get_experiment_by_name("held") is None


def test_the_users_own_run_shows_its_checkpoints_too(empty_database: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}"
    mlflow.set_tracking_uri(uri)
    experiment = mlflow.MlflowClient(uri).create_experiment("own")
    with mlflow.start_run(experiment_id=experiment) as active:
        logger = MLFlowLogger(tracking_uri=uri)
        trainer = one_epoch(logger, tmp_path)
        trainer.fit(Lines(), datamodule=Points())
        assert logger.run_id == active.info.run_id
        assert len(run_of(logger).outputs.model_outputs) == 1


def test_pictures_and_the_summary_are_kept(fitted: Fitted) -> None:
    found = artifacts(fitted.logger)
    assert "plots/learning_curves.png" in found
    assert "net" in fitted.artifact("model_summary.txt")


def test_an_evaluation_is_logged_into_the_run_of_its_checkpoint(fitted: Fitted) -> None:
    client = fitted.logger.experiment
    run_id = str(fitted.logger.run_id)
    client.set_terminated(run_id, "KILLED")
    before = client.get_run(run_id)
    logger = MLFlowLogger("held", save_dir=fitted.folder)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=logger,
        default_root_dir=fitted.folder,
        enable_progress_bar=False,
    )
    (values,) = trainer.test(
        Lines(), datamodule=Points(), ckpt_path=fitted.checkpoint.best_model_path
    )
    run = client.get_run(run_id)
    assert logger.run_id == run_id
    assert run.data.metrics["test/loss"] == pytest.approx(values["test/loss"])
    assert run.info.status == "KILLED"
    assert run.data.tags["raylit.attempt"] == before.data.tags["raylit.attempt"]
    contexts = {tag.value for one in run.inputs.dataset_inputs for tag in one.tags}
    assert contexts == {"train", "validation", "test"}
    trainer.fit(Lines(), datamodule=Points())
    assert logger.run_id != run_id, "a fit from scratch is a run of its own"


def test_the_experiment_says_what_counts(fitted: Fitted) -> None:
    client = fitted.logger.experiment
    tags = client.get_experiment(fitted.run.info.experiment_id).tags
    assert tags["mlflow.experiment.primaryMetric.name"] == "val/loss"
    assert tags["mlflow.experiment.primaryMetric.greaterIsBetter"] == "false"


def test_a_local_store_is_refused_where_its_file_is_not(tmp_path: Path, uri: str) -> None:
    store = shutil.copy(uri.removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    logger = opened(MLFlowLogger(tracking_uri=f"sqlite:///{store}", save_dir=tmp_path), tmp_path)
    logger.watch_node(0)
    logger.close("success")
    Path(store).rename(tmp_path / "elsewhere.db")
    with pytest.raises(ConfigError, match="mlflow server"):
        logger.watch_node(1)


ELSEWHERE = """
import json, sys
for name in ("raylit", "ray", "jsonargparse", "tests"):
    sys.modules[name] = None  # an import of it fails
import mlflow, numpy, torch
mlflow.set_tracking_uri(sys.argv[1])
x = numpy.array(json.load(sys.stdin), dtype=numpy.float32)
uri = "models:/lines@champion"
info = mlflow.models.get_model_info(uri)
assert info.signature.inputs.inputs[0].shape == (-1, 4), info.signature
assert info.saved_input_example_info is not None
one = mlflow.pyfunc.load_model(uri).predict(x)
with torch.no_grad():
    other = mlflow.pytorch.load_model(uri)(torch.tensor(x))
print()
print(json.dumps([one.tolist(), other.tolist()]))
"""


def test_what_is_measured_can_be_chosen(tmp_path: Path) -> None:
    for monitor, groups in ((False, set()), (["optim"], {"optim"}), (True, set(GROUPS))):
        logger = MLFlowLogger(save_dir=tmp_path, monitor=monitor)
        assert set(logger.measured_groups) == groups
    with pytest.raises(ConfigError, match=r"'gpu'.*optim"):
        MLFlowLogger(save_dir=tmp_path, monitor=["gpu"])


def test_a_machine_is_measured_by_mlflows_monitors(uri: str, tmp_path: Path) -> None:
    logger = opened(MLFlowLogger("system", tracking_uri=uri, save_dir=tmp_path), tmp_path)
    for node in (0, 1):
        logger.watch_node(node)
        logger.log_metrics({"loss": 1.0}, 1)
        if node == 0:
            assert logger._live.sender is not None
            logger._live.sender.start()  # at once, not after some seconds
    wanted = {
        f"system/node_{node}/{name}"
        for node in (0, 1)
        for name in (
            "cpu_utilization_percentage",
            "system_memory_usage_percentage",
            "process_memory_usage_megabytes",
            "network_receive_megabytes",
        )
    }
    deadline = time.monotonic() + stretched(60)
    while not wanted <= run_of(logger).data.metrics.keys():
        assert time.monotonic() < deadline, run_of(logger).data.metrics.keys()
        time.sleep(0.2)
    logger.leave_node()
    logger.close("success")
    used = run_of(logger).data.metrics["system/node_0/process_memory_usage_megabytes"]
    assert 10 < used < 100_000


def test_parameters_tell_how_the_fit_was_set_up(fitted: Fitted) -> None:
    params = fitted.run.data.params
    assert (
        params.items()
        >= {
            "lr": "0.1",
            "batch_size": "4",
            "optimizer.name": "SGD",
            "optimizer.lr": "0.1",
            "optimizer.momentum": "0.5",
            "lr_scheduler.name": "StepLR",
            "lr_scheduler.gamma": "0.5",
            "trainer.max_epochs": "2",
            "trainer.gradient_clip_val": "0.5",
            "trainer.seed": "3",
            "trainer.world_size": "1",
            "trainer.precision": "32-true",
        }.items()
    )
    assert "trainer.strategy" in params
    assert fitted.run.data.tags["raylit.resume.2.trainer.max_epochs"] == "4"


def test_the_config_is_kept(fitted: Fitted) -> None:
    config = yaml.safe_load(fitted.artifact("config.yaml"))
    assert config["seed_everything"] == 3
    assert config["model"]["class_path"] == f"{__name__}.Lines"
    assert config["trainer"]["max_epochs"] == 4
    assert "ckpt_path" not in config
    assert "config.yaml" in artifacts(fitted.logger)
