"""What a rank needs, beside weights, optimizers and counters, to go on as if it had never stopped.

That is: its random states, the place in its data, the values logged so far in the epoch, and gradients that were not yet used. Each rank has
its own; a checkpoint holds a list of them under `raylit` / `ranks`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from torch import nn

from raylit import rng
from raylit.messages import warn

if TYPE_CHECKING:
    from raylit.progress import Progress
    from raylit.run import Run


def dump(run: Run, progress: Progress) -> dict[str, Any]:
    """Return the state of this rank as plain data; `progress` is what the checkpoint says of it."""
    loader = run.loaders.get("train")
    state: dict[str, Any] = {
        "rng": rng.state(),
        "loaders": [] if loader is None else loader.states(),
        "logged": run.metrics.values(),
        "val_batches": run.val_batches_seen,
        **(run.broken_validation or {}),
    }
    if not progress.in_epoch:
        return state
    state["sums"] = run.metrics.partial_sums()
    state["metrics"] = {name: metric_state(metric) for name, metric in metrics_in(run.module)}
    if run.module.automatic_optimization and progress.batch % run.trainer.accumulate_grad_batches and not progress.is_last_batch:
        state["gradients"] = {name: value.grad for name, value in run.module.named_parameters() if value.grad is not None}
    return state


def before_validation(run: Run) -> dict[str, Any]:
    """Return what of the state of this rank a validation changes, so that one which was ended by an exception can be begun anew."""
    values = {name: dict(kept) for name, kept in run.metrics.values().items()}
    return {"rng": rng.state(), "logged": values, "val_batches": dict(run.val_batches_seen)}


def mine(run: Run, checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    """Return this rank's state in a checkpoint, None if it holds none for it."""
    ranks = checkpoint.get("raylit", {}).get("ranks")
    if ranks is None or len(ranks) != run.world.size or ranks[run.world.rank] is None:
        if ranks is not None:
            warn(
                f"The checkpoint holds the random states of {len(ranks)} ranks, and this fit has {run.world.size}: it goes on with the same weights"
                " and the next batch, but not with the same random numbers."
            )
        return None
    state: dict[str, Any] = ranks[run.world.rank]
    return state


def restore(run: Run, state: dict[str, Any]) -> None:
    """Bring back what was logged and the gradients; random states and the place in the data the loop brings back, when it is there."""
    run.metrics.load_values(state["logged"])
    run.val_batches_seen = dict(state.get("val_batches", {}))
    if "sums" in state:
        run.metrics.load_partial_sums(state["sums"])
    metrics = dict(metrics_in(run.module))
    for name, values in state.get("metrics", {}).items():
        if name in metrics:
            restore_metric(metrics[name], values, run.device)
    parameters = dict(run.module.named_parameters())
    for name, gradient in state.get("gradients", {}).items():
        parameters[name].grad = gradient.to(run.device)


def metrics_in(module: nn.Module) -> list[tuple[str, Any]]:
    """The torchmetrics in a module, without importing torchmetrics where nobody else has."""
    torchmetrics = sys.modules.get("torchmetrics")
    if torchmetrics is None:
        return []
    return [(name, child) for name, child in module.named_modules() if isinstance(child, torchmetrics.Metric)]


def metric_state(metric: Any) -> dict[str, Any]:
    """Return what a torchmetrics.Metric holds."""
    states = {name: list(value) if isinstance(value, list) else value for name, value in metric.metric_state.items()}
    return {"states": states, "updates": metric.update_count}


def restore_metric(metric: Any, values: dict[str, Any], device: Any) -> None:
    """Give a torchmetrics.Metric back what `metric_state` returned."""
    for name, value in values["states"].items():
        setattr(metric, name, [one.to(device) for one in value] if isinstance(value, list) else value.to(device))
    metric._update_count = values["updates"]
    metric._computed = None
