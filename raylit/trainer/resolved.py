"""The config of a fit written in Python, by which `raylit fit --config` makes the same run.

A module is described by its class and its hyperparameters, other objects by the arguments that they
have kept. The head of the file names the parts that cannot be told.
"""

from __future__ import annotations

import enum
import inspect
import os
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import yaml

from raylit.core.callback import Callback
from raylit.core.logger import Logger
from raylit.runtime.bounds import TooLargeError, check_size
from raylit.runtime.masked_config import mask_config
from raylit.version import __version__

if TYPE_CHECKING:
    from raylit.core.job import Job

# Of loggers: which run of theirs it was, which another one is not to write into
OF_ONE_RUN = frozenset({"run_id", "version"})
# Of one argument: more, such as the paths of a data set, took seconds before the fit, and the whole
# could not be read again (`bounded_yaml.MAX_VALUES`)
_MOST_VALUES = 5_000
_MISSING = object()


def config_text(job: Job, *, goes_on: bool) -> str:
    """Return the config of a fit as YAML, without secrets.

    Args:
        job: the fit, before it starts.
        goes_on: whether it goes on with the run of its checkpoint, so that the run as a whole does
            not begin with that.
    """
    unknown: list[str] = []
    seed = os.environ.get("PL_GLOBAL_SEED")
    config: dict[str, object] = {"seed_everything": False if seed is None else int(seed)}
    config["model"] = _component(job.module, "model", unknown)
    if job.datamodule is not None:
        config["data"] = _component(job.datamodule, "data", unknown)
    arguments = job.trainer.changed_arguments
    config["trainer"] = {
        name: _value(value, f"trainer.{name}", unknown) for name, value in arguments.items()
    }
    if job.ckpt_path is not None and not goes_on:
        config["ckpt_path"] = str(job.ckpt_path)
    if seed is None:
        unknown.append("seed_everything: no seed was set, so another run has other random numbers")
    for stage, loader in job.data.items():
        unknown.append(
            f"data: {stage}_dataloaders was an object, a {type(loader).__name__};"
            " a LightningDataModule can be written here"
        )
    head = [
        f"# raylit fit --config FILE    (raylit {__version__}, torch {torch.__version__})",
        "# Made of a fit that was written in Python.",
        *(f"# Not told: {line}" for line in unknown),
    ]
    body = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    return mask_config("\n".join((*head, body)))


def _component(owner: object, path: str, unknown: list[str]) -> dict[str, object]:
    """Return class and arguments of a module, datamodule or any other object."""
    hparams = dict(getattr(owner, "hparams_initial", {}))
    arguments: dict[str, object] = {}
    for parameter in _parameters(type(owner)):
        name = parameter.name
        where = f"{path}.init_args.{name}"
        value = hparams.get(name, _MISSING)
        if value is _MISSING:
            value = _kept(owner, name)
        if isinstance(owner, Logger) and name in OF_ONE_RUN:
            continue
        if value is _MISSING:
            unknown.append(f"{where}, which {type(owner).__name__} does not keep")
            continue
        try:
            check_size(value, _MOST_VALUES)
        except TooLargeError as error:
            unknown.append(f"{where}: {error}")
            continue
        own = getattr(type(owner), getattr(value, "__name__", ""), _MISSING)
        if own is not value and not _is_default(value, parameter.default):
            arguments[name] = _value(value, where, unknown)
    found: dict[str, object] = {"class_path": class_path(type(owner))}
    if "<locals>" in str(found["class_path"]):
        unknown.append(f"{path}: its class stands within a function, where no config finds it")
    if arguments:
        found["init_args"] = arguments
    return found


def _parameters(cls: type) -> list[inspect.Parameter]:
    """Return the arguments that a class can be given by name."""
    try:
        parameters = inspect.signature(cls).parameters.values()
    except (TypeError, ValueError):  # of a class that is written in C
        return []
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [one for one in parameters if one.kind in kinds]


def _kept(owner: object, name: str) -> object:
    """Return the value that an object has kept of an argument, as `name` or `_name`."""
    if isinstance(owner, (Callback, Logger)):
        told = owner.config_arguments()
        if name in told:
            return told[name]
    own = vars(owner) if hasattr(owner, "__dict__") else {}
    return own.get(name, own.get(f"_{name}", _MISSING))


def _is_default(value: object, default: object) -> bool:
    if value is default:
        return True
    if isinstance(value, (int, float)) and isinstance(default, (int, float)):
        return isinstance(value, bool) == isinstance(default, bool) and value == default
    plain = (str, list, tuple, dict)
    return isinstance(value, plain) and type(value) is type(default) and bool(value == default)


def _value(value: object, path: str, unknown: list[str]) -> object:
    """Return a value as it stands in a config."""
    if isinstance(value, enum.Enum):
        of_texts_or_numbers = isinstance(value, (int, float, str))
        return _value(value.value, path, unknown) if of_texts_or_numbers else value.name
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)  # YAML has no subclasses of these
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_value(one, f"{path}.{number}", unknown) for number, one in enumerate(value)]
    if isinstance(value, Mapping):
        return {str(key): _value(one, f"{path}.{key}", unknown) for key, one in value.items()}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, timedelta):
        # As `parse_duration` reads it again
        hours, rest = divmod(value.seconds, 3600)
        return f"{value.days:02}:{hours:02}:{rest // 60:02}:{rest % 60:02}"
    if isinstance(value, (type, torch.dtype)) or inspect.isroutine(value):
        named = str(value) if isinstance(value, torch.dtype) else class_path(value)
        if "." in getattr(value, "__qualname__", "") or "<" in named:
            unknown.append(
                f"{path}: {named} is within a class or function, where no config finds it"
            )
        return named
    if isinstance(value, (torch.Tensor, np.ndarray)):
        unknown.append(f"{path}: a {type(value).__name__} of shape {tuple(value.shape)}")
        return None
    return _component(value, path, unknown)


def class_path(found: object) -> str:
    """Return the name under which a class or function is imported.

    Of a script, the module that its file is: `train.LitModel`.
    """
    module = getattr(found, "__module__", None) or "builtins"
    name = getattr(found, "__qualname__", type(found).__qualname__)
    if module == "__main__":
        module = _main_module()
    parts = module.split(".")
    # `raylit.callbacks.EarlyStopping`, if that is the same
    above = (".".join(parts[:number]) for number in range(2, len(parts)))
    shorter = (one for one in above if getattr(sys.modules.get(one), name, None) is found)
    return f"{next(shorter, module)}.{name}"


def _main_module() -> str:
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name)
    file = getattr(main, "__file__", None)
    if file is None:
        return "__main__"
    script = Path(file).resolve()
    try:
        return ".".join(script.relative_to(Path.cwd()).with_suffix("").parts)
    except ValueError:  # it lies elsewhere
        return script.stem
