"""What user code reads off a Trainer: while a job runs and afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

import raylit as pl
from raylit.callbacks import Callback, EarlyStopping, ModelCheckpoint, ProgressBar
from raylit.testing import BoringModel, RandomDataset, TinyModel
from tests.quiet import trainer

STAGES = ("sanity_checking", "training", "validating", "testing", "predicting")


def stages(of: pl.Trainer) -> list[str]:
    return [stage for stage in STAGES if getattr(of, stage)]


class Watches(Callback):
    def __init__(self) -> None:
        self.seen: dict[str, list[str]] = {}

    def _see(self, hook: str, of: pl.Trainer) -> None:
        self.seen.setdefault(hook, stages(of))

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        self._see("train", trainer)

    def on_sanity_check_start(self, trainer: Any, *args: Any) -> None:
        self._see("sanity", trainer)

    def on_validation_end(self, trainer: Any, *args: Any) -> None:
        if not trainer.sanity_checking:
            self._see("val", trainer)

    def on_test_start(self, trainer: Any, *args: Any) -> None:
        self._see("test", trainer)

    def on_predict_start(self, trainer: Any, *args: Any) -> None:
        self._see("predict", trainer)


def test_one_stage_at_a_time(tmp_path: Path) -> None:
    watch = Watches()
    one, model = trainer(tmp_path, callbacks=[watch]), TinyModel()
    assert (stages(one), one.state.status) == ([], "initializing")
    one.fit(model)
    one.test(model, verbose=False)
    one.predict(model)
    assert watch.seen == {
        "sanity": ["sanity_checking"],
        "train": ["training"],
        "val": ["validating"],
        "test": ["testing"],
        "predict": ["predicting"],
    }
    assert (stages(one), one.state.finished, one.state.stopped, one.interrupted) == (
        [],
        True,
        True,
        False,
    )


def test_after_an_exception_it_is_interrupted(tmp_path: Path) -> None:
    class Fails(TinyModel):
        def on_train_start(self) -> None:
            raise ZeroDivisionError

    one = trainer(tmp_path)
    with pytest.raises(ZeroDivisionError):
        one.fit(Fails())
    assert (one.interrupted, one.state.finished, one.state.stopped, stages(one)) == (
        True,
        False,
        True,
        [],
    )


def test_before_any_job(tmp_path: Path) -> None:
    one = trainer(tmp_path)
    assert (
        one.world_size,
        one.num_devices,
        one.num_nodes,
        one.global_rank,
        one.local_rank,
        one.node_rank,
    ) == (1, 1, 1, 0, 0, 0)
    assert one.is_global_zero
    assert (
        one.current_epoch,
        one.global_step,
        one.lightning_module,
        one.datamodule,
        one.model,
    ) == (0, 0, None, None, None)
    assert (
        one.train_dataloader,
        one.val_dataloaders,
        one.optimizers,
        one.lr_scheduler_configs,
    ) == (None, None, [], [])
    assert (one.callback_metrics, one.logged_metrics, one.progress_bar_metrics) == ({}, {}, {})
    assert not one.has_validated
    with pytest.raises(
        RuntimeError, match="while a fit runs, for instance in configure_optimizers"
    ):
        _ = one.estimated_stepping_batches


def test_the_data_in_the_nesting_it_was_given_in(tmp_path: Path) -> None:
    loaders = {"a": DataLoader(RandomDataset(32, 4)), "b": [DataLoader(RandomDataset(32, 2))]}

    class Net(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.step(batch["a"]) + self.step(batch["b"][0])

    one = trainer(tmp_path, limit_val_batches=2)
    one.fit(Net(), loaders)
    assert one.train_dataloader == loaders
    assert (one.num_training_batches, one.num_val_batches, one.num_sanity_val_batches) == (
        4,
        [2],
        [2],
    )
    assert one.val_dataloaders.dataset.data.shape == (64, 32)


def test_metrics_are_read_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Net(TinyModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            self.log("number", float(batch_idx), prog_bar=True)
            return loss

        def on_train_batch_end(self, *args: Any) -> None:
            seen.append(
                (self.trainer.callback_metrics["number"].item(), self.trainer.progress_bar_metrics)
            )

    trainer(tmp_path, limit_val_batches=0).fit(Net())
    assert seen == [(float(number), {"number": number}) for number in range(4)]


def test_loggers_and_callbacks_by_kind(tmp_path: Path) -> None:
    first, second = pl.CSVLogger(tmp_path, "a"), pl.CSVLogger(tmp_path, "b")
    stopping, saver = EarlyStopping("x"), ModelCheckpoint()
    one = trainer(
        tmp_path,
        logger=[first, second],
        callbacks=[saver, stopping],
        enable_checkpointing=None,
        enable_progress_bar=True,
    )
    assert (one.logger, one.loggers, one.log_dir) == (first, [first, second], first.log_dir)
    assert (one.checkpoint_callback, one.checkpoint_callbacks) == (saver, [saver])
    assert (one.early_stopping_callback, one.early_stopping_callbacks) == (stopping, [stopping])
    assert isinstance(one.progress_bar_callback, ProgressBar)
    one.logger = second
    assert one.loggers == [second]
    one.logger = None
    assert (one.logger, one.loggers, one.log_dir) == (None, [], str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"max_epochs": 3}, 12),
        ({"max_epochs": 3, "accumulate_grad_batches": 3}, 6),
        ({"max_epochs": 3, "max_steps": 5}, 5),
        ({"max_epochs": -1, "max_steps": 7}, 7),
    ],
)
def test_the_steps_to_come(tmp_path: Path, arguments: dict[str, Any], expected: int) -> None:
    seen: list[float] = []

    class Net(TinyModel):
        def configure_optimizers(self) -> Any:
            seen.append(self.trainer.estimated_stepping_batches)
            return super().configure_optimizers()

    one = trainer(tmp_path, limit_val_batches=0, **arguments)
    one.fit(Net())
    assert seen == [expected]
    assert one.global_step == expected


def test_settings_never_change_and_limits_may(tmp_path: Path) -> None:
    one = trainer(tmp_path, limit_val_batches=0)
    with pytest.raises(AttributeError, match=r"trainer\.replaced\(precision='bf16'\)"):
        one.precision = "bf16"
    with pytest.raises(AttributeError, match="cannot assign"):
        one.settings.precision = "bf16"  # type: ignore[misc]
    one.limit_train_batches = 2
    one.fit(TinyModel())
    assert (one.limits.limit_train_batches, one.global_step) == (2, 2)


def test_a_callback_sets_a_limit_of_the_run(tmp_path: Path) -> None:
    class Stops(Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
            trainer.max_steps = 3

    one = trainer(tmp_path, callbacks=[Stops()], max_epochs=5)
    one.fit(TinyModel())
    assert one.global_step == 3


def test_a_callback_asks_the_run_for_its_checkpoint(tmp_path: Path) -> None:
    class Dumps(Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
            assert trainer.run is not None
            self.checkpoint = trainer.run.dump(weights_only=trainer.global_step > 2)
            if trainer.global_step == 2:
                self.whole = self.checkpoint

    dumps, model = Dumps(), TinyModel()
    one = trainer(tmp_path, callbacks=[dumps])
    assert one.run is None
    one.fit(model)
    assert (dumps.whole["global_step"], dumps.checkpoint["global_step"]) == (2, 4)
    assert "optimizer_states" in dumps.whole and "optimizer_states" not in dumps.checkpoint
    assert dumps.whole["state_dict"].keys() == model.state_dict().keys()
