"""Code as users write it.

What they set on a Trainer, read off it, hand to it and warn themselves with.
"""

from __future__ import annotations

import collections
import decimal
import fractions
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset

from tests.lazy import torchmetrics
from tests.parity.harness import (
    CALLBACK_HOOKS,
    Rows,
    Stream,
    describe,
    errors,
    exception_of,
    loader,
    model_class,
    parity,
    seen,
    traced_objects,
    trainer,
)

# ---- hooks ----


def keywords(hook: str, trace: list[Any]) -> Callable[..., None]:
    def called(self: Any, *args: Any, **kwargs: Any) -> None:
        trace.append([type(self).__name__, hook, len(args), sorted(kwargs)])

    return called


@parity
def test_what_is_given_by_name(pl: Any, tmp_path: Path) -> Any:
    trace: list[Any] = []
    hooks = [hook for hook in CALLBACK_HOOKS if "state" not in hook]
    watch = type("Watch", (pl.Callback,), {hook: keywords(hook, trace) for hook in hooks})
    own = [
        "setup",
        "teardown",
        "configure_gradient_clipping",
        "prepare_data",
        "on_train_batch_end",
        "on_validation_batch_end",
        "lr_scheduler_step",
    ]

    class Net(type("Watched", (model_class(pl),), {hook: keywords(hook, trace) for hook in own})):  # type: ignore[misc]
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return [optimizer], [lr_scheduler.StepLR(optimizer, 1)]

    data = type(
        "Data",
        (pl.LightningDataModule,),
        {hook: keywords(hook, trace) for hook in ("setup", "teardown", "prepare_data")},
    )()
    data.train_dataloader = data.val_dataloader = data.predict_dataloader = lambda: loader(2)
    one, model = trainer(pl, tmp_path, callbacks=[watch()], gradient_clip_val=0.1), Net()
    one.fit(model, datamodule=data)
    one.validate(model, datamodule=data, verbose=False)
    one.predict(model, datamodule=data)
    return {"trace": trace}


@parity
def test_where_it_is_in_every_hook(pl: Any, tmp_path: Path) -> Any:
    trace: list[Any] = []
    flags = [
        "sanity_checking",
        "training",
        "validating",
        "testing",
        "predicting",
        "evaluating",
        "is_last_batch",
        "global_step",
        "current_epoch",
    ]

    def note(hook: str) -> Callable[..., None]:
        def called(self: Any, trainer: Any, *args: Any, **kwargs: Any) -> None:
            state = trainer.state
            trace.append(
                [
                    hook,
                    *(getattr(trainer, flag) for flag in flags),
                    describe(state.stage),
                    describe(state.fn),
                    describe(state.status),
                ]
            )

        return called

    watch = type(
        "Watch",
        (pl.Callback,),
        {
            hook: note(hook)
            for hook in CALLBACK_HOOKS
            if "state" not in hook and hook != "on_load_checkpoint"
        },
    )
    one, model = trainer(pl, tmp_path, callbacks=[watch()], val_check_interval=2), model_class(pl)()
    one.fit(model, loader(4), loader(2))
    for fn in (one.validate, one.test, one.predict):
        fn(model, loader(1))
    return {"trace": trace}


HOOKS_THAT_FAIL = [
    "prepare_data",
    "setup",
    "configure_optimizers",
    "on_fit_start",
    "on_sanity_check_end",
    "on_validation_batch_end",
    "on_train_start",
    "training_step",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_train_epoch_end",
    "on_train_end",
    "on_fit_end",
    "teardown",
]


