"""Evaluation and prediction: the loops that change no weights.

evaluate (validation and test)
    eval mode, no gradients
    for each loader, for each batch: step, hooks
    metrics over all batches and ranks: one value per key
    the modes the submodules had
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

from raylit import data
from raylit.core.hooks import is_overridden
from raylit.core.module import LightningModule
from raylit.core.progress import PLATEAU, VALIDATION
from raylit.data.combined import CombinedLoader, Item
from raylit.engine.run import (
    Run,
    check_dataloader_idx,
    no_grad_context,
    restore_modes,
    submodule_modes,
)
from raylit.engine.schedule import end_on_signal, validates_in_epoch
from raylit.runtime import rng
from raylit.runtime.batch import move_to

if TYPE_CHECKING:
    from torch import Tensor

    from raylit.runtime.aliases import StepOutput


def sanity_check(run: Run) -> None:
    """Run a few validation batches and forget the results, leaving the random state as it was."""
    trainer = run.trainer
    if not run.validates or trainer.num_sanity_val_steps == 0 or run.resume.resumed:
        return
    with rng.isolated():
        run.stage = "sanity_check"
        run.fire("on_sanity_check_start")
        evaluate(run, "val")
        if run.validations is not None:
            # Only now: the names that validation logs are known once it has run
            run.validations.check()
        run.fire("on_sanity_check_end")
        run.metrics.clear()
        run.stage = "train"


def evaluate(run: Run, stage: str) -> list[dict[str, Tensor]]:
    """Run validation (`val`) or test (`test`) over all its loaders.

    Returns the values logged, a dict for each loader.
    """
    trainer = run.trainer
    metrics = run.metrics
    module = run.module
    name = "test" if stage == "test" else "validation"
    sanity = run.stage == "sanity_check"
    if getattr(trainer, f"limit_{stage}_batches") == 0:
        return []
    with no_grad_context(run):
        if stage not in run.data.loaders or (run.job.fn == "fit" and run.reload_due(stage)):
            run.load(stage)
            if sanity and not validates_in_epoch(run):
                # where loaders are asked for anew, the first real validation does so
                run.data.loader_epoch[stage] = -sys.maxsize
            run.data.val_batches_seen = {}
        loader = run.data.loaders[stage]
        limits = loader.limits or []
        loader.limits = (
            [min(trainer.num_sanity_val_steps, limit) for limit in limits] if sanity else limits
        )
        # A rank whose share is empty takes part in what the others do together
        if not run.world.any(sum(loader.limits) > 0):
            return []
        several = loader.mode == "sequential" and len(loader.flattened) > 1
        if not data.takes_iterator(getattr(module, f"{name}_step")):
            check_dataloader_idx(module, f"{name}_step", len(loader.flattened) if several else 1)
        for one in loader.flattened:
            data.set_epoch(one, run.progress.epoch)
        with metrics.switched(run.val_entries, training=False), evaluating(run, name):
            batches = iter(loader)
            run.fire(f"on_{name}_start")
            if stage not in run.data.loaders:  # BatchSizeFinder wants it anew
                loader = run.load(stage)
                limits = loader.limits or []
                for one in loader.flattened:
                    data.set_epoch(one, run.progress.epoch)
                batches = iter(loader)
            run.fire(f"on_{name}_epoch_start")
            with suppress(StopIteration):  # raised by a user's hook, it ends the loop
                evaluate_batches(run, name, batches, several, loader.num_batches())
            metrics.end_epoch()
            indices = range(len(loader.flattened)) if several else [None]
            outputs = [{} if sanity else metrics.loader_values(index) for index in indices]
            metrics.dataloader_idx = None
            run.fire(f"on_{name}_epoch_end")
            metrics.reduce()
            at_end = {} if sanity else metrics.loader_values(None)
            logged = {
                key: value for output in reversed(outputs) for key, value in output.items()
            } | at_end
            for output in outputs:
                output.update(at_end)
            run.log_metrics(logged)
            run.save_loggers()
            if run.job.fn == "fit":
                run.remember(logged)
            run.outcome.has_validated = run.outcome.has_validated or not sanity
            if run.progress.at == VALIDATION:
                run.progress.at = PLATEAU  # all that this validation changes is done
                run.resume.before_validation = None
            run.fire(f"on_{name}_end")
            if sanity:
                metrics.refresh()  # on_sanity_check_end sees what there is
            metrics.reset()
        loader.limits = limits
    run.data.last_validation = time.monotonic()
    return outputs


def evaluate_batches(
    run: Run, name: str, batches: Iterator[Item], several: bool, number: float
) -> None:
    """Take the evaluation step for every batch."""
    metrics = run.metrics
    hooks = run.hooks
    precision = run.precision
    batch_start = hooks[f"on_{name}_batch_start"]
    batch_end = hooks[f"on_{name}_batch_end"]
    step = run.strategy.step(run.module, run.step_module, f"{name}_step")
    transfer = run.calls.transfer
    if data.takes_iterator(getattr(run.module, f"{name}_step")):
        batches, step, batch_end = hand_over(run, batches, step, batch_end, number, several)
        transfer = None
    stage = "val" if name == "validation" else name
    is_new = stage not in run.data.noted
    for batch, batch_idx, dataloader_idx in run.strategy.together(batches):
        if transfer is not None:
            batch = transfer(batch, dataloader_idx)
        metrics.begin_batch(batch, dataloader_idx if several else None)
        if is_new:
            is_new = False
            run.note_data(stage, batch)
        which = (dataloader_idx,) if several else ()
        for function in batch_start:
            metrics.hook = f"on_{name}_batch_start"
            function(batch, batch_idx, *which)
        metrics.hook = f"{name}_step"
        with precision.context() if precision.has_context else nullcontext():
            output = step(
                batch, *((batch_idx,) if run.calls.takes_batch_idx[f"{name}_step"] else ()), *which
            )
        for function in batch_end:
            metrics.hook = f"on_{name}_batch_end"
            function(output, batch, batch_idx, *which)
        metrics.hook = None
        if run.stage != "sanity_check":
            count = run.data.val_batches_seen.get(dataloader_idx, 0)
            run.log_metrics(metrics.to_log(), step=count)
            run.data.val_batches_seen[dataloader_idx] = count + 1
        end_on_signal(run)


def hand_over(
    run: Run,
    batches: Iterator[Item],
    step: Callable[..., object],
    batch_end: list[Callable[..., object]],
    number: float,
    several: bool,
) -> tuple[Iterator[Item], Callable[..., object], list[Callable[..., object]]]:
    """Return batches, step and hooks for the loop if the step is to read the batches itself."""
    given = data.Handover(
        batches,
        number,
        lambda batch, index: run.metrics.begin_batch(batch, index if several else None),
    )
    return (
        given.turns(),
        lambda *args: step(given),
        [given.after(function) for function in batch_end],
    )


@contextmanager
def evaluating(run: Run, name: str) -> Iterator[None]:
    """The module is in eval mode, and afterwards each submodule has the mode back that it had."""
    modes = submodule_modes(run.module)
    try:
        run.call(run.module, f"on_{name}_model_eval")
        yield
    except BaseException:  # also Ctrl-C: the next fit of this module is not to train in eval mode
        restore_modes(run.module, modes)
        raise
    # Steps of evaluation have no backward pass, after which FSDP would have its parts again
    run.strategy.settle(run.module)
    back = f"on_{name}_model_train"
    if name != "predict" and is_overridden(back, run.module, LightningModule):
        run.call(run.module, back)
    else:
        restore_modes(run.module, modes)


def predict(run: Run) -> list[StepOutput] | list[list[StepOutput]] | None:
    """Run `predict_step` over all loaders.

    Returns its results on the CPU: a list, or one list for each of several loaders.
    """
    if run.trainer.limit_predict_batches == 0:
        return None
    with no_grad_context(run):
        loader = run.load("predict")
        if not run.world.any(sum(loader.limits or []) > 0):
            return None
        several = len(loader.flattened) > 1
        if not data.takes_iterator(run.module.predict_step):
            check_dataloader_idx(run.module, "predict_step", len(loader.flattened))
        _prepare_prediction(run, loader)
        callbacks = run.trainer.callbacks
        keeps = run.job.return_predictions or any(one.keeps_predictions for one in callbacks)
        kept = run.outcome.predictions = [[] for _ in loader.flattened]
        with evaluating(run, "predict"):
            batches = iter(loader)
            run.fire("on_predict_start")
            if "predict" not in run.data.loaders:  # BatchSizeFinder wants it anew
                loader = run.load("predict")
                _prepare_prediction(run, loader)
                batches = iter(loader)
            run.fire("on_predict_epoch_start")
            with suppress(StopIteration):
                predict_batches(
                    run, batches, several, kept if keeps else None, loader.num_batches()
                )
            run.fire("on_predict_epoch_end")
            run.fire("on_predict_end")
    run.outcome.predictions = []
    if not run.job.return_predictions:
        return None
    return kept if several else kept[0]


def _prepare_prediction(run: Run, loader: CombinedLoader) -> None:
    for one in loader.flattened:
        data.set_epoch(one, run.progress.epoch)
    if any(callback.notes_samples for callback in run.trainer.callbacks):
        loader.flattened = [data.noting_indices(one) for one in loader.flattened]


def predict_batches(
    run: Run, batches: Iterator[Item], several: bool, kept: list[list[object]] | None, number: float
) -> None:
    """Predict every batch; results are appended to `kept`, unless that is None."""
    metrics = run.metrics
    hooks = run.hooks
    precision = run.precision
    transfer = run.calls.transfer
    predict_step = run.strategy.step(run.module, run.step_module, "predict_step")
    batch_end = hooks["on_predict_batch_end"]
    if data.takes_iterator(run.module.predict_step):
        batches, predict_step, batch_end = hand_over(
            run, batches, predict_step, batch_end, number, several
        )
        transfer = None
    for batch, batch_idx, dataloader_idx in run.strategy.together(batches):
        if transfer is not None:
            batch = transfer(batch, dataloader_idx)
        which = (dataloader_idx,) if several else ()
        metrics.begin_batch(batch)
        if hooks["on_predict_batch_start"]:
            run.fire("on_predict_batch_start", batch, batch_idx, *which)
        metrics.hook = "predict_step"
        with precision.context() if precision.has_context else nullcontext():
            output = predict_step(
                batch, *((batch_idx,) if run.calls.takes_batch_idx["predict_step"] else ()), *which
            )
        for function in batch_end:
            metrics.hook = "on_predict_batch_end"
            function(output, batch, batch_idx, *which)
        metrics.hook = None
        if kept is not None:
            # Those of all batches together may be more than the device has room for
            kept[dataloader_idx].append(move_to(output, "cpu"))
