"""From `ckpt_path="best"` or `"last"` to a file, also in a process that did not write it."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from raylit.checkpoint import folder, sharded
from raylit.checkpoint.format import is_whole, load, outline
from raylit.errors import CheckpointError, CheckpointNotFoundError, NoBestCheckpointError
from raylit.runtime import storage
from raylit.runtime.aliases import CheckpointDict
from raylit.runtime.messages import warn

_TORN = "The checkpoint {} is torn or damaged; it is left aside, and the one before it is taken."
Opened = dict[str, CheckpointDict]
Saver: TypeAlias = Any  # a callback that saves checkpoints, perhaps the user's own

SHOWN = 5  # files that an error lists
SWEEP = "sweep.jsonl"  # lies in the folder of a sweep, whose trials' checkpoints are its own
_TRIAL = re.compile(r"/trial-\d+/")  # on a URL, where no sweep.jsonl is


@dataclass(frozen=True)
class Origin:
    """The model whose checkpoints are searched for below the root folder.

    Attributes:
        module: module and name of its class.
        hparams: its hyperparameters.
    """

    module: str
    hparams: Mapping[str, object] = field(default_factory=dict)

    def is_other(self, checkpoint: Mapping[str, object]) -> str | None:
        """Return the class that a checkpoint is of if it is another; None also if it is unknown."""
        known = checkpoint.get("raylit")
        found = known.get("module") if isinstance(known, dict) else None
        if not isinstance(found, str):
            return None
        modules = {name.rpartition(".")[0] for name in (found, self.module)}
        same_name = found.rpartition(".")[2] == self.module.rpartition(".")[2]
        # what ran as a script is imported by its name elsewhere
        is_same = same_name and (len(modules) == 1 or "__main__" in modules)
        return None if is_same else found

    def differences(self, checkpoint: CheckpointDict) -> list[str]:
        """Return the hyperparameters that a checkpoint has otherwise, in words."""
        stored = checkpoint.get("hyper_parameters") or {}
        plain = (bool, int, float, str, type(None))
        return [
            f"{name}={stored[name]!r} (here {value!r})"
            for name, value in self.hparams.items()
            if name in stored
            and isinstance(value, plain)
            and isinstance(stored[name], plain)
            and stored[name] != value
        ]


def resolve(
    ckpt_path: str | os.PathLike[str] | None,
    savers: Sequence[Saver],
    roots: str | Sequence[str],
    fn: str,
    opened: Opened | None = None,
    is_own: bool = True,
    origin: Origin | None = None,
) -> str | None:
    """Return the file or URL that `ckpt_path` means, None if it means none.

    A fit without `ckpt_path` goes on from the checkpoint that an OnExceptionCheckpoint among
    `savers` left, or from a `last` file if that is newer.

    Args:
        ckpt_path: a path, a URL, `best` or `last`.
        savers: the Trainer's checkpoint callbacks.
        roots: where folders of checkpoints are looked for if no callback has one; the first that
            has some counts.
        fn: `fit`, `validate`, `test` or `predict`.
        opened: takes what stands in the file, under its path, if that had to be read to tell that
            it is whole. None: nobody wants it.
        is_own: whether files are in raylit's own format; those of another cannot be checked.
        origin: the model whose checkpoints count where other runs' folders are searched.

    Raises:
        CheckpointNotFoundError: there is none, or `best` or `last` were asked for without any
            savers, so that those that there are must be another run's.
        CheckpointError: all are damaged, or their place does not answer.
    """
    on_exception = [
        str(saver.ckpt_path)
        for saver in savers
        if hasattr(saver, "ckpt_path") and folder.exists(saver.ckpt_path)
    ]
    savers = [saver for saver in savers if not hasattr(saver, "ckpt_path")]
    if ckpt_path is None:
        return _left_by_exception(savers, on_exception) if fn == "fit" else None
    path = storage.local(ckpt_path)
    if path not in ("best", "last"):
        return _given(path)
    folders = _own_folders(savers)
    roots = [roots] if isinstance(roots, str) else roots
    if not folders:
        every = (_searched(root, origin if is_own else None, opened) for root in roots)
        folders = next(filter(None, every), [])
    if not savers and not on_exception and folders:
        others = _newest(folders, "*.ckpt")
        raise CheckpointNotFoundError(
            f"ckpt_path={path!r} means a checkpoint of this Trainer, which saves none"
            " (enable_checkpointing=False). Another run has left"
            f" {', '.join(others[:SHOWN])}{' and more' if len(others) > SHOWN else ''}: give a"
            " path, or leave checkpointing on."
        )
    if path == "best":
        return _best(savers, folders, fn, opened)
    return _last(folders, on_exception, fn, opened, is_own)


def _left_by_exception(savers: Sequence[Saver], on_exception: Sequence[str]) -> str | None:
    """Return the checkpoint of a fit that an exception ended, or a `last` file if that is newer."""
    if not on_exception:
        return None
    own = [saver.dirpath for saver in savers if getattr(saver, "save_last", None) and saver.dirpath]
    newest = max([*on_exception, *_newest(own, "last*.ckpt")], key=folder.modified)
    warn(
        "fit was given no ckpt_path, but a fit before was ended by an exception: it goes on"
        f" from {newest}."
    )
    return newest


def _given(path: str) -> str:
    if not _is_there(path):
        raise CheckpointNotFoundError(
            f"ckpt_path={path!r}: there is no such file. Give a path, 'best' or 'last'."
        )
    kind = storage.no_file(path)
    if kind is not None:
        raise CheckpointNotFoundError(f"ckpt_path={path!r}: it is {kind}, no file.")
    return path


def _best(savers: Sequence[Saver], folders: Sequence[str], fn: str, opened: Opened | None) -> str:
    known = [str(getattr(saver, "best_model_path", "") or "") for saver in savers]
    best = next(filter(None, known), None) or _best_in(folders, savers, opened)
    if best is None:
        raise NoBestCheckpointError(
            f'`.{fn}(ckpt_path="best")` is set but `ModelCheckpoint` is not configured. '
            "ckpt_path='best': no checkpoint was saved by a fit before, and there is none in"
            f" {_names(folders)}. Fit first, or give a path."
        )
    return best


def _last(
    folders: Sequence[str],
    on_exception: Sequence[str],
    fn: str,
    opened: Opened | None,
    is_own: bool,
) -> str | None:
    """Return the newest whole checkpoint; of several equally new ones, the one named `last`.

    None: there is none, and a fit starts from scratch.
    """
    saved = [*_newest(folders, "last*.ckpt"), *_newest(folders, "*.ckpt"), *on_exception]
    # Sorting is stable, so of files of one moment the one named `last`, put first, stays first
    found = sorted(dict.fromkeys(saved), key=folder.modified, reverse=True)
    whole = next((path for path in found if not is_own or _is_whole(path, opened)), None)
    if whole is not None:
        return whole
    if found:
        raise CheckpointError(
            f"ckpt_path='last': every checkpoint in {_names(folders)} is damaged:"
            f" {', '.join(found)}."
        )
    if fn != "fit":
        raise CheckpointNotFoundError(
            f"ckpt_path='last': there is no checkpoint in {_names(folders)}. Fit first, or give a"
            " path."
        )
    warn(
        f"ckpt_path='last': there is no checkpoint in {_names(folders)}. Training starts from"
        " scratch."
    )
    return None


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

    Others may write to the same folder meanwhile: the id in the file decides.

    Args:
        job: the fit's id.
        folders: where its checkpoints are.
        before: what `times_of` returned when the fit began; those files are not opened.
        opened: as for `resolve`.
    """
    # To open a file takes 0.07 s for 400 MB: those of before, told by their times, are spared it
    found = (path for path, time in times_of(folders).items() if before.get(path) != time)
    return next((path for path in found if _is_of(job, path) and _is_whole(path, opened)), None)


