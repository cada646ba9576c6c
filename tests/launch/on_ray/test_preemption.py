"""Notices of a preemption, from this process, its driver and Ray."""

from __future__ import annotations

import time
from typing import Any

import pytest

from raylit.launch.on_ray import preemption
from raylit.launch.on_ray.mailbox import TERMINATED, Mailbox
from raylit.launch.on_ray.preemption import Notice
from tests.deadlines import stretched
from tests.lazy import ray


def test_without_any_notice_nothing_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TERMINATED, raising=False)
    notice = Notice(None)
    assert not notice.terminated and not notice.given and notice.why == ""


def test_a_sigterm_of_this_process_counts_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also once nothing says so any more: the ranks have agreed to end by it."""
    notice = Notice(None)
    monkeypatch.setenv(TERMINATED, "1")
    assert notice.terminated and notice.given
    monkeypatch.delenv(TERMINATED)
    assert not notice.terminated and notice.given


def test_ray_is_asked_every_few_seconds_and_its_answer_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the place of Ray Train, which answers in its workers alone."""
    now = [100.0]
    answers: list[Any] = [None, object(), None]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("ray.train.get_preemption_info", lambda: answers.pop(0), raising=False)
    notice = Notice(None)
    assert not notice.is_due, "the workers have just started"
    for said in (False, True, True):
        now[0] += preemption.ASK_EVERY_S - 0.01
        assert not notice.is_due
        now[0] += 0.02
        assert notice.is_due
        assert notice.came() is notice.given is said
        assert not notice.is_due, "it was just asked"


@pytest.mark.long
@pytest.mark.ray
def test_the_driver_is_heard_without_being_waited_for(ray_cluster: str) -> None:
    """And that it has died is no notice."""
    mailbox: Any = ray.remote(num_cpus=0)(Mailbox).remote()
    notice = Notice(mailbox)

    def answered(why: str) -> bool:
        """Ask, as the loop does after each batch, until the driver's word has come."""
        deadline = time.monotonic() + stretched(20)
        while notice.why != why:
            found = notice.terminated
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return found

    assert not notice.terminated, "nothing has come yet"
    ray.get(mailbox.make_room.remote(True))
    assert answered("grows") and notice.given
    notice.given = False
    ray.get(mailbox.make_room.remote(False))
    assert not answered("") and not notice.given
    ray.get(mailbox.end.remote())
    assert answered("ends") and notice.given
    ray.kill(mailbox)
    deadline = time.monotonic() + 3 * preemption.ASK_DRIVER_EVERY_S
    while time.monotonic() < deadline:
        assert not notice.terminated
        time.sleep(0.05)
    assert notice.given
