"""What OnExceptionCheckpoint saves, when it is found and when it goes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.parity.harness import errors, files, loader, model_class, parity, seen, trainer


def failing(pl: Any, hook: str, epoch: int = 1) -> Any:
    """A model that raises in one hook of an epoch, until it is told not to."""
    base = model_class(pl)

    def method(self: Any, *args: Any) -> Any:
        if self.fails and self.current_epoch == epoch and (args[2:3] != (0,)):
            raise OverflowError(hook)
        return getattr(base, hook)(self, *args)

    model = type("Fails", (base,), {hook: method, "fails": True})()
    model.dropout.p = 0.0
    return model


@parity
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_epoch_end"])
def test_a_later_fit_goes_on_from_it(pl: Any, tmp_path: Path, hook: str) -> Any:
    # after an exception in validation Lightning trains on in eval mode: see test_differences.py
    compared = ["epoch", "step"] if "validation" in hook else ["epoch", "step", "modes"]

    def fit(model: Any) -> Any:
        callback = pl.callbacks.OnExceptionCheckpoint(tmp_path / "saved", "failed")
        one = trainer(pl, tmp_path, callbacks=[callback], max_epochs=3)
        try:
            one.fit(model, loader(4), loader(2, seed=1))
        except OverflowError as error:
            return [str(error), files(tmp_path), callback.ckpt_path, one.global_step]
        return [
            files(tmp_path),
            {key: value for key, value in seen(one, model).items() if key in compared},
        ]

    model = failing(pl, hook)
    found = [fit(model)]
    model.fails = False
    return [*found, *fit(model)]


@parity
def test_a_newer_last_is_taken(pl: Any, tmp_path: Path) -> Any:
    found = []
    for newer in ("last", "on_exception"):
        root = tmp_path / newer
        savers = [
            pl.callbacks.OnExceptionCheckpoint(root),
            pl.callbacks.ModelCheckpoint(root / "kept", save_last=True),
        ]
        one = trainer(pl, root, callbacks=savers, max_epochs=3)
        model = failing(pl, "on_train_batch_end", epoch=2)
        with pytest.raises(OverflowError):
            one.fit(model, loader(4))
        os.utime(root / "kept" / "last.ckpt", (4e9, 4e9) if newer == "last" else (1, 1))
        model.fails = False
        other = trainer(
            pl,
            root,
            callbacks=[
                pl.callbacks.OnExceptionCheckpoint(root),
                pl.callbacks.ModelCheckpoint(root / "kept", save_last=True),
            ],
            max_epochs=3,
        )
        other.fit(model, loader(4))
        found.append([other.ckpt_path, other.global_step, files(root)])
    return found


@parity
def test_it_starts_anew_without_one(pl: Any, tmp_path: Path) -> Any:
    one = trainer(pl, tmp_path, callbacks=[pl.callbacks.OnExceptionCheckpoint(tmp_path)])
    one.fit(model_class(pl)(), loader(3))
    return [seen(one), one.ckpt_path]


@parity
def test_validation_does_not_take_it(pl: Any, tmp_path: Path) -> Any:
    callback = pl.callbacks.OnExceptionCheckpoint(tmp_path)
    model = failing(pl, "on_train_batch_end")
    with pytest.raises(OverflowError):
        trainer(pl, tmp_path, callbacks=[callback]).fit(model, loader(3))
    one = trainer(pl, tmp_path, callbacks=[callback])
    return [one.validate(model_class(pl)(), loader(2), verbose=False), one.ckpt_path]


@errors
def test_no_name(pl: Any, tmp_path: Path) -> Any:
    pl.callbacks.OnExceptionCheckpoint(".", "")
