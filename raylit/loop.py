"""The algorithm: how a model is trained, evaluated and asked for predictions. Open this file first.

    fit
        a few validation batches, to find errors early                   sanity_check
        until max_epochs, max_steps or a stop:
            on_train_epoch_start
            for each batch:                                              train_epoch
                move it to the device
                on_train_batch_start
                forward, backward, optimizer step                        train_batch
                learning-rate schedulers
                on_train_batch_end
                every n steps: values to the loggers
                when due: validation                                     evaluate
            on_train_epoch_end
            learning-rate schedulers, epoch values to the loggers        end_epoch

    evaluate (validation and test)
        eval mode, no gradients
        for each loader, for each batch: step, hooks
        metrics over all batches and ranks: one value per key
        the modes the submodules had

Hooks were resolved before (`run.hooks` holds lists of what somebody overrode), so an event nobody listens to costs one falsy test.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from raylit import data
from raylit.batch import move_to
from raylit.data.combined import Item
from raylit.errors import ConfigError, DataError, Terminated
from raylit.hooks import is_overridden
from raylit.messages import info, warn
from raylit.module import LightningModule
from raylit.parallel import no_sync
from raylit.rng import isolated
from raylit.run import Run, check_dataloader_idx, no_grad_context, restore_modes, submodule_modes

STOP_CHECK_EVERY = 16  # batches between two agreements of the ranks on whether to stop: one small collective each


def fit(run: Run) -> None:
    """Train until the Trainer's limits or a stop are reached."""
    trainer, progress = run.trainer, run.progress
    sanity_check(run)
    run.stage = "train"
    batches = start_training_data(run)
    if is_done(run) or batches is None:
        return
    torch.set_grad_enabled(True)
    if validates_in_epoch(run) and "val" not in run.loaders:
        run.load("val")
    run.fire("on_train_start")
    while not is_done(run):
        if run.reload_due("train"):
            batches = start_training_data(run)
        for loader in run.loaders["train"].flattened:
            data.set_epoch(loader, progress.epochs_processed)
        if progress.batch == 0:
            run.fire("on_train_epoch_start")
        train_epoch(run, batches if batches is not None else iter(run.loaders["train"]))
        batches = None
        end_epoch(run)
    run.fire("on_train_end")


def train_epoch(run: Run, batches: Iterator[Item]) -> None:
    """Train on the batches of one epoch, or on what is left of it."""
    trainer, progress, metrics, hooks = run.trainer, run.progress, run.metrics, run.hooks
    batch_start, batch_end = hooks["on_train_batch_start"], hooks["on_train_batch_end"]
    automatic, num_batches = run.module.automatic_optimization, trainer.num_training_batches
    accumulate, log_every = trainer.accumulate_grad_batches, trainer.log_every_n_steps
    use_closure = automatic and run.needs_closure
    alone = run.world.size == 1
    if progress.batch:
        batches = islice(batches, progress.batch, None)
    ahead = None if num_batches != float("inf") else next(batches, None)
    while not (progress.is_last_batch or progress.batch == num_batches or steps_reached(run) or (trainer.should_stop and may_stop(run))):
        if num_batches != float("inf"):
            item = next(batches, None)
        else:  # without a length, only the next batch tells whether this one is the last
            item, ahead = ahead, next(batches, None)
        if item is None:
            break
        batch, batch_idx = item[0], progress.batch
        progress.is_last_batch = progress.batch + 1 >= num_batches if num_batches != float("inf") else ahead is None
        if run.transfer is not None:
            batch = run.transfer(batch, 0)
        progress.batch += 1
        progress.total_batches += 1
        metrics.begin_batch(batch)

        if batch_start and skips_rest(run, batch, batch_idx):
            progress.is_last_batch = True
            update_schedulers(run, "step", plateau=False)
            update_schedulers(run, "epoch", plateau=False)
            break
        steps = progress.batch % accumulate == 0 or progress.is_last_batch
        if use_closure and steps:
            output = step_with_closure(run, batch, batch_idx)
        else:
            output = train_batch(run, batch, batch_idx, steps)

        if run.schedulers and automatic:
            if steps:
                update_schedulers(run, "step", plateau=False)
            if progress.is_last_batch:
                update_schedulers(run, "epoch", plateau=False)
        if batch_end:
            outputs = batch_outputs(run, output)
            metrics.hook = "on_train_batch_end"
            for function in batch_end:
                function(outputs, batch, batch_idx)
        metrics.hook = None
        progress.batches_done += 1
        if (steps or not automatic) and log_every and ((progress.log_steps + 1) % log_every == 0 or trainer.should_stop or trainer.fast_dev_run):
            metrics.reduce_steps_over_ranks()
            run.log_metrics(metrics.to_log())
        if run.checks_validation and validation_due(run):
            validate_within(run, steps)
        if run.schedulers and automatic and steps:
            update_schedulers(run, "step", plateau=True)
        if steps:
            progress.log_steps += 1
        if not alone and progress.batch % STOP_CHECK_EVERY == 0:
            agree_on_stop(run)
        if run.received_sigterm and alone:
            raise Terminated


