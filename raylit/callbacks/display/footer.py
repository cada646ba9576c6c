"""Lines that stay at the bottom of a terminal, while all else that is written scrolls above."""

from __future__ import annotations

import atexit
import os
from typing import TextIO

SAVE, RESTORE = "\x1b7", "\x1b8"  # place and colours of the cursor
LEAST_ROWS = 4  # of a terminal, for a footer to be drawn


class Footer:
    """The last lines of a terminal, which are drawn again and again.

    The terminal itself keeps the rest off them: the region that scrolls ends above. So nothing is
    redirected, and whoever writes need not know of them: `print`, a handler of logging that was
    made long ago, a library in C, another process, a debugger that waits for a command. Each
    picture is one write, after which the cursor is where it was.

    Args:
        stream: of the terminal.

    Source: DECSTBM of https://vt100.net/docs/vt510-rm/DECSTBM.html; apt shows its progress so.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._num_lines = 0
        self._size = size_of(stream)
        self._is_gone = False

    @property
    def columns(self) -> int:
        """How wide the terminal is, in letters."""
        return size_of(self._stream).columns or 80

    def draw(self, lines: list[str]) -> None:
        """Show other lines, none of them wider than the terminal.

        Nothing is shown while the terminal is too low, and of many lines the first.
        """
        size = size_of(self._stream)
        if not self._num_lines:
            atexit.register(self.close)
        text = ""
        if size != self._size:  # what stood where has moved, and is overwritten if it can be
            text += self._end(erases=False)
            self._size = size
        lines = lines[: size.lines // 2] if size.lines >= LEAST_ROWS else []
        text += self._reserve(len(lines))
        if lines:
            first = size.lines - len(lines) + 1
            # the region each time: a pager, or `reset`, may have changed it
            text += f"{SAVE}\x1b[1;{first - 1}r"
            text += "".join(f"\x1b[{first + n};1H\x1b[2K{line}" for n, line in enumerate(lines))
            text += RESTORE
        self._write(text)

    def close(self, last: list[str] | None = None) -> None:
        """Take the lines away and give the whole terminal back.

        Args:
            last: lines that stay, below what was written last.
        """
        atexit.unregister(self.close)
        text = self._end(erases=True)
        if last and text:
            text += self._line_begun() + "".join(f"{line}\n" for line in last)
        self._write(text)

    def _reserve(self, num_lines: int) -> str:
        more = num_lines - self._num_lines
        first = self._size.lines - self._num_lines + 1
        self._num_lines = num_lines
        if more > 0:  # the cursor leaves the lines, and what is written there moves up
            return self._line_begun() + "\n" * more + f"\x1b[{more}A"
        return "" if more == 0 else f"{SAVE}{_erased(first, first - more)}{RESTORE}"

    def _line_begun(self) -> str:
        """End the line in which the cursor is, such as one with the ^C of a key, if it has text.

        As many spaces as there are columns lead to the next line, except from the first column.
        """
        return " " * self._size.columns + "\r"

    def _end(self, erases: bool) -> str:
        if not self._num_lines:
            return ""
        first = self._size.lines - self._num_lines + 1
        self._num_lines = 0
        return f"{SAVE}{_erased(first, self._size.lines + 1) if erases else ''}\x1b[r{RESTORE}"

    def _write(self, text: str) -> None:
        if self._is_gone or not text:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # it was closed, which is no reason to end a training
            self._is_gone = True


def _erased(first: int, end: int) -> str:
    return "".join(f"\x1b[{row};1H\x1b[2K" for row in range(first, end))


def size_of(stream: TextIO) -> os.terminal_size:
    """Return the columns and lines of a stream's terminal; 0 and 0 if that is not known."""
    try:
        return os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):  # it was closed, or is none
        return os.terminal_size((0, 0))
