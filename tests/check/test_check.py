"""Each check against a module broken in just that way, and what must be as it was afterwards."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler as S
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import raylit as pl
from raylit.callbacks import ModelCheckpoint
from raylit.check import check as checks
from raylit.check.probe import has_fallen
from raylit.check.report import duration
from raylit.check.samples import mixes_samples
from raylit.core.optimizer import LRSchedulerConfig
from raylit.data import CombinedLoader
from raylit.errors import ConfigError, DataError
from raylit.loggers import CSVLogger, TensorBoardLogger
from raylit.testing import TinyModel

CLASSES, FEATURES = 5, 8


class Classifier(pl.LightningModule):
    """A model with nothing wrong; the tests break one part each."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, 32)
        self.dropout = nn.Dropout(0.1)
        self.last = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.dropout(F.relu(self.first(x))))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Validated(Classifier):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))


def loader(batch_size: int = 16, **kwargs: Any) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, FEATURES, generator=generator)
    return DataLoader(TensorDataset(x, x[:, :CLASSES].argmax(1)), batch_size, **kwargs)


def check(
    model: pl.LightningModule,
    train: Any = None,
    val: Any = None,
    datamodule: Any = None,
    **trainer: Any,
) -> pl.CheckReport:
    torch.manual_seed(0)
    settings = {"accelerator": "cpu", "max_epochs": 3, "logger": False, **trainer}
    data = None if datamodule is not None else train if train is not None else loader()
    return pl.Trainer(**settings).check(model, data, val, datamodule, verbose=False)


def statuses(report: pl.CheckReport) -> dict[str, str]:
    """The checks that are not ok; without the one that goes by the clock."""
    return {
        finding.check: finding.status
        for finding in report.findings
        if finding.status != "ok" and finding.check != "time"
    }


def test_a_good_model() -> None:
    report = check(Validated(), val=loader())
    assert statuses(report) == {}
    assert report.ok
    assert report["steps"].values["steps"] == ["training_step", "validation_step"]
    ((function, value, expected),) = report["loss"].values["functions"]
    assert (function, expected) == ("cross_entropy", math.log(CLASSES))
    assert abs(value - expected) < 0.3
    assert report["samples"].values["mixing"] == {"the module": False}
    losses = report["one batch"].values["losses"]
    assert losses[-1] < 0.1 * losses[0] and len(losses) % 10 == 0
    time = report["time"].values
    assert time["batches"] == 4
    assert time["epoch_s"] == pytest.approx(4 * (time["step_s"] + time["read_s"]))
    with pytest.raises(KeyError, match="'speed' was not checked; there are: steps, gradients"):
        report["speed"]
    lines = str(report).splitlines()
    assert lines[0].split() == ["check", "found"] and len(lines) >= 2 + len(report.findings)
    assert lines[2].split()[:4] == ["steps", "ok", "training_step", "and"]
    assert "losses" not in str(report) and not any("\x1b" in line for line in lines)


class TestGradients:
    def test_a_dead_layer(self) -> None:
        class Dead(Classifier):
            def __init__(self) -> None:
                super().__init__()
                self.unused = nn.Linear(3, 3)

        report = check(Dead())
        assert statuses(report) == {"gradients": "problem"}
        assert report["gradients"].values["without_gradient"] == ["unused.weight", "unused.bias"]
        assert "unused.weight, unused.bias" in report["gradients"].found
        assert statuses(check(Dead(), strategy="ddp_find_unused_parameters_true")) == {
            "gradients": "warning"
        }

    def test_a_layer_behind_a_detach(self) -> None:
        class Detached(Classifier):
            def forward(self, x: Tensor) -> Tensor:
                return self.last(F.relu(self.first(x)).detach())

        assert check(Detached())["gradients"].values["without_gradient"] == [
            "first.weight",
            "first.bias",
        ]

    def test_units_that_never_fire(self) -> None:
        class Silent(Classifier):
            def __init__(self) -> None:
                super().__init__()
                nn.init.constant_(self.first.bias, -1e3)

        report = check(Silent())
        assert report["gradients"].status == "warning"
        assert report["gradients"].values["zero_gradient"] == [
            "first.weight",
            "first.bias",
            "last.weight",
        ]

    def test_what_is_frozen_or_gets_a_gradient_only_later_is_fine(self) -> None:
        class LowRank(Classifier):
            """At first the gradient of `down` is 0, since `up` is."""

            def __init__(self) -> None:
                super().__init__()
                self.first.requires_grad_(False)
                self.down = nn.Linear(FEATURES, 2, bias=False)
                self.up = nn.Linear(2, 32, bias=False)
                nn.init.zeros_(self.up.weight)

            def forward(self, x: Tensor) -> Tensor:
                return self.last(F.relu(self.first(x) + self.up(self.down(x))))

        assert statuses(check(LowRank())) == {}


