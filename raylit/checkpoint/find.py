"""From `ckpt_path="best"` or `"last"` to a file, also in a process that did not write it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from raylit.checkpoint import folder
from raylit.checkpoint.format import is_whole, load, outline
from raylit.errors import CheckpointError, CheckpointNotFoundError
from raylit.runtime import storage
from raylit.runtime.messages import warn

_TORN = "The checkpoint {} is torn or damaged; it is left aside, and the one before it is taken."
Opened = dict[str, dict[str, Any]]

SHOWN = 5  # files that an error lists


def resolve(
    ckpt_path: str | os.PathLike[str] | None,
    savers: Sequence[Any],
    default_root_dir: str,
    fn: str,
    opened: Opened | None = None,
    is_own: bool = True,
) -> str | None:
    """Return the file or URL that is meant by `ckpt_path`, None for none.

    A fit without `ckpt_path` goes on from what an OnExceptionCheckpoint among `savers` left, or a
    `last` file if that is newer.

    Args:
        ckpt_path: a path, a URL, `best` or `last`.
        savers: the Trainer's checkpoint callbacks.
        default_root_dir: where folders of checkpoints are looked for if no callback has one.
        fn: `fit`, `validate`, `test` or `predict`.
        opened: takes what stands in the file, under its path, if that had to be read to tell that
            it is whole. None: nobody wants it.
        is_own: whether files are in raylit's own format; those of another cannot be checked.

    Raises:
        CheckpointNotFoundError: there is none, or `best` or `last` were asked for without any
            savers, so that those that there are must be another run's.
        CheckpointError: all are damaged, or their place does not answer.
    """
    on_exception: list[str] = [
        saver.ckpt_path
        for saver in savers
        if hasattr(saver, "ckpt_path") and folder.exists(saver.ckpt_path)
    ]
    savers = [saver for saver in savers if not hasattr(saver, "ckpt_path")]
    if ckpt_path is None:
        if fn != "fit" or not on_exception:
            return None
        own = [
            saver.dirpath for saver in savers if getattr(saver, "save_last", None) and saver.dirpath
        ]
        newest = max([*on_exception, *_newest(own, "last*.ckpt")], key=folder.modified)
        warn(
            "fit was given no ckpt_path, but a fit before was ended by an exception: it goes on"
            f" from {newest}."
        )
        return newest
    path = storage.local(ckpt_path)
    if path not in ("best", "last"):
        if not _is_there(path):
            raise CheckpointNotFoundError(
                f"ckpt_path={path!r}: there is no such file. Give a path, 'best' or 'last'."
            )
        return path
    folders = _folders(savers, default_root_dir)
    if not savers and not on_exception and folders:
        others = _newest(folders, "*.ckpt")
        raise CheckpointNotFoundError(
            f"ckpt_path={path!r} means a checkpoint of this Trainer, which saves none"
            " (enable_checkpointing=False). Another run has left"
            f" {', '.join(others[:SHOWN])}{' and more' if len(others) > SHOWN else ''}: give a path,"
            " or leave checkpointing on."
        )
    if path == "best":
        best = next(
            (saver.best_model_path for saver in savers if getattr(saver, "best_model_path", "")),
            None,
        ) or _best_in(folders, savers)
        if best is None:
            raise CheckpointNotFoundError(
                "ckpt_path='best': no checkpoint was saved by a fit before, and there is none in"
                f" {_names(folders)}. Fit first, or give a path."
            )
        return best
    saved = list(
        dict.fromkeys([*_newest(folders, "last*.ckpt"), *_newest(folders, "*.ckpt"), *on_exception])
    )
    found = sorted(
        saved, key=folder.modified, reverse=True
    )  # of those of one moment `last` comes first
    whole = next((path for path in found if not is_own or _is_whole(path, opened)), None)
    if whole is not None:
        return whole
    if found:
        raise CheckpointError(
            f"ckpt_path='last': every checkpoint in {_names(folders)} is damaged:"
            f" {', '.join(found)}."
        )
    if fn == "fit":
        warn(
            f"ckpt_path='last': there is no checkpoint in {_names(folders)}. Training starts from"
            " scratch."
        )
        return None
    raise CheckpointNotFoundError(
        f"ckpt_path='last': there is no checkpoint in {_names(folders)}. Fit first, or give a path."
    )


def times_of(folders: Iterable[str]) -> dict[str, float]:
    """Return the checkpoints in `folders`, with when they were written.

    By the clock of whoever keeps them, which may not be this machine's.
    """
    return {path: folder.modified(path) for path in _newest(dict.fromkeys(folders), "*.ckpt")}


def newest_of(
    job: str,
    folders: Iterable[str],
    before: Mapping[str, float],
    opened: Opened | None = None,
) -> str | None:
    """Return the newest whole checkpoint that a fit has written and can go on from.

    Others may write to the same folder meanwhile: what counts is the id in the file.

    Args:
        job: the fit's id.
        folders: where its checkpoints are.
        before: what `times_of` returned when the fit began; those files are not opened.
        opened: as for `resolve`.
    """
    found = (path for path, time in times_of(folders).items() if before.get(path) != time)
    return next((path for path in found if _is_of(job, path) and _is_whole(path, opened)), None)


def _is_of(job: str, path: str) -> bool:
    try:
        checkpoint = outline(path)
    except CheckpointError:
        warn(_TORN.format(path))
        return False
    own = checkpoint.get("raylit")
    return isinstance(own, dict) and own.get("job") == job and "optimizer_states" in checkpoint


def _is_there(path: str) -> bool:
    return folder.exists(path) if "://" in path else os.path.exists(path)


def _names(folders: Iterable[str]) -> str:
    return ", ".join(folders) or "any folder known to the Trainer"


def _folders(savers: Sequence[Any], default_root_dir: str) -> list[str]:
    """Return where checkpoints may be.

    The callbacks' folders, else those that earlier runs made below the root folder.
    """
    own = [os.fspath(saver.dirpath) for saver in savers if getattr(saver, "dirpath", None)]
    if own:
        return own
    depths = ("checkpoints", "*/*/checkpoints", "*/*/*/checkpoints")
    files = [
        file
        for depth in depths
        for file in folder.newest_first(default_root_dir, f"{depth}/**/*.ckpt")
    ]
    if not files:
        return []
    newest = max(files, key=folder.modified)
    return [newest[: newest.rindex("/checkpoints/")] + "/checkpoints"]


def _newest(folders: Iterable[str], pattern: str) -> list[str]:
    return sorted(
        (file for one in folders for file in folder.newest_first(one, f"**/{pattern}")),
        key=folder.modified,
        reverse=True,
    )


def _is_whole(path: str, opened: Opened | None = None) -> bool:
    whole = "://" in path
    if not whole and opened is not None and os.path.isfile(path):
        with contextlib.suppress(CheckpointError):  # perhaps for other reasons than damage
            opened[path] = load(path)
            return True
    whole = whole or is_whole(path)
    if not whole:
        warn(_TORN.format(path))
    return whole


def _best_in(folders: Sequence[str], savers: Sequence[Any]) -> str | None:
    """Return the best checkpoint as the newest file knows it.

    The state of the callback that wrote it is in it.
    """
    newest = next(filter(_is_whole, _newest(folders, "*.ckpt")), None)
    if newest is None:
        return None
    states = outline(newest).get("callbacks", {})
    known = [states.get(saver.state_key) for saver in savers] + [
        state for state in states.values() if isinstance(state, dict)
    ]
    for state in known:
        best = state.get("best_model_path") if state else None
        if best and _is_there(best):
            return str(best)
    return newest
