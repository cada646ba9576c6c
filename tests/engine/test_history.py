"""The history of a fit: every row comes back, and a checkpoint stays small."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import raylit as pl
from raylit.engine.history import TAIL, History
from raylit.testing import TinyModel


def row(step: int, **values: float) -> dict[str, float]:
    return {"epoch": step // 3, "step": step, **values}


@settings(max_examples=30, deadline=None)
@given(
    rounds=st.lists(
        st.tuples(st.integers(1, 3 * TAIL), st.sampled_from(["save", "resume"])), max_size=8
    )
)
def test_every_row_comes_back(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[tuple[int, str]]
) -> None:
    folder = str(tmp_path_factory.mktemp("history"))
    history, expected, step = History(), [], 0
    for number, then in rounds:
        for _ in range(number):
            step += 1
            history.add(row(step, loss=step / 7))
            expected.append(row(step, loss=step / 7))
        state = history.state(folder)
        assert len(state["rows"]) < 2 * TAIL
        if then == "resume":
            history = History.from_state(state, f"{folder}/x.ckpt")
        assert history.rows == expected


def test_values_of_one_step_are_one_row_also_late_ones(tmp_path: Path) -> None:
    history = History()
    for step in (2, 4, 6):
        history.add(row(step, loss=1.0))
    history.add(row(4, val_loss=2.0))
    history.add(row(5, val_loss=3.0))
    assert history.rows == [
        row(2, loss=1.0),
        row(4, loss=1.0, val_loss=2.0),
        row(5, val_loss=3.0),
        row(6, loss=1.0),
    ]
    assert history.state(str(tmp_path)) == {"rows": history.rows}
    assert not list(tmp_path.iterdir()), "a short history needs no file"


def test_a_folder_may_be_moved(tmp_path: Path) -> None:
    history = History()
    for step in range(3 * TAIL):
        history.add(row(step))
    state = history.state(str(tmp_path / "a"))
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert History.from_state(state, str(tmp_path / "b/x.ckpt")).rows == history.rows
    assert History.from_state(state, str(tmp_path / "b/recovery/x.ckpt")).rows == history.rows
    with pytest.warns(UserWarning, match=f"lacks its first {2 * TAIL} rows"):
        rest = History.from_state(state, str(tmp_path / "elsewhere/x.ckpt"))
    assert rest.rows == history.rows[2 * TAIL :]


class Logs(TinyModel):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("of_epoch", loss, on_step=False, on_epoch=True)
        return loss


def test_a_fit_that_goes_on_has_all_epochs(tmp_path: Path) -> None:
    """And its checkpoints hold few of them."""
    saver = pl.callbacks.ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=1)

    def trainer(epochs: int) -> pl.Trainer:
        return pl.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            limit_train_batches=1,
            limit_val_batches=0,
            callbacks=[saver],
        )

    first = trainer(2 * TAIL + 3)
    first.fit(Logs())
    result = trainer(2 * TAIL + 5).fit(Logs(), ckpt_path=saver.best_model_path)
    assert [one["epoch"] for one in result.history] == list(range(2 * TAIL + 5))
