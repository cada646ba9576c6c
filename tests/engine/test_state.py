from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from raylit.callbacks import Callback
from raylit.checkpoint import load
from raylit.errors import CheckpointError
from raylit.testing import TinyModel
from tests import quiet

trainer = partial(quiet.trainer, max_epochs=2)


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


class Thing:
    def __init__(self, number: int = 0) -> None:
        self.number = number


class Wants(Exact):
    def __init__(self, thing: Any, width: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["mine"] = {"thing": self.hparams["thing"], "plain": torch.ones(2)}
        checkpoint["seen"] = type(checkpoint["hyper_parameters"]["thing"]).__name__

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.loaded = checkpoint["mine"]


def test_objects_come_back_only_where_code_may_run(tmp_path: Path) -> None:
    path = tmp_path / "one.ckpt"
    one = trainer(tmp_path, max_epochs=1)
    one.fit(Wants(Thing(7)))
    with pytest.warns(UserWarning, match=r"no plain data: hyper_parameters.thing, mine.thing"):
        one.save_checkpoint(path)
    stored = torch.load(path, weights_only=True)
    assert stored["hyper_parameters"] == {"batch_size": 4, "width": 3}
    assert stored["seen"] == "Thing"
    assert set(stored["mine"]) == {"plain"}
    assert b"Thing" in stored["raylit"]["foreign"]["pickled"]
    with pytest.raises(CheckpointError, match=r"thing of Wants are objects.*weights_only=False"):
        Wants.load_from_checkpoint(path)
    with pytest.warns(UserWarning, match="Their defaults are taken"):
        Defaults.load_from_checkpoint(path)
    given = Wants.load_from_checkpoint(path, thing=Thing(8))
    assert (given.hparams["thing"].number, set(given.loaded)) == (8, {"plain"})
    model = Wants.load_from_checkpoint(path, weights_only=False)
    assert (model.hparams["thing"].number, model.loaded["thing"].number) == (7, 7)
    again = trainer(tmp_path, max_epochs=2)
    resumed = Wants(Thing(9))
    with pytest.warns(UserWarning, match=r"holds objects under mine.thing.*weights_only=False"):
        again.fit(resumed, ckpt_path=path)
    assert set(resumed.loaded) == {"plain"}
    again.fit(resumed, ckpt_path=path, weights_only=False)
    assert resumed.loaded["thing"].number == 7


class Defaults(Wants):
    def __init__(self, thing: Any = None, width: int = 3) -> None:
        super().__init__(thing, width)


def test_strict_checkpoints_hold_plain_data_alone(tmp_path: Path) -> None:
    path = tmp_path / "one.ckpt"
    one = trainer(tmp_path, max_epochs=1, strict_checkpoints=True)
    one.fit(Wants(Thing()))
    with pytest.raises(CheckpointError, match=r"no plain data under: hyper_parameters.thing, mine"):
        one.save_checkpoint(path)
    assert not path.exists()


def test_what_cannot_be_pickled(tmp_path: Path) -> None:
    class Local:
        pass

    class Puts(Exact):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["mine"] = Local()

    one = trainer(tmp_path, max_epochs=1)
    one.fit(Wants(Local()))
    with pytest.raises(CheckpointError, match=r"under mine.thing that cannot be pickled"):
        one.save_checkpoint(tmp_path / "one.ckpt")
    one.fit(Defaults(None, lambda: 1))  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match=r"leave out hyper_parameters.width, .*ignore="):
        one.save_checkpoint(tmp_path / "one.ckpt")
    one.fit(Puts())
    with pytest.raises(CheckpointError, match="under mine that cannot be pickled"):
        one.save_checkpoint(tmp_path / "two.ckpt")
    assert not (tmp_path / "two.ckpt").exists()


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
