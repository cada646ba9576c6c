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
                learning-rate schedulers that go by a metric
            on_train_epoch_end
            learning-rate schedulers, epoch values to the loggers        end_epoch

`run.progress.at` names the action that runs, and a fit that goes on enters there: see
`progress.py`. Hooks were resolved before (`run.hooks` holds lists of the overridden functions), so
an event nobody listens to costs one falsy test. When training stops and when validation is due
stands in `schedule.py`; the loops that change no weights stand in `evaluation.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from itertools import chain, repeat
from time import monotonic
from typing import TypeAlias

from torch import Tensor, enable_grad, set_grad_enabled

from raylit import data
from raylit.core.hooks import AFTER_MODULE
from raylit.core.progress import (
    BACKWARD,
    BATCH,
    CLIP,
    EPOCH,
    EPOCH_END,
    EPOCH_PLATEAU,
    EPOCH_SCHEDULERS,
    EPOCH_START,
    FORWARD,
    IDLE,
    LOGGING,
    PLATEAU,
    SCHEDULERS,
    STEPPING,
    VALIDATION,
)
from raylit.data.combined import Item
from raylit.engine import data_wait, exact
from raylit.engine.evaluation import evaluate, sanity_check
from raylit.engine.optimizers import step_optimizer, step_schedulers
from raylit.engine.run import Run
from raylit.engine.schedule import (
    agree_on_stop,
    await_validations,
    end_on_signal,
    ends_training,
    pause,
    stops,
    val_check_batch,
    validate_elsewhere,
    validates_in_epoch,
    validation_due,
)
from raylit.engine.state import explaining_damage
from raylit.errors import ConfigError, DataError
from raylit.parallel import no_sync
from raylit.runtime import rng
from raylit.runtime.aliases import Batch, StepOutput
from raylit.runtime.messages import warn, warn_once

NO_CONTEXT = nullcontext()
# the actions of a batch, in their order: where the loop enters
ACTIONS = (BATCH, SCHEDULERS, EPOCH_SCHEDULERS, LOGGING, VALIDATION, PLATEAU)
AT_SCHEDULERS = ACTIONS.index(SCHEDULERS)
AT_LOGGING = ACTIONS.index(LOGGING)
AT_VALIDATION = ACTIONS.index(VALIDATION)

# trains on a batch; its arguments are those of `train_batch`
TrainBatch: TypeAlias = Callable[[Run, Batch, int, bool], StepOutput]


def fit(run: Run) -> None:
    """Train until the Trainer's limits or a stop are reached."""
    progress = run.progress
    if not run.resume.resumed:
        progress.at = IDLE  # whatever became of an earlier fit
    sanity_check(run)
    run.stage = "train"
    batches = start_training_data(run)
    # a resumed fit at any other action has work left, at the least `on_train_end`
    if (progress.at == IDLE and ends_training(run)) or run.trainer.limit_train_batches == 0:
        return
    set_grad_enabled(True)
    if validates_in_epoch(run) and "val" not in run.data.loaders:
        run.load("val")
    run.fire("on_train_start")
    if run.resume.own is not None and "rng" in run.resume.own:
        with explaining_damage(run, "the random states"):
            rng.restore(run.resume.own["rng"])  # as they were, whatever it took to come here again
    agree_on_stop(run)
    is_told = True  # by start_training_data: a sampler is told each epoch once, as in Lightning
    while progress.in_epoch or not ends_training(run):
        if run.reload_due("train") and not progress.in_epoch:
            batches = start_training_data(run)
            is_told = True
        if not is_told:
            set_epoch(run)
        is_told = False
        if batches is None:
            count_batches(run)
        if not progress.in_epoch:
            progress.at = EPOCH_START
            run.fire("on_train_epoch_start")
            progress.start_epoch()
            if "train" not in run.data.loaders:  # BatchSizeFinder wants it anew
                batches = start_training_data(run)
        if progress.at not in (EPOCH_END, EPOCH_PLATEAU):
            with suppress(StopIteration):  # raised by a user's hook, it ends the epoch
                run.timed("run_training_epoch", train_epoch)(
                    run, batches if batches is not None else iter(run.data.loaders["train"])
                )
        batches = None
        run.data.is_reading = False
        end_epoch(run)
    await_validations(run)
    run.metrics.reduce()  # what was logged on the way to an epoch that a stop has not let begin
    progress.at = IDLE
    run.fire("on_train_end")
    data_wait.tell(run)


def train_epoch(run: Run, batches: Iterator[Item]) -> None:
    """Train on the batches of one epoch, or on the rest of it."""
    trainer = run.trainer
    limits = run.limits
    progress = run.progress
    metrics = run.metrics
    hooks = run.hooks
    agreement = run.agreement
    batch_start = hooks["on_train_batch_start"]
    batch_end = hooks["on_train_batch_end"]
    automatic = run.module.automatic_optimization
    num_batches = trainer.num_training_batches
    log_every = trainer.log_every_n_steps
    is_dev_run = bool(trainer.fast_dev_run)
    run.renew_calls()
    train = run.timed(
        "run_training_batch",
        step_with_closure if automatic and run.calls.needs_closure else train_batch,
    )
    transfer = run.calls.transfer
    loader = run.data.loaders["train"]
    several = run.world.size > 1
    batches = loader.resumable(batches)
    if data.takes_iterator(run.module.training_step):
        batches, train, batch_end = hand_over(run, batches, train, batch_end)
        transfer = None
    wait = run.data.wait
    wait.begin()
    monitor = run.monitor
    train = with_gradients(run, train) if run.resume.has_gradients else train
    enter = ACTIONS.index(progress.at)  # 0, but where a fit goes on within a batch
    if enter:
        metrics.begin_batch(None)  # the batch is gone: nothing logged now is to have its size
        is_step = progress.batch % limits.accumulate_grad_batches == 0 or progress.is_last_batch
    while enter or not (
        progress.is_last_batch
        # `steps_reached`, written out, since a call would cost time at every batch
        or progress.steps >= limits.max_steps != -1
        or (trainer.should_stop and stops(run))
    ):
        if not enter:
            asked = monotonic()
            item = next(batches, None)
            wait.waited_s += monotonic() - asked
            if item is None:
                end_early(run)
                break
            batch = item[0]
            batch_idx = progress.batch
            # The loader tells where data has no length; a limit may end the epoch before it does.
            progress.is_last_batch = loader.is_last or progress.batch + 1 >= num_batches
            if transfer is not None:
                batch = transfer(batch, 0)
            # Counted as it begins; a checkpoint saved within it takes that back: `to_go_on_from`.
            progress.batch += 1
            progress.total_batches += 1
            progress.at = FORWARD
            metrics.begin_batch(batch)
            if batch_start and fire_batch_start(run, batch, batch_idx):
                progress.is_last_batch = True
                step_schedulers(run, SCHEDULERS)
                step_schedulers(run, EPOCH_SCHEDULERS)
                break
            # No gradient outlives its epoch: the last batch steps, however many were added up.
            is_step = progress.batch % limits.accumulate_grad_batches == 0 or progress.is_last_batch
            if several and batch_idx % limits.accumulate_grad_batches == 0:
                run.wrap()  # hooks may have frozen or unfrozen parameters
            output = train(run, batch, batch_idx, is_step)
            # A step that reads by itself may end the data
            is_step = is_step or progress.is_last_batch

        # Before the hooks, as in Lightning: they read the learning rate of the next step.
        if run.schedulers and automatic:
            schedule(run, is_step, enter)
        progress.at = LOGGING
        if batch_end and not enter:
            outputs = batch_outputs(run, output)
            metrics.hook = "on_train_batch_end"
            for function in batch_end:
                function(outputs, batch, batch_idx)
        metrics.hook = None
        # A collective waits for the slowest rank, so there is one every few batches: `schedule.py`.
        if progress.total_batches >= agreement.next_at:
            agree_on_stop(run)
        # Every n-th step, and the last of a fit that stops. Without accumulation by raylit (manual
        # optimization) each batch counts as one.
        if (
            (is_step or not automatic)
            and log_every
            and (
                (progress.log_steps + 1) % log_every == 0
                or (trainer.should_stop and agreement.stop_agreed)
                or is_dev_run
            )
            and enter <= AT_LOGGING
        ):
            metrics.reduce_steps()
            run.log_metrics(metrics.to_log())
            monitor.log()
            run.note_data("train", metrics.batch)
        if run.data.checks_validation and (
            enter == AT_VALIDATION or (enter < AT_VALIDATION and validation_due(run))
        ):
            validate_within(run, is_step)
        if run.schedulers and automatic and is_step:
            step_schedulers(run, PLATEAU)
        if is_step:
            progress.log_steps += 1
        # Last: a checkpoint saved by any of the above goes on behind the action that saved it.
        progress.at = EPOCH_END if progress.is_last_batch else BATCH
        enter = 0
        if agreement.pauses:
            pause(run)
    if loader.is_last and progress.batch < num_batches < float("inf"):
        say_short(run)


def schedule(run: Run, is_step: bool, enter: int) -> None:
    """Step the learning-rate schedulers that are due after a batch and do not go by a metric."""
    if is_step and enter <= AT_SCHEDULERS:
        step_schedulers(run, SCHEDULERS)
    if run.progress.is_last_batch and enter < AT_LOGGING:
        step_schedulers(run, EPOCH_SCHEDULERS)


def hand_over(
    run: Run, batches: Iterator[Item], train: TrainBatch, batch_end: list[Callable[..., object]]
) -> tuple[Iterator[Item], TrainBatch, list[Callable[..., object]]]:
    """Return batches, step and hooks for the loop if `training_step` is to read the batches itself.

    It may read several in one step, which counts as one batch.
    """
    progress = run.progress
    given = data.Handover(
        batches,
        run.trainer.num_training_batches - progress.batch,
        lambda batch, _: run.metrics.begin_batch(batch),
    )

    def train_on_iterator(run: Run, batch: Batch, batch_idx: int, is_step: bool) -> object:
        progress.is_last_batch = False  # which it is only once the step has read it
        output = train(run, given, batch_idx, is_step)
        if given.done and not is_step:
            finish_window(run)
        progress.is_last_batch = given.done
        return output

    return given.turns(), train_on_iterator, [given.after(function) for function in batch_end]


def say_short(run: Run) -> None:
    """Warn once that the data gave fewer batches than its length says."""
    number = run.trainer.num_training_batches
    warn_once(
        f"Epoch {run.progress.epoch} ended after {run.progress.batch} of {number:.0f} batches: the"
        " training data gave fewer than its length says. What is due at an epoch's end is done."
    )


def end_early(run: Run) -> None:
    """Do the work due after a last batch: the data has ended before the epoch's length.

    Raises:
        DataError: there was no batch, though there were some before or the fit has no last epoch.
    """
    progress = run.progress
    if progress.batch == 0:
        if progress.total_batches == 0 and run.limits.max_epochs != -1:
            return  # data that is empty from the start is no error in Lightning: each epoch ends
        raise DataError(
            f"The training data gave no batch in epoch {progress.epoch}. A generator, or another"
            " iterable that can be read once only, is used up after its first epoch: give a"
            " DataLoader or a list, or limit the fit with Trainer(max_epochs=1)."
        )
    say_short(run)
    is_step = finish_window(run)
    progress.is_last_batch = True
    if is_step:
        step_schedulers(run, SCHEDULERS)
    step_schedulers(run, EPOCH_SCHEDULERS)
    if run.data.checks_validation and validation_due(run, ends_early=True):
        validate_within(run, is_step=True)
    if is_step:
        step_schedulers(run, PLATEAU)
        progress.log_steps += 1


def finish_window(run: Run) -> bool:
    """Step with the gradients of an accumulation that its last batch has turned out to cut short.

    Returns:
        Whether there was one.
    """
    progress = run.progress
    if not progress.is_within_window(
        automatic=not run.calls.forward_only,
        accumulate=run.limits.accumulate_grad_batches,
    ):
        return False
    if run.world.size > 1:
        warn_once(
            f"Epoch {progress.epoch} ended after {progress.batch} batches, within an accumulation:"
            f" the gradients of the last {progress.batch % run.limits.accumulate_grad_batches}, of"
            " which other ranks know nothing yet, are dropped. Give data whose length is known, or"
            " read one batch in each training_step."
        )
        return False
    step_optimizer(run, run.optimizers[0], run.loss)
    return True


def train_batch(run: Run, batch: Batch, batch_idx: int, is_step: bool) -> StepOutput:
    """Run forward, backward and, if `is_step`, the optimizer; return the output of `training_step`.

    Without `is_step` gradients add up: for all batches of an accumulation but the last, and within
    the closure of an optimizer that wants one.
    """
    metrics = run.metrics
    hooks = run.hooks
    calls = run.calls
    precision = run.precision
    args = (batch, batch_idx) if calls.takes_batch_idx["training_step"] else (batch,)
    training_step = run.step_module if run.step_module is not None else run.module.training_step
    with no_sync(run.step_module) if not is_step and run.accumulating else NO_CONTEXT:
        metrics.hook = "training_step"
        if precision.has_context:
            with precision.context():
                output = training_step(*args)
        else:
            output = training_step(*args)
        if calls.forward_only:
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
            if calls.overrides_zero_grad:
                run.call(
                    run.module, "optimizer_zero_grad", run.progress.epoch, batch_idx, optimizer
                )
            else:
                calls.zero_grad()
        if loss is not None:
            if precision.scaler is not None:
                loss = precision.scaler.scale(loss)
            if hooks["on_before_backward"]:
                run.fire("on_before_backward", loss)
            if run.step_module is not None:
                run.check_wrapped()
            run.progress.at = BACKWARD
            if calls.overrides_backward:
                run.call(run.module, "backward", loss)
            else:
                loss.backward()
            if hooks["on_after_backward"]:
                run.mark_gradients_ready(output)
                run.fire("on_after_backward")
    run.loss = loss
    if is_step:
        if precision.scaler is None:
            if calls.clips or hooks["on_before_optimizer_step"]:
                run.mark_gradients_ready(output)
                run.prepare_step(optimizer)
            run.progress.at = STEPPING
            optimizer.step()
        elif loss is not None:
            run.prepare_step(optimizer)
            run.progress.at = STEPPING
            precision.scaler.step(optimizer)
            precision.scaler.update()
        run.progress.steps += 1
    return output


def with_gradients(run: Run, train: TrainBatch) -> TrainBatch:
    """Return the stand-in for `train` where a fit goes on with gradients that are there already.

    The first batch is read anew, for `on_train_batch_end`; of its training only the optimizer's
    step is left.
    """
    own = run.resume.own
    assert own is not None
    has_fired = run.progress.at == CLIP
    run.progress.at = BATCH

    def only_step(run: Run, batch: object, batch_idx: int, is_step: bool) -> object:
        run.resume.has_gradients = False
        rng.restore(own["rng"])  # to read the batch may have taken random numbers
        output = own["output"]
        run.loss = loss_of(run, output)
        if is_step:
            optimizer = run.optimizers[0]
            run.prepare_step(optimizer, has_fired=has_fired)
            run.progress.at = STEPPING
            optimizer.step()
            run.progress.steps += 1
        return output

    turns = chain([only_step], repeat(train))
    return lambda *arguments: next(turns)(*arguments)


def step_with_closure(run: Run, batch: Batch, batch_idx: int, is_step: bool) -> object:
    """Let the module's `optimizer_step`, or an optimizer such as LBFGS, call `train_batch`.

    Each gets this as a closure, which it may call as often as it wants.

    Raises:
        ConfigError: it was not called, so nothing was trained.
    """
    if not is_step:
        return train_batch(run, batch, batch_idx, is_step)
    progress = run.progress
    output = None
    calls = 0

    @enable_grad()  # some optimizers call it within their own no_grad
    def closure() -> Tensor | None:
        nonlocal output, calls
        calls += 1
        if calls == 1:  # only afterwards the optimizer changes weights
            progress.at = FORWARD
        try:
            output = train_batch(run, batch, batch_idx, is_step=False)
        except BaseException:
            if calls > 1:
                progress.at = STEPPING
            raise
        progress.at = STEPPING
        return run.loss

    run.accumulating = False
    run.call(
        run.module,
        "optimizer_step",
        progress.epoch,
        batch_idx,
        run.wrapped_optimizers[0],
        closure,
    )
    run.accumulating = True
    if not calls:
        raise ConfigError(
            f"{type(run.module).__name__}.optimizer_step did not call its closure, which runs"
            " training_step and backward: nothing was trained. Hand it on,"
            " optimizer.step(closure=optimizer_closure), or call optimizer_closure() where the"
            " optimizer is not to step."
        )
    progress.steps += 1
    return output


def loss_of(run: Run, output: object) -> Tensor | None:
    """Return the loss to run backward from: of a batch of an accumulation, its part of the mean."""
    if isinstance(output, Tensor):
        loss: Tensor | None = output
    elif isinstance(output, Mapping):
        loss = output.get("loss")
        if loss is None:
            raise ConfigError(
                "In automatic_optimization, when `training_step` returns a dict, the 'loss' key"
                " needs to be present. "
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
            "In automatic optimization, `training_step` must return a Tensor, a dict, or None. "
            f"training_step returned a {type(output).__name__}. Return the loss as a tensor, a dict"
            " with the key 'loss', or None to skip."
        )
    divisor = run.limits.accumulate_grad_batches
    return loss / divisor if divisor != 1 and loss is not None else loss


def batch_outputs(run: Run, output: StepOutput) -> dict[str, object]:
    """Return the outputs that `on_train_batch_end` gets.

    They are the loss, detached and divided as it went backward, and the other keys of a dict.
    """
    if run.calls.forward_only:
        loss = output.get("loss") if isinstance(output, Mapping) else output
    elif run.precision.scaler is not None:
        loss = loss_of(run, output)  # what went backward is scaled
    else:
        loss = run.loss
    outputs: dict[str, object] = {} if loss is None else {"loss": loss.detach()}
    if not isinstance(output, Tensor) and isinstance(output, Mapping):
        outputs.update((key, value) for key, value in output.items() if key != "loss")
    return outputs


def fire_batch_start(run: Run, batch: Batch, batch_idx: int) -> bool:
    """Fire `on_train_batch_start`.

    Return whether the module answered -1: leave this batch and the rest of the epoch.
    """
    response = None
    if run.resume.has_gradients:
        return False  # it has fired in the fit that this one goes on from
    run.metrics.hook = "on_train_batch_start"
    for function in run.hooks["on_train_batch_start"]:
        response = function(batch, batch_idx)
    run.metrics.hook = None
    return run.calls.overrides_batch_start and response == -1


def end_epoch(run: Run) -> None:
    """Tell who listens that the epoch has ended, and bring its values to the loggers."""
    progress = run.progress
    metrics = run.metrics
    hooks = run.hooks
    has_fired = progress.at == EPOCH_PLATEAU  # in the fit that this one goes on from
    progress.at = EPOCH_END
    run.data.wait.end()
    run.note_data("train", metrics.batch)
    metrics.end_epoch()
    progress.at = EPOCH_PLATEAU
    metrics.hook = "on_train_epoch_end"
    for function in () if has_fired else hooks["on_train_epoch_end"]:
        function()
    metrics.reduce()  # what they logged, so that the monitors see it
    run.remember(metrics.to_log())  # so that the checkpoint of an epoch holds its own row
    for function in () if has_fired else hooks[AFTER_MODULE]:
        metrics.hook = "on_train_epoch_end"
        function()
    metrics.reduce()
    metrics.hook = None
    metrics.refresh()
    if progress.is_last_batch:
        step_schedulers(run, EPOCH_PLATEAU)
    progress.log_steps -= 1  # the values of an epoch stand at the x of its last step
    epoch_values = metrics.to_log()
    waited: dict[str, object] = {"data_wait": run.data.wait.share} if run.data.wait.share else {}
    run.log_metrics(epoch_values | waited)
    run.save_loggers()
    run.remember(epoch_values)
    progress.log_steps += 1
    metrics.reset()
    run.resume.has_values = True
    progress.epoch += 1
    progress.at = EPOCH
    agree_on_stop(run)
    if run.agreement.pauses:
        pause(run)


def validate_within(run: Run, is_step: bool) -> None:
    """Run validation in the middle of training."""
    progress = run.progress
    progress.at = VALIDATION
    if is_step:
        run.call(run.module, "on_validation_model_zero_grad")
    run.stage = "validate"
    run.agreement.validates = False
    if run.validations is not None:
        progress.at = PLATEAU  # its values are judged when they are there
        validate_elsewhere(run)
        run.stage = "train"
        return
    run.resume.before_validation = exact.before_validation(run)
    run.data.wait.end()
    run.note_data("train", run.metrics.batch)  # which is forgotten while another loop's are filled
    end_on_signal(run)  # where ranks may have different numbers of batches, all end here or none
    evaluate(run, "val")
    run.resume.before_validation = None
    progress.at = PLATEAU
    run.stage = "train"
    run.data.wait.begin()
    agree_on_stop(run)


def set_epoch(run: Run) -> None:
    """Tell the samplers which epoch is read."""
    for loader in run.data.loaders["train"].readers:
        data.set_epoch(loader, run.progress.epoch)


def start_training_data(run: Run) -> Iterator[Item] | None:
    """Ask for the training data, begin to read it, and derive when validation is due.

    None if its reading is to begin with an epoch.
    """
    trainer = run.trainer
    if trainer.limit_train_batches == 0:
        return None
    # As by `estimated_stepping_batches`
    is_asked_for = "train" in run.data.loaders and not run.reload_due("train")
    loader = run.data.loaders["train"] if is_asked_for else run.load("train")
    goes_on = run.resume.loaders is not None
    set_epoch(run)
    if goes_on:
        batch = run.progress.batch if run.progress.in_epoch else 0
        loader.go_on(batch, run.resume.loaders or [], run.resume.counted_before)
        run.resume.loaders = None  # loaders asked for later begin by themselves
    begins = run.progress.in_epoch or not goes_on or (run.resume.own or {}).get("reading", False)
    batches = iter(loader) if begins else None
    run.data.is_reading = begins
    if count_batches(run, is_first=True) == 0:
        return None
    number = trainer.num_training_batches
    run.data.checks_validation = run.validates
    if trainer.loggers and 0 < number < trainer.log_every_n_steps and not trainer.fast_dev_run:
        warn(
            f"An epoch has {int(number)} training batches, fewer than"
            f" log_every_n_steps={trainer.log_every_n_steps}: step values are rarely logged. Lower"
            " log_every_n_steps to see them."
        )
    return batches


def count_batches(run: Run, is_first: bool = False) -> float:
    """Find how many batches the epoch has that comes, and after how many validation is due.

    Args:
        run: the run.
        is_first: whether to refuse an interval of validation that is longer than this epoch.

    Returns:
        How many batches.
    """
    loader = run.data.loaders["train"]
    loader.recount()
    number = run.trainer.num_training_batches = loader.num_batches()
    interval = run.trainer.val_check_interval
    if number and not is_first and isinstance(interval, int) and interval > number:
        run.data.val_check_batch = interval
    elif number:
        run.data.val_check_batch = val_check_batch(run, loader, number)
    return number
