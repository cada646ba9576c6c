from __future__ import annotations

import logging
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import raylit as pl
from raylit.callbacks import ModelSummary, RichModelSummary
from raylit.errors import ConfigError
from raylit.runtime.summary import Summary, count, summarize
from tests.callbacks.both import batches, both
from tests.lazy import lightning
from tests.quiet import UNLOGGED


def conv(pl: Any) -> Any:
    class Conv(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(
                nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Sequential(nn.Flatten(), nn.LazyLinear(8))
            )
            self.head = nn.Linear(8, 2)
            self.scale = nn.Parameter(torch.ones(5))
            self.head.requires_grad_(False)
            self.encoder[1].eval()
            self.example_input_array = torch.zeros(4, 1, 6, 6)

        def forward(self, x: torch.Tensor) -> Any:
            return self.head(self.encoder(x)) * self.scale.sum()

    return Conv()


def several_inputs(pl: Any) -> Any:
    class Both(pl.LightningModule):  # type: ignore[misc]
        def __init__(self, example: Any) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 4), nn.Bilinear(4, 4, 1)
            self.lstm = nn.LSTM(4, 5, batch_first=True)
            self.example_input_array = example

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> Any:
            return self.two(self.one(a), self.one(b)), self.lstm(self.one(a).unsqueeze(1))

    return Both({"a": torch.zeros(2, 3), "b": torch.zeros(2, 3)})


def plain(pl: Any) -> Any:
    class Plain(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(1000, 1000), nn.BatchNorm1d(1000), nn.Dropout())
            self.half = nn.Linear(10, 10).bfloat16()

    return Plain()


def empty(pl: Any) -> Any:
    return pl.LightningModule()


@pytest.mark.parametrize("max_depth", [-1, 0, 1, 2])
@pytest.mark.parametrize("make", [conv, several_inputs, plain, empty])
def test_numbers_are_those_of_lightning(make: Any, max_depth: int, tmp_path: Path) -> None:
    def scenario(framework: Any, root: Path) -> dict[str, Any]:
        summary: Any = (
            summarize if framework is pl else lightning.pytorch.utilities.model_summary.summarize
        )(make(framework), max_depth)
        names = (
            "layer_names",
            "layer_types",
            "param_nums",
            "training_modes",
            "in_sizes",
            "out_sizes",
            "total_parameters",
            "trainable_parameters",
            "model_size",
            "total_training_modes",
            "total_flops",
        )
        return {name: getattr(summary, name) for name in names}

    ours, theirs = both(scenario, tmp_path)
    # Lightning takes all parameters for float32
    theirs["model_size"] = ours["model_size"] if make is plain else theirs["model_size"]
    assert ours == theirs


def rows(text: str) -> list[list[str]]:
    """Return the cells of a table, and its sums."""
    lines = [line for line in text.lower().splitlines() if re.search(r"\w", line)]
    return [[cell for cell in re.split(r"\s{2,}|\s*\|\s*", line.strip()) if cell] for line in lines]


@pytest.mark.parametrize("make", [conv, several_inputs])
def test_the_table_holds_what_that_of_lightning_holds(make: Any) -> None:
    import lightning.pytorch

    ours, theirs = (
        rows(str(summarize(make(pl), 2))),
        rows(str(lightning.pytorch.utilities.model_summary.summarize(make(lightning.pytorch), 2))),
    )
    assert ours == theirs


def test_bytes_are_those_of_the_format() -> None:
    assert summarize(nn.Linear(1000, 999, bias=False).bfloat16()).model_size == pytest.approx(1.998)


def test_the_module_is_left_as_it_was() -> None:
    module = conv(pl)
    before = [child.training for child in module.modules()]
    summarize(module, -1)
    assert [child.training for child in module.modules()] == before
    assert not any(child._forward_hooks for child in module.modules())


class Fits(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = self.layer(batch).square().mean()
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(callback: Any) -> None:
    settings = {name: value for name, value in UNLOGGED.items() if name != "enable_model_summary"}
    pl.Trainer(max_steps=1, callbacks=callback, enable_checkpointing=False, **settings).fit(
        Fits(), batches()
    )  # type: ignore[arg-type]


def test_it_is_shown_once_when_a_fit_starts(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    logging.getLogger("raylit").addHandler(caplog.handler)
    try:
        for callback, times in (
            ([], 1),
            (ModelSummary(), 1),
            (ModelSummary(max_depth=0), 0),
            (RichModelSummary(), 0),
        ):
            caplog.clear()
            fit(callback)
            assert (
                sum("Trainable params" in record.getMessage() for record in caplog.records) == times
            )
    finally:
        logging.getLogger("raylit").removeHandler(caplog.handler)
    shown = capsys.readouterr().out  # of the last one
    assert "layer" in shown
    assert "Linear" in shown
    assert "Trainable params" in shown


def test_show_can_be_overridden_and_gets_the_arguments() -> None:
    class Keeps(ModelSummary):
        def show(self, summary: Summary, **summarize_kwargs: Any) -> None:
            self.kept = (summary.total_parameters, summarize_kwargs)

    callback = Keeps(max_depth=2, style="bold")
    fit(callback)
    assert callback.kept == (5, {"style": "bold"})


@pytest.mark.parametrize("max_depth", [-2, "all"])
def test_the_depth_is_checked(max_depth: Any) -> None:
    with pytest.raises(ConfigError, match="max_depth"):
        ModelSummary(max_depth=max_depth)
    with pytest.raises(ConfigError, match="max_depth"):
        summarize(nn.Linear(1, 1), max_depth)


def test_counts() -> None:
    from lightning.pytorch.utilities.model_summary.model_summary import get_human_readable_count

    for number in (
        0,
        1,
        999,
        1000,
        1234,
        99_999,
        123_456,
        2_000_000,
        3_000_000_000,
        4 * 10**14,
        5 * 10**15,
    ):
        assert count(number) == get_human_readable_count(number).strip()


def test_it_travels() -> None:
    assert pickle.loads(pickle.dumps(ModelSummary(max_depth=3)))._max_depth == 3


def test_in_a_notebook_it_shows_nothing_beside_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[object] = []
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", lambda *what: shown.append(what))
    assert "Trainable params" in str(summarize(nn.Linear(2, 1)))
    assert shown == []