@parity
@pytest.mark.parametrize("hook", HOOKS_THAT_FAIL)
def test_what_is_seen_of_an_exception(pl: Any, tmp_path: Path, hook: str) -> Any:
    trace: list[Any] = []
    model, data, watch = traced_objects(pl, trace, train=loader(3), val=loader(2))

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OverflowError(hook)

    setattr(model if hasattr(model, hook) else watch, hook, fail)

    class Sees(pl.Callback):  # type: ignore[misc]
        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            state = trainer.state
            trace.append(
                [
                    describe(exception),
                    describe(state.stage),
                    describe(state.status),
                    trainer.training,
                    trainer.sanity_checking,
                ]
            )
            trace.append(
                [
                    dict(trainer.callback_metrics),
                    trainer.is_last_batch,
                    torch.is_grad_enabled(),
                    # Lightning leaves eval mode behind: see test_differences.py
                    pl_module.training or hook == "on_validation_batch_end",
                ]
            )

    one = trainer(pl, tmp_path, callbacks=[watch, Sees()], max_epochs=1)
    with pytest.raises(OverflowError):
        one.fit(model, datamodule=data)
    left = [
        describe(one.state.stage),
        describe(one.state.status),
        one.interrupted,
        one.training,
        one.current_epoch,
        one.global_step,
    ]
    return {"trace": trace, "left": left, "metrics": dict(one.callback_metrics)}


def calling_super(hook: str, trace: list[Any]) -> Callable[..., Any]:
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = getattr(super(type(self), self), hook)(*args, **kwargs)
        trace.append(
            [
                hook,
                describe(result) if not isinstance(result, dict) else sorted(result),
                self.training,
            ]
        )
        return result

    return called


OF_THE_MODULE = [
    "configure_callbacks",
    "prepare_data",
    "setup",
    "configure_model",
    "on_fit_start",
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
    "optimizer_step",
    "optimizer_zero_grad",
    "backward",
    "on_before_optimizer_step",
    "configure_gradient_clipping",
    "lr_scheduler_step",
    "on_validation_model_zero_grad",
    "on_validation_model_eval",
    "on_validation_model_train",
    "on_test_model_eval",
    "on_test_model_train",
    "on_predict_model_eval",
    "on_save_checkpoint",
    "on_validation_epoch_end",
    "on_train_epoch_end",
    "on_fit_end",
    "teardown",
]


@parity
@pytest.mark.parametrize(
    "hooks",
    [
        OF_THE_MODULE,
        ["on_validation_model_train"],
        ["on_test_model_train"],
        ["configure_callbacks"],
    ],
    ids=lambda hooks: hooks[-1],
)
def test_hooks_that_call_super(pl: Any, tmp_path: Path, hooks: list[str]) -> Any:
    trace: list[Any] = []

    class Net(model_class(pl)):  # type: ignore[misc]
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return [optimizer], [lr_scheduler.StepLR(optimizer, 1)]

    model = type("Calls", (Net,), {hook: calling_super(hook, trace) for hook in hooks})()
    one = trainer(pl, tmp_path, gradient_clip_val=0.1)
    one.fit(model, loader(2), loader(1))
    one.test(model, loader(1), verbose=False)
    found = [
        one.predict(model, loader(1)),
        {name: module.training for name, module in model.named_modules()},
    ]
    one.save_checkpoint(tmp_path / "one.ckpt")
    return {"trace": trace, "found": found, **seen(one, model)}


