"""Files in other places than the local disk: fsspec URLs such as `s3://bucket/runs`.

A URL of the local disk, `file:///runs`, is the path it names.

Each file system has exceptions of its own; all that comes from one here is an OSError.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from raylit.errors import ConfigError, MissingPackageError, WrongTypeError, did_you_mean

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

S3 = (
    "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION and, of another server than"
    " Amazon's, AWS_ENDPOINT_URL, or a profile in ~/.aws"
)
GOOGLE = "GOOGLE_APPLICATION_CREDENTIALS, or what `gcloud auth application-default login` leaves"
AZURE = "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"
# Scheme: package, extra, and where it looks for credentials. These have no folders, and what they
# would make for a missing one is a bucket.
BUCKETS = {
    **dict.fromkeys(("s3", "s3a"), ("s3fs", "s3", S3)),
    **dict.fromkeys(("gs", "gcs"), ("gcsfs", "gcs", GOOGLE)),
    **dict.fromkeys(("abfs", "abfss", "az"), ("adlfs", "azure", AZURE)),
}


def local(path: str | os.PathLike[str]) -> str:
    """Return the path that a URL of the local disk names; all else as it is.

    Raises:
        WrongTypeError: it is no path.
    """
    if not isinstance(path, (str, os.PathLike)) or isinstance(os.fspath(path), bytes):
        raise WrongTypeError(
            f"{path!r} is of type {type(path).__name__}, no path. Give a text or a pathlib.Path."
        )
    return os.fspath(path).removeprefix("file://").removeprefix("local://")


def is_url(path: str) -> bool:
    """Tell whether `path` is on a file system other than the local one."""
    return "://" in local(path)


def file_system(url: str, **options: object) -> tuple[AbstractFileSystem, str]:
    """Return fsspec's file system of a URL, and the path in it.

    Args:
        url: the URL; or a local path.
        options: of the file system.

    Raises:
        MissingPackageError: its package is not installed.
        ConfigError: fsspec knows no such file system.
    """
    import fsspec

    scheme = url.partition("://")[0]
    try:
        fs, inner = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        package, extra, _ = BUCKETS.get(scheme, (str(error), None, None))
        raise MissingPackageError(package, url, extra) from error
    except ValueError as error:
        raise ConfigError(
            f"{url}: {error}.{did_you_mean(scheme, BUCKETS)} Give a local path, s3://..., gs://..."
            " or abfs://...."
        ) from error
    return fs, inner


@contextlib.contextmanager
def asking() -> Iterator[None]:
    """Context in which a file system is asked to do something.

    Raises:
        OSError: it failed, with whatever exception.
    """
    try:
        yield
    except (OSError, MissingPackageError, ConfigError):
        raise
    except Exception as error:  # botocore's, for one, are no OSErrors
        raise OSError(f"{type(error).__name__}: {error}") from error


def fresh(url: str) -> tuple[AbstractFileSystem, str]:
    """Return the result of `file_system`, without its memory of folders.

    Other processes write there too.
    """
    fs, inner = file_system(url)
    fs.invalidate_cache()
    return fs, inner


def upload(path: str, url: str, options: dict[str, object] | None = None) -> None:
    """Copy a local file to a URL, where it appears whole or not at all.

    Missing folders are made, missing buckets are not.

    Raises:
        OSError: it could not be.
    """
    fs, inner = file_system(url, **(options or {}))
    with asking():
        make_folder(url, fs, fs._parent(inner))
        fs.put_file(path, inner)


def write_text(path: str, text: str) -> None:
    """Write a small file at a path or URL. Missing folders are made.

    Raises:
        OSError: it could not be.
    """
    fs, inner = file_system(path)
    with asking():
        make_folder(path, fs, fs._parent(inner))
        fs.pipe_file(inner, text.encode())


def make_folder(url: str, fs: AbstractFileSystem, inner: str) -> None:
    """Make a folder where there is such a thing."""
    if url.partition("://")[0] not in BUCKETS:
        fs.makedirs(inner, exist_ok=True)


@contextlib.contextmanager
def downloaded(path: str, options: dict[str, object] | None = None) -> Iterator[str]:
    """Context in which the file at a URL is also a local file; gives its path.

    A local file is itself.

    Raises:
        FileNotFoundError: there is none.
        OSError: it could not be read.
    """
    if "://" not in path:
        yield path
        return
    fs, inner = file_system(path, **(options or {}))
    with tempfile.TemporaryDirectory(prefix="raylit-") as folder:
        copy = os.path.join(folder, "copy")
        with asking():
            fs.get_file(inner, copy)
        yield copy


def kind_of(mode: int) -> str:
    """Return the kind of something that is no file, by its mode."""
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a pipe"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"


def no_file(path: str) -> str | None:
    """Return the kind of a local path that can be read as neither a file nor a folder, else None.

    A device may have no end, and a pipe no other side.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return None
    return None if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else kind_of(mode)


def file_in_the_way(folder: str) -> str | None:
    """Return the file that keeps a local path from being a folder: itself or one above it.

    Raises:
        OSError: the system takes no such name: it is too long, or links go in a circle.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.stat(folder)  # raises where the system takes no such name
    place = _nearest(folder)
    return None if place.is_dir() else str(place)


def _nearest(folder: str) -> Path:
    """Return the innermost part of a local path that exists; a link to nowhere counts as one."""
    place = Path(folder)
    while not os.path.lexists(place):
        place = place.parent
    return place


def unwritable(folder: str) -> str | None:
    """Return why nothing can be written to a folder or URL, which may not exist yet.

    None if something can. At a URL it is tried.

    Raises:
        MissingPackageError: a package for the URL is not installed.
        ConfigError: the URL names no known file system.
    """
    if "://" in folder:
        return _unwritable_url(folder)
    place = _nearest(folder)
    if not place.is_dir():
        return f"{place} is a file"
    if not os.access(place, os.W_OK | os.X_OK):
        return f"{place} is read-only for this user"
    if place == Path(folder):
        return None
    try:  # what the mode says need not hold: root may all, but not in /proc
        with tempfile.TemporaryFile(dir=place):
            return None
    except OSError as error:
        return f"{place} takes no files ({error.strerror})"


def _unwritable_url(url: str) -> str | None:
    fs, inner = file_system(url)
    tried = f"{inner.rstrip('/')}/.raylit-{uuid.uuid4().hex[:8]}"
    try:
        with asking():
            make_folder(url, fs, inner)
            fs.pipe_file(tried, b"")
            fs.rm(tried)
    except OSError as error:
        _, _, credentials = BUCKETS.get(url.partition("://")[0], (None, None, None))
        where = (
            f" (credentials, and where the bucket is, come from {credentials})"
            if credentials
            else ""
        )
        return f"{str(error).rstrip('.') or type(error).__name__}{where}"
    return None


def end_torn_line(path: str) -> None:
    """End the last line of a local file of lines, if a process that died has left it torn.

    Else the next line would be part of it, and be lost with it. A file that is not there is none.
    """
    with contextlib.suppress(FileNotFoundError), open(path, "r+b") as file:
        if not file.seek(0, os.SEEK_END):
            return
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
