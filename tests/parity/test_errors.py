"""What is an error in Lightning is one in raylit; the texts differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.lazy import torchmetrics
from tests.parity.harness import errors, loader, model_class, stream, trainer


def changed(pl: Any, **methods: Callable[..., Any]) -> Any:
    return type("Changed", (model_class(pl),), methods)()


def optimizer_of(self: Any) -> Any:
    return torch.optim.SGD(self.parameters(), lr=0.1)


# ---- arguments of the Trainer ----

WRONG: list[dict[str, Any]] = [
    {"max_epochs": -2},
    {"max_steps": -2},
    {"limit_train_batches": -1},
    {"limit_train_batches": 1.5},
    {"limit_val_batches": -0.1},
    {"limit_test_batches": 2.5},
    {"overfit_batches": 1.5},
    {"val_check_interval": 1.5},
    {"val_check_interval": -1},
    {"val_check_interval": 0},
    {"val_check_interval": 0.5, "check_val_every_n_epoch": None},
    {"check_val_every_n_epoch": 1.5},
    {"accumulate_grad_batches": "many"},
    {"gradient_clip_val": "1"},
    {"gradient_clip_algorithm": "nothing"},
    {"precision": "33"},
    {"precision": 24},
    {"accelerator": "coal"},
    {"strategy": "unknown"},
    {"devices": 0},
    {"devices": []},
    {"num_nodes": 0},
    {"fast_dev_run": -1},
    {"reload_dataloaders_every_n_epochs": -1},
    {"max_time": "abc"},
    {"max_time": 12},
    {"nonsense": 1},
]


@errors
@pytest.mark.parametrize(
    "arguments",
    WRONG,
    ids=lambda arguments: "-".join(f"{key}={value}" for key, value in arguments.items()),
)
def test_arguments(pl: Any, tmp_path: Path, arguments: dict[str, Any]) -> Any:
    one = trainer(pl, tmp_path, **arguments)
    one.fit(model_class(pl)(), loader(4), loader(2))


@errors
@pytest.mark.parametrize("which", ["enable_checkpointing", "enable_progress_bar"])
def test_a_callback_that_was_switched_off(pl: Any, tmp_path: Path, which: str) -> Any:
    callback = (
        pl.callbacks.ModelCheckpoint()
        if which == "enable_checkpointing"
        else pl.callbacks.TQDMProgressBar()
    )
    pl.Trainer(callbacks=[callback], logger=False, default_root_dir=tmp_path, **{which: False})


@errors
@pytest.mark.parametrize("given", ["a string", "an integer", "the other package's"])
def test_callbacks_that_are_none(pl: Any, tmp_path: Path, given: str) -> Any:
    trainer(
        pl,
        tmp_path,
        callbacks=[{"a string": "EarlyStopping", "an integer": 3}.get(given, object())],
    ).fit(model_class(pl)(), loader(1))


# ---- models and data ----


@errors
@pytest.mark.parametrize(
    "method", ["training_step", "configure_optimizers", "validation_step", "test_step"]
)
def test_a_missing_method(pl: Any, tmp_path: Path, method: str) -> Any:
    base = {name: getattr(model_class(pl), name) for name in ("__init__", "forward", "loss")}
    steps = ("training_step", "configure_optimizers", "validation_step", "test_step")
    rest = {name: getattr(model_class(pl), name) for name in steps if name != method}
    bare = type("Bare", (pl.LightningModule,), rest)
    assert base
    one = trainer(pl, tmp_path)
    fn = {"validation_step": one.validate, "test_step": one.test}.get(method, one.fit)
    fn(bare(), loader(1))


@errors
@pytest.mark.parametrize("fn", ["fit", "validate", "test", "predict"])
def test_no_data(pl: Any, tmp_path: Path, fn: str) -> Any:
    getattr(trainer(pl, tmp_path), fn)(model_class(pl)())


@errors
@pytest.mark.parametrize("fn", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("model", [None, torch.nn.Linear(1, 1), "a string"])
def test_what_is_no_model(pl: Any, tmp_path: Path, fn: str, model: Any) -> Any:
    getattr(trainer(pl, tmp_path), fn)(model, loader(1))


@errors
@pytest.mark.parametrize("fn", ["fit", "validate", "test", "predict"])
def test_data_given_twice(pl: Any, tmp_path: Path, fn: str) -> Any:
    class Data(pl.LightningDataModule):  # type: ignore[misc]
        def train_dataloader(self) -> Any:
            return loader(1)

        val_dataloader = test_dataloader = predict_dataloader = train_dataloader

    getattr(trainer(pl, tmp_path), fn)(model_class(pl)(), loader(1), datamodule=Data())


@errors
@pytest.mark.parametrize("given", [5, object(), loader])
def test_data_that_cannot_be_iterated(pl: Any, tmp_path: Path, given: Any) -> Any:
    trainer(pl, tmp_path).fit(model_class(pl)(), given)


@errors
@pytest.mark.parametrize(
    ("arguments", "data"),
    [
        ({"limit_train_batches": 0.1}, lambda: loader(4)),
        ({"limit_train_batches": 0.5}, lambda: stream(4)),
        ({"val_check_interval": 0.5}, lambda: stream(4)),
        ({"val_check_interval": 9}, lambda: loader(4)),
        ({"limit_val_batches": 0.1}, lambda: loader(4)),
        ({"overfit_batches": 0.1}, lambda: loader(4)),
    ],
)
def test_limits_that_do_not_fit_the_data(
    pl: Any, tmp_path: Path, arguments: dict[str, Any], data: Any
) -> Any:
    trainer(pl, tmp_path, **arguments).fit(model_class(pl)(), data(), loader(3))


@errors
@pytest.mark.parametrize("fn", ["validate", "test", "predict", "fit"])
@pytest.mark.parametrize("several", [True, False])
def test_dataloader_idx(pl: Any, tmp_path: Path, fn: str, several: bool) -> Any:
    def without(self: Any, batch: Any, batch_idx: int) -> None:
        pass

    def required(self: Any, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        pass

    step = without if several else required
    model = changed(pl, validation_step=step, test_step=step, predict_step=step)
    data = [loader(1), loader(1)] if several else loader(1)
    one = trainer(pl, tmp_path)
    one.fit(model, loader(1), data) if fn == "fit" else getattr(one, fn)(model, data)


@errors
def test_predict_on_a_combined_loader_that_is_not_sequential(pl: Any, tmp_path: Path) -> Any:
    trainer(pl, tmp_path).predict(
        model_class(pl)(), pl.utilities.CombinedLoader([loader(1)], "min_size")
    )


@errors
def test_fit_on_a_sequential_combined_loader(pl: Any, tmp_path: Path) -> Any:
    trainer(pl, tmp_path).fit(
        model_class(pl)(), pl.utilities.CombinedLoader([loader(1)], "sequential")
    )


@errors
def test_an_unknown_mode_of_a_combined_loader(pl: Any, tmp_path: Path) -> Any:
    pl.utilities.CombinedLoader([loader(1)], "sideways")


# ---- steps and optimizers ----


@errors
@pytest.mark.parametrize("returned", [{}, {"los": 1}, 3, "loss", [1, 2]])
def test_what_training_step_may_not_return(pl: Any, tmp_path: Path, returned: Any) -> Any:
    model = changed(pl, training_step=lambda self, batch, batch_idx: returned)
    trainer(pl, tmp_path).fit(model, loader(1))


CONFIGURE: dict[str, Callable[[Any], Any]] = {
    "a string": lambda self: "adam",
    "an empty dict": lambda self: {},
    "two optimizers": lambda self: [optimizer_of(self), optimizer_of(self)],
    "a list of other things": lambda self: [1, 2],
    "a plateau without monitor": lambda self: plateau(self, {}),
    "a plateau without monitor in a dict": lambda self: plateau(self, {"interval": "epoch"}),
    "a plateau watching what is not logged": lambda self: plateau(self, {"monitor": "nothing"}),
    "an unknown interval": lambda self: step_lr(self, {"interval": "hour"}),
    "no scheduler in the config": lambda self: {
        "optimizer": optimizer_of(self),
        "lr_scheduler": {"interval": "step"},
    },
    "a scheduler of another optimizer": (
        lambda self: (
            [optimizer_of(self)] and ([optimizer_of(self)], [step_lr(self, {})["lr_scheduler"]])
        )
    ),
    "a scheduler without state": lambda self: {
        "optimizer": optimizer_of(self),
        "lr_scheduler": object(),
    },
}


def step_lr(self: Any, config: dict[str, Any]) -> Any:
    optimizer = optimizer_of(self)
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1), **config},
    }


def plateau(self: Any, config: dict[str, Any]) -> Any:
    optimizer = optimizer_of(self)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler, **config} if config else scheduler,
    }


@errors
@pytest.mark.parametrize("what", CONFIGURE)
def test_what_configure_optimizers_may_not_return(pl: Any, tmp_path: Path, what: str) -> Any:
    trainer(pl, tmp_path).fit(
        changed(pl, configure_optimizers=CONFIGURE[what]), loader(1), loader(1)
    )


@errors
@pytest.mark.parametrize("arguments", [{"gradient_clip_val": 1.0}, {"accumulate_grad_batches": 2}])
def test_arguments_that_manual_optimization_ignores(
    pl: Any, tmp_path: Path, arguments: dict[str, Any]
) -> Any:
    model = model_class(pl)()
    model.automatic_optimization = False
    trainer(pl, tmp_path, **arguments).fit(model, loader(1))


@errors
def test_manual_backward_in_automatic_optimization(pl: Any, tmp_path: Path) -> Any:
    model = changed(
        pl, training_step=lambda self, batch, batch_idx: self.manual_backward(self.loss(batch))
    )
    trainer(pl, tmp_path).fit(model, loader(1))


@errors
@pytest.mark.parametrize(
    "arguments",
    [
        {"gradient_clip_val": 0.5},
        {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"},
        {"gradient_clip_algorithm": "x"},
    ],
)
def test_clipping_that_disagrees_with_the_trainer(
    pl: Any, tmp_path: Path, arguments: dict[str, Any]
) -> Any:
    def configure_gradient_clipping(self: Any, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        self.clip_gradients(optimizer, **arguments)

    model = changed(pl, configure_gradient_clipping=configure_gradient_clipping)
    trainer(pl, tmp_path, gradient_clip_val=1.0, gradient_clip_algorithm="norm").fit(
        model, loader(1)
    )


@errors
def test_a_closure_that_cannot_be_called(pl: Any, tmp_path: Path) -> Any:
    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        self.optimizers().step(closure=3)

    model = changed(pl, training_step=training_step)
    model.automatic_optimization = False
    trainer(pl, tmp_path).fit(model, loader(1))


# ---- log ----

LOGS: dict[str, Callable[[Any], Any]] = {
    "two elements": lambda self: self.log("x", torch.ones(2)),
    "a string": lambda self: self.log("x", "y"),
    "None": lambda self: self.log("x", None),
    "a dict": lambda self: self.log("x", {"y": 1.0}),
    "a nested dict": lambda self: self.log_dict({"x": {"y": 1.0}}),
    "nothing on": lambda self: self.log("x", 1.0, on_step=False, on_epoch=False),
    "an unknown reduction": lambda self: self.log("x", 1.0, on_epoch=True, reduce_fx="median"),
    "a reduction of one's own": lambda self: self.log(
        "x", 1.0, on_epoch=True, reduce_fx=torch.median
    ),
    "twice": lambda self: (self.log("x", 1.0), self.log("x", 1.0, prog_bar=True)),
    "a slashed index": lambda self: self.log("x/dataloader_idx_0", 1.0),
    "a new metric in each batch": lambda self: self.log("x", torchmetrics.MeanMetric()),
}


@errors
@pytest.mark.parametrize("what", LOGS)
def test_what_cannot_be_logged(pl: Any, tmp_path: Path, what: str) -> Any:
    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        LOGS[what](self)
        return self.loss(batch)

    trainer(pl, tmp_path).fit(changed(pl, training_step=training_step), loader(2))


@errors
@pytest.mark.parametrize(
    "hook",
    [
        "setup",
        "teardown",
        "on_fit_start",
        "on_fit_end",
        "on_train_end",
        "on_validation_end",
        "on_save_checkpoint",
        "configure_optimizers",
        "configure_callbacks",
        "configure_model",
        "prepare_data",
        "train_dataloader",
        "on_before_batch_transfer",
        "transfer_batch_to_device",
        "on_validation_model_eval",
        "on_validation_model_zero_grad",
    ],
)
def test_where_nothing_can_be_logged(pl: Any, tmp_path: Path, hook: str) -> Any:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.log("x", 1.0)
        return getattr(model_class(pl), hook)(self, *args, **kwargs)

    model = changed(pl, **{hook: method})
    data = {} if hook == "train_dataloader" else {"train_dataloaders": loader(1)}
    trainer(pl, tmp_path, enable_checkpointing=True).fit(model, val_dataloaders=loader(1), **data)


@errors
@pytest.mark.parametrize(
    "hook", ["on_predict_start", "predict_step", "on_predict_batch_end", "on_predict_epoch_end"]
)
def test_prediction_logs_nothing(pl: Any, tmp_path: Path, hook: str) -> Any:
    model = changed(pl, **{hook: lambda self, *args, **kwargs: self.log("x", 1.0)})
    trainer(pl, tmp_path).predict(model, loader(1))


@errors
@pytest.mark.parametrize(
    "hook",
    ["on_train_start", "on_train_epoch_start", "on_train_epoch_end", "on_validation_epoch_end"],
)
def test_no_step_values_around_an_epoch(pl: Any, tmp_path: Path, hook: str) -> Any:
    model = changed(pl, **{hook: lambda self: self.log("x", 1.0, on_step=True)})
    trainer(pl, tmp_path).fit(model, loader(1), loader(1))


# ---- hyperparameters and checkpoints ----


@errors
@pytest.mark.parametrize("given", [3, 2.5, True])
def test_hyperparameters_that_are_none(pl: Any, tmp_path: Path, given: Any) -> Any:
    class Net(model_class(pl)):  # type: ignore[misc]
        def __init__(self, x: Any = 1) -> None:
            super().__init__()
            self.save_hyperparameters(given)

    Net()


@errors
def test_hyperparameters_that_contradict_each_other(pl: Any, tmp_path: Path) -> Any:
    class Net(model_class(pl)):  # type: ignore[misc]
        def __init__(self, lr: float = 0.1) -> None:
            super().__init__()
            self.save_hyperparameters()

    class Data(pl.LightningDataModule):  # type: ignore[misc]
        def __init__(self, lr: float = 0.2) -> None:
            super().__init__()
            self.save_hyperparameters()

        def train_dataloader(self) -> Any:
            return loader(1)

    trainer(pl, tmp_path, logger=True).fit(Net(), datamodule=Data())


@errors
@pytest.mark.parametrize("ckpt_path", ["nowhere.ckpt", "best"])
@pytest.mark.parametrize("fn", ["fit", "validate"])
def test_a_missing_checkpoint(pl: Any, tmp_path: Path, ckpt_path: str, fn: str) -> Any:
    getattr(trainer(pl, tmp_path), fn)(model_class(pl)(), loader(1), ckpt_path=ckpt_path)


@errors
@pytest.mark.parametrize("what", ["garbage", "weights only", "other weights", "more optimizers"])
def test_a_checkpoint_that_does_not_fit(pl: Any, tmp_path: Path, what: str) -> Any:
    path = tmp_path / "one.ckpt"
    one = trainer(pl, tmp_path)
    one.fit(model_class(pl)(), loader(1))
    one.save_checkpoint(path, weights_only=what == "weights only")
    if what == "garbage":
        path.write_bytes(path.read_bytes()[:500])
    model = model_class(pl)()
    if what == "other weights":
        model.layer = torch.nn.Linear(4, 2)
    if what == "more optimizers":
        model = changed(
            pl,
            configure_optimizers=lambda self: [
                torch.optim.SGD([p], lr=0.1) for p in self.parameters()
            ],
        )
        model.automatic_optimization = False
    trainer(pl, tmp_path).fit(model, loader(1), ckpt_path=path)


@errors
def test_two_callbacks_with_one_state_key(pl: Any, tmp_path: Path) -> Any:
    class Stateful(pl.Callback):  # type: ignore[misc]
        def state_dict(self) -> dict[str, Any]:
            return {"a": 1}

    trainer(pl, tmp_path, callbacks=[Stateful(), Stateful()]).fit(model_class(pl)(), loader(1))


@errors
def test_saving_before_there_is_anything(pl: Any, tmp_path: Path) -> Any:
    trainer(pl, tmp_path).save_checkpoint(tmp_path / "one.ckpt")


@errors
def test_load_from_checkpoint_of_an_instance(pl: Any, tmp_path: Path) -> Any:
    one, model = trainer(pl, tmp_path), model_class(pl)()
    one.fit(model, loader(1))
    one.save_checkpoint(tmp_path / "one.ckpt")
    model.load_from_checkpoint(tmp_path / "one.ckpt")
