from __future__ import annotations

import os
import pickle
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
import torch
import yaml
from torch.utils.data import DataLoader

import raylit as pl
from raylit.callbacks import Callback, ModelCheckpoint
from raylit.errors import ConfigError
from raylit.testing import RandomDataset, TinyModel
from tests.callbacks.both import batches, both, fit_with, scripted
from tests.quiet import UNLOGGED

# ---- folders ----


def test_default_folders_are_those_of_lightning(tmp_path: Path) -> None:
    def scenario(framework: Any, root: Path) -> list[Any]:
        found: list[Any] = []
        for logger in (
            False,
            framework.loggers.CSVLogger(root, name="digits"),
            framework.loggers.CSVLogger(root, name=None, version="mine"),
        ):
            callback = framework.callbacks.ModelCheckpoint()
            fit_with(framework, root, callback, {"logger": logger, "max_epochs": 1}, None)
            found += [callback.dirpath, callback.best_model_path]
        return found

    ours, theirs = both(scenario, tmp_path)
    assert ours == theirs
    assert ours[2] == "ROOT/digits/version_0/checkpoints"


def test_a_relative_folder_is_fixed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ModelCheckpoint("a/../b").dirpath == str(tmp_path / "b")
    assert ModelCheckpoint("s3://bucket/runs").dirpath == "s3://bucket/runs"


def test_a_folder_with_files_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "ckpt" / "old.txt").touch()
    with pytest.warns(UserWarning, match="is not empty"):
        fit_with(pl, tmp_path, ModelCheckpoint(tmp_path / "ckpt"), {"max_steps": 1}, None)
    assert (tmp_path / "ckpt" / "old.txt").exists()


def test_a_folder_of_another_file_system(tmp_path: Path) -> None:
    callback = ModelCheckpoint(
        "memory://checkpoints", monitor="val_loss", save_last=True, filename="{epoch}"
    )
    fit_with(pl, tmp_path, callback, {}, [0.5, 0.7, 0.3, 0.9])
    fs = fsspec.filesystem("memory")
    assert sorted(fs.ls("/checkpoints", detail=False)) == [
        "/checkpoints/epoch=2.ckpt",
        "/checkpoints/last.ckpt",
    ]
    with fs.open("/checkpoints/last.ckpt") as file:
        assert torch.load(file, weights_only=True)["epoch"] == 2
    with pytest.raises(ConfigError, match="save_last='link'"):
        fit_with(pl, tmp_path, ModelCheckpoint("memory://checkpoints", save_last="link"), {}, None)


# ---- last, deletion, resumption ----


def test_last_and_best_are_one_file(tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path / "ckpt", save_last=True)
    fit_with(pl, tmp_path, callback, {"max_epochs": 2}, None)
    assert os.path.samefile(callback.best_model_path, callback.last_model_path)
    assert not os.path.islink(callback.last_model_path)
    saved = torch.load(callback.best_model_path, weights_only=True)["callbacks"][callback.state_key]
    assert (saved["best_model_path"], saved["last_model_path"]) == (
        callback.best_model_path,
        callback.last_model_path,
    )
    os.remove(callback.best_model_path)
    assert torch.load(callback.last_model_path, weights_only=True)["epoch"] == 1


def test_a_symbolic_last_leads_to_the_newest_also_after_a_move(tmp_path: Path) -> None:
    fit_with(
        pl, tmp_path, ModelCheckpoint(tmp_path / "ckpt", save_last="link"), {"max_epochs": 2}, None
    )
    (tmp_path / "ckpt").rename(tmp_path / "moved")
    assert os.readlink(tmp_path / "moved" / "last.ckpt") == "epoch=1-step=8.ckpt"


def resumed(
    framework: Any, root: Path, first: dict[str, Any], second: dict[str, Any], which: str
) -> dict[str, Any]:
    """Train two epochs, then go on in a new Trainer; return what stands there in the end."""
    callback = framework.callbacks.ModelCheckpoint(root / "ckpt", **first)
    fit_with(framework, root, callback, {"max_epochs": 2}, [0.5, 0.7, 0.3, 0.9])
    path = str(root / "ckpt" / which)
    callback = framework.callbacks.ModelCheckpoint(**{"dirpath": root / "ckpt", **second})
    fit_with(framework, root, callback, {"max_epochs": 4}, [0.6, 0.2, 0.8, 0.1], ckpt_path=path)
    return {
        "files": sorted(str(p.relative_to(root)) for p in root.rglob("*.ckpt")),
        "state": callback.state_dict(),
    }


