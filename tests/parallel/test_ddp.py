"""Two ranks of a real gloo group: what they compute together is what one process computes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import raylit as pl
from raylit.engine.schedule import STOP_CHECK_EVERY
from raylit.errors import ConfigError, Terminated
from raylit.parallel import DDPStrategy, find_strategy
from tests import quiet
from tests.lazy import torchmetrics
from tests.ranks import run_on_two_ranks

NUM_TRAIN, NUM_VAL = 24, 13  # 13 is odd: the ranks' shares of it differ
Y = torch.randn(NUM_TRAIN + NUM_VAL, 1, generator=torch.Generator().manual_seed(2))
X = torch.cat([Y, -Y, Y**2], dim=1)


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        self.accuracy = torchmetrics.classification.BinaryAccuracy()
        self.steps: list[int] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
        self.log("train_loss", loss, on_epoch=True, on_step=False)
        self.log("count", float(len(batch[0])), on_epoch=True, on_step=False, reduce_fx="sum")
        self.log("largest", batch[1].max(), on_epoch=True, on_step=False, reduce_fx="max")
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        out = self.net(batch[0])
        self.accuracy(out[:, 0] > 0, batch[1][:, 0] > 0)
        self.log("val_loss", nn.functional.mse_loss(out, batch[1]))
        self.log("val_acc", self.accuracy)
        self.log("val_count", float(len(out)), reduce_fx="sum")
        if self.global_rank == 1:
            self.log("on_rank_1", 5.0)

    test_step = validation_step

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return batch[1]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def train(batch_size: int, shuffle: bool = False) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X[:NUM_TRAIN], Y[:NUM_TRAIN]), batch_size, shuffle=shuffle)


def val(batch_size: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X[NUM_TRAIN:], Y[NUM_TRAIN:]), batch_size)


trainer = partial(quiet.trainer, max_epochs=2)


def fit(folder: str, batch_size: int, **arguments: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    module = Net()
    pl_trainer = trainer(folder, **arguments)
    result = pl_trainer.fit(module, train(batch_size), val(batch_size))
    return {
        "weights": {k: v.clone() for k, v in module.state_dict().items()},
        "history": result.history,
        "metrics": result.metrics,
    }


class StopsOnRank1(Net):
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.global_rank == 1 and self.trainer.global_step == 5:
            self.trainer.should_stop = True


class IsTerminatedOnRank1(Net):
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.global_rank == 1 and self.trainer.global_step == 5:
            # What the handler of the signal does.
            self.trainer.run.request_end()  # type: ignore[union-attr]


class Partly(Net):
    """One layer is used on no rank."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(1, 1)


class CountsCollectives(Net):
    """Notes what the ranks ask of each other between the first batch and the last."""

    def on_train_start(self) -> None:
        self.called: list[str] = []
        self.originals = {name: getattr(dist, name) for name in COLLECTIVES}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            for name, original in self.originals.items():
                setattr(
                    dist,
                    name,
                    lambda *args, _name=name, _original=original, **kw: (
                        self.called.append(_name),
                        _original(*args, **kw),
                    ),
                )

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.num_batches = batch_idx + 1
        if self.trainer.is_last_batch:
            for name, original in self.originals.items():
                setattr(dist, name, original)


COLLECTIVES = (
    "all_reduce",
    "all_gather",
    "all_gather_object",
    "broadcast",
    "broadcast_object_list",
    "barrier",
    "reduce",
    "gather",
)


class FewSamples(Net):
    """Validates on fewer samples than there are ranks, of which the second has none."""

    def validation_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:  # type: ignore[override]
        super().validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        self.seen = {name: value.item() for name, value in self.trainer.callback_metrics.items()}

    def predict_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> Tensor:  # type: ignore[override]
        return batch[1]


class HidesItsMetric(FewSamples):
    def __init__(self) -> None:
        super().__init__()
        self.accuracy = None  # type: ignore[assignment]
        self.hidden = [torchmetrics.classification.BinaryAccuracy()]

    def validation_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:  # type: ignore[override]
        self.hidden[0](batch[1][:, 0], batch[1][:, 0] > 0)
        self.log("hidden", self.hidden[0])


def few(folder: str) -> dict[str, Any]:
    """Evaluations in which one rank has nothing to do."""
    one = DataLoader(TensorDataset(X[:1], Y[:1]))
    module, pl_trainer = FewSamples(), trainer(folder, max_epochs=1)
    found: dict[str, Any] = {
        "fit": pl_trainer.fit(module, train(4), one).metrics,
        "seen": module.seen,
    }
    found["loaders"] = pl_trainer.validate(module, [val(4), one], verbose=False)
    found["predict"] = pl_trainer.predict(module, one)
    found["predict loaders"] = pl_trainer.predict(module, [one, val(NUM_VAL)])
    try:
        pl_trainer.validate(HidesItsMetric(), one, verbose=False)
    except ConfigError as error:
        found["error"] = str(error)
    return found


