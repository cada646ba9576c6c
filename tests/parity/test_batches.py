"""What a batch may be, how it gets to the model, and loaders that have nothing to give."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tests.parity.harness import Rows, describe, loader, model_class, parity, seen, stream, trainer


class Pair(NamedTuple):
    x: Tensor
    y: int


@dataclasses.dataclass
class Record:
    x: Tensor
    name: str = "name"


@dataclasses.dataclass
class Halved:
    """A batch that its constructor prepares."""

    x: Tensor
    factor: dataclasses.InitVar[float]

    def __post_init__(self, factor: float) -> None:
        self.x = self.x * factor


class Opaque:
    """An object that nobody can move."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


KINDS: dict[str, Any] = {
    "a tensor": lambda x: x,
    "a list": lambda x: [x, 1],
    "a tuple": lambda x: (x, "name", None),
    "a named tuple": lambda x: Pair(x, 1),
    "a dict": lambda x: {"x": x, "n": 2.5},
    "an ordered dict": lambda x: collections.OrderedDict(x=x),
    "a default dict": lambda x: collections.defaultdict(list, x=x),
    "a dataclass": lambda x: Record(x),
    "a dataclass that prepares itself": lambda x: Halved(x, 0.5),
    "an object": lambda x: Opaque(x),
    "nested": lambda x: {"a": [Pair(x, 1), {"b": (Record(x), x)}]},
}


def tensor_of(batch: Any) -> Tensor:
    """The first tensor in a batch of any of the kinds."""
    if isinstance(batch, Tensor):
        return batch
    if isinstance(batch, dict):
        return tensor_of(next(iter(batch.values())))
    return tensor_of(batch[0]) if isinstance(batch, (list, tuple)) else batch.x


@parity
@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_batches(pl: Any, tmp_path: Path, kind: str, precision: str) -> Any:
    found: list[Any] = []

    class Takes(model_class(pl)):  # type: ignore[misc]
        def take(self, where: str, batch: Any) -> Any:
            x = tensor_of(batch)
            found.append([where, type(batch).__name__, describe(batch), str(x.dtype)])
            return self.loss(x.to(self.dtype))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.take("train", batch)
            self.log("train_loss", loss, on_epoch=True, batch_size=2)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            self.take("val", batch)

        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            self.take("predict", batch)
            return batch

    data = DataLoader(
        [KINDS[kind](one) for one in Rows(6).data.split(2)],
        batch_size=None,
        collate_fn=lambda one: one,
    )
    one, model = trainer(pl, tmp_path, precision=precision, max_epochs=1), Takes()
    one.fit(model, data, data)
    returned = [[type(batch).__name__, tensor_of(batch)] for batch in one.predict(model, data)]
    return {"found": found, "returned": returned, **seen(one, model)}


@parity
@pytest.mark.parametrize("owner", ["module", "datamodule", "both"])
@pytest.mark.parametrize(
    "hook", ["on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"]
)
def test_who_may_change_a_batch(pl: Any, tmp_path: Path, owner: str, hook: str) -> Any:
    def changes(by: float) -> Any:
        def method(self: Any, batch: Any, *more: Any) -> Any:
            stages = [
                self.trainer.training,
                self.trainer.sanity_checking,
                self.trainer.validating,
                self.trainer.testing,
            ]
            found.append([hook, by, *map(str, more), *stages, self.trainer.predicting])
            return batch * by

        return method

    found: list[Any] = []
    in_module, in_data = owner in ("module", "both"), owner in ("datamodule", "both")
    model = type("Changes", (model_class(pl),), {hook: changes(2.0)} if in_module else {})()
    data = type("Data", (pl.LightningDataModule,), {hook: changes(3.0)} if in_data else {})()
    data.train_dataloader = lambda: loader(2)
    data.val_dataloader = lambda: [loader(1, seed=1)]
    data.test_dataloader = data.predict_dataloader = lambda: loader(1, seed=2)
    one = trainer(pl, tmp_path, max_epochs=1)
    one.fit(model, datamodule=data)
    returned = [one.test(model, datamodule=data), one.predict(model, datamodule=data)]
    return {"found": found, "returned": returned, **seen(one, model)}


