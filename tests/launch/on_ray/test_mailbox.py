"""What travels from workers to the driver: pictures, jobs, exceptions."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from raylit.errors import LaunchError, MissingPackageError, Terminated
from raylit.launch.on_ray.failure import failure_of
from raylit.launch.on_ray.mailbox import Mailbox


def brought_home(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as raised:
        return failure_of(raised).original()


class Odd(SystemExit):
    """Wants other arguments than it hands on."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")
        self.two = two


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SystemExit("no data"), "no data"),
        (SystemExit(3), 3),
        (SystemExit(), None),
        (Terminated(), 143),
        (Odd("a", "b"), "a b"),
    ],
)
def test_an_exit_keeps_its_code(error: SystemExit, code: Any) -> None:
    found = brought_home(error)
    assert isinstance(found, type(error))
    assert found.code == code
    assert found.args == error.args


@pytest.mark.parametrize(
    "error",
    [
        OSError(2, "No such file", "x.txt"),
        ImportError("no", name="lib"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
        KeyError("k"),
        StopIteration(4),
        MissingPackageError("s3fs", "s3://"),
        ExceptionGroup("several", [ValueError("one"), OSError(1, "two")]),
    ],
)
def test_exceptions_of_python_come_whole(error: BaseException) -> None:
    found = brought_home(error)
    assert type(found) is type(error)
    assert (str(found), repr(found.args)) == (str(error), repr(error.args))
    if isinstance(error, OSError):
        assert isinstance(found, OSError) and (found.errno, found.filename) == (2, "x.txt")
    if isinstance(error, ImportError) and type(error) is ImportError:
        assert isinstance(found, ImportError) and found.name == "lib"
    if isinstance(error, StopIteration):
        assert isinstance(found, StopIteration) and found.value == 4


def test_one_that_cannot_be_pickled_is_told() -> None:
    found = brought_home(ValueError("held", threading.Lock()))
    assert isinstance(found, LaunchError) and "ValueError" in str(found)


def test_the_newest_picture_replaces_older_ones_of_its_stage() -> None:
    mailbox = Mailbox()

    def picture(stage: str, number: int, is_last: bool = False) -> dict[str, Any]:
        return {"stage": stage, "number": number, "is_last": is_last}

    mailbox.send("show", picture("train", 1))
    mailbox.send("show", picture("train", 2))
    mailbox.send("print", "line")
    mailbox.send("show", picture("train", 3, is_last=True))
    mailbox.send("show", picture("train", 4))
    mailbox.send("show", picture("val", 5))
    assert [
        content if kind == "print" else content["number"] for kind, content in mailbox.take()
    ] == [*(2, "line", 3, 4, 5)]
    assert mailbox.take() == []


def test_jobs_are_given_once_to_each_rank_and_end_when_all_have_answered() -> None:
    mailbox = Mailbox()
    assert mailbox.next_job(0) == (0, None)
    mailbox.give(1, "a job")
    assert mailbox.next_job(0) == (1, "a job")
    mailbox.did(1, 1, 2, None)
    mailbox.did(7, 0, 2, "of another job")
    assert mailbox.take() == []
    mailbox.did(1, 0, 2, "result")
    assert mailbox.take() == [("did", (1, "result"))]
    assert mailbox.next_job(1) == (1, None)
    assert mailbox.why_end() == ""
    mailbox.make_room(True)
    assert mailbox.why_end() == "grows"
    mailbox.end()
    assert mailbox.why_end() == "ends"
