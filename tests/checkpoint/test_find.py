from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import raylit as pl
from raylit.callbacks import ModelCheckpoint
from raylit.checkpoint import find, save
from raylit.errors import CheckpointError
from raylit.testing import TinyModel
from tests.deadlines import stretched
from tests.quiet import BARE, UNLOGGED


def fit(root: Path, saver: ModelCheckpoint) -> pl.Trainer:
    trainer = pl.Trainer(max_epochs=3, callbacks=[saver], default_root_dir=root, **UNLOGGED)
    trainer.fit(TinyModel())
    return trainer


def test_a_path_is_itself(tmp_path: Path) -> None:
    (tmp_path / "one.ckpt").touch()
    assert find.resolve(tmp_path / "one.ckpt", [], str(tmp_path), "fit") == str(
        tmp_path / "one.ckpt"
    )
    assert find.resolve(None, [], str(tmp_path), "fit") is None
    assert find.resolve(f"file://{tmp_path}/one.ckpt", [], str(tmp_path), "fit") == str(
        tmp_path / "one.ckpt"
    )
    save({"x": 1}, "memory://find/one.ckpt")
    assert (
        find.resolve("memory://find/one.ckpt", [], str(tmp_path), "fit") == "memory://find/one.ckpt"
    )
    for missing in ("nowhere.ckpt", "memory://find/two.ckpt"):
        with pytest.raises(FileNotFoundError, match="no such file"):
            find.resolve(missing, [], str(tmp_path), "fit")


