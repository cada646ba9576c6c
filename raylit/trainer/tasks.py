"""Tasks beside the four entry points: their arguments checked, and the Trainer that does them."""

from __future__ import annotations

import csv
import importlib.util
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from raylit.checkpoint.format import outline
from raylit.errors import ConfigError, MissingPackageError, did_you_mean
from raylit.explain import Explain, methods
from raylit.explain.methods import Method
from raylit.export import FORMATS, Export
from raylit.export.formats import check_packages
from raylit.runtime.storage import is_url, unwritable

if TYPE_CHECKING:
    from raylit.core.module import LightningModule
    from raylit.explain import Explanation
    from raylit.trainer.trainer import Trainer


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
    if format is None and suffix and suffix not in by_suffix:
        raise ConfigError(
            f"Trainer.export(path={os.fspath(path or '')!r}): its ending tells no format. Use one"
            f" of {', '.join(filter(None, by_suffix))}, or say format=."
        )
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
    """Check the arguments of an explanation, and return its task.

    Raises:
        ConfigError: one is not.
        MissingPackageError: captum is not installed.
    """
    methods.check(method.kind, method.layer)
    target = methods.check_target(target, "Trainer.explain")
    for name in ("num_steps", "internal_batch_size"):
        if getattr(method, name) < 1:
            raise ConfigError(f"Trainer.explain({name}={getattr(method, name)}) must be 1 or more.")
    if importlib.util.find_spec("captum") is None:
        raise MissingPackageError("captum", "Trainer.explain", "explain")
    return Explain(method, target, list(feature_names) if feature_names else None, sanity_check)


def keep_explanation(
    trainer: Trainer,
    explanation: Explanation,
    ckpt_path: str | None,
    weights_only: bool | None,
) -> None:
    """Give an explanation to the loggers, beside the run that it explains.

    That is the run of the checkpoint, or without one the run of the Trainer's last job.
    """
    able = [one for one in trainer.loggers if hasattr(one, "keep_beside")]
    if not able:
        return
    step = trainer.global_step
    run_id: str | None = None
    if ckpt_path is not None and trainer.checkpoint_io is None:
        saved = outline(ckpt_path, weights_only=weights_only)
        step = int(saved.get("global_step", 0))
        run_id = saved.get("raylit", {}).get("run_id")
    with tempfile.TemporaryDirectory(prefix="raylit-") as folder:
        explanation.save(os.path.join(folder, "arrays.npz"))
        explanation.plot().savefig(os.path.join(folder, "picture.png"), dpi=120)
        for name, array in explanation.attributions.items():
            if array.ndim == 2:
                _write_importance(explanation, name, os.path.join(folder, f"{name}.csv"))
        for logger in able:
            beside = run_id if ckpt_path is not None else logger.run_id
            if beside is None:
                continue
            place = f"explanations/{explanation.method}/step-{step:08}"
            keep: Callable[..., bool] = getattr(logger, "keep_beside")  # noqa: B009
            if keep(beside, folder, place, default_root_dir=trainer.default_root_dir):
                explanation.run_id = beside


def _write_importance(explanation: Explanation, name: str, path: str) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("feature", "importance"))
        writer.writerows(explanation.importance(name).items())


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
            # Most attributions are gradients, and there are none in inference mode
            "inference_mode": False,
            **arguments,
        }
    )
