"""The finders of a learning rate and of a batch size.

What they find, what they set, and that a fit afterwards goes as if they had not run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import raylit.tuner  # noqa: F401
from tests.parity.harness import (
    Rows,
    Stream,
    errors,
    exception_of,
    files,
    loader,
    model_class,
    parity,
    seen,
    trainer,
)


def tunable(
    pl: Any, limit: int = 1 << 30, lr: float = 0.02, batch_size: int = 2, **attributes: Any
) -> Any:
    """A model that runs out of memory beyond `limit` rows in a batch.

    It has the hyperparameters lr and batch_size, and data of its own.
    """

    class Tunable(model_class(pl)):  # type: ignore[misc]
        length = 140

        def __init__(self, lr: float, batch_size: int) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Any) -> Any:
            if len(x) > limit:
                raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
            return self.norm(super().forward(x)) if len(x) > 1 else super().forward(x)

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

        def data(self, seed: int) -> Any:
            return DataLoader(Rows(self.length, seed), batch_size=self.hparams.batch_size)

        def train_dataloader(self) -> Any:
            return self.data(0)

        def val_dataloader(self) -> Any:
            return self.data(1)

        def test_dataloader(self) -> Any:
            return self.data(2)

        def predict_dataloader(self) -> Any:
            return self.data(3)

    model = type("Tunable", (Tunable,), attributes)
    return model(lr=lr, batch_size=batch_size)


def found_by(result: Any) -> dict[str, Any]:
    return {
        "results": result.results,
        "suggestion": result.suggestion(),
        "another": result.suggestion(skip_begin=3, skip_end=2),
    }


def left_by(one: Any, model: Any) -> dict[str, Any]:
    """What there is to see after a search, but for the values logged in it.

    Lightning keeps the last of them.
    """
    return {name: value for name, value in seen(one, model).items() if not name.endswith("metrics")}


SEARCHES: list[dict[str, Any]] = [
    {},
    {"num_training": 30},
    {"mode": "linear", "num_training": 40},
    {"min_lr": 1e-4, "max_lr": 10.0, "num_training": 50},
    {"early_stop_threshold": None, "max_lr": 100.0, "num_training": 60},
    {"early_stop_threshold": 1.1, "num_training": 60},
    {"update_attr": False},
    {"attr_name": "momentum"},
    {"num_training": 5},
]


@parity
@pytest.mark.parametrize(
    "arguments", SEARCHES, ids=lambda arguments: "-".join(arguments) or "defaults"
)
@pytest.mark.parametrize("shuffle", [False, True])
def test_lr_find(pl: Any, tmp_path: Path, arguments: dict[str, Any], shuffle: bool) -> Any:
    model = tunable(pl, momentum=0.5)
    one = trainer(pl, tmp_path, max_epochs=3, logger=True)
    data = loader(50, shuffle=shuffle), loader(3)
    result = pl.tuner.Tuner(one).lr_find(model, *data, **arguments)
    found = {
        **found_by(result),
        "lr": model.hparams.lr,
        "momentum": model.momentum,
        "left": left_by(one, model),
    }
    kept = [
        one.max_steps,
        one.limit_val_batches,
        len(one.callbacks),
        type(one.logger).__name__,
        files(tmp_path),
    ]
    one.fit(model, *data)
    return {
        **found,
        "kept": kept,
        **seen(one, model),
        "lr of the optimizer": one.optimizers[0].param_groups[0]["lr"],
    }


@parity
@pytest.mark.parametrize(
    "settings",
    [
        {"accumulate_grad_batches": 3},
        {"max_epochs": 1},
        {"max_steps": 7},
        {"limit_train_batches": 9, "max_epochs": 6},
        {"val_check_interval": 4},
        {"gradient_clip_val": 0.1},
        {"precision": "bf16-mixed"},
        {"precision": "64-true"},
        {"min_epochs": 2},
        {"overfit_batches": 20},
        {"num_sanity_val_steps": 0},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_lr_find_with_settings(pl: Any, tmp_path: Path, settings: dict[str, Any]) -> Any:
    model = tunable(pl)
    one = trainer(pl, tmp_path, **{"max_epochs": 2, **settings})
    result = pl.tuner.Tuner(one).lr_find(model, num_training=60)
    found = {**found_by(result), "left": left_by(one, model), "validation": one.limit_val_batches}
    one.fit(model)
    return {**found, **seen(one, model)}


def _skips(self: Any, batch: Any, batch_idx: int) -> Any:
    loss = self.loss(batch)
    return {"loss": loss, "more": 1} if batch_idx % 5 else None


def _steps_by_hand(self: Any, batch: Any, batch_idx: int) -> Any:
    optimizer = self.optimizers()
    loss = self.loss(batch)
    optimizer.zero_grad()
    self.manual_backward(loss)
    optimizer.step()
    self.lr_schedulers().step()
    return loss


def _two_groups(self: Any) -> Any:
    groups = [{"params": self.layer.parameters(), "lr": 0.3}, {"params": self.norm.parameters()}]
    return torch.optim.SGD(groups, lr=self.hparams.lr, momentum=0.9)


def _watches_a_plateau(self: Any) -> Any:
    optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler, "monitor": "train_loss", "interval": "step"},
    }


def _wants_a_closure(self: Any) -> Any:
    return torch.optim.LBFGS(self.parameters(), lr=self.hparams.lr, max_iter=3)


@parity
@pytest.mark.parametrize(
    "attributes",
    [
        {"training_step": _skips},
        {"training_step": _steps_by_hand},
        {"configure_optimizers": _two_groups},
        {"configure_optimizers": _watches_a_plateau},
        {"configure_optimizers": _wants_a_closure},
        {"data": lambda self, seed: DataLoader(Stream(100, seed), batch_size=2)},
        {"data": lambda self, seed: DataLoader(Rows(90, seed), batch_size=2, shuffle=True)},
    ],
    ids=["skips", "by-hand", "groups", "plateau", "closure", "stream", "shuffled"],
)
def test_lr_find_of_other_models(pl: Any, tmp_path: Path, attributes: dict[str, Any]) -> Any:
    model = tunable(pl, **attributes)
    model.automatic_optimization = attributes.get("training_step") is not _steps_by_hand
    one = trainer(pl, tmp_path, max_epochs=2)
    result = pl.tuner.Tuner(one).lr_find(
        model, num_training=60, early_stop_threshold=None, max_lr=0.1
    )
    found = {**found_by(result), "left": left_by(one, model)}
    one.fit(model)
    return {**found, **seen(one, model)}


@parity
def test_lr_find_twice_and_after_a_fit(pl: Any, tmp_path: Path) -> Any:
    model, found = tunable(pl), []
    one = trainer(pl, tmp_path, max_epochs=1)
    for _ in range(2):
        found.append(
            found_by(pl.tuner.Tuner(one).lr_find(model, num_training=40, early_stop_threshold=None))
        )
        found.append(model.hparams.lr)
    one.fit(model)
    return {"found": found, **seen(one, model)}


@parity
def test_the_learning_rate_of_a_datamodule(pl: Any, tmp_path: Path) -> Any:
    class Data(pl.LightningDataModule):  # type: ignore[misc,name-defined]
        learning_rate = 0.5

        def train_dataloader(self) -> Any:
            return loader(60)

    class Reads(model_class(pl)):  # type: ignore[misc]
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=self.trainer.datamodule.learning_rate)

    data, model = Data(), Reads()
    one = trainer(pl, tmp_path, max_epochs=2)
    result = pl.tuner.Tuner(one).lr_find(model, datamodule=data)
    found = {**found_by(result), "lr": data.learning_rate}
    one.fit(model, data)
    return {**found, **seen(one, model)}


@parity
@pytest.mark.parametrize("where", ["fit start", "first epoch"])
def test_a_learning_rate_finder_among_the_callbacks(pl: Any, tmp_path: Path, where: str) -> Any:
    class Finder(pl.callbacks.LearningRateFinder):  # type: ignore[misc,name-defined]
        def on_fit_start(self, *args: Any) -> None:
            if where == "fit start":
                super().on_fit_start(*args)

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if where == "first epoch" and trainer.current_epoch == 0:
                self.lr_find(trainer, pl_module)

    finder = Finder(min_lr=1e-5, num_training_steps=40, early_stop_threshold=None)
    seen_first: list[str] = []
    watch = pl.callbacks.LambdaCallback(
        on_fit_start=lambda trainer, pl_module: seen_first.append(
            str(finder.optimal_lr is not None)
        )
    )
    model = tunable(pl)
    one = trainer(pl, tmp_path, max_epochs=2, logger=True, callbacks=[watch, finder])
    # Lightning begins to read the data within the search, which shifts the random numbers that come
    # after it
    model.dropout.p = 0.0
    one.fit(model, loader(30), loader(3))
    return {
        **found_by(finder.optimal_lr),
        "lr": model.hparams.lr,
        "order": seen_first,
        **seen(one, model),
        "rng": None,
    }


@parity
def test_the_hooks_of_a_search(pl: Any, tmp_path: Path) -> Any:
    trace: list[str] = []
    names = [
        "setup",
        "teardown",
        "on_fit_start",
        "on_fit_end",
        "on_train_start",
        "on_train_end",
        "on_train_epoch_start",
        "on_train_epoch_end",
        "on_validation_start",
        "on_validation_end",
        "on_train_batch_start",
        "lr_scheduler_step",
        "on_save_checkpoint",
        "on_load_checkpoint",
    ]

    def noted(name: str) -> Any:
        def hook(self: Any, *args: Any, **kwargs: Any) -> Any:
            trace.append(name)
            return getattr(super(type(self), self), name)(*args, **kwargs)

        return hook

    model = tunable(pl, **{name: noted(name) for name in names})
    one = trainer(pl, tmp_path, max_epochs=2, num_sanity_val_steps=1)
    pl.tuner.Tuner(one).lr_find(model, num_training=120, early_stop_threshold=None)
    return {"trace": trace, "state": [one.state.finished, one.interrupted, one.training]}


SIZES: list[dict[str, Any]] = [
    {},
    {"mode": "binsearch"},
    {"mode": "binsearch", "margin": 0.0},
    {"mode": "binsearch", "margin": 0.3, "init_val": 3},
    {"init_val": 5},
    {"max_trials": 3},
    {"mode": "binsearch", "max_trials": 7},
    {"mode": "binsearch", "max_val": 20},
    {"steps_per_trial": 1},
]


@parity
@pytest.mark.parametrize(
    ("arguments", "limit"),
    [*((arguments, 37) for arguments in SIZES), ({}, 64), ({"mode": "binsearch"}, 64), ({}, 1000)],
)
def test_scale_batch_size(pl: Any, tmp_path: Path, arguments: dict[str, Any], limit: int) -> Any:
    model = tunable(pl, limit)
    model.dropout.p = 0.0  # Lightning lets the search draw random numbers that the fit then lacks
    one = trainer(pl, tmp_path, max_epochs=1, num_sanity_val_steps=0)
    size = pl.tuner.Tuner(one).scale_batch_size(model, **arguments)
    left = {**left_by(one, model), "rng": None}
    kept = [
        one.max_steps,
        one.limit_train_batches,
        one.limit_val_batches,
        len(one.callbacks),
        files(tmp_path),
    ]
    model.hparams.batch_size = min(size, limit)
    one.fit(model)
    return {
        "size": size,
        "set": model.hparams.batch_size,
        "left": left,
        "kept": kept,
        **{**seen(one, model), "rng": None},
    }


@parity
@pytest.mark.parametrize("method", ["validate", "test", "predict"])
@pytest.mark.parametrize("mode", ["power", "binsearch"])
def test_scale_batch_size_of_evaluation(pl: Any, tmp_path: Path, method: str, mode: str) -> Any:
    model = tunable(pl, 37)
    one = trainer(pl, tmp_path)
    size = pl.tuner.Tuner(one).scale_batch_size(model, method=method, mode=mode)
    kept = [one.limit_val_batches, one.limit_test_batches, one.limit_predict_batches]
    arguments = {} if method == "predict" else {"verbose": False}
    return {
        "size": size,
        "set": model.hparams.batch_size,
        "kept": kept,
        "values": getattr(one, method)(model, **arguments),
    }


@parity
@pytest.mark.parametrize("method", ["fit", "validate", "test", "predict"])
def test_a_batch_size_finder_among_the_callbacks(pl: Any, tmp_path: Path, method: str) -> Any:
    class Data(pl.LightningDataModule):  # type: ignore[misc,name-defined]
        def __init__(self, size: int = 2) -> None:
            super().__init__()
            self.save_hyperparameters()

        def loader(self) -> Any:
            return DataLoader(Rows(70), batch_size=self.hparams.size)

        train_dataloader = val_dataloader = test_dataloader = predict_dataloader = loader

    sizes: list[int] = []

    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        sizes.append(len(batch))
        return self.loss(batch)

    steps = dict.fromkeys(["training_step", "validation_step", "test_step"], step)
    model, data = tunable(pl, 40, **(steps if method != "predict" else {})), Data()
    model.dropout.p = 0.0
    finder = pl.callbacks.BatchSizeFinder(batch_arg_name="size", steps_per_trial=2)
    one = trainer(pl, tmp_path, max_epochs=1, callbacks=[finder], num_sanity_val_steps=1)
    returned = getattr(one, method)(model, datamodule=data)
    values = None if method == "fit" else returned if method == "predict" else len(returned)
    return {
        "size": finder.optimal_batch_size,
        "set": data.hparams.size,
        "last": sizes[-4:],
        "values": values,
    }


@errors
@pytest.mark.parametrize("method", ["lr_find", "scale_batch_size"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"method": "train"},
        {"mode": "cubic"},
        {"dataloaders": [1]},
        {"method": "test", "train_dataloaders": [1]},
    ],
    ids=lambda arguments: "-".join(arguments),
)
def test_wrong_arguments(pl: Any, tmp_path: Path, method: str, arguments: dict[str, Any]) -> Any:
    getattr(pl.tuner.Tuner(trainer(pl, tmp_path)), method)(tunable(pl), **arguments)


@errors
@pytest.mark.parametrize(
    "case", ["no lr", "no such name", "two optimizers", "evaluation", "a finder already"]
)
def test_lr_find_of_what_cannot_be_searched(pl: Any, tmp_path: Path, case: str) -> Any:
    model: Any = model_class(pl)() if case == "no lr" else tunable(pl)
    arguments: dict[str, Any] = {
        "no such name": {"attr_name": "rate"},
        "evaluation": {"method": "validate"},
    }.get(case, {})
    if case == "two optimizers":
        model.automatic_optimization = False
        model.configure_optimizers = lambda: [
            torch.optim.SGD(model.parameters(), lr=0.1),
            torch.optim.SGD(model.parameters(), lr=0.1),
        ]
    callbacks = [pl.callbacks.LearningRateFinder()] if case == "a finder already" else None
    pl.tuner.Tuner(trainer(pl, tmp_path, callbacks=callbacks)).lr_find(
        model, loader(3), **arguments
    )


@errors
@pytest.mark.parametrize(
    "case",
    ["no batch_size", "loaders", "two loaders", "another error", "margin", "a finder already"],
)
def test_scale_batch_size_of_what_cannot_be_searched(pl: Any, tmp_path: Path, case: str) -> Any:
    def fails(self: Any, *args: Any) -> Any:
        raise RuntimeError("shapes do not match")

    attributes: dict[str, Any] = {
        "two loaders": {"test_dataloader": lambda self: [self.data(0), self.data(1)]},
        "another error": {"training_step": fails},
    }.get(case, {})
    arguments: dict[str, Any] = {
        "no batch_size": {"batch_arg_name": "size"},
        "two loaders": {"method": "test"},
        "margin": {"margin": 1.0},
    }.get(case, {})
    callbacks = [pl.callbacks.BatchSizeFinder()] if case == "a finder already" else None
    tuner = pl.tuner.Tuner(trainer(pl, tmp_path, callbacks=callbacks))
    tuner.scale_batch_size(
        tunable(pl, **attributes), *([loader(3)] if case == "loaders" else []), **arguments
    )


@parity
def test_a_trial_run_searches_nothing(pl: Any, tmp_path: Path) -> Any:
    model = tunable(pl)
    tuner = pl.tuner.Tuner(trainer(pl, tmp_path, fast_dev_run=True))
    return {
        "found": [tuner.lr_find(model), tuner.scale_batch_size(model)],
        "set": dict(model.hparams),
    }


@parity
def test_an_error_leaves_things_as_they_were(pl: Any, tmp_path: Path) -> Any:
    def fails(self: Any, *args: Any) -> None:
        if self.trainer.global_step == 5:
            raise ZeroDivisionError

    model = tunable(pl, on_train_batch_end=fails)
    one = trainer(pl, tmp_path, logger=True)
    with pytest.raises(ZeroDivisionError):
        pl.tuner.Tuner(one).lr_find(model)
    return {
        "weights": model.state_dict(),
        "lr": model.hparams.lr,
        "step": one.global_step,
        "files": files(tmp_path),
        "error": str(exception_of(pl))[:1],
    }