def test_last_is_the_newest_and_of_those_of_one_moment_the_one_of_that_name(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for age, name in enumerate(("c", "a", "b")):
        save({"name": name}, folder / f"{name}.ckpt")
        os.utime(folder / f"{name}.ckpt", (1000 - age, 1000 - age))
    assert find.resolve("last", [ModelCheckpoint()], str(tmp_path), "fit") == str(folder / "c.ckpt")
    save({"name": "last"}, folder / "last.ckpt")
    os.utime(folder / "last.ckpt", (1, 1))
    assert find.resolve("last", [ModelCheckpoint()], str(tmp_path), "fit") == str(folder / "c.ckpt")
    os.utime(folder / "last.ckpt", (1000, 1000))
    assert find.resolve("last", [ModelCheckpoint()], str(tmp_path), "fit") == str(
        folder / "last.ckpt"
    )
    save({"name": "recovery"}, folder / "recovery" / "batch=1.ckpt")
    assert find.resolve("last", [ModelCheckpoint()], str(tmp_path), "fit") == str(
        folder / "recovery" / "batch=1.ckpt"
    )


def test_a_damaged_file_is_left_aside(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    paths = [folder / f"{number}.ckpt" for number in range(4)]
    for age, path in enumerate(paths):
        save({"state_dict": {"x": torch.zeros(100)}}, path)
        content = path.read_bytes()
        middle = content.index(bytes(400))
        damaged = (content[:-10], b"", content[:middle] + b"\1" + content[middle + 1 :], content)[
            age
        ]
        path.write_bytes(damaged)
        os.utime(path, (1000 - age, 1000 - age))
    with pytest.warns(UserWarning, match="is torn or damaged") as warned:
        assert find.resolve("last", [ModelCheckpoint()], str(tmp_path), "fit") == str(paths[3])
    assert [str(path) in str(one.message) for one, path in zip(warned, paths, strict=False)] == [
        True,
        True,
        True,
    ]
    paths[3].unlink()
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged"):
        find.resolve("last", [ModelCheckpoint()], str(tmp_path), "fit")


def test_nothing_to_be_found(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Training starts from scratch"):
        assert find.resolve("last", [ModelCheckpoint()], str(tmp_path), "fit") is None
    for path, fn in (("last", "test"), ("best", "fit"), ("best", "test")):
        with pytest.raises(CheckpointError, match="Fit first, or give a path"):
            find.resolve(path, [], str(tmp_path), fn)


@pytest.mark.parametrize("name", ["best", "last"])
def test_a_trainer_that_saves_nothing_takes_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    other = pl.Trainer(max_epochs=1, **UNLOGGED)
    other.fit(TinyModel())
    assert other.checkpoint_callback is not None
    own = pl.Trainer(max_epochs=1, **BARE)
    model = TinyModel()
    own.fit(model)
    for run in (own.test, own.fit):
        with pytest.raises(CheckpointError, match=r"saves none.*epoch=0-step=4\.ckpt"):
            run(model, ckpt_path=name)


def test_the_loggers_folder_is_where_a_trainer_has_saved(tmp_path: Path) -> None:
    """Not the root folder, although another run has left something newer there."""

    def trainer(place: Path | None) -> pl.Trainer:
        logger = False if place is None else pl.loggers.CSVLogger(place, name="digits")
        return pl.Trainer(
            max_epochs=1, **{**UNLOGGED, "logger": logger, "default_root_dir": tmp_path}
        )

    mine, others = tmp_path / "elsewhere", tmp_path / "never used"
    trainer(mine).fit(TinyModel())
    trainer(None).fit(TinyModel())
    for name in ("best", "last"):
        own = trainer(mine)
        own.validate(TinyModel(), ckpt_path=name)
        assert str(own.ckpt_path).startswith(str(mine))
        elsewhere = trainer(others)  # what is evaluated may be of a Trainer without the logger
        elsewhere.validate(TinyModel(), ckpt_path=name)
        assert str(elsewhere.ckpt_path).startswith(str(tmp_path / "checkpoints"))
    with pytest.warns(UserWarning, match="Training starts from scratch"):
        trainer(others).fit(TinyModel(), ckpt_path="last")


def test_best_and_last_in_a_process_that_did_not_write_them(tmp_path: Path) -> None:
    """Mode `max` on a falling loss makes the first checkpoint the best."""
    torch.manual_seed(0)
    saver = ModelCheckpoint(tmp_path / "here", monitor="val_loss", mode="max", save_top_k=2)
    fit(tmp_path, saver)
    assert "epoch=0" in saver.best_model_path
    script = (
        "import sys; from raylit.callbacks import ModelCheckpoint; from raylit.checkpoint import"
        f" find\nsaver = ModelCheckpoint({str(tmp_path / 'here')!r}, monitor='val_loss',"
        f" mode='max', save_top_k=2)\nprint(find.resolve('best', [saver], {str(tmp_path)!r},"
        f" 'test'), find.resolve('last', [saver], {str(tmp_path)!r}, 'fit'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=stretched(120),
        check=True,
    )
    best, last = done.stdout.split()
    assert best == saver.best_model_path
    assert last == max(
        (str(path) for path in (tmp_path / "here").iterdir()),
        key=lambda path: os.stat(path).st_mtime_ns,
    )


def test_without_a_folder_that_of_the_newest_run_is_looked_in(tmp_path: Path) -> None:
    saver = ModelCheckpoint()
    fit(tmp_path, saver)
    assert find.resolve("last", [ModelCheckpoint()], str(tmp_path), "fit") == saver.best_model_path


def test_workers_that_start_again_take_the_newest_of_their_own_fit(tmp_path: Path) -> None:
    """Another fit may write newer files to the folder; files without weights only are whole."""
    folder = tmp_path / "checkpoints"
    before = find.times_of([str(folder)])
    whole: dict[str, Any] = {"state_dict": {"w": torch.ones(3)}, "optimizer_states": []}
    contents: dict[str, dict[str, Any]] = {
        "own": {**whole, "raylit": {"job": "mine"}},
        "weights": {"state_dict": {}, "raylit": {"job": "mine"}},
        "other": {**whole, "raylit": {"job": "theirs"}},
        "lightning": whole,
        "odd": {**whole, "raylit": 3},
    }
    for age, (name, content) in enumerate(contents.items()):
        save(content, folder / f"{name}.ckpt")
        os.utime(folder / f"{name}.ckpt", (1000 + age, 1000 + age))
    found = find.newest_of("mine", [str(folder)], before)
    assert found == str(folder / "own.ckpt")
    assert find.newest_of("mine", [str(folder)], find.times_of([str(folder)])) is None
    assert find.newest_of("nobody's", [str(folder)], before) is None
    torn = folder / "torn.ckpt"
    torn.write_bytes((folder / "own.ckpt").read_bytes()[:-100])
    with pytest.warns(UserWarning, match=r"torn\.ckpt is torn or damaged"):
        assert find.newest_of("mine", [str(folder)], before) == found


def test_the_id_of_a_fit_is_found_at_a_url(tmp_path: Path) -> None:
    saver = ModelCheckpoint(dirpath="memory://own/checkpoints", monitor=None)
    ids = []

    class Look(pl.Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            ids.append(trainer.run.job.id)

    pl.Trainer(max_epochs=1, callbacks=[saver, Look()], default_root_dir=tmp_path, **UNLOGGED).fit(
        TinyModel()
    )
    found = find.newest_of(ids[0], ["memory://own/checkpoints"], {})
    assert found == saver.best_model_path.replace("//own", "///own")  # as fsspec lists it
    assert find.newest_of("theirs", ["memory://own/checkpoints"], {}) is None


def newest_in(root: Path, model: pl.LightningModule, kept: str) -> Path:
    """Fit a model below `root` and return its checkpoint, the newest there is."""
    saver = ModelCheckpoint(dirpath=root / kept / "checkpoints")
    trainer = pl.Trainer(max_epochs=1, callbacks=[saver], default_root_dir=root, **UNLOGGED)
    trainer.fit(model)
    path = Path(saver.best_model_path)
    newest = 2_000_000_000 + len(list(root.rglob("*.ckpt")))
    os.utime(path, (newest, newest))
    return path


class Other(TinyModel):
    pass


@pytest.mark.parametrize("word", ["best", "last"])
def test_a_trial_of_a_sweep_and_another_model_are_not_what_is_meant(
    tmp_path: Path, word: str
) -> None:
    own = newest_in(tmp_path, TinyModel(), "logs/version_0")
    other = newest_in(tmp_path, Other(), "logs/version_1")
    newest_in(tmp_path, TinyModel(), "raylit_runs/sweep-1/trial-000")
    (tmp_path / "raylit_runs" / "sweep-1" / find.SWEEP).touch()
    trainer = pl.Trainer(default_root_dir=tmp_path, callbacks=[ModelCheckpoint()], **UNLOGGED)
    with pytest.warns(UserWarning, match=rf"are left aside: {other.parents[1]} \(.*Other\)"):
        trainer.validate(TinyModel(), ckpt_path=word)
    assert trainer.ckpt_path == str(own)


def test_other_hyperparameters_are_named_before_anything_is_loaded(tmp_path: Path) -> None:
    newest_in(tmp_path, TinyModel(batch_size=3), "logs/version_0")
    trainer = pl.Trainer(default_root_dir=tmp_path, callbacks=[ModelCheckpoint()], **UNLOGGED)
    with pytest.warns(UserWarning, match=r"was made with batch_size=3 \(here 4\)"):
        trainer.validate(TinyModel(), ckpt_path="last")


@pytest.mark.parametrize(
    ("here", "other"), [("__main__.Net", None), ("lab.Net", None), ("lab.Other", "lab.Net")]
)
def test_a_model_of_a_script_is_the_same_when_it_is_imported(here: str, other: str | None) -> None:
    assert find.Origin(here).is_other({"raylit": {"module": "lab.Net"}}) == other


def test_where_there_is_only_another_model_it_is_named_and_taken(tmp_path: Path) -> None:
    other = newest_in(tmp_path, Other(), "logs/version_1")
    trainer = pl.Trainer(default_root_dir=tmp_path, callbacks=[ModelCheckpoint()], **UNLOGGED)
    with pytest.warns(UserWarning, match=rf"are of .*Other, in {other.parents[1]}, and there are"):
        trainer.validate(TinyModel(), ckpt_path="last")
    assert trainer.ckpt_path == str(other)
