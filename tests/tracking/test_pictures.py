"""Figures, images, tables and texts that a module logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import raylit as pl
from raylit.errors import DataError
from raylit.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger
from raylit.loggers.pictures import as_csv, as_image, as_json, as_markdown
from raylit.testing import TinyModel
from tests.callbacks.pictures.test_pictures import Classifier, every_callback, trainer
from tests.lazy import matplotlib
from tests.loggers.mlflow_store import artifacts, history, run_of


class NoPictures(Logger):
    """A logger that keeps numbers alone."""

    name = "theirs"
    version = 0

    def log_metrics(self, *args: Any, **kwargs: Any) -> None: ...
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


class Draws(TinyModel):
    def on_validation_epoch_end(self) -> None:
        figure = matplotlib.figure.Figure()
        figure.subplots().plot([1, 2, 3])
        self.log_figure("errors/curve", figure)
        self.log_image("sample", torch.rand(3, 8, 6))
        self.log_image("sample", torch.rand(5))  # of no image's shape: said, and training goes on
        self.log_table("mistakes", {"name": ["a", "b"], "loss": [0.5, torch.tensor(0.25)]})
        self.log_text("notes/of the epoch.txt", f"epoch {self.current_epoch}")


def test_a_module_logs_pictures_and_tables(uri: str, tmp_path: Path) -> None:
    logger = MLFlowLogger("pictures", tracking_uri=uri, save_dir=tmp_path)
    with pytest.warns(UserWarning) as warned:
        pl.Trainer(
            max_epochs=2,
            logger=[logger, NoPictures()],
            default_root_dir=tmp_path,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(Draws())
    texts = [str(one.message) for one in warned]
    assert len([text for text in texts if "NoPictures has no log_figure" in text]) == 1
    assert any("DataError: log_image was given an array of shape (5,)" in text for text in texts)
    ours = ("config.yaml", "model_summary.txt", "plots/learning", "curves")
    found = [path for path in artifacts(logger) if not path.startswith(ours)]
    assert [path for path in found if not path.startswith("images/")] == [
        "notes/of the epoch.txt",
        "plots/errors/curve/step-00000004.png",
        "plots/errors/curve/step-00000008.png",
        "tables/mistakes/step-00000004.json",
        "tables/mistakes/step-00000008.json",
    ]
    assert len([path for path in found if path.startswith("images/sample")]) == 4  # and thumbnails
    client = logger.experiment

    def read(path: str) -> bytes:
        return Path(client.download_artifacts(str(logger.run_id), path)).read_bytes()

    assert read(found[-3] if found[-3].endswith(".png") else found[-4])[:4] == b"\x89PNG"
    table = json.loads(read("tables/mistakes/step-00000008.json"))
    assert table == {"columns": ["name", "loss"], "data": [["a", 0.5], ["b", 0.25]]}
    shown = json.loads(run_of(logger).data.tags["mlflow.loggedArtifacts"])
    assert [one["path"] for one in shown] == [path for path in found if "tables" in path]
    assert len(history(logger, "val_loss")) == 2
    assert not list((tmp_path / "journals" / "files").iterdir()), "what is sent is not kept"


@pytest.mark.parametrize(
    ("array", "size", "mode"),
    [
        (np.zeros((4, 6)), (6, 4), "L"),
        (np.zeros((4, 6, 3), np.uint8), (6, 4), "RGB"),
        (torch.zeros(3, 4, 6), (6, 4), "RGB"),
        (torch.zeros(1, 4, 6, dtype=torch.bfloat16), (6, 4), "L"),
        (np.ones((4, 6, 4), bool), (6, 4), "RGBA"),
    ],
)
def test_arrays_of_all_kinds_are_images(array: Any, size: tuple[int, int], mode: str) -> None:
    image = as_image(array)
    assert (image.size, image.mode) == (size, mode)
    assert as_image(image) is image


def test_values_are_kept_in_their_range() -> None:
    image = as_image(np.array([[0.0, 0.5, 1.0, 2.0, -1.0, np.nan]]))
    assert np.asarray(image).tolist() == [[0, 128, 255, 255, 0, 0]]


def test_tables_that_are_none_are_errors() -> None:
    import pandas as pd

    frame = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    assert json.loads(as_json(frame))["data"] == [[1, "x"], [2, "y"]]
    with pytest.raises(DataError, match="different lengths"):
        as_json({"a": [1], "b": [1, 2]})
    with pytest.raises(DataError, match="was given a list"):
        as_json([1])


def test_a_table_is_written_in_three_forms() -> None:
    import pandas as pd

    table = {"name": ["a|b", "c"], "loss": [torch.tensor(0.5), None]}
    assert as_csv(table).splitlines() == ["name,loss", "a|b,0.5", "c,"]
    assert as_markdown(table).splitlines() == [
        "| name | loss |",
        "| --- | --- |",
        "| a\\|b | 0.5 |",
        "| c | None |",
    ]
    frame = pd.DataFrame({"name": ["a"], "loss": [0.5]})
    assert as_csv(frame).split() == ["name,loss", "a,0.5"]
    assert as_markdown(frame).endswith("| a | 0.5 |")


def test_files_stay_in_the_folder_of_the_run_and_go_to_a_url(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="run")
    logger.log_text("not above", "../../other/./note.txt")
    assert (tmp_path / "run" / "other" / "note.txt").read_text() == "not above"
    with pytest.warns(UserWarning, match="could not be written"):
        logger.log_image("wrong", torch.rand(5), 0)
    far = CSVLogger(f"file://{tmp_path}/far", name="", version="run")
    far.log_image("right", torch.rand(5, 5), 3)
    far.finalize("success")
    assert (tmp_path / "far" / "run" / "images" / "right" / "step-00000003.png").is_file()


def test_pictures_go_to_tensorboard_and_mlflow(uri: str, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoardLogger(tmp_path, name="board", version="run")
    mlflow = MLFlowLogger("pictures", tracking_uri=uri, save_dir=tmp_path)
    trainer(tmp_path, *every_callback(), logger=[board, mlflow], max_epochs=1).fit(Classifier())
    events = EventAccumulator(board.log_dir, size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    assert sorted(events.Tags()["images"]) == [
        "attributions",
        "calibration",
        "confusion",
        "image",
        "made",
        "predictions",
    ]
    texts = {tag.removesuffix("/text_summary") for tag in events.Tags()["tensors"]}
    assert texts == {"predictions", "sample_text"}
    found = artifacts(mlflow)
    for name in (
        "plots/attributions/step-00000003.png",
        "plots/calibration/step-00000003.png",
        "plots/confusion/step-00000003.png",
        "plots/predictions/step-00000003.png",
        "sample_text/step-00000003.txt",
        "tables/predictions/step-00000003.json",
    ):
        assert name in found
    assert len([name for name in found if name.startswith("images/")]) == 4  # and thumbnails