EMPTY: dict[str, Any] = {
    "a loader": lambda: DataLoader(Rows(0), batch_size=2),
    "a loader that drops its only batch": lambda: DataLoader(Rows(1), batch_size=2, drop_last=True),
    "a stream": lambda: stream(0),
    "a list": lambda: [],
    "a list of nothing": lambda: [DataLoader(Rows(0))],
}


@parity
@pytest.mark.parametrize("stage", ["train", "val"])
@pytest.mark.parametrize("what", EMPTY)
def test_a_fit_on_nothing(pl: Any, tmp_path: Path, what: str, stage: str) -> Any:
    calls: list[Any] = []

    class Watch(pl.Callback):  # type: ignore[misc]
        pass

    def note(name: str) -> Any:
        def hook(self: Any, trainer: Any, *args: Any) -> None:
            calls.append(
                [name, trainer.current_epoch, trainer.global_step, trainer.num_training_batches]
            )

        return hook

    names = [
        "on_train_start",
        "on_train_epoch_start",
        "on_train_batch_start",
        "on_train_epoch_end",
        "on_train_end",
        "on_fit_end",
    ]
    names += [
        "on_validation_start",
        "on_validation_epoch_end",
        "on_validation_end",
        "on_sanity_check_start",
        "on_sanity_check_end",
    ]
    watch = type("Watch", (Watch,), {name: note(name) for name in names})()
    one = trainer(pl, tmp_path, callbacks=[watch])
    data = {"train": loader(2), "val": loader(1), stage: EMPTY[what]()}
    one.fit(model_class(pl)(), data["train"], data["val"])
    return {"calls": calls, "batches": one.num_training_batches, **seen(one)}


@parity
@pytest.mark.parametrize("fn", ["validate", "test", "predict"])
@pytest.mark.parametrize("what", EMPTY)
def test_an_evaluation_of_nothing(pl: Any, tmp_path: Path, what: str, fn: str) -> Any:
    one = trainer(pl, tmp_path)
    returned = getattr(one, fn)(model_class(pl)(), EMPTY[what]())
    return {"returned": returned, **seen(one)}


@parity
@pytest.mark.parametrize("fn", ["fit", "predict"])
def test_one_of_several_loaders_is_empty(pl: Any, tmp_path: Path, fn: str) -> Any:
    class Several(model_class(pl)):  # type: ignore[misc]
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            self.log("val_loss", self.loss(batch))

        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return self(batch)

    # Of the loaders: Lightning also begins those that have nothing to give
    one, generator = (
        trainer(pl, tmp_path),
        torch.Generator(),
    )
    data = [
        loader(0, generator=generator),
        loader(2, generator=generator),
        loader(0, generator=generator),
        loader(1, generator=generator),
    ]
    returned = (
        one.fit(Several(), loader(2), data) and None
        if fn == "fit"
        else getattr(one, fn)(Several(), data)
    )
    return {"returned": returned, **seen(one)}


@parity
@pytest.mark.parametrize("hook", ["training_step", "on_train_batch_start"])
def test_a_stop_iteration_of_the_user_ends_the_epoch(pl: Any, tmp_path: Path, hook: str) -> Any:
    base = model_class(pl)

    def method(self: Any, *args: Any) -> Any:
        if self.global_step == 2:
            raise StopIteration
        return getattr(base, hook)(self, *args)

    one = trainer(pl, tmp_path, logger=True, log_every_n_steps=1)
    one.fit(type("Stops", (base,), {hook: method})(), loader(4), loader(1))
    return seen(one)


@parity
@pytest.mark.parametrize("fn", ["validate", "test", "predict"])
def test_a_stop_iteration_of_the_user_ends_an_evaluation(pl: Any, tmp_path: Path, fn: str) -> Any:
    class Stops(model_class(pl)):  # type: ignore[misc]
        def step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 2:
                raise StopIteration
            if fn != "predict":
                self.log("index", float(batch_idx))
            return batch_idx

        validation_step = test_step = predict_step = step

    one = trainer(pl, tmp_path)
    return {"returned": getattr(one, fn)(Stops(), loader(4)), **seen(one)}


