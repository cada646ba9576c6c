"""The algorithm: how a model is trained. Open this file first.

    fit
        a few validation batches, to find errors early                   evaluation.sanity_check
        until max_epochs, max_steps or a stop:
            on_train_epoch_start
            for each batch:                                              train_epoch
                move it to the device
                on_train_batch_start
                forward, backward, optimizer step                        train_batch
                learning-rate schedulers
                on_train_batch_end
                every n steps: values to the loggers
                when due: validation                                     evaluation.evaluate
            on_train_epoch_end
            learning-rate schedulers, epoch values to the loggers        end_epoch

Hooks were resolved before (`run.hooks` holds lists of what somebody overrode), so an event nobody
listens to costs one falsy test. When training stops and when validation is due stands in
`schedule.py`; the loops that change no weights stand in `evaluation.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

from torch import Tensor, set_grad_enabled

from raylit import data
from raylit.core.hooks import AFTER_MODULE
from raylit.data.combined import Item
from raylit.engine import exact, optimizers
from raylit.engine.evaluation import evaluate, sanity_check
from raylit.engine.run import Run
from raylit.engine.schedule import (
    agree_on_stop,
    await_validations,
    end_on_signal,
    is_done,
    pause,
    stops,
    val_check_batch,
    validate_elsewhere,
    validates_in_epoch,
    validation_due,
)
from raylit.errors import ConfigError
from raylit.parallel import no_sync
from raylit.runtime import rng
from raylit.runtime.messages import warn

NOTHING = nullcontext()


def fit(run: Run) -> None:
    """Train until the Trainer's limits or a stop are reached."""
    progress = run.progress
    sanity_check(run)
    run.stage = "train"
    batches = start_training_data(run)
    if (is_done(run) and not run.end_left) or run.trainer.limit_train_batches == 0:
        return
    set_grad_enabled(True)
    if validates_in_epoch(run) and "val" not in run.loaders:
        run.load("val")
    run.fire("on_train_start")
    if run.resumed_from is not None and "rng" in run.resumed_from:
        rng.restore(run.resumed_from["rng"])  # as they were, whatever it took to come here again
    agree_on_stop(run)
    while not is_done(run):
        if run.reload_due("train"):
            batches = start_training_data(run)
        set_epoch(run)
        if progress.epochs_started == progress.epochs_processed:
            progress.epochs_begun = progress.epochs_processed + 1
            run.fire("on_train_epoch_start")
            progress.start_epoch()
            if "train" not in run.loaders:  # BatchSizeFinder wants it anew
                batches = start_training_data(run)
                set_epoch(run)
        run.wrap()  # hooks may have frozen or unfrozen parameters
        run.choose_clipping()
        if progress.batches_done < progress.batch or run.validation_left:
            finish_batch(run)
        with suppress(StopIteration):  # raised by a user's hook, it ends the epoch
            run.timed("run_training_epoch", train_epoch)(
                run, batches if batches is not None else iter(run.loaders["train"])
            )
        batches = None
        end_epoch(run)
        if run.loaders["train"].was_begun_by_others:
            run.loaders["train"].begin_anew()
            count_batches(run)
    await_validations(run)
    run.fire("on_train_end")