def test_parameters_in_no_optimizer() -> None:
    class Forgets(Classifier):
        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.last.parameters(), lr=0.03)

    report = check(Forgets())
    assert report["optimizers"].status == "problem"
    assert report["optimizers"].values["left_out"] == ["first.weight", "first.bias"]


class Log(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x)


class TestFinite:
    def test_says_where_it_began(self) -> None:
        class TakesLog(Classifier):
            def __init__(self) -> None:
                super().__init__()
                self.head = nn.Sequential(nn.Linear(32, 32), Log(), nn.Linear(32, CLASSES))

            def forward(self, x: Tensor) -> Tensor:
                return self.head(self.first(x)) + self.last(self.first(x))

        report = check(TakesLog())
        assert report["finite"].status == "problem"
        places = report["finite"].values["places"]
        assert places[:2] == ["the output of head.1", "the input of head.2"]
        assert {"the loss", "the gradient of head.0.weight", "the weights head.0.weight"} <= set(
            places
        )
        assert "first in the output of head.1" in report["finite"].found

    def test_a_gradient_alone(self) -> None:
        class Root(Classifier):
            def forward(self, x: Tensor) -> Tensor:
                x = self.first(x)
                return self.last(x + (x - x.detach()).abs().sqrt())

        places = check(Root())["finite"].values["places"]
        assert [place for place in places if place.startswith("the gradient")] == [
            "the gradient of first.bias",
            "the gradient of first.weight",
        ]
        assert "the loss" not in places

    def test_data(self) -> None:
        x = torch.randn(32, FEATURES)
        x[3, 2] = float("nan")
        places = check(
            Classifier(), DataLoader(TensorDataset(x, torch.zeros(32, dtype=torch.long)), 16)
        )["finite"].values["places"]
        assert places[0] == "the batch"

    def test_weights(self) -> None:
        model = Classifier()
        with torch.no_grad():
            model.last.bias[0] = float("inf")
        assert check(model)["finite"].values["places"][0] == "the weights last.bias"

    def test_infinity_that_is_a_mask(self) -> None:
        class Masks(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.masked_fill(x < x.mean(1, keepdim=True), float("-inf"))

        class Attends(Classifier):
            def __init__(self) -> None:
                super().__init__()
                self.masks = Masks()

            def forward(self, x: Tensor) -> Tensor:
                x = self.first(x)
                return self.last(F.softmax(self.masks(x), 1) * x * 8)

        report = check(Attends())
        assert report["finite"].status == "ok", "loss, gradients and weights are finite"
        assert report["finite"].values["places"] == ["the output of masks"]


class TestSamples:
    def test_a_wrong_reshape(self) -> None:
        class Reshapes(Classifier):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x.t().reshape(x.shape))

        report = check(Reshapes())
        assert report["samples"].status == "problem"
        assert "output 0 depends on input 1" in report["samples"].found

    def test_a_softmax_over_the_batch(self) -> None:
        class WrongAxis(Classifier):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(F.softmax(x, 0))

        assert check(WrongAxis())["samples"].values["mixing"] == {"the module": True}

    def test_without_forward_the_modules_that_the_step_calls_are_told_of(self) -> None:
        class Mixer(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x + x.mean(0)

        class NoForward(Classifier):
            def __init__(self) -> None:
                super().__init__()
                self.mixer = Mixer()

            def training_step(self, batch: Any, batch_idx: int) -> Any:
                return F.cross_entropy(
                    self.last(F.relu(self.first(self.mixer(batch[0])))), batch[1]
                )

        assert check(NoForward())["samples"].values["mixing"] == {
            "mixer": True,
            "first": False,
            "last": False,
        }

    def test_batch_norm_takes_nothing_from_the_batch_in_eval_mode(self) -> None:
        class Normed(Classifier):
            def __init__(self) -> None:
                super().__init__()
                self.norm = nn.BatchNorm1d(32)

            def forward(self, x: Tensor) -> Tensor:
                return self.last(F.relu_(self.norm(self.first(x))))

        assert statuses(check(Normed())) == {}

    def test_what_writes_into_its_input(self) -> None:
        class InPlace(Classifier):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x.mul_(1.01))

        assert check(InPlace())["samples"].values["mixing"] == {"the module": False}

    def test_could_not_be_told(self) -> None:
        class Tokens(Classifier):
            def __init__(self) -> None:
                super().__init__()
                self.table = nn.Embedding(10, FEATURES)

            def forward(self, x: Tensor) -> Tensor:
                return super().forward(self.table(x).mean(1))

        x = torch.randint(0, 10, (64, 3), generator=torch.Generator().manual_seed(0))
        report = check(Tokens(), DataLoader(TensorDataset(x, x[:, 0] % CLASSES), 16))
        assert statuses(report) == {"samples": "unknown"}
        assert (
            "could not be told: the module: no input is a floating-point tensor"
            in report["samples"].found
        )
        assert report.ok
        assert "the batch has one sample" in check(Classifier(), loader(1))["samples"].found

        class NotInEval(Classifier):
            def forward(self, x: Tensor) -> Tensor:
                if not self.training:
                    raise NotImplementedError("later")
                return super().forward(x)

        assert (
            "could not be called in eval mode (NotImplementedError: later)"
            in check(NotInEval())["samples"].found
        )

    @pytest.mark.parametrize("batch_size", [8, 16, 32])
    def test_an_output_as_wide_as_the_batch_is_none_of_pairs(self, batch_size: int) -> None:
        class Wide(Classifier):
            def __init__(self) -> None:
                super().__init__()
                self.last = nn.Linear(32, batch_size)

        assert check(Wide(), loader(batch_size))["samples"].status == "ok"

    def test_what_the_step_itself_makes_of_parts_is_not_told(self) -> None:
        class Attends(Classifier):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                hidden = self.first(batch[0])
                mixed = (hidden @ hidden.T).softmax(0) @ hidden  # over the samples
                return F.cross_entropy(self.last(mixed), batch[1])

        found = check(Attends())["samples"]
        assert found.status == "unknown"
        assert "in first, last; what training_step makes of these was not looked at" in found.found

    def test_time_first_is_not_taken_for_samples(self) -> None:
        class Recurrent(Classifier):
            def __init__(self) -> None:
                super().__init__()
                self.rnn = nn.RNN(FEATURES, 32)

            def forward(self, x: Tensor) -> Tensor:
                return self.last(self.dropout(self.rnn(x)[0][-1]) + self.first(x[-1]))

            def training_step(self, batch: Any, batch_idx: int) -> Any:
                return F.cross_entropy(self(batch[0]), batch[1])

        def collate(samples: list[Any]) -> Any:
            return torch.stack(
                [sample[0].expand(6, FEATURES) for sample in samples], 1
            ), torch.stack([sample[1] for sample in samples])

        assert check(Recurrent(), loader(collate_fn=collate))["samples"].status == "unknown"


