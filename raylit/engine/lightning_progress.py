"""Lightning's own counters, the entry `loops` of a checkpoint, from and to raylit's Progress."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raylit.core.progress import Progress


def _counts(ready: int, completed: int, *, full: bool = True) -> dict[str, int]:
    return {"ready": ready, "completed": completed} | (
        {"started": ready, "processed": ready} if full else {}
    )


def _both(total: dict[str, int], current: dict[str, int]) -> dict[str, Any]:
    return {"total": total, "current": current}


def loops_of(progress: Progress, *, automatic: bool, accumulate: int) -> dict[str, Any]:
    """Return the entry `loops` as Lightning would have written it at the same point."""
    done_before = progress.total_batches - progress.batch
    epoch = {
        "ready": progress.epochs_begun,
        "started": progress.epochs_started,
        "processed": progress.epochs_processed,
        "completed": progress.epoch,
    }
    steps_in_epoch = (
        0
        if not automatic
        else (
            -(-progress.batch // accumulate)
            if progress.is_last_batch
            else progress.batch // accumulate
        )
    )
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
                _counts(progress.total_batches, done_before + progress.batches_done),
                _counts(progress.batch, progress.batches_done),
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


def progress_of(loops: dict[str, Any], steps: int) -> dict[str, Any]:
    """Return the state of a Progress for the entry `loops` of a checkpoint that Lightning wrote.

    Args:
        loops: the entry.
        steps: the checkpoint's `global_step`.
    """
    fit = loops["fit_loop"]
    epoch = fit["epoch_progress"]["current"]
    batch = fit["epoch_loop.batch_progress"]
    current = batch["current"]
    total = batch["total"]
    return {
        "epoch": epoch["completed"],
        "epochs_begun": epoch["ready"],
        "epochs_started": epoch["started"],
        "epochs_processed": epoch["processed"],
        # a batch that was begun but had not changed the weights is trained on anew
        "batch": current["processed"],
        "batches_done": current["completed"],
        "total_batches": total["processed"],
        "steps": steps,
        "log_steps": fit["epoch_loop.state_dict"].get("_batches_that_stepped", 0),
        "scheduler_steps": fit["epoch_loop.scheduler_progress"]["total"]["completed"],
        "is_last_batch": batch["is_last_batch"] and current["processed"] == current["ready"],
    }