def train_epoch(run: Run, batches: Iterator[Item]) -> None:
    """Train on the batches of one epoch, or on what is left of it."""
    trainer = run.trainer
    limits = run.limits
    progress = run.progress
    metrics = run.metrics
    hooks = run.hooks
    batch_start = hooks["on_train_batch_start"]
    batch_end = hooks["on_train_batch_end"]
    automatic = run.module.automatic_optimization
    num_batches = trainer.num_training_batches
    log_every = trainer.log_every_n_steps
    run.forward_only = not automatic or run.skips_backward
    train = run.timed(
        "run_training_batch", step_with_closure if automatic and run.needs_closure else train_batch
    )
    transfer = run.transfer
    loader = run.loaders["train"]
    is_sized = num_batches != float("inf")
    if data.takes_iterator(run.module.training_step):
        given = data.Handover(
            batches, num_batches - progress.batch, lambda batch, _: metrics.begin_batch(batch)
        )
        batches = given.turns()
        transfer = None
        train = partial(train_on_iterator, given, train)
        batch_end = [given.after(function) for function in batch_end]
    if not is_sized:
        batches = loader.ahead(batches)
    while not (
        progress.is_last_batch
        or progress.batch == num_batches
        or progress.steps >= limits.max_steps != -1
        or (trainer.should_stop and stops(run))
    ):
        item = next(batches, None)
        if item is None:
            break
        batch = item[0]
        batch_idx = progress.batch
        progress.is_last_batch = progress.batch + 1 >= num_batches if is_sized else loader.is_last
        if transfer is not None:
            batch = transfer(batch, 0)
        progress.batch += 1
        progress.total_batches += 1
        metrics.begin_batch(batch)

        if batch_start and skips_rest(run, batch, batch_idx):
            progress.is_last_batch = True
            optimizers.update_schedulers(run, "step", plateau=False)
            optimizers.update_schedulers(run, "epoch", plateau=False)
            break
        steps = progress.batch % limits.accumulate_grad_batches == 0 or progress.is_last_batch
        output = train(run, batch, batch_idx, steps)

        if run.schedulers and automatic:
            if steps:
                optimizers.update_schedulers(run, "step", plateau=False)
            if progress.is_last_batch:
                optimizers.update_schedulers(run, "epoch", plateau=False)
        if batch_end:
            outputs = batch_outputs(run, output)
            metrics.hook = "on_train_batch_end"
            for function in batch_end:
                function(outputs, batch, batch_idx)
        metrics.hook = None
        progress.batches_done += 1
        if progress.total_batches >= run.next_agreement:
            agree_on_stop(run)
        if (
            (steps or not automatic)
            and log_every
            and (
                (progress.log_steps + 1) % log_every == 0
                or (trainer.should_stop and run.stop_agreed)
                or trainer.fast_dev_run
            )
        ):
            metrics.reduce_steps()
            run.log_metrics(metrics.to_log())
        if run.checks_validation and validation_due(run):
            validate_within(run, steps)
        if run.schedulers and automatic and steps:
            optimizers.update_schedulers(run, "step", plateau=True)
        if steps:
            progress.log_steps += 1
        if run.pauses:
            pause(run)


def train_on_iterator(
    given: data.Handover, train: Any, run: Run, batch: Any, batch_idx: int, step: bool
) -> Any:
    """Let `training_step` read its batch itself, or several."""
    output = train(run, given, batch_idx, step)
    run.progress.is_last_batch = given.done
    return output


def finish_batch(run: Run) -> None:
    """Do what comes after `on_train_batch_end`, or within validation, where the checkpoint was saved that this fit goes on from."""
    progress = run.progress
    progress.batches_done = progress.batch
    stepped = progress.batch % run.trainer.accumulate_grad_batches == 0 or progress.is_last_batch
    if (
        (stepped or not run.module.automatic_optimization)
        and run.trainer.should_log_step
        and not run.validation_left
    ):
        run.metrics.begin_batch(None)
        run.metrics.reduce_steps()
        run.log_metrics(run.metrics.to_log())
    if run.checks_validation and (run.validation_left or validation_due(run)):
        validate_within(run, stepped)
    run.validation_left = False
    if stepped:
        optimizers.update_schedulers(run, "step", plateau=True)
        progress.log_steps += 1


