"""Sharded checkpoints of one rank; those of several stand in tests/parallel/test_fsdp.py."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

import raylit as pl
from raylit.callbacks import ModelCheckpoint
from raylit.checkpoint import load, to_one_file
from raylit.checkpoint.format import is_whole
from raylit.errors import CheckpointError
from raylit.parallel import FSDPStrategy
from raylit.testing import TinyModel
from tests.quiet import UNLOGGED


def fit(path: Path, *, in_background: bool = False, **arguments: Any) -> pl.Trainer:
    strategy = FSDPStrategy(state_dict_type="sharded", async_save=in_background)
    trainer = pl.Trainer(
        strategy=strategy, max_epochs=2, default_root_dir=path, **UNLOGGED, **arguments
    )
    trainer.fit(TinyModel())
    return trainer


@pytest.mark.parametrize("in_background", [False, True])
def test_a_folder_takes_the_place_of_what_had_its_name(tmp_path: Path, in_background: bool) -> None:
    saver = ModelCheckpoint(tmp_path, save_last=True, filename="{epoch}", save_top_k=1)
    trainer = fit(tmp_path, in_background=in_background, callbacks=saver)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch=1.ckpt", "last.ckpt"]
    for name in ("epoch=1.ckpt", "last.ckpt"):
        assert (tmp_path / name).is_dir() and is_whole(tmp_path / name)
        assert load(tmp_path / name)["global_step"] == trainer.global_step
    (tmp_path / "file.ckpt").write_text("what was there before")
    trainer.save_checkpoint(tmp_path / "file.ckpt")
    trainer.save_checkpoint(tmp_path / "file.ckpt")
    to_one_file(tmp_path / "file.ckpt", tmp_path / "one.ckpt")
    one = torch.load(tmp_path / "one.ckpt", weights_only=True)
    assert all(
        torch.equal(value, one["state_dict"][name])
        for name, value in trainer.lightning_module.state_dict().items()
    )  # type: ignore[union-attr]
    again = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    again.fit(TinyModel(), ckpt_path=tmp_path / "last.ckpt")
    assert again.global_step == trainer.global_step


class Counts(pl.Callback):
    """Its state has dicts that are not made from their items."""

    def state_dict(self) -> dict[str, Any]:
        by_class = defaultdict(int, cat=2)
        return {"by_class": by_class, "words": Counter("aab"), "pair": ({"a": 1}, [by_class])}


def test_other_kinds_of_dicts_are_kept(tmp_path: Path) -> None:
    trainer = fit(tmp_path, callbacks=[Counts()], enable_checkpointing=False)
    trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only=False)
    saved = load(tmp_path / "a.ckpt", weights_only=False)["callbacks"]
    assert list(saved.values()) == [Counts().state_dict()]


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    trainer = fit(tmp_path, enable_checkpointing=False)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CheckpointError, match="Could not write the checkpoint"):
        trainer.save_checkpoint(tmp_path / "file" / "one.ckpt")
    with pytest.raises(CheckpointError, match="needs a local path"):
        trainer.save_checkpoint("memory://one.ckpt")


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no checkpoint, or its writing was not finished"):
        load(tmp_path)
    assert not is_whole(tmp_path)
