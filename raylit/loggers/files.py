"""The folder of a run, as loggers that write files leave it.

It is `<save_dir>/<name>/version_<N>`, with the hyperparameters in `hparams.yaml`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from enum import Enum

from raylit.runtime import storage
from raylit.runtime.messages import warn

NAME_HPARAMS_FILE = "hparams.yaml"
NO_HPARAMS = b"{}\n"


def claim_version(root_dir: str) -> int:
    """Make the folder `version_<N>` of the next free number.

    Making it claims it: two runs that start together get two numbers.

    In a bucket, which has no folders, an `hparams.yaml` without hyperparameters claims it.
    """
    fs, root = storage.fresh(root_dir)
    has_folders = root_dir.partition("://")[0] not in storage.BUCKETS
    storage.make_folder(root_dir, fs, root)
    names = [
        path.rstrip("/").rpartition("/")[2]
        for path in (fs.ls(root, detail=False) if fs.isdir(root) else ())
    ]
    numbers = [name.split("_")[1] for name in names if name.startswith("version_")]
    version = max((int(number) for number in numbers if number.isdigit()), default=-1) + 1
    while True:
        try:
            if has_folders:
                fs.makedirs(f"{root}/version_{version}", exist_ok=False)
            else:
                fs.pipe_file(
                    f"{root}/version_{version}/{NAME_HPARAMS_FILE}", NO_HPARAMS, mode="create"
                )
            return version
        except FileExistsError:
            version += 1


def last_steps(logged: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Return the last step of each name, up to which values that come are known to come again.

    Names whose steps went back are left out: at an x that begins anew, as in each epoch, a value
    that comes again looks like any other, and none is to be lost.

    Args:
        logged: name and step of each value, in the order in which they were written.
    """
    last: dict[str, float] = {}
    went_back = set()
    for name, step in logged:
        if step < last.get(name, -math.inf):
            went_back.add(name)
        last[name] = step
    return {name: step for name, step in last.items() if name not in went_back}


def hparams_as_yaml(hparams: Mapping[str, object]) -> str:
    """Return hyperparameters as YAML; those that YAML cannot hold are left out with a warning."""
    import yaml

    writable = {}
    for key, value in hparams.items():
        plain = value.name if isinstance(value, Enum) else value
        try:
            yaml.dump(plain)
        except Exception:  # whatever an object raises when it is asked for its parts
            warn(
                f"The hyperparameter {key!r} ({type(value).__name__}) is not in"
                f" {NAME_HPARAMS_FILE}: YAML cannot hold it."
            )
        else:
            writable[key] = plain
    text: str = yaml.dump(writable)
    return text
