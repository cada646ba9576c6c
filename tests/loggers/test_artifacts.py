"""What is kept as files in the folder of a run, and what must not end a training."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raylit.loggers.artifacts import KeepsFiles
from tests.lazy import matplotlib


class Folder(KeepsFiles):
    """A logger of nothing but files."""

    name = "theirs"
    version = 0

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def files_folder(self) -> str:
        return str(self.folder)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None: ...
    def log_hyperparams(self, params: Mapping[str, object]) -> None: ...


@pytest.fixture
def run(tmp_path: Path) -> Folder:
    """A logger whose folder, within an empty one, is made by whatever comes first."""
    return Folder(tmp_path / "a" / "run")


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_files_are_named_by_kind_name_and_step(run: Folder) -> None:
    figure = matplotlib.figure.Figure()
    figure.subplots().plot([1, 2, 3])
    for step in (8, 123456789):
        run.log_figure("errors/curve", figure, step)
        run.log_image("sample ü", np.zeros((2, 3)), step)
        run.log_table("mistakes", {"a": [step]}, step)
    run.log_text("hello", "notes/of the epoch.txt")
    assert files(run.folder) == [
        "images/sample ü/step-00000008.png",
        "images/sample ü/step-123456789.png",
        "notes/of the epoch.txt",
        "plots/errors/curve/step-00000008.png",
        "plots/errors/curve/step-123456789.png",
        "tables/mistakes/step-00000008.csv",
        "tables/mistakes/step-123456789.csv",
    ]
    for kind in ("images/sample ü", "plots/errors/curve"):
        assert (run.folder / kind / "step-00000008.png").read_bytes()[:4] == b"\x89PNG"
    assert (run.folder / "tables/mistakes/step-00000008.csv").read_bytes() == b"a\r\n8\r\n"


def test_a_text_is_kept_to_the_letter(run: Folder) -> None:
    text = "one\r\ntwo\nthree ünïcode 🙂\n\n"
    run.log_text("another one, and longer than the one that takes its place", "a.txt")
    run.log_text(text, "a.txt")
    run.log_text("", "empty.txt")
    assert (run.folder / "a.txt").read_bytes() == text.encode()
    assert (run.folder / "empty.txt").read_bytes() == b""


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("../../note.txt", "note.txt"),
        ("/etc/note.txt", "etc/note.txt"),
        ("a/../b//./c.txt", "a/b/c.txt"),
        ("...", "..."),
        ("~/note.txt", "~/note.txt"),
    ],
)
def test_no_name_leads_out_of_the_folder(run: Folder, name: str, kept: str) -> None:
    run.log_text("hello", name)
    run.log_table(f"../../../../../{name}", {"a": [1]}, 0)
    assert {*files(run.folder.parents[1])} == {
        f"a/run/{kept}",
        f"a/run/tables/{kept}/step-00000000.csv",
    }


@pytest.mark.parametrize("name", ["", "..", "/", "a\0b", "x" * 300])
def test_a_name_that_no_file_can_have_is_warned_of(run: Folder, name: str) -> None:
    run.folder.mkdir(parents=True)
    with pytest.warns(UserWarning, match=r"could not be written: \w+Error: "):
        run.log_text("hello", name)
    run.log_text("hello", "good.txt")
    assert files(run.folder) == ["good.txt"]


class Broken:
    """A figure that cannot be drawn, as one with a formula of LaTeX that is none."""

    def savefig(self, path: str, **options: Any) -> None:
        """Write something, and fail."""
        raise RuntimeError("Expected end of text, found '$'")


def test_what_cannot_be_drawn_is_warned_of_and_the_next_is_kept(run: Folder) -> None:
    with pytest.warns(UserWarning, match=r"step-00000003\.png could not .* Expected end of text"):
        run.log_figure("wrong", Broken(), 3)
    with pytest.warns(UserWarning, match=r"DataError: log_image was given an array of shape \(5,"):
        run.log_image("wrong", np.zeros(5), 3)
    run.log_image("right", np.zeros((5, 5)), 3)
    assert files(run.folder) == ["images/right/step-00000003.png"]


def test_a_full_disk_and_a_file_in_the_way_do_not_raise(run: Folder) -> None:
    run.log_text("a file", "tables")
    with pytest.warns(UserWarning, match=r"tables/a/step-00000000\.csv could not be written"):
        run.log_table("a", {"a": [1]}, 0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.warns(UserWarning, match="could not be written: OSError"):
            run.log_text("x" * 5000, "long.txt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    run.log_text("x" * 5000, "long.txt")
    assert os.path.getsize(run.folder / "long.txt") == 5000


def test_a_warning_shows_no_password(run: Folder) -> None:
    """It holds what other packages say, which do not know what is secret."""

    class Tells(Broken):
        def savefig(self, path: str, **options: Any) -> None:
            raise OSError("https://me:hunter2@host/fonts is not there")

    with pytest.warns(UserWarning, match="could not be written") as warned:
        run.log_figure("curve", Tells(), 0)
    assert "me:***@host" in str(warned[0].message)
    assert "hunter2" not in str(warned[0].message)


def test_a_logger_that_does_not_say_where_is_none() -> None:
    class Nowhere(KeepsFiles):
        name = ""
        version = 0

        def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None: ...
        def log_hyperparams(self, params: Mapping[str, object]) -> None: ...

    with pytest.raises(TypeError, match="files_folder"):
        Nowhere()  # type: ignore[abstract]
