"""The script of a LightningCLI user, run under either package, and what there is to see of it."""

from __future__ import annotations

import importlib.util
import inspect
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import raylit
from tests.lazy import lightning
from tests.parity.harness import files, seen

SCRIPT = '''\
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import PACKAGE as pl
from PACKAGE.callbacks import EarlyStopping, LearningRateMonitor
from PACKAGE.cli import (
    LightningArgumentParser,
    LightningCLI,
    LRSchedulerCallable,
    OptimizerCallable,
    SaveConfigCallback,
)


class Net(pl.LightningModule):
    """A small net.

    Args:
        width: of the hidden layer.
    """

    def __init__(
        self, width: int = 4, encoder: nn.Module | None = None, lr: float = 0.05, rows: int = 0
    ):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Linear(3, width), encoder or nn.Identity(), nn.Dropout(0.1), nn.Linear(width, 1)
        )
        self.lr = lr

    def training_step(self, batch, batch_idx):
        loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.mse_loss(self.net(batch[0]), batch[1]))

    def test_step(self, batch, batch_idx):
        self.log("test_loss", nn.functional.mse_loss(self.net(batch[0]), batch[1]))

    def predict_step(self, batch, batch_idx):
        return self.net(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Callables(Net):
    def __init__(
        self,
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
        width: int = 4,
    ):
        super().__init__(width)
        self.save_hyperparameters()
        self.make_optimizer, self.make_scheduler = optimizer, scheduler

    def configure_optimizers(self):
        optimizer = self.make_optimizer(self.parameters())
        return ([optimizer], [self.make_scheduler(optimizer)]) if self.make_scheduler else optimizer


class Linked(Net):
    def __init__(self, optimizer: dict, scheduler: dict, num_features: int):
        super().__init__()
        self.save_hyperparameters()
        self.specs = optimizer, scheduler


class Inner(pl.LightningModule):
    def __init__(self, depth: int = 3):
        super().__init__()
        self.save_hyperparameters()


class Outer(Net):
    def __init__(self, anything=None, encoder: nn.Module | None = None):
        super().__init__(encoder=encoder)
        self.save_hyperparameters()
        self.anything, self.inner = anything, Inner()


class Late(Net):
    def __init__(self):
        super().__init__()
        del self.net

    def configure_model(self):
        self.net = nn.Linear(3, 1)


class Data(pl.LightningDataModule):
    def __init__(self, batch_size: int = 4):
        super().__init__()
        self.save_hyperparameters()
        self.batch_size, self.num_features = batch_size, 3
        x = torch.randn(18, 3, generator=torch.Generator().manual_seed(0))
        self.data = TensorDataset(x, x.sum(1, keepdim=True))

    def train_dataloader(self):
        return DataLoader(self.data, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.data, batch_size=9)

    def test_dataloader(self):
        return DataLoader(self.data, batch_size=9)

    def predict_dataloader(self):
        return DataLoader(self.data, batch_size=9)


class Other(Data):
    def __init__(self, noise: float = 0.5):
        super().__init__(6)
        self.save_hyperparameters()


def make_net(width: int = 7) -> Net:
    return Net(width)


def make_trainer(**kwargs) -> pl.Trainer:
    return pl.Trainer(**kwargs, max_steps=2)


class Extended(LightningCLI):
    def add_arguments_to_parser(self, parser):
        parser.add_argument("--note", default="none")
        parser.add_lightning_class_args(EarlyStopping, "stopping")
        parser.set_defaults(
            {"stopping.monitor": "val_loss", "stopping.patience": 2, "model.width": 5}
        )
        parser.link_arguments("data.batch_size", "model.rows")

    def note(self, *what):
        self.notes = [*getattr(self, "notes", ()), *what]

    def before_instantiate_classes(self):
        self.note("before_instantiate_classes", hasattr(self, "model"))

    def after_instantiate_classes(self):
        self.note("after_instantiate_classes", hasattr(self, "trainer"))

    def before_fit(self):
        self.note("before_fit", self.trainer.global_step)

    def after_fit(self):
        self.note(
            "after_fit",
            self.trainer.global_step,
            [
                type(one).__name__
                for one in self.trainer.callbacks
                if type(one).__name__ != "RecoveryCheckpoint"
            ],
        )

    @staticmethod
    def configure_optimizers(lightning_module, optimizer, lr_scheduler=None):
        for group in optimizer.param_groups:
            group["lr"] /= 2
        if lr_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": lr_scheduler, "interval": "step"},
        }


class Fixed(LightningCLI):
    def add_arguments_to_parser(self, parser):
        parser.add_optimizer_args(torch.optim.Adam)
        parser.add_lr_scheduler_args(torch.optim.lr_scheduler.ExponentialLR)
        parser.set_defaults({"optimizer.lr": 0.02, "lr_scheduler.gamma": 0.9})


class LinkedCLI(LightningCLI):
    def add_arguments_to_parser(self, parser):
        parser.add_optimizer_args(
            (torch.optim.SGD, torch.optim.Adam), "first", link_to="model.optimizer"
        )
        parser.add_lr_scheduler_args(
            torch.optim.lr_scheduler.StepLR, "second", link_to="model.scheduler"
        )
        parser.link_arguments("data.num_features", "model.num_features", apply_on="instantiate")


class TwoOptimizers(LightningCLI):
    def add_arguments_to_parser(self, parser):
        parser.add_optimizer_args(torch.optim.SGD, "first")
        parser.add_optimizer_args(torch.optim.Adam, "second")


class Evaluating(LightningCLI):
    @staticmethod
    def subcommands():
        return {"validate": {"model", "dataloaders", "datamodule"}}

    def validate(self, **kwargs):
        self.given = sorted(kwargs)
        self.result = self.trainer.validate(**kwargs)


class Elsewhere(SaveConfigCallback):
    def save_config(self, trainer, pl_module, stage):
        self.saved = [
            getattr(stage, "value", stage),
            self.parser.dump(self.config, skip_none=False),
        ]
'''