def regression(weight: float, mean: float = 0.0) -> DataLoader[Any]:
    x = torch.randn(64, FEATURES, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, weight * x[:, :1] + mean), 16)


class Regressor(Classifier):
    def __init__(self, loss: Callable[..., Any] = F.mse_loss) -> None:
        super().__init__()
        self.last = nn.Linear(32, 1)
        self.loss = loss

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": self.loss(self(batch[0]), batch[1])}


class TestLoss:
    @pytest.mark.parametrize(
        ("loss", "mistake"),
        [
            (lambda x, y: F.cross_entropy(x.softmax(1), y), "cross_entropy gets probabilities"),
            (
                lambda x, y: nn.CrossEntropyLoss()(x.softmax(1), y),
                "cross_entropy gets probabilities",
            ),
            (lambda x, y: F.nll_loss(x, y), "nll_loss gets numbers above 0"),
            (
                lambda x, y: F.nll_loss(input=x.softmax(1), target=y),
                "nll_loss gets numbers above 0",
            ),
            (
                lambda x, y: F.binary_cross_entropy_with_logits(
                    x.sigmoid(), F.one_hot(y, CLASSES).float()
                ),
                "applies a sigmoid itself",
            ),
            (
                lambda x, y: F.mse_loss(x[:, :1], y.float()),
                r"mse_loss compares shapes \[16, 1\] and \[16\]",
            ),
            (
                lambda x, y: F.l1_loss(x[:, 0], y[:, None].float()),
                r"l1_loss compares shapes \[16\] and \[16, 1\]",
            ),
        ],
    )
    @pytest.mark.filterwarnings("ignore:Using a target size")
    def test_wrong_ones(self, loss: Any, mistake: str) -> None:
        class Wrong(Classifier):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                return loss(self(batch[0]), batch[1])

        report = check(Wrong())
        assert report["loss"].status == "problem"
        assert re.search(mistake, report["loss"].found)
        assert report["loss"].advice

    def test_right_ones(self) -> None:
        class Binary(Classifier):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                return F.binary_cross_entropy_with_logits(
                    self(batch[0]), F.one_hot(batch[1], CLASSES).float()
                )

        ((_, value, expected),) = check(Binary())["loss"].values["functions"]
        assert expected == math.log(2)
        assert value == pytest.approx(expected, abs=0.1)

    def test_too_high_at_first(self) -> None:
        model = Classifier()
        with torch.no_grad():
            model.last.weight.mul_(100)
        assert check(model)["loss"].status == "warning"
        report = check(Regressor(), regression(1.0, mean=50.0))
        assert report["loss"].status == "warning"
        assert "the variance of the targets" in report["loss"].found
        assert check(Regressor(), regression(1.0))["loss"].status == "ok"

    def test_one_of_the_users_own_is_reported(self) -> None:
        report = check(Regressor(lambda x, y: (x - y).abs().mean()), regression(1.0))
        assert report["loss"].status == "ok"
        assert "what it should be could not be told" in report["loss"].found


