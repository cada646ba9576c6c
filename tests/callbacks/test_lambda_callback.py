from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

import raylit as pl
from raylit.callbacks import Callback, LambdaCallback
from raylit.errors import ConfigError
from tests.callbacks.both import batches, both, scripted
from tests.lazy import lightning
from tests.quiet import BARE, UNLOGGED


def test_each_event_is_called_as_in_lightning(tmp_path: Path) -> None:
    theirs = inspect.signature(lightning.pytorch.callbacks.LambdaCallback.__init__)
    names = [name for name in theirs.parameters if name != "self"]

    def scenario(framework: Any, root: Path) -> list[Any]:
        calls: list[Any] = []

        def record(name: str) -> Any:
            return lambda trainer, module, *args, **kwargs: calls.append(
                (name, type(trainer).__name__, len(args) + len(kwargs))
            )

        callback = framework.callbacks.LambdaCallback(**{name: record(name) for name in names})
        trainer = framework.Trainer(
            **UNLOGGED, max_epochs=2, callbacks=callback, default_root_dir=root
        )
        model = scripted(framework, [0.5] * 9)
        trainer.fit(model, batches(2), batches(1))
        trainer.validate(model, batches(1), verbose=False)
        return calls

    ours, lightnings = both(scenario, tmp_path)
    assert len(ours) > 50
    assert ours == lightnings


def test_what_is_none_is_left_out() -> None:
    callback = LambdaCallback(on_fit_start=None)
    assert "on_fit_start" not in vars(callback)
    assert type(callback).on_fit_start is Callback.on_fit_start


def test_a_name_that_is_no_event() -> None:
    with pytest.raises(ConfigError, match=r"on_epoch_ende=.*Did you mean"):
        LambdaCallback(on_epoch_ende=print)
    with pytest.raises(ConfigError, match="training_step"):
        LambdaCallback(training_step=print)


def test_an_exception_ends_the_run() -> None:
    def fail(trainer: Any, module: Any) -> None:
        raise ZeroDivisionError

    seen: list[BaseException] = []
    callback = LambdaCallback(
        on_train_start=fail, on_exception=lambda trainer, module, error: seen.append(error)
    )
    with pytest.raises(ZeroDivisionError) as raised:
        pl.Trainer(**BARE, max_epochs=1, callbacks=callback).fit(scripted(pl), batches(1))  # type: ignore[arg-type]
    assert seen == [raised.value]
