"""What of a run goes into a checkpoint, and how it comes back.

The layout is Lightning 2.6's, so that either framework opens the other's files; raylit's own keys
stand beside it under `raylit`. All of it is tensors and plain data.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from raylit.checkpoint import sharded
from raylit.checkpoint.format import LIGHTNING_FORMAT, VERSION_KEY, load, plain_items
from raylit.core import importable
from raylit.core.hooks import HOOKS, PER_STEP
from raylit.engine import exact
from raylit.engine.lightning_progress import loops_of, progress_of
from raylit.errors import CheckpointError
from raylit.runtime.batch import move_to
from raylit.runtime.messages import info, warn, warn_once

if TYPE_CHECKING:
    from raylit.engine.run import Run

# stages of checkpoints for recovery
VALIDATION_LEFT = "validation left"  # an exception has ended a validation
BETWEEN_EPOCHS = "between epochs"


def dump(
    run: Run, weights_only: bool = False, together: bool = True, parts: bool = False
) -> dict[str, Any]:
    """Return the checkpoint of a run: its state copied into plain data, ready to be written.

    Args:
        run: the run.
        weights_only: leave out all that only a continued training needs.
        together: whether all ranks come here, so that each can give what it alone knows.
        parts: leave tensors that are spread over the ranks as they are, for a sharded checkpoint;
            else rank 0 gets them whole.

    Raises:
        CheckpointError: it holds what is no plain data, or this rank alone does not have the whole
            of it.
    """
    trainer = run.trainer
    module = run.module
    progress = run.progress
    if run.strategy.shards and not together:
        raise CheckpointError(
            "Rank 0 alone cannot save a sharded model: each rank holds a part of it."
        )
    run.save_loggers()
    run.strategy.settle(module)
    whole: Callable[[Any], Any] = (lambda state: state) if parts else run.strategy.whole
    if _within_step(run):  # a fit that goes on from here trains on this batch anew
        progress = progress.before_batch()
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
            if left_out and id(owner) not in run.said_left_out:
                run.said_left_out.add(id(owner))
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
        "stage": (
            VALIDATION_LEFT
            if run.broken_validation is not None
            else BETWEEN_EPOCHS
            if run.between_epochs
            else run.stage
        ),
        "history": run.history,
        "hyper_parameters": by_path,
        "validations": [] if run.validations is None else run.validations.state(),
        "run_id": next((logger.run_id for logger in trainer.loggers if logger.run_id), None),
    }
    if run.job.fn == "fit" and not weights_only:
        own = exact.dump(run, progress)
        absent: list[Any] = [None] * (run.world.size - 1)
        checkpoint["raylit"]["ranks"] = (
            run.world.all_gather_object(own) if together else [own, *absent]
        )
    plain, foreign = plain_items(whole(checkpoint))
    if foreign:
        raise CheckpointError(
            f"The checkpoint holds objects that are no plain data under: {', '.join(foreign)}."
            " Checkpoints hold tensors, numbers, strings and containers of them, so that loading"
            " one never runs code. Look at state_dict and on_save_checkpoint of your callbacks,"
            " optimizers and module."
        )
    return plain


def _within_step(run: Run) -> bool:
    """Tell whether the batch that was begun has not yet changed the weights."""
    hook = HOOKS.get(run.metrics.hook or "")
    return run.failed_within_step or (
        hook is not None and hook.log == PER_STEP and run.metrics.hook != "on_train_batch_end"
    )


def read(run: Run, path: str) -> dict[str, Any]:
    """Load the checkpoint at `path` to the CPU.

    Of a sharded one the states of optimizers are left for `restore_training`.
    """
    info(f"Restoring states from the checkpoint path at {path}")
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
        load_optimizer(
            optimizer,
            run.strategy.optimizer_state(optimizer, sharded.read_optimizer(optimizer, state)),
        )
    for config, state in zip(run.schedulers, checkpoint["lr_schedulers"], strict=False):
        config.scheduler.load_state_dict(state)
    if run.precision.scaler is not None and "MixedPrecision" in checkpoint:
        run.precision.scaler.load_state_dict(checkpoint["MixedPrecision"])
    own = checkpoint.get("raylit", {}).get("progress")
    state = own if own is not None else progress_of(checkpoint["loops"], checkpoint["global_step"])
    run.progress.load_state_dict(state)
    run.history = list(checkpoint.get("raylit", {}).get("history", ()))
    outstanding = checkpoint.get("raylit", {}).get("validations", [])
    if outstanding and run.validations is None:
        steps = ", ".join(str(one["progress"]["steps"]) for one in outstanding)
        warn(
            f"Asynchronous validations, of step {steps}, had not ended when the checkpoint was"
            " saved. Without async_validation they are lost."
        )
    elif run.validations is not None:
        run.validations.go_on(outstanding)
    if run.job.rescale_plan is not None:
        run.counted_before = run.job.rescale_plan.go_on(
            run.progress,
            run.trainer.accumulate_grad_batches,
            checkpoint.get("raylit", {}).get("ranks") or [],
        )
    run.resumed_from = exact.mine(run, checkpoint)
    if run.resumed_from is not None:
        exact.restore(run, run.resumed_from)
    stage = (
        checkpoint["raylit"]["stage"]
        if own is not None
        else "validate"
        if _in_validation(state)
        else "train"
    )
    run.validation_left = stage == VALIDATION_LEFT
    run.end_left = stage == BETWEEN_EPOCHS
    _begin_where_it_stopped(run, saved_in_validation=stage == "validate")


def load_optimizer(optimizer: Any, state: dict[str, Any]) -> None:
    """Give an optimizer back its state, which may come from another device."""
    optimizer.load_state_dict(state)
    for parameter, values in getattr(optimizer, "state", {}).items():
        if isinstance(values, dict) and isinstance(parameter, torch.Tensor):
            optimizer.state[parameter] = {
                key: value if key == "step" else move_to(value, parameter.device, False)
                for key, value in values.items()
            }


def _in_validation(state: dict[str, Any]) -> bool:
    """Tell whether Lightning wrote the counters in `on_validation_end`.

    The batch was done, but not yet counted for the loggers.
    """
    return (
        bool(state["batch"])
        and state["batches_done"] == state["batch"]
        and state["epochs_processed"] == state["epoch"]
        and state["log_steps"] < state["steps"]
    )


def _begin_where_it_stopped(run: Run, saved_in_validation: bool) -> None:
    """Turn the counters as they stood inside a hook into those of the next thing to do."""
    progress = run.progress
    if saved_in_validation:  # which runs before the batch is counted for the loggers
        progress.log_steps += 1
    if progress.epochs_processed > progress.epoch:  # saved in on_train_epoch_end
        progress.epoch = progress.epochs_processed
