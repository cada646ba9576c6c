"""What `self.log` keeps.

Under which names, reduced how, where it can be seen, and which rows the loggers get.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tests.lazy import torchmetrics
from tests.parity.harness import loader, model_class, parity, seen, stream, trainer

STEP_AND_EPOCH = [(True, False), (False, True), (True, True), (None, None)]
PER_BATCH = [
    "training_step",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_backward",
    "on_after_backward",
    "backward",
    "optimizer_step",
    "on_before_optimizer_step",
    "on_before_zero_grad",
    "optimizer_zero_grad",
    "configure_gradient_clipping",
    "validation_step",
    "on_validation_batch_start",
    "on_validation_batch_end",
]
PER_EPOCH = [
    "on_train_start",
    "on_train_epoch_start",
    "on_train_epoch_end",
    "on_validation_start",
    "on_validation_epoch_start",
    "on_validation_epoch_end",
]


def snapshots(pl: Any) -> Any:
    """A callback that looks at the metrics wherever callbacks usually do."""

    class Look(pl.Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.found: list[Any] = []

        def look(self, where: str, trainer: Any) -> None:
            metrics = (
                trainer.callback_metrics,
                trainer.logged_metrics,
                trainer.progress_bar_metrics,
            )
            self.found.append((where, *(dict(one) for one in metrics)))

        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            self.look("train batch", trainer)

        def on_train_epoch_end(self, trainer: Any, *args: Any) -> None:
            self.look("train epoch", trainer)

        def on_validation_batch_end(self, trainer: Any, *args: Any) -> None:
            self.look("val batch", trainer)

        def on_validation_epoch_end(self, trainer: Any, *args: Any) -> None:
            self.look("val epoch", trainer)

        def on_validation_end(self, trainer: Any, *args: Any) -> None:
            self.look("val end", trainer)

        def on_train_start(self, trainer: Any, *args: Any) -> None:
            self.look("train", trainer)

    return Look()


def logging_in(pl: Any, hook: str, **arguments: Any) -> Any:
    """A model that logs `here`, how often it did so before, in one hook."""
    base = model_class(pl)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls = getattr(self, "calls", 0) + 1
        self.log("here", float(self.calls), **arguments)
        return getattr(base, hook)(self, *args, **kwargs)

    return type("Logs", (base,), {hook: method})()


def fit(pl: Any, root: Path, model: Any, *, short: int = 1, **arguments: Any) -> Any:
    look = snapshots(pl)
    given = {"callbacks": [look], "logger": True, "log_every_n_steps": 2, **arguments}
    one = trainer(pl, root, **given)
    one.fit(model, loader(4, short=short), loader(3, seed=1, short=short))
    return {"snapshots": look.found, **seen(one)}


@parity
@pytest.mark.parametrize(("on_step", "on_epoch"), STEP_AND_EPOCH)
@pytest.mark.parametrize("hook", PER_BATCH)
def test_in_a_hook_of_a_batch(
    pl: Any, tmp_path: Path, hook: str, on_step: bool | None, on_epoch: bool | None
) -> Any:
    return fit(
        pl, tmp_path, logging_in(pl, hook, on_step=on_step, on_epoch=on_epoch, prog_bar=True)
    )


@parity
@pytest.mark.parametrize("hook", PER_EPOCH)
def test_in_a_hook_of_an_epoch(pl: Any, tmp_path: Path, hook: str) -> Any:
    return fit(
        pl, tmp_path, logging_in(pl, hook, prog_bar=True), max_epochs=3, val_check_interval=2
    )


@parity
@pytest.mark.parametrize(
    "reduce_fx", ["mean", "sum", "min", "max", "avg", torch.mean, torch.sum, torch.max, torch.min]
)
def test_reductions(pl: Any, tmp_path: Path, reduce_fx: Any) -> Any:
    return fit(pl, tmp_path, model_class(pl)(reduce_fx=reduce_fx, on_step=True, on_epoch=True))


@parity
@pytest.mark.parametrize(
    "arguments",
    [
        {"batch_size": 7, "on_epoch": True},
        {"logger": False},
        {"logger": False, "prog_bar": True, "on_step": True, "on_epoch": True},
        {"enable_graph": True, "on_epoch": True},
        {"rank_zero_only": True},
        {"sync_dist": True, "on_epoch": True},
        {"add_dataloader_idx": False},
    ],
    ids=lambda arguments: "-".join(arguments),
)
def test_arguments(pl: Any, tmp_path: Path, arguments: dict[str, Any]) -> Any:
    return fit(pl, tmp_path, model_class(pl)(**arguments))


@parity
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"accumulate_grad_batches": 2},
        {"val_check_interval": 2},
        {"log_every_n_steps": 0},
        {"log_every_n_steps": 1},
    ],
)
def test_rows_of_the_loggers(pl: Any, tmp_path: Path, arguments: dict[str, Any]) -> Any:
    return fit(
        pl,
        tmp_path,
        model_class(pl)(on_step=True, on_epoch=True),
        **{"log_every_n_steps": 3, **arguments},
    )


@parity
def test_values_of_all_kinds(pl: Any, tmp_path: Path) -> Any:
    class Kinds(model_class(pl)):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            both = {"on_step": True, "on_epoch": True}
            self.log("int", batch_idx, **both)
            self.log("bool", batch_idx % 2 == 0, **both)
            self.log("float", 0.1, **both)
            self.log("int tensor", torch.tensor(batch_idx), **both)
            self.log("half", torch.tensor(0.1, dtype=torch.float16), **both)
            self.log("double", torch.tensor(0.1, dtype=torch.float64), **both)
            self.log("one element", torch.tensor([[0.3]]), **both)
            self.log("nan", float("nan"), **both)
            self.log("parameter", self.layer.bias[0], **both)
            self.log(
                "nan max",
                torch.tensor(float("nan") if batch_idx == 1 else 1.0),
                reduce_fx="max",
                **both,
            )
            return self.loss(batch)

    return fit(pl, tmp_path, Kinds())


@parity
def test_dicts_and_several_hooks_under_one_name(pl: Any, tmp_path: Path) -> Any:
    class Many(model_class(pl)):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log_dict({"a": float(batch_idx), "b": torch.tensor(2.0)}, on_epoch=True)
            self.log("same", 1.0, on_step=True, on_epoch=True)
            return self.loss(batch)

        def on_train_batch_end(self, *args: Any) -> None:
            self.log("same", 2.0, on_step=True, on_epoch=True)

        def on_train_epoch_end(self) -> None:
            self.log("same", 3.0)
            self.log_dict({"epoch end": 4.0})

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("same", 5.0)

        def on_validation_epoch_end(self) -> None:
            self.log("same", 6.0)

    return fit(pl, tmp_path, Many())


@parity
def test_a_value_logged_in_some_batches(pl: Any, tmp_path: Path) -> Any:
    class Some(model_class(pl)):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 1 and self.current_epoch == 0:
                self.log("once", 1.0, on_step=True, on_epoch=True, prog_bar=True)
            return super().training_step(batch, batch_idx)

    return fit(pl, tmp_path, Some())


@parity
def test_a_logged_step_is_the_x_axis(pl: Any, tmp_path: Path) -> Any:
    class Steps(model_class(pl)):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("step", 10.0 * self.global_step)
            return super().training_step(batch, batch_idx)

        def on_train_epoch_end(self) -> None:
            self.log("step", float(self.current_epoch))

        def on_validation_epoch_end(self) -> None:
            self.log("step", 100.0)

    return fit(pl, tmp_path, Steps())


@parity
def test_the_value_may_be_changed_in_place_afterwards(pl: Any, tmp_path: Path) -> Any:
    class Changes(model_class(pl)):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            value = torch.tensor(1.0)
            self.log("value", value, on_step=True, on_epoch=True)
            value.add_(10)
            return self.loss(batch)

    return fit(pl, tmp_path, Changes())


@parity
@pytest.mark.parametrize(("on_step", "on_epoch"), STEP_AND_EPOCH)
def test_metric_objects(
    pl: Any, tmp_path: Path, on_step: bool | None, on_epoch: bool | None
) -> Any:
    class Measures(model_class(pl)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.error = torchmetrics.MeanSquaredError()
            self.val_error = torchmetrics.MeanSquaredError()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.error(self(batch), batch[:, :3].contiguous())
            self.log("error", self.error, on_step=on_step, on_epoch=on_epoch)
            return self.loss(batch)

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            self.val_error.update(self(batch), batch[:, :3].contiguous())
            self.log("val_error", self.val_error, prog_bar=True)

    model = Measures()
    found = fit(pl, tmp_path, model)
    return {**found, "left": (model.error.update_count, model.val_error.update_count)}


@parity
def test_metric_collections(pl: Any, tmp_path: Path) -> Any:
    class Measures(model_class(pl)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            kinds = {
                "mse": torchmetrics.MeanSquaredError(),
                "mae": torchmetrics.MeanAbsoluteError(),
            }
            self.errors = torchmetrics.MetricCollection(kinds, prefix="train/")
            self.val_errors = self.errors.clone(prefix="val/")

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log_dict(self.errors(self(batch), batch[:, :3].contiguous()))
            return self.loss(batch)

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            self.val_errors.update(self(batch), batch[:, :3].contiguous())
            self.log_dict(self.val_errors)

    return fit(pl, tmp_path, Measures())


@parity
def test_a_metric_computed_by_hand(pl: Any, tmp_path: Path) -> Any:
    class Measures(model_class(pl)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.error = torchmetrics.MeanSquaredError()

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            self.error.update(self(batch), batch[:, :3].contiguous())

        def on_validation_epoch_end(self) -> None:
            self.log("error", self.error.compute())
            self.error.reset()

    return fit(pl, tmp_path, Measures())


@parity
def test_callbacks_log(pl: Any, tmp_path: Path) -> Any:
    class Logs(pl.Callback):  # type: ignore[misc]
        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            self.log("by callback", outputs["loss"], on_step=True, on_epoch=True)
            pl_module.log("through the module", float(batch_idx))

        def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            self.log_dict({"val by callback": 1.0})

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            self.log("at the end", 2.0)

    look = snapshots(pl)
    return fit(pl, tmp_path, model_class(pl)(), callbacks=[Logs(), look])


@parity
@pytest.mark.parametrize("fn", ["fit", "validate", "test"])
def test_several_loaders(pl: Any, tmp_path: Path, fn: str) -> Any:
    class Several(model_class(pl)):  # type: ignore[misc]
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            self.log("loss", self.loss(batch), on_step=True, on_epoch=True, prog_bar=True)
            self.log(f"of {dataloader_idx}", batch_idx, add_dataloader_idx=False)
            if dataloader_idx == 1:
                self.log("of the second only", 1.0, logger=False)

        test_step = validation_step

        def on_validation_batch_end(
            self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
        ) -> None:
            self.log("at the end of a batch", float(batch_idx + dataloader_idx))

        def on_validation_epoch_end(self) -> None:
            self.log("all", 9.0)

        on_test_epoch_end = on_validation_epoch_end

    look = snapshots(pl)
    one = trainer(pl, tmp_path, callbacks=[look], logger=True, log_every_n_steps=1)
    loaders = [loader(2, seed=1), loader(3, short=1, seed=2)]
    returned = (
        one.fit(Several(), loader(3), loaders)
        if fn == "fit"
        else getattr(one, fn)(Several(), loaders)
    )
    ends = [one for one in look.found if one[0] in ("val epoch", "val end", "train epoch")]
    return {"snapshots": ends, **seen(one), "returned": None if fn == "fit" else returned}


@parity
@pytest.mark.parametrize("fn", ["validate", "test"])
def test_rows_of_an_evaluation(pl: Any, tmp_path: Path, fn: str) -> Any:
    one = trainer(pl, tmp_path, logger=True)
    model = model_class(pl)(on_step=True, on_epoch=True)
    returned = [getattr(one, fn)(model, loader(3, short=1)) for _ in range(2)]
    return {"returned": returned, **seen(one)}


@parity
def test_nothing_is_left_of_the_sanity_check(pl: Any, tmp_path: Path) -> Any:
    look = snapshots(pl)
    one = trainer(
        pl,
        tmp_path,
        callbacks=[look],
        logger=True,
        num_sanity_val_steps=3,
        max_epochs=1,
        limit_val_batches=2,
    )
    one.fit(model_class(pl)(on_step=True, on_epoch=True), loader(2), loader(4))
    return {"snapshots": look.found, **seen(one)}


@parity
def test_streams(pl: Any, tmp_path: Path) -> Any:
    one = trainer(pl, tmp_path, logger=True, log_every_n_steps=2)
    one.fit(model_class(pl)(on_step=True, on_epoch=True), stream(5), stream(2))
    return seen(one)


@parity
@pytest.mark.parametrize(
    "batch",
    [
        lambda x: {"x": x, "names": ["a", "b", "c"]},
        lambda x: (x, [x, x]),
        lambda x: [{"deep": {"x": x}}],
        lambda x: ({"y": 1}, x),
    ],
)
def test_the_size_of_a_batch_is_found(pl: Any, tmp_path: Path, batch: Any) -> Any:
    class Nested(model_class(pl)):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("idx", float(batch_idx), on_epoch=True)
            tensors = [
                leaf for leaf in torch.utils._pytree.tree_leaves(batch) if isinstance(leaf, Tensor)
            ]
            return self.loss(tensors[0])

    one = trainer(pl, tmp_path, max_epochs=1)
    data = [batch(torch.ones(3, 4)), batch(torch.ones(1, 4))]
    one.fit(Nested(), DataLoader(data, collate_fn=lambda samples: samples[0]))
    return seen(one)


@parity
@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
def test_numbers_and_metrics_in_other_precisions(pl: Any, tmp_path: Path, precision: str) -> Any:
    class Measures(model_class(pl)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.error = torchmetrics.MeanSquaredError()
            self.turned = (
                torch.nn.Parameter(torch.ones(1, dtype=torch.complex64))
                if precision == "64-true"
                else None
            )

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("number", 0.1 * (batch_idx + 1), on_step=True, on_epoch=True, batch_size=3)
            self.log("whole", batch_idx, reduce_fx="sum")
            self.error.update(self(batch).float(), batch[:, :3].float().contiguous())
            self.log("error", self.error)

        def on_validation_epoch_end(self) -> None:
            self.log("at the end", 0.1)

    model = Measures()
    found = fit(pl, tmp_path, model, precision=precision)
    return {
        **found,
        "state": str(model.error.sum_squared_error.dtype),
        "complex": str(getattr(model.turned, "dtype", None)),
    }
