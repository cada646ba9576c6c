"""Fits that read Ray Datasets, in this process and on two Ray workers."""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import raylit as pl
from raylit import RayDataLoader
from raylit.callbacks import ModelCheckpoint
from raylit.data import CombinedLoader
from raylit.data.ray_dataset import _check_cluster
from raylit.errors import ConfigError, DataError
from tests import quiet
from tests.ranks import run_on_two_ranks

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
NUM_TRAIN, NUM_VAL = 61, 13


def numbers(length: int) -> list[dict[str, Any]]:
    x = torch.randn(length, 3, generator=torch.Generator().manual_seed(length))
    return [
        {"row": index, "x": row.numpy(), "y": row.sum().sin().item()} for index, row in enumerate(x)
    ]


def dataset(length: int = NUM_TRAIN, *, lazy: bool = False) -> Any:
    """Rows in blocks of different sizes.

    If lazy, made by a function, so that Ray does not know how many there are.
    """
    import ray.data

    made = ray.data.from_items(numbers(length), override_num_blocks=5)
    return made.map_batches(lambda batch: batch) if lazy else made


class Net(pl.LightningModule):
    """Learns, and notes which rows each epoch of each stage had on this rank, in a file."""

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(3, 1)
        self.folder = folder
        self.seen: list[int] = []

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        self.seen += batch["row"].tolist()
        return nn.functional.mse_loss(self.net(batch["x"].float()).squeeze(1), batch["y"].float())

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(
        self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch))

    def predict_step(
        self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> Tensor:
        return batch["row"]

    def on_train_epoch_start(self) -> None:
        self.seen = []

    def on_validation_start(self) -> None:
        self.note("train")

    def on_validation_end(self) -> None:
        self.note("val")

    def on_train_epoch_end(self) -> None:
        self.note("train")

    def note(self, stage: str) -> None:
        if self.folder is not None and self.seen and not self.trainer.sanity_checking:
            with open(self.folder / f"{stage}-{self.global_rank}.jsonl", "a") as file:
                file.write(json.dumps(self.seen) + "\n")
        self.seen = []

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def noted(folder: Path, stage: str, rank: int = 0) -> list[list[int]]:
    """The rows of each epoch."""
    return [
        json.loads(line) for line in (folder / f"{stage}-{rank}.jsonl").read_text().splitlines()
    ]


trainer = partial(quiet.trainer, max_epochs=2)


def orders(tmp_path: Path, make: Callable[[], Any], **arguments: Any) -> list[list[int]]:
    """The rows of each epoch of a fit in this process."""
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    folder.mkdir()
    trainer(folder, **arguments).fit(Net(folder), make())
    return noted(folder, "train")


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    return all(
        torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items()
    )


def test_a_fit_is_that_of_a_dataloader(tmp_path: Path) -> None:
    """A Dataset is taken as it is; a batch is a dict of its columns."""
    theirs, ours = Net(), Net()
    plain = [
        {"row": torch.tensor(row["row"]), "x": torch.tensor(row["x"]), "y": torch.tensor(row["y"])}
        for row in numbers(NUM_TRAIN)
    ]
    trainer(tmp_path).fit(theirs, DataLoader(plain, 256))  # type: ignore[arg-type]
    trainer(tmp_path).fit(ours, dataset())
    assert same_weights(theirs, ours)
    theirs, ours = Net(), Net()
    trainer(tmp_path).fit(theirs, DataLoader(plain, 8))  # type: ignore[arg-type]
    done = trainer(tmp_path)
    done.fit(ours, RayDataLoader(dataset(), batch_size=8))
    assert same_weights(theirs, ours)
    assert (done.num_training_batches, done.global_step) == (8, 16)


def test_a_bare_dataset_says_how_it_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("raylit").addHandler(caplog.handler)
    try:
        trainer(tmp_path).fit(Net(), dataset())
    finally:
        logging.getLogger("raylit").removeHandler(caplog.handler)
    (said,) = [text for text in caplog.messages if "Ray Dataset" in text]
    assert "batches of 256 rows" in said
    assert "raylit.RayDataLoader(dataset, batch_size=...)" in said


def test_every_stage_and_every_way_to_give_data(tmp_path: Path) -> None:
    class WithHooks(Net):
        def train_dataloader(self) -> Any:
            return {"a": RayDataLoader(dataset(), 16), "b": dataset(NUM_VAL)}

        def val_dataloader(self) -> Any:
            return [dataset(NUM_VAL), RayDataLoader(dataset(7), 2)]

        def test_dataloader(self) -> Any:
            return dataset(NUM_VAL)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.loss(batch["a"]) + self.loss(batch["b"])

    done, model = trainer(tmp_path, max_epochs=1), WithHooks(tmp_path)
    done.fit(model)
    assert done.num_training_batches == 4  # the longer one's; the shorter begins again
    assert [len(rows) for rows in noted(tmp_path, "train")] == [NUM_TRAIN + 4 * NUM_VAL]
    assert noted(tmp_path, "val") == [[*range(NUM_VAL), *range(7)]]
    assert done.num_val_batches == [1, 4]
    assert "test_loss" in done.test(model, verbose=False)[0]
    predictions = done.predict(model, RayDataLoader(dataset(NUM_VAL), 5, drop_last=True))
    assert torch.cat(predictions).tolist() == list(range(NUM_VAL))
    both = CombinedLoader([RayDataLoader(dataset(), 16), dataset(NUM_VAL)], "min_size")
    assert (
        len(done.predict(model, CombinedLoader([dataset(NUM_VAL), dataset(7)], "sequential"))) == 2
    )

    class OfTwo(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.loss(batch[0])

    done.fit(OfTwo(), both)
    assert done.num_training_batches == 1


@pytest.mark.parametrize("shuffling", [{"shuffle": True}, {"local_shuffle_buffer_size": 16}])
def test_order_is_that_of_seed_and_epoch(tmp_path: Path, shuffling: dict[str, Any]) -> None:
    def make(**arguments: Any) -> RayDataLoader:
        return RayDataLoader(dataset(lazy=True), 8, **shuffling, **arguments)

    first, second = orders(tmp_path, make)
    assert sorted(first) == sorted(second) == list(range(NUM_TRAIN))
    assert first != second != sorted(second)
    assert orders(tmp_path, make) == [first, second]
    assert orders(tmp_path, lambda: make(seed=1))[0] != first
    assert orders(tmp_path, make, overfit_batches=2)[0] == list(range(16))


@pytest.mark.parametrize("lazy", [False, True])
def test_going_on_within_an_epoch_is_exact(tmp_path: Path, lazy: bool) -> None:
    def make() -> RayDataLoader:
        return RayDataLoader(dataset(lazy=lazy), 8, local_shuffle_buffer_size=16)

    straight, resumed = Net(), Net(tmp_path)
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1, filename="{step}")
    trainer(tmp_path, callbacks=saver, enable_checkpointing=None).fit(straight, make())
    with warnings.catch_warnings(record=True) as caught:
        trainer(tmp_path).fit(resumed, make(), ckpt_path=tmp_path / "step=12.ckpt")
    # None says that it is not
    assert not [
        warning
        for warning in caught
        if re.search("keeps no state|not at all", str(warning.message))
    ]
    assert same_weights(straight, resumed)
    assert len(noted(tmp_path, "train")[0]) == NUM_TRAIN - 4 * 8


def test_going_on_otherwise_is_said_to_be_inexact(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=3, filename="{step}")
    trainer(tmp_path, callbacks=saver, enable_checkpointing=None, max_steps=3).fit(
        Net(), RayDataLoader(dataset(), 8)
    )
    with pytest.warns(
        UserWarning,
        match=(
            "begun by 1 ranks with batches of 8 rows, and goes on with 1 of 4.*twice or not at all"
        ),
    ):
        trainer(tmp_path).fit(
            Net(), RayDataLoader(dataset(), 4), ckpt_path=tmp_path / "step=3.ckpt"
        )
    # Which has fewer batches than were read
    with pytest.warns(UserWarning, match="goes on with 1 of 32"):
        result = trainer(tmp_path).fit(
            Net(), RayDataLoader(dataset(), 32), ckpt_path=tmp_path / "step=3.ckpt"
        )
    assert (result.epochs, result.steps) == (2, 3 + 2)
    with pytest.warns(UserWarning, match="preserve_order=False.*twice or not at all"):
        trainer(tmp_path).fit(
            Net(),
            RayDataLoader(dataset(), 8, preserve_order=False),
            ckpt_path=tmp_path / "step=3.ckpt",
        )


def test_length_is_known_where_it_costs_nothing(tmp_path: Path) -> None:
    assert len(RayDataLoader(dataset(), 8)) == 8
    assert len(RayDataLoader(dataset(), 8, drop_last=True)) == 7
    assert len(RayDataLoader(dataset().map(lambda row: row), 8)) == 8
    for loader in (RayDataLoader(dataset(lazy=True), 8), RayDataLoader(dataset(), None)):
        with pytest.raises(TypeError, match="not known before it has been read"):
            len(loader)
    done = trainer(tmp_path)
    done.fit(
        Net(tmp_path),
        RayDataLoader(dataset(lazy=True), 8),
        RayDataLoader(dataset(NUM_VAL, lazy=True), 4),
    )
    assert (done.num_training_batches, done.global_step) == (float("inf"), 16)
    assert noted(tmp_path, "train") == [list(range(NUM_TRAIN))] * 2
    assert noted(tmp_path, "val") == [list(range(NUM_VAL))] * 2
    done = trainer(tmp_path, limit_train_batches=3)
    done.fit(Net(), RayDataLoader(dataset(lazy=True), 8))
    assert done.global_step == 6


def test_collate_fn_makes_what_the_step_gets(tmp_path: Path) -> None:
    from ray.data.collate_fn import NumpyBatchCollateFn

    class Pairs(NumpyBatchCollateFn):
        def __call__(self, batch: Any) -> Any:
            return list(map(torch.as_tensor, (batch["x"].copy(), batch["y"].copy())))

    class OfPairs(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            assert [type(part) for part in batch] == [Tensor, Tensor]
            return nn.functional.mse_loss(self.net(batch[0]).squeeze(1), batch[1].float())

    x, y = (
        torch.as_tensor(np.array([row[name] for row in numbers(NUM_TRAIN)])) for name in ("x", "y")
    )
    plain, by_function, by_object = OfPairs(), OfPairs(), OfPairs()
    trainer(tmp_path).fit(plain, DataLoader(TensorDataset(x, y), 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        trainer(tmp_path).fit(
            by_function, RayDataLoader(dataset(), 8, collate_fn=lambda batch: Pairs()(batch))
        )
    trainer(tmp_path).fit(
        by_object, RayDataLoader(dataset(), 8, collate_fn=Pairs(), prefetch_batches=3)
    )
    assert same_weights(plain, by_function)
    assert same_weights(plain, by_object)
    dtypes = next(
        iter(
            RayDataLoader(
                dataset(), 8, dtypes={"x": torch.float64, "y": torch.float32, "row": torch.int16}
            )
        )
    )
    assert (dtypes["x"].dtype, dtypes["y"].dtype, dtypes["row"].dtype) == (
        torch.float64,
        torch.float32,
        torch.int16,
    )


def test_the_users_dataset_is_left_as_it_was(tmp_path: Path) -> None:
    data = dataset(lazy=True)
    before = (data.context.execution_options.preserve_order, data.context.enable_progress_bars)
    trainer(tmp_path).fit(Net(), RayDataLoader(data, 8))
    assert (
        (data.context.execution_options.preserve_order, data.context.enable_progress_bars)
        == before
        == (False, True)
    )


def test_check_reads_it_too(tmp_path: Path) -> None:
    report = trainer(tmp_path, enable_checkpointing=None).check(
        Net(), RayDataLoader(dataset(), 8), verbose=False
    )
    assert not [finding for finding in report.findings if finding.status == "error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, r"batch_size=0\): give a whole number of at least 1"),
        ({"batch_size": "8"}, r"batch_size='8'\)"),
        ({"prefetch_batches": -1}, r"prefetch_batches=-1"),
        (
            {"batch_size": 8, "local_shuffle_buffer_size": 4},
            r"local_shuffle_buffer_size=4\): give a whole number of at least 8",
        ),
        ({"batch_size": None, "local_shuffle_buffer_size": 4}, "give batch_size too"),
        ({"dtypes": torch.float32, "collate_fn": dict}, "both dtypes and collate_fn"),
    ],
)
def test_arguments_that_cannot_be(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RayDataLoader(dataset(), **arguments)


def test_what_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"reads a ray\.data\.Dataset, but got a list"):
        RayDataLoader([1, 2])
    with pytest.raises(ConfigError, match="Give the Dataset it was made from"):
        RayDataLoader(dataset().iterator())
    with pytest.raises(
        DataError,
        match=r"train_dataloaders=\.\.\.\) gave a .*Iterator.* of Ray Data\. Give the Dataset",
    ):
        trainer(tmp_path).fit(Net(), dataset().iterator())
    with pytest.raises(DataError, match=r"limit_train_batches=0\.5 is a fraction"):
        trainer(tmp_path, limit_train_batches=0.5).fit(Net(), RayDataLoader(dataset(lazy=True), 8))


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory, kept_workers: None) -> dict[str, Any]:
    """A fit of two workers, and one that goes on from its middle."""
    folder, rest = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("rest")
    saver = ModelCheckpoint(folder, every_n_train_steps=3, save_top_k=-1, filename="{step}")

    def loaders() -> tuple[Any, Any]:
        train = RayDataLoader(dataset(), 4, shuffle=True, local_shuffle_buffer_size=8)
        return train, [RayDataLoader(dataset(NUM_VAL, lazy=True), 2), dataset(7)]

    whole, resumed = Net(folder), Net(rest)
    done = trainer(folder, num_workers=2, callbacks=saver, enable_checkpointing=None)
    result = done.fit(whole, *loaders())
    trainer(rest, num_workers=2).fit(resumed, *loaders(), ckpt_path=folder / "step=12.ckpt")
    return {
        "folder": folder,
        "rest": rest,
        "whole": whole,
        "resumed": resumed,
        "trainer": done,
        "result": result,
    }


class TestTwoWorkers:
    """Each reads its share."""

    def test_an_epoch_is_dealt_out_equally(self, fits: dict[str, Any]) -> None:
        ranks = [noted(fits["folder"], "train", rank) for rank in (0, 1)]
        assert [len(epoch) for rank in ranks for epoch in rank] == [NUM_TRAIN // 2] * 4
        epochs = [sorted(first + second) for first, second in zip(*ranks, strict=True)]
        # One row does not divide by two, another each time
        assert all(len(set(epoch)) == NUM_TRAIN - 1 for epoch in epochs)
        assert ranks[0][0] != ranks[0][1]
        assert (fits["trainer"].num_training_batches, fits["result"].steps) == (8, 16)

    def test_evaluation_has_each_row_once(self, fits: dict[str, Any]) -> None:
        for first, second in zip(
            *(noted(fits["folder"], "val", rank) for rank in (0, 1)), strict=True
        ):
            assert sorted(first + second) == sorted([*range(NUM_VAL), *range(7)])
        values = trainer(fits["folder"]).validate(
            fits["whole"], [dataset(NUM_VAL), dataset(7)], verbose=False
        )
        assert fits["result"].metrics == pytest.approx(
            {name: value for one in values for name, value in one.items()}, rel=1e-5
        )

    def test_going_on_within_an_epoch_is_exact(self, fits: dict[str, Any]) -> None:
        for rank in (0, 1):
            (rest,), whole = (noted(fits[folder], "train", rank) for folder in ("rest", "folder"))
            assert rest == whole[1][16:]
        assert same_weights(fits["whole"], fits["resumed"])


class Streams(Net):
    """Its data comes from hooks, of a length that Ray does not know."""

    def train_dataloader(self) -> Any:
        return RayDataLoader(dataset(lazy=True), 4)

    def val_dataloader(self) -> Any:
        return RayDataLoader(dataset(NUM_VAL, lazy=True), 4)


@pytest.mark.long
def test_two_workers_read_streams_of_unknown_length(tmp_path: Path) -> None:
    done = trainer(tmp_path, num_workers=2)
    done.fit(Streams(tmp_path))
    assert (done.num_training_batches, done.global_step) == (float("inf"), 16)
    for stage, rows in (("train", NUM_TRAIN - 1), ("val", NUM_VAL)):
        for first, second in zip(*(noted(tmp_path, stage, rank) for rank in (0, 1)), strict=True):
            assert len(set(first + second)) == len(first + second) == rows


@pytest.mark.usefixtures("kept_workers")
def test_two_workers_predict_in_the_order_of_the_data(tmp_path: Path) -> None:
    predictions = trainer(tmp_path, num_workers=2).predict(
        Net(), RayDataLoader(dataset(lazy=True), 8, drop_last=True)
    )
    assert torch.cat(predictions).tolist() == list(range(NUM_TRAIN))


@pytest.mark.long
def test_two_workers_do_not_begin_a_dataset_alone(tmp_path: Path) -> None:
    """Blocks as they come may be another number on each rank: refused on all, and named."""
    with pytest.raises(
        DataError, match=r"cannot begin a Ray Dataset again before the others.*uneven=\"drop\""
    ):
        trainer(tmp_path, num_workers=2).fit(Net(), RayDataLoader(dataset(), None))
    done = trainer(tmp_path, num_workers=2, strategy=pl.DDPStrategy(uneven="drop"))
    done.fit(Net(), RayDataLoader(dataset(), None))
    assert done.current_epoch == 2


def refused(folder: str) -> str:
    """Called on ranks that Ray did not start."""
    try:
        trainer(Path(folder)).fit(Net(), dataset())
    except DataError as error:
        return str(error)
    return "read"


def test_ranks_that_are_no_ray_workers_are_refused(
    tmp_path: Path, ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster)  # where their Dataset is
    # the cluster listens on loopback alone, where Ray by itself looks on a single machine only
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    first, second = run_on_two_ranks(refused, tmp_path)
    assert first == second
    assert "They are not Ray workers. Start them with Trainer(num_workers=...)" in first


def test_a_full_cluster_is_told() -> None:
    import ray

    class Worker:
        def warnings(self, num_ranks: int) -> list[str]:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                _check_cluster(num_ranks)
            return [str(one.message) for one in caught]

    worker = ray.remote(num_cpus=2)(Worker).remote()
    num_cpus = ray.cluster_resources()["CPU"]
    full, roomy = ray.get([worker.warnings.remote(int(num_cpus / 2)), worker.warnings.remote(1)])
    ray.kill(worker)
    assert f"have taken {num_cpus:g} of the {num_cpus:g} CPUs" in full[0]
    assert roomy == []