def train_batch(run: Run, batch: Any, batch_idx: int, step: bool) -> Any:
    """Forward, backward and, if `step`, the optimizer. Returns what `training_step` returned.

    Without `step` gradients add up: for the batches of an accumulation but its last, and within the closure of an optimizer that wants one.
    """
    metrics, hooks, precision = run.metrics, run.hooks, run.precision
    args = (batch, batch_idx) if run.takes_batch_idx["training_step"] else (batch,)
    training_step = run.step_module if run.step_module is not None else run.module.training_step
    accumulates = not step and run.accumulating
    with no_sync(run.step_module) if accumulates and run.step_module is not None else nullcontext():
        metrics.hook = "training_step"
        if precision.has_context:
            with precision.context():
                output = training_step(*args)
        else:
            output = training_step(*args)
        if not run.module.automatic_optimization:
            return output
        loss = loss_of(run, output)
        optimizer = run.optimizers[0]
        if batch_idx % run.trainer.accumulate_grad_batches == 0:
            if hooks["on_before_zero_grad"]:
                run.fire("on_before_zero_grad", optimizer)
            if run.overrides_zero_grad:
                run.call(run.module, "optimizer_zero_grad", run.progress.epoch, batch_idx, optimizer)
            else:
                optimizer.zero_grad()
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


def step_with_closure(run: Run, batch: Any, batch_idx: int) -> Any:
    """Let the module's `optimizer_step`, or an optimizer such as LBFGS, call `train_batch` as a closure, as often as it wants."""
    output = None

    def closure() -> Tensor | None:
        nonlocal output
        output = train_batch(run, batch, batch_idx, step=False)
        return run.loss

    run.accumulating = False
    run.call(run.module, "optimizer_step", run.progress.epoch, batch_idx, run.wrapped_optimizers[0], closure)
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
            raise ConfigError(f"training_step returned a dict without the key 'loss'; it has: {', '.join(map(repr, output)) or 'nothing'}.")
    elif output is None:
        if run.world.size > 1:
            raise RuntimeError("training_step returned None. On several ranks the others would wait for this one's gradients: return a loss, 0 * loss to skip.")
        return None
    else:
        raise ConfigError(f"training_step returned a {type(output).__name__}. Return the loss as a tensor, a dict with the key 'loss', or None to skip.")
    divisor = run.trainer.accumulate_grad_batches
    return loss / divisor if divisor != 1 and loss is not None else loss


def batch_outputs(run: Run, output: Any) -> dict[str, Any]:
    """Return what `on_train_batch_end` gets: the loss, detached and divided as it went backward, and the other keys of a dict."""
    extra = {key: value for key, value in output.items() if key != "loss"} if isinstance(output, Mapping) else {}
    if run.module.automatic_optimization:
        return {} if run.loss is None else {"loss": unscaled_loss(run, output), **extra}
    loss = output.get("loss") if isinstance(output, Mapping) else output
    return extra if loss is None else {"loss": loss.detach(), **extra}


def unscaled_loss(run: Run, output: Any) -> Tensor:
    """Return a copy of the batch's loss without the scale that mixed precision gave it."""
    loss = loss_of(run, output) if run.precision.scaler is not None else run.loss
    assert loss is not None
    return loss.detach().clone()


def skips_rest(run: Run, batch: Any, batch_idx: int) -> bool:
    """Fire `on_train_batch_start`; return whether the module answered -1: leave this batch and the rest of the epoch."""
    response = None
    run.metrics.hook = "on_train_batch_start"
    for function in run.hooks["on_train_batch_start"]:
        response = function(batch, batch_idx)
    run.metrics.hook = None
    return run.overrides_batch_start and response == -1


