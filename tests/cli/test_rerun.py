"""`raylit rerun` and `raylit register`, called in this process."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import raylit as pl
from raylit.cli.record import KeepConfig
from raylit.cli.rerun import differences, rerun
from raylit.cli.runs import register
from raylit.errors import ConfigError
from raylit.loggers import MLFlowLogger
from tests.lazy import mlflow
from tests.trainer.test_resolved import Data, Net, quiet


class Evaluated(Net):
    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.net(batch[0]).square().mean())


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    pl.seed_everything(5, workers=True, verbose=False)
    trainer = pl.Trainer(
        **quiet(tmp_path, max_epochs=2, log_every_n_steps=1),
        logger=MLFlowLogger("again", "first", log_model=False),
    )
    result = trainer.fit(Net(8), datamodule=Data(batch_size=6))
    return mlflow.MlflowClient(f"sqlite:///{Path.cwd()}/mlflow.db").get_run(str(result.run_id))


def test_the_same_comes_out(first: Any, capsys: pytest.CaptureFixture[str]) -> None:
    rerun([first.info.run_id[:8]])
    said = capsys.readouterr().out
    assert "class_path: tests.trainer.test_resolved.Net" in said
    assert "The same came out, in all values" in said
    client = mlflow.MlflowClient(f"sqlite:///{Path.cwd()}/mlflow.db")
    runs = client.search_runs([first.info.experiment_id])
    assert len(runs) == 2
    losses = [client.get_metric_history(one.info.run_id, "loss") for one in runs]
    one, other = ([(point.step, point.value) for point in history] for history in losses)
    assert one == other
    assert len(one) == 8

    # another seed gives other values
    text = yaml.safe_load(
        Path(client.download_artifacts(first.info.run_id, "config.yaml")).read_text()
    )
    client.log_text(first.info.run_id, yaml.safe_dump(text | {"seed_everything": 6}), "config.yaml")
    with pytest.raises(SystemExit):
        rerun(["first"] if len(runs) < 2 else [first.info.run_id])
    assert "differs: loss: 8 values, now 8, from step 0" in capsys.readouterr().out


def test_it_is_a_run_of_its_own_in_the_store_that_the_config_names(
    first: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{Path.cwd()}/mlflow.db")
    kept = Path(client.download_artifacts(first.info.run_id, "config.yaml"))
    config = yaml.safe_load(kept.read_text())
    elsewhere = f"sqlite:///{Path.cwd()}/other.db"
    config["trainer"]["logger"]["init_args"] |= {
        "run_id": first.info.run_id,
        "tracking_uri": elsewhere,
    }
    client.log_text(first.info.run_id, yaml.safe_dump(config), "config.yaml")
    rerun([first.info.run_id])
    said = capsys.readouterr().out
    assert "The same came out, in all values" in said
    (again,) = mlflow.MlflowClient(elsewhere).search_runs(["1"])
    assert again.info.run_id == said.split()[-1] != first.info.run_id


def test_configs_of_those_who_come_later_leave_that_of_the_fit(tmp_path: Path) -> None:
    logger = MLFlowLogger("later", tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    settings = {**quiet(tmp_path, max_epochs=1), "enable_checkpointing": True}

    def trainer(text: str, **more: Any) -> pl.Trainer:
        return pl.Trainer(**{**settings, **more}, logger=logger, callbacks=[KeepConfig(text)])

    def kept(name: str) -> str:
        client = logger.experiment
        return Path(client.download_artifacts(logger.run_id, name, str(tmp_path))).read_text()

    first = trainer("# raylit fit\nseed_everything: 1\n")
    result = first.fit(Net(8), datamodule=Data())
    trainer("# raylit test\nverbose: true\nckpt_path: best\n").test(
        Evaluated(8), Data().train_dataloader(), ckpt_path=result.best_model_path
    )
    assert kept("config.yaml") == "# raylit fit\nseed_everything: 1\n"
    assert "verbose: true" in kept("config-test.yaml")
    trainer("# raylit fit\nseed_everything: 2\nckpt_path: last\n", max_epochs=2).fit(
        Net(8), datamodule=Data(), ckpt_path=result.best_model_path
    )
    assert kept("config.yaml") == "# raylit fit\nseed_everything: 2\n", "with which it begins anew"


def test_what_differs_is_said_before(first: Any, tmp_path: Path) -> None:
    for command in (
        ["git", "init", "-q"],
        ["git", "-c", "user.name=a", "-c", "user.email=b", "commit", "-q", "--allow-empty", "-mx"],
    ):
        subprocess.run(command, check=True, cwd=tmp_path)
    text = "# Not told: data: an object\nseed_everything: false\n"
    said = " ".join(differences(first, text))
    assert "the commit" in said
    assert "the seed" in said
    assert "data: an object" in said


def test_a_run_without_what_is_needed(first: Any) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{Path.cwd()}/mlflow.db")
    other = client.create_run(first.info.experiment_id)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        rerun([other.info.run_id])
    with pytest.raises(ConfigError, match="log_model=True"):
        register([first.info.run_id, "--name", "n"])
