"""Files of a run at a URL, where nothing can be appended to.

They are written in a local folder and copied, whole, from a thread of their own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator

from raylit.loggers.queue import BackgroundWriter
from raylit.runtime import storage

COPY_EVERY_S = 5.0


class Mirror:
    """A temporary local folder whose files become those at a URL.

    Args:
        url: where the files go.
        name: of a file that is in the folder from the start, if it is there.

    Attributes:
        folder: its path.
    """

    def __init__(self, url: str, name: str) -> None:
        self.url = url
        self._temporary = tempfile.TemporaryDirectory(prefix="raylit-")
        self.folder = self._temporary.name
        with downloaded_if_there(f"{url}/{name}") as there:
            if there != os.devnull:
                shutil.copyfile(there, os.path.join(self.folder, name))
        self._times = self._now()
        self._writer = BackgroundWriter[None](
            self._copy, f"files to {url}", interval_s=COPY_EVERY_S
        )

    def copy(self, soon: bool = False) -> None:
        """Have the files that changed copied, at once if `soon`. Does not wait for it."""
        if self._now() != self._times:
            self._writer.put([None])
            if soon:
                self._writer.flush_soon()

    def close(self) -> None:
        """Copy the changes, and delete the folder."""
        self.copy()
        self._writer.close()
        self._temporary.cleanup()

    def _now(self) -> dict[str, int]:
        return {
            os.path.relpath(path, self.folder): os.stat(path).st_mtime_ns
            for folder, _, names in os.walk(self.folder)
            for path in (os.path.join(folder, name) for name in names)
            if not path.endswith(".tmp")
        }

    def _copy(self, asked: list[None]) -> None:
        now = self._now()
        for name, time in now.items():
            if self._times.get(name) != time:
                storage.upload(os.path.join(self.folder, name), f"{self.url}/{name}")
                self._times[name] = time


@contextlib.contextmanager
def downloaded_if_there(path: str) -> Iterator[str]:
    """Context in which the file at a URL is also a local file, or an empty one if there is none.

    A local file is itself.
    """
    try:
        with storage.downloaded(path) as here:
            yield here
    except FileNotFoundError:
        yield os.devnull