def end_epoch(run: Run) -> None:
    """Tell who listens that the epoch has ended, and bring its values to the loggers."""
    trainer, progress, metrics, hooks = run.trainer, run.progress, run.metrics, run.hooks
    metrics.end_epoch()
    metrics.reduce_over_ranks()
    progress.epochs_processed += 1
    late = [function for function in hooks["on_train_epoch_end"] if is_monitor(run, function)]
    metrics.hook = "on_train_epoch_end"
    for function in hooks["on_train_epoch_end"]:
        if late and function is late[0]:
            metrics.reduce_over_ranks()  # of what the hooks before logged, so that the monitors see it
            metrics.refresh()
        metrics.hook = "on_train_epoch_end"
        function()
    metrics.hook = None
    metrics.refresh()
    if progress.is_last_batch or progress.batch == trainer.num_training_batches:
        update_schedulers(run, "epoch", plateau=True)
    progress.log_steps -= 1  # the values of an epoch stand at the x of its last step
    epoch_values = metrics.to_log()
    run.log_metrics(epoch_values)
    run.remember(epoch_values)
    progress.log_steps += 1
    metrics.reset()
    progress.epoch += 1
    progress.batch = progress.batches_done = 0
    progress.is_last_batch = False
    agree_on_stop(run)
    if run.received_sigterm:
        raise Terminated


def is_monitor(run: Run, function: Any) -> bool:
    """Tell whether a bound callback watches metrics: it comes after the module at the end of an epoch."""
    return isinstance(getattr(getattr(function, "func", None), "__self__", None), run.monitors)


# ---- when to stop, when to validate ----


def is_done(run: Run) -> bool:
    """Tell whether training is over, and say why."""
    trainer, progress = run.trainer, run.progress
    if trainer.num_training_batches == 0:
        info("`Trainer.fit` stopped: No training batches.")
        return True
    if steps_reached(run):
        info(f"`Trainer.fit` stopped: `max_steps={trainer.max_steps}` reached.")
        return True
    if trainer.max_epochs not in (None, -1) and progress.epochs_processed >= trainer.max_epochs:
        info(f"`Trainer.fit` stopped: `max_epochs={trainer.max_epochs}` reached.")
        return True
    return trainer.should_stop and may_stop(run)


def steps_reached(run: Run) -> bool:
    """Tell whether `max_steps` optimizer steps were taken."""
    return run.trainer.max_steps != -1 and run.progress.steps >= run.trainer.max_steps


def may_stop(run: Run) -> bool:
    """Tell whether `min_epochs` and `min_steps` allow to stop; say so once if not."""
    trainer = run.trainer
    allowed = run.progress.epochs_processed >= (trainer.min_epochs or 0) and run.progress.steps >= (trainer.min_steps or 0)
    if not allowed and not run.said_minimum:
        run.said_minimum = True
        info(f"A stop was asked for, but min_epochs={trainer.min_epochs} or min_steps={trainer.min_steps} is not reached: training goes on.")
    return allowed


def agree_on_stop(run: Run) -> None:
    """Make a stop or a SIGTERM on any rank one on all."""
    if run.world.size > 1:
        stops = run.world.all_gather_object((run.trainer.should_stop, run.received_sigterm))
        run.trainer.should_stop = any(stop for stop, _ in stops)
        if any(terminated for _, terminated in stops):
            raise Terminated


def validates_in_epoch(run: Run) -> bool:
    """Tell whether validation may run in the epoch that begins."""
    every = run.trainer.check_val_every_n_epoch
    return run.validates and (every is None or (run.progress.epoch + 1) % every == 0)


def validation_due(run: Run) -> bool:
    """Tell whether validation runs after the batch just trained on."""
    trainer, progress = run.trainer, run.progress
    if not validates_in_epoch(run):
        return False
    if trainer.should_stop and may_stop(run):
        return True
    if trainer.val_check_time_s is not None:
        return time.monotonic() - run.last_validation >= trainer.val_check_time_s
    if run.val_check_batch == float("inf"):
        return progress.is_last_batch
    count = progress.total_batches if trainer.check_val_every_n_epoch is None else progress.batch
    return count % run.val_check_batch == 0


def validate_within(run: Run, stepped: bool) -> None:
    """Run validation in the middle of training."""
    if stepped:
        run.call(run.module, "on_validation_model_zero_grad")
    run.stage = "validate"
    evaluate(run, "val")
    run.stage = "train"
    agree_on_stop(run)


