"""A sharded checkpoint is a folder into which every rank writes its parts of tensors.

It does so by torch.distributed.checkpoint (DCP). In the folder are:

    meta.pt                 all else, as in a checkpoint of one file; it says where the tensors
                            belong
    .metadata, *.distcp     the parts, as DCP writes them
    complete.json           the sizes of the other files; written last: a folder without it was
                            not finished

It is written under a temporary name and renamed. It opens in any number of processes, and loading
runs no code from it: the data that DCP keeps as a pickle is read by a reader that knows only the
few classes which belong there.
"""

from __future__ import annotations

import contextlib
import copy
import enum
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from raylit.checkpoint import format, pending, place
from raylit.errors import CheckpointError, NotSavedError, UnsavableError
from raylit.runtime.aliases import CheckpointDict, StateDict, UserOptimizer
from raylit.runtime.messages import warn

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.checkpoint.metadata import Metadata

    from raylit.runtime.ranks import Ranks

META = "meta.pt"
COMPLETE = "complete.json"
Place = tuple[object, ...]

KNOWN = {  # all that DCP's metadata is made of, besides numbers and strings
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "device"},
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath", "PurePosixPath", "Path"},
}


class _Unpickler(pickle.Unpickler):
    """Knows the classes of DCP's metadata only."""

    def find_class(self, module: str, name: str) -> object:
        # By which Python before 3.11.4 pickles members of enumerations
        if (module, name) == (
            "builtins",
            "getattr",
        ):
            return _member
        # Without a dot: a dotted name would lead on to all that torch has imported
        found = (
            super().find_class(module, name)
            if name in KNOWN.get(module, ()) or (module == "torch" and "." not in name)
            else None
        )
        if found is None or (
            module == "torch" and name not in KNOWN["torch"] and not isinstance(found, torch.dtype)
        ):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which does not belong there")
        return found


def _member(kind: object, name: str) -> enum.Enum:
    if not (isinstance(kind, type) and issubclass(kind, enum.Enum)):
        raise pickle.UnpicklingError(f"it asks for {name} of {kind}, which is no enumeration")
    return kind[name]


# ---- writing ----


def save(
    ranks: Ranks, checkpoint: CheckpointDict, path: str | os.PathLike[str], *, in_background: bool
) -> None:
    """Write a checkpoint as a folder, whole or not at all. To be called on all ranks.

    Args:
        ranks: those that save.
        checkpoint: the checkpoint of a run, whose tensors may be spread over the ranks.
        path: local path, reached by all ranks.
        in_background: return as soon as the state was copied; see `pending`.

    Raises:
        UnsavableError: the path is no local one.
        NotSavedError: it could not be written; what stood at `path` is untouched. On all ranks.
    """
    from raylit.checkpoint.folder import absolute

    target = absolute(path)
    if "://" in target:
        raise UnsavableError(
            f"{target}: a sharded checkpoint needs a local path that all ranks reach. Use"
            " state_dict_type='full' for URLs."
        )
    # One name for all: each rank would draw a random part of its own
    temporary = ranks.broadcast_object(place.temporary_name(target, "part"))
    parts: dict[str, Tensor] = {}
    places: dict[str, Place] = {}
    rest = _take_parts(checkpoint, (), parts, places)
    rest = {**rest, "raylit": {**rest["raylit"], "parts": places}}
    made: place.LockedFolder | None = None
    # The collectives of two saves at once, which go over one group, would be mixed up
    pending.wait()
    with _failing_together(ranks, target):
        if ranks.is_zero:
            made = place.LockedFolder(temporary)
            format.save(rest, os.path.join(temporary, META))
    written: Future[None] = Future()
    finish = _finisher(temporary, target, made, written)
    # Nothing is spread over the ranks; reading then looks for no files of DCP either
    if not parts:
        finish(None)
    else:
        _write_parts(parts, temporary, ranks.files_group, in_background, finish)
    pending.begin(target, written)
    if not in_background and (problem := outcome(ranks, target)) is not None:
        raise NotSavedError(pending.NOT_SAVED.format(target, problem))


def outcome(ranks: Ranks, path: str | os.PathLike[str]) -> str | None:
    """Wait until a checkpoint is on the disk; return why it could not be written, None if it was.

    To be called on all ranks, which are told the same.
    """
    from raylit.checkpoint.folder import absolute

    return _reason(ranks, pending.outcome(absolute(path)))


def wait(ranks: Ranks) -> None:
    """Wait until all writes in the background are on the disk. To be called on all ranks.

    A write that failed, or an action after it such as a second name, is warned of if nobody has
    asked about it.
    """
    # Rank 0 alone moves folders and gives second names: the others learn of its failures here
    told = ranks.all_gather_object(pending.failures())
    for text in dict.fromkeys(text for one in told for text in one):
        warn(text, RuntimeWarning)


def _reason(ranks: Ranks, own: BaseException | None) -> str | None:
    told = ranks.all_gather_object(None if own is None else str(own))
    return next((one for one in told if one is not None), None)


