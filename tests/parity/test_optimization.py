"""Forward, backward, step: accumulation, clipping, closures, schedulers, optimization by hand.

Weights are compared bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity.harness import loader, model_class, parity, rows, seen, trainer


def with_methods(pl: Any, **methods: Callable[..., Any]) -> Any:
    """A model whose class has these methods."""
    return type("Changed", (model_class(pl),), methods)()


def fit(pl: Any, root: Path, model: Any, *, batches: int = 5, **arguments: Any) -> Any:
    rates: list[Any] = []

    class Rates(pl.Callback):  # type: ignore[misc]
        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, *args: Any
        ) -> None:
            gradients = [None if p.grad is None else p.grad.clone() for p in pl_module.parameters()]
            groups = [
                [group["lr"] for group in optimizer.param_groups]
                for optimizer in trainer.optimizers
            ]
            rates.append([trainer.global_step, groups, outputs, gradients])

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            rates.append(
                [
                    [group["lr"] for group in optimizer.param_groups]
                    for optimizer in trainer.optimizers
                ]
            )

    one = trainer(pl, root, callbacks=Rates(), **arguments)
    one.fit(model, loader(batches, short=1), loader(2, seed=1))
    return {"rates": rates, **seen(one)}


@parity
@pytest.mark.parametrize("accumulate", [1, 2, 3, 7])
def test_accumulation(pl: Any, tmp_path: Path, accumulate: int) -> Any:
    return fit(pl, tmp_path, model_class(pl)(), accumulate_grad_batches=accumulate)


@parity
@pytest.mark.parametrize("algorithm", ["norm", "value", None])
@pytest.mark.parametrize("value", [0.05, 0, None])
def test_clipping(pl: Any, tmp_path: Path, value: Any, algorithm: str | None) -> Any:
    return fit(
        pl,
        tmp_path,
        model_class(pl)(),
        gradient_clip_val=value,
        gradient_clip_algorithm=algorithm,
        accumulate_grad_batches=2,
    )


@parity
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_in_the_module(pl: Any, tmp_path: Path, algorithm: str) -> Any:
    def configure_gradient_clipping(
        self: Any,
        optimizer: Any,
        gradient_clip_val: Any = None,
        gradient_clip_algorithm: Any = None,
    ) -> None:
        self.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm=algorithm)

    return fit(
        pl, tmp_path, with_methods(pl, configure_gradient_clipping=configure_gradient_clipping)
    )


@parity
@pytest.mark.parametrize("name", ["Adam", "AdamW", "RMSprop", "Adagrad", "Rprop"])
def test_optimizers(pl: Any, tmp_path: Path, name: str) -> Any:
    def configure_optimizers(self: Any) -> Any:
        return getattr(torch.optim, name)(self.parameters(), lr=0.05)

    return fit(pl, tmp_path, with_methods(pl, configure_optimizers=configure_optimizers))


@parity
def test_an_optimizer_that_wants_a_closure(pl: Any, tmp_path: Path) -> Any:
    def configure_optimizers(self: Any) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)

    # validation comes before training in its sanity check only: Lightning's values of the first
    # batch count its last evaluation alone
    return fit(pl, tmp_path, with_methods(pl, configure_optimizers=configure_optimizers))


@parity
def test_an_optimizer_that_is_none_of_torchs(pl: Any, tmp_path: Path) -> Any:
    class Own(torch.optim.Optimizer):
        def step(self, closure: Any = None) -> Any:  # type: ignore[override]
            loss = closure()
            with torch.no_grad():
                for group in self.param_groups:
                    for parameter in group["params"]:
                        parameter -= group["lr"] * parameter.grad
            return loss

    def configure_optimizers(self: Any) -> Any:
        return Own(self.parameters(), {"lr": 0.1})

    return fit(
        pl,
        tmp_path,
        with_methods(pl, configure_optimizers=configure_optimizers),
        accumulate_grad_batches=2,
    )


@parity
def test_optimizer_step_overridden(pl: Any, tmp_path: Path) -> Any:
    """Warm-up by hand, as in Lightning's documentation."""

    def optimizer_step(
        self: Any, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        optimizer.step(closure=optimizer_closure)
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * min(1.0, (self.trainer.global_step + 1) / 8)

    return fit(
        pl, tmp_path, with_methods(pl, optimizer_step=optimizer_step), accumulate_grad_batches=2
    )


@parity
def test_optimizer_step_that_sometimes_only_runs_the_closure(pl: Any, tmp_path: Path) -> Any:
    def optimizer_step(
        self: Any, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        if batch_idx % 2 == 0:
            optimizer.step(closure=optimizer_closure)
        else:
            optimizer_closure()

    return fit(pl, tmp_path, with_methods(pl, optimizer_step=optimizer_step))


@parity
def test_zero_grad_and_backward_overridden(pl: Any, tmp_path: Path) -> Any:
    def optimizer_zero_grad(self: Any, epoch: int, batch_idx: int, optimizer: Any) -> None:
        optimizer.zero_grad(set_to_none=False)

    def backward(self: Any, loss: Any) -> None:
        (loss * 2).backward()

    return fit(
        pl, tmp_path, with_methods(pl, optimizer_zero_grad=optimizer_zero_grad, backward=backward)
    )


@parity
@pytest.mark.parametrize("returned", ["tensor", "dict", "sometimes none", "none"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_training_step_returns(pl: Any, tmp_path: Path, returned: str, accumulate: int) -> Any:
    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        if returned == "none" or (returned == "sometimes none" and batch_idx == 2):
            return None
        return (
            loss if returned == "tensor" else {"loss": loss, "more": batch_idx, "graph": loss * 2}
        )

    return fit(
        pl,
        tmp_path,
        with_methods(pl, training_step=training_step),
        accumulate_grad_batches=accumulate,
    )


# ---- schedulers ----


def step_lr(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)


def plateau(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, patience=0, factor=0.5, threshold=0.5
    )


FORMS: dict[str, Callable[[Any, Any], Any]] = {
    "an optimizer": lambda optimizer, scheduler: optimizer,
    "a list": lambda optimizer, scheduler: [optimizer],
    "a tuple": lambda optimizer, scheduler: (optimizer,),
    "two lists": lambda optimizer, scheduler: ([optimizer], [scheduler]),
    "a tuple of lists with a config": lambda optimizer, scheduler: (
        [optimizer],
        [{"scheduler": scheduler, "interval": "step"}],
    ),
    "a dict": lambda optimizer, scheduler: {"optimizer": optimizer},
    "a dict with a scheduler": lambda optimizer, scheduler: {
        "optimizer": optimizer,
        "lr_scheduler": scheduler,
    },
    "a dict with a config": lambda optimizer, scheduler: {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler, "frequency": 2},
    },
    "a list of dicts": lambda optimizer, scheduler: [
        {"optimizer": optimizer, "lr_scheduler": scheduler}
    ],
    "nothing": lambda optimizer, scheduler: None,
}


@parity
@pytest.mark.parametrize("form", FORMS)
def test_what_configure_optimizers_returns(pl: Any, tmp_path: Path, form: str) -> Any:
    def configure_optimizers(self: Any) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return FORMS[form](optimizer, step_lr(optimizer))

    return fit(
        pl, tmp_path, with_methods(pl, configure_optimizers=configure_optimizers), max_epochs=3
    )


@parity
@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize("frequency", [1, 2, 3])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"accumulate_grad_batches": 2},
        {"max_steps": 8, "max_epochs": -1},
        {"val_check_interval": 2},
    ],
)
def test_when_schedulers_step(
    pl: Any, tmp_path: Path, interval: str, frequency: int, arguments: dict[str, Any]
) -> Any:
    def configure_optimizers(self: Any) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        config = {
            "scheduler": step_lr(optimizer),
            "interval": interval,
            "frequency": frequency,
            "name": "mine",
        }
        return {"optimizer": optimizer, "lr_scheduler": config}

    return fit(
        pl,
        tmp_path,
        with_methods(pl, configure_optimizers=configure_optimizers),
        **{"max_epochs": 3, **arguments},
    )


