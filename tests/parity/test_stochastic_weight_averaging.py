"""StochasticWeightAveraging: weights, running statistics, learning rates, and going on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import raylit
from tests.lazy import lightning
from tests.parity.harness import (
    errors,
    loader,
    model_class,
    packages,
    parity,
    plain,
    quiet,
    seen,
    stream,
    traced_objects,
    trainer,
)
from tests.parity.test_checkpoints import contents, counters


def net(
    pl: Any, *, norm: bool = True, scheduler: str | None = "step", dropout: float = 0.25
) -> Any:
    class Net(model_class(pl)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout(dropout)
            self.norm = nn.BatchNorm1d(3, momentum=0.3) if norm else nn.Identity()
            self.rates: list[Any] = []

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.norm(self.layer(self.dropout(x)))
            return out

        def on_train_epoch_end(self) -> None:
            # Lightning's step in the epoch without learning
            if self.current_epoch < (self.trainer.max_epochs - 1 if norm else 999):
                self.rates.append([group["lr"] for group in self.optimizers().param_groups])

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam([{"params": [one]} for one in self.parameters()], lr=0.1)
            match scheduler:
                case "step":
                    return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.8)]
                case "plateau":
                    watching = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
                    return {
                        "optimizer": optimizer,
                        "lr_scheduler": watching,
                        "monitor": "train_loss",
                    }
            return optimizer

    return Net


def left(trainer: Any) -> dict[str, Any]:
    """What a run left, but for its steps.

    Lightning takes one more in the epoch without learning, see tests/parity/test_differences.py.
    """
    found = seen(trainer)
    del found["step"]
    return found


def mean_of_ends(averaged: Tensor, weight: Tensor, number: Tensor) -> Tensor:
    return averaged * 0.25 + weight * 0.75


ARGUMENTS: dict[str, dict[str, Any]] = {
    "default": {"swa_lrs": 0.02},
    "part": {"swa_lrs": 0.02, "swa_epoch_start": 0.4, "annealing_epochs": 2},
    "epoch": {
        "swa_lrs": 0.02,
        "swa_epoch_start": 2,
        "annealing_strategy": "linear",
        "annealing_epochs": 3,
    },
    "at-once": {"swa_lrs": 0.3, "swa_epoch_start": 1, "annealing_epochs": 0, "device": None},
    "zero": {"swa_lrs": 0.3, "swa_epoch_start": 0.0, "device": "cpu"},
    "function": {"swa_lrs": 0.05, "swa_epoch_start": 2, "avg_fn": mean_of_ends},
}


@parity
@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("scheduler", ["step", "plateau", None])
def test_weights_and_metrics(
    pl: Any, tmp_path: Path, name: str, norm: bool, scheduler: str | None
) -> Any:
    swa, model = (
        pl.callbacks.StochasticWeightAveraging(**ARGUMENTS[name]),
        net(pl, norm=norm, scheduler=scheduler)(),
    )
    one = trainer(pl, tmp_path, callbacks=[swa], max_epochs=5, logger=True, log_every_n_steps=2)
    one.fit(model, loader(4, shuffle=True), loader(2))
    settings = [one.max_epochs, one.accumulate_grad_batches, one.num_training_batches]
    momenta = [module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    return {**left(one), "rates": model.rates, "settings": settings, "momenta": momenta}


@parity
@pytest.mark.parametrize(
    "arguments",
    [
        {"accumulate_grad_batches": 3},
        {"val_check_interval": 2},
        {"max_steps": 14},
        {"max_steps": 24},
        {"limit_train_batches": 3},
        {"max_epochs": -1, "max_steps": 9},
    ],
    ids=lambda arguments: "-".join(arguments),
)
def test_settings(pl: Any, tmp_path: Path, arguments: dict[str, Any]) -> Any:
    swa, model = pl.callbacks.StochasticWeightAveraging(0.02, swa_epoch_start=2), net(pl)()
    one = trainer(pl, tmp_path, **{"callbacks": [swa], "max_epochs": 4, **arguments})
    one.fit(model, loader(6), loader(2))
    return {**left(one), "rates": model.rates}


@parity
def test_a_list_of_learning_rates(pl: Any, tmp_path: Path) -> Any:
    model = net(pl, norm=False)()
    one = trainer(
        pl,
        tmp_path,
        callbacks=[pl.callbacks.StochasticWeightAveraging([0.01, 0.5], 2)],
        max_epochs=5,
    )
    one.fit(model, loader(3))
    return {**left(one), "rates": model.rates}


@parity
def test_hooks(pl: Any, tmp_path: Path) -> Any:
    """In the epoch without learning there is no backward.

    What Lightning calls for its step there is left out.
    """
    trace: list[Any] = []
    model, data, watch = traced_objects(pl, trace, model=net(pl), train=loader(2), val=loader(1))
    trainer(
        pl, tmp_path, callbacks=[pl.callbacks.StochasticWeightAveraging(0.02), watch], max_epochs=3
    ).fit(model, datamodule=data)
    starts = [
        number
        for number, call in enumerate(trace)
        if call[1] == "on_train_epoch_start" and call[0] == "callback"
    ]
    step = (
        "optimizer_step",
        "on_before_optimizer_step",
        "configure_gradient_clipping",
        "clip_gradients",
        "lr_scheduler_step",
        "on_validation_model_zero_grad",
    )
    return trace[: starts[3]], [call for call in trace[starts[3] :] if call[1] not in step]


@parity
@pytest.mark.parametrize("epochs", [1, 2, 3, 4])
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
def test_files_and_going_on(pl: Any, tmp_path: Path, epochs: int, norm: bool) -> Any:
    """From the checkpoint of every epoch, within one fit of 5.

    Before averaging, at its beginning, and later.
    """
    model, arguments = net(pl, norm=norm, dropout=0), ARGUMENTS["epoch"]
    saver = pl.callbacks.ModelCheckpoint(tmp_path / "kept", filename="{epoch}", save_top_k=-1)
    trainer(
        pl,
        tmp_path,
        callbacks=[pl.callbacks.StochasticWeightAveraging(**arguments), saver],
        max_epochs=5,
    ).fit(model(), loader(3), loader(1))
    path = tmp_path / "kept" / f"epoch={epochs - 1}.ckpt"
    found = contents(path)
    averages = found["callbacks"]["StochasticWeightAveraging"]["average_model_state"]
    if averages is not None:  # running statistics of the mean are used by nobody
        found["callbacks"]["StochasticWeightAveraging"]["average_model_state"] = {
            k: v for k, v in averages.items() if "layer" in k
        }
    found["loops"] = counters(found["loops"])
    one, again = (
        trainer(
            pl,
            tmp_path,
            callbacks=[pl.callbacks.StochasticWeightAveraging(**arguments)],
            max_epochs=5,
        ),
        model(),
    )
    one.fit(again, loader(3), loader(1), ckpt_path=path)
    # Which only raylit brings back
    return {
        **left(one),
        "rng": None,
        "found": found,
        "rates": again.rates,
    }


@pytest.mark.parametrize("writer", packages(), ids=lambda pl: pl.__name__)
def test_the_other_package_goes_on(tmp_path: Path, writer: Any) -> None:
    with quiet():
        saver = writer.callbacks.ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        first = writer.callbacks.StochasticWeightAveraging(**ARGUMENTS["epoch"])
        trainer(writer, tmp_path, callbacks=[first, saver], max_epochs=5).fit(
            net(writer, dropout=0)(), loader(3), loader(1)
        )
        ends = []
        for pl in (lightning.pytorch, raylit):
            model, swa = (
                net(pl, dropout=0)(),
                pl.callbacks.StochasticWeightAveraging(**ARGUMENTS["epoch"]),
            )
            trainer(pl, tmp_path, callbacks=[swa], max_epochs=5).fit(
                model, loader(3), loader(1), ckpt_path=tmp_path / "epoch=2.ckpt"
            )
            ends.append(plain(model.state_dict(), tmp_path))
    assert ends[0] == ends[1]


@errors
@pytest.mark.parametrize(
    "arguments",
    [
        {"swa_lrs": 0},
        {"swa_lrs": -0.1},
        {"swa_lrs": [0.1, 1]},
        {"swa_lrs": "0.1"},
        {"swa_epoch_start": 0},
        {"swa_epoch_start": 1.5},
        {"swa_epoch_start": -0.5},
        {"avg_fn": 1},
        {"device": 1},
    ],
    ids=str,
)
def test_arguments(pl: Any, tmp_path: Path, arguments: dict[str, Any]) -> None:
    pl.callbacks.StochasticWeightAveraging(**{"swa_lrs": 0.1, **arguments})


@errors
def test_part_of_unlimited_epochs(pl: Any, tmp_path: Path) -> None:
    trainer(
        pl,
        tmp_path,
        callbacks=[pl.callbacks.StochasticWeightAveraging(0.1)],
        max_epochs=-1,
        max_steps=3,
    ).fit(net(pl)(), loader(2))


@errors
def test_data_without_a_length(pl: Any, tmp_path: Path) -> None:
    trainer(pl, tmp_path, callbacks=[pl.callbacks.StochasticWeightAveraging(0.1)]).fit(
        net(pl)(), stream(2)
    )


@errors
def test_several_schedulers(pl: Any, tmp_path: Path) -> None:
    model = net(pl)()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.configure_optimizers = lambda: (
        [optimizer],
        [torch.optim.lr_scheduler.StepLR(optimizer, 1) for _ in range(2)],
    )
    trainer(pl, tmp_path, callbacks=[pl.callbacks.StochasticWeightAveraging(0.1)]).fit(
        model, loader(2)
    )
