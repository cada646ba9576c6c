"""LightningCLI where raylit has something of its own.

That it is as Lightning's is tested in tests/parity/test_cli.py.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import raylit.cli
from raylit import Trainer
from raylit.callbacks import EarlyStopping
from raylit.cli import (
    LightningArgumentParser,
    LightningCLI,
    OptimizerCallable,
    ReduceLROnPlateau,
    SaveConfigCallback,
    instantiate_class,
)
from raylit.cli.script import ScriptReader
from raylit.errors import CheckpointError, ConfigError, MissingPackageError
from raylit.testing import BoringDataModule, BoringModel, TinyModel
from tests.cli.conftest import environment
from tests.deadlines import stretched
from tests.ranks import run_on_two_ranks

QUIET = {
    "accelerator": "cpu",
    "max_epochs": 1,
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
FLAGS = [f"--trainer.{name}={str(value).lower()}" for name, value in QUIET.items()]


class Made:
    """What no argument's type names."""


class Net(TinyModel):
    def __init__(
        self, head: nn.Module | None = None, anything: Any = None, untyped=None, size: int = 1
    ) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.save_hyperparameters()
        self.head, self.anything, self.untyped = head, anything, untyped
        self.inner = Inner()


class Inner(BoringModel):
    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()


class Late(BoringModel):
    """Makes its parameters when it is known where they are to be."""

    def __init__(self) -> None:
        super().__init__()
        del self.layer

    def configure_model(self) -> None:
        self.layer = nn.Linear(32, 2)


class WithOptimizer(BoringModel):
    def __init__(self, optimizer: OptimizerCallable = torch.optim.SGD) -> None:
        super().__init__()
        self.make = optimizer

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters())


class Failing(BoringModel):
    def __init__(self, head: nn.Module | None = None) -> None:
        raise KeyError("no such head")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "argv", ["main.py"])
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(model: Any, *flags: str, **kwargs: Any) -> LightningCLI:
    """A CLI that has run nothing."""
    return LightningCLI(
        model,
        BoringDataModule,
        run=False,
        args=[*FLAGS, *flags],
        **{"save_config_callback": None, **kwargs},
    )


# ---- the surface ----


NAMES = """
    ArgsType LRSchedulerCallable LRSchedulerType LRSchedulerTypeTuple LRSchedulerTypeUnion
    LightningArgumentParser LightningCLI OptimizerCallable ReduceLROnPlateau SaveConfigCallback
    instantiate_class instantiate_module
"""


@pytest.mark.parametrize("name", NAMES.split())
def test_it_has_the_names_of_lightnings(name: str) -> None:
    import lightning.pytorch.cli

    assert (
        hasattr(lightning.pytorch.cli, name)
        and hasattr(raylit.cli, name)
        and name in raylit.cli.__all__
    )


def test_arguments_in_two_places_are_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py", "--trainer.max_epochs=9"])
    with pytest.warns(UserWarning, match=r"not read: \['--trainer.max_epochs=9'\]"):
        cli = made(Net)
    assert cli.trainer.max_epochs == 1


def test_a_class_from_its_description() -> None:
    made = instantiate_class(
        (3, 4), {"class_path": "torch.nn.Linear", "init_args": {"bias": False}}
    )
    assert (made.in_features, made.out_features, made.bias) == (3, 4, None)
    assert isinstance(instantiate_class((), {"class_path": "torch.nn.ReLU"}), nn.ReLU)


def test_what_is_no_optimizer_or_scheduler_is_refused() -> None:
    parser = LightningArgumentParser()
    with pytest.raises(
        ConfigError,
        match=r"optimizer: .*Linear.* is no subclass of torch.optim.optimizer.Optimizer",
    ):
        parser.add_optimizer_args(nn.Linear)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"lr_scheduler: .*SGD.* is no subclass of"):
        parser.add_lr_scheduler_args((torch.optim.SGD,))  # type: ignore[arg-type]


# ---- errors of the user's code stay as they are ----


def test_what_a_constructor_raises() -> None:
    with pytest.raises(KeyError, match="no such head"):
        made(Failing, "--model.head=torch.nn.ReLU")


def test_what_a_callable_of_the_config_raises() -> None:
    model = made(WithOptimizer, "--model.optimizer=SGD", "--model.optimizer.lr=-1").model
    with pytest.raises(ValueError, match="Invalid learning rate"):
        model.configure_optimizers()


# ---- optimizers ----