@parity
@pytest.mark.parametrize("missing", ["validation_step", "val_dataloader"])
def test_half_a_validation_is_none(pl: Any, tmp_path: Path, missing: str) -> Any:
    class Bare(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.layer(batch).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Full(Bare):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("val_loss", self.layer(batch).sum())

    one = trainer(pl, tmp_path)
    if missing == "validation_step":
        one.fit(Bare(), loader(2), loader(1))
    else:
        one.fit(Full(), loader(2))
    return seen(one)


# ---- steps that read the data themselves ----


@parity
@pytest.mark.parametrize("data", ["a loader", "a stream", "two loaders"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"val_check_interval": 2}, {"limit_train_batches": 3, "limit_val_batches": 1}],
    ids=str,
)
def test_a_step_with_an_iterator(
    pl: Any, tmp_path: Path, data: str, settings: dict[str, Any]
) -> Any:
    trace: list[Any] = []

    class Net(model_class(pl)):  # type: ignore[misc]
        def first(self, dataloader_iter: Any) -> Any:
            batch, batch_idx, dataloader_idx = next(dataloader_iter)
            trace.append([describe(batch), batch_idx, dataloader_idx])
            return batch[0] if isinstance(batch, (list, tuple)) else batch

        def training_step(self, dataloader_iter: Any) -> Any:
            loss = self.loss(self.first(dataloader_iter))
            self.log("loss", loss, on_step=True, on_epoch=True, batch_size=2)
            return {"loss": loss}

        def validation_step(self, dataloader_iter: Any) -> Any:
            self.log("val_loss", self.loss(self.first(dataloader_iter)), batch_size=2)

        def predict_step(self, dataloader_iter: Any) -> Any:
            return self(self.first(dataloader_iter))

        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            raise AssertionError("up to the step")

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]

    def noting(hook: str) -> Any:
        return lambda self, trainer, module, *args: trace.append(
            [hook, *(describe(one) for one in args), trainer.is_last_batch]
        )

    hooks = [
        "on_train_batch_end",
        "on_validation_batch_end",
        "on_predict_batch_end",
        "on_train_epoch_end",
    ]
    watch = type("Watch", (pl.Callback,), {hook: noting(hook) for hook in hooks})()
    arguments = {
        key: value
        for key, value in settings.items()
        if not (data == "a stream" and key == "val_check_interval")
    }
    one, model = (
        trainer(pl, tmp_path, callbacks=[watch], logger=True, log_every_n_steps=1, **arguments),
        Net(),
    )
    made = {
        "a loader": lambda: loader(4),
        "a stream": lambda: stream(4),
        "two loaders": lambda: [loader(4), loader(3)],
    }[data]
    one.fit(model, made(), loader(3))
    return {
        "predicted": one.predict(model, loader(2)),
        "trace": trace,
        "rate": one.optimizers[0].param_groups[0]["lr"],
        **seen(one, model),
    }


@parity
def test_a_step_that_reads_several_batches(pl: Any, tmp_path: Path) -> Any:
    sizes: list[Any] = []

    class Net(model_class(pl)):  # type: ignore[misc]
        def training_step(self, dataloader_iter: Any) -> Any:
            batches = [next(dataloader_iter)[0] for _ in range(2)]
            sizes.append([describe(one) for one in batches])
            return self.loss(torch.cat(batches))

    one, model = trainer(pl, tmp_path), Net()
    one.fit(model, loader(4))
    return {"sizes": sizes, "step": one.global_step, "weights": model.state_dict()}


@parity
@pytest.mark.parametrize("mode", ["max_size_cycle", "max_size", "min_size"])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"limit_train_batches": 0.5},
        {"limit_train_batches": 3},
        {"limit_train_batches": 6},
        {"overfit_batches": 0.5},
        {"overfit_batches": 3},
    ],
)
def test_limits_count_the_batches_of_all_loaders_together(
    pl: Any, tmp_path: Path, arguments: dict[str, Any], mode: str
) -> Any:
    """A shorter one is read to its own end, whatever part of the epoch is trained on."""
    found: list[Any] = []

    class Takes(model_class(pl)):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            found.append({key: None if one is None else one.tolist() for key, one in batch.items()})
            return self.loss(torch.ones(1, 4))

    loaders = {
        "long": DataLoader(range(16), batch_size=2),  # type: ignore[arg-type]
        "short": DataLoader(range(100, 108), batch_size=2),  # type: ignore[arg-type]
    }
    one = trainer(pl, tmp_path, **{"max_epochs": 2, "limit_val_batches": 0, **arguments})
    one.fit(Takes(), pl.utilities.CombinedLoader(loaders, mode))
    return [found, one.num_training_batches, one.global_step]