class TestOneBatch:
    def test_the_sign_is_wrong(self) -> None:
        class Uphill(Classifier):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                return -torch.log(
                    1 + F.cross_entropy(self(batch[0]).detach() + 0 * self(batch[0]), batch[1])
                )

        report = check(Uphill())
        assert report["one batch"].status == "problem"

    def test_a_learning_rate_that_is_too_low_or_too_high(self) -> None:
        class Fixed(Classifier):
            def __init__(self, lr: float) -> None:
                super().__init__()
                self.lr = lr

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), lr=self.lr)

        low, high = (check(Fixed(lr))["one batch"] for lr in (1e-6, 1e4))
        assert (low.status, high.status) == ("warning", "problem")
        assert "raise the learning rate" in low.advice and "lower the learning rate" in high.advice
        assert low.values["losses_with_adam"][-1] < 1.0 < low.values["losses"][-1]

    def test_a_warm_up_is_left_out(self) -> None:
        class WarmsUp(Classifier):
            def configure_optimizers(self) -> Any:
                optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
                scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10_000)
                return {
                    "optimizer": optimizer,
                    "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
                }

        assert statuses(check(WarmsUp())) == {}

    def test_one_cycle(self) -> None:
        class OneCycle(Classifier):
            def configure_optimizers(self) -> Any:
                optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
                steps = int(self.trainer.estimated_stepping_batches)
                scheduler = torch.optim.lr_scheduler.OneCycleLR(
                    optimizer, max_lr=0.02, total_steps=steps
                )
                return {
                    "optimizer": optimizer,
                    "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
                }

        assert statuses(check(OneCycle())) == {}

    @pytest.mark.parametrize(
        ("make", "interval", "said"),
        [
            (
                lambda o: S.LambdaLR(o, lambda step: min(1.0, step / 5)),
                "epoch",
                "LambdaLR leaves the learning rate at 0 for the whole first epoch",
            ),
            (lambda o: S.LambdaLR(o, lambda step: min(1.0, step / 5)), "step", None),
            (
                lambda o: S.OneCycleLR(o, 0.02, total_steps=40),
                "epoch",
                "OneCycleLR is made for 40 steps and gets 10",
            ),
            (
                lambda o: S.CosineAnnealingLR(o, T_max=10),
                "step",
                "CosineAnnealingLR turns 4 times between high and low in 40 steps",
            ),
            (lambda o: S.CosineAnnealingLR(o, T_max=10), "epoch", None),
            (lambda o: S.CosineAnnealingWarmRestarts(o, T_0=10), "step", None),
        ],
    )
    def test_a_scheduler_of_the_other_interval(
        self, make: Callable[[Any], Any], interval: str, said: str | None
    ) -> None:
        class Scheduled(Classifier):
            def configure_optimizers(self) -> Any:
                optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
                scheduler = {"scheduler": make(optimizer), "interval": interval}
                return {"optimizer": optimizer, "lr_scheduler": scheduler}

        found = check(Scheduled(), max_epochs=10)["optimizers"]
        assert found.status == ("ok" if said is None else "question")
        assert said is None or said in found.found

    @pytest.mark.parametrize(
        ("make", "is_odd"),
        [
            (lambda o: S.CosineAnnealingWarmRestarts(o, T_0=1000), False),
            (lambda o: S.LambdaLR(o, lambda step: float(step < 500)), True),
        ],
    )
    def test_the_foot_of_a_cycle_is_not_the_end(
        self, make: Callable[[Any], Any], is_odd: bool
    ) -> None:
        scheduler = make(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0))
        config = LRSchedulerConfig(scheduler, interval="step")
        trainer = pl.Trainer(max_steps=10_000, logger=False)
        assert (checks._odd_schedule([config], trainer, 100) is not None) is is_odd

    def test_a_plateau_of_what_validation_logs(self) -> None:
        class Plateau(Validated):
            monitor = "val_loss"

            def configure_optimizers(self) -> Any:
                optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
                plateau = S.ReduceLROnPlateau(optimizer)
                return {"optimizer": optimizer, "lr_scheduler": plateau, "monitor": self.monitor}

        model = Plateau()
        assert statuses(check(model, val=loader())) == {}
        model.monitor = "val_los"
        with pytest.raises(ConfigError, match="'val_los', which was not logged"):
            check(model, val=loader())

    @pytest.mark.parametrize("number", [1, 2])
    def test_a_step_that_reads_its_schedulers(self, number: int) -> None:
        class Reads(Classifier):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                schedulers = self.lr_schedulers()
                for one in schedulers if number == 2 else [schedulers]:
                    self.log("lr", one.get_last_lr()[0])
                return super().training_step(batch, batch_idx)

            def configure_optimizers(self) -> Any:
                optimizer = torch.optim.SGD(self.parameters(), lr=1e-6)
                return [optimizer], [S.StepLR(optimizer, 1000) for _ in range(number)]

        report = check(Reads())
        assert report["one batch"].values["losses_with_adam"][-1] < 1.0
        assert report["optimizers"].status == "ok"

    def test_manual_optimization(self) -> None:
        class Manual(Classifier):
            def __init__(self) -> None:
                super().__init__()
                self.automatic_optimization = False
                self.critic = nn.Linear(FEATURES, 1)

            def training_step(self, batch: Any, batch_idx: int) -> Any:
                one, two = self.optimizers()
                for optimizer, loss in (
                    (one, F.cross_entropy(self(batch[0]), batch[1])),
                    (two, self.critic(batch[0]).square().mean()),
                ):
                    self.toggle_optimizer(optimizer)
                    optimizer.zero_grad()
                    self.manual_backward(loss)
                    optimizer.step()
                    self.untoggle_optimizer(optimizer)

            def configure_optimizers(self) -> Any:
                own = [*self.first.parameters(), *self.last.parameters()]
                return torch.optim.Adam(own, lr=0.01), torch.optim.Adam(self.critic.parameters())

        report = check(Manual())
        assert statuses(report) == {"one batch": "unknown"}
        assert report["gradients"].found == "all of 6 parameters get one"

    def test_what_learns_slowly_is_fine(self) -> None:
        class Slow(Classifier):
            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), lr=0.15)

        report = check(Slow())
        assert statuses(report) == {}
        assert report["one batch"].found.endswith("and still falls")
        assert report["one batch"].values["losses_with_adam"] is None

    @pytest.mark.parametrize(
        ("losses", "fell"),
        [
            ([2.0, 0.1], True),
            ([2.0, 0.5], False),
            ([2.0, math.nan], False),
            ([], False),
            ([-1.0, -3.0], True),
            ([1.0, -0.5], True),
            ([-1.0, -1.1], False),
        ],
    )
    def test_what_a_small_fraction_is(self, losses: list[float], fell: bool) -> None:
        assert has_fallen(losses) is fell


