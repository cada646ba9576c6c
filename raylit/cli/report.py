"""The lines before a run and after it."""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING

import torch

from raylit.callbacks import ModelCheckpoint
from raylit.loggers import MLFlowLogger
from raylit.runtime import environment
from raylit.runtime.messages import number_of
from raylit.runtime.secrets import without_secrets

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence

    from raylit.core.datamodule import LightningDataModule
    from raylit.core.job import Result
    from raylit.core.logger import Logger
    from raylit.core.module import LightningModule
    from raylit.explain import Explanation
    from raylit.runtime.aliases import StepOutput
    from raylit.trainer.trainer import Trainer
    from raylit.tune import SweepResult


def begin(
    command: str,
    trainer: Trainer,
    model: LightningModule,
    data: LightningDataModule | None,
    ckpt_path: str | None,
) -> None:
    """Say what will run and where."""
    what = type(model).__name__ + (f" on {type(data).__name__}" if data is not None else "")
    if command == "fit":
        what += f", {_limits(trainer)}"
    if ckpt_path is not None:
        what += f", from {shown(ckpt_path)}"
    text = without_secrets(f"raylit {command}: {what}, {_place(trainer)}")
    print(text, file=sys.stderr, flush=True)


def _limits(trainer: Trainer) -> str:
    if trainer.fast_dev_run:
        return (
            f"a fast dev run of {number_of(int(trainer.fast_dev_run), 'batch', 'batches')}"
            " (fast_dev_run: nothing is stored)"
        )
    given = ((trainer.max_epochs, "epoch"), (trainer.max_steps, "step"))
    limits = [number_of(limit, unit) for limit, unit in given if limit is not None and limit != -1]
    return f"up to {' or '.join(limits)}" if limits else "without a limit of epochs"


def _place(trainer: Trainer) -> str:
    if not trainer.num_workers:
        return (
            f"in this process ({trainer.accelerator})"
            if trainer.accelerator != "auto"
            else "in this process"
        )
    address = os.environ.get("RAY_ADDRESS")
    return (
        f"in {trainer.workers_wanted} Ray workers"
        f" {f'of the cluster {address}' if address else 'on this machine'}"
    )


def end_of_fit(
    result: Result, trainer: Trainer, time_s: float, args: list[str], program: str
) -> None:
    """Print how a fit ended, where its checkpoint is, where to look, and what to do next."""
    rows = [
        (
            "done",
            (
                f"{number_of(result.epochs, 'epoch')}, {number_of(result.steps, 'step')} in"
                f" {duration(time_s)}"
            ),
        )
    ]
    if result.data_wait:
        rows.append(("data wait", f"{result.data_wait:.0%} of the time of training"))
    saver = trainer.checkpoint_callback
    monitor = saver.monitor if isinstance(saver, ModelCheckpoint) else None
    if monitor and result.best_model_score is not None:
        rows.append((f"best {monitor}", f"{result.best_model_score:.6g}"))
    last = {
        name: value
        for name, value in result.metrics.items()
        if not name.endswith(("_step", "_epoch"))
    }
    if last:
        rows.append(
            ("last values", "  ".join(f"{name} {value:.4g}" for name, value in last.items()))
        )
    checkpoint = result.best_model_path or result.last_model_path
    if checkpoint:
        rows.append(("checkpoint", shown(checkpoint)))
    rows.extend(("look at it", where) for where in map(_look, trainer.loggers) if where)
    if checkpoint:
        rows.append(
            (
                "next",
                (
                    f"{program} test"
                    f" {shlex.join([*without_ckpt_path(args), '--ckpt_path', shown(checkpoint)])}"
                ),
            )
        )
    print_rows(rows)


def again(args: list[str], options: Namespace) -> list[str]:
    """Return the flags of a command for another one that is to run in the same place."""
    if on := os.environ.get(environment.ON):  # this is a job: what is typed is typed elsewhere
        return [*args, "--on", on]
    address = getattr(options, "ray_address", None)
    return [*args, "--ray.address", address] if address else args