# ---- a script, and what there is to see of it ----


@contextmanager
def script(pl: Any, root: Path) -> Iterator[Any]:
    """The user's script as a module, as if run without arguments.

    It is in a folder of its own, which is the current one.
    """
    name = f"script_{pl.__name__.split('.')[0]}"
    path = root / f"{name}.py"
    path.write_text(SCRIPT.replace("PACKAGE", pl.__name__))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before, argv, environment = os.getcwd(), sys.argv, dict(os.environ)
    sys.modules[name], sys.argv = module, [str(path)]
    os.chdir(root)
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        os.chdir(before)
        sys.argv = argv
        del sys.modules[name]
        os.environ.clear()
        os.environ.update(environment)


def quiet_flags(**more: Any) -> list[str]:
    """Flags of a quiet Trainer with a CSVLogger in the current folder."""
    given = {
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": 2,
        "log_every_n_steps": 1,
    }
    flags = [f"--trainer.{name}={str(value).lower()}" for name, value in {**given, **more}.items()]
    return [*flags, "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=."]


def neutral(value: Any) -> Any:
    """Return a config so that those of both packages are equal.

    Names of packages, and the arguments that only one Trainer has.
    """
    if isinstance(value, str):
        for name in ("lightning.pytorch", "raylit"):
            value = value.replace(f"script_{name.split('.')[0]}", "script").replace(name, "PL")
        # Which is also in the front of raylit
        return value.replace("PL.CSVLogger", "PL.loggers.CSVLogger")
    if isinstance(value, dict):
        if "max_epochs" in value:
            value = {name: item for name, item in value.items() if name in trainer_arguments()}
            value["devices"] = value.get("devices") or "auto"
        return {key: neutral(item) for key, item in value.items()}
    return [neutral(item) for item in value] if isinstance(value, (list, tuple)) else value


def trainer_arguments() -> set[str]:
    """Names of the arguments that both Trainers have."""
    return set(inspect.signature(lightning.pytorch.Trainer).parameters) & set(
        inspect.signature(raylit.Trainer).parameters
    )


def config_of(cli: Any) -> Any:
    """The config of a CLI as plain data."""
    whole = yaml.safe_load(cli.parser.dump(cli.config, skip_unset=False, skip_link_targets=False))
    return neutral(whole)


def saved_config(path: Path) -> Any:
    """A saved config, as it would be read again, and its first line without the version."""
    text = path.read_text()
    return {"head": neutral(text.partition("==")[0]), "values": neutral(yaml.safe_load(text))}


def stored_hyperparameters(path: Path) -> Any:
    stored = torch.load(path, weights_only=True)
    return {
        key: neutral(stored.get(key))
        for key in ("hyper_parameters", "hparams_name", "datamodule_hyper_parameters")
    }


def left(cli: Any, root: Path) -> dict[str, Any]:
    """What a run of a CLI left."""
    rows = seen(cli.trainer, cli.model)
    stored = {name: stored_hyperparameters(root / name) for name in files(root)}
    configs = {name: saved_config(root / name) for name in files(root, "**/config.yaml")}
    return {
        **rows,
        "subcommand": cli.subcommand,
        "config": config_of(cli),
        "stored": stored,
        "configs": configs,
    }


def fitted(user: Any, root: Path, model: Any, *flags: str, **kwargs: Any) -> str:
    """Fit once; returns the name of the checkpoint."""
    user.LightningCLI(model, user.Data, args=["fit", *quiet_flags(max_epochs=1), *flags], **kwargs)
    (name,) = files(root)
    return name


def said(call: Callable[[], Any]) -> tuple[Any, str, str]:
    """Exit code of a call that ends the process, and what it said."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
        call()
    return end.value.code, out.getvalue(), err.getvalue()
