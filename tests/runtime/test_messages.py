from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path

import pytest

import raylit as pl
from raylit.runtime.messages import info, rank, rank_zero_only, warn, warn_once
from raylit.testing import TinyModel


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)


def said(monkeypatch: pytest.MonkeyPatch, on_rank: str) -> tuple[str, list[str]]:
    monkeypatch.setenv("RANK", on_rank)
    stream = io.StringIO()
    with contextlib.redirect_stderr(stream), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        info("hello")
        warn("careful")
    return stream.getvalue(), [str(one.message) for one in caught]


def test_only_rank_0_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert said(monkeypatch, "0") == ("hello\n", ["careful"])
    assert said(monkeypatch, "3") == ("", [])


def test_a_function_for_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    @rank_zero_only
    def double(x: int) -> int:
        """Twice."""
        return 2 * x

    assert (double(2), double.__doc__) == (4, "Twice.")
    monkeypatch.setenv("RANK", "1")
    assert rank() == 1
    assert double(2) is None


def test_a_kind_of_warning_is_given_once() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(3):
            warn_once("the same")
            warn_once(f"number {number}", key="kind")
    assert [str(one.message) for one in caught] == ["the same", "number 0"]


def test_a_warning_points_to_who_is_to_change_something() -> None:
    def complains() -> None:
        warn("careful")

    with pytest.warns(UserWarning, match="careful") as caught:
        complains()
    assert caught[0].filename == __file__


def test_a_warning_points_at_the_users_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = pl.Trainer(max_epochs=1, enable_checkpointing=False)
    with pytest.warns(UserWarning, match="log_every_n_steps") as caught:
        trainer.fit(TinyModel())
    assert {Path(one.filename).name for one in caught} == {Path(__file__).name}


def test_a_warning_of_a_worker_does_not_point_into_ray() -> None:
    """Whose code is the first that is not raylit's, where the user's is not on the stack."""
    import ray

    caller = compile("warn('careful')", f"{ray.__path__[0]}/train/util.py", "exec")
    with pytest.warns(UserWarning, match="careful") as caught:
        exec(caller, {"warn": warn})
    assert "/ray/" not in caught[0].filename
