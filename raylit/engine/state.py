"""What of a run goes into a checkpoint, and how it comes back.

The layout is Lightning 2.6's, so that either framework opens the other's files; raylit's own keys
stand beside it under `raylit`. All of it is tensors and plain data.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from raylit.checkpoint import sharded
from raylit.checkpoint.format import LIGHTNING_FORMAT, VERSION_KEY, load, plain_items
from raylit.core import importable
from raylit.core.callback import checkpoint_folder
from raylit.core.progress import BACKWARD
from raylit.engine import exact
from raylit.engine.history import History
from raylit.engine.lightning_progress import loops_of, progress_of, progress_of_counters
from raylit.errors import CheckpointError, ConfigError
from raylit.runtime.batch import move_to
from raylit.runtime.messages import info, warn, warn_once

if TYPE_CHECKING:
    from raylit.engine.run import Run


KEPT_NAMES = 7  # of fits that this one goes on from: of those before them nothing is left


def dump(
    run: Run,
    weights_only: bool = False,
    together: bool = True,
    parts: bool = False,
    lenient: bool = False,
) -> dict[str, Any]:
    """Return the checkpoint of a run: its state copied into plain data, ready to be written.

    Args:
        run: the run.
        weights_only: leave out all that only a continued training needs.
        together: whether all ranks come here, so that each can give what it alone knows.
        parts: leave tensors that are spread over the ranks as they are, for a sharded checkpoint;
            else rank 0 gets them whole.
        lenient: leave out what is no plain data, and say so, instead of raising.

    Raises:
        CheckpointError: it holds what is no plain data, this rank alone does not have the whole of
            it, or a backward pass runs whose gradients are added to others.
    """
    trainer = run.trainer
    module = run.module
    progress = run.progress.to_go_on_from(automatic=module.automatic_optimization)
    if run.strategy.shards and not together:
        raise CheckpointError(
            "Rank 0 alone cannot save a sharded model: each rank holds a part of it."
        )
    run.save_loggers()
    if not lenient:  # else it is written by a thread, which does so
        run.settle_loggers()
    run.strategy.settle(module)
    whole: Callable[[Any], Any] = (lambda state: state) if parts else run.strategy.whole
    if run.progress.at == BACKWARD and not weights_only and exact.is_within_window(run, progress):
        raise CheckpointError(
            "A checkpoint was to be saved in the backward pass of a batch whose gradients are added"
            f" to those of {progress.batch % trainer.accumulate_grad_batches} earlier ones, of which"
            " a fit that goes on would add this batch's twice. Save in on_train_batch_end, or with"
            " weights_only=True."
        )
    checkpoint: dict[str, Any] = {
        "epoch": progress.epoch,
        "global_step": progress.steps,
        VERSION_KEY: LIGHTNING_FORMAT,
        "state_dict": whole(module.state_dict()),
        "loops": loops_of(
            progress,
            automatic=module.automatic_optimization,
            accumulate=trainer.accumulate_grad_batches,
        ),
    }
    if not weights_only:
        checkpoint["callbacks"] = {
            callback.state_key: state
            for callback in trainer.callbacks
            if (state := callback.state_dict())
        }
        checkpoint["optimizer_states"] = [
            whole(optimizer.state_dict()) for optimizer in run.optimizers
        ]
        checkpoint["lr_schedulers"] = [config.scheduler.state_dict() for config in run.schedulers]
        if run.precision.scaler is not None:
            checkpoint["MixedPrecision"] = run.precision.scaler.state_dict()
    owners = [module] if run.datamodule is None else [module, run.datamodule]
    by_path: dict[str, Any] = {}
    for owner in owners:
        if owner.hparams:
            secret = owner.secret_hparams
            kept = {name: one for name, one in owner.hparams.items() if name not in secret}
            hparams, others = plain_items(kept)
            found: dict[str, Any] = {
                name: importable.describe(owner.hparams[name], type(owner)) for name in others
            }
            described, _ = plain_items(
                {name: one for name, one in found.items() if one is not None}
            )
            left_out = [name for name in others if name not in described]
            if described:
                by_path[owner.CHECKPOINT_HYPER_PARAMS_KEY] = described
            checkpoint[owner.CHECKPOINT_HYPER_PARAMS_NAME] = owner._hparams_name
            checkpoint[owner.CHECKPOINT_HYPER_PARAMS_KEY] = hparams
            if secret:
                warn_once(
                    f"The hyperparameters {', '.join(secret)} of {type(owner).__name__} look like"
                    " secrets, and are neither stored in checkpoints nor logged:"
                    " load_from_checkpoint will want them as arguments. Read them from the"
                    " environment instead; or ask for them by name, as in"
                    f" save_hyperparameters({secret[0]!r})."
                )
            if left_out and id(owner) not in run.outcome.said_left_out:
                run.outcome.said_left_out.add(id(owner))
                warn(
                    f"The hyperparameters {', '.join(left_out)} of {type(owner).__name__} are"
                    " neither plain data nor classes or functions that can be imported from torch"
                    " or the module's own package, and are not stored in checkpoints:"
                    " load_from_checkpoint will want them as arguments. Say so with"
                    f" save_hyperparameters(ignore={left_out!r})."
                )
    if run.datamodule is not None:
        state = run.call(run.datamodule, "state_dict")
        if state:
            checkpoint[type(run.datamodule).__qualname__] = state
    if not weights_only:
        for callback in trainer.callbacks:
            run.call(callback, "on_save_checkpoint", trainer, module, checkpoint)
    run.call(module, "on_save_checkpoint", checkpoint)
    checkpoint["raylit"] = {
        "progress": progress.state_dict(),
        "history": run.outcome.history.state(checkpoint_folder(trainer)),
        "hyper_parameters": by_path,
        "job": run.job.id,
        "lineage": run.resume.lineage,
        "validations": [] if run.validations is None else run.validations.state(),
        "run_id": next((logger.run_id for logger in trainer.loggers if logger.run_id), None),
        "loggers": [logger.state_dict() for logger in trainer.loggers if run.world.is_zero],
    }
    if run.job.fn == "fit" and not weights_only:
        own = exact.dump(run, progress)
        absent: list[Any] = [None] * (run.world.size - 1)
        checkpoint["raylit"]["ranks"] = (
            run.world.all_gather_object(own) if together else [own, *absent]
        )
    given = whole(checkpoint)
    plain, foreign = plain_items(given)
    if foreign and lenient:
        left_out = []
        for key in foreign:
            inner: dict[str, Any] = given[key] if isinstance(given[key], dict) else {}
            plain[key], names = plain_items(inner)
            left_out += [f"{key}.{name}" for name in names] or [key]
        warn_once(
            f"Recovery checkpoints leave out {', '.join(left_out)}, which"
            f" {'is' if len(left_out) == 1 else 'are'} no plain data: tensors, numbers, strings and"
            " containers of them. A fit that goes on from one begins without. Return plain data"
            " from state_dict and on_save_checkpoint.",
            key=f"left out of recovery: {left_out}",
        )
    elif foreign:
        raise CheckpointError(
            f"The checkpoint holds objects that are no plain data under: {', '.join(foreign)}."
            " Checkpoints hold tensors, numbers, strings and containers of them, so that loading"
            " one never runs code. Look at state_dict and on_save_checkpoint of your callbacks,"
            " optimizers and module."
        )
    return plain


def read(run: Run, path: str) -> dict[str, Any]:
    """Load the checkpoint at `path` to the CPU, unless that was done when it was looked for.

    Of a sharded one the states of optimizers are left for `restore_training`.
    """
    info(f"Restoring states from the checkpoint path at {path}")
    opened = run.job.opened.get(path)
    run.job.opened.clear()
    if opened is not None:
        return opened
    if os.path.isdir(path):
        return sharded.load(path, weights_only=run.job.weights_only, leaves_optimizers=True)
    return load(path, map_location="cpu", weights_only=run.job.weights_only)


def restore_module(run: Run, checkpoint: dict[str, Any]) -> None:
    """Bring back the weights, the datamodule's and the callbacks' state."""
    trainer, module = run.trainer, run.module
    run.call(module, "on_load_checkpoint", checkpoint)
    if "state_dict" not in checkpoint:
        raise CheckpointError(
            f"{run.job.ckpt_path} holds no state_dict; it has: {', '.join(map(str, checkpoint))}."
        )
    run.precision.convert_module(module)  # else weights in float64 would be rounded on their way
    module.load_state_dict(checkpoint["state_dict"], strict=module.strict_loading)
    if run.datamodule is not None and type(run.datamodule).__qualname__ in checkpoint:
        run.call(run.datamodule, "load_state_dict", checkpoint[type(run.datamodule).__qualname__])
    if (
        "callbacks" not in checkpoint
    ):  # of weights only they are told nothing, as they were when it was saved
        return
    for callback in trainer.callbacks:
        run.call(callback, "on_load_checkpoint", trainer, module, checkpoint)
    stored = dict(checkpoint["callbacks"])
    for callback in trainer.callbacks:
        state = stored.pop(callback.state_key, None)
        if state is not None:
            callback.load_state_dict(state)
    if stored and run.job.fn == "fit":
        warn(
            "The checkpoint holds the state of callbacks that the Trainer does not have:"
            f" {', '.join(map(str, stored))}. Add them to go on exactly."
        )


def restore_training(run: Run, checkpoint: dict[str, Any]) -> None:
    """Bring back optimizers, schedulers and counters."""
    if "optimizer_states" not in checkpoint or "lr_schedulers" not in checkpoint:
        raise CheckpointError(
            f"{run.job.ckpt_path} holds weights only, so training cannot go on from it. Load it"
            f" with {type(run.module).__name__}.load_from_checkpoint(path) and fit without"
            " ckpt_path."
        )
    states = checkpoint["optimizer_states"]
    if len(states) != len(run.optimizers):
        raise CheckpointError(
            f"{run.job.ckpt_path} holds {len(states)} optimizers, but configure_optimizers returned"
            f" {len(run.optimizers)}."
        )
    for optimizer, state in zip(run.optimizers, states, strict=True):
        with fitting(run, f"the optimizer {type(optimizer).__name__}"):
            load_optimizer(
                optimizer,
                run.strategy.optimizer_state(optimizer, sharded.read_optimizer(optimizer, state)),
            )
            check_groups(optimizer)
    stored = checkpoint["lr_schedulers"]
    if len(stored) != len(run.schedulers) and not run.replaces_schedulers:
        warn(
            f"{run.job.ckpt_path} holds {len(stored)} learning-rate schedulers, but"
            f" configure_optimizers returned {len(run.schedulers)}: the first"
            f" {min(len(stored), len(run.schedulers))} go on, and of the rest those stored are lost"
            " and those returned begin anew. Return as many, in the same order, to go on exactly."
        )
    for config, state in zip(run.schedulers, stored, strict=False):
        with fitting(run, f"the scheduler {type(config.scheduler).__name__}"):
            load_scheduler(config.scheduler, state)
    if run.precision.scaler is not None and "MixedPrecision" in checkpoint:
        run.precision.scaler.load_state_dict(checkpoint["MixedPrecision"])
    run.progress.load_state_dict(cursor_of(checkpoint))
    check_limits(run)
    own = checkpoint.get("raylit", {})
    run.outcome.history = History.from_state(own.get("history", []), str(run.job.ckpt_path))
    for logger, stored_of_it in zip(run.trainer.loggers, own.get("loggers", []), strict=False):
        if run.world.is_zero:
            logger.load_state_dict(stored_of_it)
    outstanding = own.get("validations", [])
    if outstanding and run.validations is None:
        steps = ", ".join(str(one["progress"]["steps"]) for one in outstanding)
        warn(
            f"Asynchronous validations, of step {steps}, had not ended when the checkpoint was"
            " saved. Without async_validation they are lost."
        )
    elif run.validations is not None:
        run.validations.go_on(outstanding)
    if run.job.rescale_plan is not None:
        run.resume.counted_before = run.job.rescale_plan.go_on(
            run.progress, run.trainer.accumulate_grad_batches, own.get("ranks") or []
        )
    resume = run.resume
    resume.resumed = True
    resume.lineage = [*own.get("lineage", [])[-KEPT_NAMES:], *resume.lineage]
    resume.own = exact.mine(run, checkpoint)
    resume.loaders = []
    resume.has_values = resume.own is not None
    if resume.own is not None:
        resume.loaders = resume.own["loaders"]
        resume.loader_epochs = dict(resume.own.get("loader_epochs", {}))
        exact.restore(run, resume.own)


def cursor_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the state of the Progress that a checkpoint holds, whoever wrote it."""
    own = checkpoint.get("raylit", {}).get("progress")
    if own is None:
        return progress_of(checkpoint["loops"], checkpoint["global_step"])
    if "at" not in own:
        return progress_of_counters(own, checkpoint["raylit"]["stage"])
    return own  # type: ignore[no-any-return]


