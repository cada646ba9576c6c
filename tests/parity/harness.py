"""The same user code under Lightning and under raylit.

A scenario is a function `scenario(pl, tmp_path)`, where `pl` is `lightning.pytorch` or `raylit`,
that returns plain data: what a user of the package could see. `@parity` makes a test of it that
runs it with both and wants equal results, bit for bit. `@errors` makes one that wants both to
raise.
"""

from __future__ import annotations

import copy
import csv
import difflib
import functools
import inspect
import logging
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import raylit
from tests.lazy import lightning
from tests.quiet import BARE

Scenario = Callable[..., Any]
# ---- running and comparing ----


def run(scenario: Scenario, pl: Any, tmp_path: Path, **arguments: Any) -> Any:
    """Run a scenario with one package, in a folder and with random states of its own.

    Returns its result as plain data.
    """
    root = tmp_path / pl.__name__.split(".")[0]
    root.mkdir(exist_ok=True)
    with quiet():
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        return plain(scenario(pl, root, **arguments), root)


def parity(scenario: Scenario) -> Callable[..., None]:
    """Make a test of a scenario: both packages give the same."""

    def test(tmp_path: Path, **arguments: Any) -> None:
        theirs = run(scenario, lightning.pytorch, tmp_path, **arguments)
        ours = run(scenario, raylit, tmp_path, **arguments)
        assert theirs, "a scenario that returns nothing compares nothing"
        if ours != theirs:
            pytest.fail("\n".join(differences(theirs, ours)), pytrace=False)

    return _as_test(scenario, test)


