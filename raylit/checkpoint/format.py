"""A checkpoint is one file that `torch.load(weights_only=True)` opens.

Tensors and plain data, no code.

It is written to a temporary name in the same folder, synced to the disk and renamed, so a reader
sees the old file or the new one whole, never a part. A checkpoint for a URL (`s3://...`) is written
to a temporary file first, and appears whole when that was uploaded.
"""

from __future__ import annotations

import bisect
import contextlib
import io
import os
import pickle
import re
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, cast

import torch

from raylit.checkpoint import foreign, place
from raylit.errors import CheckpointError, CheckpointNotFoundError, NotSavedError
from raylit.runtime import storage
from raylit.runtime.aliases import CheckpointDict, StateDict

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MapLocation = torch.device | str | dict[str, str] | None

# The name under which the writer's version stands; Lightning looks for it to migrate older files.
VERSION_KEY = "pytorch-lightning_version"
LIGHTNING_FORMAT = "2.6.6"
HEADER_BYTES = 30  # of a record in a zip file, at least
# The parts of a checkpoint that a fit reads, and their types.
PARTS: dict[str, type | tuple[type, ...]] = {
    "epoch": int,
    "global_step": int,
    "loops": Mapping,
    "callbacks": Mapping,
    "optimizer_states": list,
    "lr_schedulers": list,
    "raylit": dict,
}
# The parts of its part `raylit`, and their types.
OWN_PARTS: dict[str, type | tuple[type, ...]] = {
    "progress": Mapping,
    "history": (Mapping, list),
    "run_id": (str, type(None)),
    "loggers": list,
    "validations": list,
    "ranks": list,
    "lineage": list,
    "objects": list,
}


def save(
    checkpoint: CheckpointDict,
    path: str | os.PathLike[str],
    *,
    storage_options: dict[str, object] | None = None,
) -> None:
    """Write `checkpoint` to `path`, whole or not at all.

    Args:
        checkpoint: tensors and plain data (see `to_plain`).
        path: local path or fsspec URL; missing folders are made.
        storage_options: handed to fsspec for URLs.

    Raises:
        NotSavedError: the folder cannot be written to, or no space is left; what stood at `path` is
            untouched.
    """
    target = os.fspath(path)
    if storage.is_url(target):
        try:
            with tempfile.TemporaryDirectory(prefix="raylit-") as work:
                torch.save(checkpoint, os.path.join(work, "checkpoint"))
                storage.upload(os.path.join(work, "checkpoint"), target, storage_options)
        except (OSError, RuntimeError) as error:
            raise _not_saved(target, error) from error
        return
    target = storage.local(target)
    folder = os.path.dirname(os.path.abspath(target))
    temporary = place.temporary_name(os.path.join(folder, os.path.basename(target)), "tmp")
    try:
        os.makedirs(folder, exist_ok=True)
        with place.locked_file(temporary):
            # by its name, which torch writes to without holding up other threads
            torch.save(checkpoint, temporary)
            sync(temporary)
            os.replace(temporary, target)
        sync(folder)  # the folder's own entry must reach the disk too
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        with contextlib.suppress(OSError):
            Path(temporary).unlink(missing_ok=True)
        raise _not_saved(target, error) from error


def _not_saved(target: str, error: Exception) -> NotSavedError:
    return NotSavedError(
        f"Could not write the checkpoint {target}: {error}. What stood there before is untouched."
        " Free space or set another dirpath."
    )


def load(
    path: str | os.PathLike[str] | IO[bytes],
    *,
    map_location: MapLocation | Literal["cpu"] = "cpu",
    weights_only: bool | None = None,
) -> StateDict:
    """Read a checkpoint of raylit or Lightning.

    Args:
        path: local path or fsspec URL, or a binary file that is open and can seek.
        map_location: device on which tensors appear; see `torch.load`.
        weights_only: False lets the file run code while it loads. Only for files you wrote
            yourself.

    Raises:
        CheckpointNotFoundError: there is no such file.
        CheckpointError: it is torn, or it holds objects that only code could restore.
    """
    is_open = hasattr(path, "read") and hasattr(path, "seek")
    source = str(getattr(path, "name", path)) if is_open else storage.local(cast(str, path))
    if isinstance(path, (str, os.PathLike)) and os.path.isdir(source):
        from raylit.checkpoint import sharded

        return sharded.load(source, map_location, weights_only)
    try:
        with _opened(path) as file:
            loaded = _loaded(file, map_location, weights_only is not False)
    except FileNotFoundError as error:
        raise CheckpointNotFoundError(f"There is no checkpoint at {source}.") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"The checkpoint {source} was not loaded: it is damaged, or it holds objects that only"
            f" running code from the file could restore ({_refused(error)}). If you wrote it"
            " yourself and trust it, pass weights_only=False."
        ) from error
    except OSError as error:
        reason = error.strerror if isinstance(error, PermissionError) else str(error)
        raise unreadable(source, reason or type(error).__name__) from error
    except zipfile.BadZipFile as error:
        raise unreadable(source, str(error)) from error
    except Exception as error:  # of a text file torch raises KeyError, of others IndexError
        text = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise unreadable(source, f"torch makes nothing of it ({text})") from error
    problem = _misshapen(loaded)
    if problem is not None:
        raise CheckpointError(f"{source} {problem}. Give another one.")
    checkpoint = cast(CheckpointDict, loaded)
    if weights_only is False:
        foreign.put_back(checkpoint, map_location)
    return checkpoint