@contextlib.contextmanager
def _failing_together(ranks: Ranks, target: str) -> Iterator[None]:
    """Make an error of one rank, to write the checkpoint `target`, one of all.

    Else they would wait for it.

    Raises:
        CheckpointError: there was one.
    """
    failed: CheckpointError | OSError | None = None
    try:
        yield
    except (CheckpointError, OSError) as error:
        failed = error
    reason = _reason(ranks, failed)
    if isinstance(failed, CheckpointError):
        raise failed
    if reason is not None:
        raise NotSavedError(pending.NOT_SAVED.format(target, reason)) from failed


def _write_parts(
    parts: dict[str, Tensor],
    folder: str,
    group: ProcessGroup | None,
    in_background: bool,
    finish: Callable[[BaseException | None], None],
) -> None:
    from torch.distributed.checkpoint import filesystem, state_dict_saver

    writer = filesystem.FileSystemWriter(folder)
    if in_background:
        # what is in host memory already is not copied by DCP, and training goes on to change it
        copied: dict[str, object] = {
            key: part.detach().clone() if part.device.type == "cpu" else part
            for key, part in parts.items()
        }
        future: Any = state_dict_saver.async_save(
            copied, storage_writer=writer, process_group=group
        )
        future.add_done_callback(lambda done: finish(done.exception()))
        return
    try:
        state_dict_saver.save(dict(parts), storage_writer=writer, process_group=group)
    except Exception as error:  # DCP has an exception of its own, which holds those of all ranks
        finish(error)
    else:
        finish(None)


def _finisher(
    temporary: str, target: str, made: place.LockedFolder | None, written: Future[None]
) -> Callable[[BaseException | None], None]:
    """Return the function to call once the parts of all ranks are written.

    It is called with the exception that came in between, or None.

    Rank 0, which made the folder, moves it to its place.
    """

    def finish(error: BaseException | None) -> None:
        try:
            if error is None and made is not None:
                sizes = {
                    name: os.path.getsize(os.path.join(temporary, name))
                    for name in sorted(os.listdir(temporary))
                    if name != place.LOCK
                }
                with open(os.path.join(temporary, COMPLETE), "w", encoding="utf-8") as marker:
                    json.dump({"files": sizes}, marker)
                    marker.flush()
                    os.fsync(marker.fileno())
                _replace(temporary, target)
                # Once it has its name: without its lock another fit would delete it as left behind
                made.release(target)
        except OSError as failed:
            error = failed
        if error is not None:
            if made is not None:
                made.release(temporary)
            with contextlib.suppress(OSError):
                shutil.rmtree(temporary)
            written.set_exception(error)
        else:
            written.set_result(None)

    return finish


def _replace(temporary: str, target: str) -> None:
    """Put a finished folder in its place."""
    place.put(temporary, target)
    format.sync(os.path.dirname(target))


def _take_parts(
    value: object, path: Place, parts: dict[str, Tensor], places: dict[str, Place]
) -> Any:
    """Return nested data without the tensors that are spread over the ranks.

    Those go to `parts`, and their places in the data to `places`.
    """
    if hasattr(value, "device_mesh") and isinstance(value, Tensor):
        key = "/".join(map(str, path))
        parts[key] = value
        places[key] = path
        return None
    if isinstance(value, dict):
        inner = {key: _take_parts(one, (*path, key), parts, places) for key, one in value.items()}
        if all(inner[key] is one for key, one in value.items()):
            return value
        made = copy.copy(value)  # a defaultdict or the like could not be made from its items
        for key, one in inner.items():
            made[key] = one
        return made
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        taken = [
            _take_parts(one, (*path, number), parts, places) for number, one in enumerate(value)
        ]
        changed = any(before is not after for before, after in zip(value, taken, strict=True))
        # A list in the place of a tuple too: `load` puts the tensors back into it
        return taken if changed else value
    return value


# ---- reading ----


@dataclass(frozen=True)
class Unread:
    """Stands for a tensor that is read once it is known which part of it this rank keeps."""

    folder: str
    key: str


def load(
    folder: str | os.PathLike[str],
    map_location: format.MapLocation = "cpu",
    weights_only: bool | None = None,
    *,
    leaves_optimizers: bool = False,
) -> StateDict:
    """Read a sharded checkpoint into this process alone, as if it were one file.

    Args:
        folder: local path.
        map_location: device on which tensors appear.
        weights_only: False lets it run code while it loads. Only for folders you wrote yourself.
        leaves_optimizers: leave the states of optimizers to `read_optimizer`.

    Raises:
        CheckpointError: there is none, it was not finished, or it is damaged.
    """
    source = os.fspath(folder)
    check(source)
    checkpoint = format.load(
        os.path.join(source, META), map_location=map_location, weights_only=weights_only
    )
    try:
        places: dict[str, Place] = dict(checkpoint["raylit"].pop("parts"))
        # With Adam they are twice the weights: each rank is to read its part of them alone
        later = {
            key
            for key, path in places.items()
            if leaves_optimizers and path[0] == "optimizer_states"
        }
        tensors = _read_parts(source, {key: None for key in places if key not in later})
        for key, path in places.items():
            inner: Any = checkpoint
            for step in path[:-1]:
                inner = inner[step]
            inner[path[-1]] = Unread(source, key) if key in later else tensors[key]
            if key not in later and isinstance(map_location, (str, torch.device)):
                inner[path[-1]] = tensors[key].to(map_location)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        reason = f"what it says of its parts is wrong ({type(error).__name__}: {error})"
        raise format.unreadable(source, reason) from error
    return checkpoint


