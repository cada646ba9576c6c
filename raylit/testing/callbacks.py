"""The contract of `raylit.callbacks.Callback` as tests, for callbacks written elsewhere too."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from raylit.callbacks import Callback, Checkpoint, ModelCheckpoint
from raylit.checkpoint import to_plain
from raylit.core.hooks import HOOKS
from raylit.runtime.aliases import Arguments
from raylit.testing.modules import TinyModel
from raylit.trainer.trainer import Trainer

if TYPE_CHECKING:
    from os import PathLike

    from raylit.core.module import LightningModule


class Interruption(Exception):
    """Raised by the suite in the middle of a fit."""


def _comparable(state: object) -> object:
    """Return a state with lists in the place of its tensors, for which == gives one answer."""
    plain = to_plain(state)
    if isinstance(plain, dict):
        return {key: _comparable(value) for key, value in plain.items()}
    if isinstance(plain, (list, tuple)):
        return [_comparable(value) for value in plain]
    return plain.tolist() if isinstance(plain, Tensor) else plain


class CallbackConformance:
    """Checks that hold for every callback. Subclass it as `Test...` and override `make`.

    Attributes:
        changes_training: whether training with the callback may end elsewhere than without it.
        trainer_arguments: what the callback needs of the Trainer; `{"logger": True}` gives it a
            logger.
        model: called for the model to train; it logs `train_loss` and `val_loss`.

    Example:
        >>> class TestEarlyStopping(CallbackConformance):
        ...     @pytest.fixture
        ...     def make(self):
        ...         return lambda: EarlyStopping("val_loss")
    """

    changes_training = False
    trainer_arguments: Arguments = {}  # noqa: RUF012  (a subclass gives its own)
    model: Callable[[], LightningModule] = TinyModel

    @pytest.fixture
    def make(self, tmp_path: Path) -> Callable[[], Callback]:
        """Return a function that makes a new callback, with the same arguments each time.

        To override.
        """
        raise NotImplementedError

    def trainer(self, folder: Path, *callbacks: Callback, **arguments: Any) -> Trainer:
        """Return a Trainer for two epochs on the CPU that keeps its files in `folder`."""
        settings = {
            "accelerator": "cpu",
            "logger": False,
            "max_epochs": 2,
            "enable_checkpointing": (
                None if any(isinstance(callback, Checkpoint) for callback in callbacks) else False
            ),
            "enable_progress_bar": None,
            "enable_model_summary": False,
            "default_root_dir": folder,
            "log_every_n_steps": 2,
        }
        return Trainer(
            callbacks=list(callbacks), **{**settings, **self.trainer_arguments, **arguments}
        )

    def fit(
        self,
        folder: Path,
        *callbacks: Callback,
        ckpt_path: str | PathLike[str] | None = None,
        dropout: bool = True,
        **arguments: Any,
    ) -> dict[str, Tensor]:
        """Train the model; return its weights."""
        torch.manual_seed(0)
        model = type(self).model()
        for layer in model.modules():
            if isinstance(layer, nn.Dropout) and not dropout:
                layer.p = 0.0
        self.trainer(folder, *callbacks, **arguments).fit(model, ckpt_path=ckpt_path)
        return {name: value.clone() for name, value in model.state_dict().items()}

    def test_its_events_exist(self, make: Callable[[], Callback]) -> None:
        """A method that is called like an event is one; a misspelled one would never be called."""
        callback = make()
        assert [
            name for name in dir(callback) if name.startswith("on_") and name not in HOOKS
        ] == []

    def test_it_goes_through_all_stages(self, make: Callable[[], Callback], tmp_path: Path) -> None:
        """One object serves for fit, validate, test and predict, and for a second fit."""
        torch.manual_seed(0)
        model = type(self).model()
        trainer = self.trainer(tmp_path, make())
        trainer.fit(model)
        trainer.validate(model, verbose=False)
        trainer.test(model, verbose=False)
        trainer.predict(model)
        trainer.max_epochs = 3
        trainer.fit(model)

    def test_it_goes_through_a_trial_run(
        self, make: Callable[[], Callback], tmp_path: Path
    ) -> None:
        """`fast_dev_run` works and leaves nothing."""
        self.fit(tmp_path / "trial", make(), fast_dev_run=True)
        assert not list((tmp_path / "trial").rglob("*"))

    def test_it_does_not_change_the_weights(
        self, make: Callable[[], Callback], tmp_path: Path
    ) -> None:
        """Training goes the same way with it and without.

        It draws no random numbers and touches no gradients.
        """
        if self.changes_training:
            pytest.skip("this callback is there to change training")
        without = self.fit(tmp_path / "without")
        with_it = self.fit(tmp_path / "with", make())
        assert all(torch.equal(without[name], with_it[name]) for name in without)

    def test_it_can_be_pickled_before_and_after(
        self, make: Callable[[], Callback], tmp_path: Path
    ) -> None:
        """It travels to workers, and its state travels back."""
        callback = pickle.loads(pickle.dumps(make()))
        self.fit(tmp_path, callback)
        home = make()
        home.__dict__.update(pickle.loads(pickle.dumps(callback.__getstate__())))
        assert home.state_key == callback.state_key
        assert _comparable(home.state_dict()) == _comparable(callback.state_dict())

    def test_its_state_is_plain_data(self, make: Callable[[], Callback], tmp_path: Path) -> None:
        """Its state is loaded without running code, and its key does not change with training."""
        callback = make()
        key = callback.state_key
        self.fit(tmp_path, callback)
        assert callback.state_key == key
        torch.save(to_plain(callback.state_dict()), tmp_path / "state.pt")
        assert (
            torch.load(tmp_path / "state.pt", weights_only=True).keys()
            == callback.state_dict().keys()
        )

    def test_a_run_that_is_resumed_ends_in_the_same_place(
        self, make: Callable[[], Callback], tmp_path: Path
    ) -> None:
        """Two epochs, and two more from the checkpoint, leave the state of four epochs."""
        whole = make()
        part = make()
        straight = self.fit(tmp_path / "whole", whole, max_epochs=4, dropout=False)
        saver = ModelCheckpoint(tmp_path / "ckpt", every_n_epochs=2, save_top_k=-1)
        self.fit(tmp_path / "part", part, saver, max_epochs=2, dropout=False)
        goes_on = make()
        resumed = self.fit(
            tmp_path / "part", goes_on, max_epochs=4, ckpt_path=saver.best_model_path, dropout=False
        )
        assert self.same_course(straight, resumed)
        assert goes_on.state_dict().keys() == whole.state_dict().keys()

    def same_course(self, straight: dict[str, Tensor], resumed: dict[str, Tensor]) -> bool:
        """Tell whether two trainings ended in the same place.

        To override for callbacks that stop by the clock.
        """
        return all(torch.equal(straight[name], resumed[name]) for name in straight)

    def test_an_exception_passes_through(
        self, make: Callable[[], Callback], tmp_path: Path
    ) -> None:
        """The user's exception is the one that is raised, wherever in a fit it happens.

        The callback can be used again.
        """

        class Interrupts(Callback):
            def __init__(self, event: str) -> None:
                setattr(self, event, self.interrupt)

            def interrupt(self, *args: object, **kwargs: object) -> None:
                raise Interruption

        callback = make()
        for event in (
            "setup",
            "on_train_start",
            "on_train_batch_end",
            "on_validation_start",
            "on_train_end",
        ):
            with pytest.raises(Interruption):
                self.fit(tmp_path / event, Interrupts(event), callback)
        self.fit(tmp_path / "again", callback)
