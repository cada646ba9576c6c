from __future__ import annotations

import os
import pickle
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
import yaml

import raylit as pl
from raylit.errors import ConfigError, MissingPackageError
from raylit.loggers import Logger, TensorBoardLogger
from raylit.testing.loggers import LoggerConformance, log_in_another_process
from raylit.testing.modules import TinyModel
from tests.deadlines import stretched
from tests.lazy import event_accumulator, plugin_data_pb2
from tests.ranks import run_on_two_ranks

HPARAMS = {
    "lr": 0.1,
    "sizes": [1, 2],
    "net": {"name": "n", "deep": {"x": None}},
    "data": Namespace(size=3),
    "layers": [{"a": 1}, {"b": 2}],
}


@dataclass
class Settings:
    rate: float = 0.5


def scalars(folder: str) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run: tag to steps and values."""
    events = event_accumulator.EventAccumulator(folder, size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: sorted((event.step, event.value) for event in events.Scalars(tag))
        for tag in sorted(events.Tags()["scalars"])
    }


def hparams_of(folder: str) -> dict[str, str]:
    """What TensorBoard's tab of hyperparameters is made of."""
    events = event_accumulator.EventAccumulator(folder)
    events.Reload()
    found = {}
    for tag, content in events.PluginTagToContent("hparams").items():
        data = plugin_data_pb2.HParamsPluginData.FromString(content)
        data.session_start_info.start_time_secs = data.session_end_info.end_time_secs = 0
        data.session_start_info.group_name = data.session_start_info.model_uri = ""
        found[tag] = str(
            {key: str(value) for key, value in data.session_start_info.hparams.items()}
        ) + str(data.experiment)
    return found


class TestConformance(LoggerConformance):
    @pytest.fixture
    def make(self, tmp_path: Path) -> Callable[[], Logger]:
        return lambda: TensorBoardLogger(tmp_path)

    def history(self, logger: Logger) -> list[tuple[str, int, float]]:
        found = scalars(str(logger.log_dir))
        return [
            (tag, *point)
            for tag, points in found.items()
            for point in rounded(points)
            if tag != "hp_metric"
        ]

    def hyperparams(self, logger: Logger) -> Mapping[str, Any] | None:
        read: Mapping[str, Any] = yaml.unsafe_load(
            (Path(str(logger.log_dir)) / "hparams.yaml").read_text()
        )
        return read


