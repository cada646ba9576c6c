"""examples/notebook.ipynb, run cell by cell as Jupyter runs it."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.deadlines import stretched

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook.ipynb"


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[nbformat.NotebookNode]:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    folder = tmp_path_factory.mktemp("notebook")
    NotebookClient(
        notebook,
        timeout=int(stretched(240)),
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    ).execute()
    return list(notebook.cells)


def data_of(cells: list[nbformat.NotebookNode], ends_with: str) -> dict[str, str]:
    """Return by kind what the cell shows whose source ends so, as its value."""
    cell = next(one for one in cells if one.source.rstrip().endswith(ends_with))
    return dict(next(one.data for one in cell.outputs if one.output_type == "execute_result"))


@pytest.mark.ray
def test_results_are_short_and_pictures_are_shown(cells: list[nbformat.NotebookNode]) -> None:
    result = data_of(cells, "\nresult")
    assert len(result["text/plain"]) < 400
    assert "val_acc=0.9" in result["text/plain"]
    assert "<img alt='curves' src='data:image/png;base64," in result["text/html"]
    for plot in ('result.plot("val_acc", "train_loss")', 'sweep.plot("history")'):
        assert "image/png" in data_of(cells, plot)
    assert "<table" in data_of(cells, "result.dataframe.tail()")["text/html"]
    assert data_of(cells, "logits.argmax(1)[:20]")["text/plain"].startswith("tensor([")


@pytest.mark.ray
def test_a_sweep_is_a_table_with_the_best_first(cells: list[nbformat.NotebookNode]) -> None:
    sweep = data_of(cells, "\nsweep")
    assert sweep["text/plain"].startswith("SweepResult(trials: 4 (4 ")
    assert "best: trial-00" in sweep["text/plain"]
    assert sweep["text/html"].count("<tr") >= 7


def test_the_notebook_is_kept_without_outputs() -> None:
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
