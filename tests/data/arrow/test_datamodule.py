"""Splits by rows alone, statistics of the training part, and what a checkpoint keeps."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import feather
from torch import Tensor

import raylit as pl
from raylit.data.arrow.split import labels_of, split_of
from raylit.data.arrow.statistics import statistics_of
from raylit.errors import ConfigError, DataError
from tests import quiet

RNG = np.random.default_rng(0)
TABLE = pa.table(
    {
        "row": np.arange(200),
        "x": RNG.normal(3, 2, 200),
        "cut": RNG.choice(["good", "bad", "fair"], 200),
        "house": RNG.integers(0, 30, 200),
        "sold": pa.array(RNG.permutation(200), pa.timestamp("s")),
        "y": RNG.normal(0, 1, 200),
    }
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    pq.write_table(TABLE, tmp_path / "houses.parquet", row_group_size=30)
    return tmp_path / "houses.parquet"


def data(source: Any, **options: Any) -> pl.ParquetDataModule:
    return pl.ParquetDataModule(source, **{"categories": ["cut"], "target": "y", **options})


def rows(module: pl.ParquetDataModule, part: str) -> list[int]:
    batches = module.part(part).loader(64)
    return sorted(row for batch in batches for row in batch["row"].tolist())


@pytest.mark.parametrize("how", [{}, {"by": "house"}, {"time": "sold"}, {"stratify": "cut"}])
@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_a_split_is_the_same_however_the_rows_lie_in_files(
    how: dict[str, str], mode: str, path: Path, tmp_path: Path
) -> None:
    found = data(path, split={"val": 0.1, "test": 0.2}, mode=mode, **how)
    folder = tmp_path / "files"
    folder.mkdir()
    for number, start in enumerate(range(0, 200, 37)):
        pq.write_table(TABLE.slice(start, 37), folder / f"{number}.parquet", row_group_size=9)
    other = data(folder, split={"val": 0.1, "test": 0.2}, mode=mode, **how)
    parts = {name: rows(found, name) for name in ("train", "val", "test")}
    assert parts == {name: rows(other, name) for name in parts}
    assert sorted(row for part in parts.values() for row in part) == list(range(200))
    if "by" in how:
        houses = [{TABLE["house"][row].as_py() for row in part} for part in parts.values()]
        assert sum(map(len, houses)) == len(set().union(*houses))
        assert abs(len(parts["test"]) - 40) < 20
    else:
        assert abs(len(parts["val"]) - 20) <= 2 and abs(len(parts["test"]) - 40) <= 2
    if "time" in how:
        times = [[TABLE["sold"][row].as_py() for row in part] for part in parts.values()]
        assert max(times[0]) < min(times[1]) and max(times[1]) < min(times[2])
    if "stratify" in how:
        cuts = TABLE["cut"].to_pylist()
        for cut in ("good", "bad", "fair"):
            share = [sum(cuts[row] == cut for row in part) / len(part) for part in parts.values()]
            assert max(share) - min(share) < 0.05
    assert (
        data(path, split={"val": 0.1, "test": 0.2}, split_seed=1).part("val").digest == found.digest
    )
    if not how or "stratify" in how:
        again = data(path, split={"val": 0.1, "test": 0.2}, split_seed=1, **how)
        assert rows(again, "val") != parts["val"]


@settings(max_examples=30, deadline=None)
@given(st.integers(20, 400), st.floats(0.06, 0.45), st.floats(0.06, 0.45), st.integers(0, 9))
def test_a_random_split_has_the_fractions_asked_for(
    num_rows: int, val: float, test: float, seed: int
) -> None:
    module = data(
        pa.table({"row": np.arange(num_rows), "y": np.zeros(num_rows)}),
        split={"val": val, "test": test},
        split_seed=seed,
        categories=[],
    )
    assert len(module.part("val")) == round(val * num_rows)
    assert len(module.part("test")) == round(test * num_rows)
    assert len({len(rows(module, name)) for name in ("train",)}) == 1


@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_statistics_are_those_of_the_training_part(mode: str, path: Path) -> None:
    module = data(path, split={"val": 50}, normalize=["x"], mode=mode)
    train = [row for row in range(200) if row not in rows(module, "val")]
    x = TABLE["x"].to_numpy()[train]
    found = module.statistics()
    assert found["x"].count == 150 and found["x"].nulls == 0
    np.testing.assert_allclose([found["x"].mean, found["x"].std], [x.mean(), x.std()], rtol=1e-12)
    assert (found["x"].min, found["x"].max) == (x.min(), x.max())
    assert found["cut"].vocabulary == ["bad", "fair", "good"]
    batch = next(iter(module.part("val").loader(50)))
    mine = TABLE["x"].to_numpy()[rows(module, "val")]
    np.testing.assert_allclose(batch["x"].numpy(), (mine - x.mean()) / x.std(), rtol=1e-5)
    assert not torch.equal(batch["y"], (batch["y"] - batch["y"].mean()) / batch["y"].std())


def test_nulls_and_nan_are_counted_and_left_out() -> None:
    table = pa.table(
        {
            "x": pa.array([1.0, None, float("nan"), 3.0]),
            "v": pa.array([[1, 2], [3, 4], [5, 6], [7, 8]], pa.list_(pa.int64(), 2)),
        }
    )
    found = statistics_of(pl.ArrowDataset(table, nulls={"x": "nan"}))
    assert (found["x"].count, found["x"].nulls, found["x"].nans, found["x"].mean) == (2, 1, 1, 2.0)
    assert (found["v"].mean, found["v"].max) == (4.5, 8)


def test_statistics_are_kept_beside_the_data(path: Path) -> None:
    module = data(path, split={"val": 0.1}, normalize=["x"])
    module.prepare_data()
    (kept,) = (path.parent / ".raylit").iterdir()
    known = json.loads(kept.read_text())
    known["x"]["mean"] = 1000.0
    kept.write_text(json.dumps(known))
    again = data(path, split={"val": 0.1}, normalize=["x"])
    assert again.statistics()["x"].mean == 1000.0
    assert data(path, split={"val": 0.2}, normalize=["x"]).statistics()["x"].mean != 1000.0
    kept.write_text("{")
    assert data(path, split={"val": 0.1}, normalize=["x"]).statistics()["x"].mean != 1000.0


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.cuts = torch.nn.Embedding(5, 2)
        self.net = torch.nn.Linear(3, 1)
        self.codes: list[int] = []

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        self.codes += batch["cut"].tolist()
        both = torch.cat([batch["x"][:, None], self.cuts(batch["cut"])], 1)
        return (self.net(both).squeeze(1) - batch["y"]).square().mean()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


trainer = partial(quiet.trainer, max_epochs=2, enable_checkpointing=None)


def test_a_folder_with_its_statistics_is_read_again(tmp_path: Path) -> None:
    for number in range(2):
        table = pa.table({"x": [1.0, 2.0, 6.0], "y": [0.0, 1.0, 0.0]})
        pq.write_table(table, tmp_path / f"{number}.parquet")
    for _ in range(2):
        data = pl.ParquetDataModule(str(tmp_path), target="y", normalize=True)
        data.prepare_data()  # writes the statistics into the folder
        data.setup("fit")
        assert len(data.part("train")) == 6
    assert list(tmp_path.glob(".raylit/*.json"))


def test_a_checkpoint_keeps_vocabulary_and_statistics(path: Path, tmp_path: Path) -> None:
    module = data(path, split={"val": 0.1, "test": 0.1}, normalize=["x"], features=["x", "cut"])
    one = trainer(tmp_path)
    one.fit(Net(), datamodule=module)
    one.save_checkpoint(tmp_path / "one.ckpt")
    saved = torch.load(tmp_path / "one.ckpt", weights_only=True)["ParquetDataModule"]
    assert saved["digest"] == module.digest
    assert saved["statistics"]["cut"]["vocabulary"] == ["bad", "fair", "good"]
    # other data, with a cut that training never saw: its own code, and scaled as in training
    other = tmp_path / "other.parquet"
    pq.write_table(
        pa.table({"x": [3.0] * 4, "cut": ["good", "new", "bad", "new"], "y": [0.0] * 4}), other
    )
    net = Net()
    later = data(other, test=other, normalize=["x"], features=["x", "cut"])
    trainer(tmp_path).test(net, datamodule=later, ckpt_path=tmp_path / "one.ckpt")
    assert net.codes == [3, 0, 1, 0]
    batch = next(iter(later.test_dataloader()))
    mean, std = saved["statistics"]["x"]["mean"], saved["statistics"]["x"]["std"]
    torch.testing.assert_close(batch["x"], torch.full((4,), (3.0 - mean) / std))
    with pytest.raises(DataError, match=r"saved with data of the digest .*other_data='accept'"):
        trainer(tmp_path, max_epochs=3).fit(
            Net(), datamodule=data(other, features=["x", "cut"]), ckpt_path=tmp_path / "one.ckpt"
        )
    loaded = pl.ParquetDataModule.load_from_checkpoint(tmp_path / "one.ckpt")
    assert loaded.part("val").vocabulary == module.part("val").vocabulary


MOMENT = dt.datetime(2024, 5, 17, 12, 30, 15, 1)
CATEGORIES = {
    "date": pa.array([MOMENT.date(), dt.date(1969, 1, 2), None]),
    "time": pa.array([MOMENT.time(), dt.time(1), None], pa.time64("us")),
    "moment": pa.array([MOMENT, dt.datetime(1969, 1, 1), None], pa.timestamp("us")),
    "nanoseconds": pa.array([1, -5, None], pa.timestamp("ns")),
    "zone": pa.array([MOMENT, dt.datetime(1969, 1, 1), None], pa.timestamp("ms", "Asia/Tokyo")),
    "duration": pa.array([dt.timedelta(3), dt.timedelta(1, 2), None]),
    "decimal": pa.array([Decimal("1.50"), Decimal("-1234567890123456789.01"), None]),
    "bytes": pa.array([b"\xff\x00", b"", None]),
    "number": pa.array([1.5, -3.0, float("nan")]),
    "flag": pa.array([True, False, None]),
    "text": pa.array(["é", "", None], pa.large_string()),
    "dictionary": pa.array([MOMENT.date(), dt.date(1969, 1, 2), None]).dictionary_encode(),
}


@pytest.mark.parametrize("kind", CATEGORIES)
def test_categories_of_any_type_come_back_from_checkpoints(kind: str, tmp_path: Path) -> None:
    table = pa.table({"x": [1.0, 2.0, 6.0] * 8, "y": [0.0] * 24})
    values = pa.chunked_array([CATEGORIES[kind]] * 8)
    pq.write_table(table.append_column("cut", values), tmp_path / "a.parquet")
    columns = {"features": ["x", "cut"], "normalize": ["x"], "nulls": {"cut": 0}}
    module = data(tmp_path / "a.parquet", batch_size=6, **columns)
    one = trainer(tmp_path, max_epochs=1, strict_checkpoints=True)
    one.fit(Net(), datamodule=module)
    one.save_checkpoint(tmp_path / "one.ckpt")
    torch.load(tmp_path / "one.ckpt", weights_only=True)
    assert module.num_categories("cut") == 3
    # of other data the first value is not there, which would shift the codes
    less = table.append_column("cut", values).slice(1, 2)
    pq.write_table(less, tmp_path / "b.parquet")
    later = data(tmp_path / "b.parquet", test=tmp_path / "b.parquet", **columns)
    net = Net()
    trainer(tmp_path).test(net, datamodule=later, ckpt_path=tmp_path / "one.ckpt")
    assert net.codes == [1, 0]
    # statistics that were kept beside the data give the same
    files = (tmp_path / ".raylit").glob("*.json")
    kept = next(file for file in files if '"mean": 3.0' in file.read_text())
    kept.write_text(kept.read_text().replace('"mean": 3.0', '"mean": 1000.0'))
    again = data(tmp_path / "a.parquet", **columns)
    assert again.statistics()["x"].mean == 1000.0
    assert again.part("train").vocabulary == module.part("train").vocabulary
    trainer(tmp_path, max_epochs=2).fit(
        Net(), datamodule=data(tmp_path / "a.parquet", batch_size=6, **columns),
        ckpt_path=tmp_path / "one.ckpt",
    )  # fmt: skip


def test_loggers_get_the_digest(path: Path, tmp_path: Path) -> None:
    module = data(path, split={"val": 0.1}, features=["x", "cut"])
    logger = pl.loggers.CSVLogger(str(tmp_path))
    trainer(tmp_path, logger=logger).fit(Net(), datamodule=module)
    assert f"data_digest: {module.digest}" in (Path(logger.log_dir) / "hparams.yaml").read_text()


def test_only_hooks_of_parts_that_are_there(path: Path, tmp_path: Path) -> None:
    module = data(path, features=["x", "cut"])
    with pytest.warns(UserWarning, match="no val_dataloader was given"):
        trainer(tmp_path).fit(Net(), datamodule=module)
    with pytest.raises(Exception, match="test_dataloader"):
        trainer(tmp_path).test(Net(), datamodule=module)
    with pytest.raises(DataError, match=r"There is no part 'val'. Give split=\{'val': 0.1\}"):
        module.part("val")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": {"val": 0.6, "test": 0.5}}, "leaves nothing to train on"),
        ({"split": {"valid": 0.1}}, "parts are 'val', 'test' and 'predict'"),
        ({"split": {"val": 10.5}}, "neither a fraction between 0 and 1 nor a number"),
        ({"split": {"val": 0.1}, "by": "house", "time": "sold"}, "by= and time= contradict"),
        ({"by": "house"}, "but not into what"),
        ({"split": {"val": 0.1}, "val": "x.parquet"}, "contradict each other"),
        (
            {"split": {"val": 0.1}, "by": "hause"},
            "by names the column 'hause', .* Did you mean 'house'",
        ),
        ({"split": {"val": 0.001}}, "leaves none for 'val'"),
    ],
)
def test_splits_that_cannot_be(options: dict[str, Any], message: str, path: Path) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        data(path, **options).setup("fit")


@pytest.mark.parametrize("how", ["by", "stratify"])
@pytest.mark.parametrize("is_dictionary", [False, True])
def test_nulls_of_several_row_groups_are_one_group_or_class(
    how: str, is_dictionary: bool, tmp_path: Path
) -> None:
    cuts = pa.array([None if row % 5 == 0 else f"cut {row % 7}" for row in range(200)])
    cuts = cuts.dictionary_encode() if is_dictionary else cuts
    table = pa.table({"cut": cuts})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=30)
    columns = {"by": None, "time": None, "stratify": None, how: "cut"}
    split = split_of({"val": 0.2}, **columns, seed=1)
    labels, of_table = (
        labels_of(pl.ArrowDataset(source, categories=["cut"], nulls="mask"), split)
        for source in (tmp_path / "a.parquet", table)
    )
    assert (labels == of_table).all()
    of_nulls = labels[::5]
    assert of_nulls.sum() == 8 if how == "stratify" else len(set(of_nulls)) == 1


def test_times_of_a_dictionary_and_columns_without_an_order() -> None:
    years = pa.array(["2021", "2019", "2020"]).dictionary_encode()
    table = pa.table({"year": years, "pair": [[1, 2], [3, 4], [5, 6]]})
    found = labels_of(pl.ArrowDataset(table), split_of({"val": 1}, None, "year", None, 0))
    assert found.tolist() == [1, 0, 0]
    for column in ({"time": "pair"}, {"by": "pair"}, {"stratify": "pair"}):
        how = {"by": None, "time": None, "stratify": None, **column}
        with pytest.raises(DataError, match="'pair', which is list<item: int64>"):
            labels_of(pl.ArrowDataset(table), split_of({"val": 1}, **how, seed=0))


def test_times_that_are_not_known(tmp_path: Path) -> None:
    table = pa.table({"t": pa.array([1, None, 3]), "y": [0.0, 1.0, 2.0]})
    with pytest.raises(DataError, match="has 1 nulls, so that not all rows have their place"):
        data(table, categories=[], columns=["y"], split={"val": 1}, time="t").setup("fit")


def sizes(classes: list[int], **options: Any) -> dict[str, int]:
    table = pa.table({"x": np.arange(len(classes)) * 1.0, "y": classes})
    module = pl.ParquetDataModule(table, **options)
    module.setup("fit")
    return {name: len(module.part(name)) for name in module.split.names}


@settings(deadline=None, max_examples=60)
@given(
    classes=st.lists(st.integers(0, 40), min_size=30, max_size=300),
    parts=st.lists(st.sampled_from([0.1, 0.2, 0.3, 7]), min_size=1, max_size=2),
    seed=st.integers(0, 99),
)
def test_each_class_has_its_share_to_within_a_row(
    classes: list[int], parts: list[float], seed: int
) -> None:
    split = dict(zip(("val", "test"), parts, strict=False))
    found = labels_of(
        pl.ArrowDataset(pa.table({"y": classes})), split_of(split, None, None, "y", seed)
    )
    values = np.array(classes)
    for label, part in enumerate(parts, 1):
        size = part if isinstance(part, int) else round(part * len(classes))
        assert (found == label).sum() == size
        for one in set(classes):
            share = (values == one).sum() * size / len(classes)
            assert abs(((values == one) & (found == label)).sum() - share) < 2


def test_small_classes_and_large_groups_are_split() -> None:
    many = [row // 15 for row in range(1000)]
    assert sizes(many, split={"val": 100}, stratify="y") == {"train": 900, "val": 100}
    rare = [row % 250 for row in range(1000)]
    both = {"val": 0.1, "test": 0.1}
    assert sizes(rare, split=both, stratify="y") == {"train": 800, "val": 100, "test": 100}
    groups = [min(row // 40, 2) for row in range(1000)]
    for seed in range(5):
        options = {"split": {"val": 0.1}, "by": "y", "split_seed": seed}
        assert sizes(groups, **options) == {"train": 920, "val": 80}
        assert sizes([int(row < 950) for row in range(1000)], **options)["val"] == 50


@pytest.mark.parametrize("format", ["csv", "arrow"])
def test_statistics_are_of_the_values_that_are_there(format: str, tmp_path: Path) -> None:
    """A change in the middle of a large file, which leaves its size as it is."""

    def mean(middle: float) -> tuple[str, float | None]:
        table = pa.table({"x": [10.0] * 100_000 + [middle] * 800_000 + [11.0] * 100_000})
        write = pyarrow.csv.write_csv if format == "csv" else feather.write_feather
        options = {} if format == "csv" else {"compression": "uncompressed"}
        write(table, tmp_path / f"x.{format}", **options)
        module = pl.ParquetDataModule(tmp_path / f"x.{format}", normalize=True)
        module.prepare_data()
        module.setup("fit")
        return module.digest, module.statistics()["x"].mean

    before, after = mean(10.0), mean(90.0)
    assert before[1] == pytest.approx(10.1)
    assert after[1] == pytest.approx(74.1)
    assert before[0] != after[0]