@pytest.mark.parametrize(
    ("first", "second", "which"),
    [
        (
            {"monitor": "val_loss", "save_top_k": 2},
            {"monitor": "val_loss", "save_top_k": 2},
            "epoch=1-step=8.ckpt",
        ),
        (
            {"monitor": "val_loss", "save_last": True},
            {"monitor": "val_loss", "save_last": True},
            "last.ckpt",
        ),
        ({}, {}, "epoch=1-step=8.ckpt"),
        ({"save_last": True}, {"save_last": True, "monitor": "val_loss"}, "last.ckpt"),
    ],
)
def test_a_resumed_run_goes_on_as_in_lightning(
    first: Any, second: Any, which: str, tmp_path: Path
) -> None:
    ours, theirs = both(
        lambda framework, root: resumed(framework, root, first, second, which), tmp_path
    )
    assert ours == theirs


def test_a_changed_folder_keeps_the_old_files(tmp_path: Path) -> None:
    fit_with(
        pl,
        tmp_path,
        ModelCheckpoint(tmp_path / "one", monitor="val_loss"),
        {"max_epochs": 1},
        [0.1],
    )
    callback = ModelCheckpoint(tmp_path / "two", monitor="val_loss")
    with pytest.warns(UserWarning, match=r"now saves to .*two.*comes from .*one"):
        fit_with(
            pl,
            tmp_path,
            callback,
            {"max_epochs": 3},
            [0.5, 0.4],
            ckpt_path=tmp_path / "one" / "epoch=0-step=4.ckpt",
        )
    assert [path.name for path in tmp_path.rglob("*.ckpt")].count("epoch=0-step=4.ckpt") == 1
    assert callback.best_model_path == str(tmp_path / "two" / "epoch=2-step=12.ckpt")


def test_a_second_fit_goes_on(tmp_path: Path) -> None:
    def scenario(framework: Any, root: Path) -> list[str]:
        callback = framework.callbacks.ModelCheckpoint(root / "ckpt", save_top_k=-1)
        trainer = fit_with(framework, root, callback, {"max_epochs": 1}, None)
        if framework is pl:
            trainer.max_epochs = 2
        else:
            trainer.fit_loop.max_epochs = 2
        trainer.fit(scripted(framework), batches(), batches(2))
        return sorted(os.listdir(root / "ckpt"))

    ours, theirs = both(scenario, tmp_path)
    assert ours == theirs == ["epoch=0-step=4.ckpt", "epoch=1-step=8.ckpt"]


def test_nothing_is_saved_outside_fit(tmp_path: Path) -> None:
    trainer = fit_with(
        pl, tmp_path, ModelCheckpoint(tmp_path / "ckpt", save_top_k=-1), {"max_epochs": 1}, None
    )
    trainer.validate(scripted(pl), batches(2), verbose=False)
    assert os.listdir(tmp_path / "ckpt") == ["epoch=0-step=4.ckpt"]


# ---- the metric ----


@pytest.mark.parametrize(
    "arguments", [{}, {"every_n_train_steps": 2}, {"save_on_train_epoch_end": False}], ids=str
)
def test_a_metric_that_is_never_logged_is_an_error(arguments: Any, tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path, monitor="val_los", **arguments)
    with pytest.raises(
        ConfigError,
        match=r"'val_los', which was not logged. Logged so far: 'val_loss'.*self.log\('val_los'",
    ):
        fit_with(pl, tmp_path, callback, {}, [0.5, 0.4, 0.3, 0.2])


def test_without_validation_it_is_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="'unknown', which was not logged"):
        fit_with(
            pl,
            tmp_path,
            ModelCheckpoint(tmp_path, monitor="unknown", every_n_train_steps=3),
            {"limit_val_batches": 0},
            None,
        )


def test_steps_that_wait_for_a_first_value_are_saved_after_validation(tmp_path: Path) -> None:
    # Lightning saves them never if epochs are saved at their end: step 4 is missing there
    callback = ModelCheckpoint(
        tmp_path / "ckpt", monitor="val_loss", every_n_train_steps=4, save_top_k=-1
    )
    fit_with(pl, tmp_path, callback, {"max_epochs": 2}, [0.5, 0.4])
    assert sorted(os.listdir(tmp_path / "ckpt")) == ["epoch=0-step=4.ckpt", "epoch=1-step=8.ckpt"]


