"""Every hook of module, datamodule and callbacks, in order, with what it is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity.harness import loader, model_class, parity, seen, stream, traced_objects, trainer


def fit(pl: Any, tmp_path: Path, model: Any = None, data: Any = None, **arguments: Any) -> Any:
    trace: list[Any] = []
    data = {"train": loader(4), "val": loader(2, seed=1)} if data is None else data
    module, datamodule, callback = traced_objects(pl, trace, model(pl) if model else None, **data)
    one = trainer(pl, tmp_path, callbacks=callback, **arguments)
    one.fit(module, datamodule=datamodule)
    return {"trace": trace, **seen(one)}


@parity
def test_fit(pl: Any, tmp_path: Path) -> Any:
    return fit(pl, tmp_path)


@parity
def test_fit_with_checkpoints_and_logger(pl: Any, tmp_path: Path) -> Any:
    return fit(pl, tmp_path, logger=True, log_every_n_steps=1, enable_checkpointing=True)


@parity
@pytest.mark.parametrize(
    "arguments",
    [
        {"accumulate_grad_batches": 3},
        {"gradient_clip_val": 0.1},
        {"val_check_interval": 0.5, "num_sanity_val_steps": 0},
        {"check_val_every_n_epoch": 2, "max_epochs": 4},
        {"limit_val_batches": 0},
        {"limit_train_batches": 0},
        {"max_steps": 3, "max_epochs": -1},
        {"fast_dev_run": 2},
        {"overfit_batches": 1},
        {"reload_dataloaders_every_n_epochs": 1, "max_epochs": 3},
        {"max_epochs": 0},
        {"num_sanity_val_steps": -1, "max_epochs": 1},
        {"precision": "bf16-mixed", "max_epochs": 1},
    ],
    ids=lambda arguments: "-".join(arguments),
)
def test_fit_with(pl: Any, tmp_path: Path, arguments: dict[str, Any]) -> Any:
    # a generator of their own keeps the loaders from drawing a seed of the process whenever they
    # are read
    data = {
        "train": loader(4, generator=torch.Generator()),
        "val": loader(2, seed=1, generator=torch.Generator()),
    }
    return fit(pl, tmp_path, data=data, **arguments)


@parity
def test_fit_on_streams(pl: Any, tmp_path: Path) -> Any:
    return fit(pl, tmp_path, data={"train": stream(3), "val": stream(2)})


@parity
def test_fit_with_several_loaders(pl: Any, tmp_path: Path) -> Any:
    def model(pl: Any) -> Any:
        class Several(model_class(pl)):  # type: ignore[misc]
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                return self.loss(batch["a"]) + self.loss(batch["b"])

            def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
                self.log("val_loss", self.loss(batch))
                return {"i": dataloader_idx}

        return Several

    data = {
        "train": {"a": loader(3), "b": loader(2, seed=3)},
        "val": [loader(2, seed=1), loader(1, seed=2)],
    }
    return fit(pl, tmp_path, model, data)


@parity
@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_fit_with_schedulers(pl: Any, tmp_path: Path, interval: str) -> Any:
    def model(pl: Any) -> Any:
        class Scheduled(model_class(pl)):  # type: ignore[misc]
            def configure_optimizers(self) -> Any:
                optimizer = super().configure_optimizers()
                scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
                return {
                    "optimizer": optimizer,
                    "lr_scheduler": {"scheduler": scheduler, "interval": interval},
                }

        return Scheduled

    return fit(pl, tmp_path, model, val_check_interval=2, accumulate_grad_batches=2)


@parity
def test_fit_by_hand(pl: Any, tmp_path: Path) -> Any:
    def model(pl: Any) -> Any:
        class ByHand(model_class(pl)):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.automatic_optimization = False

            def training_step(self, batch: Any, batch_idx: int) -> Any:
                optimizer = self.optimizers()
                optimizer.zero_grad()
                loss = self.loss(batch)
                self.manual_backward(loss)
                optimizer.step()
                return {"loss": loss, "more": 1}

        return ByHand

    return fit(pl, tmp_path, model)


@parity
@pytest.mark.parametrize("returned", ["none", "dict", "sometimes"])
def test_fit_where_training_step_returns(pl: Any, tmp_path: Path, returned: str) -> Any:
    def model(pl: Any) -> Any:
        class Returns(model_class(pl)):  # type: ignore[misc]
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                loss = self.loss(batch)
                skips = returned == "none" or (returned == "sometimes" and batch_idx % 2 == 0)
                return None if skips else {"loss": loss, "extra": loss.detach() * 2}

        return Returns

    return fit(pl, tmp_path, model)


@parity
def test_fit_where_the_batch_start_skips_the_rest(pl: Any, tmp_path: Path) -> Any:
    def model(pl: Any) -> Any:
        class Skips(model_class(pl)):  # type: ignore[misc]
            def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
                return -1 if batch_idx == 2 else None

            def configure_optimizers(self) -> Any:
                optimizer = super().configure_optimizers()
                return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

        return Skips

    return fit(pl, tmp_path, model)


@parity
@pytest.mark.parametrize(
    "where", ["training_step", "validation_step", "on_train_epoch_end", "setup"]
)
def test_an_exception(pl: Any, tmp_path: Path, where: str) -> Any:
    def model(pl: Any) -> Any:
        def fails(self: Any, *args: Any, **kwargs: Any) -> Any:
            if where == "setup" or not self.trainer.sanity_checking:
                raise ZeroDivisionError("the user's")

        return type("Fails", (model_class(pl),), {where: fails})

    trace: list[Any] = []
    module, datamodule, callback = traced_objects(
        pl, trace, model(pl), train=loader(2), val=loader(1)
    )
    one = trainer(pl, tmp_path, callbacks=callback)
    with pytest.raises(ZeroDivisionError, match="the user's"):
        one.fit(module, datamodule=datamodule)
    return {
        "trace": trace,
        "interrupted": one.interrupted,
        "status": str(one.state.status).split(".")[-1].lower(),
    }


@parity
@pytest.mark.parametrize("fn", ["validate", "test", "predict"])
def test_evaluation(pl: Any, tmp_path: Path, fn: str) -> Any:
    trace: list[Any] = []
    stage = "val" if fn == "validate" else fn
    module, datamodule, callback = traced_objects(pl, trace, **{stage: loader(3)})
    one = trainer(pl, tmp_path, callbacks=callback)
    returned = getattr(one, fn)(module, datamodule=datamodule)
    return {"trace": trace, "returned": returned, **seen(one)}


@parity
@pytest.mark.parametrize("fn", ["validate", "test", "predict"])
def test_evaluation_of_several_loaders(pl: Any, tmp_path: Path, fn: str) -> Any:
    class Several(model_class(pl)):  # type: ignore[misc]
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> Any:
            self.log("val_loss", self.loss(batch))
            self.log(f"plain_{dataloader_idx}", batch_idx, add_dataloader_idx=False)

        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> Any:
            self.log("test_loss", self.loss(batch))

        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return self(batch), dataloader_idx

    trace: list[Any] = []
    stage = "val" if fn == "validate" else fn
    module, datamodule, callback = traced_objects(
        pl, trace, Several, **{stage: [loader(2), loader(3, short=1, seed=1)]}
    )
    one = trainer(pl, tmp_path, callbacks=callback)
    returned = getattr(one, fn)(module, datamodule=datamodule)
    return {"trace": trace, "returned": returned, **seen(one)}


@parity
@pytest.mark.parametrize("fn", ["validate", "test", "predict"])
def test_evaluation_of_no_batches(pl: Any, tmp_path: Path, fn: str) -> Any:
    trace: list[Any] = []
    stage = "val" if fn == "validate" else fn
    module, datamodule, callback = traced_objects(pl, trace, **{stage: loader(3)})
    one = trainer(pl, tmp_path, callbacks=callback, **{f"limit_{stage}_batches": 0})
    returned = getattr(one, fn)(module, datamodule=datamodule)
    return {"trace": trace, "returned": returned}