def differences(theirs: Any, ours: Any, where: str = "") -> Iterator[str]:
    """Tell where two results differ: `-` is Lightning's, `+` raylit's."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in [*theirs, *(key for key in ours if key not in theirs)]:
            if key not in ours or key not in theirs:
                value = theirs.get(key, ours.get(key))
                yield (
                    f"{where}/{key}: only {'Lightning' if key in theirs else 'raylit'} has it:"
                    f" {str(value)[:200]}"
                )
            elif theirs[key] != ours[key]:
                yield from differences(theirs[key], ours[key], f"{where}/{key}")
    elif (
        isinstance(theirs, list)
        and isinstance(ours, list)
        and len(theirs) == len(ours)
        and isinstance(theirs[0], (dict, list))
    ):
        for number, (one, other) in enumerate(zip(theirs, ours, strict=True)):
            if one != other:
                yield from differences(one, other, f"{where}/{number}")
    elif isinstance(theirs, list) and isinstance(ours, list):
        changes = difflib.unified_diff(
            [str(one) for one in theirs], [str(one) for one in ours], n=2, lineterm=""
        )
        yield from (f"{where}: {line[:200]}" for line in changes)
    else:
        yield f"{where}: - {str(theirs)[:200]}"
        yield f"{where}: + {str(ours)[:200]}"


def errors(scenario: Scenario) -> Callable[..., None]:
    """Make a test of a scenario.

    It is an error in both, of a kind that both know (MisconfigurationException is raylit's
    ConfigError).
    """

    def test(tmp_path: Path, **arguments: Any) -> None:
        with pytest.raises(Exception) as theirs:
            run(scenario, lightning.pytorch, tmp_path, **arguments)
        with pytest.raises(
            (raylit.errors.RaylitError, TypeError, ValueError, RuntimeError, KeyError)
        ) as ours:
            run(scenario, raylit, tmp_path, **arguments)
        assert str(ours.value).strip(), f"Lightning says: {theirs.value}"

    return _as_test(scenario, test)


def _as_test(scenario: Scenario, test: Callable[..., None]) -> Callable[..., None]:
    """Give `test` the name, text, marks and parameters of the scenario, without `pl`."""
    functools.update_wrapper(test, scenario)
    del test.__wrapped__  # type: ignore[attr-defined]
    parameters = [
        parameter
        for name, parameter in inspect.signature(scenario).parameters.items()
        if name != "pl"
    ]
    test.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return test


@contextmanager
def quiet() -> Iterator[None]:
    """Within, neither package says anything.

    Nothing that a test sets for the whole process remains.
    """
    loggers = [
        logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "raylit")
    ]
    levels = [logger.level for logger in loggers]
    environment, grad, dtype = dict(os.environ), torch.is_grad_enabled(), torch.get_default_dtype()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        torch.set_grad_enabled(grad)
        torch.set_default_dtype(dtype)
        os.environ.clear()
        os.environ.update(environment)


def plain(value: Any, root: Path) -> Any:
    """Return `value` so that == compares all of it.

    Tensors by type and every bit, NaN equal to itself, paths without the root folder.
    """
    if isinstance(value, Tensor):
        return (str(value.dtype), tuple(value.shape), plain(value.detach().cpu().tolist(), root))
    if isinstance(value, float):
        return "nan" if value != value else value
    if isinstance(value, (str, Path)):
        return str(value).replace(str(root), "ROOT")
    if isinstance(value, Mapping):
        return {plain(key, root): plain(item, root) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, root) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value


def packages() -> list[Any]:
    """Both packages, Lightning first."""
    return [lightning.pytorch, raylit]


def exception_of(pl: Any) -> type[Exception]:
    """The error for what was put together wrongly."""
    return (
        pl.utilities.exceptions.MisconfigurationException
        if pl is lightning.pytorch
        else raylit.errors.ConfigError
    )


# ---- data ----


class Rows(Dataset[Tensor]):
    """So many rows of 4 numbers, always the same."""

    def __init__(self, length: int, seed: int = 0, width: int = 4) -> None:
        self.data = torch.randn(length, width, generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Tensor:
        return self.data[index]


class Stream(torch.utils.data.IterableDataset[Tensor]):
    """The same rows without a length."""

    def __init__(self, length: int, seed: int = 0) -> None:
        self.rows = Rows(length, seed)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.rows.data)


def loader(
    batches: int = 4, *, size: int = 2, short: int = 0, seed: int = 0, **arguments: Any
) -> DataLoader[Tensor]:
    """A loader of so many batches of `size` rows; `short` rows are missing from the last."""
    return DataLoader(Rows(batches * size - short, seed), batch_size=size, **arguments)


def stream(batches: int = 4, *, size: int = 2, seed: int = 0) -> DataLoader[Tensor]:
    """A loader without a length."""
    return DataLoader(Stream(batches * size, seed), batch_size=size)


# ---- models ----


@functools.cache
def model_class(pl: Any) -> Any:
    """The class of a small model of that package with all four steps that logs its losses."""

    class Net(pl.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self, **log_arguments: Any) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)
            self.dropout = nn.Dropout(0.25)
            self.log_arguments = log_arguments

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(self.dropout(x))
            return out

        def loss(self, batch: Tensor) -> Tensor:
            return (self(batch) - 1).square().mean()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.loss(batch)
            self.log("train_loss", loss, **self.log_arguments)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("val_loss", self.loss(batch), **self.log_arguments)

        def test_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("test_loss", self.loss(batch))

        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return self(batch)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    return Net


def trainer(pl: Any, root: Path, **arguments: Any) -> Any:
    """A quiet Trainer; without loggers and checkpoints unless asked for."""
    if arguments.get("logger") is True:
        arguments["logger"] = pl.loggers.CSVLogger(root, name="logs", version="0")
    given = {
        "max_epochs": 2,
        "default_root_dir": root,
        **BARE,
        **arguments,
    }
    if any(
        isinstance(callback, pl.callbacks.Checkpoint)
        for callback in _as_list(given.get("callbacks"))
    ):
        del given["enable_checkpointing"]
    return pl.Trainer(**given)


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


# ---- what there is to see ----


def seen(trainer: Any, model: Any = None) -> dict[str, Any]:
    """What a run left: counters, metrics, weights, optimizers, and the rows of a CSVLogger."""
    model = model if model is not None else trainer.lightning_module
    found = {
        "epoch": trainer.current_epoch,
        "step": trainer.global_step,
        "callback_metrics": dict(trainer.callback_metrics),
        "logged_metrics": dict(trainer.logged_metrics),
        "progress_bar_metrics": dict(trainer.progress_bar_metrics),
        "weights": copy.deepcopy(model.state_dict()),
        "modes": {name: module.training for name, module in model.named_modules()},
        "requires_grad": {
            name: parameter.requires_grad for name, parameter in model.named_parameters()
        },
        "should_stop": trainer.should_stop,
        "rng": torch.rand(1),
        "rows": rows(trainer),
    }
    return found


def seen_after(trainer: Any, *more: str) -> dict[str, Any]:
    """What is seen of a fit that went on.

    Lightning does not bring back random states, nor what was logged before.
    """
    return {name: value for name, value in seen(trainer).items() if name not in ("rng", *more)}


def rows(trainer: Any) -> list[dict[str, str]]:
    """The rows of the CSV file of a run, without empty cells."""
    logger = trainer.logger
    # A trial run has a logger without a name
    path = Path(logger.log_dir) / "metrics.csv" if logger is not None and logger.name else None
    if path is None or not path.exists():
        return []
    with path.open() as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


def files(root: Path, pattern: str = "**/*.ckpt") -> list[str]:
    """Names of the files below `root`."""
    return sorted(str(path.relative_to(root)) for path in root.glob(pattern))


# ---- traces of hooks ----

_STAGES = ("train", "validation", "test", "predict")
_AROUND = [
    f"on_{stage}_{when}"
    for stage in _STAGES
    for when in ("start", "end", "epoch_start", "epoch_end", "batch_start", "batch_end")
]
_STEP = [
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
]
_SAVING = ["on_save_checkpoint", "on_load_checkpoint"]
_TRANSFER = ["on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"]
_LOADERS = ["train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader"]
CALLBACK_HOOKS = [
    *_AROUND,
    *_STEP,
    *_SAVING,
    "setup",
    "teardown",
    "on_fit_start",
    "on_fit_end",
    "on_sanity_check_start",
    "on_sanity_check_end",
    "on_exception",
    "state_dict",
    "load_state_dict",
]
MODULE_HOOKS = [
    *_AROUND,
    *_STEP,
    *_SAVING,
    *_TRANSFER,
    *_LOADERS,
    "setup",
    "teardown",
    "on_fit_start",
    "on_fit_end",
    "prepare_data",
    "configure_model",
    "configure_callbacks",
    "configure_optimizers",
    "training_step",
    "validation_step",
    "test_step",
    "predict_step",
    "forward",
    "backward",
    "optimizer_step",
    "optimizer_zero_grad",
    "lr_scheduler_step",
    "configure_gradient_clipping",
    "clip_gradients",
    "on_validation_model_zero_grad",
    "on_validation_model_eval",
    "on_test_model_eval",
    "on_predict_model_eval",
]
DATA_HOOKS = [
    *_TRANSFER,
    *_LOADERS,
    "prepare_data",
    "setup",
    "teardown",
    "on_exception",
    "state_dict",
    "load_state_dict",
]


def traced(cls: Any, hooks: list[str], owner: str, trace: list[Any]) -> Any:
    """Return a subclass that overrides each of `hooks`.

    It notes the call in `trace` and goes on as `cls` does.
    """

    def override(name: str) -> Any:
        base = getattr(cls, name)

        def hook(self: Any, *args: Any, **kwargs: Any) -> Any:
            trace.append(
                (
                    owner,
                    name,
                    *(describe(one) for one in args),
                    *(describe(one) for one in kwargs.values()),
                )
            )
            return base(self, *args, **kwargs)

        # not functools.wraps: Lightning looks through it and would find that nothing was overridden
        hook.__name__, hook.__signature__ = name, inspect.signature(base)  # type: ignore[attr-defined]
        return hook

    return type(
        cls.__name__, (cls,), {name: override(name) for name in hooks if hasattr(cls, name)}
    )


def describe(value: Any) -> Any:
    """Tell what an argument is, in words that hold for both packages."""
    if isinstance(value, Tensor):
        return f"tensor{tuple(value.shape)}"
    if isinstance(value, torch.optim.Optimizer):
        return "optimizer"
    if isinstance(value, nn.Module):
        return "module"
    if type(value).__name__ == "Trainer":
        return "trainer"
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    if isinstance(value, dict):
        return (
            {key: describe(item) for key, item in value.items()}
            if "state_dict" not in value
            else "checkpoint"
        )
    if isinstance(value, Enum):
        return value.value
    if callable(value):
        return "function"
    return value if isinstance(value, (int, float, str, type(None))) else type(value).__name__


def traced_objects(
    pl: Any, trace: list[Any], model: Any = None, **data: Any
) -> tuple[Any, Any, Any]:
    """Return a model, a datamodule and a callback that note every hook in `trace`.

    Args:
        pl: the package.
        trace: filled with (owner, hook, what its arguments are).
        model: class of the model.
        data: what the datamodule's loader hooks return, by stage.
    """

    class Data(pl.LightningDataModule):  # type: ignore[misc,name-defined]
        def state_dict(self) -> dict[str, Any]:
            return {"data": 1}

    class Watch(pl.Callback):  # type: ignore[misc,name-defined]
        def state_dict(self) -> dict[str, Any]:
            return {"watch": 1}

    datamodule = traced(
        Data, [hook for hook in DATA_HOOKS if hook not in _LOADERS], "data", trace
    )()
    for stage, given in data.items():

        def give(stage: str = stage, given: Any = given) -> Any:
            trace.append(("data", f"{stage}_dataloader"))
            return given

        setattr(datamodule, f"{stage}_dataloader", give)
    module = traced(
        model or model_class(pl),
        [hook for hook in MODULE_HOOKS if hook not in _LOADERS],
        "module",
        trace,
    )()
    return module, datamodule, traced(Watch, CALLBACK_HOOKS, "callback", trace)()