@parity
@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize("monitor", ["val_loss", "train_loss"])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"val_check_interval": 2}, {"check_val_every_n_epoch": 2}, {"accumulate_grad_batches": 2}],
)
def test_when_plateaus_step(
    pl: Any, tmp_path: Path, interval: str, monitor: str, arguments: dict[str, Any]
) -> Any:
    frequency = 1
    if interval == "step" and monitor == "val_loss":
        # Only as often as there is a new value: raylit takes no value twice, which
        # test_differences.py pins.
        frequency = arguments.get("val_check_interval", 5)

    def configure_optimizers(self: Any) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        config = {
            "scheduler": plateau(optimizer),
            "interval": interval,
            "frequency": frequency,
            "monitor": monitor,
            "strict": False,
        }
        return {"optimizer": optimizer, "lr_scheduler": config}

    return fit(
        pl,
        tmp_path,
        with_methods(pl, configure_optimizers=configure_optimizers),
        **{"max_epochs": 3, **arguments},
    )


@parity
def test_a_plateau_with_the_monitor_beside_it(pl: Any, tmp_path: Path) -> Any:
    def configure_optimizers(self: Any) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return {"optimizer": optimizer, "lr_scheduler": plateau(optimizer), "monitor": "val_loss"}

    return fit(
        pl, tmp_path, with_methods(pl, configure_optimizers=configure_optimizers), max_epochs=4
    )


@parity
def test_several_schedulers(pl: Any, tmp_path: Path) -> Any:
    def configure_optimizers(self: Any) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        by_step = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, total_iters=4)
        return [optimizer], [
            {"scheduler": by_step, "interval": "step"},
            step_lr(optimizer),
            {"scheduler": plateau(optimizer), "monitor": "val_loss"},
        ]

    return fit(
        pl, tmp_path, with_methods(pl, configure_optimizers=configure_optimizers), max_epochs=3
    )


