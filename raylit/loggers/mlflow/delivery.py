"""From a journal to the store: in order, each value once, however often it is sent.

MLflow drops a value whose name, step, time and number it has already, and a journal keeps the time
that a value was stamped with: a batch whose answer was lost is sent again without harm. Values that
a fit logs again because it went on from a checkpoint have other times. They are recognized by name
and step, and left out: values that the store has and the journal has not, newer than the
checkpoint, came from the processes that died. So are images, which MLflow keeps as often as they
come; all other files are written anew under their names.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Collection, Iterator

from raylit.loggers.mlflow.journal import (
    FOLDER,
    JournalReader,
    Record,
    journals_in,
    reading,
)
from raylit.loggers.mlflow.store import MAX_ENTRIES, RunStore, Value, image_file, remove_staged
from raylit.loggers.queue import Rejected
from raylit.runtime.messages import info, log
from raylit.runtime.secrets import without_secrets

Place = tuple[str, str, int]  # kind, name and step
MAX_FAILED = 3
RETRY_S = 0.5
LOOK_EVERY_S = 0.2
LOCK_S = 15.0  # a sender whose trainer died ends within this


class Delivery:
    """Sends one journal.

    Args:
        reader: of the journal, locked.
        run_store: the run in its store.
    """

    def __init__(self, reader: JournalReader, run_store: RunStore) -> None:
        self._reader = reader
        self._store = run_store
        self._replays: Counter[Place] | None = None  # None: not asked for yet
        self._pending: list[tuple[list[Record], int]] = []
        self._num_failed = 0  # attempts in a row to send the batch that comes next
        self.num_sent = 0
        self.num_refused = 0

    def send(self) -> bool:
        """Send one batch of the records that were not sent yet; tell whether there was any.

        Raises:
            Exception: the store does not answer. The same batch comes next.
        """
        if self._replays is None:
            self._find_replays()
        if not self._pending:
            self._pending = list(self._reader.read())
        if not self._pending:
            return False
        batch: list[Record] = []
        left_out: list[Record] = []
        used = 0
        replays = Counter(self._replays)
        for records, _ in self._pending:
            if batch and len(batch) + len(records) > MAX_ENTRIES:
                break
            for one in records:
                (left_out if self._is_replay(one, replays) else batch).append(one)
            used += 1
        position = self._pending[used - 1][1]
        # The reader begins at the head: what a sender before this one has sent is passed over, but
        # the replays in it are used up
        if position > self._reader.acked:
            self._write(batch)
            # Not for a part of it: what fails in the other one would be tried again for ever
            self._num_failed = 0
            self._reader.acknowledge(position)
            self.num_sent += len(batch)
        for one in left_out:
            remove_staged(one)
        # `+` leaves out those that are used up; once there are none, the trainer is told
        self._set_replays(+replays)
        del self._pending[:used]
        return True

    def _find_replays(self) -> None:
        """Find the values in the store that came from processes that died after the checkpoint."""
        header = self._reader.header
        self._store.know()
        found = self._store.newer_than(header.since_ms)
        if found:
            with reading(self._reader.path) as whole:
                for record in _all_records(whole):
                    found.pop((*self._place_of(record), record.time_ms), None)
        self._set_replays(_by_place(found))

    def _set_replays(self, replays: Counter[Place]) -> None:
        if not replays and self._replays != replays:
            self._reader.tell_clear()
        self._replays = replays

    def _is_replay(self, record: Record, replays: Counter[Place]) -> bool:
        if not replays:
            return False
        place = self._place_of(record)
        if not replays[place]:
            return False
        replays[place] -= 1
        return True

    def _place_of(self, record: Record) -> Place:
        name = self._store.name_of(record.key) if record.kind == "metric" else record.key
        return record.kind, image_file(name) if record.kind == "image" else name, record.step

    def _write(self, batch: list[Record]) -> None:
        """Write a batch; records that the store will never take are left out, and that is said."""
        if not batch:
            return
        try:
            try:
                self._store.write(batch)
            except Rejected:
                raise
            except Exception as error:
                self._num_failed += 1
                # One that a store fails over, again and again, while it takes others
                if self._num_failed < MAX_FAILED or not self._store.takes_anything():
                    raise
                raise Rejected(without_secrets(f"{type(error).__name__}: {error}")) from error
        except Rejected as error:
            if len(batch) == 1:
                if not self.num_refused:
                    log.warning(
                        f"MLflow refuses {_text_of(batch[0])}, so it is left out: {error}"
                        " Other values go on."
                    )
                self.num_refused += 1
                remove_staged(batch[0])
                return
            half = len(batch) // 2
            self._write(batch[:half])
            self._write(batch[half:])


def _by_place(found: dict[Value, int]) -> Counter[Place]:
    places: Counter[Place] = Counter()
    for (kind, key, step, _), number in found.items():
        places[kind, key, step] += number
    return places


def _all_records(reader: JournalReader) -> Iterator[Record]:
    while True:
        before = reader.position
        for records, _ in reader.read():
            yield from records
        if reader.position == before:
            return


def _text_of(record: Record) -> str:
    return without_secrets(f"the {record.kind} {record.key!r} = {str(record.value)[:60]!r}")


def deliver(path: str, uri: str, *, wait_s: float = LOCK_S) -> bool:
    """Send all of a journal that nobody appends to any more, and delete it.

    Args:
        path: of the journal.
        uri: of its store, which answers.
        wait_s: how long another sender of it is waited for.

    Returns:
        Whether it is sent; False: another process is at it.

    Raises:
        Exception: the store does not answer; the rest of the journal stays.
    """
    with contextlib.ExitStack() as stack:
        try:
            reader = stack.enter_context(reading(path))
        except FileNotFoundError:
            return True  # another process has sent it
        if not reader.lock(wait_s):
            return False
        run_store = RunStore(uri, reader.header.run_id)
        delivery = Delivery(reader, run_store)
        num_failures = 0
        while True:
            try:
                if not delivery.send():
                    break
                num_failures = 0
            except Exception:
                # By the same delivery, which leaves out at last what alone is the reason
                num_failures += 1
                if num_failures == MAX_FAILED or not run_store.takes_anything():
                    raise
                time.sleep(RETRY_S)
        put_away(reader, path)
    return True


def put_away(reader: JournalReader, path: str) -> None:
    """Delete a journal that was sent as far as it can be read; one that is damaged is kept."""
    if not reader.is_torn:
        os.unlink(path)
        return
    damaged = f"{path}.damaged"
    os.rename(path, damaged)
    log.warning(
        f"The journal {path} is damaged behind byte {reader.position}, as after a power failure."
        f" What stood before was sent to MLflow; the file is kept as {damaged}."
    )


def deliver_left_behind(
    folder: str, uri: str, run_id: str | None = None, *, own: str = "", wait_s: float = 0.0
) -> int:
    """Send the journals of processes that have ended, in the order in which they were written.

    Args:
        folder: of the logger.
        uri: of the store, which answers.
        run_id: of this run alone, which goes on now, so that whoever wrote them on another host
            has ended; None: of all runs whose processes ran on this host.
        own: a journal to leave alone.
        wait_s: how long a sender that is still at one is waited for.

    Returns:
        How many journals were sent.
    """
    num_sent = 0
    for path in journals_in(os.path.join(folder, FOLDER)):
        try:
            with reading(path) as reader:
                header = reader.header
                is_of_run = header.run_id == run_id
                is_left = reader.is_left or (is_of_run and header.state != "alive")
                if path == own or header.uri != without_secrets(uri) or not is_left:
                    continue
                if run_id is not None and not is_of_run:
                    continue
                num = num_waiting(reader)
            if deliver(path, uri, wait_s=wait_s):
                num_sent += 1
                if num:
                    info(
                        f"Sent to MLflow what an earlier process could not ({num} records"
                        f" of the run {header.run_id})."
                    )
        except Exception as error:
            if not os.path.exists(path):
                continue  # another process was quicker
            log.warning(
                f"What was kept in {path} could not be sent to MLflow and stays there: {error}"
            )
    return num_sent


def deliver_of(folder: str, uri: str, run_ids: Collection[str], wait_s: float) -> list[str]:
    """Send the records of other processes for some runs, once the processes have ended.

    Args:
        folder: of the logger.
        uri: of the store, which answers.
        run_ids: the runs.
        wait_s: how long processes are waited for that are about to end, and send it themselves.

    Returns:
        The journals that are left.
    """
    deadline = time.monotonic() + wait_s
    while True:
        deliver_left_behind(folder, uri)
        left = [one for one in journals_in(os.path.join(folder, FOLDER)) if _is_of(one, run_ids)]
        if not left or time.monotonic() >= deadline:
            return left
        time.sleep(LOOK_EVERY_S)


def _is_of(path: str, run_ids: Collection[str]) -> bool:
    try:
        with reading(path) as reader:
            return reader.header.run_id in run_ids
    except (OSError, ValueError):  # sent in this moment, or no journal
        return False


def num_waiting(reader: JournalReader) -> int:
    """Return how many records of a journal the store has not acknowledged."""
    acked = reader.acked
    num = 0
    while True:
        before = reader.position
        num += sum(len(records) for records, end in reader.read() if end > acked)
        if reader.position == before:
            return num