def test_the_optimizer_gets_the_parameters_that_configure_model_makes() -> None:
    cli = made(Late, "--optimizer=SGD", "--optimizer.lr=0.5")
    cli.trainer.fit(cli.model, cli.datamodule)
    assert {id(p) for p in cli.trainer.optimizers[0].param_groups[0]["params"]} == {
        id(p) for p in cli.model.layer.parameters()
    }


def test_a_scheduler_without_an_optimizer_is_not_used() -> None:
    with pytest.warns(UserWarning, match=r"StepLR is not used, since the config has no optimizer"):
        made(BoringModel, "--lr_scheduler=StepLR", "--lr_scheduler.step_size=1")


def test_pytorchs_plateau_does_not_say_what_it_watches() -> None:
    with pytest.raises(ConfigError, match=r"raylit.cli.ReduceLROnPlateau with monitor"):
        made(
            BoringModel,
            "--optimizer=SGD",
            "--lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau",
        )
    found = made(
        BoringModel,
        "--optimizer=SGD",
        "--lr_scheduler=ReduceLROnPlateau",
        "--lr_scheduler.monitor=x",
    ).model.configure_optimizers()
    assert isinstance(found["lr_scheduler"]["scheduler"], ReduceLROnPlateau)


# ---- hyperparameters ----


def test_a_module_within_keeps_its_own_arguments() -> None:
    cli = made(Net, "--model.head=torch.nn.Tanh", "--model.size=2")
    assert cli.model.inner.hparams["depth"] == 3 and "_instantiator" not in cli.model.inner.hparams
    assert (
        cli.model.hparams["head"] == {"class_path": "torch.nn.Tanh"}
        and cli.model.hparams["size"] == 2
    )


def checkpoint(path: Path, model: Any = Net, *flags: str) -> Path:
    cli = made(model, "--model.head=torch.nn.Tanh", *flags)
    cli.trainer.fit(cli.model, cli.datamodule)
    cli.trainer.save_checkpoint(path)
    return path


def changed(path: Path, **hparams: Any) -> Path:
    """A copy of a checkpoint with other hyperparameters."""
    stored = torch.load(path, weights_only=True)
    stored["hyper_parameters"].update(hparams)
    torch.save(stored, path.with_name("changed.ckpt"))
    return path.with_name("changed.ckpt")


def test_what_was_loaded_can_be_saved_and_loaded_again(folder: Path) -> None:
    loaded = Net.load_from_checkpoint(checkpoint(folder / "one.ckpt"), size=5)
    assert isinstance(loaded.head, nn.Tanh)
    trainer = Trainer(**QUIET, default_root_dir=folder)  # type: ignore[arg-type]
    trainer.fit(loaded, datamodule=BoringDataModule())
    trainer.save_checkpoint(folder / "two.ckpt")
    again = Net.load_from_checkpoint(folder / "two.ckpt")
    assert isinstance(again.head, nn.Tanh) and again.hparams["size"] == 5


@pytest.mark.parametrize("name", ["anything", "untyped"])
def test_a_checkpoint_makes_nothing_that_no_type_asks_for(folder: Path, name: str) -> None:
    spec = {"class_path": f"{__name__}.Made"}
    path = changed(checkpoint(folder / "one.ckpt"), **{name: spec})
    with pytest.warns(
        UserWarning,
        match=rf"Net gets {name} as it stands in the checkpoint, as a description of a .*Made",
    ):
        loaded = Net.load_from_checkpoint(path)
    assert not isinstance(getattr(loaded, name), Made)
    assert Net.load_from_checkpoint(path, **{name: 3}).hparams[name] == 3


def test_a_checkpoint_has_no_function_called(folder: Path) -> None:
    path = changed(checkpoint(folder / "one.ckpt"), _instantiator="os.system")
    with pytest.raises(CheckpointError, match=r"'os\.system', which raylit does not know"):
        Net.load_from_checkpoint(path)


@pytest.mark.parametrize(
    "named", ["subprocess.Popen", "not.imported.Net", "tests.ranks.run_on_two_ranks"]
)
def test_a_checkpoint_has_no_other_class_made(folder: Path, named: str) -> None:
    path = changed(checkpoint(folder / "one.ckpt"), _class_path=named)
    with pytest.raises(
        CheckpointError,
        match=f"of the class '{named}', which is no LightningModule or was not imported",
    ):
        raylit.LightningModule.load_from_checkpoint(path)
    assert "not.imported" not in sys.modules