def train_batch(run: Run, batch: Any, batch_idx: int, step: bool) -> Any:
    """Forward, backward and, if `step`, the optimizer. Returns what `training_step` returned.

    Without `step` gradients add up: for the batches of an accumulation but its last, and within the
    closure of an optimizer that wants one.
    """
    metrics = run.metrics
    hooks = run.hooks
    precision = run.precision
    args = (batch, batch_idx) if run.takes_batch_idx["training_step"] else (batch,)
    training_step = run.step_module if run.step_module is not None else run.module.training_step
    with no_sync(run.step_module) if not step and run.accumulating else NOTHING:
        metrics.hook = "training_step"
        if precision.has_context:
            with precision.context():
                output = training_step(*args)
        else:
            output = training_step(*args)
        if run.forward_only:
            if output is not None and not isinstance(output, Tensor | Mapping):
                raise ConfigError(
                    f"training_step returned a {type(output).__name__}. Return a tensor, a dict, or"
                    " nothing."
                )
            return output
        loss = loss_of(run, output)
        optimizer = run.optimizers[0]
        if batch_idx % run.limits.accumulate_grad_batches == 0:
            if hooks["on_before_zero_grad"]:
                run.fire("on_before_zero_grad", optimizer)
            if run.overrides_zero_grad:
                run.call(
                    run.module, "optimizer_zero_grad", run.progress.epoch, batch_idx, optimizer
                )
            else:
                run.zero_grad()
        if loss is not None:
            if precision.scaler is not None:
                loss = precision.scaler.scale(loss)
            if hooks["on_before_backward"]:
                run.fire("on_before_backward", loss)
            if run.overrides_backward:
                run.call(run.module, "backward", loss)
            else:
                loss.backward()
            if hooks["on_after_backward"]:
                run.fire("on_after_backward")
    run.loss = loss
    if step:
        if precision.scaler is None:
            if run.clips or hooks["on_before_optimizer_step"]:
                run.before_optimizer_step(optimizer)
            optimizer.step()
        elif loss is not None:
            run.before_optimizer_step(optimizer)
            precision.scaler.step(optimizer)
            precision.scaler.update()
        run.progress.steps += 1
    return output


def step_with_closure(run: Run, batch: Any, batch_idx: int, step: bool) -> Any:
    """Let the module's `optimizer_step`, or an optimizer such as LBFGS, call `train_batch` as a closure, as often as it wants."""
    if not step:
        return train_batch(run, batch, batch_idx, step)
    output = None

    def closure() -> Tensor | None:
        nonlocal output
        output = train_batch(run, batch, batch_idx, step=False)
        return run.loss

    run.accumulating = False
    run.call(
        run.module,
        "optimizer_step",
        run.progress.epoch,
        batch_idx,
        run.wrapped_optimizers[0],
        closure,
    )
    run.accumulating = True
    run.progress.steps += 1
    return output


def loss_of(run: Run, output: Any) -> Tensor | None:
    """Return the loss to run backward from: of a batch of an accumulation, its part of the mean."""
    if isinstance(output, Tensor):
        loss: Tensor | None = output
    elif isinstance(output, Mapping):
        loss = output.get("loss")
        if loss is None:
            raise ConfigError(
                "training_step returned a dict without the key 'loss'; it has:"
                f" {', '.join(map(repr, output)) or 'nothing'}."
            )
    elif output is None:
        if run.world.size > 1:
            raise RuntimeError(
                "training_step returned None. On several ranks the others would wait for this one's"
                " gradients: return a loss, 0 * loss to skip."
            )
        return None
    else:
        raise ConfigError(
            f"training_step returned a {type(output).__name__}. Return the loss as a tensor, a dict"
            " with the key 'loss', or None to skip."
        )
    divisor = run.limits.accumulate_grad_batches
    return loss / divisor if divisor != 1 and loss is not None else loss


def batch_outputs(run: Run, output: Any) -> dict[str, Any]:
    """Return what `on_train_batch_end` gets.

    The loss, detached and divided as it went backward, and the other keys of a dict.
    """
    if run.forward_only:
        loss = output.get("loss") if isinstance(output, Mapping) else output
    elif run.precision.scaler is not None:
        loss = loss_of(run, output)  # what went backward is scaled
    else:
        loss = run.loss
    outputs = {} if loss is None else {"loss": loss.detach()}
    if not isinstance(output, Tensor) and isinstance(output, Mapping):
        outputs.update((key, value) for key, value in output.items() if key != "loss")
    return outputs


