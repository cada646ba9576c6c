"""Figures, images, tables and texts as files in the folder of a run."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable

from raylit.core.logger import Logger
from raylit.loggers import pictures
from raylit.runtime.messages import warn


class KeepsFiles(Logger, ABC):
    """A logger that keeps figures, images and tables as files.

    A figure is `plots/<name>/step-<step>.png`, an image `images/...`, a table `tables/...csv`. If
    one cannot be drawn or written, that is only warned of: the training is worth more than its
    pictures.
    """

    @property
    @abstractmethod
    def files_folder(self) -> str:
        """Local folder of the run."""

    def log_figure(self, name: str, figure: object, step: int) -> None:
        """Keep a matplotlib figure; see `self.log_figure`."""
        savefig: Callable[..., None] = getattr(figure, "savefig")  # noqa: B009

        def write(path: str) -> None:
            savefig(path, bbox_inches="tight")

        self._keep(f"plots/{name}/step-{step:08}.png", write)

    def log_image(self, name: str, image: object, step: int) -> None:
        """Keep an image; see `self.log_image`."""

        def write(path: str) -> None:
            pictures.as_image(image).save(path)

        self._keep(f"images/{name}/step-{step:08}.png", write)

    def log_table(self, name: str, table: object, step: int) -> None:
        """Keep a table as CSV; see `self.log_table`."""
        self.log_text(pictures.as_csv(table), f"tables/{name}/step-{step:08}.csv")

    def log_text(self, text: str, artifact_file: str) -> None:
        """Keep a text at a path below the folder; see `self.log_text`."""

        def write(path: str) -> None:
            with open(path, "w", encoding="utf-8", newline="") as file:
                file.write(text)

        self._keep(artifact_file, write)

    def _keep(self, name: str, write: Callable[[str], None]) -> None:
        parts = [part for part in name.split("/") if part not in ("", ".", "..")]
        path = os.path.join(self.files_folder, *parts)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            write(path)
        except Exception as error:
            warn(f"{path} could not be written: {type(error).__name__}: {error}")