def test_hyperparameters_that_do_not_fit(folder: Path) -> None:
    path = changed(checkpoint(folder / "one.ckpt"), head={"class_path": "torch.optim.SGD"})
    with pytest.raises(
        CheckpointError, match=r"do not fit Net[\s\S]*load_from_checkpoint\(path, name=value\)"
    ):
        Net.load_from_checkpoint(path)


def test_a_damaged_checkpoint(folder: Path) -> None:
    (folder / "bad.ckpt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"bad\.ckpt"):
        LightningCLI(Net, BoringDataModule, args=["test", *FLAGS, "--ckpt_path=bad.ckpt"])


def test_flags_win_over_a_checkpoint(folder: Path) -> None:
    path = changed(checkpoint(folder / "one.ckpt"), size=3, untyped="kept")
    (folder / "fit.yaml").write_text(
        "model: {head: {class_path: torch.nn.Softmax, init_args: {dim: 1}}}\n"
    )
    typed = ["--config=fit.yaml", "--model", '{"size": 9}', "--model.head.dim=0"]
    flags = ["validate", *FLAGS, "--trainer.limit_val_batches=1", f"--ckpt_path={path}", *typed]
    taken = LightningCLI(Net, BoringDataModule, args=flags).config.validate.model
    assert (taken.size, taken.head.init_args.dim, taken.untyped) == (9, 0, "kept")
    read = ScriptReader(made(Net)).read("export", [f"--ckpt_path={path}", *typed])
    assert read.values.model == taken, "likewise in the commands of a script"


def test_no_arguments_are_not_those_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py", "--model.size=5"])
    with pytest.warns(UserWarning, match="the arguments of the process are not read"):
        cli = LightningCLI(Net, BoringDataModule, run=False, args=[])
    assert cli.config.model.size == 1


# ---- where the config is kept ----


def test_save_config_that_saves_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="would save nothing"):
        made(
            Net,
            save_config_callback=SaveConfigCallback,
            save_config_kwargs={"save_to_log_dir": False},
        )


def test_no_file_of_a_config_has_secrets(folder: Path) -> None:
    parts = folder / "parts"
    parts.mkdir()
    (parts / "model.yaml").write_text("untyped: {api_key: hunter2}\n")
    for name in ("model.yaml", "config.yaml"):
        (folder / name).write_text("of: another run\n")

    def fit(**kwargs: Any) -> None:
        flags = ["fit", *FLAGS, "--trainer.fast_dev_run=false", "--trainer.limit_train_batches=1"]
        LightningCLI(
            Net,
            BoringDataModule,
            args=[*flags, f"--model={parts / 'model.yaml'}"],
            save_config_kwargs={"multifile": True, **kwargs},
        )

    fit(overwrite=True)
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"] == "model.yaml"
    kept = (folder / "model.yaml").read_text()
    assert yaml.safe_load(kept)["untyped"] == {"api_key": "***"} and "hunter2" not in kept
    (folder / "config.yaml").unlink()
    (folder / "model.yaml").write_text("of: another run\n")
    with pytest.raises(RuntimeError, match=r"model\.yaml to NOT exist"):
        fit()


def test_in_mlflow_the_config_is_an_artifact_of_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    flags = [
        "fit",
        *FLAGS,
        "--trainer.logger=MLFlowLogger",
        "--trainer.limit_train_batches=2",
        "--model.size=4",
    ]
    first = LightningCLI(Net, BoringDataModule, args=flags)
    logger = first.trainer.logger
    assert logger is not None and logger.run_id is not None
    client = MlflowClient(logger.tracking_uri)  # type: ignore[attr-defined]
    text = Path(client.download_artifacts(logger.run_id, "config.yaml", str(folder))).read_text()
    assert yaml.safe_load(text)["model"]["size"] == 4
    again = LightningCLI(
        Net, BoringDataModule, args=[*flags, "--trainer.max_epochs=2", "--ckpt_path=last"]
    )
    assert again.trainer.logger is not None and again.trainer.logger.run_id == logger.run_id, (
        "the same run: nothing is in the way"
    )


def test_a_worker_that_was_restarted_finds_its_own_config(folder: Path) -> None:
    cli = made(BoringModel, save_config_callback=SaveConfigCallback)
    callback = next(one for one in cli.trainer.callbacks if isinstance(one, SaveConfigCallback))
    sent = pickle.dumps(callback)
    for _ in range(2):  # each in a new process
        Trainer(**QUIET, callbacks=[pickle.loads(sent)]).fit(BoringModel())  # type: ignore[arg-type]
    (folder / "config.yaml").write_text("of: another run")
    with pytest.raises(RuntimeError, match=r"config\.yaml to NOT exist"):
        Trainer(**QUIET, callbacks=[pickle.loads(sent)]).fit(BoringModel())  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=r"config\.yaml to NOT exist"):
        cli.trainer.fit(cli.model, cli.datamodule)