@parity
@pytest.mark.parametrize("how", ["in __init__", "in the class", "a property"])
def test_settings_of_a_module(pl: Any, tmp_path: Path, how: str) -> Any:
    class Net(model_class(pl)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            if how == "in __init__":
                self.automatic_optimization, self.example_input_array = False, torch.zeros(2, 4)

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

    if how == "in the class":
        Net.automatic_optimization, Net.example_input_array = False, torch.zeros(2, 4)
    elif how == "a property":
        Net.automatic_optimization, Net.example_input_array = (
            property(lambda self: False),
            property(lambda self: torch.zeros(2, 4)),
        )
    one, model = trainer(pl, tmp_path), Net()
    one.fit(model, loader(3), loader(1))
    return {"found": [model.automatic_optimization, model.example_input_array], **seen(one, model)}


@parity
def test_arguments_of_log_by_position(pl: Any, tmp_path: Path) -> Any:
    class Watch(pl.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, *args: Any) -> None:
            self.log("c", 1.0, True, True, False, True)
            self.log_dict({"d": 2.0}, True)

    class Net(model_class(pl)):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.loss(batch)
            self.log("a", loss, True, True, True, True, "max")
            self.log_dict({"b": loss}, True, False, False, True)
            return loss

    one = trainer(pl, tmp_path, callbacks=[Watch()], logger=True, log_every_n_steps=1)
    one.fit(Net(), loader(3))
    return seen(one)


# ---- what is set while it runs ----


@parity
def test_settings_that_change_with_an_epoch(pl: Any, tmp_path: Path) -> Any:
    class Changes(pl.Callback):  # type: ignore[misc]
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                (
                    trainer.accumulate_grad_batches,
                    trainer.gradient_clip_val,
                    trainer.limit_val_batches,
                ) = (2, 0.01, 1)
            if trainer.current_epoch == 2:
                trainer.optimizers = [torch.optim.Adam(pl_module.parameters(), lr=0.5)]
            if trainer.current_epoch == 3:
                trainer.optimizers = [torch.optim.LBFGS(pl_module.parameters(), lr=0.5, max_iter=2)]
                trainer.fit_loop.max_epochs = 5

    one, model = (
        trainer(
            pl, tmp_path, max_epochs=4, callbacks=[Changes()], logger=True, log_every_n_steps=1
        ),
        model_class(pl)(),
    )
    one.fit(model, loader(4), loader(3))
    return seen(one, model)


@parity
def test_accumulation_that_changes_within_an_epoch(pl: Any, tmp_path: Path) -> Any:
    found: list[Any] = []

    class Changes(pl.Callback):  # type: ignore[misc]
        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            found.append([trainer.global_step, outputs["loss"]])
            trainer.accumulate_grad_batches = {2: 2, 4: 1}.get(
                batch_idx, trainer.accumulate_grad_batches
            )

    one, model = trainer(pl, tmp_path, callbacks=[Changes()]), model_class(pl)()
    one.fit(model, loader(7))
    return {"found": found, "weights": model.state_dict()}


# ---- what is read off it ----


@parity
def test_what_is_left_after_several_jobs(pl: Any, tmp_path: Path) -> Any:
    one, model = trainer(pl, tmp_path), model_class(pl)()
    one.fit(model, loader(3), loader(2))
    optimizer = model.optimizers()
    found = [
        isinstance(optimizer, torch.optim.SGD),
        optimizer.param_groups[0]["lr"],
        model.lr_schedulers(),
    ]
    one.test(model, loader(4), verbose=False)
    one.predict(model, loader(5))
    found += [
        one.num_training_batches,
        one.num_val_batches,
        one.num_test_batches,
        one.num_predict_batches,
    ]
    return {
        "found": found,
        "gone": [
            one.train_dataloader is None,
            one.val_dataloaders is None,
            one.test_dataloaders is None,
        ],
    }


@parity
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"limit_train_batches": 0.5},
        {"reload_dataloaders_every_n_epochs": 1},
        {"accumulate_grad_batches": 2},
    ],
    ids=str,
)
def test_loaders_are_asked_for_once_however_early(
    pl: Any, tmp_path: Path, settings: dict[str, Any]
) -> Any:
    found: list[Any] = []

    class Net(model_class(pl)):  # type: ignore[misc]
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            steps = [
                self.trainer.estimated_stepping_batches,
                self.trainer.estimated_stepping_batches,
                self.trainer.num_training_batches,
            ]
            found.append(steps)
            return [optimizer], [
                {
                    "scheduler": lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps[0] + 1),
                    "interval": "step",
                }
            ]

        def train_dataloader(self) -> Any:
            found.append(["train", self.current_epoch])
            return loader(4)

        def val_dataloader(self) -> Any:
            found.append(["val", self.current_epoch])
            return loader(2)

    one, model = trainer(pl, tmp_path, **settings), Net()
    one.fit(model)
    left = seen(one, model)
    return {
        "found": found,
        **{name: left[name] for name in ("step", "epoch", "modes")},
        "rate": one.optimizers[0].param_groups[0]["lr"],
    }


