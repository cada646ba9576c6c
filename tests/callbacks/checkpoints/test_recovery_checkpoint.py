from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from torch.utils.data import DataLoader

import raylit as pl
from raylit.callbacks import Callback, ModelCheckpoint, RecoveryCheckpoint
from raylit.checkpoint import load
from raylit.errors import ConfigError, Terminated
from raylit.testing import BoringModel, CallbackConformance, RandomDataset
from tests import quiet
from tests.ranks import run_on_two_ranks


class TestRecoveryCheckpoint(CallbackConformance):
    @pytest.fixture
    def make(self, tmp_path: Path) -> Callable[[], Callback]:
        return lambda: RecoveryCheckpoint(tmp_path / "kept", every_n_steps=2)


class Tiny(BoringModel):
    """A layer, and a loss that is logged."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.step(batch)
        self.log("train_loss", loss)
        return loss


def loader(num_batches: int) -> DataLoader[Any]:
    return DataLoader(RandomDataset(32, num_batches))


class At(Callback):
    """Does something in a hook, from a batch on."""

    def __init__(
        self, batch: int, act: Callable[[pl.Trainer], None], hook: str = "on_train_batch_start"
    ) -> None:
        self.batch, self.act = batch, act
        setattr(self, hook, self.call)

    def call(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.progress.total_batches >= self.batch:
            self.act(trainer)


def terminate(trainer: pl.Trainer) -> None:
    signal.raise_signal(signal.SIGTERM)


def fail(trainer: pl.Trainer) -> None:
    raise RuntimeError("the user's")


trainer = partial(quiet.trainer, max_epochs=2, enable_checkpointing=None)


def names(folder: Path) -> list[str]:
    return sorted(
        (re.sub("-[a-p]{8}.ckpt", ".ckpt", path.name) for path in folder.glob("*")),
        key=lambda name: int("".join(filter(str.isdigit, name))),
    )


def test_it_comes_with_checkpointing() -> None:
    def kinds(**arguments: Any) -> list[type]:
        return [type(callback) for callback in pl.Trainer(logger=False, **arguments).callbacks]

    assert (
        kinds().count(RecoveryCheckpoint)
        == kinds(callbacks=[RecoveryCheckpoint(every_s=1)]).count(RecoveryCheckpoint)
        == 1
    )
    assert RecoveryCheckpoint not in kinds(enable_checkpointing=False) + kinds(fast_dev_run=True)
    assert ModelCheckpoint not in kinds(
        enable_checkpointing=False, callbacks=[RecoveryCheckpoint()]
    )


@pytest.mark.parametrize(
    "arguments", [{"every_n_steps": 0}, {"every_s": -1}, {"keep": 0}, {"keep": "all"}], ids=str
)
def test_numbers_out_of_range(arguments: Any) -> None:
    with pytest.raises(ConfigError, match="give a number of at least"):
        RecoveryCheckpoint(**arguments)


def slowly(one: pl.Trainer) -> None:
    """Leaves time to write."""
    time.sleep(0.05)


def test_by_steps_the_newest_two_are_kept(tmp_path: Path) -> None:
    seen: list[list[str]] = []
    recovery = RecoveryCheckpoint(every_n_steps=3, every_s=None)
    where = tmp_path / "checkpoints" / "recovery"

    def look(one: pl.Trainer) -> None:
        if recovery._writer is not None:
            recovery._writer.wait()
        seen.append(names(where))

    trainer(tmp_path, recovery, At(1, look)).fit(Tiny(), loader(8))
    assert seen[3] == ["batch=3.ckpt"]
    assert seen[6] == ["batch=3.ckpt", "batch=6.ckpt"]
    assert seen[9] == seen[11] == ["batch=6.ckpt", "batch=9.ckpt"]
    assert names(where) == [], "a fit that ended well leaves none"


def test_by_time(tmp_path: Path) -> None:
    recovery = RecoveryCheckpoint(tmp_path / "here", every_s=0.1, keep=100)
    with pytest.raises(RuntimeError, match="the user's"):
        trainer(tmp_path, recovery, At(1, slowly), At(16, fail)).fit(Tiny(), loader(10))
    found = names(tmp_path / "here")
    assert 3 <= len(found) <= 9
    assert found[-1] == "batch=15.ckpt"  # of the exception: the batch that failed was left out


def test_without_a_cadence_the_steps_pay_nothing(tmp_path: Path) -> None:
    found: list[Any] = []
    trainer(tmp_path, At(3, lambda one: found.append(one._run.hooks["on_train_batch_end"]))).fit(
        Tiny(), loader(3)
    )  # type: ignore[union-attr]
    owners = [type(function.func.__self__) for function in found[0]]
    assert RecoveryCheckpoint not in owners and ModelCheckpoint in owners


def test_weights_of_the_time_are_saved_whatever_comes_later(tmp_path: Path) -> None:
    """The copy is taken at once, and tied weights stay one."""
    model = Tiny()
    model.tied = torch.nn.Parameter(torch.ones(1000))
    model.same = model.tied
    kept: dict[str, Any] = {}
    recovery = RecoveryCheckpoint(tmp_path / "here", every_n_steps=2, every_s=None, keep=9)

    def note(one: pl.Trainer) -> None:
        kept[f"batch={one.progress.total_batches - 1}.ckpt"] = {
            k: v.clone() for k, v in model.state_dict().items()
        }
        with torch.no_grad():
            model.tied.add_(1)

    with pytest.raises(RuntimeError):
        trainer(tmp_path, recovery, At(1, note), At(1, slowly), At(9, fail)).fit(model, loader(20))
    for name in ("batch=2.ckpt", "batch=4.ckpt"):
        (path,) = (tmp_path / "here").glob(name.replace(".ckpt", "-*.ckpt"))
        saved = load(path)["state_dict"]
        assert all(torch.equal(saved[key], value) for key, value in kept[name].items())
        assert (
            saved["tied"].untyped_storage().data_ptr() == saved["same"].untyped_storage().data_ptr()
        )


class Slow(pl.loggers.CSVLogger):
    """Has written what was logged only a while after it is asked to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.found: dict[str, list[list[str]]] = {}

    def settle(self, timeout_s: float) -> None:
        time.sleep(0.2)
        where = "trains" if threading.current_thread() is threading.main_thread() else "writes"
        self.found.setdefault(where, []).append(names(Path(self.save_dir) / "recovery"))