def on_two_ranks(folder: str) -> list[Any]:
    sys.argv = ["main.py"]
    flags = [
        "fit",
        *FLAGS,
        f"--trainer.default_root_dir={folder}",
        "--trainer.limit_train_batches=2",
    ]
    seen: list[Any] = []

    class Count(SaveConfigCallback):
        def save_config(self, trainer: Any, pl_module: Any, stage: str) -> None:
            seen.append(stage)

    for _ in range(2):
        try:
            LightningCLI(BoringModel, BoringDataModule, save_config_callback=Count, args=flags)
        except RuntimeError as error:
            seen.append("to NOT exist" in str(error))
    return seen


def test_two_ranks_write_once_and_refuse_together(tmp_path: Path) -> None:
    assert run_on_two_ranks(on_two_ranks, tmp_path) == [["fit", True], [True]]
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["trainer"]["max_epochs"] == 1


MAIN = """\
import raylit as pl
from raylit.cli import LightningCLI
from raylit.testing import BoringDataModule, BoringModel


class Mine(BoringModel):
    def __init__(self, size: int = 1):
        super().__init__()
        self.save_hyperparameters()


class MyCLI(LightningCLI):
    def after_fit(self):
        print("fitted", self.trainer.global_step, self.trainer.num_workers)


if __name__ == "__main__":
    MyCLI(datamodule_class=BoringDataModule)
"""


@pytest.mark.ray
@pytest.mark.long
def test_a_script_on_ray(folder: Path) -> None:
    (folder / "main.py").write_text(MAIN)
    flags = [
        "--trainer.num_workers=2",
        "--trainer.max_steps=3",
        "--model=Mine",
        "--model.size=4",
        "--optimizer=Adam",
    ]
    command = [sys.executable, "main.py", "fit", *flags, "--trainer.accelerator=cpu"]
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=stretched(200),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "fitted 3 2" in done.stdout
    (config,) = folder.glob("lightning_logs/*/config.yaml")
    kept = yaml.safe_load(config.read_text())
    assert (
        kept["model"] == {"class_path": "__main__.Mine", "init_args": {"size": 4}}
        and kept["trainer"]["num_workers"] == 2
    )


def test_a_cli_that_runs_nothing_reads_the_config_of_a_fit(folder: Path) -> None:
    """https://github.com/Lightning-AI/pytorch-lightning/issues/17447"""
    (folder / "fit.yaml").write_text("model: {size: 3}\nckpt_path: last\nweights_only: null\n")
    cli = made(Net, "--config=fit.yaml")
    assert cli.model.hparams["size"] == 3 and cli.trainer.ckpt_path is None
    assert "ckpt_path" not in made(Net).config


