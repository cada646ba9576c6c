"""The tasks beside the four entry points: their arguments looked at, and the Trainer that does them."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from raylit.errors import ConfigError, MissingPackageError, did_you_mean
from raylit.explain import Explain, methods
from raylit.explain.methods import Method
from raylit.export import FORMATS, Export
from raylit.export.formats import check_packages
from raylit.runtime.storage import is_url, unwritable

if TYPE_CHECKING:
    from raylit.core.module import LightningModule
    from raylit.trainer.trainer import Trainer

TARGETS = ("prediction", "label")  # of an explanation, beside an index


def export_task(
    trainer: Trainer,
    model: LightningModule | None,
    path: str | os.PathLike[str] | None,
    format: str | None,
    num_batches: int,
    tolerance: float,
) -> Export:
    """Return the task of an export, all of whose arguments can be right.

    Raises:
        ConfigError: one is not.
        MissingPackageError: a package that the format needs is not installed.
    """
    suffix = os.path.splitext(os.fspath(path))[1] if path is not None else ""
    by_suffix = {kind.suffix: name for name, kind in FORMATS.items()}
    format = format or by_suffix.get(suffix, "onnx")
    if format not in FORMATS:
        raise ConfigError(
            f"Trainer.export(format={format!r}) is not known.{did_you_mean(format, FORMATS)} Use"
            f" one of: {', '.join(FORMATS)}."
        )
    if num_batches < 1:
        raise ConfigError(
            f"Trainer.export(num_batches={num_batches}): at least one batch is needed to compare."
        )
    if not tolerance > 0:
        raise ConfigError(f"Trainer.export(tolerance={tolerance}) must be above 0, such as 1e-5.")
    check_packages(format)
    if path is None:
        module = model if model is not None else trainer.model
        path = f"{type(module).__name__}{FORMATS[format].suffix}"
    path = os.fspath(path)
    if is_url(path):
        raise ConfigError(
            f"Trainer.export writes to this machine, but path is {path}. Give a file here and copy"
            " it."
        )
    if format == "mlflow" and os.path.exists(path):
        raise ConfigError(
            f"Trainer.export would make the folder {path}, but there is one. Give another path."
        )
    if format != "mlflow" and os.path.isdir(path):
        raise ConfigError(
            f"Trainer.export writes a file, but {path} is a folder. Give a file, such as"
            f" {os.path.join(path, 'model')}{FORMATS[format].suffix}."
        )
    problem = unwritable(os.path.dirname(os.path.abspath(path)))
    if problem is not None:
        raise ConfigError(f"Trainer.export cannot write {path}: {problem}. Give another path.")
    return Export(path, format, num_batches, tolerance)


def explain_task(
    method: Method, target: int | str, feature_names: Sequence[str] | None, sanity_check: bool
) -> Explain:
    """Return the task of an explanation, all of whose arguments can be right.

    Raises:
        ConfigError: one is not.
        MissingPackageError: captum is not installed.
    """
    methods.check(method.kind, method.layer)
    if isinstance(target, str) and target.lstrip("-").isdigit():  # of a flag
        target = int(target)
    if isinstance(target, bool) or (isinstance(target, str) and target not in TARGETS):
        raise ConfigError(
            f"Trainer.explain(target={target!r}) is not known. Use 'prediction', 'label', or the"
            " index of an output, such as 0."
        )
    for name in ("num_steps", "internal_batch_size"):
        if getattr(method, name) < 1:
            raise ConfigError(f"Trainer.explain({name}={getattr(method, name)}) must be 1 or more.")
    if importlib.util.find_spec("captum") is None:
        raise MissingPackageError("captum", "Trainer.explain", "explain")
    return Explain(method, target, list(feature_names) if feature_names else None, sanity_check)


def with_weights_alone(trainer: Trainer, **arguments: object) -> Trainer:
    """Return a Trainer with the settings of another that concern data and places.

    It has no callbacks and loggers; each process has the whole model, in float32.
    """
    return trainer.replaced(
        **{
            "max_epochs": -1,
            "devices": None,
            "num_nodes": 1,
            "strategy": "auto",
            "precision": None,
            "logger": False,
            "callbacks": None,
            "fast_dev_run": False,
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "enable_progress_bar": False,
            "profiler": None,
            "barebones": False,
            "compile": False,
            "async_validation": False,
            "inference_mode": False,
            **arguments,
        }
    )
