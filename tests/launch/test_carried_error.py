"""Exceptions as they are in the process that shows them.

Those of Python, and how a mailbox carries them: tests/launch/on_ray/test_mailbox.py.
"""

from __future__ import annotations

import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import psycopg2
import pytest

from raylit import errors
from raylit.errors import ConfigError, LaunchError
from raylit.launch.carried_error import WorkerTraceback, packed, unpacked
from tests.deadlines import stretched


def carried(error: BaseException) -> BaseException:
    return unpacked(packed(error))


class Full(OSError):
    """Has its file's name from Python, and wants other arguments than that."""

    def __init__(self, path: str, left: int) -> None:
        super().__init__(28, "No space left", path)
        self.left = left


class Opens(ConfigError):
    """What its `__init__` does must not be done again where it is shown."""

    num_made = 0

    def __init__(self, what: str) -> None:
        super().__init__(what)
        Opens.num_made += 1


def test_what_python_keeps_and_what_the_user_keeps_both_come_along() -> None:
    found = carried(Full("/data/größe.csv", 3))
    assert isinstance(found, Full) and type(found) is Full
    assert (found.errno, found.filename, found.left) == (28, "/data/größe.csv", 3)
    assert str(found) == "[Errno 28] No space left: '/data/größe.csv'"


def test_the_users_init_is_not_called_again() -> None:
    error = Opens("no such column")
    made = Opens.num_made
    found = carried(error)
    assert isinstance(found, Opens) and str(found) == "no such column"
    assert Opens.num_made == made


def test_notes_come_along() -> None:
    error = ValueError("bad batch")
    error.add_note("(raylit) rank 1 of 2")
    error.add_note("seen by the user")
    assert carried(error).__notes__ == ["(raylit) rank 1 of 2", "seen by the user"]
    assert not hasattr(carried(ValueError("bad batch")), "__notes__")


@pytest.mark.parametrize("text", ["", "Grüße", "a\nb", "\udcff", "\0"])
def test_a_text_stays_what_it_was(text: str) -> None:
    found = carried(ValueError(text))
    assert type(found) is ValueError and found.args == (text,)


@pytest.mark.parametrize(
    "error",
    [
        errors.NotSavedError("no space"),
        errors.NoRoomError("full"),
        errors.DataTypeError("a set"),
        errors.WrongStateError("not now"),
        errors.NoAttributeError("none such"),
        errors.MissingPackageError("s3fs", "s3://", "s3"),
        errors.TrainingSpikeException(7),
        errors.Stopped(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_raylits_own_are_what_they_were(error: Exception) -> None:
    """They have several bases in Python, of which one makes the object."""
    found = carried(error)
    assert type(found) is type(error)
    assert (str(found), found.args, vars(found)) == (str(error), error.args, vars(error))


class Sized(Exception):
    """Wants its arguments in `__new__` too, as pydantic's ValidationError does."""

    def __new__(cls, what: str, number: int) -> Sized:
        return super().__new__(cls, what, number)

    def __init__(self, what: str, number: int) -> None:
        super().__init__(f"{what} {number}")


@pytest.mark.parametrize(
    "error",
    [
        errors.CheckpointNotFoundError("gone"),
        errors.NoBestCheckpointError("none"),
        np.exceptions.AxisError(4, 1),
        Sized("batch", 3),
        psycopg2.OperationalError("no server"),  # a class made in C, with a __new__ of its own
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_made_in_another_way_is_told_as_well(error: Exception) -> None:
    found = carried(error)
    assert (type(found), str(found)) == (type(error), str(error))


def test_a_class_that_is_nowhere_to_be_imported_comes_by_value(tmp_path: Path) -> None:
    """Such as one of a notebook."""

    class OfACell(LookupError):
        def __str__(self) -> str:
            return f"no such key: {self.args[0]}"

    OfACell.__module__ = "__main__"
    (tmp_path / "parts").write_bytes(packed(OfACell("größe")))
    script = (
        "import sys; from raylit.launch.carried_error import unpacked\n"
        f"found = unpacked(open({str(tmp_path / 'parts')!r}, 'rb').read())\n"
        "print(ascii(f'{type(found).__name__}: {found}'), isinstance(found, LookupError))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=stretched(30),
        check=True,
    )
    assert done.stdout.strip() == r"'OfACell: no such key: gr\xf6\xdfe' True"


class Torn:
    """Can be pickled, and not unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("x",)


class Silent(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError


class Odd(Exception):
    """Wants other arguments than it hands to its base, so a group that holds it does not travel."""

    def __init__(self, what: str, number: int) -> None:
        super().__init__(f"{what} {number}")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("half", Torn()), "ValueError: ('half', "),
        (ExceptionGroup("several", [Odd("batch", 3), KeyError("k")]), "several (2 sub-exceptions)"),
        (KeyboardInterrupt(one for one in "ab"), "KeyboardInterrupt: <generator"),
        (Silent(one for one in "ab"), "Silent: <exception str() failed>"),
    ],
    ids=["torn", "group", "interrupt", "silent"],
)
def test_what_could_not_be_unpacked_is_told_in_its_place(error: BaseException, said: str) -> None:
    """Found where it is packed: where it is shown nobody could tell what was meant."""
    error.add_note("a note")
    found = carried(error)
    assert type(found) is LaunchError
    assert said in str(found) and "which cannot be pickled" in str(found)
    assert "a note" not in str(found) and error.__notes__ == ["a note"], "the original is untouched"


def test_the_workers_traceback_is_shown_as_the_cause() -> None:
    text = "Traceback (most recent call last):\n  File \"train.py\", line 3\nKeyError: 'größe'\n"
    with pytest.raises(KeyError) as raised:
        raise carried(KeyError("größe")) from WorkerTraceback(text)
    shown = "".join(traceback.format_exception(raised.value))
    assert f'"""\n{text}"""' in shown
    assert shown.index(text) < shown.index("direct cause")