@parity
def test_lr_scheduler_step_overridden(pl: Any, tmp_path: Path) -> Any:
    class Own:
        def __init__(self, optimizer: Any) -> None:
            self.optimizer, self.seen = optimizer, 0

        def state_dict(self) -> dict[str, Any]:
            return {"seen": self.seen}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.seen = state["seen"]

    def configure_optimizers(self: Any) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [{"scheduler": Own(optimizer), "interval": "step"}]

    def lr_scheduler_step(self: Any, scheduler: Any, metric: Any) -> None:
        scheduler.seen += 1
        scheduler.optimizer.param_groups[0]["lr"] = 0.1 / (1 + scheduler.seen)

    return fit(
        pl,
        tmp_path,
        with_methods(
            pl, configure_optimizers=configure_optimizers, lr_scheduler_step=lr_scheduler_step
        ),
    )


@parity
def test_estimated_stepping_batches(pl: Any, tmp_path: Path) -> Any:
    found: list[Any] = []

    def configure_optimizers(self: Any) -> Any:
        found.append(self.trainer.estimated_stepping_batches)
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=int(found[0]))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    model = with_methods(pl, configure_optimizers=configure_optimizers)
    return {**fit(pl, tmp_path, model, max_epochs=3, accumulate_grad_batches=2), "found": found}


# ---- by hand ----


def gan(
    pl: Any, *, toggles: str = "", closure: bool = False, every: int = 1, schedules: bool = False
) -> Any:
    """A model with two optimizers that are stepped by hand."""

    class Two(model_class(pl)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.other = torch.nn.Linear(3, 2)

        def one_step(self, optimizer: Any, batch: Any, batch_idx: int) -> Any:
            def loss_of() -> Any:
                loss = self.other(self(batch)).square().mean() / every
                optimizer.zero_grad()
                self.manual_backward(loss)
                return loss

            if closure:
                optimizer.step(closure=loss_of)
                return None
            loss = loss_of()
            if (batch_idx + 1) % every == 0:
                self.clip_gradients(
                    optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm"
                )
                optimizer.step()
            return loss

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            losses = []
            for optimizer in self.optimizers():
                if toggles == "context":
                    with optimizer.toggle_model(sync_grad=True):
                        losses.append(self.one_step(optimizer, batch, batch_idx))
                    continue
                if toggles == "calls":
                    self.untoggle_optimizer(optimizer)  # at first of none
                    self.toggle_optimizer(optimizer)
                with self.toggled_optimizer(optimizer) if toggles == "module" else nullcontext():
                    losses.append(self.one_step(optimizer, batch, batch_idx))
                if toggles == "calls":
                    self.untoggle_optimizer(optimizer)
            self.log("steps", float(self.global_step))
            if schedules and self.trainer.is_last_batch:
                for scheduler in self.lr_schedulers():
                    scheduler.step()

        def configure_optimizers(self) -> Any:
            optimizers = [
                torch.optim.SGD(self.layer.parameters(), lr=0.1),
                torch.optim.Adam(self.other.parameters(), lr=0.01),
            ]
            return (optimizers, [step_lr(one) for one in optimizers]) if schedules else optimizers

    return Two()


@parity
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"toggles": "calls"},
        {"toggles": "context"},
        {"toggles": "module"},
        {"closure": True},
        {"every": 2},
        {"schedules": True},
        {"toggles": "calls", "closure": True},
    ],
    ids=lambda arguments: "-".join(map(str, arguments)) or "plain",
)
def test_two_optimizers_by_hand(pl: Any, tmp_path: Path, arguments: dict[str, Any]) -> Any:
    return fit(pl, tmp_path, gan(pl, **arguments), logger=True, log_every_n_steps=1)


@parity
def test_max_steps_counts_every_optimizer(pl: Any, tmp_path: Path) -> Any:
    return fit(pl, tmp_path, gan(pl), max_steps=5, max_epochs=-1)


@parity
@pytest.mark.parametrize("use_pl_optimizer", [True, False])
def test_what_optimizers_gives(pl: Any, tmp_path: Path, use_pl_optimizer: bool) -> Any:
    found: list[Any] = []

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        optimizer = self.optimizers(use_pl_optimizer)
        raw = getattr(optimizer, "optimizer", optimizer)
        found.append(
            [
                isinstance(optimizer, torch.optim.SGD),
                type(raw).__name__,
                len(optimizer.param_groups),
                optimizer.defaults["lr"],
            ]
        )
        found.append([sorted(optimizer.state_dict()), self.lr_schedulers()])
        return self.loss(batch)

    one = trainer(pl, tmp_path, max_epochs=1)
    one.fit(with_methods(pl, training_step=training_step), loader(2))
    return {"found": found, "rows": rows(one), **seen(one)}
