"""The files that ranks leave, read by a process that may look at any moment."""

from __future__ import annotations

import multiprocessing
import resource
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import raylit as pl
from raylit.core.job import Result
from raylit.core.returned import bring_home, returned
from raylit.errors import LaunchError, Stopped, Terminated
from raylit.launch.processes.carried import (
    Failure,
    failures_in,
    leave_failure,
    leave_result,
    num_failed,
    result_in,
)
from tests.deadlines import stretched


def leave(folder: Path, error: BaseException, rank: int) -> None:
    try:
        raise error
    except BaseException as raised:
        leave_failure(folder, raised, rank)


def failure_of(error: BaseException) -> Failure:
    try:
        raise error
    except BaseException as raised:
        return Failure.of(raised, 0)


def test_where_nobody_has_left_anything_there_is_nothing(tmp_path: Path) -> None:
    assert result_in(tmp_path) is None
    assert failures_in(tmp_path) == [] and num_failed(tmp_path) == 0


def test_a_result_comes_as_it_was_left(tmp_path: Path) -> None:
    left = Result({"größe": float("nan"), "loss": float("inf")}, steps=3, value=torch.ones(2))
    leave_result(tmp_path, left)
    found = result_in(tmp_path)
    assert found is not None
    assert repr(found.metrics) == repr(left.metrics) and found.steps == 3
    assert torch.equal(found.value, torch.ones(2))
    assert failures_in(tmp_path) == [], "a result is none"


def test_failures_come_in_the_order_in_which_they_happened(tmp_path: Path) -> None:
    """Not in that of ranks, or of their names as text; each rank has one."""
    for rank in (11, 2, 0, 1, 10):
        leave(tmp_path, ValueError(f"of {rank}"), rank)
        assert num_failed(tmp_path) == len(failures_in(tmp_path))
    assert [failure.rank for failure in failures_in(tmp_path)] == [11, 2, 0, 1, 10]
    leave(tmp_path, ValueError("of 2 again"), 2)
    assert [failure.rank for failure in failures_in(tmp_path)] == [11, 0, 1, 10, 2]
    assert result_in(tmp_path) is None, "a failure is no result"


@pytest.mark.parametrize(
    ("error", "is_consequence"),
    [
        (Terminated(), True),  # the launcher told it to end
        (dist.DistBackendError("the other rank is gone"), True),
        (RuntimeError("[gloo/transport/tcp/pair.cc:537] Connection closed by peer"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (Stopped(), False),
        (SystemExit(143), False),
        (KeyboardInterrupt(), False),
        (ValueError("gloo"), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_only_who_lost_another_or_was_told_to_end_is_a_consequence(
    error: BaseException, is_consequence: bool
) -> None:
    assert failure_of(error).is_consequence is is_consequence


def test_the_exception_is_raised_with_the_users_lines_as_its_cause(tmp_path: Path) -> None:
    leave(tmp_path, KeyError("größe"), 3)
    (failure,) = failures_in(tmp_path)
    with pytest.raises(KeyError, match="größe") as raised:
        failure.raise_original()
    shown = str(raised.value.__cause__)
    assert "raise error" in shown and "KeyError: 'größe'" in shown


def test_of_an_exception_that_cannot_be_pickled_its_traceback_comes(tmp_path: Path) -> None:
    leave(tmp_path, ValueError(threading.Lock()), 0)
    (failure,) = failures_in(tmp_path)
    with pytest.raises(LaunchError, match=r"ValueError: <unlocked") as raised:
        failure.raise_original()
    assert "raise error" in str(raised.value.__cause__)


class Holds(pl.Callback):
    def __init__(self) -> None:
        self.lock: Any = threading.Lock()
        self.number = 3


def test_an_attribute_that_cannot_be_pickled_costs_no_result(tmp_path: Path) -> None:
    leave_result(tmp_path, Result(steps=4, state={"callbacks": returned([Holds(), Holds()])}))
    found = result_in(tmp_path)
    assert found is not None and found.state is not None
    assert [set(one.values) for one in found.state["callbacks"]] == [{"number"}] * 2
    own = Holds()
    own.number = 0
    lock = own.lock
    with pytest.warns(UserWarning, match="without its attribute lock"):
        bring_home([own], found.state["callbacks"])
    assert own.number == 3 and own.lock is lock


def test_a_result_that_cannot_be_pickled_leaves_nothing(tmp_path: Path) -> None:
    """Its rank then leaves that as its failure."""
    with pytest.raises(TypeError, match="generator"):
        leave_result(tmp_path, Result(value=(number for number in range(3))))
    assert list(tmp_path.iterdir()) == []


def with_little_room(leaves: Callable[[], None]) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    leaves()


def leave_much(folder: Path) -> None:
    leave_result(folder, Result(value=bytes(100_000)))


def fail_with_much(folder: Path) -> None:
    leave(folder, ValueError("x" * 100_000), 1)


@pytest.mark.parametrize("leaves", [leave_much, fail_with_much])
def test_what_a_full_disk_cut_off_is_not_read(
    tmp_path: Path, leaves: Callable[[Path], None]
) -> None:
    """In a process whose files may have 1000 bytes, which the system refuses to exceed."""
    leave(tmp_path, ValueError("before"), 0)
    process = multiprocessing.get_context("fork").Process(
        target=with_little_room, args=(lambda: leaves(tmp_path),)
    )
    process.start()
    process.join(stretched(30))
    assert process.exitcode == 1, "it says so itself"
    assert result_in(tmp_path) is None
    assert num_failed(tmp_path) == 1
    assert [failure.rank for failure in failures_in(tmp_path)] == [0]
