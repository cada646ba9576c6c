from __future__ import annotations

import csv
import inspect
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import optim

import raylit as pl
from raylit.callbacks import LearningRateMonitor
from raylit.errors import ConfigError
from tests.callbacks.both import batches, both
from tests.lazy import lightning
from tests.quiet import UNLOGGED


def schedule(optimizer: Any, interval: str = "epoch", name: str | None = None) -> dict[str, Any]:
    scheduler = optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler, "interval": interval, "name": name},
    }


def groups(layers: Any, **names: str) -> Any:
    parts = [
        {"params": [parameter], "lr": 0.1 * (number + 1)}
        for number, parameter in enumerate(layers.parameters())
    ]
    for part, name in zip(parts, names.values(), strict=False):
        part["name"] = name
    return parts


CONFIGURATIONS: dict[str, Any] = {
    "no scheduler": lambda m: optim.SGD(m.parameters(), lr=0.1),
    "momentum": lambda m: optim.SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01),
    "Adam, epoch": lambda m: schedule(optim.Adam(m.parameters(), lr=0.1)),
    "Adam, step": lambda m: schedule(optim.Adam(m.parameters(), lr=0.1), "step"),
    "named": lambda m: schedule(optim.AdamW(m.parameters(), lr=0.1), "step", "my lr"),
    "groups": lambda m: schedule(optim.SGD(groups(m), lr=0.1)),
    "named groups": lambda m: schedule(
        optim.SGD(groups(m, a="weights", b="biases"), lr=0.1), "step"
    ),
    "a named group among others": lambda m: optim.SGD(groups(m, a="weights"), lr=0.1),
    "one named group": lambda m: optim.SGD(
        [{"params": list(m.parameters()), "name": "all"}], lr=0.1
    ),
    "Rprop, without momentum": lambda m: optim.Rprop(m.parameters(), lr=0.1),
}
MANUAL: dict[str, Any] = {
    "two of a kind": lambda m: [
        optim.Adam([m.layer.weight], lr=0.1),
        optim.Adam([m.layer.bias], lr=0.2),
    ],
    "two kinds": lambda m: [
        optim.Adam([m.layer.weight], lr=0.1),
        optim.SGD([m.layer.bias], lr=0.2),
    ],
    "one with scheduler": lambda m: [
        schedule(optim.Adam([m.layer.weight], lr=0.1), "step"),
        {"optimizer": optim.Adam([m.layer.bias], lr=0.2)},
    ],
    "the second with scheduler": lambda m: [
        {"optimizer": optim.Adam([m.layer.weight], lr=0.1)},
        schedule(optim.Adam([m.layer.bias], lr=0.2)),
    ],
    "two names": lambda m: [
        schedule(optim.Adam([m.layer.weight], lr=0.1), "step", "one"),
        schedule(optim.Adam([m.layer.bias]), "epoch", "two"),
    ],
}


def module(framework: Any, configure: Any, automatic: bool = True) -> Any:
    class Module(framework.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)
            self.automatic_optimization = automatic

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
            loss = self.layer(batch).square().mean()
            if automatic:
                return loss
            for optimizer in self.optimizers():
                optimizer.step()
            return None

        def configure_optimizers(self) -> Any:
            return configure(self)

    return Module()


def run(
    framework: Any,
    root: Path,
    configure: Any,
    arguments: dict[str, Any],
    automatic: bool = True,
    **trainer: Any,
) -> dict[str, Any]:
    """Fit; return the rows of the CSV file and what the callback holds."""
    callback = framework.callbacks.LearningRateMonitor(**arguments)
    logger = framework.loggers.CSVLogger(root, version=0)
    settings = {
        **UNLOGGED,
        "max_epochs": 3,
        "logger": logger,
        "log_every_n_steps": 2,
        "enable_checkpointing": False,
        **trainer,
    }
    done = framework.Trainer(callbacks=callback, default_root_dir=root, **settings)
    done.fit(module(framework, configure, automatic), batches())
    with open(Path(logger.log_dir) / "metrics.csv", newline="") as file:
        rows = [
            {key: float(value) for key, value in row.items() if value}
            for row in csv.DictReader(file)
        ]
    held = (callback.lrs, {k: v for k, v in callback.last_momentum_values.items() if v is not None})
    decay = {k: v for k, v in callback.last_weight_decay_values.items() if v is not None}
    return {"rows": rows, "held": held, "decay": decay, "metrics": dict(done.callback_metrics)}


@pytest.mark.parametrize("interval", [None, "step", "epoch"])
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_names_values_and_rows_are_those_of_lightning(
    configuration: str, interval: Any, tmp_path: Path
) -> None:
    arguments = {
        "logging_interval": interval,
        "log_momentum": True,
        "log_weight_decay": "Rprop" not in configuration,
    }
    ours, theirs = both(
        lambda pl, root: run(pl, root, CONFIGURATIONS[configuration], arguments), tmp_path
    )
    assert ours["rows"]
    assert ours == theirs