def asked(pl_trainer: pl.Trainer) -> dict[str, Any]:
    """What user code gets from `trainer.strategy`."""
    pl_trainer.fit(Net(), train(12))
    strategy, rank = pl_trainer.strategy, pl_trainer.global_rank
    value = torch.tensor([1.0, 3.0 + rank])
    strategy.barrier()
    return {
        "ranks": (
            strategy.global_rank,
            strategy.local_rank,
            strategy.world_size,
            strategy.is_global_zero,
            str(strategy.root_device),
        ),
        "sent": (strategy.broadcast(rank), strategy.broadcast(f"from {rank}", src=1)),
        "reduced": (
            strategy.reduce(value).tolist(),
            strategy.reduce(value, reduce_op="sum").tolist(),
            strategy.reduce(torch.tensor(rank)).item(),
        ),
        "gathered": strategy.all_gather(value).tolist(),
        "decided": (
            strategy.reduce_boolean_decision(rank == 0),
            strategy.reduce_boolean_decision(rank == 0, all=False),
        ),
        "sampler": pl_trainer.distributed_sampler_kwargs,
        "devices": pl_trainer.device_ids,
    }


def main(folder: str) -> dict[str, Any]:
    """What each rank does; all in one pair of processes, whose start takes longest."""
    found: dict[str, Any] = {
        "plain": fit(folder, 4),
        "accumulated": fit(folder, 2, accumulate_grad_batches=2),
        "clipped": fit(folder, 4, gradient_clip_val=0.1),
        "precise": fit(folder, 4, precision="64-true"),
        "static": fit(folder, 4, strategy=DDPStrategy(static_graph=True)),
    }
    pl_trainer, module = trainer(folder), Net()
    module.load_state_dict(found["plain"]["weights"])
    found["test"] = pl_trainer.test(module, val(4), verbose=False)
    found["predict"] = torch.cat(pl_trainer.predict(module, val(4)))
    found["world"] = (pl_trainer.world_size, pl_trainer.num_devices, pl_trainer.num_nodes)
    stopped = trainer(folder, max_epochs=9)
    stopped.fit(StopsOnRank1(), train(1))
    found["stopped"] = (stopped.current_epoch, stopped.global_step)
    try:
        trainer(folder, max_epochs=9).fit(IsTerminatedOnRank1(), train(1))
    except Terminated as end:
        found["terminated"] = end.code
    partly = trainer(folder, strategy="ddp_find_unused_parameters_true")
    partly.fit(Partly(), train(4))
    found["partly"] = partly.global_step
    shuffled = trainer(folder, max_epochs=1)
    shuffled.fit(Net(), train(4, shuffle=True))
    counts = CountsCollectives()
    trainer(folder, max_epochs=1).fit(
        counts, DataLoader(TensorDataset(X.repeat(4, 1), Y.repeat(4, 1)), 2)
    )
    found["called"] = (counts.num_batches, counts.called)
    found["few"] = few(folder)
    found["asked"] = asked(trainer(folder, max_epochs=1))
    found["samples"] = [sample.item() for batch in shuffled.train_dataloader for sample in batch[1]]
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_on_two_ranks(main, tmp_path_factory.mktemp("ddp"))


@pytest.mark.parametrize(
    ("name", "batch_size", "arguments"),
    [
        ("plain", 8, {}),
        ("static", 8, {}),
        ("accumulated", 4, {"accumulate_grad_batches": 2}),
        ("clipped", 8, {"gradient_clip_val": 0.1}),
        ("precise", 8, {"precision": "64-true"}),
    ],
)
def test_half_the_batch_each_is_the_whole_batch_in_one(
    ranks: Any, tmp_path: Path, name: str, batch_size: int, arguments: Any
) -> None:
    alone = fit(str(tmp_path), batch_size, **arguments)
    tolerance = 1e-12 if name == "precise" else 1e-5
    for rank in ranks:
        for key, value in alone["weights"].items():
            torch.testing.assert_close(
                rank[name]["weights"][key], value, rtol=tolerance, atol=tolerance
            )
    for key, value in ranks[0][name]["weights"].items():
        assert torch.equal(value, ranks[1][name]["weights"][key])
    for row, expected in zip(ranks[0][name]["history"], alone["history"], strict=True):
        assert {k: v for k, v in row.items() if k != "on_rank_1"} == pytest.approx(
            expected, rel=1e-5
        )


def test_each_sample_counts_once(ranks: Any) -> None:
    for rank in ranks:
        assert rank["plain"]["metrics"]["val_count"] == NUM_VAL
        assert rank["plain"]["metrics"]["count"] == NUM_TRAIN
        assert rank["plain"]["metrics"]["largest"] == Y[:NUM_TRAIN].max()
        assert rank["test"][0]["val_count"] == NUM_VAL


