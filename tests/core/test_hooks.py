from __future__ import annotations

import inspect
from typing import Any

import pytest

from raylit import Callback, LightningDataModule, LightningModule
from raylit.callbacks import EarlyStopping, ModelCheckpoint
from raylit.core.hooks import AFTER_MODULE, HOOKS, is_overridden, resolve

OWNERS = {"C": Callback, "M": LightningModule, "D": LightningDataModule}


@pytest.mark.parametrize(
    "name", [name for name, hook in HOOKS.items() if name not in ("clip_gradients",)]
)
def test_every_hook_of_the_table_is_there_to_be_overridden(name: str) -> None:
    for letter in HOOKS[name].owners:
        assert callable(getattr(OWNERS[letter], name, None)) or name == "on_exception", (
            f"{OWNERS[letter].__name__} has no {name}"
        )


@pytest.mark.parametrize("owner", [Callback, LightningModule])
def test_every_hook_that_can_be_overridden_is_in_the_table(owner: type) -> None:
    found = {name for name, _ in inspect.getmembers(owner, callable) if name.startswith("on_")}
    assert found - {"on_gpu"} <= set(HOOKS)


@pytest.mark.parametrize("letter", OWNERS)
def test_help_says_when_a_hook_is_called(letter: str) -> None:
    for name, hook in HOOKS.items():
        if letter in hook.owners and hasattr(OWNERS[letter], name):
            text = inspect.getdoc(getattr(OWNERS[letter], name)) or ""
            assert text[:1].isupper() and text.endswith((".", "}")), (name, text)
    text = Callback.on_train_batch_end.__doc__ or ""
    assert text.startswith("Called after each batch of training. What is logged in it counts by")


def test_only_what_is_overridden_is_called() -> None:
    calls: list[str] = []

    class Listens(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            calls.append(f"callback {trainer} {type(pl_module).__name__}")

    class Net(LightningModule):
        def on_train_start(self) -> None:
            calls.append("module")

    hooks = resolve("trainer", Net(), [Callback(), Listens()], LightningModule)
    assert {name for name, functions in hooks.items() if functions} == {"on_train_start"}
    for function in hooks["on_train_start"]:
        function()
    assert calls == ["callback trainer Net", "module"]


def test_callbacks_that_watch_metrics_come_after_the_module_at_the_end_of_an_epoch() -> None:
    class Late(EarlyStopping):
        pass

    class Other(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None: ...

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None: ...

    class Net(LightningModule):
        def on_train_epoch_end(self) -> None: ...

        def on_validation_end(self) -> None: ...

    callbacks = [Late("x"), Other(), ModelCheckpoint()]
    hooks = resolve(None, Net(), callbacks, LightningModule)

    def owners(name: str) -> list[str]:
        return [
            type(getattr(function, "func", function).__self__).__name__ for function in hooks[name]
        ]

    assert owners("on_train_epoch_end") == ["Other", "Net"]
    assert owners(AFTER_MODULE) == ["Late", "ModelCheckpoint"]
    assert owners("on_validation_end") == ["Late", "Other", "ModelCheckpoint", "Net"]


def test_a_hook_set_on_the_object_is_overridden_too() -> None:
    module = LightningModule()
    assert not is_overridden("on_train_start", module, LightningModule)
    module.on_train_start = lambda: None  # type: ignore[method-assign]
    assert is_overridden("on_train_start", module, LightningModule)
    assert not is_overridden("no_such_hook", module, LightningModule)
