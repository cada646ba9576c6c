"""Two ranks with different numbers of batches.

Whatever the data is, an epoch ends on both, as the policy says, and is never waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import raylit as pl
from raylit.errors import ConfigError, DataError
from raylit.parallel import DDPStrategy, FSDPStrategy
from tests.quiet import BARE
from tests.ranks import run_on_two_ranks

LENGTHS = (5, 3)  # batches of rank 0 and of rank 1


class Net(pl.LightningModule):
    """Notes what it is given; validates on data of which one rank has more."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen: list[float] = []
        self.validated: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        batch = torch.as_tensor(batch, dtype=torch.float32)
        self.seen.append(float(batch.flatten()[0]))
        return self.layer(batch.view(-1, 1)).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated.append(float(batch.flatten()[0]))
        self.log("val", self.layer(batch.view(-1, 1)).mean(), batch_size=len(batch))
        self.log("number", float(len(batch)), reduce_fx="sum")

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Stream(IterableDataset[Tensor]):
    def __init__(self, length: int, says: int | None = None) -> None:
        self.length = length
        if says is not None:
            self.__class__ = type("Told", (Stream,), {"__len__": lambda self: says})

    def __iter__(self) -> Iterator[Tensor]:
        return iter([torch.tensor(float(number)) for number in range(self.length)])


def own_length() -> int:
    return LENGTHS[dist.get_rank()]


DATA: dict[str, Callable[[], Any]] = {
    "numbers": lambda: range(own_length()),
    "loaders": lambda: DataLoader(torch.arange(float(own_length()))),  # type: ignore[arg-type]
    "streams": lambda: DataLoader(Stream(own_length())),
    "streams that say too much": lambda: DataLoader(Stream(own_length(), says=5)),
    "two loaders": lambda: pl.utilities.combined_loader.CombinedLoader(
        [DataLoader(torch.arange(float(own_length()))), DataLoader(torch.arange(4.0))],
        "min_size",  # type: ignore[arg-type]
    ),
}


class Pair(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch[0], batch_idx)


class Saves(pl.Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.progress.total_batches}.ckpt")


def trainer(folder: str, strategy: Any, **arguments: Any) -> pl.Trainer:
    return pl.Trainer(
        strategy=strategy,
        max_epochs=2,
        use_distributed_sampler=False,
        default_root_dir=folder,
        **BARE,
        **arguments,
    )


def fit(folder: str, strategy: Any, name: str) -> dict[str, Any]:
    module = (Pair if name == "two loaders" else Net)()
    fitter = trainer(folder, strategy)
    result = fitter.fit(module, DATA[name](), DataLoader(torch.arange(float(own_length()))))  # type: ignore[arg-type]
    weights = torch.cat([value.flatten() for value in module.state_dict().values()])
    return {
        "seen": module.seen,
        "steps": fitter.global_step,
        "weights": weights,
        "number": result.metrics["number"],
    }


def goes_on(folder: str, name: str) -> list[int]:
    """The batches after which a fit that goes on sees other data, or ends elsewhere: none.

    It is compared with the whole one.
    """
    root = Path(folder) / name
    torch.manual_seed(0)
    whole = Net()
    trainer(folder, "ddp", callbacks=Saves(root)).fit(whole, DATA[name]())
    differing = []
    for number in range(1, len(whole.seen) + 1):
        rest = Net()
        trainer(folder, "ddp").fit(rest, DATA[name](), ckpt_path=root / f"{number}.ckpt")
        if rest.seen != whole.seen[number:] or not torch.equal(
            rest.layer.weight, whole.layer.weight
        ):
            differing.append(number)
    return differing


def refusal(folder: str, data: Any, uneven: Any = "finish") -> str:
    try:
        trainer(folder, DDPStrategy(uneven=uneven)).fit(Net(), data)
    except DataError as error:
        return str(error)
    return "none"


def everything(folder: str) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for kind in (DDPStrategy, FSDPStrategy):
        for policy in ("finish", "drop"):
            for name in DATA:
                if (name, policy) != ("streams that say too much", "drop"):
                    found[kind.__name__, policy, name] = fit(folder, kind(uneven=policy), name)
    found["goes on"] = [goes_on(folder, "loaders"), goes_on(folder, "streams")]
    rank = dist.get_rank()
    found["refused"] = [
        refusal(folder, range(0 if rank else 1)),
        refusal(folder, DataLoader(Stream(0 if rank else 2))),
        refusal(folder, iter(range(own_length()))),
    ]
    samples = DataLoader(TensorDataset(torch.arange(7.0)))
    found["sampler"] = {}
    for policy in ("finish", "drop"):
        module = type("Sharded", (Pair,), {})()
        fitter = trainer(folder, DDPStrategy(uneven=policy))  # type: ignore[arg-type]
        fitter = fitter.replaced(use_distributed_sampler=True)
        fitter.fit(module, samples)
        found["sampler"][policy] = module.seen[: len(module.seen) // 2]
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    return run_on_two_ranks(everything, tmp_path_factory.mktemp("uneven"), timeout_s=200)


@pytest.mark.parametrize("kind", ["DDPStrategy", "FSDPStrategy"])
@pytest.mark.parametrize("name", list(DATA))
def test_an_epoch_ends_on_both_ranks_as_the_policy_says(ranks: Any, kind: str, name: str) -> None:
    longest = 4 if name == "two loaders" else max(LENGTHS)
    again = [0.0, 1.0, 2.0, 0.0, 1.0]
    finish = [rank[kind, "finish", name] for rank in ranks]
    assert finish[0]["seen"] == [*map(float, range(longest))] * 2
    assert finish[1]["seen"] == again[:longest] * 2
    assert [one["steps"] for one in finish] == [2 * longest] * 2
    assert torch.equal(finish[0]["weights"], finish[1]["weights"])
    assert [one["number"] for one in finish] == [sum(LENGTHS)] * 2, (
        "evaluation counts each sample once"
    )
    if name != "streams that say too much":
        drop = [rank[kind, "drop", name] for rank in ranks]
        assert [one["seen"] for one in drop] == [[0.0, 1.0, 2.0] * 2] * 2
        assert [one["number"] for one in drop] == [sum(LENGTHS)] * 2


def test_a_fit_goes_on_where_it_was_on_each_rank(ranks: Any) -> None:
    assert [rank["goes on"] for rank in ranks] == [[[], []]] * 2


def test_what_cannot_be_finished_together_is_an_error_on_both_ranks(ranks: Any) -> None:
    for rank in ranks:
        for text in rank["refused"]:
            assert "Of 2 ranks 1 have no" in text
            assert 'uneven="drop"' in text


def test_a_data_set_that_does_not_divide(ranks: Any) -> None:
    assert [rank["sampler"]["finish"] for rank in ranks] == [
        [0.0, 2.0, 4.0, 6.0],
        [1.0, 3.0, 5.0, 0.0],
    ]
    assert [rank["sampler"]["drop"] for rank in ranks] == [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]


def test_an_unknown_policy() -> None:
    for kind in (DDPStrategy, FSDPStrategy):
        with pytest.raises(ConfigError, match="uneven='stop' is not known"):
            kind(uneven="stop")  # type: ignore[arg-type]
