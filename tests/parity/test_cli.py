"""A user's own script with LightningCLI, with the same arguments under both packages."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import raylit
from tests.lazy import lightning
from tests.parity.cli_script import (
    config_of,
    fitted,
    left,
    neutral,
    quiet_flags,
    said,
    saved_config,
    script,
    stored_hyperparameters,
)
from tests.parity.harness import errors, files, packages, parity, quiet, seen

# ---- fit ----

FLAGS: dict[str, list[str]] = {
    "as it is": [],
    "arguments": [
        "--model.width=6",
        "--model.lr",
        "0.01",
        "--data.batch_size=5",
        "--seed_everything=7",
    ],
    "an optimizer": ["--optimizer=Adam", "--optimizer.lr=0.01"],
    "a scheduler": [
        "--optimizer=SGD",
        "--optimizer.lr=0.1",
        "--lr_scheduler=StepLR",
        "--lr_scheduler.step_size=1",
    ],
    "on a plateau": [
        "--optimizer=SGD",
        "--optimizer.lr=0.1",
        "--lr_scheduler=ReduceLROnPlateau",
        "--lr_scheduler.monitor=val_loss",
        "--lr_scheduler.patience=0",
        "--lr_scheduler.threshold=10",
    ],
    "callbacks one by one": [
        "--trainer.callbacks=LearningRateMonitor",
        "--trainer.callbacks.logging_interval=step",
        "--trainer.callbacks+=EarlyStopping",
        "--trainer.callbacks.monitor=val_loss",
        "--trainer.callbacks.patience=0",
    ],
    "an object": ["--model.encoder=torch.nn.LeakyReLU", "--model.encoder.negative_slope=0.2"],
    "an object as one": ['--model.encoder={"class_path": "torch.nn.Sequential", "init_args": {}}'],
    "no seed": ["--seed_everything=false"],
}


@parity
@pytest.mark.parametrize("flags", FLAGS)
def test_fit(pl: Any, tmp_path: Path, flags: str) -> Any:
    with script(pl, tmp_path) as user:
        return left(
            user.LightningCLI(user.Net, user.Data, args=["fit", *quiet_flags(), *FLAGS[flags]]),
            tmp_path,
        )


@parity
def test_config_files(pl: Any, tmp_path: Path) -> Any:
    (tmp_path / "base.yaml").write_text(
        "trainer: {max_epochs: 1, limit_train_batches: 2}\nmodel: {width: 3}\ndata: data.yaml\n"
    )
    (tmp_path / "data.yaml").write_text("batch_size: 3\n")
    (tmp_path / "more.yaml").write_text(
        "model: {width: 2, lr: 0.2}\ntrainer:\n  callbacks:\n    - class_path:"
        f" {pl.__name__}.callbacks.LearningRateMonitor\n"
    )
    with script(pl, tmp_path) as user:
        flags = ["fit", *quiet_flags(), "-c", "base.yaml", "--config=more.yaml", "--model.lr=0.3"]
        first = left(user.LightningCLI(user.Net, user.Data, args=flags), tmp_path)
        again = user.LightningCLI(
            user.Net,
            user.Data,
            args=["fit", "--config=lightning_logs/version_0/config.yaml"],
            save_config_kwargs={"multifile": True},
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
        flags = [
            "fit",
            *quiet_flags(),
            f"--model={user.__name__}.Callables",
            "--model.width=3",
            "--data=Other",
            "--data.noise=0.25",
        ]
        flags += [
            "--model.optimizer=SGD",
            "--model.optimizer.lr=0.2",
            "--model.scheduler=StepLR",
            "--model.scheduler.step_size=1",
        ]
        classes = (user.Net, user.Data) if named else ()
        cli = user.LightningCLI(
            *classes, args=flags, subclass_mode_model=True, subclass_mode_data=True
        )
        return {
            "data": type(cli.datamodule).__name__,
            "lr": cli.trainer.optimizers[0].param_groups[0]["lr"],
            **left(cli, tmp_path),
        }


@parity
@pytest.mark.parametrize(
    "flags",
    [[], ["--optimizer=Adam", "--lr_scheduler=ConstantLR", "--note=new", "--stopping.patience=7"]],
)
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
        kept = next(
            callback for callback in cli.trainer.callbacks if isinstance(callback, user.Elsewhere)
        ).saved
        notes = [
            [n for n in note if n not in ("TQDMProgressBar",)] if isinstance(note, list) else note
            for note in cli.notes
        ]
        stopping = next(
            callback
            for callback in cli.trainer.callbacks
            if isinstance(callback, user.EarlyStopping)
        )
        found = {
            "notes": notes,
            "kept": [kept[0], neutral(yaml.safe_load(kept[1]))],
            "patience": stopping.patience,
        }
        return {**found, **left(cli, tmp_path), "files": files(tmp_path, "**/*.yaml")}


@parity
def test_fixed_optimizers(pl: Any, tmp_path: Path) -> Any:
    with script(pl, tmp_path) as user:
        cli = user.Fixed(
            user.Net, user.Data, args=["fit", *quiet_flags(), "--optimizer.betas=[0.8, 0.9]"]
        )
        return {"betas": cli.trainer.optimizers[0].param_groups[0]["betas"], **left(cli, tmp_path)}


@parity
def test_links(pl: Any, tmp_path: Path) -> Any:
    with script(pl, tmp_path) as user:
        flags = ["fit", *quiet_flags(), "--first=Adam", "--first.lr=0.3", "--second.step_size=2"]
        cli = user.LinkedCLI(user.Linked, user.Data, args=flags)
        return {
            "specs": [dict(spec) for spec in cli.model.specs],
            "hparams": dict(cli.model.hparams),
            **left(cli, tmp_path),
        }


# ---- other ways in ----


@parity
def test_nothing_runs(pl: Any, tmp_path: Path) -> Any:
    with script(pl, tmp_path) as user:
        cli = user.LightningCLI(
            user.Net,
            user.Data,
            run=False,
            args=[*quiet_flags(), "--optimizer=SGD", "--optimizer.lr=0.2"],
        )
        before = cli.trainer.global_step
        cli.trainer.fit(cli.model, cli.datamodule)
        return {"before": before, **left(cli, tmp_path)}


@parity
def test_functions_in_place_of_classes(pl: Any, tmp_path: Path) -> Any:
    with script(pl, tmp_path) as user:
        flags = [*quiet_flags(), "--model.width=2"]
        cli = user.LightningCLI(
            user.make_net, trainer_class=user.make_trainer, run=False, args=flags
        )
        return {
            "config": config_of(cli),
            "hparams": dict(cli.model.hparams),
            "steps": cli.trainer.max_steps,
            "data": cli.datamodule,
        }


@parity
@pytest.mark.parametrize("run", [True, False])
def test_a_dict_of_arguments(pl: Any, tmp_path: Path, run: bool) -> Any:
    trainer = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
    }
    values = {"trainer": trainer, "model": {"width": 2}, "data": {"batch_size": 9}}
    with script(pl, tmp_path) as user:
        cli = user.LightningCLI(
            user.Net,
            user.Data,
            run=run,
            args={"subcommand": "fit", "fit": values} if run else values,
        )
        return left(cli, tmp_path)


@parity
def test_the_environment(pl: Any, tmp_path: Path) -> Any:
    with script(pl, tmp_path) as user:
        (tmp_path / "config.in.yaml").write_text("model: {width: 3}\ndata: {batch_size: 3}\n")
        os.environ.update(
            PL_TRAINER__MAX_EPOCHS="3",
            PL_CONFIG="config.in.yaml",
            PL_MODEL__WIDTH="2",
            PL_SEED_EVERYTHING="5",
        )
        kwargs = {"run": False, "args": ["--trainer.max_steps=4"], "save_config_callback": None}
        read = user.LightningCLI(user.Net, user.Data, parser_kwargs={"default_env": True}, **kwargs)
        own = user.LightningCLI(
            user.Net, user.Data, parser_kwargs={"default_env": True, "env_prefix": "MY"}, **kwargs
        )
        return {
            "read": config_of(read),
            "not read": config_of(user.LightningCLI(user.Net, user.Data, **kwargs)),
            "own": config_of(own),
        }


@parity
def test_arguments_of_the_parsers(pl: Any, tmp_path: Path) -> Any:
    (tmp_path / "defaults.yaml").write_text("model: {width: 3}\ntrainer: {max_epochs: 0}\n")
    with script(pl, tmp_path) as user:
        kwargs = {
            "fit": {"default_config_files": ["defaults.yaml"]},
            "test": {"description": "Mine."},
            "prog": "mine",
        }
        cli = user.LightningCLI(
            user.Net, user.Data, args=["fit", "--trainer.logger=false"], parser_kwargs=kwargs
        )
        return {
            "config": config_of(cli),
            "prog": cli.parser.prog,
            "text": cli._subcommand_parsers["test"].description,
        }


@parity
def test_help_and_print_config(pl: Any, tmp_path: Path) -> Any:
    with script(pl, tmp_path) as user:
        (tmp_path / "printed.yaml").write_text(
            said(
                lambda: user.Extended(
                    user.Net, user.Data, args=["fit", *quiet_flags(), "--print_config"]
                )
            )[1]
        )
        cli = user.Extended(user.Net, user.Data, args=["fit", "--config=printed.yaml"])
        code, text, _ = said(lambda: user.LightningCLI(user.Net, user.Data, args=["fit", "--help"]))
        of_model = [
            line.strip() for line in text.splitlines() if line.strip().startswith("--model.")
        ]
        return {
            "printed": saved_config(tmp_path / "printed.yaml"),
            "seen": seen(cli.trainer, cli.model),
            "help": [code, of_model],
        }


# ---- from a checkpoint ----


@parity
@pytest.mark.parametrize("subcommand", ["validate", "test", "predict", "fit"])
def test_the_model_gets_the_arguments_of_the_checkpoint(
    pl: Any, tmp_path: Path, subcommand: str
) -> Any:
    with script(pl, tmp_path) as user:
        path = fitted(user, tmp_path, user.Net, "--model.width=6", "--model.encoder=torch.nn.Tanh")
        flags = [
            subcommand,
            *quiet_flags(),
            f"--ckpt_path={path}",
            "--data.batch_size=2",
        ]
        cli = user.LightningCLI(user.Net, user.Data, args=flags)
        found = left(cli, tmp_path)
        if subcommand == "fit":  # raylit goes on with the random states of the checkpoint, too
            found = {name: found[name] for name in ("epoch", "step", "config", "configs")}
        return {"width": cli.model.net[0].out_features, **found}


@parity
def test_a_subclass_gets_the_arguments_of_the_checkpoint(pl: Any, tmp_path: Path) -> Any:
    with script(pl, tmp_path) as user:
        path = fitted(
            user,
            tmp_path,
            user.Net,
            f"--model={user.__name__}.Callables",
            "--model.width=6",
            subclass_mode_model=True,
        )
        flags = ["test", *quiet_flags(), f"--model={user.__name__}.Net", f"--ckpt_path={path}"]
        cli = user.LightningCLI(user.Net, user.Data, args=flags, subclass_mode_model=True)
        return {"class": type(cli.model).__name__, **left(cli, tmp_path)}


@parity
def test_load_from_checkpoint(pl: Any, tmp_path: Path) -> Any:
    with script(pl, tmp_path) as user:
        path = fitted(
            user,
            tmp_path,
            user.Net,
            "--model.encoder=torch.nn.LeakyReLU",
            "--model.encoder.negative_slope=0.25",
        )
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
        flags = [
            f"--model={user.__name__}.Callables",
            "--model.optimizer=SGD",
            "--model.optimizer.lr=0.125",
        ]
        path = fitted(user, tmp_path, user.Net, *flags, subclass_mode_model=True)
        made = pl.LightningModule.load_from_checkpoint(path)
        return {
            "class": type(made).__name__,
            "lr": made.configure_optimizers().param_groups[0]["lr"],
            "weights": made.state_dict(),
        }


@parity
def test_hyperparameters_as_init_gets_them(pl: Any, tmp_path: Path) -> Any:
    with script(pl, tmp_path) as user:
        path = fitted(
            user, tmp_path, user.Net, "--model.width=3", load_from_checkpoint_support=False
        )
        return stored_hyperparameters(tmp_path / path)


def test_either_loads_the_checkpoint_of_the_other(tmp_path: Path) -> None:
    paths = {}
    for pl in (lightning.pytorch, raylit):
        root = tmp_path / pl.__name__
        root.mkdir()
        with script(pl, root) as user:
            paths[pl] = root / fitted(
                user, root, user.Net, "--model.encoder=torch.nn.Tanh", "--model.width=5"
            )
    for pl, path in ((raylit, paths[lightning.pytorch]), (lightning.pytorch, paths[raylit])):
        root = tmp_path / f"{pl.__name__}_again"
        root.mkdir()
        with script(pl, root) as user:
            made = user.Net.load_from_checkpoint(path)
            assert isinstance(made.net[1], torch.nn.Tanh) and made.net[0].out_features == 5
            cli = user.LightningCLI(
                user.Net, user.Data, args=["test", *quiet_flags(), f"--ckpt_path={path}"]
            )
            assert (
                cli.model.net[0].out_features == 5 and "test_loss" in cli.trainer.callback_metrics
            )


# ---- subcommands, and what the CLI brings for them ----


@parity
def test_subcommands_of_ones_own(pl: Any, tmp_path: Path) -> Any:
    with script(pl, tmp_path) as user:
        cli = user.Evaluating(
            user.Net, user.Data, args=["validate", *quiet_flags(), "--verbose=false"]
        )
        code, _, _ = said(lambda: user.Evaluating(user.Net, user.Data, args=["fit"]))
        return {
            "given": cli.given,
            "result": cli.result,
            "config": config_of(cli),
            "fit": code,
            "hooks": copy.copy(cli.subcommand),
        }


# ---- what is refused ----


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
        code, out, text = said(lambda: user.LightningCLI(user.Net, user.Data, args=BAD[flags]))
        usage, _, error = text.partition("\nerror: ")
        return {"code": code, "out": out, "begins": usage[:7], "is said": bool(error)}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("no such subcommand", "no command 'train'"),
        ("no such key", "Did you mean '--model.width'?"),
        ("no such argument", "Did you mean '--trainer.min_epochs'?"),
        ("a wrong type", "--trainer.max_epochs is 'three', but must be int or null."),
        ("no such class", "--model.encoder: torch.nn has no class 'Nothing'."),
        ("no callback", "--trainer.callbacks: torch.nn.ReLU is no Callback."),
        ("no such optimizer", "there is no class 'Adamant'. Did you mean 'Adam"),
    ],
)
def test_difference_what_is_wrong_is_said_in_one_sentence(
    tmp_path: Path, flags: str, words: str
) -> None:
    lines = {}
    for name, pl in (("lightning", lightning.pytorch), ("raylit", raylit)):
        with script(pl, tmp_path) as user:
            _, _, text = said(partial(user.LightningCLI, user.Net, user.Data, args=BAD[flags]))
            lines[name] = text.partition("\nerror: ")[2].splitlines()
    assert words in " ".join(lines["raylit"]) and len(lines["raylit"]) <= 2
    assert words not in " ".join(lines["lightning"])


@parity
def test_hyperparameters_that_do_not_fit_end_the_script(pl: Any, tmp_path: Path) -> Any:
    with script(pl, tmp_path) as user:
        path = fitted(user, tmp_path, user.Callables)
        code, _, text = said(
            lambda: user.LightningCLI(
                user.Linked, user.Data, args=["test", *quiet_flags(), f"--ckpt_path={path}"]
            )
        )
        return {"code": code, "said": "Parsing of ckpt_path hyperparameters failed!" in text}


@parity
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_config_that_is_there(pl: Any, tmp_path: Path, overwrite: bool) -> Any:
    (tmp_path / "config.yaml").write_text("of: another run")
    flags = ["fit", *quiet_flags(max_epochs=1), "--trainer.logger=false"]
    with script(pl, tmp_path) as user:
        try:
            user.LightningCLI(
                user.Net, user.Data, args=flags, save_config_kwargs={"overwrite": overwrite}
            )
            return saved_config(tmp_path / "config.yaml")
        except RuntimeError as error:
            return [
                "to NOT exist" in str(error),
                (tmp_path / "config.yaml").read_text(),
                files(tmp_path),
            ]


@parity
def test_no_config_of_a_trial_run(pl: Any, tmp_path: Path) -> Any:
    with script(pl, tmp_path) as user:
        cli = user.LightningCLI(user.Net, user.Data, args=["fit", *quiet_flags(fast_dev_run=True)])
        return {
            "callbacks": (
                [type(one).__name__ == "SaveConfigCallback" for one in cli.trainer.callbacks].count(
                    True
                )
            ),
            "yaml": files(tmp_path, "**/*.yaml"),
        }


@errors
@pytest.mark.parametrize("what", ["optimizers", "saving", "class", "optimizer", "constructor"])
def test_what_does_not_fit_together(pl: Any, tmp_path: Path, what: str) -> Any:
    with script(pl, tmp_path) as user:
        if what == "optimizers":
            user.TwoOptimizers(user.Net, run=False, args=[])
        elif what == "saving":
            user.LightningCLI(
                user.Net, run=False, args=[], save_config_kwargs={"save_to_log_dir": False}
            )
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
        return user.LightningCLI(
            user.Outer, run=False, args=["--model.anything=1"]
        ).model.inner.hparams.get("depth")

    assert both(call, tmp_path) == [None, 3]


def test_difference_a_flag_wins_over_the_checkpoint(tmp_path: Path) -> None:
    def call(user: Any, folder: Path) -> Any:
        path = fitted(user, folder, user.Net, "--model.width=6", "--model.lr=0.125")
        flags = ["test", *quiet_flags(), f"--ckpt_path={path}", "--model.lr=0.5"]
        model = user.LightningCLI(user.Net, user.Data, args=flags).model
        return [model.net[0].out_features, model.hparams.lr]

    assert both(call, tmp_path) == [[6, 0.125], [6, 0.5]]


def test_difference_the_optimizer_is_made_when_the_parameters_are_there(tmp_path: Path) -> None:
    def call(user: Any, folder: Path) -> Any:
        try:
            cli = user.LightningCLI(
                user.Late, user.Data, args=["fit", *quiet_flags(max_epochs=1), "--optimizer=Adam"]
            )
        except ValueError as error:
            return str(error)
        return [len(group["params"]) for group in cli.trainer.optimizers[0].param_groups]

    assert both(call, tmp_path) == ["optimizer got an empty parameter list", [2]]


def test_difference_what_a_checkpoint_has_made(tmp_path: Path) -> None:
    def call(user: Any, folder: Path) -> Any:
        path = fitted(user, folder, user.Outer, "--model.encoder=torch.nn.Tanh")
        stored = torch.load(path, weights_only=True)
        stored["hyper_parameters"]["anything"] = {
            "class_path": "fractions.Fraction",
            "init_args": {"numerator": 2},
        }
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
