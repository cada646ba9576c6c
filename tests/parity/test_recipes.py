"""Recipes from the documentation and forums.

Adversarial training, truncated backpropagation, warm-up, schedulers, loggers of one's own.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from tests.parity.harness import files, loader, model_class, parity, seen, trainer


@parity
def test_adversarial_training(pl: Any, tmp_path: Path) -> Any:
    flags: list[Any] = []

    class Gan(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.generator, self.critic = nn.Linear(4, 4), nn.Linear(4, 1)

        def training_step(self, batch: Any, batch_idx: int) -> None:
            losses: list[Callable[[], Any]] = [
                lambda: self.critic(self.generator(batch)).mean(),
                lambda: (
                    self.critic(batch).mean() - self.critic(self.generator(batch).detach()).mean()
                ),
            ]
            for name, optimizer, loss_of in zip(
                ("generator", "critic"), self.optimizers(), losses, strict=True
            ):
                self.toggle_optimizer(optimizer)
                flags.append([parameter.requires_grad for parameter in self.parameters()])
                loss = loss_of()
                self.log(name, loss, prog_bar=True, on_epoch=True)
                self.manual_backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                self.untoggle_optimizer(optimizer)
            flags.append(
                [self.global_step, *(parameter.requires_grad for parameter in self.parameters())]
            )

        def on_train_epoch_end(self) -> None:
            for scheduler in self.lr_schedulers():
                scheduler.step()

        def validation_step(self, batch: Any, batch_idx: int) -> None: ...

        def on_validation_epoch_end(self) -> None:
            self.log("steps", float(self.global_step))

        def configure_optimizers(self) -> Any:
            optimizers = [
                torch.optim.Adam(part.parameters(), lr=0.01, betas=(0.5, 0.999))
                for part in (self.generator, self.critic)
            ]
            return optimizers, [lr_scheduler.StepLR(optimizer, 1) for optimizer in optimizers]

    saver = pl.callbacks.ModelCheckpoint(tmp_path / "saved", every_n_train_steps=3, save_top_k=-1)
    one = trainer(
        pl,
        tmp_path,
        logger=True,
        log_every_n_steps=2,
        callbacks=[saver, pl.callbacks.LearningRateMonitor()],
    )
    one.fit(Gan(), loader(4), loader(1))
    return {"flags": flags, "files": files(tmp_path), **seen(one)}


@parity
def test_truncated_backpropagation(pl: Any, tmp_path: Path) -> Any:
    class Recurrent(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.cell = nn.LSTM(1, 3, batch_first=True)

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer, state = self.optimizers(), None
            for part in batch.unsqueeze(-1).split(2, dim=1):
                optimizer.zero_grad()
                out, state = self.cell(part, state)
                self.manual_backward(out.mean())
                optimizer.step()
                state = [one.detach() for one in state]
                self.log("loss", out.mean())

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    one = trainer(pl, tmp_path, logger=True, log_every_n_steps=1, max_steps=7)
    one.fit(Recurrent(), loader(3))
    return seen(one)


@parity
def test_warm_up_in_optimizer_step(pl: Any, tmp_path: Path) -> Any:
    class WarmsUp(model_class(pl)):  # type: ignore[misc]
        def optimizer_step(
            self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any
        ) -> None:
            optimizer.step(closure=optimizer_closure)
            if self.trainer.global_step < 5:
                for group in optimizer.param_groups:
                    group["lr"] = 0.1 * min(1.0, (self.trainer.global_step + 1) / 5)

    one = trainer(
        pl,
        tmp_path,
        logger=True,
        log_every_n_steps=1,
        callbacks=[pl.callbacks.LearningRateMonitor("step")],
    )
    one.fit(WarmsUp(), loader(4), loader(2))
    return seen(one)


class Sharpness(torch.optim.Optimizer):
    """Evaluates the closure twice, as sharpness-aware minimization does (Foret et al., 2021)."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        with torch.enable_grad():
            loss = closure()
        before = [parameter.clone() for parameter in parameters]
        for parameter in parameters:
            parameter.add_(parameter.grad, alpha=0.05)
        with torch.enable_grad():
            closure()
        for parameter, old in zip(parameters, before, strict=True):
            parameter.copy_(old).sub_(parameter.grad, alpha=0.1)
        return loss


