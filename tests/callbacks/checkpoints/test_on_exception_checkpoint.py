from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from raylit.callbacks import Callback, ModelCheckpoint, OnExceptionCheckpoint
from raylit.testing import CallbackConformance, TinyModel
from tests import quiet
from tests.ranks import run_on_two_ranks


class TestOnExceptionCheckpoint(CallbackConformance):
    @pytest.fixture
    def make(self, tmp_path: Path) -> Callable[[], Callback]:
        return lambda: OnExceptionCheckpoint(tmp_path / "kept")


class Failure(Exception):
    pass


class Fails(Callback):
    """Raises in one hook, once."""

    def __init__(self, hook: str, batch_idx: int | None = None) -> None:
        self.batch_idx: Any = batch_idx
        self.done = False
        setattr(self, hook, self.fail)

    def fail(self, trainer: Any, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        if not self.done and (
            self.batch_idx is None
            or (
                trainer.current_epoch == 1 and (trainer.progress.batch > self.batch_idx or not args)
            )
        ):
            self.done = True
            raise Failure


trainer = partial(quiet.trainer, max_epochs=2, enable_checkpointing=None)


def model() -> TinyModel:
    torch.manual_seed(0)
    made = TinyModel()
    for layer in made.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    return made


@pytest.mark.parametrize(
    "hook",
    [
        "on_train_batch_end",
        "on_train_epoch_start",
        "on_validation_epoch_end",
        "on_before_optimizer_step",
        "on_train_batch_start",
    ],
)
@pytest.mark.parametrize("where", ["folder", "memory://on_exception"])
def test_two_halves_end_where_the_whole_does(tmp_path: Path, where: str, hook: str) -> None:
    dirpath = str(tmp_path / where) if where == "folder" else where
    whole, halves = model(), model()
    trainer(tmp_path / "whole").fit(whole)
    one = trainer(tmp_path, OnExceptionCheckpoint(dirpath), Fails(hook, 1))
    with pytest.raises(Failure):
        one.fit(halves)
    fs, path = fsspec.core.url_to_fs(dirpath + "/on_exception.ckpt")
    assert fs.exists(path)
    other = model()
    with pytest.warns(UserWarning, match=r"goes on from .*on_exception.ckpt"):
        trainer(tmp_path, OnExceptionCheckpoint(dirpath)).fit(other)
    assert all(
        torch.equal(value, other.state_dict()[name]) for name, value in whole.state_dict().items()
    )
    assert not fs.exists(path)


def test_explicit_paths_and_last(tmp_path: Path) -> None:
    def fails() -> list[Callback]:
        return [
            OnExceptionCheckpoint(tmp_path / "failed"),
            ModelCheckpoint(tmp_path / "kept"),
            Fails("on_train_batch_end", 1),
        ]

    with pytest.raises(Failure):
        trainer(tmp_path, *fails()).fit(model())
    (kept,) = (tmp_path / "kept").glob("*.ckpt")
    one = trainer(tmp_path, *fails()[:2])
    one.fit(model(), ckpt_path="last")
    assert one.ckpt_path == str(tmp_path / "failed" / "on_exception.ckpt")
    with pytest.raises(Failure):
        trainer(tmp_path / "again", *fails()).fit(model())
    one = trainer(tmp_path, *fails()[:2])
    one.fit(model(), ckpt_path=kept)
    assert one.ckpt_path == str(kept)


@pytest.mark.parametrize("hook", ["setup", "on_test_start"])
def test_what_no_fit_could_go_on_from_is_not_saved(tmp_path: Path, hook: str) -> None:
    one = trainer(tmp_path, OnExceptionCheckpoint(tmp_path / "kept"), Fails(hook))
    with pytest.raises(Failure):
        (one.test if hook == "on_test_start" else one.fit)(model())
    assert not (tmp_path / "kept").exists()


def test_a_test_does_not_delete_it(tmp_path: Path) -> None:
    with pytest.raises(Failure):
        trainer(tmp_path, OnExceptionCheckpoint(tmp_path), Fails("on_train_batch_end", 1)).fit(
            model()
        )
    trainer(tmp_path, OnExceptionCheckpoint(tmp_path)).test(model(), verbose=False)
    assert (tmp_path / "on_exception.ckpt").exists()


def fail_on_rank_zero(folder: str) -> Any:
    class FailsThere(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1 and trainer.is_global_zero:
                raise Failure

        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.current_epoch == 1:
                raise Failure  # what the others see of it is an error of the collective, or this

    try:
        trainer(
            folder, OnExceptionCheckpoint(f"{folder}/kept"), FailsThere(), enable_checkpointing=None
        ).fit(model())
    except (Failure, RuntimeError):
        return True
    return False


def test_one_rank_that_fails_does_not_wait_for_the_others(tmp_path: Path) -> None:
    assert run_on_two_ranks(fail_on_rank_zero, tmp_path) == [True, True]
    saved = torch.load(tmp_path / "kept" / "on_exception.ckpt", weights_only=True)
    assert saved["epoch"] == 1


@pytest.mark.parametrize("hook", ["training_step", "optimizer_step", "backward"])
def test_the_batch_that_failed_is_trained_on_again(tmp_path: Path, hook: str) -> None:
    class FailsOnce(TinyModel):
        fails = False

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.fails and self.trainer.current_epoch == 1 and self.trainer.progress.batch == 2:
            raise Failure
        return getattr(TinyModel, hook)(self, *args, **kwargs)

    setattr(FailsOnce, hook, method)

    def made() -> FailsOnce:
        torch.manual_seed(0)
        model = FailsOnce()
        for layer in model.modules():
            if isinstance(layer, torch.nn.Dropout):
                layer.p = 0.0
        return model

    whole, half, other = made(), made(), made()
    trainer(tmp_path / "whole").fit(whole)
    half.fails = True
    with pytest.raises(Failure):
        trainer(tmp_path, OnExceptionCheckpoint(tmp_path / "kept")).fit(half)
    trainer(tmp_path, OnExceptionCheckpoint(tmp_path / "kept")).fit(other)
    assert all(
        torch.equal(value, other.state_dict()[name]) for name, value in whole.state_dict().items()
    )


def fail_before_a_step_and_go_on(folder: str) -> Any:
    """Both ranks fail when they have their gradients; rank 0 saves what it has, and all go on."""
    whole, halves, other = model(), model(), model()
    trainer(f"{folder}/whole").fit(whole)
    saver = OnExceptionCheckpoint(f"{folder}/kept")
    with pytest.raises(Failure):
        trainer(folder, saver, Fails("on_before_optimizer_step", 1)).fit(halves)
    torch.distributed.barrier()  # rank 0 has saved it
    trainer(folder, saver).fit(other, ckpt_path=f"{folder}/kept/on_exception.ckpt")
    pairs = zip(whole.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(one, its) for one, its in pairs)


def test_ranks_that_failed_with_their_gradients_go_on_together(tmp_path: Path) -> None:
    assert run_on_two_ranks(fail_before_a_step_and_go_on, tmp_path) == [True, True]
