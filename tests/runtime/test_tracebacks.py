from __future__ import annotations

import re
import traceback

import nbformat
import pytest
from nbclient import NotebookClient

from raylit.launch.carried_error import packed, unpacked
from raylit.runtime import tracebacks
from raylit.runtime.tracebacks import traceback_of
from tests.deadlines import stretched

CELL = """
import raylit as pl
from raylit.testing import BoringModel

class Broken(BoringModel):
    def training_step(self, batch, batch_idx):
        return self.layer(batch[:, :3]).sum()

trainer = pl.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, {})
trainer.fit(Broken())
"""


def shown_in_a_notebook(arguments: str) -> str:
    """Return what a notebook shows of a mistake in a step."""
    cell = nbformat.v4.new_code_cell(CELL.format(arguments))
    NotebookClient(
        nbformat.v4.new_notebook(cells=[cell]),
        timeout=int(stretched(120)),
        kernel_name="python3",
        allow_errors=True,
    ).execute()
    error = next(one for one in cell.outputs if one.output_type == "error")
    return re.sub(r"\x1b\[[\d;]*m", "", "\n".join(error.traceback))


def test_a_notebook_shows_the_users_lines() -> None:
    shown = shown_in_a_notebook("num_workers=0")
    assert "self.layer(batch[:, :3])" in shown and "RuntimeError: mat1 and mat2" in shown
    assert "train_batch" not in shown and "run_job" not in shown
    assert len(shown.splitlines()) < 60


def test_a_traceback_as_long_as_the_stack_is_shown_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def deeper() -> None:
        deeper()

    monkeypatch.setattr(tracebacks, "is_notebook", lambda: True)
    with pytest.raises(RecursionError) as raised:
        deeper()
    before = len(traceback.extract_tb(raised.value.__traceback__))
    tracebacks.hide_own_frames(raised.value)
    assert len(traceback.extract_tb(raised.value.__traceback__)) == before > 500


class Odd(Exception):
    """Wants other arguments than it hands to its base."""

    def __init__(self, what: str, number: int) -> None:
        super().__init__(f"{what} {number}")
        self.number = number


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as one:
        return one


def test_an_exception_comes_back_as_it_was() -> None:
    assert unpacked(packed(raised(Odd("batch", 3)))).number == 3  # type: ignore[attr-defined]
    left = unpacked(packed(raised(SystemExit(4))))
    assert isinstance(left, SystemExit) and left.code == 4


def test_one_that_cannot_be_pickled_says_the_same() -> None:
    error = Odd("batch", 3)
    error.handle = (one for one in "ab")  # type: ignore[attr-defined]
    error.add_note("a note")
    said = str(unpacked(packed(raised(error))))
    assert "Odd: batch 3 (this stands for" in said and "a note" not in said


def test_the_text_begins_at_the_users_lines() -> None:
    text = traceback_of(raised(ValueError("no")))
    assert text.startswith("Traceback") and "raise error" in text and text.endswith("no\n")