def sanity_check(run: Run) -> None:
    """Run a few validation batches whose results are forgotten, leaving the random state as it was."""
    trainer = run.trainer
    if not run.validates or trainer.num_sanity_val_steps == 0 or run.resumed:
        return
    with isolated():
        run.stage = "sanity_check"
        run.fire("on_sanity_check_start")
        evaluate(run, "val")
        run.metrics.clear()
        run.fire("on_sanity_check_end")
        run.stage = "train"


def start_training_data(run: Run) -> Iterator[Item] | None:
    """Ask for the training data, begin to read it, and derive when validation is due; None if there is nothing to read."""
    trainer = run.trainer
    if trainer.limit_train_batches == 0:
        return None
    loader = run.load("train")
    batches = iter(loader)
    number = trainer.num_training_batches = loader.num_batches()
    if number == 0:
        return None
    if isinstance(trainer.val_check_interval, int):
        run.val_check_batch = trainer.val_check_interval
        if run.val_check_batch > number and trainer.check_val_every_n_epoch is not None and trainer.limit_val_batches > 0:
            raise ConfigError(
                f"val_check_interval={trainer.val_check_interval} is more than the {number} training batches of an epoch. Lower it, set"
                " check_val_every_n_epoch=None to count batches over epochs, or limit_val_batches=0 for no validation."
            )
    elif any(data.combined.length_of(one) == float("inf") for one in loader.flattened):
        if trainer.val_check_interval != 1.0 and trainer.val_check_time_s is None:
            raise DataError(f"val_check_interval={trainer.val_check_interval} is a fraction of an epoch, but the training loader has no length. Give a number.")
        run.val_check_batch = float("inf")
    else:
        run.val_check_batch = max(1, int(number * trainer.val_check_interval))
    run.checks_validation = run.validates
    if trainer.loggers and 0 < number < trainer.log_every_n_steps and not trainer.fast_dev_run:
        warn(
            f"An epoch has {int(number)} training batches, fewer than log_every_n_steps={trainer.log_every_n_steps}: step values are rarely logged."
            " Lower log_every_n_steps to see them."
        )
    return batches


def update_schedulers(run: Run, interval: str, plateau: bool) -> None:
    """Step the learning-rate schedulers of one kind that are due."""
    if not run.module.automatic_optimization:
        return
    for config in run.schedulers:
        count = run.progress.batch if interval == "step" else run.progress.epoch + 1
        if config.reduce_on_plateau != plateau or config.interval != interval or count % config.frequency != 0:
            continue
        value = None
        if plateau:
            metrics = run.trainer.callback_metrics
            value = metrics.get(config.monitor)
            if value is None:
                text = f"ReduceLROnPlateau watches {config.monitor!r}, which was not logged. Logged so far: {', '.join(metrics) or 'nothing'}."
                if config.strict:
                    raise ConfigError(text + ' Log it, change "monitor", or set "strict": False in the lr_scheduler dict.')
                warn(text + " The learning rate is left as it is.", RuntimeWarning)
                continue
        run.call(run.module, "lr_scheduler_step", config.scheduler, value)
        run.progress.scheduler_steps += 1


# ---- evaluation ----


def evaluate(run: Run, stage: str) -> list[dict[str, Any]]:
    """Run validation (`val`) or test (`test`) over all its loaders; returns the values logged, a dict for each loader."""
    trainer, metrics, module = run.trainer, run.metrics, run.module
    name = "test" if stage == "test" else "validation"
    sanity = run.stage == "sanity_check"
    with no_grad_context(run):
        if stage not in run.loaders or (run.job.fn == "fit" and run.reload_due(stage)):
            run.load(stage)
            run.val_batches_seen = {}
        loader = run.loaders[stage]
        limits = loader.limits or []
        loader.limits = [min(trainer.num_sanity_val_steps, limit) for limit in limits] if sanity else limits
        if sum(loader.limits) == 0:
            return []
        several = loader.mode == "sequential" and len(loader.flattened) > 1
        check_dataloader_idx(module, f"{name}_step", len(loader.flattened) if several else 1)
        before = metrics.switch(run.val_entries, training=False)
        if run.job.fn == "fit":
            for one in loader.flattened:
                data.set_epoch(one, run.progress.epochs_processed)
        with evaluating(run, name):
            batches = iter(loader)
            run.fire(f"on_{name}_start")
            run.fire(f"on_{name}_epoch_start")
            seen = [item[2] for item in evaluate_batches(run, name, batches, several)]
            metrics.end_epoch()
            metrics.reduce_over_ranks()
            outputs = [{} if sanity else metrics.loader_values(index if several else None) for index in dict.fromkeys(seen)]
            metrics.dataloader_idx = None
            run.fire(f"on_{name}_epoch_end")
            metrics.reduce_over_ranks()
            at_end = {} if sanity else metrics.loader_values(None)
            logged = {key: value for output in reversed(outputs) for key, value in output.items()} | at_end
            for output in outputs:
                output.update(at_end)
            run.log_metrics(logged)
            if run.job.fn == "fit":
                run.remember(logged)
            run.has_validated = run.has_validated or not sanity
            run.fire(f"on_{name}_end")
            metrics.reset()
        loader.limits = limits
        metrics.switch_back(before)
    run.last_validation = time.monotonic()
    return outputs