def unreadable(source: str, reason: str) -> CheckpointError:
    """Return the error for a source that could not be read as a checkpoint, with the reason.

    Args:
        source: the file, folder or URL.
        reason: why not, in a few words.
    """
    return CheckpointError(
        f"The checkpoint {source} could not be read: {reason}. It is torn or damaged, or no"
        " checkpoint: give another, or 'last' for the newest that is whole."
    )


def _refused(error: pickle.UnpicklingError) -> str:
    """Return in one line why torch refused a file, without its advice and terminal codes."""
    found = re.search(r"WeightsUnpickler error: ([^\n]+)", str(error))
    text = found[1].partition(" Please use")[0] if found else str(error).partition(". ")[0]
    return re.sub(r"\x1b\[[\d;]*m", "", text).strip().rstrip(".")


def _misshapen(loaded: object) -> str | None:
    """Return the flaw in the structure of a loaded checkpoint, None if there is none."""
    if not isinstance(loaded, dict):
        return f"holds a {type(loaded).__name__}, not a checkpoint (a dict)"
    own = loaded.get("raylit")
    parts = [(name, kind, loaded) for name, kind in PARTS.items()]
    if isinstance(own, dict):
        parts += [(name, kind, own) for name, kind in OWN_PARTS.items()]
    for name, kind, within in parts:
        if name in within and not isinstance(within[name], kind):
            shown = name if within is loaded else f"raylit.{name}"
            found = type(within[name]).__name__
            return f"is damaged or no checkpoint: {shown} in it is of type {found}"
    return None


def outline(path: str | os.PathLike[str], *, weights_only: bool | None = None) -> CheckpointDict:
    """Read a checkpoint but for the values of its tensors, which are on the device `meta`.

    It takes a moment, however large the file, and is not checked to be whole.

    Raises:
        CheckpointError: as `load`.
    """
    source = storage.local(path)
    if os.path.isdir(source):
        from raylit.checkpoint import sharded

        source = os.path.join(source, sharded.META)
    try:
        if storage.is_url(source):
            fs, inner = storage.file_system(source)
            with storage.asking(), fs.open(inner, "rb") as file:
                return _outline_of(file, weights_only)
        with open(source, "rb") as file:
            return _outline_of(file, weights_only)
    except Exception:  # each file system and each kind of damage has its own
        return load(path, weights_only=weights_only)  # says what is wrong, and reads other formats


def _outline_of(file: IO[bytes], weights_only: bool | None) -> CheckpointDict:
    found = torch.load(file, map_location="meta", weights_only=weights_only is not False)
    if (problem := _misshapen(found)) is not None:
        raise TypeError(problem)
    return cast(CheckpointDict, found)


def _loaded(file: IO[bytes], map_location: MapLocation, weights_only: bool) -> object:
    """Return the object that torch loads from a file, which is read once.

    Raises:
        BadZipFile: it is not as it was written.
    """
    if not zipfile.is_zipfile(file):  # of a very old torch, without checksums
        file.seek(0)
        return torch.load(file, map_location=map_location, weights_only=weights_only)
    checked = _CheckedFile(file)
    file.seek(0)
    try:
        loaded = torch.load(
            cast(IO[bytes], checked), map_location=map_location, weights_only=weights_only
        )
    except Exception:  # whatever comes of what is not as it was written
        _check_sums(file)
        raise
    damaged = checked.damaged or checked.damaged_rest()
    if damaged is not None:
        raise _damage(damaged)
    return loaded