def read_optimizer(optimizer: UserOptimizer, state: StateDict) -> StateDict:
    """Return an optimizer's state, after reading the tensors in it that were left unread.

    Of each tensor it reads the part that this rank has of its parameter.

    Raises:
        CheckpointError: the folder is damaged.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    # Not strict: that there are more or fewer is told when the optimizer takes the state
    of = dict(zip(numbers, parameters, strict=False))
    wanted = {
        value.key: of.get(number)
        for number, values in state["state"].items()
        for value in values.values()
        if isinstance(value, Unread)
    }
    if not wanted:
        return state
    folder = next(
        value.folder
        for values in state["state"].values()
        for value in values.values()
        if isinstance(value, Unread)
    )
    tensors = _read_parts(folder, wanted)
    read = {
        number: {
            name: tensors[value.key] if isinstance(value, Unread) else value
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    return {**state, "state": read}


def _read_parts(folder: str, wanted: dict[str, Tensor | None]) -> dict[str, Tensor]:
    """Read tensors by their keys.

    The part that this rank has of the tensor beside the key, or if that is None or of another
    shape, all of it.
    """
    if not wanted:
        return {}
    from torch.distributed.checkpoint import filesystem, state_dict_loader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    try:
        with open(os.path.join(folder, ".metadata"), "rb") as stream:
            metadata: Metadata = _Unpickler(stream).load()
        # Else a name such as `../x` would have DCP read any file
        for info in metadata.storage_data.values():
            if os.path.basename(info.relative_path) != info.relative_path:
                raise pickle.UnpicklingError(f"a part lies outside of it, at {info.relative_path}")

        # DCP's own would unpickle `.metadata` once more, with whatever classes it names
        class Reader(filesystem.FileSystemReader):
            def read_metadata(self, *args: object, **kwargs: object) -> Metadata:
                return metadata

        tensors: dict[str, Tensor] = {}
        for key, like in wanted.items():
            described = metadata.state_dict_metadata[key]
            if not isinstance(described, TensorStorageMetadata):
                raise pickle.UnpicklingError(f"{key} is no tensor in it")  # DCP would unpickle it
            dtype = described.properties.dtype
            # `empty_like` of a parameter that is spread is spread too, and DCP fills this rank's
            # part alone
            is_like = like is not None and like.shape == described.size
            tensors[key] = (
                torch.empty_like(like.detach(), dtype=dtype)
                if is_like and like is not None
                else torch.empty(described.size, dtype=dtype)
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # says what no_dist says
            state_dict_loader.load(dict(tensors), storage_reader=Reader(folder), no_dist=True)
    except Exception as error:  # whatever DCP, and pickle before it, make of damaged files
        raise format.unreadable(folder, f"{type(error).__name__}: {error}") from error
    return tensors


def check(folder: str) -> None:
    """Check that the writing of a folder was finished and that no file lost anything.

    Raises:
        CheckpointError: it was not, or one did.
    """
    try:
        with open(os.path.join(folder, COMPLETE), encoding="utf-8") as marker:
            sizes: dict[str, int] = dict(json.load(marker)["files"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(
            f"{folder} is no checkpoint, or its writing was not finished: {COMPLETE} is missing or"
            " damaged. Give another, or 'last' for the newest that is whole."
        ) from error
    for name, size in sizes.items():
        path = os.path.join(folder, name)
        found = os.path.getsize(path) if os.path.isfile(path) else None
        if found != size:
            raise CheckpointError(
                f"The checkpoint {folder} is damaged: {name} has"
                f" {'no file' if found is None else f'{found} bytes'}, not {size} bytes."
            )


def is_whole(folder: str) -> bool:
    """Tell whether a folder is a checkpoint with nothing missing, without loading it."""
    try:
        check(folder)
    except CheckpointError:
        return False
    return format.is_whole(os.path.join(folder, META))


def to_one_file(folder: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Make a sharded checkpoint one file, which opens anywhere, also in Lightning.

    Args:
        folder: the sharded checkpoint.
        path: local path or fsspec URL of the file.

    Raises:
        CheckpointError: the folder cannot be read, or the file not be written.

    Example:
        >>> to_one_file("checkpoints/last.ckpt", "last.ckpt")
    """
    format.save(load(folder), path)