@pytest.mark.parametrize("configuration", MANUAL)
def test_several_optimizers(configuration: str, tmp_path: Path) -> None:
    ours, theirs = both(
        lambda pl, root: run(pl, root, MANUAL[configuration], {}, automatic=False), tmp_path
    )
    assert ours["rows"]
    assert ours == theirs


@pytest.mark.parametrize(
    "trainer",
    [{"accumulate_grad_batches": 2}, {"log_every_n_steps": 1}, {"log_every_n_steps": 0}],
    ids=str,
)
def test_the_x_axis(trainer: Any, tmp_path: Path) -> None:
    ours, theirs = both(
        lambda pl, root: run(pl, root, CONFIGURATIONS["Adam, epoch"], {}, **trainer), tmp_path
    )
    assert ours == theirs


def test_a_group_that_comes_later(tmp_path: Path) -> None:
    def scenario(framework: Any, root: Path) -> Any:
        class Adds(framework.callbacks.Callback):  # type: ignore[misc]
            def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
                if trainer.current_epoch == 1:
                    trainer.optimizers[0].add_param_group(
                        {"params": [module.layer.bias], "lr": 0.3}
                    )

        monitor = framework.callbacks.LearningRateMonitor("epoch")
        logger = framework.loggers.CSVLogger(root)
        trainer = framework.Trainer(
            **{**UNLOGGED, "logger": logger},
            max_epochs=3,
            callbacks=[Adds(), monitor],
            enable_checkpointing=False,
        )
        trainer.fit(module(framework, lambda m: optim.SGD([m.layer.weight], lr=0.1)), batches())
        return monitor.lrs

    ours, theirs = both(scenario, tmp_path)
    assert ours == theirs == {"lr-SGD/pg1": [0.1, 0.1, 0.1], "lr-SGD/pg2": [0.3, 0.3]}


def test_signature_is_that_of_lightning() -> None:
    ours, theirs = (
        inspect.signature(kind.__init__).parameters
        for kind in (LearningRateMonitor, lightning.pytorch.callbacks.LearningRateMonitor)
    )
    assert [(p.name, p.default) for p in ours.values()] == [
        (p.name, p.default) for p in theirs.values()
    ]


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="logging_interval='batch'"):
        LearningRateMonitor("batch")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no logger to write to"):
        pl.Trainer(callbacks=LearningRateMonitor(), max_epochs=1, **UNLOGGED).fit(
            module(pl, CONFIGURATIONS["no scheduler"]), batches()
        )
    with pytest.raises(ConfigError, match=r"lr-SGD are named 'same'"):
        run(pl, tmp_path, lambda m: optim.SGD(groups(m, a="same", b="same"), lr=0.1), {})
    with pytest.warns(RuntimeWarning, match="has no momentum"):
        run(pl, tmp_path / "2", CONFIGURATIONS["Rprop, without momentum"], {"log_momentum": True})


def test_a_trial_run_writes_nothing(tmp_path: Path) -> None:
    model = module(pl, CONFIGURATIONS["no scheduler"])
    arguments = {**UNLOGGED, "logger": True, "default_root_dir": tmp_path}
    trainer = pl.Trainer(callbacks=LearningRateMonitor("step"), fast_dev_run=True, **arguments)
    trainer.fit(model, batches())
    assert (trainer.global_step, list(tmp_path.iterdir())) == (1, [])


def test_other_callbacks_may_watch_a_learning_rate(tmp_path: Path) -> None:
    stopping = pl.callbacks.EarlyStopping("lr-Adam", stopping_threshold=0.06)
    trainer = pl.Trainer(
        **{**UNLOGGED, "logger": pl.CSVLogger(tmp_path)},
        max_epochs=5,
        callbacks=[LearningRateMonitor("epoch"), stopping],
        default_root_dir=tmp_path,
    )
    trainer.fit(module(pl, CONFIGURATIONS["Adam, epoch"]), batches())
    assert trainer.current_epoch == 2


def test_the_state_travels(tmp_path: Path) -> None:
    callback = LearningRateMonitor()
    trainer = pl.Trainer(
        **{**UNLOGGED, "logger": pl.CSVLogger(tmp_path)},
        max_epochs=2,
        callbacks=callback,
        default_root_dir=tmp_path,
    )
    trainer.fit(module(pl, CONFIGURATIONS["no scheduler"]), batches())
    copy = LearningRateMonitor()
    copy.__dict__.update(pickle.loads(pickle.dumps(callback.__getstate__())))
    assert copy.lrs == callback.lrs == {"lr-SGD": [0.1, 0.1]}
