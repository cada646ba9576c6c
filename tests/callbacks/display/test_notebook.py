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


def outputs(folder: Path, code: str = FIT) -> list[nbformat.NotebookNode]:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
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


@pytest.mark.parametrize("strategy", ["ddp_notebook", "ddp_spawn"])
@pytest.mark.parametrize("ends", [False, True])
def test_processes_of_this_machine_have_the_same_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str, ends: bool
) -> None:
    """Forked from the kernel or not; where a rank dies before it has a bar, the error comes."""
    monkeypatch.setenv("RAYLIT_PROGRESS", "rich")
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # where there is one, a kernel shows no child's lines
    code = FIT.replace("Trainer(", f"Trainer(devices=2, accelerator='cpu', strategy='{strategy}', ")
    if ends:
        monkeypatch.setenv("RAYLIT_PROGRESS", "plain")
        setup = "    def setup(self, stage):\n        import os; os._exit(7)\n"
        code = code.replace("class Net(BoringModel):\n", f"class Net(BoringModel):\n{setup}")
        code = code.replace("done =", "try:\n    done =")
        code += "except Exception as error:\n    print(error)\n"
    found = outputs(tmp_path, code)
    said = "".join(one.text for one in found if one.get("name") == "stdout")
    bars = [one.data["text/plain"] for one in found if one.output_type == "display_data"]
    if ends:
        assert "ended itself with exit code 7" in said and not bars
        return
    (bar,) = bars
    assert "epoch 2/2" in bar and "32/32" in bar and "train_loss" in bar
    assert said.count("said in a step") == 4, "by both ranks"
