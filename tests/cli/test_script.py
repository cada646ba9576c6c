"""A user's LightningCLI script and the command `raylit`: what each does with the other's config."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import yaml

from raylit.cli import LightningCLI
from raylit.cli.config import parse
from raylit.cli.script import ScriptReader
from raylit.cli.source import ConfigSource
from raylit.cli.sweep import ConfigRecipe, _plain
from raylit.errors import ConfigError
from raylit.testing import BoringDataModule, BoringModel
from tests.deadlines import stretched

from .conftest import Done, environment

SCRIPT = """\
from raylit.cli import LightningCLI
from lab import Diabetes, Net


class Linked(Net):
    def __init__(self, rows: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.rows = rows


class CLI(LightningCLI):
    def add_arguments_to_parser(self, parser):
        parser.link_arguments("data.batch_size", "model.rows")

    def after_instantiate_classes(self):
        assert self.model.rows == self.datamodule.batch_size, "the link"


if __name__ == "__main__":
    CLI(Linked, Diabetes)
"""
CONFIG = """\
# lightning.pytorch==2.6.6
seed_everything: 1
trainer:
  accelerator: auto
  devices: auto
  num_nodes: 1
  logger: null
  callbacks:
  - class_path: lightning.pytorch.callbacks.EarlyStopping
    init_args: {monitor: val_loss, patience: 5}
  - class_path: pytorch_lightning.callbacks.ModelCheckpoint
    init_args: {monitor: val_loss}
  max_epochs: 2
  enable_progress_bar: false
  model_registry: null
model: {width: 6}
data: {batch_size: 64}
optimizer: null
ckpt_path: null
"""


class Keyed(BoringModel):
    def __init__(self, api_key: str = "", mode: Literal["1", "off"] = "1", width: int = 2) -> None:
        super().__init__()


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> ScriptReader:
    """What reads the commands of a script with fixed classes."""
    monkeypatch.setattr(sys, "argv", ["main.py"])
    return ScriptReader(LightningCLI(Keyed, BoringDataModule, run=False, args=[]))


@pytest.fixture
def folder(lab: Path) -> Path:
    lab.joinpath("main.py").write_text(SCRIPT)
    lab.joinpath("config.yaml").write_text(CONFIG)
    return lab


def run_script(folder: Path, *args: str) -> Done:
    done = subprocess.run(
        [sys.executable, "main.py", *args],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=stretched(150),
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def test_a_config_that_lightning_wrote_runs_and_exports(folder: Path) -> None:
    done = run_script(
        folder, "export", "--config", "config.yaml", "--format", "safetensors", "--path", "net.st"
    )
    assert done.code == 0, done
    assert folder.joinpath("net.st").is_file()
    said = [line for line in done.err.splitlines() if " is read as " in line]
    assert said == [
        "lightning.pytorch.callbacks.EarlyStopping is read as raylit.callbacks.EarlyStopping.",
        "pytorch_lightning.callbacks.ModelCheckpoint is read as raylit.callbacks.ModelCheckpoint.",
    ]


def test_what_is_typed_wrong_is_one_message(folder: Path) -> None:
    done = run_script(folder, "fit", "--config", "config.yaml", "--trainer.max_epochs", "-7")
    assert done.code == 2, done
    assert "Traceback" not in done.err
    last = done.err.splitlines()[-1]
    assert last.startswith("python main.py: ") and "max_epochs=-7: give a whole" in last


def test_the_command_that_is_no_subcommand_of_the_script_says_what_is_wrong(folder: Path) -> None:
    done = run_script(folder, "tune", "--config", "config.yaml")
    assert done.code == 2, done
    assert done.err.splitlines()[-1].startswith(
        "python main.py tune: the file that describes the sweep is missing: --sweep"
    )


def test_the_commands_of_a_script_take_secrets_from_the_environment(
    reader: ScriptReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "kept.yaml"
    file.write_text("model: {api_key: '***'}\n")
    with pytest.raises(ConfigError, match=r"line 1: model\.api_key is masked.*PL_MODEL"):
        reader.read("check", ["--config", str(file)])
    monkeypatch.setenv("PL_MODEL_API_KEY", "hunter2")
    assert reader.read("check", ["--config", str(file)]).values.model.api_key == "hunter2"


@pytest.mark.parametrize("text", ["", "off", "1.10", "null", "a: b", " a", "a #b", "2020-01-01"])
def test_the_trials_of_a_script_get_texts_as_they_are(reader: ScriptReader, text: str) -> None:
    base = _plain(reader.read("tune", ["--model.width=5"]))
    recipe = ConfigRecipe(base, ["--model.width=5"], ".", ConfigSource("sweep.yaml", {}), reader)
    values = {"model.api_key": text, "model.mode": "off"}
    recipe.check(values)
    model = recipe._parsed(values).values.model
    assert (model.api_key, model.mode, model.width) == (text, "off", 5)
    assert yaml.safe_load(recipe.best_config(values, 0))["model"]["api_key"] == text


@pytest.mark.ray
@pytest.mark.long
def test_a_script_sweeps_with_its_own_links(folder: Path) -> None:
    folder.joinpath("sweep.yaml").write_text(
        "metric: {name: val_loss, mode: min}\ntrials: 7\n"
        "space:\n  model.lr: {loguniform: [0.001, 0.1]}\n  data.batch_size: {choice: [32, 221]}\n"
    )
    flags = ("--config", "config.yaml", "--sweep", "sweep.yaml", "--sweep.trials", "2")
    done = run_script(folder, "tune", *flags)
    assert done.code == 0, done
    assert done.out.count(" finished") >= 2
    best = next(folder.glob("raylit_runs/*/best.yaml"))
    assert f"python main.py fit --config raylit_runs/{best.parent.name}/best.yaml" in done.out
    kept = yaml.safe_load(best.read_text())
    assert kept["model"]["width"] == 6
    assert kept["data"]["batch_size"] in (32, 221)
    again = run_script(folder, "fit", "--config", str(best))
    assert again.code == 0, again


def test_the_command_reads_a_scripts_config_when_told_the_classes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    told = ["--model", "lab.Net", "--data=lab.Diabetes"]
    config = parse("fit", ["--config", "config.yaml", *told, "--model.lr", "0.25"])
    assert config.values.model.class_path == "lab.Net"
    assert config.values.model.init_args.lr == 0.25
    assert config.values.data.init_args.batch_size == 64
    assert config.values.model.init_args.width == 6
    model, _ = config.make_model_and_data()
    assert model.net[0].out_features == 6
    with pytest.raises(ConfigError, match=r"line 16: model has no class_path.*--model package"):
        parse("fit", ["--config", "config.yaml"])


def test_a_class_that_raylit_has_not_stays_and_is_refused(folder: Path) -> None:
    text = CONFIG.replace("callbacks.EarlyStopping", "callbacks.OnlyInLightning")
    folder.joinpath("config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"config.yaml, line 9: .*OnlyInLightning"):
        parse("fit", ["--config", str(folder / "config.yaml"), "--model", "lab.Net"])
