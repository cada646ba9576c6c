"""Lightning's own counters, the entry `loops` of a checkpoint, from and to raylit's Progress.

raylit's checkpoints had counters of the same kind, and a stage, before they had a cursor.
"""

from __future__ import annotations

from raylit.core.progress import (
    BATCH,
    EPOCH,
    EPOCH_PLATEAU,
    EPOCH_SCHEDULERS,
    EPOCH_START,
    IDLE,
    LOGGING,
    PLATEAU,
    SCHEDULERS,
    VALIDATION,
    Action,
    Progress,
)
from raylit.runtime.aliases import StateDict


def _counts(ready: int, completed: int, *, full: bool = True) -> dict[str, int]:
    return {"ready": ready, "completed": completed} | (
        {"started": ready, "processed": ready} if full else {}
    )


def _both(total: dict[str, int], current: dict[str, int]) -> dict[str, object]:
    return {"total": total, "current": current}


def loops_of(progress: Progress, *, automatic: bool, accumulate: int) -> StateDict:
    """Return the entry `loops` as Lightning would have written it at the same point."""
    at = progress.at
    before = progress.total_batches - progress.batch
    done = progress.batch - (at in (SCHEDULERS, EPOCH_SCHEDULERS, LOGGING))
    epoch = {
        "ready": progress.epoch + (at not in (IDLE, EPOCH)),
        "started": progress.epoch + progress.in_epoch,
        "processed": progress.epoch + (at == EPOCH_PLATEAU),
        "completed": progress.epoch,
    }
    steps_in_epoch = 0
    if automatic:  # the last window of an epoch steps, however short it is
        unfinished = progress.is_last_batch and progress.batch % accumulate != 0
        steps_in_epoch = progress.batch // accumulate + unfinished
    auto_steps, manual_steps = (progress.steps, 0) if automatic else (0, progress.steps)
    none = _both(_counts(0, 0), _counts(0, 0))
    eval_loop = {"state_dict": {}, "batch_progress": {**none, "is_last_batch": False}}
    step = _both(
        _counts(auto_steps, auto_steps, full=False),
        _counts(steps_in_epoch, steps_in_epoch, full=False),
    )
    zero_grad = _both(
        {**_counts(auto_steps, auto_steps, full=False), "started": auto_steps},
        {**_counts(steps_in_epoch, steps_in_epoch, full=False), "started": steps_in_epoch},
    )
    fit_loop = {
        "state_dict": {},
        "epoch_progress": _both(dict(epoch), dict(epoch)),
        "epoch_loop.state_dict": {"_batches_that_stepped": progress.log_steps},
        "epoch_loop.batch_progress": {
            **_both(
                _counts(progress.total_batches, before + done),
                _counts(progress.batch, done),
            ),
            "is_last_batch": progress.is_last_batch,
        },
        "epoch_loop.scheduler_progress": _both(
            _counts(progress.scheduler_steps, progress.scheduler_steps, full=False),
            _counts(0, 0, full=False),
        ),
        "epoch_loop.automatic_optimization.state_dict": {},
        "epoch_loop.automatic_optimization.optim_progress": {
            "optimizer": {"step": step, "zero_grad": zero_grad}
        },
        "epoch_loop.manual_optimization.state_dict": {},
        "epoch_loop.manual_optimization.optim_step_progress": _both(
            _counts(manual_steps, manual_steps, full=False),
            _counts(manual_steps, manual_steps, full=False),
        ),
        "epoch_loop.val_loop.state_dict": {},
        "epoch_loop.val_loop.batch_progress": {**none, "is_last_batch": False},
    }
    return {
        "fit_loop": fit_loop,
        "validate_loop": eval_loop,
        "test_loop": {**eval_loop},
        "predict_loop": {"state_dict": {}, "batch_progress": none},
    }


def progress_of(loops: StateDict, steps: int) -> StateDict:
    """Return the state of a Progress for the entry `loops` of a checkpoint that Lightning wrote.

    Saved in `on_train_epoch_end` it goes on with the next epoch, as in Lightning: it does not hold
    the values of the epoch that its schedulers and loggers would wait for.

    Args:
        loops: the entry.
        steps: the checkpoint's `global_step`.
    """
    fit = loops["fit_loop"]
    epoch = fit["epoch_progress"]["current"]
    batch = fit["epoch_loop.batch_progress"]
    current = batch["current"]
    log_steps = fit["epoch_loop.state_dict"].get("_batches_that_stepped", 0)
    # in validation a batch is done, but not yet counted for the loggers
    validates = (
        bool(current["processed"])
        and current["completed"] == current["processed"]
        and epoch["processed"] == epoch["completed"]
        and log_steps < steps
    )
    state = {
        # a batch that was begun but had not changed the weights is trained on anew
        "batch": current["processed"],
        "total_batches": batch["total"]["processed"],
        "steps": steps,
        "log_steps": log_steps,
        "scheduler_steps": fit["epoch_loop.scheduler_progress"]["total"]["completed"],
        "is_last_batch": batch["is_last_batch"] and current["processed"] == current["ready"],
    }
    if epoch["processed"] > epoch["completed"]:
        return {**state, "epoch": epoch["processed"], "at": IDLE}
    at = _at(
        epoch["ready"],
        epoch["started"],
        epoch["completed"],
        is_done=current["completed"] == current["processed"],
        stage="validate" if validates else "train",
    )
    return {**state, "epoch": epoch["completed"], "at": at}


def progress_of_counters(state: StateDict, stage: str | None) -> dict[str, object]:
    """Return a Progress's state for the counters and the stage of a checkpoint without a cursor."""
    if state["epochs_processed"] > state["epoch"]:
        return {**state, "at": EPOCH_PLATEAU}
    at = _at(
        state["epochs_begun"],
        state["epochs_started"],
        state["epoch"],
        is_done=state["batches_done"] == state["batch"],
        stage=stage,
    )
    return {**state, "at": at}


def _at(begun: int, started: int, completed: int, *, is_done: bool, stage: str | None) -> Action:
    """Return the next action by these counters, in an epoch that has not been processed."""
    if begun > started:
        return EPOCH_START
    if started == completed:
        return EPOCH if stage == "between epochs" else IDLE
    if not is_done:
        return LOGGING
    if stage == "validation left":
        return VALIDATION
    return PLATEAU if stage == "validate" else BATCH