def look_into(path: str, opened: Opened | None) -> None:
    """Find out whether a checkpoint can be read, before anything is started that goes on from it.

    Args:
        path: a file, folder or URL.
        opened: takes what stands in the file, which then need not be read again. None: those who
            go on from it are elsewhere, and of the file no more is read than what is no tensor.

    Raises:
        CheckpointError: it is torn or damaged, or no checkpoint.
    """
    if os.path.isdir(path):
        sharded.check(path)
    if opened is None or os.path.isdir(path):
        outline(path)
    elif path not in opened:
        opened[path] = load(path)


def _is_of(job: str, path: str) -> bool:
    try:
        checkpoint = outline(path)
    except CheckpointError:
        warn(_TORN.format(path))
        return False
    own = checkpoint.get("raylit")
    # Weights alone are passed over: the fit that starts again would end at them
    return isinstance(own, dict) and own.get("job") == job and "optimizer_states" in checkpoint


def _is_there(path: str) -> bool:
    return folder.exists(path) if "://" in path else os.path.exists(path)


def _names(folders: Iterable[str]) -> str:
    return ", ".join(folders) or "any folder known to the Trainer"


def _own_folders(savers: Sequence[Saver]) -> list[str]:
    return [os.fspath(saver.dirpath) for saver in savers if getattr(saver, "dirpath", None)]


