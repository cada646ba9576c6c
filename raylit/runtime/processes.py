"""Which process something belongs to, whether it still runs, and ending with one's parent."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["alive", "gone", "unknown"]
_PR_SET_PDEATHSIG = 1  # of Linux's prctl


@dataclass(frozen=True)
class ProcessName:
    """A name that no other process has.

    Attributes:
        host: where it runs.
        boot: a name for the time since that host was started.
        namespace: within which its id counts: containers of one host may have their own.
        pid: its id, which is given again when it has ended.
        started: when it began, in ticks since the host was started.

    Example:
        >>> ProcessName.of_this().state()
        'alive'
    """

    host: str
    boot: str
    namespace: str
    pid: int
    started: int

    @staticmethod
    def of_this() -> ProcessName:
        """Return the name of this process."""
        pid = os.getpid()
        return ProcessName(
            socket.gethostname().replace(":", "-"), _boot(), _namespace(), pid, _started(pid) or 0
        )

    @staticmethod
    def parse(text: str) -> ProcessName | None:
        """Return the name from which `str` made a text; None for another text."""
        parts = text.split(":")
        if len(parts) != 5 or not (parts[3].isdigit() and parts[4].isdigit()):
            return None
        return ProcessName(parts[0], parts[1], parts[2], int(parts[3]), int(parts[4]))

    def __str__(self) -> str:
        return f"{self.host}:{self.boot}:{self.namespace}:{self.pid}:{self.started}"

    def state(self) -> State:
        """Return whether it runs, as far as this process can see."""
        if self.host != socket.gethostname().replace(":", "-"):
            return "unknown"
        if self.boot != _boot():
            return "gone"
        # Ids of another container mean other processes here
        if self.namespace != _namespace():
            return "unknown"
        # The id alone does not tell: it is given again
        return "alive" if _started(self.pid) == self.started else "gone"


def end_with(parent: int, number: signal.Signals) -> bool:
    """Have this process get a signal when its parent dies, of whatever; on Linux only.

    More exactly when the thread of the parent dies that has started this process.

    Args:
        parent: the id of the process that has started this one.
        number: the signal.

    Returns:
        Whether the parent still lives; if not, no signal will come.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    return os.getppid() == parent


def _started(pid: int) -> int | None:
    """Return when a process of this host began; None: it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # a name may hold blanks and brackets
    return None if fields[0] in "ZX" else int(fields[19])


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:13]
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid").strip("pid:[]")
    except OSError:
        return ""