def skips_rest(run: Run, batch: Any, batch_idx: int) -> bool:
    """Fire `on_train_batch_start`.

    Return whether the module answered -1: leave this batch and the rest of the epoch.
    """
    response = None
    run.metrics.hook = "on_train_batch_start"
    for function in run.hooks["on_train_batch_start"]:
        response = function(batch, batch_idx)
    run.metrics.hook = None
    return run.overrides_batch_start and response == -1


def end_epoch(run: Run) -> None:
    """Tell who listens that the epoch has ended, and bring its values to the loggers."""
    trainer = run.trainer
    progress = run.progress
    metrics = run.metrics
    hooks = run.hooks
    metrics.end_epoch()
    progress.epochs_processed += 1
    metrics.hook = "on_train_epoch_end"
    for function in hooks["on_train_epoch_end"]:
        function()
    metrics.reduce()  # what they logged, so that the monitors see it
    run.remember(metrics.to_log())  # so that the checkpoint of an epoch holds its own row
    for function in hooks[AFTER_MODULE]:
        metrics.hook = "on_train_epoch_end"
        function()
    metrics.reduce()
    metrics.hook = None
    metrics.refresh()
    if progress.is_last_batch or progress.batch == trainer.num_training_batches:
        optimizers.update_schedulers(run, "epoch", plateau=True)
    progress.log_steps -= 1  # the values of an epoch stand at the x of its last step
    epoch_values = metrics.to_log()
    run.log_metrics(epoch_values)
    run.save_loggers()
    run.remember(epoch_values)
    progress.log_steps += 1
    metrics.reset()
    progress.epoch += 1
    agree_on_stop(run)
    if run.pauses:
        run.between_epochs = True
        pause(run)
        run.between_epochs = False


def validate_within(run: Run, stepped: bool) -> None:
    """Run validation in the middle of training."""
    if stepped:
        run.call(run.module, "on_validation_model_zero_grad")
    run.stage = "validate"
    if run.validations is not None:
        validate_elsewhere(run)
        run.stage = "train"
        return
    before = exact.before_validation(run)
    try:
        end_on_signal(
            run
        )  # where ranks may have different numbers of batches, all end here or none
        evaluate(run, "val")
    except BaseException:
        run.broken_validation = before
        raise
    run.stage = "train"
    agree_on_stop(run)


def set_epoch(run: Run) -> None:
    """Tell the samplers which epoch is read."""
    for loader in run.loaders["train"].flattened:
        data.set_epoch(loader, run.progress.epochs_processed)


def start_training_data(run: Run) -> Iterator[Item] | None:
    """Ask for the training data, begin to read it, and derive when validation is due.

    None if its reading is to begin with an epoch.
    """
    trainer = run.trainer
    if trainer.limit_train_batches == 0:
        return None
    is_asked_for = "train" in run.loaders and not run.reload_due(
        "train"
    )  # as by `estimated_stepping_batches`
    loader = run.loaders["train"] if is_asked_for else run.load("train")
    if run.resumed:
        set_epoch(run)
        batch = run.progress.batch if run.progress.in_epoch else 0
        loader.go_on(
            batch,
            run.resumed_from["loaders"] if run.resumed_from is not None else [],
            run.counted_before,
        )
    batches = iter(loader) if run.progress.in_epoch or not run.resumed else None
    if count_batches(run) == 0:
        return None
    number = trainer.num_training_batches
    run.checks_validation = run.validates
    if trainer.loggers and 0 < number < trainer.log_every_n_steps and not trainer.fast_dev_run:
        warn(
            f"An epoch has {int(number)} training batches, fewer than"
            f" log_every_n_steps={trainer.log_every_n_steps}: step values are rarely logged. Lower"
            " log_every_n_steps to see them."
        )
    return batches


def count_batches(run: Run) -> float:
    """Find how many batches an epoch has and after how many validation is due.

    Return the former.
    """
    loader = run.loaders["train"]
    number = run.trainer.num_training_batches = loader.num_batches()
    if number:
        run.val_check_batch = val_check_batch(run, loader, number)
    return number
