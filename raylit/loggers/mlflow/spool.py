"""A file for what a store did not take.

Kept while it is away, sent when it is back, be it by a later run.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path

from raylit.loggers.mlflow.store import MAX_ENTRIES, Record
from raylit.loggers.queue import Rejected
from raylit.runtime.messages import info, log
from raylit.runtime.secrets import without_secrets

FOLDER = "unsent"


class Spool:
    """The file of one run and one writer to it, `unsent/<run>-<random>.jsonl`.

    The entries that wait to be written, one in a line.

    Args:
        folder: local folder of the logger.
        uri: of the store.
        run_id: the run.
    """

    def __init__(self, folder: str, uri: str, run_id: str) -> None:
        self._header = {"uri": without_secrets(uri), "run_id": run_id}
        self.path = Path(folder) / FOLDER / f"{run_id}-{uuid.uuid4().hex[:8]}.jsonl"

    def hold(self, entries: list[Record]) -> bool:
        """Let the file hold these entries and no others; without any there is no file.

        Returns whether that worked.
        """
        try:
            if not entries:
                self.path.unlink(missing_ok=True)
                return True
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.path.with_suffix(".tmp")
            with open(temporary, "w", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in (self._header, *entries))
            os.replace(temporary, self.path)
        except OSError as error:
            log.warning(f"What waits for MLflow could not be kept in {self.path}: {error}")
            return False
        return True


def replay(folder: str, uri: str, write: Callable[[str, list[Record]], None]) -> int:
    """Send what runs in `folder` could not send to the store `uri`, which answers again.

    What fails stays for the next time.

    Args:
        folder: local folder of the logger.
        uri: of the store.
        write: writes entries into the run whose id it is given. Entries that are there already must
            do no harm.

    Returns:
        How many entries were sent.
    """
    num_sent = 0
    for path in sorted((Path(folder) / FOLDER).glob("*.jsonl")):
        try:
            header, *lines = [
                json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()
            ]
            if header["uri"] != without_secrets(uri):
                continue
            entries = [Record(*line) for line in lines]
            for start in range(0, len(entries), MAX_ENTRIES):
                _write_what_is_taken(header["run_id"], entries[start : start + MAX_ENTRIES], write)
            path.unlink(missing_ok=True)
        except Exception as error:
            log.warning(
                f"What was kept in {path} could not be sent to MLflow and stays there: {error}"
            )
            continue
        num_sent += len(entries)
        info(
            f"Sent to MLflow what an earlier run could not ({len(entries)} values of the run"
            f" {header['run_id']})."
        )
    return num_sent


def _write_what_is_taken(
    run_id: str, entries: list[Record], write: Callable[[str, list[Record]], None]
) -> None:
    try:
        write(run_id, entries)
    except Rejected as error:
        if len(entries) == 1:
            log.warning(f"Left out of the run {run_id}: {error}")
            return
        half = len(entries) // 2
        _write_what_is_taken(run_id, entries[:half], write)
        _write_what_is_taken(run_id, entries[half:], write)