def test_a_metric_is_that_of_all_ranks(ranks: Any, tmp_path: Path) -> None:
    module = Net()
    module.load_state_dict(ranks[0]["plain"]["weights"])
    (alone,) = trainer(str(tmp_path)).test(module, val(NUM_VAL), verbose=False)
    for rank in ranks:
        assert {k: v for k, v in rank["test"][0].items() if k != "on_rank_1"} == pytest.approx(
            alone, rel=1e-5
        )


def test_a_key_logged_on_one_rank_is_known_to_all(ranks: Any) -> None:
    for rank in ranks:
        assert rank["plain"]["metrics"]["on_rank_1"] == 5.0
        assert rank["test"][0]["on_rank_1"] == 5.0
    assert [row["on_rank_1"] for row in ranks[0]["plain"]["history"]] == [5.0, 5.0]


def test_a_rank_without_a_sample_takes_part(ranks: Any) -> None:
    for rank in ranks:
        few = rank["few"]
        assert (few["fit"]["val_count"], few["seen"]["val_count"]) == (1, 1)
        assert few["fit"]["val_acc"] in (0.0, 1.0)
        assert [
            row[f"val_count/dataloader_idx_{index}"] for index, row in enumerate(few["loaders"])
        ] == [NUM_VAL, 1]
        assert [output.tolist() for output in few["predict"]] == [Y[:1].tolist()]
        first, second = (torch.cat(outputs) for outputs in few["predict loaders"])
        assert torch.equal(first, Y[:1])
        assert torch.equal(second, Y[NUM_TRAIN:])
    assert ranks[0]["few"]["fit"] == ranks[1]["few"]["fit"]


def test_a_metric_that_a_rank_does_not_find_is_an_error_and_no_hang(ranks: Any) -> None:
    for rank in ranks:
        assert "'hidden' was logged on some ranks only" in rank["few"]["error"]


def test_within_the_steps_the_ranks_only_agree_on_stops(ranks: Any) -> None:
    """The gradients go another way: DDP's."""
    for rank in ranks:
        num_batches, called = rank["called"]
        assert num_batches > 2 * STOP_CHECK_EVERY
        assert set(called) == {"all_gather_object"}
        # The first few find out how long a batch takes
        assert len(called) <= num_batches // STOP_CHECK_EVERY + 3


def test_predictions_are_in_the_order_of_the_data(ranks: Any) -> None:
    assert all(torch.equal(rank["predict"], Y[NUM_TRAIN:]) for rank in ranks)


def test_a_stop_on_one_rank_stops_both_at_the_same_step(ranks: Any) -> None:
    assert ranks[0]["stopped"] == ranks[1]["stopped"]
    assert ranks[0]["stopped"][1] < 9 * NUM_TRAIN / 2
    assert ranks[0]["terminated"] == ranks[1]["terminated"] == 143


def test_unused_parameters(ranks: Any) -> None:
    assert [rank["partly"] for rank in ranks] == [6, 6]


def test_a_shuffled_epoch_is_shared(ranks: Any) -> None:
    assert sorted(ranks[0]["samples"] + ranks[1]["samples"]) == sorted(Y[:NUM_TRAIN, 0].tolist())


def test_what_the_trainer_says_of_the_ranks(ranks: Any) -> None:
    assert [rank["world"] for rank in ranks] == [(2, 2, 1)] * 2


@pytest.mark.parametrize(
    ("strategy", "unused"),
    [("auto", False), ("ddp", False), ("ddp_find_unused_parameters_true", True)],
)
def test_names_of_strategies(strategy: str, unused: bool) -> None:
    assert find_strategy(strategy) == DDPStrategy(find_unused_parameters=unused)


def test_unknown_strategy() -> None:
    with pytest.raises(
        ConfigError,
        match=r"strategy='dpp' is not known\. Did you mean 'ddp'\? Use one of 'auto', 'ddp'",
    ):
        pl.Trainer(strategy="dpp")


def test_what_user_code_asks_of_the_strategy(ranks: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(one["asked"] for one in ranks):
        assert found["ranks"] == (rank, rank, 2, rank == 0, "cpu")
        assert found["sent"] == (0, "from 1")
        assert found["reduced"] == ([1.0, 3.5], [2.0, 7.0], 0.5)
        assert found["gathered"] == [[1.0, 3.0], [1.0, 4.0]]
        assert found["decided"] == (False, True)
        assert (found["sampler"], found["devices"]) == ({"num_replicas": 2, "rank": rank}, [0, 1])


def test_a_strategy_knows_no_ranks_before_a_job() -> None:
    with pytest.raises(RuntimeError, match="while a job runs"):
        DDPStrategy().barrier()


def test_an_unknown_reduction_is_refused() -> None:
    with pytest.raises(ConfigError, match="reduce_op='median'"):
        DDPStrategy().reduce(torch.ones(1), reduce_op="median")