def evaluate_batches(run: Run, name: str, batches: Iterator[Item], several: bool) -> Iterator[Item]:
    """Take the evaluation step for every batch; gives back the batches' numbers (not the batches)."""
    metrics, hooks, precision = run.metrics, run.hooks, run.precision
    batch_start, batch_end = hooks[f"on_{name}_batch_start"], hooks[f"on_{name}_batch_end"]
    step = getattr(run.module, f"{name}_step")
    for batch, batch_idx, dataloader_idx in batches:
        if run.transfer is not None:
            batch = run.transfer(batch, dataloader_idx)
        metrics.begin_batch(batch, dataloader_idx if several else None)
        which = (dataloader_idx,) if several else ()
        for function in batch_start:
            metrics.hook = f"on_{name}_batch_start"
            function(batch, batch_idx, *which)
        metrics.hook = f"{name}_step"
        with precision.context() if precision.has_context else nullcontext():
            output = step(batch, *((batch_idx,) if run.takes_batch_idx[f"{name}_step"] else ()), *which)
        for function in batch_end:
            metrics.hook = f"on_{name}_batch_end"
            function(output, batch, batch_idx, *which)
        metrics.hook = None
        if run.stage != "sanity_check":
            count = run.val_batches_seen.get(dataloader_idx, 0)
            run.log_metrics(metrics.to_log(), step=count)
            run.val_batches_seen[dataloader_idx] = count + 1
        if run.received_sigterm and run.world.size == 1:
            raise Terminated
        yield None, batch_idx, dataloader_idx


@contextmanager
def evaluating(run: Run, name: str) -> Iterator[None]:
    """Within, the module is in eval mode; afterwards each submodule has the mode back that it had."""
    modes = submodule_modes(run.module)
    run.call(run.module, f"on_{name}_model_eval")
    yield
    back = f"on_{name}_model_train"
    if name != "predict" and is_overridden(back, run.module, LightningModule):
        run.call(run.module, back)
    else:
        restore_modes(run.module, modes)


def predict(run: Run) -> list[Any] | None:
    """Run `predict_step` over all loaders; returns its results on the CPU: a list, or one list for each of several loaders."""
    metrics, hooks = run.metrics, run.hooks
    with no_grad_context(run):
        loader = run.load("predict")
        several = len(loader.flattened) > 1
        check_dataloader_idx(run.module, "predict_step", len(loader.flattened))
        kept: list[list[Any]] = [[] for _ in loader.flattened]
        with evaluating(run, "predict"):
            batches = iter(loader)
            run.fire("on_predict_start")
            run.fire("on_predict_epoch_start")
            for batch, batch_idx, dataloader_idx in batches:
                if run.transfer is not None:
                    batch = run.transfer(batch, dataloader_idx)
                which = (dataloader_idx,) if several else ()
                metrics.begin_batch(batch)
                run.fire("on_predict_batch_start", batch, batch_idx, *which)
                metrics.hook = "predict_step"
                with run.precision.context() if run.precision.has_context else nullcontext():
                    args = (batch_idx,) if run.takes_batch_idx["predict_step"] else ()
                    output = run.module.predict_step(batch, *args, *which)
                if hooks["on_predict_batch_end"]:
                    run.fire("on_predict_batch_end", output, batch, batch_idx, *which)
                if run.job.return_predictions:
                    kept[dataloader_idx].append(move_to(output, "cpu"))
            run.fire("on_predict_epoch_end")
            run.fire("on_predict_end")
    if not run.job.return_predictions:
        return None
    return kept if several else kept[0]
