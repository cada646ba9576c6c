"""History: the epoch values of a fit, for `Result.history`, at a bounded cost per checkpoint."""

from __future__ import annotations

import itertools
import json
import os
import re
import uuid

from raylit.runtime import storage
from raylit.runtime.aliases import StateDict
from raylit.runtime.messages import warn, warn_once

# Rows that a checkpoint holds itself are this many to twice as many. Whole, 3,000 rows of 11 values
# made each checkpoint of a small module take 232 ms, not 11.
TAIL = 16

Row = dict[str, float]

_NAME = re.compile(r"\.history-[0-9a-f]{8}\.jsonl")


class History:
    """A row of values for each epoch or validation, in the order of steps.

    Written by `Run.remember`.

    Checkpoints hold the newest rows. Older ones, which no longer change, are in a file that belongs
    to this fit alone, `.history-<name>.jsonl` in the folder for checkpoints: a row is appended
    once, before the first checkpoint that does not hold it.

    Attributes:
        rows: all rows.
    """

    def __init__(self, rows: list[Row] | None = None) -> None:
        self.rows: list[Row] = rows or []
        self._path: str | None = None
        self._num_settled = 0  # rows in the file

    def add(self, row: Row) -> None:
        """Add values of one step to its row, which is made if there is none."""
        place = len(self.rows)
        # back past rows that came before those of a validation that was not waited for
        while place > self._num_settled and self.rows[place - 1]["step"] > row["step"]:
            place -= 1
        if place and self.rows[place - 1]["step"] == row["step"]:
            self.rows[place - 1].update(row)
        else:
            self.rows.insert(place, row)

    def state(self, folder: str) -> StateDict:
        """Return the state for a checkpoint, and write the rows that it leaves out to a file.

        Args:
            folder: where checkpoints are: a folder or a URL.
        """
        due = (len(self.rows) // TAIL - 1) * TAIL
        if due > self._num_settled:
            path = self._path or os.path.join(folder, f".history-{uuid.uuid4().hex[:8]}.jsonl")
            try:
                _append(path, self.rows, self._num_settled, due)
            except OSError as error:
                warn_once(
                    f"The older rows of the history could not be written to {path}: {error}."
                    " Checkpoints hold them, and take longer."
                )
                self._path = None  # it may end in a torn row
                self._num_settled = 0
                return {"rows": list(self.rows)}
            self._path = path
            self._num_settled = due
        state: StateDict = {"rows": self.rows[self._num_settled :]}
        if self._num_settled:
            state["older"] = {"path": self._path, "rows": self._num_settled}
        return state

    @classmethod
    def from_state(cls, state: StateDict | list[Row], checkpoint: str) -> History:
        """Return the history as it was when `state` was taken.

        Args:
            state: as `state` returned it; earlier versions stored the rows.
            checkpoint: path of the checkpoint, beside which the file is if its folder was moved.

        Raises:
            ValueError: it is not as `state` returned it.
        """
        if isinstance(state, list):
            return cls(_rows(state))
        rows = _rows(state["rows"])
        older = state.get("older")
        if older is None:
            return cls(rows)
        for path in _places(older["path"], checkpoint):
            try:
                return cls(_rows(_read(path, older["rows"])) + rows)
            except (OSError, ValueError):
                continue
        warn(
            f"Result.history lacks its first {older['rows']} rows: {older['path']} cannot be read."
            " The loggers have their values. Keep the file with its checkpoints."
        )
        return cls(rows)


def _rows(found: object) -> list[Row]:
    if not isinstance(found, list) or not all(
        isinstance(row, dict) and isinstance(row.get("step"), (int, float)) for row in found
    ):
        raise ValueError("it is no list of rows")
    return list(found)


def _places(path: str, checkpoint: str) -> list[str]:
    """Return where the file of older rows may be that a checkpoint names.

    Whoever wrote the checkpoint chose the name: it may only be that of such a file, and no address
    is asked where the checkpoint does not come from.
    """
    name = os.path.basename(path)
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"{path!r} is no file of older rows")
    beside = os.path.dirname(checkpoint)
    found = [os.path.join(beside, name)]
    found.append(os.path.join(os.path.dirname(beside), name))  # of recovery/x.ckpt
    return found if storage.is_url(path) else [path, *found]


def _append(path: str, rows: list[Row], begin: int, end: int) -> None:
    if storage.is_url(path):  # object stores know no appending
        storage.write_text(path, "".join(json.dumps(row) + "\n" for row in rows[:end]))
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows[begin:end])
        file.flush()
        os.fsync(file.fileno())  # a checkpoint that counts on it comes next


def _read(path: str, number: int) -> list[Row]:
    """Return the first rows of a file, which may have more, or a torn one after them.

    Raises:
        OSError: there is no such file.
        ValueError: it has fewer.
    """
    with storage.downloaded(path) as local, open(local, encoding="utf-8") as file:
        rows = [json.loads(line) for line in itertools.islice(file, number)]
    if len(rows) < number:
        raise ValueError(f"{path} has {len(rows)} rows, not {number}")
    return rows
