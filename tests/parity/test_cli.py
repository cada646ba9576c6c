"""A user's own script with LightningCLI, with the same arguments under both packages."""

from __future__ import annotations

import copy
import importlib.util
import io
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.parity.harness import errors, files, packages, parity, quiet, seen

SCRIPT = '''\
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import PACKAGE as pl
from PACKAGE.callbacks import EarlyStopping, LearningRateMonitor
from PACKAGE.cli import LightningArgumentParser, LightningCLI, LRSchedulerCallable, OptimizerCallable, SaveConfigCallback


class Net(pl.LightningModule):
    """A small net.

    Args:
        width: of the hidden layer.
    """

    def __init__(self, width: int = 4, encoder: nn.Module | None = None, lr: float = 0.05, rows: int = 0):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(3, width), encoder or nn.Identity(), nn.Dropout(0.1), nn.Linear(width, 1))
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
    def __init__(self, optimizer: OptimizerCallable = torch.optim.Adam, scheduler: LRSchedulerCallable | None = None, width: int = 4):
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
        parser.set_defaults({"stopping.monitor": "val_loss", "stopping.patience": 2, "model.width": 5})
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
        self.note("after_fit", self.trainer.global_step, [type(one).__name__ for one in self.trainer.callbacks])

    @staticmethod
    def configure_optimizers(lightning_module, optimizer, lr_scheduler=None):
        for group in optimizer.param_groups:
            group["lr"] /= 2
        if lr_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": lr_scheduler, "interval": "step"}}


class Fixed(LightningCLI):
    def add_arguments_to_parser(self, parser):
        parser.add_optimizer_args(torch.optim.Adam)
        parser.add_lr_scheduler_args(torch.optim.lr_scheduler.ExponentialLR)
        parser.set_defaults({"optimizer.lr": 0.02, "lr_scheduler.gamma": 0.9})


class LinkedCLI(LightningCLI):
    def add_arguments_to_parser(self, parser):
        parser.add_optimizer_args((torch.optim.SGD, torch.optim.Adam), "first", link_to="model.optimizer")
        parser.add_lr_scheduler_args(torch.optim.lr_scheduler.StepLR, "second", link_to="model.scheduler")
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
        self.saved = [getattr(stage, "value", stage), self.parser.dump(self.config, skip_none=False)]
'''


# ---- a script, and what there is to see of it ----


@contextmanager
def script(pl: Any, root: Path) -> Iterator[Any]:
    """The user's script as a module, in a folder of its own that is the current one, as if run without arguments."""
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
    given = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 2, "log_every_n_steps": 1}
    flags = [f"--trainer.{name}={str(value).lower()}" for name, value in {**given, **more}.items()]
    return [*flags, "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=."]


def neutral(value: Any) -> Any:
    """Return a config so that those of both packages are equal: names of packages, and the arguments that only one Trainer has."""
    if isinstance(value, str):
        for name in ("lightning.pytorch", "raylit"):
            value = value.replace(f"script_{name.split('.')[0]}", "script").replace(name, "PL")
        return value.replace("PL.CSVLogger", "PL.loggers.CSVLogger")  # which is also in the front of raylit
    if isinstance(value, dict):
        if "max_epochs" in value:
            value = {name: item for name, item in value.items() if name in trainer_arguments()}
            value["devices"] = value.get("devices") or "auto"
        return {key: neutral(item) for key, item in value.items()}
    return [neutral(item) for item in value] if isinstance(value, (list, tuple)) else value


def trainer_arguments() -> set[str]:
    """Names of the arguments that both Trainers have."""
    import inspect

    import lightning.pytorch

    import raylit

    return set(inspect.signature(lightning.pytorch.Trainer).parameters) & set(inspect.signature(raylit.Trainer).parameters)


def config_of(cli: Any) -> Any:
    """The config of a CLI as plain data."""
    whole = yaml.safe_load(cli.parser.dump(cli.config, skip_unset=False, skip_link_targets=False))
    return neutral(whole)


def saved_config(path: Path) -> Any:
    """A config that was saved, as it would be read again, and its first line without the version."""
    text = path.read_text()
    return {"head": neutral(text.partition("==")[0]), "values": neutral(yaml.safe_load(text))}