def test_what_was_logged_before_is_written_before(tmp_path: Path) -> None:
    logger = Slow(tmp_path)
    recovery = RecoveryCheckpoint(tmp_path / "recovery", every_n_steps=3, every_s=None)
    trainer(
        tmp_path,
        recovery,
        At(1, lambda _: recovery._writer and recovery._writer.wait()),
        logger=logger,
        max_epochs=1,
    ).fit(Tiny(), loader(7))
    assert logger.found["writes"] == [[], ["batch=3.ckpt"]]
    assert len(logger.found["trains"]) == 1  # ModelCheckpoint, at the end of the epoch


def test_the_next_fit_goes_on_and_cleans_up(tmp_path: Path) -> None:
    with pytest.raises(Terminated):
        trainer(tmp_path, RecoveryCheckpoint(every_n_steps=2), At(7, terminate)).fit(
            Tiny(), loader(8)
        )
    where = tmp_path / "checkpoints" / "recovery"
    assert names(where)[-1] == "batch=7.ckpt"
    # As a process leaves it that is killed while it writes
    (where / ".batch=9.ckpt.0123abcd.tmp").touch()
    batches: list[int] = []
    one = trainer(tmp_path, At(0, lambda one: batches.append(one.progress.total_batches)))
    one.fit(Tiny(), loader(8), ckpt_path="last")
    assert batches == list(range(8, 17))
    assert str(one.ckpt_path).startswith(str(where / "batch=7-"))
    assert list(where.glob("*")) == []


def test_in_a_step_that_was_half_taken_nothing_is_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Breaks(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            if self.param_groups[0].setdefault("n", 0) == 4:
                raise RuntimeError("the optimizer's")
            self.param_groups[0]["n"] += 1
            return super().step(closure)

    class Model(Tiny):
        def configure_optimizers(self) -> Any:
            return Breaks(self.parameters(), lr=0.1)

    recovery = RecoveryCheckpoint(tmp_path / "here", every_n_steps=2, every_s=None)
    with pytest.raises(RuntimeError, match="the optimizer's"):
        trainer(tmp_path, recovery, At(1, slowly)).fit(Model(), loader(8))
    assert names(tmp_path / "here")[-1] == "batch=4.ckpt"


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c(tmp_path: Path, presses: int) -> None:
    """The first one ends the fit after the batch, the second at once."""
    ended: list[int] = []

    def press(one: pl.Trainer) -> None:
        for _ in range(presses):
            signal.raise_signal(signal.SIGINT)
        ended.append(one.progress.batch)

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, At(3, press)).fit(Tiny(), loader(8))
    assert ended == ([3] if presses == 1 else [])
    assert names(tmp_path / "checkpoints" / "recovery") == [
        "batch=3.ckpt" if presses == 1 else "batch=2.ckpt"
    ]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_on_a_file_system_elsewhere(tmp_path: Path) -> None:
    where = "memory://recovery_elsewhere"
    callbacks = [
        RecoveryCheckpoint(f"{where}/recovery", every_n_steps=2, every_s=None),
        ModelCheckpoint(where, save_top_k=0),
    ]
    with pytest.raises(Terminated):
        trainer(tmp_path, *callbacks, At(1, slowly), At(7, terminate)).fit(Tiny(), loader(8))
    files = fsspec.filesystem("memory").ls("/recovery_elsewhere/recovery", detail=False)
    assert len(files) == 2 and "/recovery_elsewhere/recovery/batch=7-" in files[1]
    batches: list[int] = []
    callbacks = [RecoveryCheckpoint(f"{where}/recovery"), ModelCheckpoint(where, save_top_k=0)]
    one = trainer(
        tmp_path, *callbacks, At(0, lambda one: batches.append(one.progress.total_batches))
    )
    one.fit(Tiny(), loader(8), ckpt_path="last")
    assert batches == list(range(8, 17))
    assert fsspec.filesystem("memory").ls("/recovery_elsewhere/recovery", detail=False) == []