def _damage(record: str) -> zipfile.BadZipFile:
    return zipfile.BadZipFile(f"the checksum of {record} in it is wrong")


class _CheckedFile(io.RawIOBase):
    """A zip file whose records are compared with their checksums when they are read.

    torch writes checksums, but does not look at them when it loads; it reads each record at once.

    Args:
        file: open for reading.

    Attributes:
        damaged: the first record whose checksum was wrong. An exception here would have to pass
            through torch's C code.

    Raises:
        BadZipFile: its index is damaged.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._fill: Callable[[memoryview], int] = getattr(file, "readinto", self._fill_by_read)
        try:
            self._archive = zipfile.ZipFile(file)
        except Exception as error:  # whatever comes of it where the file's own index is damaged
            raise zipfile.BadZipFile(f"its index is damaged: {error}") from error
        self._records = sorted(self._archive.infolist(), key=lambda record: record.header_offset)
        self._starts = [record.header_offset for record in self._records]
        self._unread = set(range(len(self._records)))
        self.damaged: str | None = None

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill `buffer` from the current place, as torch asks."""
        at = self._file.tell()
        with memoryview(buffer).cast("B") as view:
            number = self._fill(view)
            found = bisect.bisect_right(self._starts, at) - 1
            if found in self._unread:
                record = self._records[found]
                # torch 2.6 reads pieces of what stands before the data too, perhaps as many bytes
                is_whole = number == record.file_size == record.compress_size
                if is_whole and at == self._data_of(record):
                    self._unread.discard(found)
                    if zlib.crc32(view) != record.CRC:
                        self.damaged = self.damaged or record.filename
        return number

    def _data_of(self, record: zipfile.ZipInfo) -> int:
        """Return where a record's data begins; the file stays where it is."""
        here = self._file.tell()
        self._file.seek(record.header_offset + HEADER_BYTES - 4)
        sizes = self._file.read(4)  # of its name, and of more that is told of it
        self._file.seek(here)
        if len(sizes) < 4:
            return -1
        name, more = struct.unpack("<HH", sizes)
        return record.header_offset + HEADER_BYTES + int(name + more)

    def _fill_by_read(self, view: memoryview) -> int:
        data = self._file.read(len(view))
        view[: len(data)] = data
        return len(data)

    def damaged_rest(self) -> str | None:
        """Return the first damaged record of those that torch had no need of."""
        for number in sorted(self._unread):
            try:
                with self._archive.open(self._records[number]) as record:
                    while record.read(2**20):
                        pass
            except (zipfile.BadZipFile, zlib.error):
                return self._records[number].filename
        return None

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """See `io.IOBase.seek`."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """See `io.IOBase.tell`."""
        return self._file.tell()

    def seekable(self) -> bool:
        """See `io.IOBase.seekable`."""
        return True

    def readable(self) -> bool:
        """See `io.IOBase.readable`."""
        return True


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str] | IO[bytes]) -> Iterator[IO[bytes]]:
    if not isinstance(path, (str, os.PathLike)):
        yield path
        return
    if (kind := storage.no_file(storage.local(path))) is not None:
        raise CheckpointError(f"{os.fspath(path)}: it is {kind}, no checkpoint.")
    with storage.downloaded(storage.local(path)) as here, open(here, "rb") as file:
        yield file


def is_whole(path: str | os.PathLike[str]) -> bool:
    """Tell whether a local file or folder is a checkpoint, whole and as it was written.

    Every byte is read, and nothing loaded: `load` tells as well.
    """
    if os.path.isdir(path):
        from raylit.checkpoint import sharded

        return sharded.is_whole(os.fspath(path))
    try:
        with open(path, "rb") as file:
            return zipfile.is_zipfile(file) and _check_sums(file)
    except (OSError, zipfile.BadZipFile):
        return False


def _check_sums(file: IO[bytes]) -> bool:
    """Compare the file with the checksums that torch wrote into it but does not look at on loading.

    The file is left at its start.

    Raises:
        BadZipFile: they differ.
    """
    if zipfile.is_zipfile(file):  # else it is of a very old torch, without checksums
        file.seek(0)
        try:
            damaged = zipfile.ZipFile(file).testzip()
        except Exception as error:  # whatever comes of it where the file's own index is damaged
            raise zipfile.BadZipFile(f"its index is damaged: {error}") from error
        if damaged is not None:
            raise _damage(damaged)
    file.seek(0)
    return True


def sync(path: str) -> None:
    """Wait until the contents of a file or folder are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