@parity
@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_optimizer_that_evaluates_twice(pl: Any, tmp_path: Path, accumulate: int) -> Any:
    class Net(model_class(pl)):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss(batch)

        def configure_optimizers(self) -> Any:
            return Sharpness(self.parameters())

    one = trainer(pl, tmp_path, accumulate_grad_batches=accumulate)
    one.fit(Net(), loader(4), loader(1))
    return seen(one)


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "every other step": lambda o: {
        "scheduler": lr_scheduler.StepLR(o, 1, 0.5),
        "interval": "step",
        "frequency": 2,
    },
    "every other epoch": lambda o: {"scheduler": lr_scheduler.StepLR(o, 1, 0.5), "frequency": 2},
    "one cycle": lambda o: {
        "scheduler": lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
        "interval": "step",
    },
    "cyclic": lambda o: {
        "scheduler": lr_scheduler.CyclicLR(o, 0.01, 0.1, 2, cycle_momentum=True),
        "interval": "step",
    },
    "warm restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "one after another": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 1), lr_scheduler.ExponentialLR(o, 0.9)], [1]
    ),
    "plateau of steps": lambda o: {
        "scheduler": lr_scheduler.ReduceLROnPlateau(o, patience=0),
        "interval": "step",
        "monitor": "train_loss",
    },
    "plateau, every other epoch": lambda o: {
        "scheduler": lr_scheduler.ReduceLROnPlateau(o, "max", patience=0),
        "frequency": 2,
        "monitor": "val_loss",
    },
}
WITH: list[dict[str, Any]] = [
    {},
    {"accumulate_grad_batches": 2},
    {"val_check_interval": 2},
    {"max_steps": 7},
    {"check_val_every_n_epoch": 2},
]


@parity
@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("arguments", WITH, ids=lambda arguments: "-".join(arguments) or "plain")
def test_schedulers(pl: Any, tmp_path: Path, kind: str, arguments: dict[str, Any]) -> Any:
    if kind.startswith("plateau, every") and arguments.get("max_steps"):
        arguments = {}
    rates: list[Any] = []

    class Net(model_class(pl)):  # type: ignore[misc]
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
            return [optimizer], [SCHEDULERS[kind](optimizer)]

        def on_train_batch_end(self, *args: Any) -> None:
            rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

        def on_validation_end(self) -> None:
            rates.append(["validation", self.trainer.optimizers[0].param_groups[0]["lr"]])

    one = trainer(pl, tmp_path, max_epochs=3, **arguments)
    one.fit(Net(), loader(5), loader(2))
    return {"rates": rates, **seen(one)}


INTERVALS: list[dict[str, Any]] = [
    {"val_check_interval": timedelta(seconds=0)},
    {"val_check_interval": timedelta(seconds=0), "check_val_every_n_epoch": None},
    {"val_check_interval": {"days": 1}},
    {"val_check_interval": 7, "check_val_every_n_epoch": None},
    {"val_check_interval": 0.5, "limit_train_batches": 3},
    {"val_check_interval": 2, "check_val_every_n_epoch": 2},
]


@parity
@pytest.mark.parametrize("arguments", INTERVALS, ids=str)
def test_when_it_validates(pl: Any, tmp_path: Path, arguments: dict[str, Any]) -> Any:
    found: list[Any] = []

    class Watch(pl.Callback):  # type: ignore[misc]
        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            found.append([trainer.current_epoch, trainer.global_step, trainer.sanity_checking])

    one = trainer(pl, tmp_path, max_epochs=4, callbacks=[Watch()], **arguments)
    one.fit(model_class(pl)(), loader(4), loader(1))
    return {"found": found, **seen(one)}


@parity
def test_a_logger_of_ones_own(pl: Any, tmp_path: Path) -> Any:
    calls: list[Any] = []

    class Own(pl.loggers.Logger):  # type: ignore[misc]
        name, version = "own", 1

        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            calls.append(["metrics", {key: float(value) for key, value in metrics.items()}, step])

        def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
            calls.append(["hyperparameters", dict(params), len(args), sorted(kwargs)])

        def log_graph(self, *args: Any, **kwargs: Any) -> None:
            calls.append(["graph"])

        def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
            calls.append(["saved", checkpoint_callback.best_model_path])

        def finalize(self, status: str) -> None:
            calls.append(["finalize", status])

    class Net(model_class(pl)):  # type: ignore[misc]
        def __init__(self, lr: float = 0.1) -> None:
            super().__init__()
            self.save_hyperparameters()

        def on_train_epoch_end(self) -> None:
            self.logger.log_metrics({"own": 1.0}, step=self.global_step)

    one = trainer(
        pl,
        tmp_path,
        logger=[Own(), Own()],
        log_every_n_steps=2,
        callbacks=[pl.callbacks.ModelCheckpoint(tmp_path / "saved")],
    )
    model = Net()
    one.fit(model, loader(4), loader(2))
    one.test(model, loader(1), verbose=False)
    return {"calls": calls}
