from __future__ import annotations

import enum
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch.utils.data import DataLoader, TensorDataset

import raylit as pl
from raylit.cli import config as cli_config
from raylit.core.job import Job
from raylit.testing import TinyModel
from raylit.trainer import driver
from raylit.trainer.resolved import class_path, config_text


class Net(pl.LightningModule):
    def __init__(self, width: int, lr: float = 0.1, act: type[torch.nn.Module] = torch.nn.ReLU):
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(4, width), act(), torch.nn.Dropout(0.2), torch.nn.Linear(width, 1)
        )

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.net(batch[0]).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.hparams["lr"])


class Hides(pl.LightningModule):
    def __init__(self, sauce: object) -> None:
        super().__init__()
        self.taste = sauce


class Data(pl.LightningDataModule):
    def __init__(self, batch_size: int = 4) -> None:
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        data = TensorDataset(torch.linspace(0, 1, 96).reshape(24, 4))
        return DataLoader(data, self.batch_size, shuffle=True)


class Keeps(pl.loggers.CSVLogger):
    text = ""

    def log_config(self, text: str) -> None:
        type(self).text = text


def quiet(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "accelerator": "cpu",
        "default_root_dir": str(folder),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        **more,
    }


def test_the_config_of_a_fit_in_python_makes_the_same_run(tmp_path: Path) -> None:
    pl.seed_everything(5, workers=True, verbose=False)
    model = Net(8, act=torch.nn.Tanh)
    first = pl.Trainer(
        **quiet(tmp_path, max_epochs=3, gradient_clip_val=0.5, log_every_n_steps=1),
        callbacks=[
            pl.callbacks.ModelCheckpoint(monitor="loss", save_top_k=2, every_n_epochs=1),
            pl.callbacks.GradientAccumulationScheduler({0: 1, 2: 2}),
            pl.callbacks.Timer(timedelta(hours=1)),
        ],
        logger=Keeps(tmp_path / "first"),
    )
    first.fit(model, datamodule=Data(batch_size=6))

    file = tmp_path / "config.yaml"
    file.write_text(Keeps.text)
    assert "# Not told" not in Keeps.text
    config = cli_config.parse("fit", ["--config", str(file)])
    config.seed()
    trainer = config.make_trainer()
    again, data = config.make_model_and_data()
    trainer.fit(again, datamodule=data)
    assert isinstance(trainer.logger, Keeps)
    assert trainer.global_step == first.global_step
    assert [type(one) for one in trainer.callbacks] == [type(one) for one in first.callbacks]
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_what_cannot_be_told_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)

    loader = DataLoader(TensorDataset(torch.zeros(4, 4)))
    trainer = pl.Trainer(**quiet(tmp_path))
    job = Job("fit", trainer, Hides(object()), data={"train": loader})
    text = config_text(job, goes_on=False)
    told = [line for line in text.splitlines() if line.startswith("# Not told")]
    assert len(told) == 3, told
    assert "seed" in " ".join(told)
    assert "model.init_args.sauce" in " ".join(told)
    assert "train_dataloaders" in " ".join(told)
    assert yaml.safe_load(text)["seed_everything"] is False


class Kind(enum.Enum):
    SMALL = "s"


class Speed(enum.StrEnum):
    FAST = "f"


def test_subclasses_of_numbers_and_texts_are_written_as_what_they_are(tmp_path: Path) -> None:
    sauce = [np.float64(0.5), np.float32(0.5), np.int64(3), np.bool_(True), np.str_("a")]
    trainer = pl.Trainer(**quiet(tmp_path, gradient_clip_val=np.float64(0.5)))
    job = Job("fit", trainer, Hides([*sauce, Kind.SMALL, Speed.FAST]))
    job.module._sauce = job.module.taste  # type: ignore[assignment]
    found = yaml.safe_load(config_text(job, goes_on=False))
    assert found["trainer"]["gradient_clip_val"] == 0.5
    written = found["model"]["init_args"]["sauce"]
    assert written == [0.5, 0.5, 3, True, "a", "SMALL", "f"]