def check_limits(run: Run) -> None:
    """Check that the fit, where it goes on, is not beyond the Trainer's limits.

    Raises:
        ConfigError: it is.
    """
    progress = run.progress
    most = run.trainer.max_epochs
    begun = progress.epoch + progress.in_epoch
    if most not in (None, -1) and begun > most:
        raise ConfigError(
            f"{run.job.ckpt_path} is of a fit in its epoch {begun - 1}, counted from 0, but"
            f" Trainer(max_epochs={most}) ends after {most}. Give a max_epochs of at least {begun},"
            " or an earlier checkpoint."
        )


@contextlib.contextmanager
def fitting(run: Run, what: str) -> Iterator[None]:
    """Say of what a stored state does not fit that it does not.

    Raises:
        CheckpointError: it does not.
    """
    try:
        yield
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{run.job.ckpt_path} was saved with another than {what} of this fit, or with other"
            f" parameters ({type(error).__name__}: {error}). Return from configure_optimizers what"
            " the fit had that saved it; or start anew from its weights, with"
            f" {type(run.module).__name__}.load_from_checkpoint(path) and without ckpt_path."
        ) from error


def check_groups(optimizer: Any) -> None:
    """Check that an optimizer finds in its groups what it needs for a step.

    Raises:
        KeyError: it does not.
    """
    for group in optimizer.param_groups:
        missing = [name for name in getattr(optimizer, "defaults", {}) if name not in group]
        if missing:
            raise KeyError(f"its groups have no {', '.join(missing)}")


def load_scheduler(scheduler: Any, state: dict[str, Any]) -> None:
    """Give a scheduler back its state.

    A checkpoint holds a Counter, such as the milestones of MultiStepLR, as a dict.
    """
    parts = [scheduler, *getattr(scheduler, "_schedulers", ())]
    counters = [
        (part, name)
        for part in parts
        for name, value in vars(part).items()
        if isinstance(value, Counter)
    ]
    scheduler.load_state_dict(state)
    for part, name in counters:
        setattr(part, name, Counter(getattr(part, name)))


def load_optimizer(optimizer: Any, state: dict[str, Any]) -> None:
    """Give an optimizer back its state, which may come from another device."""
    optimizer.load_state_dict(state)
    for parameter, values in getattr(optimizer, "state", {}).items():
        if isinstance(values, dict) and isinstance(parameter, torch.Tensor):
            optimizer.state[parameter] = {
                key: value if key == "step" else move_to(value, parameter.device, False)
                for key, value in values.items()
            }