def test_a_trial_run_leaves_no_file(tmp_path: Path) -> None:
    # Lightning leaves last.ckpt
    callback = ModelCheckpoint(tmp_path / "ckpt", save_last=True, save_on_exception=True)
    fit_with(pl, tmp_path, callback, {"fast_dev_run": True}, None)
    assert not (tmp_path / "ckpt").exists()


# ---- when it breaks ----


class RaiseAt(Callback):
    def __init__(self, step: int, error: BaseException) -> None:
        self.step, self.error = step, error

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise self.error


@pytest.mark.parametrize("save_last", [None, True, "link"])
def test_an_exception_saves_the_run(save_last: Any, tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path / "ckpt", save_on_exception=True, save_last=save_last)
    with pytest.raises(ZeroDivisionError):
        fit_with(pl, tmp_path, [RaiseAt(6, ZeroDivisionError()), callback], {}, None)  # type: ignore[arg-type]
    names = ["epoch=0-step=4.ckpt", "epoch=1-step=6.ckpt", *(["last.ckpt"] if save_last else [])]
    assert sorted(os.listdir(tmp_path / "ckpt")) == names
    fresh = ModelCheckpoint(tmp_path / "ckpt")
    again = fit_with(
        pl, tmp_path, fresh, {"max_epochs": 2}, None, ckpt_path=tmp_path / "ckpt" / names[-1]
    )
    assert (again.global_step, fresh.best_model_path) == (
        8,
        str(tmp_path / "ckpt" / "epoch=1-step=8.ckpt"),
    )


def test_an_exception_before_the_first_step_saves_nothing(tmp_path: Path) -> None:
    class Fails(pl.Callback):
        def setup(self, *args: Any, **kwargs: Any) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit_with(pl, tmp_path, [Fails(), ModelCheckpoint(save_on_exception=True)], {}, None)  # type: ignore[arg-type]
    assert not list(tmp_path.rglob("*.ckpt"))


def test_the_file_that_was_there_stays_if_the_new_one_cannot_be_written(tmp_path: Path) -> None:
    class Full(pl.Callback):
        def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
            if trainer.global_step > 4:
                raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        fit_with(pl, tmp_path, [Full(), ModelCheckpoint(tmp_path / "ckpt")], {}, None)  # type: ignore[arg-type]
    assert os.listdir(tmp_path / "ckpt") == ["epoch=0-step=4.ckpt"]


# ---- the rest ----


def test_time_passes_between_saves(tmp_path: Path) -> None:
    class Slow(pl.Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            time.sleep(0.04)

    callback = ModelCheckpoint(
        tmp_path / "ckpt", train_time_interval=timedelta(seconds=0.1), save_top_k=-1
    )
    started = time.monotonic()
    fit_with(pl, tmp_path, [Slow(), callback], {"max_epochs": 3}, None)  # type: ignore[arg-type]
    steps = sorted(
        torch.load(path, weights_only=True)["global_step"] for path in (tmp_path / "ckpt").iterdir()
    )
    # Not counted in steps: on a busy machine one of them may take longer than the interval
    assert 2 <= len(steps) <= (time.monotonic() - started) / 0.1


def test_manual_optimization_saves_too(tmp_path: Path) -> None:
    class Manual(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)
            self.automatic_optimization = False

        def training_step(self, batch: torch.Tensor) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.layer(batch).square().mean())
            optimizer.step()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    # Lightning does not heed the time here
    for arguments in (
        {"every_n_train_steps": 3},
        {"train_time_interval": timedelta(0)},
    ):
        callback = ModelCheckpoint(tmp_path / "ckpt", save_top_k=-1, **arguments)  # type: ignore[arg-type]
        pl.Trainer(max_epochs=1, callbacks=callback, **UNLOGGED).fit(Manual(), batches())
    names = [
        "epoch=0-step=1.ckpt",
        "epoch=0-step=2.ckpt",
        "epoch=0-step=3-v1.ckpt",
        "epoch=0-step=3.ckpt",
        "epoch=0-step=4.ckpt",
    ]
    assert sorted(os.listdir(tmp_path / "ckpt")) == names


