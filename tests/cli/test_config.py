"""What files and flags add up to, and what is made of it."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from .conftest import Done

GOOD = (
    "--model",
    "lab.Net",
    "--data",
    "lab.Diabetes",
    "--trainer.max_epochs",
    "1",
    "--trainer.log_every_n_steps=1",
)
BARE = ("fit", "--model", "lab.Bare", *GOOD[2:])


def printed(done: Done) -> dict[str, Any]:
    assert done.code == 0, done
    config: dict[str, Any] = yaml.safe_load(done.out)
    return config


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_later_files_win_and_flags_win_over_files(main: Callable[..., Done], lab: Path) -> None:
    (lab / "a.yaml").write_text(
        "model: {class_path: lab.Net, init_args: {lr: 0.1, width: 7}}\ntrainer: {max_epochs: 5,"
        " max_steps: 50}\nseed_everything: 3\n"
    )
    (lab / "b.yaml").write_text(
        "model: {class_path: lab.Net, init_args: {lr: 0.2}}\ntrainer: {max_epochs: 6}\n"
    )
    config = printed(
        main(
            "fit",
            "--config",
            "a.yaml",
            "--config",
            "b.yaml",
            "--trainer.max_steps",
            "60",
            "--print_config",
        )
    )
    assert config["model"] == {
        "class_path": "lab.Net",
        "init_args": {"lr": 0.2, "width": 7, "delay_s": 0.0},
    }
    assert (
        config["trainer"]["max_epochs"],
        config["trainer"]["max_steps"],
        config["seed_everything"],
    ) == (6, 60, 3)
    swapped = printed(main("fit", "--config", "b.yaml", "--config", "a.yaml", "--print_config"))
    assert (swapped["model"]["init_args"]["lr"], swapped["trainer"]["max_epochs"]) == (0.1, 5)


def test_a_printed_config_says_the_same_again(main: Callable[..., Done], lab: Path) -> None:
    flags = (
        *(
            "--model.encoder",
            "torch.nn.LayerNorm",
            "--model.encoder.normalized_shape",
            "4",
            "--trainer.check_val_every_n_epoch",
            "null",
        ),
        *(
            "--trainer.val_check_interval",
            "3",
            "--trainer.callbacks+=EarlyStopping",
            "--trainer.callbacks.monitor=val_loss",
        ),
        *(
            "--trainer.callbacks+=raylit.callbacks.ModelCheckpoint",
            "--trainer.callbacks.save_top_k=-1",
            "--optimizer=Adam",
            "--optimizer.lr=1e-5",
        ),
    )
    first = main("fit", *GOOD, *flags, "--print_config")
    (lab / "whole.yaml").write_text(first.out)
    second = main("fit", "--config", "whole.yaml", "--print_config")
    assert second.out == first.out
    config = printed(second)
    assert config["trainer"]["check_val_every_n_epoch"] is None, (
        "a null against a default of 1 must not be lost"
    )
    assert [callback["class_path"] for callback in config["trainer"]["callbacks"]] == [
        "raylit.callbacks.EarlyStopping",
        "raylit.callbacks.ModelCheckpoint",
    ]
    assert config["optimizer"]["init_args"]["lr"] == 1e-5


def test_a_config_can_be_printed_before_there_is_a_model(main: Callable[..., Done]) -> None:
    assert printed(main("fit", "--print_config"))["trainer"]["accumulate_grad_batches"] == 1


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_the_keys_are_those_of_lightning(
    command: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning.pytorch.cli import LightningCLI

    monkeypatch.setattr("sys.argv", ["main.py"])
    capfd.readouterr()
    with pytest.raises(SystemExit):
        LightningCLI(args=[command, "--print_config"])
    theirs = set(yaml.safe_load(capfd.readouterr().out))
    from raylit.cli.config import make_parser

    ours = set(make_parser(command).get_defaults().as_dict()) - {"config"}
    assert ours >= theirs - {"model"}
    assert ours <= theirs | {"model", "data", "optimizer", "lr_scheduler"}


def test_the_config_is_kept_with_the_run_and_repeats_it(
    main: Callable[..., Done], lab: Path
) -> None:
    first = main(
        "fit", *GOOD, "--seed_everything", "5", "--model.width", "6", "--trainer.max_epochs", "2"
    )
    assert first.code == 0, first
    kept = lab / "lightning_logs/version_0/config.yaml"
    assert yaml.safe_load(kept.read_text())["model"]["init_args"]["width"] == 6
    second = main("fit", "--config", str(kept))
    assert second.code == 0, second
    assert rows(lab / "lightning_logs/version_0") == rows(lab / "lightning_logs/version_1")
    third = main("fit", "--config", str(kept), "--seed_everything", "6")
    assert third.code == 0
    assert rows(lab / "lightning_logs/version_0") != rows(lab / "lightning_logs/version_2")


def test_the_seed_that_true_means_is_written_down(main: Callable[..., Done], lab: Path) -> None:
    assert main("fit", *GOOD).code == 0
    assert (
        yaml.safe_load((lab / "lightning_logs/version_0/config.yaml").read_text())[
            "seed_everything"
        ]
        == 0
    )


def test_a_trial_run_keeps_nothing(main: Callable[..., Done], lab: Path) -> None:
    done = main("fit", *GOOD, "--trainer.fast_dev_run", "true")
    assert done.code == 0, done
    assert sorted(path.name for path in lab.iterdir() if path.name != "__pycache__") == ["lab.py"]


def test_hyperparameters_are_what_the_config_says(main: Callable[..., Done], lab: Path) -> None:
    done = main(
        "fit",
        *GOOD,
        "--model.encoder",
        "torch.nn.LayerNorm",
        "--model.encoder.normalized_shape",
        "4",
        "--model.lr",
        "0.25",
    )
    assert done.code == 0, done
    hparams = yaml.unsafe_load((lab / "lightning_logs/version_0/hparams.yaml").read_text())
    assert hparams["lr"] == 0.25
    assert (
        hparams["encoder"]["class_path"].endswith("LayerNorm")
        and hparams["encoder"]["init_args"]["normalized_shape"] == 4
    )
    (checkpoint,) = (lab / "lightning_logs/version_0/checkpoints").iterdir()
    assert "net.2.weight" in torch.load(checkpoint, weights_only=True)["state_dict"], (
        "the encoder is a LayerNorm"
    )


def test_optimizer_and_scheduler_of_the_config_are_used(
    main: Callable[..., Done], lab: Path
) -> None:
    flags = (
        "--optimizer=SGD",
        "--optimizer.lr=0.25",
        "--optimizer.momentum=0.5",
        "--lr_scheduler=StepLR",
        "--lr_scheduler.step_size=1",
        "--lr_scheduler.gamma=0.5",
    )
    done = main(
        *BARE,
        *flags,
        "--trainer.max_epochs=3",
        "--trainer.callbacks=LearningRateMonitor",
        "--trainer.callbacks.logging_interval=epoch",
    )
    assert done.code == 0, done
    assert [
        float(row["lr-SGD"]) for row in rows(lab / "lightning_logs/version_0") if row["lr-SGD"]
    ] == [0.25, 0.125, 0.0625]
    (checkpoint,) = (lab / "lightning_logs/version_0/checkpoints").iterdir()
    group = torch.load(checkpoint, weights_only=True)["optimizer_states"][0]["param_groups"][0]
    assert group["momentum"] == 0.5


@pytest.mark.parametrize("name", ["ReduceLROnPlateau", "raylit.cli.ReduceLROnPlateau"])
def test_reduce_on_plateau_watches_the_metric_of_the_config(
    main: Callable[..., Done], lab: Path, name: str
) -> None:
    flags = (
        "--optimizer=SGD",
        "--optimizer.lr=1e-9",
        f"--lr_scheduler={name}",
        "--lr_scheduler.monitor=val_loss",
        "--lr_scheduler.patience=0",
        "--lr_scheduler.factor=0.1",
    )
    done = main(
        *BARE,
        *flags,
        "--lr_scheduler.eps=0",
        "--trainer.max_epochs=3",
        "--trainer.callbacks=LearningRateMonitor",
    )
    assert done.code == 0, done
    rates = [
        float(row["lr-SGD"]) for row in rows(lab / "lightning_logs/version_0") if row["lr-SGD"]
    ]
    assert rates[0] == pytest.approx(1e-9) and rates[-1] == pytest.approx(1e-10), (
        "a loss that does not fall reduces the rate"
    )
    missing = main(*BARE, *flags[:3], "--lr_scheduler.monitor=nothing")
    assert missing.code == 2 and "'nothing'" in missing.err


def test_a_model_without_optimizer_needs_one(main: Callable[..., Done]) -> None:
    done = main(*BARE)
    assert done.code == 2
    assert "Bare has no configure_optimizers()" in done.err


def test_the_config_replaces_the_optimizer_of_the_model_and_says_so(
    main: Callable[..., Done], lab: Path
) -> None:
    done = main("fit", *GOOD, "--optimizer", "Adagrad", "--trainer.callbacks=LearningRateMonitor")
    assert done.code == 0, done
    assert "lr-Adagrad" in rows(lab / "lightning_logs/version_0")[0]


def test_regularization_from_a_file(main: Callable[..., Done], lab: Path) -> None:
    (lab / "l.yaml").write_text("""