# ---- what cannot be written ----


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 kB."""
    where = tmp_path / "disk"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(where)], check=True)
    yield where
    subprocess.run(["umount", str(where)], check=True)


class Large(Tiny):
    """Its checkpoints take 120 kB: one fits, two do not."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ballast", torch.zeros(30_000))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
@pytest.mark.parametrize("saver", [RecoveryCheckpoint, ModelCheckpoint])
def test_no_space_is_left(small_disk: Path, tmp_path: Path, saver: type) -> None:
    if saver is RecoveryCheckpoint:
        callbacks = [RecoveryCheckpoint(small_disk / "kept", every_n_steps=3, every_s=None)]
    else:
        callbacks = [
            ModelCheckpoint(
                small_disk / "kept", save_top_k=2, monitor="train_loss", every_n_train_steps=3
            ),
            RecoveryCheckpoint(tmp_path),
        ]

    def look(one: pl.Trainer) -> None:
        if saver is RecoveryCheckpoint and callbacks[0]._writer is not None:
            callbacks[0]._writer.wait()
        for path in (small_disk / "kept").glob("*.ckpt"):
            load(path)  # what there is is whole
            found.add(path.name)

    found: set[str] = set()
    model = Large()
    with pytest.warns(RuntimeWarning, match=r"Could not write the checkpoint .*Training goes on"):
        trainer(tmp_path, *callbacks, At(1, look)).fit(model, loader(8))
    assert len(found) == 1
    assert model.trainer.global_step == 16
    if saver is ModelCheckpoint:
        (left,) = (small_disk / "kept").iterdir()
        assert callbacks[0].best_model_path == str(left) and list(callbacks[0].best_k_models) == [
            str(left)
        ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")
def test_a_read_only_folder_is_refused_at_once(small_disk: Path, tmp_path: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    steps: list[int] = []
    with pytest.raises(ConfigError, match="read-only"):
        trainer(
            tmp_path, ModelCheckpoint(small_disk / "a" / "b"), At(0, lambda one: steps.append(1))
        ).fit(Tiny(), loader(4))
    assert steps == []


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    with pytest.raises(ConfigError, match="is a file"):
        trainer(tmp_path, ModelCheckpoint(tmp_path / "kept")).fit(Tiny(), loader(4))


# ---- two ranks ----


def on_two_ranks(folder: str) -> Any:
    warnings.simplefilter("ignore")
    root = Path(folder)
    found: list[Any] = []
    # a signal that one rank alone gets ends both; what they saved is of one moment
    one = trainer(
        root,
        RecoveryCheckpoint(every_n_steps=4, every_s=None),
        At(5, lambda one: one.global_rank == 1 and terminate(one)),
    )
    try:
        one.fit(Tiny(), loader(64))
    except Terminated:
        found.append(one.progress.total_batches)
    torch.distributed.barrier()
    batches: list[int] = []
    again = trainer(
        root, At(0, lambda one: batches.append(one.progress.total_batches)), max_epochs=1
    )
    again.fit(Tiny(), loader(64), ckpt_path="last")
    # rank 0's clock decides for both
    slow = trainer(
        root / "b",
        RecoveryCheckpoint(every_s=0.2, keep=9),
        At(0, lambda one: time.sleep(0.01)),
        At(60, terminate),
        max_epochs=4,
    )
    try:
        slow.fit(Tiny(), loader(64))
    except Terminated:
        torch.distributed.barrier()
        found.append(names(root / "b" / "checkpoints" / "recovery"))
    return [*found, batches]


def test_two_ranks(tmp_path: Path) -> None:
    zero, one = run_on_two_ranks(on_two_ranks, tmp_path)
    assert zero == one
    ended, kept, batches = zero
    assert batches[0] == ended + 1
    assert len(kept) >= 3


# ---- what it cannot store, or not delete ----


class Odd(Tiny):
    """Buffers that are more than bytes, sizes and strides."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sparse", torch.eye(3).to_sparse())
        self.register_buffer("conjugate", torch.tensor([1 + 2j]).conj())
        self.register_buffer(
            "quantized", torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
        )


class Objects(Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"objects": [lambda: 1]}


class Raises(Callback):
    def on_save_checkpoint(self, *args: Any) -> None:
        raise ZeroDivisionError("the user's")


def test_tensors_of_every_kind_are_copied(tmp_path: Path) -> None:
    recovery = RecoveryCheckpoint(tmp_path / "here", every_n_steps=2, every_s=None)
    module = Odd()
    with pytest.raises(RuntimeError, match="the user's"):
        trainer(tmp_path, recovery, At(1, slowly), At(8, fail)).fit(module, loader(9))
    for path in (tmp_path / "here").glob("*.ckpt"):
        stored = load(path)["state_dict"]
        for name in ("sparse", "conjugate", "quantized"):
            value, expected = stored[name], getattr(module, name)
            if value.is_quantized:
                value, expected = value.dequantize(), expected.dequantize()
            assert torch.equal(value.to_dense(), expected.to_dense()), name


def test_state_that_is_no_plain_data_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recovery = RecoveryCheckpoint(tmp_path / "here", every_n_steps=2, every_s=None)
    saver = ModelCheckpoint(tmp_path / "kept", save_weights_only=True)
    with (
        pytest.warns(UserWarning, match=r"leave out callbacks\.Objects\.objects, which is neither"),
        pytest.raises(RuntimeError, match="the user's"),
    ):
        trainer(tmp_path, recovery, saver, Objects(), At(1, slowly), At(8, fail)).fit(
            Tiny(), loader(9)
        )
    (*_, newest) = sorted((tmp_path / "here").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    assert "Objects" not in load(newest)["callbacks"]
    again = trainer(tmp_path, RecoveryCheckpoint(tmp_path / "here"), saver)
    again.fit(Tiny(), loader(9), ckpt_path=newest)
    assert again.global_step == 18


def test_an_error_of_a_hook_ends_no_fit(tmp_path: Path) -> None:
    recovery = RecoveryCheckpoint(tmp_path / "here", every_n_steps=2, every_s=None)
    with pytest.warns(UserWarning, match="No recovery checkpoint could be saved: ZeroDivision"):
        one = trainer(tmp_path, recovery, Raises(), enable_checkpointing=False)
        one.fit(Tiny(), loader(4))
    assert one.global_step == 8


class RaisesOnce(Callback):
    done = False

    def on_save_checkpoint(self, *args: Any) -> None:
        if not self.done:
            self.done = True
            raise ZeroDivisionError("the user's")


def test_by_time_one_that_failed_is_not_the_last(tmp_path: Path) -> None:
    recovery = RecoveryCheckpoint(tmp_path / "here", every_s=0.1, keep=100)
    callbacks = (recovery, RaisesOnce(), At(1, slowly), At(16, fail))
    with (
        pytest.warns(UserWarning, match="No recovery checkpoint could be saved"),
        pytest.raises(RuntimeError, match="the user's"),
    ):
        trainer(tmp_path, *callbacks, enable_checkpointing=False).fit(Tiny(), loader(10))
    assert len(names(tmp_path / "here")) >= 2  # the one of the exception, and those by time


def test_what_cannot_be_deleted_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".ckpt":
            raise OSError(16, "Device or resource busy", str(path))
        own(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.warns(UserWarning, match="could not be deleted: .*busy"):
        one = trainer(tmp_path, ModelCheckpoint(tmp_path / "kept"), max_epochs=3)
        one.fit(Tiny(), loader(2))
    assert one.global_step == 6


def test_only_its_own_files_are_deleted(tmp_path: Path) -> None:
    """Neither those of a fit in another folder, which it goes on from, nor others' in its own."""
    with pytest.raises(Terminated):
        trainer(tmp_path / "a", At(3, terminate)).fit(Tiny(), loader(4))
    (left,) = (tmp_path / "a").rglob("recovery/*.ckpt")
    where = tmp_path / "b" / "checkpoints" / "recovery"
    where.mkdir(parents=True)
    other = where / "batch=9-abcdefgh.ckpt"
    other.write_bytes(left.read_bytes())
    for _ in range(2):
        one = trainer(tmp_path / "b")
        one.fit(Tiny(), loader(4), ckpt_path=left)
        assert one.global_step == 8
    assert left.exists()
    assert list(where.glob("*")) == [other]