def stored_hyperparameters(path: Path) -> Any:
    stored = torch.load(path, weights_only=True)
    return {key: neutral(stored.get(key)) for key in ("hyper_parameters", "hparams_name", "datamodule_hyper_parameters")}


def left(cli: Any, root: Path) -> dict[str, Any]:
    """What a run of a CLI left."""
    rows = seen(cli.trainer, cli.model)
    stored = {name: stored_hyperparameters(root / name) for name in files(root)}
    configs = {name: saved_config(root / name) for name in files(root, "**/config.yaml")}
    return {**rows, "subcommand": cli.subcommand, "config": config_of(cli), "stored": stored, "configs": configs}


# ---- fit ----

FLAGS: dict[str, list[str]] = {
    "as it is": [],
    "arguments": ["--model.width=6", "--model.lr", "0.01", "--data.batch_size=5", "--seed_everything=7"],
    "an optimizer": ["--optimizer=Adam", "--optimizer.lr=0.01"],
    "a scheduler": ["--optimizer=SGD", "--optimizer.lr=0.1", "--lr_scheduler=StepLR", "--lr_scheduler.step_size=1"],
    "on a plateau": [
        "--optimizer=SGD", "--optimizer.lr=0.1", "--lr_scheduler=ReduceLROnPlateau", "--lr_scheduler.monitor=val_loss",
        "--lr_scheduler.patience=0", "--lr_scheduler.threshold=10",
    ],
    "callbacks one by one": [
        "--trainer.callbacks=LearningRateMonitor", "--trainer.callbacks.logging_interval=step",
        "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val_loss", "--trainer.callbacks.patience=0",
    ],
    "an object": ["--model.encoder=torch.nn.LeakyReLU", "--model.encoder.negative_slope=0.2"],
    "an object as one": ['--model.encoder={"class_path": "torch.nn.Sequential", "init_args": {}}'],
    "no seed": ["--seed_everything=false"],
}  # fmt: skip


@parity
@pytest.mark.parametrize("flags", FLAGS)
def test_fit(pl: Any, tmp_path: Path, flags: str) -> Any:
    with script(pl, tmp_path) as user:
        return left(user.LightningCLI(user.Net, user.Data, args=["fit", *quiet_flags(), *FLAGS[flags]]), tmp_path)


@parity
def test_config_files(pl: Any, tmp_path: Path) -> Any:
    (tmp_path / "base.yaml").write_text("trainer: {max_epochs: 1, limit_train_batches: 2}\nmodel: {width: 3}\ndata: data.yaml\n")
    (tmp_path / "data.yaml").write_text("batch_size: 3\n")
    (tmp_path / "more.yaml").write_text(
        f"model: {{width: 2, lr: 0.2}}\ntrainer:\n  callbacks:\n    - class_path: {pl.__name__}.callbacks.LearningRateMonitor\n"
    )
    with script(pl, tmp_path) as user:
        flags = ["fit", *quiet_flags(), "-c", "base.yaml", "--config=more.yaml", "--model.lr=0.3"]
        first = left(user.LightningCLI(user.Net, user.Data, args=flags), tmp_path)
        again = user.LightningCLI(
            user.Net, user.Data, args=["fit", "--config=lightning_logs/version_0/config.yaml"], save_config_kwargs={"multifile": True}
        )
        kept = {
            name: neutral((tmp_path / name).read_text()).partition("\n")[2].split("trainer:")[0]
            for name in files(tmp_path, "**/version_1/*.yaml")
        }
        return {"first": first, "again": seen(again.trainer, again.model), "kept": kept}


@parity
@pytest.mark.parametrize("named", [True, False])
def test_the_config_names_the_classes(pl: Any, tmp_path: Path, named: bool) -> Any:
    with script(pl, tmp_path) as user:
        flags = ["fit", *quiet_flags(), f"--model={user.__name__}.Callables", "--model.width=3", "--data=Other", "--data.noise=0.25"]
        flags += ["--model.optimizer=SGD", "--model.optimizer.lr=0.2", "--model.scheduler=StepLR", "--model.scheduler.step_size=1"]
        classes = (user.Net, user.Data) if named else ()
        cli = user.LightningCLI(*classes, args=flags, subclass_mode_model=True, subclass_mode_data=True)
        return {"data": type(cli.datamodule).__name__, "lr": cli.trainer.optimizers[0].param_groups[0]["lr"], **left(cli, tmp_path)}


