"""Finds sweeps by their folders: the one to go on with, and those whose drivers have died."""

from __future__ import annotations

import fcntl
import json
import os
import socket

from raylit.errors import did_you_mean
from raylit.runtime.aliases import PlainDict
from raylit.runtime.storage import end_torn_line
from raylit.tune.record import FILE, LOCK, read_lines
from raylit.tune.space import SweepError


def find_sweep(records: str, sweep: str, wanted: str | bool) -> str:
    """Return the name of the sweep to go on with.

    Args:
        records: folder of all sweeps.
        sweep: name in the settings.
        wanted: its name or folder; True: the newest unfinished one of the name `sweep`.

    Raises:
        SweepError: there is none, or it is being run.
    """
    names = [
        name
        for name in (os.listdir(records) if os.path.isdir(records) else [])
        if os.path.isfile(os.path.join(records, name, FILE))
    ]
    if wanted is True:
        mine = [
            name for name in names if head_of(os.path.join(records, name)).get("sweep") == sweep
        ]
        open_ones = [name for name in mine if closed(os.path.join(records, name)) != "success"]
        if not open_ones:
            raise SweepError(
                f"resume: there is no unfinished sweep {sweep!r} in {records}. To resume another,"
                " give its name or folder."
            )
        name = max(open_ones, key=lambda one: os.path.getmtime(os.path.join(records, one, FILE)))
    else:
        name = os.path.basename(os.path.normpath(str(wanted)))
        if name not in names:
            near = did_you_mean(name, names)
            there = f" There are: {', '.join(sorted(names))}." if names else ""
            raise SweepError(f"resume: there is no sweep {name!r} in {records}.{near}{there}")
    if is_running(os.path.join(records, name)):
        raise SweepError(f"resume: the sweep {name} is being run by another process.")
    return name


def head_of(folder: str) -> dict[str, object]:
    """Return the description of a sweep in its record; empty if there is none."""
    try:
        with open(os.path.join(folder, FILE), encoding="utf-8") as file:
            head: PlainDict = json.loads(file.readline()).get("sweep", {})
            return head
    except (OSError, ValueError):
        return {}


def closed(folder: str) -> str | None:
    """Return how a sweep ended, or None: it runs, or its driver has died."""
    ends = [line["closed"] for line in read_lines(os.path.join(folder, FILE)) if "closed" in line]
    return ends[-1] if ends else None


def is_running(folder: str) -> bool:
    """Tell whether a process on this machine runs the sweep."""
    path = os.path.join(folder, LOCK)
    if not os.path.exists(path):
        return False
    with open(path) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def unfinished(records: str) -> list[str]:
    """Return sweeps of this machine whose drivers have died and that nobody was told of."""
    if not os.path.isdir(records):
        return []
    return [
        name
        for name in sorted(os.listdir(records))
        if os.path.exists(os.path.join(records, name, LOCK))
        and head_of(os.path.join(records, name)).get("host") == socket.gethostname()
        and not is_running(os.path.join(records, name))
    ]


def mark_left(folder: str) -> PlainDict | None:
    """Note that a sweep's driver has died, so that it is told once; return its description.

    None: another process has just noted it, or goes on with the sweep.
    """
    path = os.path.join(folder, LOCK)
    try:
        with open(path, "r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            end_torn_line(os.path.join(folder, FILE))
            with open(os.path.join(folder, FILE), "a", encoding="utf-8") as file:
                file.write(json.dumps({"closed": "left"}) + "\n")
            os.remove(path)
    except (FileNotFoundError, BlockingIOError):
        return None
    return head_of(folder)
