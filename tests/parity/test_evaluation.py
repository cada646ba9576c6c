"""validate, test and predict: what they return, with what they run, how they leave the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity.harness import files, loader, model_class, parity, seen, stream, trainer


def noticing(pl: Any) -> Any:
    """A model that notes, in every step, the modes of its parts and what of autograd is on."""

    class Notices(model_class(pl)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.frozen = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(4, 4)).eval()
            self.frozen.requires_grad_(False)
            self.found: list[Any] = []

        def note(self, where: str) -> None:
            modes = [
                self.training,
                self.layer.training,
                self.frozen.training,
                self.frozen[0].training,
            ]
            self.found.append(
                [where, modes, torch.is_grad_enabled(), torch.is_inference_mode_enabled()]
            )

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.note("train")
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            self.note("validation")

        def test_step(self, batch: Any, batch_idx: int) -> Any:
            self.note("test")

        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            self.note("predict")
            return self(batch)

        def on_train_epoch_end(self) -> None:
            self.note("train epoch end")

        def on_validation_epoch_end(self) -> None:
            self.note("validation epoch end")

        def on_validation_end(self) -> None:
            self.note("validation end")

        def on_test_end(self) -> None:
            self.note("test end")

        def on_predict_end(self) -> None:
            self.note("predict end")

    return Notices()


@parity
@pytest.mark.parametrize("inference_mode", [True, False])
def test_modes_and_gradients(pl: Any, tmp_path: Path, inference_mode: bool) -> Any:
    model = noticing(pl)
    one = trainer(pl, tmp_path, inference_mode=inference_mode, max_epochs=1)
    with torch.no_grad():
        one.fit(model, loader(2), loader(1))
        model.note("between")
    for fn in ("validate", "test", "predict"):
        getattr(one, fn)(model, loader(1))
        model.note("between")
    return {"found": model.found, **seen(one, model)}


@parity
@pytest.mark.parametrize("fn", ["fit", "validate", "test"])
def test_a_module_that_says_how_it_goes_back_to_training(pl: Any, tmp_path: Path, fn: str) -> Any:
    class Says(model_class(pl)):  # type: ignore[misc]
        def on_validation_model_eval(self) -> None:
            self.layer.eval()

        def on_validation_model_train(self) -> None:
            self.dropout.eval()
            self.layer.train()

        on_test_model_eval, on_test_model_train = (
            on_validation_model_eval,
            on_validation_model_train,
        )

    one, model = trainer(pl, tmp_path), Says()
    one.fit(model, loader(2), loader(1)) if fn == "fit" else getattr(one, fn)(model, loader(1))
    return seen(one, model)


@parity
@pytest.mark.parametrize("stop", ["eval", "train"])
@pytest.mark.parametrize("fn", ["fit", "validate", "test", "predict"])
def test_the_modes_from_before_are_kept(pl: Any, tmp_path: Path, fn: str, stop: str) -> Any:
    one, model = trainer(pl, tmp_path), model_class(pl)()
    getattr(model, stop)()
    model.dropout.train(stop == "eval")
    one.fit(model, loader(2), loader(1)) if fn == "fit" else getattr(one, fn)(model, loader(1))
    return seen(one, model)


@parity
@pytest.mark.parametrize("fn", ["validate", "test", "predict"])
@pytest.mark.parametrize(
    ("data", "arguments"),
    [
        (lambda: loader(3, short=1), {}),
        (lambda: stream(3), {}),
        (lambda: [loader(2), loader(3)], {}),
        (lambda: {"a": loader(2), "b": stream(1)}, {}),
        (lambda: [loader(1)], {}),
        (
            lambda: loader(4),
            {"limit_val_batches": 2, "limit_test_batches": 3, "limit_predict_batches": 1},
        ),
        (
            lambda: loader(4),
            {"limit_val_batches": 0.5, "limit_test_batches": 0.25, "limit_predict_batches": 0.9},
        ),
        (
            lambda: [loader(4), loader(2)],
            {"limit_val_batches": 3, "limit_test_batches": 3, "limit_predict_batches": 3},
        ),
        (lambda: loader(4), {"fast_dev_run": 2}),
    ],
)
def test_what_is_returned(
    pl: Any, tmp_path: Path, fn: str, data: Any, arguments: dict[str, Any]
) -> Any:
    class Indexed(model_class(pl)):  # type: ignore[misc]
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            self.log("val_loss", self.loss(batch))

        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            self.log("test_loss", self.loss(batch))

        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return {"y": self(batch), "at": (batch_idx, dataloader_idx)}

    one = trainer(pl, tmp_path, **arguments)
    returned = getattr(one, fn)(Indexed(), data())
    numbers = [one.num_val_batches, one.num_test_batches, one.num_predict_batches]
    return {"returned": returned, "numbers": numbers, **seen(one)}


@parity
@pytest.mark.parametrize("signature", ["batch only", "batch_idx", "star", "keyword"])
@pytest.mark.parametrize("fn", ["validate", "test", "predict", "fit"])
def test_signatures_of_steps(pl: Any, tmp_path: Path, fn: str, signature: str) -> Any:
    found: list[Any] = []
    base = model_class(pl)

    def note(self: Any, batch: Any, *more: Any, **named: Any) -> Any:
        found.append([*more, sorted(named.items())])
        return self.loss(batch)

    steps: dict[str, Any] = {
        "batch only": lambda self, batch: note(self, batch),
        "batch_idx": lambda self, batch, batch_idx: note(self, batch, batch_idx),
        "star": lambda self, *args: note(self, *args),
        "keyword": lambda self, batch, batch_idx=7, other=8: note(self, batch, batch_idx, other),
    }
    names = ["training_step", "validation_step", "test_step", "predict_step"]
    model = type("Signed", (base,), dict.fromkeys(names, steps[signature]))()
    one = trainer(pl, tmp_path, max_epochs=1)
    one.fit(model, loader(2), loader(1)) if fn == "fit" else getattr(one, fn)(model, loader(2))
    return {"found": found}


@parity
def test_predictions_that_are_not_kept(pl: Any, tmp_path: Path) -> Any:
    seen_by_callback: list[Any] = []

    class Writes(pl.Callback):  # type: ignore[misc]
        def on_predict_batch_end(
            self,
            trainer: Any,
            module: Any,
            outputs: Any,
            batch: Any,
            batch_idx: int,
            dataloader_idx: int = 0,
        ) -> None:
            seen_by_callback.append(outputs)

    one = trainer(pl, tmp_path, callbacks=[Writes()])
    return {
        "returned": one.predict(model_class(pl)(), loader(2), return_predictions=False),
        "seen": seen_by_callback,
    }


@parity
@pytest.mark.parametrize("fn", ["validate", "test", "predict"])
@pytest.mark.parametrize("ckpt_path", ["best", "last", "path", "none", "no model"])
def test_which_weights(pl: Any, tmp_path: Path, fn: str, ckpt_path: str) -> Any:
    saver = pl.callbacks.ModelCheckpoint(tmp_path, monitor="val_loss", mode="max", save_last=True)
    one, model = trainer(pl, tmp_path, callbacks=[saver], max_epochs=3), model_class(pl)()
    one.fit(model, loader(3), loader(2))
    best = Path(saver.best_model_path)
    given = {"path": {"ckpt_path": best}, "none": {}, "no model": {}}.get(
        ckpt_path, {"ckpt_path": ckpt_path}
    )
    returned = getattr(one, fn)(
        None if ckpt_path == "no model" else model, dataloaders=loader(2, seed=4), **given
    )
    return {
        "returned": returned,
        "best": best,
        "files": files(tmp_path),
        "ckpt_path": one.ckpt_path,
        **seen(one),
    }


@parity
def test_one_after_the_other(pl: Any, tmp_path: Path) -> Any:
    """Evaluations change no weights and leave the counters of the fit.

    Metrics are those of the last call.
    """
    one, model = trainer(pl, tmp_path, logger=True, log_every_n_steps=1), model_class(pl)()
    one.fit(model, loader(3), loader(2))
    found = [seen(one)]
    for fn in ("validate", "test", "predict", "validate"):
        getattr(one, fn)(model, loader(2))
        found.append(seen(one))
    return {"found": found}


@parity
def test_gradients_may_be_had_in_a_test(pl: Any, tmp_path: Path) -> Any:
    class Asks(model_class(pl)):  # type: ignore[misc]
        def test_step(self, batch: Any, batch_idx: int) -> Any:
            with torch.enable_grad():
                batch = batch.clone().requires_grad_()
                self.loss(batch).backward()
            self.log("size", batch.grad.square().sum())

    one = trainer(pl, tmp_path, inference_mode=False)
    return {"returned": one.test(Asks(), loader(2))}