@parity
@pytest.mark.parametrize("flags", [[], ["--optimizer=Adam", "--lr_scheduler=ConstantLR", "--note=new", "--stopping.patience=7"]])
def test_a_cli_of_ones_own(pl: Any, tmp_path: Path, flags: list[str]) -> Any:
    with script(pl, tmp_path) as user:
        cli = user.Extended(
            user.Net,
            user.Data,
            args=["fit", *quiet_flags(), *flags],
            trainer_defaults={"limit_train_batches": 3, "callbacks": user.LearningRateMonitor()},
            seed_everything_default=3,
            save_config_callback=user.Elsewhere,
            save_config_kwargs={"config_filename": "mine.yaml"},
        )
        kept = next(callback for callback in cli.trainer.callbacks if isinstance(callback, user.Elsewhere)).saved
        notes = [[n for n in note if n not in ("TQDMProgressBar",)] if isinstance(note, list) else note for note in cli.notes]
        stopping = next(callback for callback in cli.trainer.callbacks if isinstance(callback, user.EarlyStopping))
        found = {"notes": notes, "kept": [kept[0], neutral(yaml.safe_load(kept[1]))], "patience": stopping.patience}
        return {**found, **left(cli, tmp_path), "files": files(tmp_path, "**/*.yaml")}


@parity
def test_fixed_optimizers(pl: Any, tmp_path: Path) -> Any:
    with script(pl, tmp_path) as user:
        cli = user.Fixed(user.Net, user.Data, args=["fit", *quiet_flags(), "--optimizer.betas=[0.8, 0.9]"])
        return {"betas": cli.trainer.optimizers[0].param_groups[0]["betas"], **left(cli, tmp_path)}


@parity
def test_links(pl: Any, tmp_path: Path) -> Any:
    with script(pl, tmp_path) as user:
        flags = ["fit", *quiet_flags(), "--first=Adam", "--first.lr=0.3", "--second.step_size=2"]
        cli = user.LinkedCLI(user.Linked, user.Data, args=flags)
        return {"specs": [dict(spec) for spec in cli.model.specs], "hparams": dict(cli.model.hparams), **left(cli, tmp_path)}


# ---- other ways in ----


@parity
def test_nothing_runs(pl: Any, tmp_path: Path) -> Any:
    with script(pl, tmp_path) as user:
        cli = user.LightningCLI(user.Net, user.Data, run=False, args=[*quiet_flags(), "--optimizer=SGD", "--optimizer.lr=0.2"])
        before = cli.trainer.global_step
        cli.trainer.fit(cli.model, cli.datamodule)
        return {"before": before, **left(cli, tmp_path)}


@parity
def test_functions_in_place_of_classes(pl: Any, tmp_path: Path) -> Any:
    with script(pl, tmp_path) as user:
        flags = [*quiet_flags(), "--model.width=2"]
        cli = user.LightningCLI(user.make_net, trainer_class=user.make_trainer, run=False, args=flags)
        return {"config": config_of(cli), "hparams": dict(cli.model.hparams), "steps": cli.trainer.max_steps, "data": cli.datamodule}


@parity
@pytest.mark.parametrize("run", [True, False])
def test_a_dict_of_arguments(pl: Any, tmp_path: Path, run: bool) -> Any:
    trainer = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    values = {"trainer": trainer, "model": {"width": 2}, "data": {"batch_size": 9}}
    with script(pl, tmp_path) as user:
        cli = user.LightningCLI(user.Net, user.Data, run=run, args={"subcommand": "fit", "fit": values} if run else values)
        return left(cli, tmp_path)


@parity
def test_the_environment(pl: Any, tmp_path: Path) -> Any:
    with script(pl, tmp_path) as user:
        (tmp_path / "config.in.yaml").write_text("model: {width: 3}\ndata: {batch_size: 3}\n")
        os.environ.update(PL_TRAINER__MAX_EPOCHS="3", PL_CONFIG="config.in.yaml", PL_MODEL__WIDTH="2", PL_SEED_EVERYTHING="5")
        kwargs = {"run": False, "args": ["--trainer.max_steps=4"], "save_config_callback": None}
        read = user.LightningCLI(user.Net, user.Data, parser_kwargs={"default_env": True}, **kwargs)
        own = user.LightningCLI(user.Net, user.Data, parser_kwargs={"default_env": True, "env_prefix": "MY"}, **kwargs)
        return {"read": config_of(read), "not read": config_of(user.LightningCLI(user.Net, user.Data, **kwargs)), "own": config_of(own)}