def _searched(root: str, origin: Origin | None, opened: Opened | None) -> list[str]:
    """Return the folder of the newest checkpoints that earlier runs made below a root folder.

    Trials of sweeps are left out. Checkpoints of another model are taken only if there is none of
    this one; that, and other hyperparameters, is said.
    """
    depths = ("checkpoints", "*/*/checkpoints", "*/*/*/checkpoints")
    files = [file for depth in depths for file in folder.newest_first(root, f"{depth}/**/*.ckpt")]
    others: dict[str, str] = {}
    for file in sorted(files, key=folder.modified, reverse=True):
        place = file[: file.rindex("/checkpoints/")]
        if place in others or _is_of_sweep(place, root):
            continue
        if origin is not None:
            checkpoint = _read(file, opened)
            other = origin.is_other(checkpoint)
            if other is not None:
                others[place] = other
                continue
            if opened is not None:  # those passed by are large, and of no use
                kept = {name: one for name, one in opened.items() if name == file}
                opened.clear()
                opened.update(kept)
            _say_others(others, origin)
            _say_differences(file, origin.differences(checkpoint))
        return [f"{place}/checkpoints"]
    if not others or origin is None:
        return []
    newest = next(iter(others))
    warn(
        f"The newest checkpoints are of {others[newest]}, in {newest}, and there are none of"
        f" {origin.module}: they are taken. Give a path if others are meant."
    )
    return [f"{newest}/checkpoints"]


def _read(file: str, opened: Opened | None) -> CheckpointDict:
    """Return the contents of a checkpoint, without reading it twice; nothing if it is torn."""
    with contextlib.suppress(CheckpointError):  # which is told of when it is taken
        if opened is None or "://" in file or not os.path.isfile(file):
            return outline(file)
        if file not in opened:
            opened[file] = load(file)
        return opened[file]
    return {}


def _is_of_sweep(place: str, root: str) -> bool:
    """Return whether a folder below `root` lies in that of a sweep."""
    if "://" in place:
        return _TRIAL.search(f"{place}/") is not None
    below = os.path.relpath(place, root).split(os.sep)
    above = (os.path.join(root, *below[:depth]) for depth in range(1, len(below) + 1))
    return any(os.path.isfile(os.path.join(one, SWEEP)) for one in above)


def _say_others(others: Mapping[str, str], origin: Origin | None) -> None:
    if others and origin is not None:
        listed = ", ".join(f"{place} ({module})" for place, module in [*others.items()][:SHOWN])
        warn(
            f"Checkpoints of another model than {origin.module} are left aside: {listed}. Give a"
            " path if one of them is meant."
        )


def _say_differences(file: str, differences: list[str]) -> None:
    if differences:
        warn(
            f"{file} was made with {', '.join(differences[:SHOWN])}. If the weights do not fit,"
            " give these hyperparameters, or the path of another checkpoint."
        )


def _newest(folders: Iterable[str], pattern: str) -> list[str]:
    return sorted(
        (file for one in folders for file in folder.newest_first(one, f"**/{pattern}")),
        key=folder.modified,
        reverse=True,
    )


def _is_whole(path: str, opened: Opened | None = None) -> bool:
    # What lies at a URL is not fetched to be checked: loading it tells
    whole = "://" in path
    if not whole and opened is not None and os.path.isfile(path):
        if path in opened:
            return True
        with contextlib.suppress(CheckpointError):  # perhaps for other reasons than damage
            opened[path] = load(path)
            return True
    whole = whole or is_whole(path)
    if not whole:
        warn(_TORN.format(path))
    return whole


def _best_in(
    folders: Sequence[str], savers: Sequence[Saver], opened: Opened | None = None
) -> str | None:
    """Return the best checkpoint as the newest file knows it.

    The state of the callback that wrote it is in it.
    """
    newest = next((path for path in _newest(folders, "*.ckpt") if _is_whole(path, opened)), None)
    if newest is None:
        return None
    content = opened.get(newest) if opened is not None else None
    if content is None:
        content = outline(newest)
    states = content.get("callbacks", {})
    # Keys hold a callback's arguments: where those have changed, any that knows a best will do
    known = [states.get(saver.state_key) for saver in savers] + [
        state for state in states.values() if isinstance(state, dict)
    ]
    for state in known:
        best = state.get("best_model_path") if state else None
        if best and _is_there(best):
            # It was read to be asked only, and is large
            if opened is not None and best != newest:
                opened.pop(newest, None)
            return str(best)
    return newest
