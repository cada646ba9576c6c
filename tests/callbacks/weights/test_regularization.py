"""The callback against the penalty written into the loss by hand."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import raylit as pl
from raylit.callbacks import Regularization
from raylit.errors import ConfigError
from tests.quiet import UNLOGGED
from tests.ranks import run_on_two_ranks

L1, L2 = 0.01, 0.1


class Net(pl.LightningModule):
    """Three batches of regression; `l1` and `l2` are the penalty by hand."""

    def __init__(
        self,
        l1: float = 0.0,
        l2: float = 0.0,
        optimizer: Callable[..., Any] = torch.optim.SGD,
        manual: bool = False,
    ) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 8), nn.LayerNorm([1, 8]), nn.Linear(8, 1)
        self.l1, self.l2, self.optimizer, self.automatic_optimization = (
            l1,
            l2,
            optimizer,
            not manual,
        )

    def penalty(self) -> Tensor:
        weights = (self.first.weight, self.last.weight)
        return sum(
            (self.l1 * w.abs().sum() + self.l2 / 2 * w.square().sum() for w in weights),
            torch.zeros(()),
        )

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = (
            self.last(self.norm(self.first(batch[0]).unsqueeze(1))).squeeze(1) - batch[1]
        ).square().mean() + self.penalty()
        if self.automatic_optimization:
            return loss
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return None

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters(), lr=0.05)


def batches(batch_size: int = 4) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 4, generator=generator)
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size)


def fit(model: pl.LightningModule, *callbacks: Any, **trainer: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    for child in model.children():
        child.reset_parameters()  # type: ignore[operator]
    pl.Trainer(
        **{
            **UNLOGGED,
            "max_epochs": 3,
            "enable_checkpointing": False,
            "callbacks": list(callbacks),
            **trainer,
        }
    ).fit(model, batches())
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def close(one: dict[str, Tensor], other: dict[str, Tensor], **tolerance: float) -> bool:
    return one.keys() == other.keys() and all(
        one[name].allclose(other[name], **{"atol": 1e-6, "rtol": 1e-5, **tolerance}) for name in one
    )


class TestIsThePenaltyInTheLoss:
    @pytest.mark.parametrize("strength", [(L1, 0.0), (0.0, L2), (L1, L2)], ids=str)
    @pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
    def test_with_any_optimizer(self, optimizer: Any, strength: tuple[float, float]) -> None:
        by_hand = fit(Net(*strength, optimizer=optimizer))
        assert close(fit(Net(optimizer=optimizer), Regularization(*strength)), by_hand, atol=1e-5)
        assert not close(fit(Net(optimizer=optimizer)), by_hand, atol=1e-4)

    @pytest.mark.parametrize(
        "trainer",
        [
            {"accumulate_grad_batches": 3},
            {"gradient_clip_val": 0.5},
            {
                "gradient_clip_val": 0.05,
                "gradient_clip_algorithm": "value",
                "accumulate_grad_batches": 3,
            },
            {"precision": "64-true"},
        ],
        ids=str,
    )
    def test_with_accumulation_clipping_and_precision(self, trainer: dict[str, Any]) -> None:
        assert close(fit(Net(), Regularization(L1, L2), **trainer), fit(Net(L1, L2), **trainer))

    def test_a_step_of_fewer_batches_than_an_accumulation_has_the_whole_penalty(self) -> None:
        class Weighted(Net):
            def penalty(self) -> Tensor:
                # The loop divides it by 2, though it is the only one
                return super().penalty() * (2 if self.trainer.is_last_batch else 1)

        assert close(
            fit(Net(), Regularization(L1, L2), accumulate_grad_batches=2),
            fit(Weighted(L1, L2), accumulate_grad_batches=2),
        )

    def test_with_manual_optimization(self) -> None:
        assert close(fit(Net(manual=True), Regularization(L1, L2)), fit(Net(L1, L2, manual=True)))

    def test_within_a_closure(self) -> None:
        class OwnStep(Net):
            def optimizer_step(
                self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
            ) -> None:
                optimizer.step(closure=optimizer_closure)

        assert close(fit(OwnStep(), Regularization(L1, L2)), fit(Net(L1, L2)))

    def test_l2_is_the_weight_decay_of_sgd(self) -> None:
        class Decays(Net):
            def configure_optimizers(self) -> Any:
                others = [self.first.bias, self.last.bias, *self.norm.parameters()]
                weights = {"params": [self.first.weight, self.last.weight], "weight_decay": L2}
                return torch.optim.SGD([weights, {"params": others}], lr=0.05)

        assert close(fit(Net(), Regularization(l2=L2)), fit(Decays()))


def fit_on_ranks(folder: str) -> list[Any]:
    found = []
    for model, callbacks in ((Net(L1, L2), []), (Net(), [Regularization(L1, L2)])):
        torch.manual_seed(0)
        for child in model.children():
            child.reset_parameters()  # type: ignore[operator]
        settings = {
            **UNLOGGED,
            "max_epochs": 2,
            "enable_checkpointing": False,
            "default_root_dir": folder,
            "accumulate_grad_batches": 3,
        }
        pl.Trainer(callbacks=callbacks, **settings).fit(model, batches(2))
        found.append({name: value.tolist() for name, value in model.state_dict().items()})
    return found


def test_on_two_ranks(tmp_path: Path) -> None:
    (by_hand, ours), (by_hand_1, ours_1) = run_on_two_ranks(fit_on_ranks, tmp_path)
    assert ours == ours_1 and by_hand == by_hand_1
    assert all(
        torch.tensor(ours[name]).allclose(torch.tensor(by_hand[name]), atol=1e-6)
        for name in by_hand
    )


class TestWhatIsPenalized:
    class Parts(pl.LightningModule):
        """Every gradient is 0, so that only the penalty moves the weights.

        All of them are 1 at first.
        """

        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(
                nn.Conv1d(2, 2, 1),
                nn.BatchNorm1d(2),
                nn.GroupNorm(1, 2),
                nn.LayerNorm([2, 3]),
                nn.RMSNorm(3),
            )
            self.attention = nn.MultiheadAttention(2, 1, add_bias_kv=True)
            self.table = nn.Embedding(3, 2)
            self.scale = nn.Parameter(torch.ones(2))
            self.frozen = nn.Linear(2, 2).requires_grad_(False)
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter.fill_(1.0)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return sum(
                (0 * parameter).sum() for parameter in self.parameters() if parameter.requires_grad
            )

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=1.0)

    def moved(self, **arguments: Any) -> dict[str, float]:
        model = self.Parts()
        settings = {**UNLOGGED, "max_steps": 1, "enable_checkpointing": False}
        pl.Trainer(callbacks=Regularization(**arguments), **settings).fit(model, batches())
        means = {
            name: round(1 - float(parameter.detach().mean()), 4)
            for name, parameter in model.named_parameters()
        }
        return {name: mean for name, mean in means.items() if mean}

    def test_biases_norms_and_vectors_are_left_out(self) -> None:
        weights = [
            "encoder.0.weight",
            "attention.in_proj_weight",
            "attention.out_proj.weight",
            "table.weight",
        ]
        assert self.moved(l2=0.1) == dict.fromkeys(weights, 0.1)
        assert self.moved(l1=0.3) == dict.fromkeys(weights, 0.3)

    def test_biases_and_norms_can_be_asked_for(self) -> None:
        everything = [
            name for name, parameter in self.Parts().named_parameters() if parameter.requires_grad
        ]
        assert self.moved(l2=0.1, biases_and_norms=True) == dict.fromkeys(everything, 0.1)

    def test_groups(self) -> None:
        groups = {
            "encoder.0.*": {"l2": 0.5},
            "*.bias": {"l1": 0.2, "l2": 0.0},
            "table.*": {"l2": 0.0},
            "scale": {},
        }
        found = self.moved(l2=0.1, groups=groups)
        biases = [f"encoder.{number}.bias" for number in (1, 2, 3)] + ["attention.out_proj.bias"]
        assert found == {
            "encoder.0.weight": 0.5,
            "encoder.0.bias": 0.5,
            "attention.in_proj_weight": 0.1,
            "attention.out_proj.weight": 0.1,
            "scale": 0.1,
            **dict.fromkeys(biases, 0.2),
        }

    def test_nothing_by_default(self) -> None:
        assert self.moved() == {}


def test_the_penalty_is_logged(tmp_path: Path) -> None:
    model = Net()
    torch.manual_seed(0)
    logger = pl.CSVLogger(tmp_path)
    settings = {
        **UNLOGGED,
        "max_epochs": 1,
        "enable_checkpointing": False,
        "logger": logger,
        "log_every_n_steps": 3,
    }
    reference = Net(L1, L2)
    reference.load_state_dict(model.state_dict())
    trainer = pl.Trainer(callbacks=Regularization(L1, L2, log_penalty=True), **settings)
    expected: list[float] = []

    class Watch(pl.Callback):
        def on_train_batch_start(
            self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
        ) -> None:
            reference.load_state_dict(pl_module.state_dict())
            expected.append(reference.penalty().item())

    trainer.callbacks.append(Watch())
    trainer.fit(model, batches())
    with open(Path(str(logger.log_dir)) / "metrics.csv", newline="") as file:
        logged = [float(row["penalty"]) for row in csv.DictReader(file) if row.get("penalty")]
    assert logged == pytest.approx([expected[2]])


def test_wrong_arguments() -> None:
    for arguments, text in (
        ({"l1": -1.0}, r"Regularization\(l1=-1.0\): give a number of at least 0"),
        ({"l2": True}, r"Regularization\(l2=True\)"),
        (
            {"groups": {"a.*": {"l3": 1.0}}},
            r"Regularization\(groups\['a.\*'\]: l3=1.0\): there is no such penalty",
        ),
        ({"groups": {"a.*": {"l1": -2.0}}}, r"groups\['a.\*'\]: l1=-2.0\): give a number"),
    ):
        with pytest.raises(ConfigError, match=text):
            Regularization(**arguments)  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError, match=r"'frist.weight': ...\}\) fits no parameter. Did you mean 'first.weight'"
    ):
        fit(Net(), Regularization(groups={"frist.weight": {"l1": 1.0}}))
    with pytest.raises(ConfigError, match="LBFGS also looks at the loss"):
        fit(Net(optimizer=torch.optim.LBFGS), Regularization(l2=0.1))


def test_a_sparse_gradient() -> None:
    class Sparse(Net):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(3, 1, sparse=True)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) + self.table(torch.tensor([1])).sum()

    with pytest.raises(
        ConfigError, match=r"cannot penalize table.weight, whose gradient is sparse"
    ):
        fit(Sparse(), Regularization(l2=0.1))
    fit(Sparse(), Regularization(l2=0.1, groups={"table.weight": {"l2": 0.0}}))