trainer:
  callbacks:
    - class_path: raylit.callbacks.Regularization
      init_args:
        l1: 0.5
        l2: 1.0e-3
        groups: {"net.3.*": {l1: 0.0}}
        log_penalty: true
  logger: {class_path: CSVLogger, init_args: {save_dir: ., version: "0"}}
""")
    done = main(
        "fit", *GOOD, "--config", "l.yaml", "--trainer.max_epochs", "40", "--model.lr", "0.002"
    )
    assert done.code == 0, done
    (folder,) = (path.parent for path in lab.rglob("metrics.csv"))
    assert all(float(row["penalty"]) >= 0 for row in rows(folder) if row.get("penalty"))
    assert any(row.get("penalty") for row in rows(folder))
    weights = torch.load(next(lab.rglob("*.ckpt")), weights_only=True)["state_dict"]
    assert (
        weights["net.0.weight"].abs().median()
        < 0.002
        < 0.02
        < weights["net.3.weight"].abs().median()
    )
    wrong = main("fit", *GOOD, "--config", "l.yaml", "--trainer.callbacks.init_args.l1", "-1.0")
    assert wrong.code == 2
    assert "Regularization(l1=-1.0): give a number of at least 0." in wrong.err


def test_compile_from_a_file_and_from_a_flag(main: Callable[..., Done], lab: Path) -> None:
    (lab / "c.yaml").write_text("trainer:\n  compile: {backend: aot_eager, dynamic: false}\n")
    assert printed(main("fit", *GOOD, "--config", "c.yaml", "--print_config"))["trainer"][
        "compile"
    ] == {
        "backend": "aot_eager",
        "dynamic": False,
    }
    done = main("fit", *GOOD, "--config", "c.yaml")
    assert done.code == 0, done
    assert (
        printed(main("fit", *GOOD, "--trainer.compile", "true", "--print_config"))["trainer"][
            "compile"
        ]
        is True
    )
    wrong = main("fit", *GOOD, "--trainer.compile", "{backnd: eager}")
    assert wrong.code == 2
    assert "torch.compile has no argument 'backnd'. Did you mean 'backend'?" in wrong.err


def test_a_logger_needs_no_path() -> None:
    code = (  # in a process of its own, where nothing else has imported them
        "from raylit.cli.diagnosis import find_class; from raylit import loggers;"
        "names = set(loggers.__all__) - {'Logger'};"
        "print(*(find_class(name, loggers.Logger).__name__ for name in names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"RayMetricsLogger", "TensorBoardLogger", "WandbLogger"} <= set(done.stdout.split())


ITEMS = """
trainer:
  logger: false
  callbacks:
    - {class_path: EarlyStopping, init_args: {monitor: val_loss}}
    - {class_path: raylit.callbacks.ModelCheckpoint}