def test_a_slow_loader() -> None:
    class Slow(TensorDataset):
        def __getitem__(self, index: Any) -> Any:
            time.sleep(0.002)
            return super().__getitem__(index)

    report = check(Classifier(), DataLoader(Slow(*loader().dataset.tensors), 16))  # type: ignore[attr-defined]
    assert report["time"].status == "warning"
    assert report["time"].values["read_s"] > 0.03
    assert "DataLoader(num_workers=...)" in report["time"].advice


class Data(pl.LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.transferred = 0

    def setup(self, stage: str) -> None:
        self.train = loader(shuffle=True, generator=torch.Generator().manual_seed(3))

    def train_dataloader(self) -> Any:
        return self.train

    def val_dataloader(self) -> Any:
        return loader()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.transferred += 1
        return [batch[0] / 2, batch[1]]


class Recorder(pl.Callback):
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        raise AssertionError("a check leaves the callbacks out")


class Fickle(Validated):
    """Draws random numbers, counts, keeps state, has buffers and writes into its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(FEATURES)
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(x))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen += 1
        batch[0].add_(random.random() * 0.01 + np.random.rand() * 0.01)
        return super().training_step(batch, batch_idx)

    def configure_callbacks(self) -> Any:
        return Recorder()


def test_nothing_is_changed(tmp_path: Path) -> None:
    model, data, batches = (
        Fickle(),
        Data(),
        loader(shuffle=True, generator=torch.Generator().manual_seed(7)),
    )
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=2, default_root_dir=tmp_path, callbacks=Recorder()
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    samples = copy.deepcopy(batches.dataset.tensors)  # type: ignore[attr-defined]
    drawn = batches.generator.get_state()
    states = pickle.dumps(
        (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state())
    )

    assert trainer.check(model, batches, loader(), verbose=False).ok
    assert trainer.check(model, datamodule=data, verbose=False).ok

    assert (
        pickle.dumps((torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()))
        == states
    )
    assert batches.generator.get_state().equal(drawn)
    assert all(
        one.equal(other) for one, other in zip(samples, batches.dataset.tensors, strict=True)
    )  # type: ignore[attr-defined]
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert (model.seen, model._trainer, model.training) == (0, None, True)
    assert (data.transferred, hasattr(data, "train")) == (0, False)
    assert (trainer.state.status, trainer.global_step, trainer.callback_metrics) == (
        "initializing",
        0,
        {},
    )
    assert list(tmp_path.iterdir()) == []


def test_a_fit_after_it_is_the_fit_without_it(tmp_path: Path) -> None:
    def fit(checks: bool) -> dict[str, Tensor]:
        pl.seed_everything(5, verbose=False)
        model, batches = Classifier(), loader(shuffle=True)
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        if checks:
            trainer.check(model, batches, verbose=False)
        trainer.fit(model, batches)
        return model.state_dict()

    without, after = fit(False), fit(True)
    assert all(without[name].equal(after[name]) for name in without)


def test_several_loaders_are_left_as_they_are() -> None:
    class Two(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return sum(F.cross_entropy(self(part[0]), part[1]) for part in batch.values())

    loaders = {"a": loader(16), "b": loader(8, shuffle=True)}
    combined = CombinedLoader(loaders, "max_size_cycle")
    before = (combined.limits, list(combined.flattened))
    for data in (combined, loaders):
        report = check(Two(), data)
        assert statuses(report) == {}
        assert report["time"].values["batches"] == 8
    assert (combined.limits, list(combined.flattened)) == before


def test_the_data_of_the_module_and_data_without_length() -> None:
    report = pl.Trainer(max_epochs=2, accelerator="cpu", logger=False).check(
        TinyModel(), verbose=False
    )
    assert report.ok
    assert report["loss"].status == "ok"  # all targets are 1: there is nothing to compare with

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return zip(*loader().dataset.tensors, strict=True)  # type: ignore[attr-defined]

    report = check(Classifier(), DataLoader(Stream(), 16, num_workers=1))
    assert statuses(report) == {}
    assert report["time"].values["epoch_s"] is None
    assert "how many an epoch has is not known" in report["time"].found


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true", "bf16-true"])
def test_precision(precision: str) -> None:
    report = check(Classifier(), precision=precision)
    assert report.ok
    assert report["samples"].status == "ok"


def test_trainer_arguments_that_would_be_in_the_way(tmp_path: Path) -> None:
    report = check(
        Classifier(),
        num_workers=2,
        fast_dev_run=True,
        max_time="00:00:00:01",
        accumulate_grad_batches=3,
        gradient_clip_val=0.5,
        default_root_dir=tmp_path,
        logger=True,
        overfit_batches=2,
        min_steps=100,
    )
    assert report.ok
    assert report["time"].values["batches"] == 4
    assert list(tmp_path.iterdir()) == []


def test_the_error_of_a_step_is_raised() -> None:
    class Fails(Validated):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            raise ZeroDivisionError("in validation")

    with pytest.raises(ZeroDivisionError, match="in validation"):
        check(Fails(), val=loader())


def test_what_cannot_be_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Classifier()
    with monkeypatch.context() as several:
        several.setenv("WORLD_SIZE", "2")
        with pytest.raises(ConfigError, match="A check runs in one process"):
            check(model)
    with pytest.raises(DataError, match="is an iterator, whose batches can be read once"):
        check(model, iter(loader()))
    with pytest.raises(ConfigError, match="got both loaders and a datamodule"):
        pl.Trainer(max_epochs=1).check(model, loader(), datamodule=Data())
    with pytest.raises(TypeError, match=r"Trainer\.check wants a LightningModule"):
        pl.Trainer(max_epochs=1).check(nn.Linear(1, 1), loader())  # type: ignore[arg-type]
    model.file = open(__file__)  # type: ignore[assignment]  # noqa: SIM115
    with pytest.raises(
        ConfigError, match=r"Classifier cannot be copied by copy\.deepcopy: TypeError"
    ):
        check(model)
    model.file.close()  # type: ignore[operator, union-attr]


def test_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgets(Classifier):
        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.last.parameters(), lr=0.03)

    monkeypatch.setenv("COLUMNS", "100")
    pl.Trainer(max_epochs=1, accelerator="cpu", logger=False).check(Forgets(), loader())
    lines = capsys.readouterr().out.splitlines()
    row = next(number for number, line in enumerate(lines) if line.split()[:1] == ["optimizers"])
    assert lines[row].split()[1:] == [
        "problem",
        "first.weight,",
        "first.bias",
        "in",
        "no",
        "optimizer",
    ]
    assert lines[row + 1].split()[:4] == ["->", "hand", "them", "to"]


def test_loggers_and_checkpoints_that_user_code_asks_for(tmp_path: Path) -> None:
    """They are there, and write nothing."""

    class Asks(Validated):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            self.logger.experiment.add_scalar("mine", loss, batch_idx)
            self.loggers[1].experiment["mine"] = loss
            callback = self.trainer.checkpoint_callback
            asked.append((callback.monitor, callback.best_model_path, callback.save_top_k))
            return loss

    asked: list[Any] = []
    saves = ModelCheckpoint(tmp_path / "kept", monitor="val_loss", save_top_k=2, save_last=True)
    loggers = [TensorBoardLogger(tmp_path / "tb"), CSVLogger(tmp_path / "csv")]
    report = check(Asks(), val=loader(), logger=loggers, callbacks=[saves])
    assert statuses(report) == {}
    assert set(asked) == {("val_loss", "", 0)}
    assert (saves.save_top_k, saves.save_last) == (2, True)
    assert list(tmp_path.iterdir()) == []


class TestMemory:
    """Of a model whose weights are most of what a step holds."""

    class Wide(Validated):
        def __init__(self, widens: int = 1) -> None:
            super().__init__()
            self.first = nn.Linear(FEATURES, 20_000)
            self.last = nn.Linear(20_000, CLASSES)
            self.widens = widens

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            x = batch[0].repeat(self.widens, 1)
            F.cross_entropy(self(x), batch[1].repeat(self.widens))

    def test_counts_one_model(self) -> None:
        memory = check(self.Wide(), loader(2), loader(2))["memory"]
        weights = sum(one.nbytes for one in self.Wide().parameters())
        # weights, gradients, two averages of Adam, and what Adam makes for a moment
        assert 4 * weights < memory.values["train_bytes"] < 7 * weights
        # the gradients may be there, which are cleared before the next step
        assert 3 * weights < memory.values["val_bytes"] < 5.5 * weights
        assert memory.values["peak_bytes"] == memory.values["train_bytes"]
        assert "a training step" in memory.found and "a batch of validation" in memory.found

    def test_one_copy_is_there_at_a_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(checks, "LARGE_BYTES", 0)

        class Counted(Validated):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                if batch_idx == 0:
                    most.append(sum(type(one) is Counted for one in gc.get_objects()))
                return super().training_step(batch, batch_idx)

            def configure_optimizers(self) -> Any:
                optimizer = torch.optim.SGD(self.parameters(), 1e-6)  # Adam is tried as well
                return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 10)]

        most: list[int] = []
        check(Counted(), val=loader())
        assert max(most) == 2, "the user's and a copy"

    def test_validation_may_need_more(self) -> None:
        values = check(self.Wide(widens=64), loader(2), loader(2))["memory"].values
        output = 128 * 20_000 * 4
        assert values["peak_bytes"] == values["val_bytes"] > values["train_bytes"]
        assert values["val_bytes"] > 2 * output  # before and after the ReLU


def test_durations_are_numbers_that_people_read() -> None:
    times_s = [0.0018, 0.021, 0.76, 1.0, 59.4, 110.4, 600.0, 9000.0]
    shown = ["1.8 ms", "21 ms", "0.76 s", "1 s", "59 s", "110 s", "10 min", "2.5 h"]
    assert [duration(time_s) for time_s in times_s] == shown


@pytest.mark.parametrize("mixes", [False, True])
def test_inputs_of_one_number_a_sample(mixes: bool) -> None:
    """As the columns of a table are, in a batch that is a dict."""

    class Columns(torch.nn.Module):
        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            found = batch["a"] * 2 + batch["b"][:, 0]
            return found - found.mean() if mixes else found

    batch = {"a": torch.randn(4), "b": torch.randn(4, 2)}
    found, _ = mixes_samples(Columns(), (batch,), {}, 4)
    assert found is mixes