def test_yaml(tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path / "ckpt", monitor="val_loss", save_top_k=2)
    fit_with(pl, tmp_path, callback, {}, [0.5, 0.75, 0.25, 1.0])
    callback.to_yaml()
    callback.to_yaml(tmp_path / "other.yaml")
    read = yaml.safe_load((tmp_path / "ckpt" / "best_k_models.yaml").read_text())
    assert read == {
        str(tmp_path / "ckpt" / f"epoch={epoch}-step={4 * epoch + 4}.ckpt"): score
        for epoch, score in ((0, 0.5), (2, 0.25))
    }
    assert yaml.safe_load((tmp_path / "other.yaml").read_text()) == read


def test_the_state_travels(tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path / "ckpt", monitor="val_loss", save_top_k=2, save_last=True)
    fit_with(pl, tmp_path, callback, {}, [0.5, 0.75, 0.25, 1.0])
    copy = ModelCheckpoint(tmp_path / "other")
    copy.__dict__.update(pickle.loads(pickle.dumps(callback.__getstate__())))
    assert copy.state_dict() == callback.state_dict()
    assert (copy.state_key, copy.best_model_path) == (callback.state_key, callback.best_model_path)


def test_loggers_are_told_of_each_file(tmp_path: Path) -> None:
    class Listening(pl.CSVLogger):
        paths: ClassVar[list[str]] = []

        def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
            assert os.path.exists(checkpoint_callback._last_checkpoint_saved)
            self.paths.append(os.path.basename(checkpoint_callback._last_checkpoint_saved))

    callback = ModelCheckpoint(tmp_path / "ckpt", save_last=True, filename="{step}")
    fit_with(pl, tmp_path, callback, {"logger": Listening(tmp_path), "max_epochs": 2}, None)
    assert list(dict.fromkeys(Listening.paths)) == ["step=4.ckpt", "last.ckpt", "step=8.ckpt"]


@pytest.mark.parametrize("fn", ["validate", "test", "predict"])
def test_evaluating_the_checkpoint_of_another_run_is_nothing_to_warn_of(
    tmp_path: Path, fn: str
) -> None:
    first = pl.Trainer(
        max_epochs=1,
        default_root_dir=tmp_path / "a",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    best = first.fit(TinyModel()).best_model_path
    other = pl.Trainer(
        max_epochs=2,
        default_root_dir=tmp_path / "b",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        getattr(other, fn)(TinyModel(), ckpt_path=best)
    with pytest.warns(
        UserWarning,
        match=r"ModelCheckpoint now saves to .*/b/.*but the checkpoint comes from .*/a/",
    ):
        other.fit(TinyModel(), ckpt_path=best)


@pytest.mark.parametrize("monitor", ["val_epoch", "train_epoch", "forked_epoch"])
@pytest.mark.parametrize("every", [2, 4])
def test_the_last_batch_of_an_epoch_is_ranked_by_its_own_epoch(
    tmp_path: Path, monitor: str, every: int
) -> None:
    class Numbered(TinyModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            number = float(self.current_epoch)
            self.log("train_epoch", number, on_step=False, on_epoch=True)
            self.log("forked", number, on_step=True, on_epoch=True)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_epoch", float(self.current_epoch))

    saver = ModelCheckpoint(
        tmp_path, monitor=monitor, every_n_train_steps=every, save_top_k=-1, mode="max"
    )
    data = DataLoader(RandomDataset(32, 4), batch_size=1)
    pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        callbacks=[saver],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        num_sanity_val_steps=0,
    ).fit(Numbered(), data, data)
    found = {Path(path).name: float(value) for path, value in saver.best_k_models.items()}
    at_ends = {f"epoch={epoch}-step={4 * epoch + 4}.ckpt": epoch for epoch in range(3)}
    assert {name: found.get(name) for name in at_ends} == at_ends


def test_a_callback_of_several_fits_saves_in_each(tmp_path: Path) -> None:
    """Also where they have equally many steps."""
    saver = ModelCheckpoint(tmp_path / "kept")
    for _ in range(2):
        fit_with(pl, tmp_path, saver, {"max_epochs": 1}, None)
        saved = tmp_path / "kept" / "epoch=0-step=4.ckpt"
        assert saved.exists()
        saved.unlink()
