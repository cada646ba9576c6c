"""How a Result looks where a notebook shows it."""

from __future__ import annotations

import pytest

from raylit.core.job import Result
from raylit.core.shown import as_png
from raylit.errors import ConfigError

HISTORY = [{"epoch": e, "step": 10 * e, "val_loss": 1 / (e + 1)} for e in range(500)]


@pytest.fixture
def result() -> Result:
    metrics = {f"metric_{number}": number / 7 for number in range(40)}
    return Result(metrics, "best.ckpt", 0.5, "last.ckpt", "abc", HISTORY, 500, 5000)


def test_a_result_is_a_line(result: Result) -> None:
    assert len(repr(result)) < 300
    assert repr(result).startswith("Result(500 epochs, 5000 steps; checkpoint=best.ckpt; run_id=")
    assert "and 34 more" in repr(result)
    assert repr(Result()) == "Result(0 epochs, 0 steps)"


def test_as_html_it_has_values_and_a_curve(result: Result) -> None:
    result.metrics["<script>"] = 1.0
    shown = result._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "best.ckpt" in shown
    assert shown.count("<img") == 1
    assert "<img" not in Result()._repr_html_()


def test_the_history_as_a_frame_and_a_picture(result: Result) -> None:
    frame = result.dataframe
    assert list(frame.columns) == ["epoch", "step", "val_loss"]
    assert len(frame) == 500
    assert as_png(result.plot("val_loss")).startswith(b"\x89PNG")


def test_a_curve_of_what_was_not_logged_is_an_error() -> None:
    rows = [{"epoch": 0, "step": 1, "loss_step": 2.0, "loss_epoch": 3.0, "val_loss": 1.0}]
    found = Result(history=rows)
    axes = found.plot("loss", "val_loss").axes[0]
    assert [line.get_label() for line in axes.lines] == ["loss_epoch", "val_loss"]
    with pytest.raises(ConfigError, match=r"'val_los' was not logged.*Did you mean 'val_loss'"):
        found.plot("val_los")