def test_long_lists_are_left_out_of_the_config(tmp_path: Path) -> None:
    job = Job("fit", pl.Trainer(**quiet(tmp_path)), TinyModel(), Data(batch_size=list(range(6000))))  # type: ignore[arg-type]
    text = config_text(job, goes_on=False)
    assert "# Not told: data.init_args.batch_size: it has more than 5,000 values" in text
    assert "init_args" not in yaml.safe_load(text)["data"]


def test_a_fit_whose_config_cannot_be_written_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fails(job: Job, *, goes_on: bool) -> str:
        asked.append(job)
        raise yaml.representer.RepresenterError("an object")

    monkeypatch.setattr(driver, "config_text", fails)
    plain = pl.Trainer(**quiet(tmp_path, max_steps=1))  # its CSVLogger keeps no config
    plain.fit(TinyModel())
    assert plain.global_step == 1 and not asked
    trainer = pl.Trainer(**quiet(tmp_path, max_steps=1), logger=Keeps(tmp_path))
    with pytest.warns(UserWarning, match="RepresenterError: an object"):
        trainer.fit(TinyModel())
    assert trainer.global_step == 1


def test_a_run_of_the_past_is_not_written_into(tmp_path: Path) -> None:
    logger = pl.MLFlowLogger(
        "there", run_id="abc", save_dir=tmp_path, tags={"mlflow.parentRunId": 1}
    )
    job = Job("fit", pl.Trainer(**quiet(tmp_path), logger=logger), Net(3), ckpt_path="old.ckpt")
    found = yaml.safe_load(config_text(job, goes_on=False))
    assert found["ckpt_path"] == "old.ckpt"
    assert found["trainer"]["logger"] == {
        "class_path": "raylit.loggers.MLFlowLogger",
        "init_args": {"experiment_name": "there", "save_dir": str(tmp_path)},
    }
    assert "ckpt_path" not in yaml.safe_load(config_text(job, goes_on=True))


@pytest.mark.parametrize(
    "callback",
    [
        pl.callbacks.EarlyStopping("a", patience=7, mode="max"),
        pl.callbacks.ModelCheckpoint(monitor="a", mode="max", save_last=True, filename="x"),
        pl.callbacks.LearningRateMonitor("step", log_momentum=True),
        pl.callbacks.DeviceStatsMonitor(cpu_stats=True),
        pl.callbacks.StochasticWeightAveraging(swa_lrs=0.01, annealing_epochs=3),
        pl.callbacks.ModelSummary(max_depth=3),
        pl.callbacks.LearningRateFinder(min_lr=0.1, num_training_steps=7),
        pl.callbacks.BatchSizeFinder(mode="binsearch", steps_per_trial=2),
        pl.callbacks.Timer("00:01:00:00", interval="epoch"),
        pl.callbacks.BackboneFinetuning(unfreeze_backbone_at_epoch=3, backbone_initial_lr=0.2),
        pl.callbacks.EMAWeightAveraging(decay=0.9),
    ],
    ids=lambda one: type(one).__name__,
)
def test_callbacks_tell_what_they_were_made_with(callback: pl.Callback, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"

    def text_of(one: object) -> str:
        trainer = pl.Trainer(**quiet(tmp_path), callbacks=[one], logger=False)
        return config_text(Job("fit", trainer, Net(3)), goes_on=False)

    first = text_of(callback)
    assert "Not told: trainer" not in first
    assert "init_args" in str(yaml.safe_load(first)["trainer"]["callbacks"][0])
    file.write_text(first)
    made = cli_config.parse("fit", ["--config", str(file)]).make_trainer()
    same = next(one for one in made.callbacks if type(one) is type(callback))
    assert text_of(same) == first


def test_a_class_of_a_script_is_named_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        "from raylit.trainer.resolved import class_path\nclass Lit: pass\nprint(class_path(Lit))\n"
    )
    done = subprocess.run(
        [sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "train.Lit"
    assert class_path(pl.callbacks.EarlyStopping) == "raylit.callbacks.EarlyStopping"