def test_a_whole_number_stays_one_whatever_was_annotated_before() -> None:
    """Python keeps the first of unions that it holds for equal; so in a process of its own."""
    script = (
        "from typing import Optional\n"
        "from raylit.cli import LightningCLI\n"
        "from raylit.testing import BoringModel\n"
        "Optional[float | int | None]\n"
        "args = ['--trainer.limit_train_batches=2', '--trainer.logger=false']\n"
        "cli = LightningCLI(BoringModel, run=False, args=args)\n"
        "print(repr(cli.trainer.limit_train_batches))\n"
        "from raylit.cli.config import make_parser\n"
        "parsed = make_parser('fit',"
        " needs_model=False).parse_args(['--trainer.overfit_batches=3'])\n"
        "print(repr(parsed.trainer.overfit_batches))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=stretched(120),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=False,
    )
    assert done.stdout.split() == ["2", "3"], done.stderr


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--resume", "goes on from its last checkpoint with --ckpt_path last"),
        ("--trainer.max_epochss=3", "Did you mean '--trainer.max_epochs'"),
        ("--trainer.max_epochs=x", "error: --trainer.max_epochs is 'x', but must be int or null."),
        ("--trainer.callbacks=EarlyStoping", "error: --trainer.callbacks: there is no class"),
        ("--trainer.callbacks.EarlyStopping.patience=5", "the config has no such one"),
        ("--optimizer=SDG", "error: --optimizer: there is no class 'SDG'. Did you mean 'SGD'?"),
        ("--config=nope.yaml", "File does not exist"),
    ],
)
def test_a_mistake_is_not_hidden_by_all_flags(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, flag: str, words: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py", "fit", flag])
    with pytest.raises(SystemExit) as ended:
        raylit.cli.LightningCLI(BoringModel)
    err = capsys.readouterr().err
    assert ended.value.code == 2 and len(err.splitlines()) < 5
    assert words in err
    if err.startswith("usage:"):  # the parser's own
        assert "fit [-c CONFIG] [--KEY VALUE ...]" in err and "fit --help" in err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "trainer:\n  max_epoch: 2\nmodel: {depth: x}",
            "line 2: trainer.max_epoch: Trainer has",
        ),
        ("modle: {depth: 1}", "line 1: a config has no key 'modle'. Did you mean 'model'?"),
        ("model:\n  depht: 1", "line 2: model.depht: Inner has no argument 'depht'. Did you mean"),
        ("model: {depth: x}", "line 1: model.depth is 'x', but must be int."),
        ("stop: {patience: x}", "line 1: stop.patience is 'x', but must be int."),
        ("sgd:\n  lrr: 1", "line 2: sgd.lrr: SGD has no argument 'lrr'. Did you mean 'lr'?"),
        (
            "trainer:\n  callbacks:\n  - class_path: EarlyStopping\n    init_args: {patienc: 1}",
            "line 4: trainer.callbacks[0].init_args.patienc: EarlyStopping has no argument",
        ),
    ],
)
def test_what_a_config_has_wrong_is_one_sentence_with_its_place(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    words: str,
) -> None:
    class Own(LightningCLI):
        def add_arguments_to_parser(self, parser: Any) -> None:
            parser.add_lightning_class_args(EarlyStopping, "stop")
            parser.set_defaults({"stop.monitor": "val_loss"})
            parser.add_optimizer_args(torch.optim.SGD, "sgd")

    (folder / "config.yaml").write_text(text)
    monkeypatch.setattr(sys, "argv", ["main.py", "fit", "-c", "config.yaml"])
    with pytest.raises(SystemExit) as ended:
        Own(Inner)
    last = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and last.startswith(f"error: config.yaml, {words}")


def test_a_command_that_is_misspelled(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py", "tunee"])
    with pytest.raises(SystemExit):
        raylit.cli.LightningCLI(BoringModel)
    err = capsys.readouterr().err
    assert "there is no command 'tunee'. Did you mean 'tune'? There are: fit, validate," in err


def test_keys_of_callbacks_by_their_class() -> None:
    """As in `raylit fit`; the later flag wins, wherever it stands."""
    item = {"class_path": "EarlyStopping", "init_args": {"monitor": "val_loss", "patience": 3}}
    key = "--trainer.callbacks.EarlyStopping"
    flags = (f"{key}.patience", "7", f"--trainer.callbacks=[{item}]", f"{key}.min_delta=0.5")
    stopping = made(BoringModel, *flags).trainer.early_stopping_callback
    assert stopping is not None and (stopping.patience, stopping.min_delta) == (7, -0.5)
    assert stopping.monitor == "val_loss"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "Interrupted."),
        (
            MissingPackageError("nowhere", "It"),
            1,
            "MissingPackageError: It needs the package nowhere, which is not installed. Run: pip"
            " install nowhere",
        ),
    ],
)
def test_what_ends_a_script_without_a_fault_of_its_own_is_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    said: str,
) -> None:
    class Ends(LightningCLI):
        def after_instantiate_classes(self) -> None:
            raise error.with_traceback(None)

    def run(args: list[str] | None) -> None:
        Ends(BoringModel, args=args)

    flags = ["fit", *FLAGS]
    with pytest.raises(type(error)):  # a script that hands over its arguments gets the exception
        run(flags)
    monkeypatch.setattr(sys, "argv", ["main.py", *flags])
    with pytest.raises(SystemExit) as ended:
        run(None)
    assert ended.value.code == code
    assert capsys.readouterr().err.splitlines()[-1] == said


def test_a_checkpoint_that_is_not_there_is_one_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py", "test", "--ckpt_path", "nope.ckpt"])
    with pytest.raises(SystemExit) as ended:
        raylit.cli.LightningCLI(BoringModel)
    err = capsys.readouterr().err
    assert ended.value.code == 2 and "Traceback" not in err
    assert err.splitlines()[-1].endswith(
        "ckpt_path='nope.ckpt': there is no such file. Give a path, 'best' or 'last'."
    )