def rounded(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Event files hold float32; where the suite logged 1 / n, return that."""
    exact = {float(np.float32(1 / n)): 1 / n for n in range(1, 200)}
    return [(step, exact.get(value, value)) for step, value in points]


def use(logger: Any) -> None:
    """What a Trainer and its user do with a logger."""
    logger.log_hyperparams(
        {**HPARAMS, "settings": Settings(), "kind": torch.nn.Linear, "np": np.float64(0.5)}
    )
    logger.log_hyperparams(Namespace(seed=7), {"accuracy": 0.5}, 3)
    logger.save()
    logger.log_hyperparams({"matrix": torch.ones(2, 2)}, 0.25)
    for step in range(4):
        logger.log_metrics({"train_loss": 1 / (step + 3), "epoch": step // 2}, step=step)
        logger.save()
    logger.log_metrics(
        {"val_loss": torch.tensor(0.5), "nan": float("nan"), "pair": {"a": 1.0, "b": 2.0}}, step=2
    )
    logger.log_metrics({"no_step": 1})
    logger.experiment.add_histogram("weights", torch.ones(3), 1)
    logger.finalize("success")
    logger.log_metrics({"test_acc": 1, "epoch": 2}, step=4)
    logger.finalize("success")


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"name": None, "prefix": "p"},
        {"name": "a", "version": "mine", "sub_dir": "s"},
        {"version": 3, "default_hp_metric": False},
    ],
    ids=str,
)
def test_events_and_files_are_those_of_lightning(tmp_path: Path, arguments: dict[str, Any]) -> None:
    from lightning.pytorch.loggers import TensorBoardLogger as LightningLogger

    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for _ in range(2 if "version" not in arguments else 1):  # the second takes the next version
        mine, other = TensorBoardLogger(ours, **arguments), LightningLogger(theirs, **arguments)
        use(mine)
        use(other)
        assert (mine.version, mine.name, mine.sub_dir) == (other.version, other.name, other.sub_dir)
        assert Path(mine.log_dir).relative_to(ours) == Path(other.log_dir).relative_to(theirs)
        assert mine.root_dir == other.root_dir.replace("theirs", "ours")
        assert str(scalars(mine.log_dir)) == str(scalars(other.log_dir))
        assert hparams_of(mine.log_dir) == hparams_of(other.log_dir) != {}
        assert (
            Path(mine.log_dir, "hparams.yaml").read_bytes()
            == Path(other.log_dir, "hparams.yaml").read_bytes()
        )
        folders = [
            sorted(str(path.relative_to(root).parent) for path in root.rglob("*.*"))
            for root in (ours, theirs)
        ]
        assert folders[0] == folders[1]


def test_a_fit_that_goes_on_after_a_crash_writes_each_value_once(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    # A run before: its steps are no reason to leave out ours
    logger.log_metrics({"loss": 9.0, "earlier": 1.0}, 5)
    logger.open(default_root_dir=str(tmp_path), tags={})
    log_in_another_process(logger, [({"loss": 0.5}, 0), ({"loss": 0.25}, 1)], "failed", {"lr": 0.5})
    log_in_another_process(logger, [({"loss": 0.25}, 1), ({"loss": 0.125}, 2)], params={"lr": 0.5})
    assert scalars(logger.log_dir)["loss"] == [(0, 0.5), (1, 0.25), (2, 0.125), (5, 9.0)]
    assert scalars(logger.log_dir)["hp_metric"] == [(0, -1.0)]


def test_values_whose_steps_begin_anew_go_on_after_a_restart(tmp_path: Path) -> None:
    """As the rates of each validation, which are counted from 1 in each epoch."""
    logger = TensorBoardLogger(tmp_path)
    logger.open(default_root_dir=str(tmp_path), tags={})

    def epoch(number: int) -> list[Any]:
        return [({"loss": 0.5}, 3 * number), *(({"rate": float(number)}, x) for x in (1, 2))]

    log_in_another_process(logger, [*epoch(0), *epoch(1)], "failed")
    log_in_another_process(logger, [*epoch(1)[:1], *epoch(2)])
    found = scalars(logger.log_dir)
    assert found["loss"] == [(0, 0.5), (3, 0.5), (6, 0.5)]
    assert found["rate"] == [(x, float(number)) for x in (1, 2) for number in range(3)]


def test_values_of_one_chart_are_written_once_too(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    logger.open(default_root_dir=str(tmp_path), tags={})

    def rows(*steps: int) -> list[Any]:
        return [({"loss/of": {"a_b": float(step), "c": 2.0}}, step) for step in steps]

    log_in_another_process(logger, rows(0, 1), "failed")
    log_in_another_process(logger, rows(1, 2))
    for name, values in (("a_b", [0.0, 1.0, 2.0]), ("c", [2.0, 2.0, 2.0])):
        assert scalars(f"{logger.log_dir}/loss_of_{name}") == {"loss/of": list(enumerate(values))}


def test_a_relative_folder_and_its_version_are_fixed_by_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOGS", "there")
    logger = TensorBoardLogger("$LOGS")
    logger.open(default_root_dir=str(tmp_path), tags={})
    monkeypatch.chdir("/")
    assert pickle.loads(pickle.dumps(logger)).log_dir == str(
        tmp_path / "there" / "lightning_logs" / "version_0"
    )
    assert TensorBoardLogger(tmp_path / "there").version == 1


def test_urls(tmp_path: Path) -> None:
    for version in range(2):
        logger = TensorBoardLogger("memory://bucket/logs")
        logger.open(default_root_dir=str(tmp_path), tags={})
        logger.log_hyperparams({"lr": 0.1})
        logger.log_metrics({"loss": 0.5}, 0)
        logger.save()
        logger.finalize("success")
        fs = fsspec.filesystem("memory")
        files = [
            Path(path).name
            for path in fs.ls(f"/bucket/logs/lightning_logs/version_{version}", detail=False)
        ]
        assert len(files) == 2
        assert "hparams.yaml" in files
        event_file = next(
            path for path in fs.glob(f"/bucket/logs/lightning_logs/version_{version}/events*")
        )
        (tmp_path / str(version)).mkdir()
        (tmp_path / str(version) / Path(event_file).name).write_bytes(fs.cat(event_file))
        assert scalars(str(tmp_path / str(version)))["loss"] == [(0, 0.5)]


def test_a_value_that_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"loss = 'low' \(str\)"):
        TensorBoardLogger(tmp_path).log_metrics({"loss": "low"})


def test_a_disk_that_fails_does_not_end_the_training(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path / "logs")
    logger.log_metrics({"loss": 0.5}, 0)
    logger.finalize("success")
    folder = Path(logger.log_dir)
    moved = folder.rename(tmp_path / "moved")
    folder.write_text("a file where the folder was")
    with pytest.warns(UserWarning, match="Training goes on"):
        logger.log_metrics({"loss": 0.5}, 1)
        logger.save()
        logger.finalize("success")
    folder.unlink()
    moved.rename(folder)
    logger.log_metrics({"loss": 0.25}, 2)
    logger.finalize("success")
    assert scalars(logger.log_dir)["loss"] == [(0, 0.5), (2, 0.25)]


def test_log_graph(tmp_path: Path) -> None:
    class Model(TinyModel):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch * 2

    model = Model()
    for example in (None, {"x": 1}):
        model.example_input_array = example
        with pytest.warns(UserWarning, match="example_input_array of Model"):
            TensorBoardLogger(tmp_path / "none", log_graph=True).log_graph(model)
    example = next(iter(model.train_dataloader()))
    model.example_input_array = example[0] if isinstance(example, (list, tuple)) else example
    for log_graph in (True, False):
        logger = TensorBoardLogger(tmp_path / str(log_graph), log_graph=log_graph)
        trainer = pl.Trainer(
            max_steps=1,
            logger=logger,
            enable_progress_bar=False,
            enable_checkpointing=False,
            accelerator="cpu",
        )
        trainer.fit(model)
        events = event_accumulator.EventAccumulator(logger.log_dir)
        events.Reload()
        assert events.Tags()["graph"] is log_graph


def fit_and_write_images(folder: str) -> list[str]:
    class Model(TinyModel):
        def on_train_start(self) -> None:
            self.logger.experiment.add_scalar("own", float(self.global_rank), 0)

    logger = TensorBoardLogger(folder, version="one")
    pl.Trainer(
        max_epochs=1,
        logger=logger,
        enable_progress_bar=False,
        enable_checkpointing=False,
        accelerator="cpu",
        log_every_n_steps=1,
    ).fit(Model())
    return [path for path in os.listdir(logger.log_dir) if "tfevents" in path]


def test_only_rank_zero_writes(tmp_path: Path) -> None:
    run_on_two_ranks(fit_and_write_images, tmp_path)
    found = scalars(str(tmp_path / "lightning_logs" / "one"))
    assert found["own"] == [(0, 0.0)]
    assert len({step for step, _ in found["train_loss"]}) == len(found["train_loss"]) > 1


def test_tensorboardx_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.warns(UserWarning, match="log_graph"):
        logger = TensorBoardLogger(tmp_path, log_graph=True)
    logger.log_hyperparams(HPARAMS)
    logger.log_metrics({"loss": 0.5}, 1)
    logger.save()
    logger.log_graph(TinyModel())
    assert type(logger.experiment).__module__.startswith("tensorboardX")
    logger.finalize("success")
    monkeypatch.undo()
    assert scalars(logger.log_dir)["loss"] == [(1, 0.5)]
    assert "_hparams_/session_start_info" in hparams_of(logger.log_dir)


def test_neither_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("tensorboard", "tensorboardX"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=r"pip install 'raylit\[tensorboard\]'"):
        TensorBoardLogger("logs")


def test_importing_it_is_cheap() -> None:
    script = (
        "import sys, raylit.loggers.tensorboard; print(*{'tensorboard', 'tensorboardX',"
        " 'torch.utils.tensorboard'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=stretched(120),
        check=True,
    )
    assert done.stdout.split() == []
