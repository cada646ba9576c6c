from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import raylit as pl
from raylit.callbacks import Callback
from raylit.checkpoint import load
from raylit.errors import CheckpointError
from raylit.testing import TinyModel

QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def trainer(folder: Path, **arguments: Any) -> pl.Trainer:
    return pl.Trainer(**{**QUIET, "max_epochs": 2, "default_root_dir": folder, **arguments})


class Exact(TinyModel):
    """Without randomness in the steps, with an optimizer that has state."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = torch.nn.Identity()  # type: ignore[assignment]

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        return [optimizer], [
            {
                "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.5),
                "interval": "step",
            }
        ]


class Saves(Callback):
    """Saves once, in the hook and at the step it was told."""

    def __init__(self, hook: str, step: int, path: Path) -> None:
        self.step, self.path = step, path
        setattr(self, hook, self.save)

    def save(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)


SAVED = [("on_train_batch_end", step) for step in range(1, 13)]
SAVED += [
    ("on_train_epoch_end", 4),
    ("on_train_epoch_end", 8),
    ("on_train_epoch_start", 4),
    ("on_train_epoch_start", 8),
    ("on_train_end", 12),
]


@pytest.mark.parametrize(
    ("arguments", "hook", "step"),
    [({}, *saved) for saved in [*SAVED, ("on_validation_end", 4), ("on_validation_end", 8)]]
    + [
        ({"val_check_interval": 3}, *saved)
        for saved in [*SAVED, ("on_validation_end", 3), ("on_validation_end", 7)]
    ],
)
def test_wherever_it_was_saved_a_fit_goes_on_to_the_same_end(
    tmp_path: Path, arguments: dict[str, Any], hook: str, step: int
) -> None:
    path, limits = tmp_path / "one.ckpt", {"max_epochs": 3, "num_sanity_val_steps": 0, **arguments}
    torch.manual_seed(0)
    full, model = trainer(tmp_path, callbacks=[Saves(hook, step, path)], **limits), Exact()
    result = full.fit(model)
    again, fresh = trainer(tmp_path, **limits), Exact()
    resumed = again.fit(fresh, ckpt_path=path)
    assert all(
        torch.equal(value, fresh.state_dict()[name]) for name, value in model.state_dict().items()
    )
    assert again.progress == full.progress
    assert resumed.history == result.history


def test_hyperparameters_that_are_no_plain_data_are_named_once(tmp_path: Path) -> None:
    class Net(Exact):
        def __init__(self, layer: Any, width: int = 3) -> None:
            super().__init__()
            self.save_hyperparameters()

    one = trainer(tmp_path, max_epochs=1)
    one.fit(Net(torch.nn.Linear(1, 1)))
    with pytest.warns(UserWarning, match=r"hyperparameters layer of Net .*ignore=\['layer'\]"):
        one.save_checkpoint(tmp_path / "one.ckpt")
    assert load(tmp_path / "one.ckpt")["hyper_parameters"] == {"batch_size": 4, "width": 3}


def test_an_object_in_a_checkpoint_is_refused_when_it_is_written(tmp_path: Path) -> None:
    class Net(Exact):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["mine"] = object()

    one = trainer(tmp_path, max_epochs=1)
    one.fit(Net())
    with pytest.raises(CheckpointError, match="no plain data under: mine"):
        one.save_checkpoint(tmp_path / "one.ckpt")
    assert not (tmp_path / "one.ckpt").exists()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("optimizer_states", "holds weights only"),
        ("state_dict", "holds no state_dict"),
        (None, "2 optimizers"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, missing: str | None, message: str) -> None:
    one = trainer(tmp_path, max_epochs=1)
    one.fit(Exact())
    one.save_checkpoint(tmp_path / "one.ckpt")
    stored = load(tmp_path / "one.ckpt")
    if missing is None:
        stored["optimizer_states"] *= 2
    else:
        del stored[missing]
    torch.save(stored, tmp_path / "one.ckpt")
    with pytest.raises(CheckpointError, match=message):
        trainer(tmp_path).fit(Exact(), ckpt_path=tmp_path / "one.ckpt")


def test_a_callback_that_is_gone_is_warned_of(tmp_path: Path) -> None:
    class Counts(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"count": 1}

    one = trainer(tmp_path, max_epochs=1, callbacks=[Counts()])
    one.fit(Exact())
    one.save_checkpoint(tmp_path / "one.ckpt")
    with pytest.warns(UserWarning, match="callbacks that the Trainer does not have"):
        trainer(tmp_path).fit(Exact(), ckpt_path=tmp_path / "one.ckpt")