@parity
def test_counters_by_their_private_names(pl: Any, tmp_path: Path) -> Any:
    found: list[Any] = []

    class Net(model_class(pl)):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loop = self.trainer.fit_loop
            found.append(
                [
                    loop.epoch_loop._batches_that_stepped,
                    loop.epoch_loop.batch_idx,
                    loop.epoch_loop.total_batch_idx,
                    loop.total_batch_idx,
                ]
            )
            return self.loss(batch)

    trainer(pl, tmp_path, accumulate_grad_batches=2).fit(Net(), loader(3))
    return {"found": found}


@parity
def test_gathering_numbers(pl: Any, tmp_path: Path) -> Any:
    found: list[Any] = []

    class Net(model_class(pl)):  # type: ignore[misc]
        def on_train_start(self) -> None:
            found.append(
                [
                    self.all_gather(one)
                    for one in (torch.ones(2), {"a": 1.5, "b": [2, True]}, np.arange(3.0), "text")
                ]
            )

    trainer(pl, tmp_path).fit(Net(), loader(1))
    return {"found": found, "fabric": Net().fabric}


@parity
@pytest.mark.parametrize("depth", [-1, 0, 1, 2])
def test_a_summary_of_a_model(pl: Any, tmp_path: Path, depth: int) -> Any:
    if pl.__name__ == "raylit":
        from raylit.utilities.model_summary import ModelSummary, summarize
    else:
        from lightning.pytorch.utilities.model_summary import ModelSummary, summarize

    model = model_class(pl)()
    model.body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
    model.example_input_array, model.layer.weight.requires_grad = torch.zeros(2, 4), False
    found = []
    for made in (ModelSummary(model, max_depth=depth), summarize(model, depth)):
        found.append(
            [made.layer_names, made.layer_types, made.in_sizes, made.out_sizes, made.param_nums]
        )
        found.append([made.total_parameters, made.trainable_parameters, made.total_training_modes])
    return {"found": found}


@parity
def test_the_text_of_a_datamodule(pl: Any, tmp_path: Path) -> Any:
    make = pl.LightningDataModule.from_datasets
    several = make([Rows(4), Rows(3)], [Rows(2)], test_dataset=Stream(2))
    return {
        "texts": [
            str(make(Rows(4), Rows(2), batch_size=2)),
            str(several),
            str(make(predict_dataset=Stream(4))),
            str(make()),
        ]
    }


# ---- what is logged ----


@parity
@pytest.mark.parametrize("reduce_fx", ["mean", "max"])
def test_numbers_of_all_kinds(pl: Any, tmp_path: Path, reduce_fx: str) -> Any:
    values = [
        3,
        True,
        np.float32(0.1),
        np.int64(7),
        decimal.Decimal("1.5"),
        fractions.Fraction(1, 3),
        torch.tensor(True),
        2**40 + 1,
        float("inf"),
    ]

    class Net(model_class(pl)):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            for number, value in enumerate(values):
                self.log(
                    f"value {number}",
                    value,
                    on_step=True,
                    on_epoch=True,
                    reduce_fx=reduce_fx,
                    prog_bar=True,
                )
            return self.loss(batch)

    one = trainer(pl, tmp_path, logger=True, log_every_n_steps=1)
    one.fit(Net(), loader(3, short=1))
    return seen(one)


