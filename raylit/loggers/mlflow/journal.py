"""The write-ahead journal of a run: all that is logged, in a file, before any store has it.

One process appends, into memory that is mapped from the file, so that a record outlives the process
however it dies, at the price of a copy; `Journal.sync` makes it outlive the machine. Another
process reads behind it (`JournalReader`) and sends (`delivery.py`).

A file is `<run id>-<random>.journal`. It begins with a page: eight letters, the position up to
which the store has acknowledged and whether all replays are behind it (both written by whoever
sends), whether it was closed, and a JSON object that says whose it is (`Header`). Records follow,
each with its length and its CRC-32 before it. The length is written
last: a record is there whole or not at all. The first byte of a record is its kind:

    S  a set of names that are logged together, with a number, once before it is first used
    V  the values of such a set: its number, the time in ms, the step, a float64 for each name
    J  anything rarer, as JSON: `[kind, key, value, time_ms, step]`

Never here: mlflow, torch, or anything that waits.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import secrets
import struct
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from raylit.runtime.messages import warn
from raylit.runtime.processes import ProcessName, State

FOLDER = "journals"
MAGIC = b"RAYLITJ1"
PAGE = 4096
CHUNK_BYTES = 1 << 20
MAX_RECORD_BYTES = 1 << 26  # a length beyond it is no length

_FRAME = struct.Struct("<II")  # length of the record, its CRC-32
_ACKED = struct.Struct("<Q")
_ACKED_AT = len(MAGIC)
_CLEAR_AT = _ACKED_AT + _ACKED.size
_CLOSED_AT = _CLEAR_AT + 1
_HEADER_AT = _CLOSED_AT + 1
_VALUES = struct.Struct("<cIqq")  # kind, number of the set of names, time in ms, step


class Record(NamedTuple):
    """Something to write into a run.

    A metric, a parameter, a tag, a text or a file (`key` is its path among the artifacts), an image
    of the step (`key` is its name; of both the value is a path on this machine), or the status.
    """

    kind: Literal[
        "metric", "param", "tag", "text", "file", "image", "input", "models", "curves", "status"
    ]
    key: str
    value: float | str
    time_ms: int = 0
    step: int = 0


@dataclass(frozen=True)
class Header:
    """Whose journal it is, and where its run stood when it began.

    Attributes:
        run_id: the run.
        uri: of its store, without passwords.
        since_ms: values of the run that are newer than this, and not in this journal, were written
            by processes that died after the checkpoint that this one goes on from: if it logs them
            again, they are replays.
        process: the name of the process that appends.
    """

    run_id: str
    uri: str
    since_ms: int
    process: str

    @property
    def state(self) -> State:
        """Whether the process that appends runs."""
        name = ProcessName.parse(self.process)
        return "unknown" if name is None else name.state()


class Full(OSError):
    """Raised when the disk has no room for the next record."""


class Journal:
    """Appends to a new journal, from any thread.

    Args:
        folder: made if missing.
        header: whose it is.

    Raises:
        OSError: the folder cannot be written to.
    """

    def __init__(self, folder: str, header: Header) -> None:
        os.makedirs(folder, exist_ok=True)
        self.path = os.path.join(folder, f"{header.run_id}-{secrets.token_hex(4)}.journal")
        self._lock = threading.Lock()
        self._sets: dict[tuple[str, ...], tuple[struct.Struct, int]] = {}
        self._last_ms = self._since_ms = header.since_ms
        self._synced = 0
        text = json.dumps(asdict(header)).encode()
        page = (MAGIC + _ACKED.pack(PAGE) + b"\0\0" + text).ljust(PAGE, b"\0")
        if len(page) > PAGE:
            raise OSError(f"the header of a journal is too long: {len(page)} bytes")
        # Complete before it has its name, for whoever looks for journals
        temporary = self.path + ".new"
        self._file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(self._file, page)
        self.position = PAGE
        self._size = PAGE
        self._grow(0)
        os.rename(temporary, self.path)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Append numbers at one step, with the time.

        Raises:
            Full: there is no room.
            struct.error: the step has more than 64 bits, or a value is no number.
            TypeError: a value is no number.
        """
        names = tuple(metrics)
        with self._lock:
            known = self._sets.get(names)
            layout, number = known or self._add_set(names)
            now_ms = self._now_ms()
            self._append(layout.pack(b"V", number, now_ms, step, *metrics.values()))

    def log(self, record: Record) -> None:
        """Append anything else; an image with the time.

        Raises:
            Full: there is no room.
        """
        if record.kind == "image":
            with self._lock:
                record = record._replace(time_ms=self._now_ms())
        body = b"J" + json.dumps(record, separators=(",", ":")).encode()
        if len(body) > MAX_RECORD_BYTES:
            # Its reader would take the length for damage, and leave all behind it unsent
            warn(
                f"MLflow: {record.kind} {record.key!r} takes {len(body) / 1e6:.0f} MB, more than"
                f" the {MAX_RECORD_BYTES / 1e6:.0f} MB of one entry, and is left out. Log it as a"
                " file: logger.experiment.log_artifact(logger.run_id, path)."
            )
            return
        with self._lock:
            self._append(body)

    def mark(self) -> int:
        """Return a time for `Header.since_ms` of a fit that goes on from here.

        The values that such a fit would log again are newer: all that are appended from now on, and
        while this process itself replays the values of another one, all of those.
        """
        with self._lock:
            marked = self._last_ms
            # Else a value logged within this millisecond would not be newer than the mark
            self._last_ms += 1
            return marked if self._map[_CLEAR_AT] else self._since_ms

    def adopt(self, tail: bytes) -> None:
        """Append the records that `tail` returned from the journal of another process.

        Raises:
            Full: there is no room.
            ValueError: it is no journal.
        """
        sets: dict[int, tuple[struct.Struct, int]] = {}
        with self._lock:
            for record in _records_in(tail):
                if record[:1] == b"S":
                    number, *names = json.loads(record[1:])
                    sets[number] = self._sets.get(tuple(names)) or self._add_set(tuple(names))
                elif record[:1] == b"V":
                    _, number, time_ms, step = _VALUES.unpack_from(record)
                    layout, own_number = sets[number]
                    head = _VALUES.pack(b"V", own_number, time_ms, step)
                    self._append(head + record[_VALUES.size : layout.size])
                else:
                    self._append(record)

    def sync(self) -> None:
        """Return when all that was appended is on the disk.

        Raises:
            OSError: it cannot be written.
        """
        position = self.position
        if position != self._synced:
            os.fsync(self._file)
            self._synced = position

    @property
    def acked(self) -> int:
        """Position up to which the store has all."""
        return int(_ACKED.unpack_from(self._map, _ACKED_AT)[0])

    def tail(self) -> bytes:
        """Return the records that the store has not acknowledged, and the sets that they need."""
        with self._lock:
            names = [b"S" + _set_text(number, names) for names, (_, number) in self._sets.items()]
            frames = (_FRAME.pack(len(one), zlib.crc32(one)) + one for one in names)
            return b"".join((*frames, self._map[self.acked : self.position]))

    def close(self) -> None:
        """Give the memory back. The file stays, without the room that was not used."""
        with self._lock:
            self._map[_CLOSED_AT] = 1
            self._map.close()
            os.ftruncate(self._file, self.position)
            os.close(self._file)

    def _now_ms(self) -> int:
        # Never older than what was logged before it, so that times tell what came after a
        # checkpoint though the clock was set back
        self._last_ms = max(time.time_ns() // 1_000_000, self._last_ms)
        return self._last_ms

    def _add_set(self, names: tuple[str, ...]) -> tuple[struct.Struct, int]:
        number = len(self._sets)
        self._append(b"S" + _set_text(number, names))
        known = (struct.Struct(f"{_VALUES.format}{len(names)}d"), number)
        self._sets[names] = known
        return known

    def _append(self, record: bytes) -> None:
        begin = self.position + _FRAME.size
        end = begin + len(record)
        if end > self._size:
            self._grow(end)
        # Before its length: a reader ends at a length of 0, and so never sees half of it
        self._map[begin:end] = record
        _FRAME.pack_into(self._map, self.position, len(record), zlib.crc32(record))
        self.position = end

    def _grow(self, end: int) -> None:
        """Reserve room on the disk: writing to mapped memory without any would end the process."""
        size = self._size + max(CHUNK_BYTES, end - self._size + CHUNK_BYTES)
        try:
            os.posix_fallocate(self._file, self._size, size - self._size)
        except OSError as error:
            raise Full(error.errno, f"{error.strerror}: {self.path}") from error
        if self._size == PAGE:
            self._map = mmap.mmap(self._file, size)
        else:
            self._map.resize(size)
        self._size = size


def _set_text(number: int, names: tuple[str, ...]) -> bytes:
    return json.dumps([number, *names]).encode()


def _records_in(tail: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(tail):
        length, crc = _FRAME.unpack_from(tail, at)
        record = tail[at + _FRAME.size : at + _FRAME.size + length]
        if zlib.crc32(record) != crc:
            raise ValueError("the tail of a journal is damaged")
        yield record
        at += _FRAME.size + length


class JournalReader:
    """Reads a journal from its beginning, and goes on where it stopped when there is more.

    Args:
        path: of the journal.

    Attributes:
        header: whose it is.
        position: behind the last record read.

    Raises:
        OSError: it is not there.
        ValueError: it is no journal, or damaged at its head.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._sets: dict[int, tuple[struct.Struct, list[str]]] = {}
        self._file = os.open(path, os.O_RDWR)
        page = os.pread(self._file, PAGE, 0)
        if len(page) < PAGE or not page.startswith(MAGIC):
            os.close(self._file)
            raise ValueError(f"{path} is no journal of raylit")
        try:
            self.header = Header(**json.loads(page[_HEADER_AT:].rstrip(b"\0")))
        except (ValueError, TypeError) as error:
            os.close(self._file)
            raise ValueError(f"the head of the journal {path} is damaged: {error}") from error
        self.position = PAGE

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def lock(self, timeout_s: float) -> bool:
        """Become the only one that sends this journal, until `close`; tell whether that worked."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except OSError:
                if time.monotonic() >= deadline:
                    return False
                time.sleep(0.05)

    @property
    def acked(self) -> int:
        """Position up to which the store has all."""
        return int(_ACKED.unpack(os.pread(self._file, _ACKED.size, _ACKED_AT))[0])

    def acknowledge(self, position: int) -> None:
        """Remember that the store has all up to `position`."""
        os.pwrite(self._file, _ACKED.pack(position), _ACKED_AT)

    def tell_clear(self) -> None:
        """Remember that the process logs nothing any more that one before it had logged."""
        os.pwrite(self._file, b"\1", _CLEAR_AT)

    @property
    def is_left(self) -> bool:
        """Whether nobody appends to it any more, for all that can be seen from here."""
        return os.pread(self._file, 1, _CLOSED_AT) == b"\1" or self.header.state == "gone"

    @property
    def is_torn(self) -> bool:
        """Whether something stands behind the last record that can be read."""
        return any(os.pread(self._file, CHUNK_BYTES, self.position))

    def read(self, max_bytes: int = CHUNK_BYTES) -> Iterator[tuple[list[Record], int]]:
        """Yield the next records, those of one call together, with the position behind them.

        Ends at a record that is not written whole yet, or after about `max_bytes`.
        """
        data = os.pread(self._file, max_bytes, self.position)
        start = self.position
        while self.position - start + _FRAME.size <= len(data):
            at = self.position - start
            length, crc = _FRAME.unpack_from(data, at)
            if not 0 < length <= MAX_RECORD_BYTES:
                return
            record = data[at + _FRAME.size : at + _FRAME.size + length]
            if len(record) < length:
                if at:
                    return  # the next call begins with it
                record = os.pread(self._file, length, self.position + _FRAME.size)
            if len(record) < length or zlib.crc32(record) != crc:
                return
            records = self._decode(record)
            self.position += _FRAME.size + length
            yield records, self.position

    def _decode(self, record: bytes) -> list[Record]:
        kind = record[:1]
        if kind == b"S":
            number, *names = json.loads(record[1:])
            self._sets[number] = (struct.Struct(f"{_VALUES.format}{len(names)}d"), names)
            return []
        if kind == b"J":
            return [Record(*json.loads(record[1:]))]
        layout, names = self._sets[_VALUES.unpack_from(record)[1]]
        _, _, time_ms, step, *values = layout.unpack(record)
        return [
            Record("metric", name, value, time_ms, step)
            for name, value in zip(names, values, strict=True)
        ]


@contextlib.contextmanager
def reading(path: str) -> Iterator[JournalReader]:
    """Open a journal for a `with` block."""
    reader = JournalReader(path)
    try:
        yield reader
    finally:
        reader.close()


def journals_in(folder: str) -> list[str]:
    """Return the paths of all journals below a folder, the oldest first."""
    found = []
    for path in Path(folder).rglob("*.journal"):
        with contextlib.suppress(FileNotFoundError):  # sent in this moment
            found.append((path.stat().st_mtime_ns, str(path)))
    return [path for _, path in sorted(found)]
