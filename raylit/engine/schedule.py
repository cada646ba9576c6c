"""When training stops and when validation is due."""

from __future__ import annotations

import time

from raylit.data.combined import CombinedLoader, length_of
from raylit.engine import exact
from raylit.engine.run import Run
from raylit.errors import ConfigError, DataError, Terminated
from raylit.runtime.messages import info, warn_once

# Batches between two agreements of the ranks on whether to stop: one small collective each.
STOP_CHECK_EVERY = 16
STOP_CHECK_EVERY_S = 2.0  # the longest time between two, where batches take long


def ends_training(run: Run) -> bool:
    """Tell whether training is over, and tell the user why."""
    trainer = run.trainer
    progress = run.progress
    if trainer.num_training_batches == 0:
        info("`Trainer.fit` stopped: No training batches.")
        return True
    if steps_reached(run):
        info(f"`Trainer.fit` stopped: `max_steps={trainer.max_steps}` reached.")
        return True
    if trainer.max_epochs not in (None, -1) and progress.epoch >= trainer.max_epochs:
        info(f"`Trainer.fit` stopped: `max_epochs={trainer.max_epochs}` reached.")
        return True
    return stops(run)


def stops(run: Run) -> bool:
    """Tell whether a stop was asked for that all ranks know of and that is allowed."""
    return run.trainer.should_stop and run.agreement.stop_agreed and may_stop(run)


def steps_reached(run: Run) -> bool:
    """Tell whether `max_steps` optimizer steps were taken."""
    return run.limits.max_steps != -1 and run.progress.steps >= run.limits.max_steps


def may_stop(run: Run) -> bool:
    """Tell whether `min_epochs` and `min_steps` allow to stop; say so once if not."""
    trainer = run.trainer
    allowed = run.progress.epoch >= (trainer.min_epochs or 0) and run.progress.steps >= (
        trainer.min_steps or 0
    )
    if not allowed and not run.agreement.said_minimum:
        run.agreement.said_minimum = True
        info(
            f"A stop was asked for, but min_epochs={trainer.min_epochs} or"
            f" min_steps={trainer.min_steps} is not reached: training goes on."
        )
    return allowed


def agree_on_stop(run: Run) -> None:
    """If any rank wants to stop, end, save or validate, have all do so.

    Before that no rank acts on its own: the others would wait for it.

    A notice that the machine of a rank is taken away counts as a SIGTERM.
    """
    agreement = run.agreement
    notice = run.job.preemption_notice
    recovery = run.recovery
    batches = run.progress.total_batches
    if notice is not None and notice.terminated:
        agreement.received_sigterm = True
    is_due = notice is not None and notice.is_due
    if run.world.size > 1:
        count, moment = agreement.last
        since = batches - count
        now = time.monotonic()
        took_s = (now - moment) / since if since else agreement.batch_s
        agreement.last = (batches, now)
        arrived = run.validations is not None and run.validations.is_ready
        mine = (
            run.trainer.should_stop,
            agreement.received_sigterm,
            agreement.received_sigint,
            recovery is not None and recovery.is_wanted,
            arrived,
            is_due,
            is_time_to_validate(run),
            took_s,
        )
        gathered = run.world.all_gather_object(mine)
        stop, sigterm, sigint, saves, arrived, is_due, validates, agreement.batch_s = map(
            max, zip(*gathered, strict=True)
        )
        run.trainer.should_stop = agreement.stop_agreed = stop
        agreement.signal_agreed = sigterm or sigint
        # a signal that comes meanwhile is for the next time
        agreement.received_sigterm = agreement.received_sigterm or sigterm
        agreement.received_sigint = agreement.received_sigint or sigint
        agreement.validates = validates
        if recovery is not None:
            recovery.is_due = recovery.is_due or saves
        agreement.pauses = agreement.pauses or agreement.signal_agreed or saves or arrived
        agreement.next_at = batches + max(
            1, min(STOP_CHECK_EVERY, int(STOP_CHECK_EVERY_S / agreement.batch_s))
        )
    elif notice is not None:
        agreement.next_at = batches + 1
        agreement.pauses = agreement.pauses or agreement.received_sigterm
    if notice is not None and agreement.asked_to_end:
        notice.given = True
    if is_due and notice is not None and notice.came():
        agreement.received_sigterm = agreement.signal_agreed = agreement.pauses = True


def pause(run: Run) -> None:
    """Take values, save and end between two batches, as far as that is due.

    The values are those of asynchronous validations, the checkpoint is one for recovery, and a
    signal ends the fit.

    Within an accumulation this waits for its end, if it can: a checkpoint would have to hold the
    gradients of all ranks. A signal does not wait where there is one rank alone, unless the number
    of workers may change: another number, with other windows, could not go on from there.

    Raises:
        Terminated, KeyboardInterrupt: it did.
    """
    agreement = run.agreement
    ends = agreement.asked_to_end
    recovery = run.recovery
    if exact.is_within_window(run, run.progress) and (
        not ends or run.world.size > 1 or run.job.rescale_plan is not None
    ):
        return
    agreement.pauses = False
    if run.validations is not None and len(run.validations):
        run.validations.collect()
        agree_on_stop(run)  # EarlyStopping may have judged them
    if recovery is not None and (ends or recovery.is_due):
        recovery.save(run, ending=ends)
        run.outcome.saved_at_end = ends
    end_on_signal(run)