"""


def test_callbacks_are_named_by_their_classes(main: Callable[..., Done], lab: Path) -> None:
    (lab / "a.yaml").write_text(ITEMS.replace("val_loss}", "val_loss, divergence_threshold: .inf}"))
    flags = ("--trainer.callbacks.EarlyStopping.patience", "7", "--print_config")
    values = printed(
        main(
            "fit", "--config", "a.yaml", *flags, "--trainer.callbacks.ModelCheckpoint.save_top_k=-1"
        )
    )
    stopping, saver = values["trainer"]["callbacks"]
    assert stopping["init_args"]["patience"] == 7 and saver["init_args"]["save_top_k"] == -1
    others = {name: stopping["init_args"][name] for name in ("monitor", "divergence_threshold")}
    assert others == {"monitor": "val_loss", "divergence_threshold": math.inf}, "the file's"


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("EarlyStoping.patience=7", "Did you mean 'EarlyStopping'"),
        ("EarlyStopping.patienc=7", "no argument 'patienc'"),
        ("EarlyStopping.patience=x", "patience is 'x', but must be int"),
        ("EarlyStopping.patience", "wants a value"),
        ("EarlyStopping.patience=[1", "patience is '[1', but must be int"),
        ("EarlyStopping.patience.x=1", "patience is 3, which has no 'x'"),
        ("ModelCheckpoint.save_top_k=1", "the config has 2 of them"),
    ],
)
def test_a_callback_that_is_not_as_it_is_named(
    main: Callable[..., Done], lab: Path, flag: str, words: str
) -> None:
    (lab / "a.yaml").write_text(f"{ITEMS}    - {{class_path: ModelCheckpoint}}\n")
    done = main("fit", "--config", "a.yaml", f"--trainer.callbacks.{flag}", "--print_config")
    assert done.code == 2 and words in done.err