@parity
@pytest.mark.parametrize(
    "kind", ["words first", "words last", "an iterable", "words only", "nested words"]
)
def test_the_size_of_a_batch_with_words(pl: Any, tmp_path: Path, kind: str) -> Any:
    sizes = [3, 2, 1]

    class Pairs:
        """As the batches of torch_geometric are: iterating gives names and values."""

        def __init__(self, x: Any) -> None:
            self.x = x

        def __iter__(self) -> Any:
            return iter([("x", self.x), ("name", "abcdefg")])

    def batch(size: int) -> Any:
        x, words = torch.ones(size, 4), ["ab", "abcde"]
        made = {
            "words first": {"text": words, "x": x},
            "words last": (x, words),
            "an iterable": Pairs(x),
            "words only": words,
        }
        return made.get(kind, [[words], {"x": x}])

    class Net(model_class(pl)):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.loss(torch.ones(1, 4))
            self.log("value", float(batch_idx), on_epoch=True)
            return loss

    one = trainer(pl, tmp_path, max_epochs=1)
    try:
        one.fit(
            Net(),
            DataLoader(
                [batch(size) for size in sizes], batch_size=None, collate_fn=lambda one: one
            ),
        )
    except exception_of(pl):
        return {"refused": True}
    return seen(one)


@parity
def test_one_value_synchronized_and_not(pl: Any, tmp_path: Path) -> Any:
    class Net(model_class(pl)):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.loss(batch)
            self.log("loss", loss, on_epoch=True, sync_dist=True)
            self.log("loss", 2 * loss.detach(), on_epoch=True)
            return loss

    one = trainer(pl, tmp_path, logger=True, log_every_n_steps=1)
    one.fit(Net(), loader(3))
    return seen(one)


