"""Callbacks on the way from one process to another."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import pytest

from raylit.callbacks import EarlyStopping, ModelCheckpoint
from raylit.core.callback import Callback
from raylit.core.returned import bring_home, returned


class Plain(Callback):
    """It has no state of its own, so that all of its kind share a key."""

    def __init__(self, value: Any) -> None:
        self.value = value


def sent(callbacks: list[Callback]) -> Any:
    states = returned(callbacks)
    for state in states:
        state.leave_behind(pickle.dumps)
    return pickle.loads(pickle.dumps(states))


def test_each_finds_its_own_whatever_the_order() -> None:
    here: list[Callback] = [Plain(1), EarlyStopping("a"), ModelCheckpoint(monitor="a"), Plain(2)]
    there: list[Callback] = [EarlyStopping("b"), ModelCheckpoint(monitor="a"), Plain(3), Plain(4)]
    there[1].best_model_path = "best.ckpt"  # type: ignore[attr-defined]
    home = bring_home(here, sent(there))
    assert [type(one) for one in home] == [type(one) for one in there]
    assert home[0] is not here[1] and home[0].monitor == "b"  # type: ignore[attr-defined]
    assert home[1] is here[2] and home[1].best_model_path == "best.ckpt"  # type: ignore[attr-defined]
    assert home[2:] == [here[0], here[3]]
    assert [one.value for one in home[2:]] == [3, 4]  # type: ignore[attr-defined]


def test_what_cannot_be_pickled_stays(recwarn: pytest.WarningsRecorder) -> None:
    there = Plain(3)
    there.lock = threading.Lock()  # type: ignore[attr-defined]
    here = Plain(1)
    assert bring_home([here], sent([there])) == [here]
    assert here.value == 3 and not hasattr(here, "lock")
    (told,) = recwarn.list
    assert "The callback Plain comes back from the workers without its attribute lock" in str(
        told.message
    )


class Refuses(Plain):
    def __getstate__(self) -> dict[str, Any]:
        raise RuntimeError("not now")


def test_a_callback_that_refuses_is_left_as_it_was() -> None:
    here = Refuses(1)
    with pytest.warns(UserWarning, match=r"__getstate__\(\).*RuntimeError: not now"):
        assert bring_home([here], sent([Refuses(2)])) == [here]
    assert here.value == 1
