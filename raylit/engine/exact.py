"""The state of a rank, beside weights, optimizers and counters, that makes a resume exact.

That is: its random states, the place in its data, the values logged so far in the epoch, and
gradients that were not yet used. Each rank has its own; a checkpoint holds a list of them under
`raylit` / `ranks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from raylit.checkpoint.plain import plain_items
from raylit.core.progress import VALIDATION, WITH_GRADIENTS
from raylit.metrics import torchmetric
from raylit.runtime import rng
from raylit.runtime.aliases import CheckpointDict, StateDict
from raylit.runtime.messages import info, warn

if TYPE_CHECKING:
    from raylit.core.progress import Progress
    from raylit.engine.run import Run
    from raylit.parallel import World


def dump(run: Run, progress: Progress) -> StateDict:
    """Return the state of this rank as plain data; `progress` is that of the checkpoint."""
    loader = run.data.loaders.get("train")
    state: StateDict = {
        "rng": rng.state(),
        "seed": run.data.seed,
        "loaders": (
            [] if loader is None else loader.states(progress.batch if progress.in_epoch else None)
        ),
        "loader_epochs": run.data.loader_epoch,
        "reading": run.data.is_reading,
        "logged": run.metrics.values(),
        "val_batches": run.data.val_batches_seen,
        "own": run.strategy.own_state(run.module),
        "stops_later": waits_to_stop(run, progress),
    }
    unused = set()
    # Saved within a validation, which a fit that goes on begins anew: what it has changed so far
    # would count twice
    if progress.at == VALIDATION and run.resume.before_validation is not None:
        before = dict(run.resume.before_validation)
        unused = before.pop("unused")
        state.update(before)
    if not progress.in_epoch:
        return state
    state["sums"] = run.metrics.partial_sums()
    state["metrics"] = {
        name: torchmetric.state_of(metric)
        for name, metric in torchmetric.metrics_in(run.module)
        if name not in unused
    }
    has_gradients = progress.at in WITH_GRADIENTS.values()
    # The loss and the extras are all that `on_train_batch_end` gets of a step that is not repeated
    if has_gradients:
        state["output"] = plain_output(run.output)
    if has_gradients or is_within_window(run, progress):
        state["gradients"] = run.strategy.gradients(run.module)
    return state


def waits_to_stop(run: Run, progress: Progress) -> bool:
    """Tell whether a stop was asked for that `min_epochs` or `min_steps` put off.

    One that they allow is not remembered: a fit that has stopped may be gone on with.
    """
    trainer = run.trainer
    epochs = progress.epoch + (progress.in_epoch and progress.is_last_batch)
    is_early = epochs < (trainer.min_epochs or 0) or progress.steps < (trainer.min_steps or 0)
    return trainer.should_stop and is_early


def plain_output(output: object) -> object:
    """Return the plain data in an output of `training_step`, without its graph."""
    if isinstance(output, torch.Tensor):
        return output.detach()
    if not isinstance(output, Mapping):
        return None
    plain, _ = plain_items(dict(output))
    return {
        name: value.detach() if isinstance(value, torch.Tensor) else value
        for name, value in plain.items()
    }


def is_within_window(run: Run, progress: Progress) -> bool:
    """Tell whether gradients of batches that were read wait for more before the optimizer steps."""
    return progress.is_within_window(
        automatic=run.module.automatic_optimization, accumulate=run.trainer.accumulate_grad_batches
    )


def before_validation(run: Run) -> StateDict:
    """Return the part of this rank's state that a validation changes.

    With it, a validation that does not come to its end can be begun anew.

    The torchmetrics that are `unused` are those of validation, whose states are reset then.
    """
    return {
        "rng": rng.state(),
        "logged": {name: dict(kept) for name, kept in run.metrics.values().items()},
        "val_batches": dict(run.data.val_batches_seen),
        "unused": {
            name for name, metric in torchmetric.metrics_in(run.module) if not metric.update_count
        },
    }


def state_of_rank(run: Run, checkpoint: CheckpointDict) -> StateDict | None:
    """Return this rank's state in a checkpoint, None if it holds none for it.

    If other numbers of ranks wrote it, theirs are shared out.
    """
    ranks: list[dict[str, object] | None] | None = checkpoint.get("raylit", {}).get("ranks")
    if ranks is None:
        return None
    if is_of_one_alone(run, checkpoint):
        warn(
            "The checkpoint was saved by one rank alone, because of an exception: this fit goes on"
            " with the same weights and the next batch, but not with the same random numbers."
        )
        own = ranks[run.world.rank] if len(ranks) == run.world.size else None
        if own is not None and "output" in own:
            # The others have no gradients of this batch and train on it anew, and all do as one
            own = {key: one for key, one in own.items() if key not in ("output", "gradients")}
        return own
    states = [state for state in ranks if state is not None]
    if len(states) == run.world.size:
        return states[run.world.rank]
    if run.job.rescale_plan is None:
        info(
            f"The checkpoint was saved by {len(states)} ranks, and this fit has {run.world.size}:"
            " what is left of the epoch is dealt out among them. Random numbers, such as those of"
            " dropout, are others than they would have been."
        )
    return shared_out(states, run.world)


def is_of_one_alone(run: Run, checkpoint: CheckpointDict) -> bool:
    """Tell whether a checkpoint holds the state of rank 0 alone, of several that go on.

    The others could not be asked then: they may have been gone, or have known of no exception.
    """
    ranks = checkpoint.get("raylit", {}).get("ranks") or []
    return run.world.size > 1 and None in ranks


def shared_out(states: list[StateDict], world: World) -> StateDict:
    """Return one rank's share of the states of another number of ranks.

    Epoch values and gradients keep their sums over all ranks.
    """
    theirs = states[world.rank :: world.size]
    state = {
        **states[0],
        # A place that is counted in samples holds for any number of ranks; of other data each rank
        # has a place of its own, which is nobody else's
        "loaders": [
            one if "read_by" in one or "plan" in one else {} for one in states[0]["loaders"]
        ],
    }
    state["sums"] = merged([sums for one in theirs for sums in one.get("sums", ())])
    state["metrics"] = {
        name: [one["metrics"][name] for one in theirs] for name in state.get("metrics", ())
    }
    factor = world.size / len(states)  # of gradients the mean over the ranks is taken
    if state.pop("output", None) is not None:
        theirs = []  # gradients of a batch that is trained on anew, by others, cannot be told apart
    state["gradients"] = {
        name: factor * torch.stack([one["gradients"][name] for one in theirs]).sum(0)
        for name in state.get("gradients", ())
        if theirs
    }
    # Buffers of one rank alone, and what its communication hook keeps, belong to that rank
    state["own"] = {}
    if world.rank < len(states):
        state["rng"] = states[world.rank]["rng"]
    else:
        del state["rng"]
    if "sums" not in states[0]:
        del state["sums"]
    return state


def restore(run: Run, state: StateDict) -> None:
    """Restore the logged values, the gradients, and a stop that waits for its minimum.

    The loop restores the random states and the place in the data when it gets there.
    """
    run.trainer.should_stop = run.trainer.should_stop or state.get("stops_later", False)
    run.data.seed = state.get("seed", run.data.seed)
    run.metrics.load_values(state["logged"])
    run.data.val_batches_seen = dict(state.get("val_batches", {}))
    if "sums" in state:
        run.metrics.load_partial_sums(state["sums"])
    metrics = dict(torchmetric.metrics_in(run.module))
    for name, values in state.get("metrics", {}).items():
        for number, one in enumerate(values if isinstance(values, list) else [values]):
            if name in metrics:
                take = torchmetric.add if number else torchmetric.restore
                take(metrics[name], one, run.device)
    run.strategy.set_gradients(run.module, state.get("gradients", {}))
    run.strategy.load_own_state(run.module, state.get("own", {}))


def merged(sums: list[StateDict]) -> list[StateDict]:
    """Return the values that several ranks had logged in the epoch, as if one had logged them all.

    It has the form that `Metrics.partial_sums` returns.
    """
    found: dict[tuple[object, ...], StateDict] = {}
    for one in sums:
        hook, name, reduce, _, _, loader = one["arguments"]
        other = found.setdefault((hook, name, loader), one)
        if other is one:
            continue
        if "metric" in one:  # one that is not in the module
            found[hook, name, loader] = {**other, "metric": other["metric"] + one["metric"]}
            continue
        # A rank that had logged nothing under this name; it has no part in the value
        if one["total"] is None:
            continue
        if other["total"] is None:
            found[hook, name, loader] = one
            continue
        combine = {"min": torch.minimum, "max": torch.maximum}.get(reduce, torch.add)
        weight = other["kept"]["weight"] + one["kept"]["weight"]
        found[hook, name, loader] = {
            **other,
            "total": combine(other["total"], one["total"]),
            "kept": {**other["kept"], "weight": weight},
        }
    return list(found.values())
