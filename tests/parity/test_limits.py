"""How much is read, when validation runs, when training stops; and what may be given as data."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

import raylit
from tests.parity.harness import Rows, loader, model_class, parity, seen, stream, trainer


def events(pl: Any) -> Any:
    """A callback that notes which batches were read and how far training was.

    It notes the latter whenever something begins or ends.
    """

    class Note(pl.Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.found: list[Any] = []

        def note(self, what: str, trainer: Any, *more: Any) -> None:
            stage = "sanity" if trainer.sanity_checking else ""
            self.found.append(
                [
                    what,
                    stage,
                    trainer.current_epoch,
                    trainer.global_step,
                    trainer.is_last_batch,
                    trainer.should_stop,
                    *more,
                ]
            )

        def on_train_start(self, trainer: Any, *args: Any) -> None:
            self.note(
                "train",
                trainer,
                trainer.num_training_batches,
                trainer.num_val_batches,
                trainer.num_sanity_val_batches,
            )

        def on_train_epoch_start(self, trainer: Any, *args: Any) -> None:
            self.note("epoch", trainer)

        def on_train_batch_start(
            self, trainer: Any, module: Any, batch: Any, batch_idx: int
        ) -> None:
            self.note("batch", trainer, batch_idx, batch)

        def on_train_epoch_end(self, trainer: Any, *args: Any) -> None:
            self.note("epoch end", trainer)

        def on_train_end(self, trainer: Any, *args: Any) -> None:
            self.note("train end", trainer)

        def on_validation_start(self, trainer: Any, *args: Any) -> None:
            self.note("validation", trainer)

        def on_validation_batch_start(
            self, trainer: Any, module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
        ) -> None:
            self.note("validation batch", trainer, batch_idx, dataloader_idx, batch)

    return Note()


def tolerant(pl: Any) -> Any:
    """A model that takes batches of any nesting."""

    class Tolerant(model_class(pl)):  # type: ignore[misc]
        def loss(self, batch: Any) -> Any:
            leaves = [
                leaf
                for leaf in torch.utils._pytree.tree_leaves(batch)
                if isinstance(leaf, torch.Tensor)
            ]
            return sum(super(Tolerant, self).loss(leaf) for leaf in leaves)

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            self.log("val_loss", self.loss(batch))

    return Tolerant()


def fit(
    pl: Any,
    root: Path,
    train: Any = None,
    val: Any = None,
    *,
    stop_at: tuple[str, int] | None = None,
    **arguments: Any,
) -> Any:
    note = events(pl)
    model = tolerant(pl)
    if stop_at is not None:
        hook, step = stop_at

        class Stop(pl.Callback):  # type: ignore[misc]
            pass

        def stop(self: Any, trainer: Any, *args: Any, **kwargs: Any) -> None:
            if trainer.global_step >= step and not trainer.sanity_checking:
                trainer.should_stop = True

        callback = type("Stops", (Stop,), {hook: stop})()
        arguments["callbacks"] = [callback]
    one = trainer(pl, root, **{**arguments, "callbacks": [*arguments.get("callbacks", []), note]})
    one.fit(model, loader(5) if train is None else train, loader(4, seed=1) if val is None else val)
    batches = (one.num_training_batches, one.num_val_batches, one.num_sanity_val_batches)
    return {
        "found": note.found,
        "batches": batches,
        "state": [one.state.fn == "fit", one.state.stage, one.state.finished],
        **seen(one),
    }


@parity
@pytest.mark.parametrize(
    "arguments",
    [
        {"limit_train_batches": 3},
        {"limit_train_batches": 0.5},
        {"limit_train_batches": np.int64(2), "accumulate_grad_batches": np.int64(2)},
        {"limit_train_batches": 3.0, "limit_val_batches": np.float64(0.5)},
        {"limit_train_batches": 1},
        {"limit_train_batches": 1.0},
        {"limit_train_batches": 100},
        {"limit_val_batches": 2, "num_sanity_val_steps": 3},
        {"limit_val_batches": 0.5},
        {"limit_val_batches": 0.0},
        {"overfit_batches": 2},
        {"overfit_batches": 0.5},
        {"num_sanity_val_steps": 0},
        {"num_sanity_val_steps": -1},
        {"fast_dev_run": True},
        {"fast_dev_run": 3},
        {"val_check_interval": 1},
        {"val_check_interval": 2},
        {"val_check_interval": 5},
        {"val_check_interval": 2.0},
        {"val_check_interval": np.int64(2)},
        {"val_check_interval": 0.3},
        {"val_check_interval": 0.5},
        {"val_check_interval": 0.01},
        {"val_check_interval": 3, "check_val_every_n_epoch": None},
        {"val_check_interval": 7, "check_val_every_n_epoch": None},
        {"check_val_every_n_epoch": 2},
        {"check_val_every_n_epoch": 2, "val_check_interval": 2},
        {"check_val_every_n_epoch": 5},
        {"val_check_interval": 3, "accumulate_grad_batches": 2},
        {"val_check_interval": 2, "limit_train_batches": 3},
        {"max_epochs": 0},
        {"max_epochs": 1},
        {"max_steps": 0},
        {"max_steps": 3},
        {"max_steps": 5},
        {"max_steps": np.int64(5), "log_every_n_steps": np.int64(2)},
        {"max_steps": 7, "max_epochs": -1},
        {"max_steps": 7, "accumulate_grad_batches": 2, "max_epochs": -1},
        {"max_steps": 7, "val_check_interval": 2, "max_epochs": -1},
        {
            "max_steps": 7,
            "val_check_interval": 7,
            "check_val_every_n_epoch": None,
            "max_epochs": -1,
        },
        {"min_steps": 4},
        {"limit_train_batches": 0},
        {"reload_dataloaders_every_n_epochs": 2, "max_epochs": 4},
        {"reload_dataloaders_every_n_epochs": 1, "check_val_every_n_epoch": 2, "max_epochs": 5},
        {"reload_dataloaders_every_n_epochs": 2, "check_val_every_n_epoch": 2, "max_epochs": 5},
        {"reload_dataloaders_every_n_epochs": 3, "num_sanity_val_steps": 0, "max_epochs": 5},
        {"check_val_every_n_epoch": None},
        {"val_check_interval": 4, "check_val_every_n_epoch": None, "accumulate_grad_batches": 3},
        {"val_check_interval": 4, "limit_train_batches": 2, "limit_val_batches": 0},
        {"val_check_interval": 0.0},
        {"val_check_interval": 1.0},
        {"val_check_interval": "00:00:00:00"},
        {"val_check_interval": "00:01:00:00"},
        {"val_check_interval": {"seconds": 0}, "check_val_every_n_epoch": None},
        {"val_check_interval": "00:00:00:00", "check_val_every_n_epoch": 2},
        {"val_check_interval": timedelta(0), "accumulate_grad_batches": 2},
        {"max_time": "00:00:00:00"},
        {"max_time": {"seconds": 0}, "min_steps": 7},
        {"max_time": timedelta(0), "min_epochs": 2},
        {"max_time": {"hours": 1}},
        {"min_epochs": 2, "max_epochs": 1},
        {"min_steps": 9, "max_epochs": 1},
        {"min_steps": 9, "max_steps": 3},
        {"max_epochs": None, "max_steps": 4},
        {"fast_dev_run": 1, "accumulate_grad_batches": 2},
        {"fast_dev_run": 2, "limit_train_batches": 1, "limit_val_batches": 1},
        {"overfit_batches": 1.0},
        {"overfit_batches": 2, "limit_train_batches": 1},
        {"detect_anomaly": True},
        {"deterministic": "warn", "benchmark": True},
        {
            "sync_batchnorm": True,
            "use_distributed_sampler": False,
            "strategy": "auto",
            "devices": 1,
            "num_nodes": 1,
        },
    ],
    ids=lambda arguments: "-".join(f"{key}={value}" for key, value in arguments.items()),
)
def test_arguments(pl: Any, tmp_path: Path, arguments: dict[str, Any]) -> Any:
    # Of the loaders, so that reading one again draws no seed of the process
    generator = torch.Generator()
    return fit(
        pl,
        tmp_path,
        loader(5, generator=generator),
        loader(4, seed=1, generator=generator),
        **{"max_epochs": 3, **arguments},
    )


@parity
@pytest.mark.parametrize(
    "hook",
    [
        "on_train_batch_start",
        "on_train_batch_end",
        "on_train_epoch_end",
        "on_validation_end",
        "on_validation_start",
        "on_validation_batch_end",
    ],
)
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"min_epochs": 2},
        {"min_steps": 7},
        {"val_check_interval": 2},
        {"accumulate_grad_batches": 3},
    ],
)
def test_a_stop(pl: Any, tmp_path: Path, hook: str, arguments: dict[str, Any]) -> Any:
    return fit(pl, tmp_path, stop_at=(hook, 2), max_epochs=3, **arguments)


@parity
@pytest.mark.parametrize(
    "hook",
    [
        "setup",
        "on_fit_start",
        "on_sanity_check_start",
        "on_sanity_check_end",
        "on_train_start",
        "on_train_epoch_start",
    ],
)
@pytest.mark.parametrize(
    "arguments", [{}, {"min_epochs": 1}, {"val_check_interval": 2, "min_epochs": 2}]
)
def test_a_stop_before_the_first_batch(
    pl: Any, tmp_path: Path, hook: str, arguments: dict[str, Any]
) -> Any:
    return fit(pl, tmp_path, stop_at=(hook, 0), max_epochs=3, **arguments)


@parity
@pytest.mark.parametrize("name", ["max_epochs", "max_steps"])
def test_a_limit_set_while_it_runs(pl: Any, tmp_path: Path, name: str) -> Any:
    class Extends(pl.Callback):  # type: ignore[misc]
        def on_train_epoch_end(self, trainer: Any, *args: Any) -> None:
            if name == "max_epochs":
                trainer.fit_loop.max_epochs = 3
            elif trainer.current_epoch == 1:
                trainer.fit_loop.epoch_loop.max_steps = 12

    return fit(
        pl,
        tmp_path,
        callbacks=[Extends()],
        **({"max_epochs": 1} if name == "max_epochs" else {"max_epochs": 4}),
    )


@parity
@pytest.mark.parametrize("when", ["once", "always", "at the start"])
def test_the_rest_of_an_epoch_is_skipped(pl: Any, tmp_path: Path, when: str) -> Any:
    class Skips(model_class(pl)):  # type: ignore[misc]
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
            skips = {
                "once": self.global_step == 3,
                "always": batch_idx == 1,
                "at the start": self.current_epoch == 1,
            }
            return -1 if skips[when] else None

    one = trainer(pl, tmp_path, logger=True, log_every_n_steps=1, max_epochs=3)
    one.fit(Skips(on_step=True, on_epoch=True), loader(3), loader(2))
    return seen(one)


@parity
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"limit_train_batches": 3, "limit_val_batches": 1},
        {"val_check_interval": 2},
        {"max_steps": 5, "max_epochs": -1},
        {"accumulate_grad_batches": 2},
        {"val_check_interval": 4, "check_val_every_n_epoch": None},
    ],
    ids=lambda arguments: "-".join(arguments) or "none",
)
def test_loaders_without_a_length(pl: Any, tmp_path: Path, arguments: dict[str, Any]) -> Any:
    return fit(pl, tmp_path, stream(5), stream(2, seed=1), **arguments)


def data(kind: str) -> Any:
    """One of the kinds of training data."""
    generator = torch.Generator().manual_seed(3)
    rows = Rows(6)
    kinds: dict[str, Any] = {
        "a list of loaders": lambda: [loader(3), loader(2, seed=5)],
        "a tuple of loaders": lambda: (loader(3), loader(2, seed=5)),
        "a dict of loaders": lambda: {"a": loader(1), "b": loader(3, seed=5)},
        "nested": lambda: {"a": loader(2), "b": [loader(1, seed=5), {"c": loader(3, seed=6)}]},
        "a loader and a stream": lambda: {"a": loader(2), "b": stream(4)},
        "an iterable without a length": lambda: Tensors(),
        "a shuffled loader": lambda: DataLoader(rows, batch_size=2, shuffle=True),
        "a loader with a generator": lambda: DataLoader(
            rows, batch_size=2, shuffle=True, generator=generator
        ),
        "a loader with a sampler": lambda: DataLoader(
            rows, batch_size=2, sampler=RandomSampler(rows, num_samples=5)
        ),
        "a loader with a batch sampler": lambda: DataLoader(
            rows, batch_sampler=BatchSampler(SequentialSampler(rows), 4, drop_last=True)
        ),
        "a loader without batches": lambda: DataLoader(Rows(3), batch_size=None),
        "a loader with processes": lambda: DataLoader(
            rows, batch_size=2, shuffle=True, num_workers=1
        ),
    }
    return kinds[kind]()


class Tensors:
    """Three batches; it can be read again but has no length."""

    def __iter__(self) -> Any:
        return iter(Rows(6).data.split(2))


KINDS = [
    "a list of loaders",
    "a tuple of loaders",
    "a dict of loaders",
    "nested",
    "a loader and a stream",
    "an iterable without a length",
    "a shuffled loader",
    "a loader with a generator",
    "a loader with a sampler",
    "a loader with a batch sampler",
    "a loader without batches",
]


@parity
@pytest.mark.parametrize("kind", [*KINDS, "a loader with processes"])
def test_training_data(pl: Any, tmp_path: Path, kind: str) -> Any:
    return fit(pl, tmp_path, data(kind))


@parity
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "nested"])
def test_validation_data(pl: Any, tmp_path: Path, kind: str) -> Any:
    return fit(pl, tmp_path, loader(2), data(kind), limit_val_batches=2)


@parity
@pytest.mark.parametrize("mode", ["min_size", "max_size_cycle", "max_size"])
@pytest.mark.parametrize("arguments", [{}, {"limit_train_batches": 2}])
def test_combined_loaders(pl: Any, tmp_path: Path, mode: str, arguments: dict[str, Any]) -> Any:
    combined = pl.utilities.CombinedLoader if pl is not raylit else raylit.data.CombinedLoader
    train, val = (
        combined({"a": loader(3), "b": loader(1, seed=5)}, mode=mode),
        combined([loader(2), loader(1)], mode=mode),
    )
    return fit(pl, tmp_path, train, val, **arguments)


@parity
def test_loaders_of_the_module(pl: Any, tmp_path: Path) -> Any:
    class Brings(model_class(pl)):  # type: ignore[misc]
        def train_dataloader(self) -> Any:
            return loader(3)

        def val_dataloader(self) -> Any:
            return loader(2)

        test_dataloader = predict_dataloader = val_dataloader

    one, model = trainer(pl, tmp_path), Brings()
    one.fit(model)
    return {"returned": [one.validate(model), one.test(model), one.predict(model)], **seen(one)}


@parity
def test_a_second_fit_goes_on(pl: Any, tmp_path: Path) -> Any:
    note = events(pl)
    one, model = trainer(pl, tmp_path, callbacks=[note]), model_class(pl)()
    data = [loader(3, generator=torch.Generator()), loader(2, generator=torch.Generator())]
    one.fit(model, *data)
    one.fit_loop.max_epochs = 3
    one.fit(model, *data)
    return {"found": note.found, **seen(one)}


@parity
def test_where_the_sampler_is_told_the_epoch(pl: Any, tmp_path: Path) -> Any:
    told: list[Any] = []

    class Sampler(SequentialSampler):
        def set_epoch(self, epoch: int) -> None:
            told.append(epoch)

    rows = Rows(4)
    one = trainer(pl, tmp_path, max_epochs=3, num_sanity_val_steps=1)
    one.fit(
        model_class(pl)(),
        DataLoader(rows, sampler=Sampler(rows)),
        DataLoader(rows, batch_sampler=BatchSampler(Sampler(rows), 2, False)),
    )
    return {"told": told, **seen(one)}


@parity
@pytest.mark.parametrize("kind", KINDS)
def test_the_loaders_of_a_trainer(pl: Any, tmp_path: Path, kind: str) -> Any:
    def names(value: Any) -> Any:
        return torch.utils._pytree.tree_map(lambda one: type(one).__name__, value)

    one, model = trainer(pl, tmp_path, limit_val_batches=1, max_epochs=1), tolerant(pl)
    found = [names([one.train_dataloader, one.val_dataloaders])]
    one.fit(model, data(kind), None if kind == "nested" else data(kind))
    found.append(
        names(
            [
                one.train_dataloader,
                one.val_dataloaders,
                one.test_dataloaders,
                one.predict_dataloaders,
            ]
        )
    )
    one.test(model_class(pl)(), loader(1))
    found.append(names([one.test_dataloaders]))
    return {"found": found}


@parity
@pytest.mark.parametrize(
    "kind",
    [
        "a shuffled loader",
        "a loader with a generator",
        "a loader with a batch sampler",
        "an iterable without a length",
    ],
)
def test_overfitting_reads_in_order(pl: Any, tmp_path: Path, kind: str) -> Any:
    batches = 1 if kind == "a loader with a batch sampler" else 2
    return fit(pl, tmp_path, data(kind), data(kind), overfit_batches=batches)


@parity
@pytest.mark.parametrize(
    ("arguments", "batches"),
    [
        ({"max_epochs": 3}, lambda: loader(5)),
        ({"max_epochs": 3, "accumulate_grad_batches": 2}, lambda: loader(5)),
        ({"max_epochs": 3, "max_steps": 4}, lambda: loader(5)),
        ({"max_epochs": 3, "max_steps": 400}, lambda: loader(5)),
        ({"max_epochs": -1, "max_steps": 4}, lambda: loader(5)),
        ({"max_epochs": 3, "limit_train_batches": 2}, lambda: loader(5)),
        ({"max_epochs": 3, "max_steps": 4}, lambda: stream(5)),
        ({"max_epochs": 3, "limit_train_batches": 4}, lambda: stream(5)),
        ({"fast_dev_run": 2}, lambda: loader(5)),
    ],
)
def test_estimated_stepping_batches(
    pl: Any, tmp_path: Path, arguments: dict[str, Any], batches: Any
) -> Any:
    found: list[Any] = []

    class Asks(model_class(pl)):  # type: ignore[misc]
        def configure_optimizers(self) -> Any:
            found.append(self.trainer.estimated_stepping_batches)
            return super().configure_optimizers()

        def on_train_start(self) -> None:
            found.append(self.trainer.estimated_stepping_batches)

    one = trainer(pl, tmp_path, **arguments)
    one.fit(Asks(), batches())
    return {"found": found, **seen(one)}
