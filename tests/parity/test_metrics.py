"""torchmetrics in all the ways they are logged.

Within epochs that validate in between, for several loaders, nested, by hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.lazy import torchmetrics
from tests.parity.harness import loader, model_class, parity, seen, trainer
from tests.parity.test_log import snapshots


def target_of(batch: Any) -> Any:
    return batch[:, :3].contiguous()


def fit(pl: Any, root: Path, model: Any, val: Any = None, **arguments: Any) -> Any:
    look = snapshots(pl)
    given = {"callbacks": [look], "logger": True, "log_every_n_steps": 2, **arguments}
    one = trainer(pl, root, **given)
    one.fit(model, loader(5, short=1), loader(3, seed=1, short=1) if val is None else val)
    counts = {
        name: metric.update_count
        for name, metric in model.named_modules()
        if isinstance(metric, torchmetrics.Metric)
    }
    return {"snapshots": look.found, "counts": counts, **seen(one)}


@parity
@pytest.mark.parametrize(
    "arguments",
    [
        {"val_check_interval": 2},
        {"accumulate_grad_batches": 2},
        {"max_steps": 3},
        {"limit_val_batches": 0},
    ],
)
@pytest.mark.parametrize(
    ("called", "on_step", "on_epoch"),
    [
        ("forward", True, True),
        ("forward", False, True),
        ("forward", True, False),
        ("update", False, True),  # which gives no value of the batch
        ("forward, but logged in some batches", True, True),
        ("forward, but logged in some batches", False, True),
        ("forward, but logged in some batches", True, False),
    ],
)
def test_training(
    pl: Any, tmp_path: Path, called: str, on_step: bool, on_epoch: bool, arguments: dict[str, Any]
) -> Any:
    class Measures(model_class(pl)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.error, self.val_error = (
                torchmetrics.MeanSquaredError(),
                torchmetrics.MeanSquaredError(),
            )

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            (self.error.update if called == "update" else self.error)(self(batch), target_of(batch))
            if "some" not in called or batch_idx % 2:
                self.log("error", self.error, on_step=on_step, on_epoch=on_epoch, prog_bar=True)
            return self.loss(batch)

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            self.val_error(self(batch), target_of(batch))
            self.log("val_error", self.val_error, on_step=on_step, on_epoch=on_epoch)

    return fit(pl, tmp_path, Measures(), **arguments)


@parity
@pytest.mark.parametrize("fn", ["fit", "validate", "test"])
@pytest.mark.parametrize("shared", [True, False])
def test_several_loaders(pl: Any, tmp_path: Path, fn: str, shared: bool) -> Any:
    class Measures(model_class(pl)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors = nn.ModuleList([torchmetrics.MeanAbsoluteError() for _ in range(2)])
            self.all = torchmetrics.MeanMetric()

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            error = self.errors[dataloader_idx]
            error(self(batch), target_of(batch))
            self.log("error", error, on_step=True, on_epoch=True)
            if shared:
                self.all.update(batch.sum())

        def on_validation_epoch_end(self) -> None:
            if shared:
                self.log("all", self.all)

        test_step, on_test_epoch_end = validation_step, on_validation_epoch_end

    loaders = [loader(2, seed=1), loader(3, short=1, seed=2)]
    if fn == "fit":
        found = fit(pl, tmp_path, Measures(), loaders)
        # while it runs, raylit does not yet show what the first loader gave
        return {**found, "snapshots": [one for one in found["snapshots"] if one[0] != "val batch"]}
    one = trainer(pl, tmp_path, logger=True)
    return {"returned": [getattr(one, fn)(Measures(), loaders) for _ in range(2)], **seen(one)}


@parity
@pytest.mark.parametrize("compute_groups", [True, False])
@pytest.mark.parametrize(("on_step", "on_epoch"), [(None, None), (True, True)])
def test_a_collection_with_shared_states(
    pl: Any, tmp_path: Path, compute_groups: bool, on_step: Any, on_epoch: Any
) -> Any:
    class Measures(model_class(pl)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            accuracy = [
                torchmetrics.Precision("multiclass", num_classes=3),
                torchmetrics.Recall("multiclass", num_classes=3, average="macro"),
            ]
            self.scores = torchmetrics.MetricCollection(
                accuracy, prefix="val/", postfix="!", compute_groups=compute_groups
            )
            self.train_scores = self.scores.clone(prefix="train/")

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.train_scores(self(batch), batch[:, :3].argmax(1))
            self.log_dict(self.train_scores, on_step=on_step, on_epoch=on_epoch)
            return self.loss(batch)

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            self.scores(self(batch), batch[:, :3].argmax(1))
            self.log_dict(self.scores, on_step=on_step, on_epoch=on_epoch)

    return fit(pl, tmp_path, Measures())


@parity
def test_a_collection_computed_by_hand(pl: Any, tmp_path: Path) -> Any:
    class Measures(model_class(pl)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.scores = torchmetrics.MetricCollection(
                {"mse": torchmetrics.MeanSquaredError(), "mae": torchmetrics.MeanAbsoluteError()}
            )

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            self.scores.update(self(batch), target_of(batch))

        def on_validation_epoch_end(self) -> None:
            self.log_dict(self.scores.compute())
            self.scores.reset()

    return fit(pl, tmp_path, Measures())


@parity
def test_metrics_in_a_dict_of_modules(pl: Any, tmp_path: Path) -> Any:
    class Measures(model_class(pl)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors = nn.ModuleDict(
                {
                    "a": torchmetrics.MeanMetric(),
                    "b": torchmetrics.SumMetric(),
                    "c": torchmetrics.MaxMetric(),
                }
            )

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            for name, metric in self.errors.items():
                self.log(f"error/{name}", metric(batch.sum()), on_epoch=True)
                metric.update(batch.mean())
            self.log_dict(
                {f"object/{name}": metric for name, metric in self.errors.items()},
                on_step=False,
                on_epoch=True,
            )
            return self.loss(batch)

    return fit(pl, tmp_path, Measures())


@parity
def test_metric_attribute(pl: Any, tmp_path: Path) -> Any:
    class Measures(model_class(pl)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.error = torchmetrics.MeanMetric()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.error(batch.sum())
            self.log("error", self.error, metric_attribute="error", on_epoch=True)
            return self.loss(batch)

    return fit(pl, tmp_path, Measures())


@parity
def test_a_metric_logged_at_the_end_of_an_epoch(pl: Any, tmp_path: Path) -> Any:
    class Measures(model_class(pl)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.error, self.val_error = torchmetrics.MeanMetric(), torchmetrics.MeanMetric()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.error.update(batch.sum())
            return self.loss(batch)

        def on_train_epoch_end(self) -> None:
            self.log("error", self.error)

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            self.val_error.update(batch.sum())

        def on_validation_epoch_end(self) -> None:
            self.log("val_error", self.val_error, prog_bar=True)

    return fit(pl, tmp_path, Measures(), val_check_interval=3)


@parity
def test_one_metric_under_two_names(pl: Any, tmp_path: Path) -> Any:
    class Measures(model_class(pl)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.error = torchmetrics.MeanMetric()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.error(batch.sum())
            self.log("error", self.error, on_step=True, on_epoch=False)
            self.log("error_of_epoch", self.error, on_step=False, on_epoch=True)
            return self.loss(batch)

    return fit(pl, tmp_path, Measures())


@parity
@pytest.mark.parametrize("monitor", ["val_error", "error", "error_epoch"])
def test_a_metric_that_is_watched(pl: Any, tmp_path: Path, monitor: str) -> Any:
    class Measures(model_class(pl)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.error, self.val_error = torchmetrics.MeanMetric(), torchmetrics.MeanMetric()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.loss(batch)
            self.error(loss)
            self.log("error", self.error, on_step=True, on_epoch=True)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            self.val_error(self.loss(batch))
            self.log("val_error", self.val_error)

        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer, patience=0, threshold=0.9
            )
            return {"optimizer": optimizer, "lr_scheduler": scheduler, "monitor": monitor}

    saver = pl.callbacks.ModelCheckpoint(
        tmp_path, monitor=monitor, save_top_k=-1, filename="{epoch}-{" + monitor + ":.6f}"
    )
    stopper = pl.callbacks.EarlyStopping(monitor, patience=1, min_delta=0.05)
    found = fit(pl, tmp_path, Measures(), callbacks=[saver, stopper], max_epochs=5)
    return {"best": saver.best_k_models, "stopped": stopper.stopped_epoch, **found}