def validate_elsewhere(run: Run) -> None:
    """Have the run as it is now validated without waiting for it.

    While too many validations have not come back, wait until one of them has.
    """
    validations = run.validations
    assert validations is not None
    while validations.is_full and not run.agreement.asked_to_end:
        warn_once(
            f"Training waits for its validations, of which {len(validations)} have not ended: they"
            " take longer than the training between them. Validate less often, or raise"
            " ValidationConfig(max_pending=...).",
            key="async validation waits",
        )
        validations.wait(0.5)
        validations.collect()
        agree_on_stop(run)
    validations.begin()


def await_validations(run: Run) -> None:
    """Training has ended; take the values of the validations that have not."""
    validations = run.validations
    if validations is None or not len(validations):
        return
    info(f"Training is done, but not all of its validations: waiting for {len(validations)}.")
    while len(validations):
        validations.wait(0.5)
        agree_on_stop(run)
        pause(run)


def end_on_signal(run: Run) -> None:
    """End the run if a signal came that all ranks know of.

    Raises:
        Terminated, KeyboardInterrupt: it did.
    """
    if run.agreement.asked_to_end:
        raise Terminated if run.agreement.received_sigterm else KeyboardInterrupt


def val_check_batch(run: Run, loader: CombinedLoader, number: float) -> float:
    """Return after how many training batches validation is due, of `number` in an epoch.

    Infinity: at its end.

    Raises:
        ConfigError: after more batches than an epoch has.
        DataError: after a fraction of an epoch whose length is not known.
    """
    trainer = run.trainer
    interval = run.trainer.val_check_interval
    if isinstance(interval, int):
        is_close = number < interval <= number + 2 * trainer.num_workers + 1
        if trainer.is_elastic and is_close and trainer.check_val_every_n_epoch is not None:
            # counted in batches of all the workers that there may be, it is the epoch's end; with
            # fewer, whose batches are more, the epoch is up to two of theirs shorter by rounding
            return number
        if (
            interval > number
            and trainer.check_val_every_n_epoch is not None
            and trainer.limit_val_batches > 0
        ):
            raise ConfigError(
                f"`val_check_interval` ({interval}) must be less than or equal to the number of the"
                f" training batches ({number}). "
                f"val_check_interval={interval} is more than the {number} training batches of an"
                " epoch. Lower it, set check_val_every_n_epoch=None to count batches over epochs,"
                " or limit_val_batches=0 for no validation."
            )
        return interval
    if any(length_of(one) == float("inf") for one in loader.flattened):
        if interval != 1.0 and trainer.val_check_time_s is None:
            raise DataError(
                "When using an IterableDataset for `train_dataloader`,"
                " `Trainer(val_check_interval)` must be"
                " time based, `1.0` or an int. "
                f"val_check_interval={interval} is a fraction of an epoch, but the training loader"
                " has no length. Give a number."
            )
        return float("inf")
    return max(1, int(number * interval))


def validates_in_epoch(run: Run) -> bool:
    """Tell whether validation may run in the epoch that begins."""
    every = run.trainer.check_val_every_n_epoch
    return run.validates and (every is None or (run.progress.epoch + 1) % every == 0)


def is_time_to_validate(run: Run) -> bool:
    """Tell whether `val_check_interval`, if it is a time, has passed on this rank."""
    limit_s = run.trainer.val_check_time_s
    return limit_s is not None and time.monotonic() - run.data.last_validation >= limit_s


def validation_due(run: Run, *, ends_early: bool = False) -> bool:
    """Tell whether validation runs after the batch just trained on.

    Args:
        run: the run.
        ends_early: whether the epoch has turned out to end with that batch, after which what was
            due by its number has run.
    """
    trainer = run.trainer
    progress = run.progress
    every = run.data.val_check_batch
    if not validates_in_epoch(run):
        return False
    if not ends_early and stops(run):
        return True
    if trainer.val_check_time_s is not None:
        if run.world.size > 1:  # else the ranks would go by different clocks
            return run.agreement.validates
        return is_time_to_validate(run)
    if every == float("inf"):
        return progress.is_last_batch
    if trainer.check_val_every_n_epoch is None:
        return not ends_early and progress.total_batches % every == 0
    is_due = progress.batch % every == 0
    if progress.is_last_batch and progress.batch < trainer.num_training_batches and not is_due:
        return trainer.num_training_batches % every == 0  # as it was to be after the last batch
    return is_due and not ends_early
