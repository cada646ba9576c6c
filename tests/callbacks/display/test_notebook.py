"""The progress bar in a notebook, run as Jupyter runs it."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.deadlines import stretched

FIT = """
import raylit as pl
from raylit.testing import BoringModel

class Net(BoringModel):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss["loss"], prog_bar=True)
        if batch_idx == 3:
            print("said in a step")
        return loss

trainer = pl.Trainer(max_epochs=2, logger=False, enable_checkpointing=False)
done = trainer.fit(Net())
"""


def outputs(folder: Path) -> list[nbformat.NotebookNode]:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(FIT)])
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(
        notebook, timeout=int(stretched(120)), kernel_name="python3", resources=resources
    ).execute()
    return list(notebook.cells[0].outputs)


def test_a_bar_is_drawn_in_place_and_prints_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYLIT_PROGRESS", "rich")
    found = outputs(tmp_path)
    (bar,) = [one.data["text/plain"] for one in found if one.output_type == "display_data"]
    assert "epoch 2/2" in bar and "64/64" in bar and "train_loss" in bar
    said = "".join(one.text for one in found if one.get("name") == "stdout")
    assert said == "said in a step\nsaid in a step\n"


def test_plain_lines_are_lines_there_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYLIT_PROGRESS", "plain")
    found = outputs(tmp_path)
    assert not [one for one in found if one.output_type == "display_data"]
    assert "epoch 2/2 64/64" in "".join(one.text for one in found if one.get("name") == "stdout")
