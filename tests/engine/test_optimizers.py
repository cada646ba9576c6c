from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR

from raylit import LightningModule, Trainer
from raylit.engine.optimizers import LightningOptimizer, NoOptimizer, configure, wants_closure
from raylit.errors import ConfigError
from raylit.testing import BoringModel
from tests.quiet import BARE


def module(returned: Any, *, automatic: bool = True) -> LightningModule:
    """A module whose configure_optimizers returns `returned`.

    If that is a function, it returns what this gives for the module's one optimizer.
    """

    class Net(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)
            self.automatic_optimization = automatic
            self.optimizer = torch.optim.SGD(self.parameters(), lr=0.1)

        def training_step(self, batch: Any, batch_idx: int) -> Any: ...

        def configure_optimizers(self) -> Any:
            return returned(self.optimizer) if callable(returned) else returned

    return Net()


def plateau(optimizer: Any, **config: Any) -> Any:
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": ReduceLROnPlateau(optimizer), **config},
    }


def test_a_scheduler_config_has_defaults() -> None:
    _, (config,) = configure(module(lambda optimizer: ([optimizer], [StepLR(optimizer, 1)])))
    assert (
        config.interval,
        config.frequency,
        config.monitor,
        config.strict,
        config.reduce_on_plateau,
    ) == ("epoch", 1, None, True, False)


def test_a_plateau_takes_its_monitor_from_the_config_or_from_beside_it() -> None:
    _, (config,) = configure(module(lambda optimizer: plateau(optimizer, monitor="x", frequency=2)))
    assert (config.monitor, config.frequency, config.reduce_on_plateau) == ("x", 2, True)
    beside = {"monitor": "y"}
    _, (config,) = configure(
        module(
            lambda optimizer: {
                "optimizer": optimizer,
                "lr_scheduler": ReduceLROnPlateau(optimizer),
                **beside,
            }
        )
    )
    assert config.monitor == "y"


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("adam", "configure_optimizers returned 'adam'"),
        ({"optimiser": 1}, "no key \"optimizer\"; it has: 'optimiser'"),
        (lambda optimizer: [optimizer, optimizer], "only manual optimization can use"),
        (plateau, "which metric to watch"),
        (lambda optimizer: plateau(optimizer, interval="hour"), '\'hour\'; use "step" or "epoch"'),
        (
            lambda optimizer: {"optimizer": optimizer, "lr_scheduler": {"interval": "step"}},
            'must have the key "scheduler"',
        ),
        (
            lambda optimizer: ([optimizer], [StepLR(torch.optim.SGD([torch.ones(1)]), 1)]),
            "did not return",
        ),
    ],
)
def test_what_cannot_be_returned(returned: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configure(module(returned))


def test_a_misspelled_key_is_warned_of_with_the_nearest_one() -> None:
    with pytest.warns(RuntimeWarning, match="Did you mean 'frequency'"):
        configure(module(lambda optimizer: plateau(optimizer, monitor="x", frequencies=2)))
    with pytest.warns(RuntimeWarning, match="Did you mean 'lr_scheduler'"):
        configure(module(lambda optimizer: {"optimizer": optimizer, "lr_schedular": 1}))


def test_one_cycle_by_epochs_is_warned_of() -> None:
    with pytest.warns(RuntimeWarning, match='Did you mean "interval": "step"'):
        configure(
            module(lambda optimizer: ([optimizer], [OneCycleLR(optimizer, 0.1, total_steps=5)]))
        )


def test_manual_optimization_takes_several_and_ignores_monitors() -> None:
    with pytest.warns(RuntimeWarning, match="manual optimization ignores"):
        optimizers, (config,) = configure(
            module(
                lambda optimizer: [plateau(optimizer, monitor="x"), {"optimizer": optimizer}],
                automatic=False,
            )
        )
    assert len(optimizers) == 2
    assert config.monitor is None


def test_nothing_returned_is_an_optimizer_that_does_nothing() -> None:
    with pytest.warns(UserWarning, match="without an optimizer"):
        (optimizer,), _ = configure(module(None))
    assert isinstance(optimizer, NoOptimizer)
    called: list[int] = []
    optimizer.step(lambda: called.append(1))
    assert called == [1]
    assert optimizer.state_dict() == {}


@pytest.mark.parametrize(("name", "wants"), [("SGD", False), ("AdamW", False), ("LBFGS", True)])
def test_which_optimizers_want_a_closure(name: str, wants: bool) -> None:
    assert wants_closure(getattr(torch.optim, name)([torch.ones(1)], lr=0.1)) is wants


def test_those_of_others_are_given_one() -> None:
    assert wants_closure(type("Own", (torch.optim.SGD,), {})([torch.ones(1)], lr=0.1))


def test_the_wrapped_optimizer_counts_and_passes_for_the_users(tmp_path: Path) -> None:
    class Manual(BoringModel):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.told: list[Any] = []

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.told.append(optimizer)

        def training_step(self, batch: Any, batch_idx: int) -> None:
            wrapped, inner = self.optimizers(), self.optimizers(use_pl_optimizer=False)
            assert isinstance(wrapped, LightningOptimizer)
            assert isinstance(wrapped, torch.optim.SGD), "it passes for the user's"
            assert wrapped.optimizer is inner
            assert wrapped.param_groups is inner.param_groups
            before = self.layer.bias.detach().clone()

            def closure() -> Tensor:
                wrapped.zero_grad()
                loss: Tensor = self.layer(batch).sum()
                self.manual_backward(loss)
                return loss

            assert torch.is_tensor(wrapped.step(closure)), "it gives back what the closure gave"
            torch.testing.assert_close(self.layer.bias.detach(), before - 0.1 * len(batch))
            with pytest.raises(ConfigError, match="must be callable"):
                wrapped.step(3)  # type: ignore[arg-type]

    trainer, module = (
        Trainer(
            max_epochs=1,
            limit_train_batches=3,
            limit_val_batches=0,
            default_root_dir=tmp_path,
            **BARE,
        ),
        Manual(),
    )
    trainer.fit(module)
    assert trainer.global_step == len(module.told) == 3
    assert all(optimizer is trainer.optimizers[0] for optimizer in module.told)