@parity
def test_arguments_of_the_parsers(pl: Any, tmp_path: Path) -> Any:
    (tmp_path / "defaults.yaml").write_text("model: {width: 3}\ntrainer: {max_epochs: 0}\n")
    with script(pl, tmp_path) as user:
        kwargs = {"fit": {"default_config_files": ["defaults.yaml"]}, "test": {"description": "Mine."}, "prog": "mine"}
        cli = user.LightningCLI(user.Net, user.Data, args=["fit", "--trainer.logger=false"], parser_kwargs=kwargs)
        return {"config": config_of(cli), "prog": cli.parser.prog, "text": cli._subcommand_parsers["test"].description}


@parity
def test_help_and_print_config(pl: Any, tmp_path: Path) -> Any:
    with script(pl, tmp_path) as user:
        (tmp_path / "printed.yaml").write_text(
            said(lambda: user.Extended(user.Net, user.Data, args=["fit", *quiet_flags(), "--print_config"]))[1]
        )
        cli = user.Extended(user.Net, user.Data, args=["fit", "--config=printed.yaml"])
        code, text, _ = said(lambda: user.LightningCLI(user.Net, user.Data, args=["fit", "--help"]))
        of_model = [line.strip() for line in text.splitlines() if line.strip().startswith("--model.")]
        return {"printed": saved_config(tmp_path / "printed.yaml"), "seen": seen(cli.trainer, cli.model), "help": [code, of_model]}


# ---- from a checkpoint ----


def fitted(user: Any, root: Path, model: Any, *flags: str, **kwargs: Any) -> str:
    """Fit once; returns the name of the checkpoint."""
    user.LightningCLI(model, user.Data, args=["fit", *quiet_flags(max_epochs=1), *flags], **kwargs)
    (name,) = files(root)
    return name


@parity
@pytest.mark.parametrize("subcommand", ["validate", "test", "predict", "fit"])
def test_the_model_gets_the_arguments_of_the_checkpoint(pl: Any, tmp_path: Path, subcommand: str) -> Any:
    with script(pl, tmp_path) as user:
        path = fitted(user, tmp_path, user.Net, "--model.width=6", "--model.encoder=torch.nn.Tanh")
        flags = [subcommand, *quiet_flags(), f"--ckpt_path={path}", "--model.width=9", "--data.batch_size=2"]
        cli = user.LightningCLI(user.Net, user.Data, args=flags)
        found = left(cli, tmp_path)
        if subcommand == "fit":  # raylit goes on with the random states of the checkpoint, too
            found = {name: found[name] for name in ("epoch", "step", "config", "configs")}
        return {"width": cli.model.net[0].out_features, **found}


@parity
def test_a_subclass_gets_the_arguments_of_the_checkpoint(pl: Any, tmp_path: Path) -> Any:
    with script(pl, tmp_path) as user:
        path = fitted(user, tmp_path, user.Net, f"--model={user.__name__}.Callables", "--model.width=6", subclass_mode_model=True)
        flags = ["test", *quiet_flags(), f"--model={user.__name__}.Net", f"--ckpt_path={path}"]
        cli = user.LightningCLI(user.Net, user.Data, args=flags, subclass_mode_model=True)
        return {"class": type(cli.model).__name__, **left(cli, tmp_path)}


@parity
def test_load_from_checkpoint(pl: Any, tmp_path: Path) -> Any:
    with script(pl, tmp_path) as user:
        path = fitted(user, tmp_path, user.Net, "--model.encoder=torch.nn.LeakyReLU", "--model.encoder.negative_slope=0.25")
        made = user.Net.load_from_checkpoint(path)
        other = user.Net.load_from_checkpoint(path, encoder=torch.nn.Tanh(), lr=1.0)
        data = user.Data.load_from_checkpoint(path, batch_size=1)
        return {
            "slope": made.net[1].negative_slope,
            "weights": made.state_dict(),
            "other": str(other.net),
            "lr": other.lr,
            "data": data.batch_size,
        }