def without_ckpt_path(args: list[str]) -> list[str]:
    """Return the flags of a command but for the checkpoint."""
    kept: list[str] = []
    rest = iter(args)
    for arg in rest:
        if arg == "--ckpt_path":
            next(rest, None)
        elif not arg.startswith("--ckpt_path="):
            kept.append(arg)
    return kept


def _look(logger: Logger) -> str | None:
    """Return where to look at the records of a logger."""
    if isinstance(logger, MLFlowLogger):
        return logger.where()
    return shown(logger.log_dir) if logger.log_dir else None


def end_of_sweep(
    result: SweepResult, program: str, args: Sequence[str], options: Namespace
) -> None:
    """Print where the files of the trials are, where to look, and how to fit with the best values.

    This stands below the table of trials.

    Args:
        result: the sweep.
        program: what its command begins with.
        args: the flags that are keys of the config, and --config.
        options: the other flags.
    """
    rows = [("files", shown(result.folder))]
    if result.where:
        rows.append(("look at it", result.where))
    values = [f"--{key}={value}" for key, value in result.best.config.items()]
    rows.append(("best", shlex.join([result.best.name, *values])))
    is_job = environment.ON in os.environ  # whose files are not where the next command is typed
    best = again([*args, *values] if is_job else ["--config", shown(result.best_config)], options)
    rows.append(("next", f"{program} fit {shlex.join(best)}"))
    print_rows(rows)


def end_of_predict(predictions: list[StepOutput] | None, output: str | None) -> None:
    """Print how many predictions there are and where."""
    if predictions is None:
        print_rows([("done", "nothing was kept (return_predictions: false)")])
        return
    batches = _flat(predictions)
    num_samples = sum(
        len(batch) if isinstance(batch, (torch.Tensor, list)) and not _is_scalar(batch) else 1
        for batch in batches
    )
    what = (
        f"{number_of(num_samples, 'prediction')} in {number_of(len(batches), 'batch', 'batches')}"
    )
    print_rows(
        [
            ("done", what),
            (
                ("kept in", f'{output}   (torch.load("{output}"))')
                if output
                else ("kept in", "nothing: give --output FILE.pt to keep them")
            ),
        ]
    )


def end_of_explain(explanation: Explanation, output: str) -> None:
    """Write the arrays and the picture, and print where they are and which inputs matter most."""
    base = output.removesuffix(".npz")
    explanation.save(f"{base}.npz")
    explanation.plot().savefig(f"{base}.png", dpi=120)
    rows = [
        ("done", f"{number_of(explanation.num_samples, 'sample')} by {explanation.method}"),
        ("arrays", shown(f"{base}.npz")),
        ("picture", shown(f"{base}.png")),
    ]
    if explanation.run_id is not None:
        rows.append(("in MLflow", f"beside the run {explanation.run_id}"))
    if explanation.deltas is not None:
        rows.append(("delta", f"{abs(explanation.deltas).max():.2g} at most"))
    if explanation.randomized is not None:
        rows.append(("randomized", f"rank correlation {explanation.randomized:.2f}"))
    for name, array in explanation.attributions.items():
        if array.ndim == 2:
            most = list(explanation.importance(name).items())[:5]
            rows.append((name, "  ".join(f"{one} {value:.3g}" for one, value in most)))
    print_rows(rows)


def _flat(predictions: list[StepOutput]) -> list[StepOutput]:
    """Return the predictions of all batches, of several loaders one after the other."""
    if (
        predictions
        and all(isinstance(one, list) for one in predictions)
        and all(isinstance(batch, (torch.Tensor, dict)) for one in predictions for batch in one)
    ):
        return [batch for one in predictions for batch in one]
    return list(predictions)


def _is_scalar(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 0


def print_rows(rows: list[tuple[str, str]]) -> None:
    """Print names and values, one below the other."""
    width = max(len(name) for name, _ in rows)
    print()
    for name, value in rows:
        print(without_secrets(f"{name:<{width}}  {value}"))
    sys.stdout.flush()


def shown(path: str) -> str:
    """Return a path as it is found from here."""
    if "://" in path:
        return path
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def duration(time_s: float) -> str:
    """Return seconds in words."""
    if time_s < 120:
        return f"{time_s:.1f} s" if time_s < 10 else f"{time_s:.0f} s"
    minutes = round(time_s / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