@parity
def test_metrics_of_all_kinds(pl: Any, tmp_path: Path) -> Any:
    class Net(model_class(pl)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors = torchmetrics.MetricCollection(
                [torchmetrics.MeanSquaredError(), torchmetrics.MeanAbsoluteError()], prefix="train/"
            )
            self.val_errors = self.errors.clone(prefix="val/", postfix="_x")
            self.in_dict, self.in_list = (
                nn.ModuleDict({"m": torchmetrics.MeanMetric()}),
                nn.ModuleList([torchmetrics.SumMetric()]),
            )
            self.largest, self.best = torchmetrics.MaxMetric(), torchmetrics.MinMetric()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            out = self(batch)
            loss = (out - 1).square().mean()
            self.errors.update(out, torch.ones_like(out))
            self.log_dict(self.errors, on_step=False, on_epoch=True)
            self.in_dict["m"](loss)
            self.log("mean", self.in_dict["m"], metric_attribute="in_dict.m")
            self.in_list[0].update(loss)
            self.log("sum", self.in_list[0], on_step=False, on_epoch=True)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            out = self(batch)
            self.log_dict(self.val_errors(out, torch.ones_like(out)))
            self.largest.update(out.max())

        def on_validation_epoch_end(self) -> None:
            self.log_dict(
                {"largest": self.largest.compute(), "best": self.best(float(self.current_epoch))},
                prog_bar=True,
            )
            self.largest.reset()

    one = trainer(pl, tmp_path, logger=True, log_every_n_steps=1)
    one.fit(Net(), loader(3), loader(2))
    return seen(one)


# ---- data ----


@parity
@pytest.mark.parametrize("mode", ["min_size", "max_size", "max_size_cycle", "sequential"])
def test_a_combined_loader_by_itself(pl: Any, tmp_path: Path, mode: str) -> Any:
    combined = pl.utilities.CombinedLoader
    found: dict[str, Any] = {}
    kinds: dict[str, Any] = {
        "list": [range(3), range(10, 12)],
        "dict": {"a": range(2), "b": [7, 8, 9]},
        "nested": {"a": [range(2), range(3)], "b": (range(1),)},
        "one": range(3),
        "one is empty": [range(0), range(2)],
        "none": [],
        "words": [["a", "b"], ["c"]],
    }
    for name, iterables in kinds.items():
        made = combined(iterables, mode)
        found[name] = [list(made), len(made), list(made), made.limits]
    limited = combined([range(5), range(3)], mode)
    limited.limits = 2
    found["limits"] = limited.limits
    iter(limited)
    found["limited"] = len(limited)
    return found


@errors
def test_limits_for_other_loaders(pl: Any, tmp_path: Path) -> Any:
    pl.utilities.CombinedLoader([range(5), range(3)], "min_size").limits = [1]


@parity
@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("check", [1, 2])
def test_validation_data_asked_for_anew(pl: Any, tmp_path: Path, every: int, check: int) -> Any:
    asked: list[Any] = []

    class Net(model_class(pl)):  # type: ignore[misc]
        def train_dataloader(self) -> Any:
            asked.append(["train", self.current_epoch])
            return loader(3)

        def val_dataloader(self) -> Any:
            asked.append(["val", self.current_epoch, self.trainer.sanity_checking])
            return loader(2, seed=len(asked))

    model = Net()
    one = trainer(
        pl,
        tmp_path,
        max_epochs=6,
        reload_dataloaders_every_n_epochs=every,
        check_val_every_n_epoch=check,
    )
    one.fit(model)
    return {
        "asked": asked,
        **{
            name: value
            for name, value in seen(one).items()
            if name not in ("rng", "weights") and "metrics" not in name
        },
    }


@parity
@pytest.mark.parametrize(
    "kind", ["named", "positional", "only the batch", "keyword-only", "rest", "with a default"]
)
def test_signatures_of_user_steps(pl: Any, tmp_path: Path, kind: str) -> Any:
    got: list[Any] = []

    class Net(model_class(pl)):  # type: ignore[misc]
        def step(self, batch: Any, *what: Any) -> Any:
            got.append(list(what))
            return self.loss(batch)

    steps: dict[str, Callable[..., Any]] = {
        "named": lambda self, batch, batch_idx: self.step(batch, batch_idx),
        "positional": lambda self, x, i: self.step(x, i),
        "only the batch": lambda self, batch: self.step(batch),
        "keyword-only": lambda self, batch, *, batch_idx=9: self.step(batch, batch_idx),
        "rest": lambda self, batch, *rest: self.step(batch, *rest),
        "with a default": lambda self, batch, batch_idx=None, more=5: self.step(
            batch, batch_idx, more
        ),
    }
    for name in ("training_step", "validation_step", "test_step", "predict_step"):
        setattr(Net, name, steps[kind])
    one, model = trainer(pl, tmp_path, max_epochs=1), Net()
    one.fit(model, loader(2), loader(2))
    one.test(model, loader(1), verbose=False)
    return {"got": got, "predicted": one.predict(model, loader(1)), **seen(one, model)}


# ---- errors and warnings ----


@errors
@pytest.mark.parametrize("returned", [3.0, "loss", [torch.ones(1)]], ids=str)
def test_what_a_manual_training_step_may_not_return(pl: Any, tmp_path: Path, returned: Any) -> Any:
    class Net(model_class(pl)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return returned

    trainer(pl, tmp_path).fit(Net(), loader(1))


class Empty(Dataset[Any]):
    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> Any:
        raise IndexError


def fit(pl: Any, root: Path, model: Any, *data: Any, **arguments: Any) -> None:
    trainer(pl, root, max_epochs=1, **arguments).fit(model, *data)


MISTAKES: dict[str, Callable[[Any, Path], Any]] = {
    "nothing": lambda pl, root: fit(pl, root, model_class(pl)(), loader(1), loader(1)),
    "no validation data": lambda pl, root: fit(pl, root, model_class(pl)(), loader(1)),
    "no optimizer": lambda pl, root: fit(
        pl,
        root,
        type("No", (model_class(pl),), {"configure_optimizers": lambda self: None})(),
        loader(1),
        loader(1),
    ),
    "a shuffled validation": lambda pl, root: fit(
        pl, root, model_class(pl)(), loader(1), loader(1, shuffle=True)
    ),
    "a shuffled test": (
        lambda pl, root: trainer(pl, root).test(
            model_class(pl)(), loader(1, shuffle=True), verbose=False
        )
    ),
    "a shuffled training": lambda pl, root: fit(
        pl, root, model_class(pl)(), loader(1, shuffle=True), loader(1)
    ),
    "overfitting what is shuffled": lambda pl, root: fit(
        pl, root, model_class(pl)(), loader(1, shuffle=True), loader(1), overfit_batches=1
    ),
    "an empty loader": (
        lambda pl, root: trainer(pl, root).validate(
            model_class(pl)(), DataLoader(Empty()), verbose=False
        )
    ),
    "no loader": lambda pl, root: trainer(pl, root).validate(model_class(pl)(), [], verbose=False),
    "rarely logged": lambda pl, root: fit(
        pl, root, model_class(pl)(), loader(1), loader(1), logger=True
    ),
}


@parity
@pytest.mark.parametrize("mistake", MISTAKES)
def test_likely_mistakes_are_warned_of(pl: Any, tmp_path: Path, mistake: str) -> Any:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        MISTAKES[mistake](pl, tmp_path)
    told = [
        one
        for one in caught
        if issubclass(one.category, UserWarning) and "num_workers" not in str(one.message)
    ]
    return {"warned": bool(told)}


# ---- hyperparameters ----


@parity
@pytest.mark.parametrize("kind", ["yaml", "csv"])
def test_hyperparameters_of_a_file(pl: Any, tmp_path: Path, kind: str) -> Any:
    class Net(model_class(pl)):  # type: ignore[misc]
        def __init__(self, lr: float = 0.1, width: int = 3, name: Any = None) -> None:
            super().__init__()
            self.save_hyperparameters()

        def on_load_checkpoint(self, checkpoint: Any) -> None:
            found.append(dict(checkpoint["hyper_parameters"]))

    found: list[Any] = []
    one = trainer(pl, tmp_path, max_epochs=1)
    one.fit(model_class(pl)(), loader(1))
    one.save_checkpoint(tmp_path / "one.ckpt")
    path = tmp_path / f"hparams.{kind}"
    path.write_text(
        yaml.safe_dump({"lr": 0.9, "width": 8, "name": "a b"})
        if kind == "yaml"
        else "key,value\nlr,0.9\nwidth,8\nname,a b\n"
    )
    loaded = [
        Net.load_from_checkpoint(tmp_path / "one.ckpt", hparams_file=str(path), **more)
        for more in ({}, {"width": 9})
    ]
    return {"hparams": [dict(one.hparams) for one in loaded], "found": found}


@errors
def test_hyperparameters_of_another_kind_of_file(pl: Any, tmp_path: Path) -> Any:
    one = trainer(pl, tmp_path, max_epochs=1)
    one.fit(model_class(pl)(), loader(1))
    one.save_checkpoint(tmp_path / "one.ckpt")
    (tmp_path / "hparams.txt").write_text("lr: 1")
    model_class(pl).load_from_checkpoint(
        tmp_path / "one.ckpt", hparams_file=str(tmp_path / "hparams.txt")
    )


@parity
def test_modes_of_parts_that_are_frozen(pl: Any, tmp_path: Path) -> Any:
    trace: list[Any] = []
    Note = collections.namedtuple("Note", "where whole frozen dropout grad inference")

    class Net(model_class(pl)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.frozen = nn.Sequential(nn.Linear(1, 1), nn.Dropout()).eval()

        def note(self, where: str) -> None:
            flags = (
                self.training,
                self.frozen.training,
                self.dropout.training,
                torch.is_grad_enabled(),
                torch.is_inference_mode_enabled(),
            )
            trace.append(list(Note(where, *flags)))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.note("training")
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            self.note("validation")

        def on_validation_end(self) -> None:
            self.note("validation end")

        def on_train_epoch_start(self) -> None:
            self.note("epoch")
            if self.current_epoch == 1:
                self.dropout.eval()

        def on_fit_end(self) -> None:
            self.note("fit end")

        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            self.note("predict")
            return self(batch)

    one, model = trainer(pl, tmp_path, max_epochs=3), Net()
    one.fit(model, loader(2), loader(1))
    one.validate(model, loader(1), verbose=False)
    model.train()
    one.predict(model, loader(1))
    return {"trace": trace, **seen(one, model)}