@parity
def test_load_from_checkpoint_of_a_base_class(pl: Any, tmp_path: Path) -> Any:
    with script(pl, tmp_path) as user:
        flags = [f"--model={user.__name__}.Callables", "--model.optimizer=SGD", "--model.optimizer.lr=0.125"]
        path = fitted(user, tmp_path, user.Net, *flags, subclass_mode_model=True)
        made = pl.LightningModule.load_from_checkpoint(path)
        return {"class": type(made).__name__, "lr": made.configure_optimizers().param_groups[0]["lr"], "weights": made.state_dict()}


@parity
def test_hyperparameters_as_init_gets_them(pl: Any, tmp_path: Path) -> Any:
    with script(pl, tmp_path) as user:
        path = fitted(user, tmp_path, user.Net, "--model.width=3", load_from_checkpoint_support=False)
        return stored_hyperparameters(tmp_path / path)


def test_either_loads_the_checkpoint_of_the_other(tmp_path: Path) -> None:
    import lightning.pytorch

    import raylit

    paths = {}
    for pl in (lightning.pytorch, raylit):
        root = tmp_path / pl.__name__
        root.mkdir()
        with script(pl, root) as user:
            paths[pl] = root / fitted(user, root, user.Net, "--model.encoder=torch.nn.Tanh", "--model.width=5")
    for pl, path in ((raylit, paths[lightning.pytorch]), (lightning.pytorch, paths[raylit])):
        root = tmp_path / f"{pl.__name__}_again"
        root.mkdir()
        with script(pl, root) as user:
            made = user.Net.load_from_checkpoint(path)
            assert isinstance(made.net[1], torch.nn.Tanh) and made.net[0].out_features == 5
            cli = user.LightningCLI(user.Net, user.Data, args=["test", *quiet_flags(), f"--ckpt_path={path}"])
            assert cli.model.net[0].out_features == 5 and "test_loss" in cli.trainer.callback_metrics


# ---- subcommands, and what the CLI brings for them ----


@parity
def test_subcommands_of_ones_own(pl: Any, tmp_path: Path) -> Any:
    with script(pl, tmp_path) as user:
        cli = user.Evaluating(user.Net, user.Data, args=["validate", *quiet_flags(), "--verbose=false"])
        code, _, _ = said(lambda: user.Evaluating(user.Net, user.Data, args=["fit"]))
        return {"given": cli.given, "result": cli.result, "config": config_of(cli), "fit": code, "hooks": copy.copy(cli.subcommand)}


# ---- what is refused ----


def said(call: Callable[[], Any]) -> tuple[Any, str, str]:
    """Exit code of a call that ends the process, and what it said."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
        call()
    return end.value.code, out.getvalue(), err.getvalue()


BAD: dict[str, list[str]] = {
    "no subcommand": [],
    "no such subcommand": ["train"],
    "no such key": ["fit", "--model.widht=3"],
    "no such argument": ["fit", "--trainer.epochs=3"],
    "a wrong type": ["fit", "--trainer.max_epochs=three"],
    "no such file": ["fit", "--config=nothing.yaml"],
    "no such class": ["fit", "--model.encoder=torch.nn.Nothing"],
    "no callback": ["fit", "--trainer.callbacks=torch.nn.ReLU"],
    "no such optimizer": ["fit", "--optimizer=Adamant"],
}


@parity
@pytest.mark.parametrize("flags", BAD)
def test_bad_arguments_end_the_script(pl: Any, tmp_path: Path, flags: str) -> Any:
    with script(pl, tmp_path) as user:
        code, _, text = said(lambda: user.LightningCLI(user.Net, user.Data, args=BAD[flags]))
        return {
            "code": code,
            "error": neutral(text.replace(str(tmp_path), "ROOT").partition("error:")[2].strip().partition("\n")[0].partition("{")[0]),
        }


@parity
def test_hyperparameters_that_do_not_fit_end_the_script(pl: Any, tmp_path: Path) -> Any:
    with script(pl, tmp_path) as user:
        path = fitted(user, tmp_path, user.Callables)
        code, _, text = said(lambda: user.LightningCLI(user.Linked, user.Data, args=["test", *quiet_flags(), f"--ckpt_path={path}"]))
        return {"code": code, "said": "Parsing of ckpt_path hyperparameters failed!" in text}


@parity
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_config_that_is_there(pl: Any, tmp_path: Path, overwrite: bool) -> Any:
    (tmp_path / "config.yaml").write_text("of: another run")
    flags = ["fit", *quiet_flags(max_epochs=1), "--trainer.logger=false"]
    with script(pl, tmp_path) as user:
        try:
            user.LightningCLI(user.Net, user.Data, args=flags, save_config_kwargs={"overwrite": overwrite})
            return saved_config(tmp_path / "config.yaml")
        except RuntimeError as error:
            return ["to NOT exist" in str(error), (tmp_path / "config.yaml").read_text(), files(tmp_path)]


@parity
def test_no_config_of_a_trial_run(pl: Any, tmp_path: Path) -> Any:
    with script(pl, tmp_path) as user:
        cli = user.LightningCLI(user.Net, user.Data, args=["fit", *quiet_flags(fast_dev_run=True)])
        return {
            "callbacks": [type(one).__name__ == "SaveConfigCallback" for one in cli.trainer.callbacks].count(True),
            "yaml": files(tmp_path, "**/*.yaml"),
        }


@errors
@pytest.mark.parametrize("what", ["optimizers", "saving", "class", "optimizer", "constructor"])
def test_what_does_not_fit_together(pl: Any, tmp_path: Path, what: str) -> Any:
    with script(pl, tmp_path) as user:
        if what == "optimizers":
            user.TwoOptimizers(user.Net, run=False, args=[])
        elif what == "saving":
            user.LightningCLI(user.Net, run=False, args=[], save_config_kwargs={"save_to_log_dir": False})
        elif what == "class":
            user.LightningArgumentParser().add_lightning_class_args(torch.nn.Linear, "layer")
        elif what == "optimizer":
            user.LightningArgumentParser().add_optimizer_args((torch.optim.SGD, torch.nn.Linear))
        else:
            user.LightningCLI(user.Net, run=False, args=["--model.width=-1"])


# ---- where raylit differs ----


def both(call: Callable[[Any, Path], Any], root: Path) -> list[Any]:
    """What a call gives with each package, Lightning first."""
    found = []
    for pl in packages():
        folder = root / pl.__name__
        folder.mkdir()
        with quiet(), script(pl, folder) as user:
            found.append(call(user, folder))
    return found


def test_difference_a_module_within_another_keeps_its_own_hyperparameters(tmp_path: Path) -> None:
    def call(user: Any, folder: Path) -> Any:
        return user.LightningCLI(user.Outer, run=False, args=["--model.anything=1"]).model.inner.hparams.get("depth")

    assert both(call, tmp_path) == [None, 3]


def test_difference_the_optimizer_is_made_when_the_parameters_are_there(tmp_path: Path) -> None:
    def call(user: Any, folder: Path) -> Any:
        try:
            cli = user.LightningCLI(user.Late, user.Data, args=["fit", *quiet_flags(max_epochs=1), "--optimizer=Adam"])
        except ValueError as error:
            return str(error)
        return [len(group["params"]) for group in cli.trainer.optimizers[0].param_groups]

    assert both(call, tmp_path) == ["optimizer got an empty parameter list", [2]]


def test_difference_what_a_checkpoint_has_made(tmp_path: Path) -> None:
    def call(user: Any, folder: Path) -> Any:
        path = fitted(user, folder, user.Outer, "--model.encoder=torch.nn.Tanh")
        stored = torch.load(path, weights_only=True)
        stored["hyper_parameters"]["anything"] = {"class_path": "fractions.Fraction", "init_args": {"numerator": 2}}
        torch.save(stored, "changed.ckpt")
        loaded = user.Outer.load_from_checkpoint("changed.ckpt")
        cli = user.LightningCLI(user.Net, user.Data, run=False, args=[*quiet_flags(max_epochs=1)])
        cli.trainer.fit(loaded, datamodule=cli.datamodule)
        cli.trainer.save_checkpoint("again.ckpt")
        try:
            again: Any = type(user.Outer.load_from_checkpoint("again.ckpt").net[1]).__name__
        except pickle.UnpicklingError:
            again = "refused"
        return [type(loaded.anything).__name__, again]

    assert both(call, tmp_path) == [["Fraction", "refused"], ["dict", "Tanh"]]
