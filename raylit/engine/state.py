"""The state of a run: how it goes into a checkpoint, and how it comes back.

The layout is Lightning 2.6's, so that either framework opens the other's files; raylit's own keys
stand beside it under `raylit`. All of it is tensors and plain data.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, cast

import torch

from raylit.checkpoint import foreign, sharded
from raylit.checkpoint.format import LIGHTNING_FORMAT, VERSION_KEY, load
from raylit.checkpoint.plain import plain_items
from raylit.core import importable, objects, omega
from raylit.core.callback import Checkpoint, checkpoint_folder
from raylit.core.logger import as_loggers
from raylit.core.progress import BACKWARD, BATCH, FORWARD, WITH_GRADIENTS, Progress
from raylit.engine import exact
from raylit.engine.history import History
from raylit.engine.lightning_progress import loops_of, progress_of, progress_of_counters
from raylit.errors import CheckpointError, ConfigError, RaylitError, UnsavableError
from raylit.runtime.aliases import CheckpointDict, StateDict, UserOptimizer, UserScheduler
from raylit.runtime.batch import move_to
from raylit.runtime.messages import info, warn, warn_once

if TYPE_CHECKING:
    from raylit.core.hparams import HasHyperparameters
    from raylit.engine.run import Run


# the hooks in which training_step has run, or does so
AFTER_STEP = (
    "training_step",
    "on_before_zero_grad",
    "optimizer_zero_grad",
    "on_before_backward",
    "backward",
    "on_after_backward",
    "on_before_optimizer_step",
)
KEPT_NAMES = 7  # of fits that this one goes on from: of those before them nothing is left


def dump(
    run: Run,
    weights_only: bool = False,
    together: bool = True,
    parts: bool = False,
    lenient: bool = False,
) -> CheckpointDict:
    """Return the checkpoint of a run: its state copied into plain data, ready to be written.

    Args:
        run: the run.
        weights_only: leave out all that only a continued training needs.
        together: whether all ranks come here, so that each can give what it alone knows.
        parts: leave tensors that are spread over the ranks as they are, for a sharded checkpoint;
            else rank 0 gets them whole.
        lenient: leave out what is no plain data, and say so, instead of raising.

    Raises:
        UnsavableError: it holds what is no plain data, this rank alone does not have the whole of
            it, or a backward pass runs whose gradients are added to others.
    """
    trainer = run.trainer
    module = run.module
    progress = run.progress.to_go_on_from(automatic=module.automatic_optimization)
    if run.strategy.shards and not together:
        raise UnsavableError(
            "Rank 0 alone cannot save a sharded model: each rank holds a part of it."
        )
    run.save_loggers()
    if not lenient:  # else it is written by a thread, which does so
        run.settle_loggers()
    # After a forward pass without a backward pass FSDP still has whole parameters, not parts
    run.strategy.settle(module)
    whole: Callable[[StateDict], StateDict] = (lambda state: state) if parts else run.strategy.whole
    _check_place(run, progress, weights_only)
    checkpoint: CheckpointDict = {
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
        checkpoint |= _training_state(run, whole)
    owners = [module] if run.datamodule is None else [module, run.datamodule]
    described = {
        owner.CHECKPOINT_HYPER_PARAMS_KEY: put_hparams(checkpoint, owner) for owner in owners
    }
    by_path = {key: one for key, one in described.items() if one}
    if run.datamodule is not None:
        state = run.call(run.datamodule, "state_dict")
        if state:
            checkpoint[type(run.datamodule).__qualname__] = state
    if not weights_only:
        for callback in trainer.callbacks:
            run.call(callback, "on_save_checkpoint", trainer, module, checkpoint)
    run.call(module, "on_save_checkpoint", checkpoint)
    checkpoint["raylit"] = _own_part(run, progress, owners) | {"hyper_parameters": by_path}
    if run.job.fn == "fit" and not weights_only:
        own = exact.dump(run, progress)
        # A place for each rank: from their number who reads it knows how many ranks wrote it
        absent: list[None] = [None] * (run.world.size - 1)
        checkpoint["raylit"]["ranks"] = (
            run.world.all_gather_object(own) if together else [own, *absent]
        )
    # All of it once more, since hooks and callbacks too may have put in tensors that are spread
    found = foreign.split(whole(checkpoint))
    known: set[foreign.Place] = {(key, name) for key, names in by_path.items() for name in names}
    others = {place: value for place, value in found.objects.items() if place[:2] not in known}
    kept = found.plain["raylit"]["objects"] = objects.describe_all(others, type(module))
    known |= {tuple(place) for place, _ in kept}
    _say_foreign(run, found, known, lenient)
    return found.plain


def _check_place(run: Run, progress: Progress, weights_only: bool) -> None:
    """Refuse a save in a place that a fit cannot go on from; warn where it goes on otherwise."""
    if run.progress.at == BACKWARD and not weights_only and exact.is_within_window(run, progress):
        earlier = progress.batch % run.trainer.accumulate_grad_batches
        raise UnsavableError(
            "A checkpoint was to be saved in the backward pass of a batch whose gradients are added"
            f" to those of {earlier} earlier ones, of which"
            " a fit that goes on would add this batch's twice. Save in on_train_batch_end, or with"
            " weights_only=True."
        )
    if run.progress.at in (FORWARD, BACKWARD) and run.metrics.hook in AFTER_STEP:
        warn_once(
            f"A checkpoint was saved within a batch, in {run.metrics.hook}, before its gradients"
            " could be kept: a fit that goes on from it trains on the whole batch, with other"
            " random numbers, and what it has logged counts twice in its epoch. Save in"
            " on_train_batch_end to go on exactly."
        )


def _training_state(run: Run, whole: Callable[[StateDict], StateDict]) -> StateDict:
    """Return the state that a resumed fit needs besides the weights, under Lightning's names."""
    # Empty states are left out, as by Lightning: without them no fit that goes on warns that the
    # callback is gone
    states = ((callback.state_key, callback.state_dict()) for callback in run.trainer.callbacks)
    found: StateDict = {
        "callbacks": {key: state for key, state in states if state},
        "optimizer_states": [whole(optimizer.state_dict()) for optimizer in run.optimizers],
        "lr_schedulers": [scheduler_state(config.scheduler) for config in run.schedulers],
    }
    if run.precision.scaler is not None:
        found["MixedPrecision"] = run.precision.scaler.state_dict()
    return found


def _own_part(run: Run, progress: Progress, owners: Sequence[HasHyperparameters]) -> StateDict:
    """Return the part of any checkpoint that raylit alone reads, with or without training state."""
    loggers = as_loggers(run.trainer.loggers)
    configs = ((owner.CHECKPOINT_HYPER_PARAMS_KEY, omega.places(owner.hparams)) for owner in owners)
    return {
        "progress": progress.state_dict(),
        "history": run.outcome.history.state(checkpoint_folder(run.trainer)),
        "configs": {key: places for key, places in configs if places},
        "job": run.job.id,
        "module": f"{type(run.module).__module__}.{type(run.module).__qualname__}",
        "lineage": run.resume.lineage,
        "validations": [] if run.validations is None else run.validations.state(),
        "run_id": next((logger.run_id for logger in loggers if logger.run_id), None),
        "loggers": [logger.state_dict() for logger in loggers if run.world.is_zero],
    }


def put_hparams(checkpoint: CheckpointDict, owner: HasHyperparameters) -> dict[str, object]:
    """Put the hyperparameters of a module or datamodule into a checkpoint, but for its secrets.

    Returns:
        What `importable.describe` says of those that are no plain data, where it can.
    """
    if not owner.hparams:
        return {}
    secret = owner.secret_hparams
    kept = {name: one for name, one in owner.hparams.items() if name not in secret}
    plain, others = plain_items(kept)
    checkpoint[owner.CHECKPOINT_HYPER_PARAMS_NAME] = owner._hparams_name
    checkpoint[owner.CHECKPOINT_HYPER_PARAMS_KEY] = {
        name: plain.get(name, one) for name, one in kept.items()
    }
    if secret:
        warn_once(
            f"The hyperparameters {', '.join(secret)} of {type(owner).__name__} look like secrets,"
            " and are neither stored in checkpoints nor logged: load_from_checkpoint will want them"
            " as arguments. Read them from the environment instead; or ask for them by name, as in"
            f" save_hyperparameters({secret[0]!r})."
        )
    found = {name: importable.describe(owner.hparams[name], type(owner)) for name in others}
    return plain_items({name: one for name, one in found.items() if one is not None})[0]


def _say_foreign(
    run: Run, found: foreign.SplitCheckpoint, known: set[foreign.Place], lenient: bool
) -> None:
    """Say once which parts of a checkpoint are pickled, and which cannot be and are left out.

    Args:
        run: the run.
        found: the checkpoint, taken apart.
        known: places of hyperparameters that come back without being unpickled.
        lenient: whether what cannot be pickled is left out, wherever it stands.

    Raises:
        UnsavableError: there is such an object and the Trainer wants none, or it cannot be
            pickled and is no hyperparameter.
    """
    hparams = {owner.CHECKPOINT_HYPER_PARAMS_KEY for owner in (run.module, run.datamodule) if owner}
    pickled = [foreign.name_of(place) for place in found.objects if not {place, place[:2]} & known]
    refused = {place: reason for place, reason in found.refused.items() if place[:2] not in known}
    if run.trainer.strict_checkpoints and (pickled or refused):
        raise UnsavableError(
            f"The checkpoint holds objects that are no plain data under:"
            f" {', '.join([*pickled, *map(foreign.name_of, refused)])}. With"
            " Trainer(strict_checkpoints=True) checkpoints hold tensors, numbers, strings and"
            " containers of them alone, so that all of one comes back without running code. Look at"
            " state_dict and on_save_checkpoint of your callbacks, optimizers and module, and leave"
            " hyperparameters out with save_hyperparameters(ignore=[...])."
        )
    for place, reason in refused.items():
        if place[0] not in hparams and not lenient:
            raise UnsavableError(
                f"The checkpoint holds an object under {foreign.name_of(place)} that cannot be"
                f" pickled ({reason}). Put in tensors, numbers, strings and containers of them, or"
                " objects of classes at the top level of a module."
            )
        if len(place) > 1:  # what is left of a state is none
            found.plain[place[0]].pop(place[1], None)
    left_out = ", ".join(map(foreign.name_of, refused))
    if left_out and left_out not in run.outcome.said:
        run.outcome.said.add(left_out)
        warn(
            f"Checkpoints leave out {left_out}, which"
            f" {'is' if len(refused) == 1 else 'are'} neither plain data (tensors, numbers, strings"
            " and containers of them) nor can be pickled: of hyperparameters load_from_checkpoint"
            " will want them as arguments, and a fit that goes on begins without the others. Leave"
            " them out with save_hyperparameters(ignore=[...]), and return plain data from"
            " state_dict and on_save_checkpoint."
        )
    names = ", ".join(pickled)
    if names and names not in run.outcome.said:
        run.outcome.said.add(names)
        warn(
            f"Checkpoints hold objects that are no plain data: {names}. They are pickled, in a part"
            " of their own that comes back only where the file may run code: with"
            " load_from_checkpoint(path, weights_only=False), fit(ckpt_path=path,"
            " weights_only=False) and the like. Trainer(strict_checkpoints=True) refuses them at"
            " once."
        )


def read(run: Run, path: str) -> StateDict:
    """Load the checkpoint at `path` to the CPU, unless that was done when it was looked for.

    Of a sharded one the states of optimizers are left for `restore_training`.
    """
    info(f"Restoring states from the checkpoint path at {path}")
    opened = run.job.opened.get(path)
    # Each holds the weights of a file in memory, and none is asked for again
    run.job.opened.clear()
    if opened is not None:
        with explaining_damage(run, "the list of objects"):
            _say_left_aside(run, opened, path)
        return opened
    allowed = run.job.weights_only
    io = run.trainer.checkpoint_io
    if os.path.isdir(path):
        found = sharded.load(path, weights_only=allowed, leaves_optimizers=True)
    elif io is not None and not is_for_recovery(run, path):
        found = io.load_checkpoint(path, map_location="cpu", weights_only=allowed)
    else:
        found = load(path, map_location="cpu", weights_only=allowed)
    with explaining_damage(run, "the list of objects"):
        _say_left_aside(run, found, path)
    return found


def is_for_recovery(run: Run, path: str) -> bool:
    """Tell whether a RecoveryCheckpoint wrote a file, which is always in raylit's own format."""
    folders = [
        saver.resolve_dirpath(run.trainer)
        for saver in run.trainer.savers
        if not isinstance(saver, Checkpoint)
    ]
    return os.path.dirname(path) in folders


def _say_left_aside(run: Run, checkpoint: CheckpointDict, path: str) -> None:
    """Warn of objects in a checkpoint that were not unpickled."""
    hparams = {owner.CHECKPOINT_HYPER_PARAMS_KEY for owner in (run.module, run.datamodule) if owner}
    described = objects.places(checkpoint)
    left = [
        foreign.name_of(place)
        for place in foreign.places(checkpoint)
        if place[0] not in hparams and place not in described
    ]
    if left:  # hyperparameters are those of the objects that the user has made
        warn(
            f"The checkpoint {path} holds objects under {', '.join(left)}, which only running code"
            " from the file would bring back: they are left aside. If you wrote it yourself and"
            " trust it, pass weights_only=False."
        )


def restore_module(run: Run, checkpoint: CheckpointDict) -> None:
    """Bring back the weights, the datamodule's and the callbacks' state."""
    trainer = run.trainer
    module = run.module
    # Before the hook, which looks for the objects where its `on_save_checkpoint` had put them
    objects.put_back(checkpoint, type(module))
    with foreign.explaining(checkpoint):
        run.call(module, "on_load_checkpoint", checkpoint)
    if "state_dict" not in checkpoint:
        raise CheckpointError(
            f"{run.job.ckpt_path} holds no state_dict; it has:"
            f" {', '.join(map(str, checkpoint)) or 'nothing'}. Give a checkpoint that a Trainer"
            " saved; load weights alone into the module yourself, with load_state_dict."
        )
    run.precision.convert_module(module)  # else weights in float64 would be rounded on their way
    load_weights(run, checkpoint["state_dict"])
    left = foreign.places(checkpoint)  # a state without them is none
    own = None if run.datamodule is None else type(run.datamodule).__qualname__
    if own in checkpoint and not any(place[0] == own for place in left):
        run.call(run.datamodule, "load_state_dict", checkpoint[own])
    # Of weights only they are told nothing, as they were when it was saved
    if "callbacks" not in checkpoint:
        return
    for callback in trainer.callbacks:
        run.call(callback, "on_load_checkpoint", trainer, module, checkpoint)
    stored = dict(checkpoint["callbacks"])
    incomplete = {place[1] for place in left if place[0] == "callbacks"}
    for callback in trainer.callbacks:
        state = stored.pop(callback.state_key, None)
        if state is None or callback.state_key in incomplete:
            continue
        # An error in a user's `load_state_dict` is the user's to see: it says nothing of the file
        is_own = type(callback).__module__.startswith("raylit.")
        name = f"the state of {type(callback).__name__}"
        with explaining_damage(run, name) if is_own else contextlib.nullcontext():
            callback.load_state_dict(state)
    if stored and run.job.fn == "fit":
        warn(
            "The checkpoint holds the state of callbacks that the Trainer does not have:"
            f" {', '.join(map(str, stored))}. Add them to go on exactly."
        )


def load_weights(run: Run, weights: StateDict) -> None:
    """Give the module its weights.

    Raises:
        CheckpointError: they are another module's.
    """
    module = run.module
    try:
        module.load_state_dict(weights, strict=module.strict_loading)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"The weights in {run.job.ckpt_path} do not fit {type(module).__name__}:"
            f" {str(error).rstrip(' .')}. Give"
            " the arguments that the model had when it was saved, or a checkpoint of this model."
        ) from error


def restore_training(run: Run, checkpoint: CheckpointDict) -> None:
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
        with explaining_mismatch(run, f"the optimizer {type(optimizer).__name__}"):
            # Before the load: torch adds settings to the defaults of LBFGS, Adafactor and Muon that
            # these do not have, and which then seemed to be missing
            needed = settings_of_groups(optimizer)
            load_optimizer(
                optimizer,
                run.strategy.optimizer_state(optimizer, sharded.read_optimizer(optimizer, state)),
            )
            check_groups(optimizer, needed)
    stored = checkpoint["lr_schedulers"]
    if len(stored) != len(run.schedulers) and not run.replaces_schedulers:
        warn(
            f"{run.job.ckpt_path} holds {len(stored)} learning-rate schedulers, but"
            f" configure_optimizers returned {len(run.schedulers)}: the first"
            f" {min(len(stored), len(run.schedulers))} go on, and of the rest those stored are lost"
            " and those returned begin anew. Return as many, in the same order, to go on exactly."
        )
    for config, state in zip(run.schedulers, stored, strict=False):
        with explaining_mismatch(run, f"the scheduler {type(config.scheduler).__name__}"):
            load_scheduler(config.scheduler, state)
    if run.precision.scaler is not None and "MixedPrecision" in checkpoint:
        run.precision.scaler.load_state_dict(checkpoint["MixedPrecision"])
    with explaining_damage(run, "where the fit was"):
        _restore_place(run, checkpoint)


def restore_loggers(run: Run, checkpoint: CheckpointDict) -> None:
    """Tell the loggers where the fit goes on. On rank 0."""
    if not run.world.is_zero:
        return
    loggers = as_loggers(run.trainer.loggers)
    kept = checkpoint.get("raylit", {}).get("loggers", [])
    # By their places, since loggers have no keys; there may be more or fewer than before
    for logger, stored_of_it in zip(loggers, kept, strict=False):
        logger.load_state_dict(stored_of_it)


def _restore_place(run: Run, checkpoint: CheckpointDict) -> None:
    """Restore the progress, the logged values, and the state of this rank alone."""
    run.progress.load_state_dict(cursor_of(checkpoint))
    check_limits(run)
    own = checkpoint.get("raylit", {})
    run.outcome.history = History.from_state(own.get("history", []), str(run.job.ckpt_path))
    outstanding = own.get("validations", [])
    if outstanding and run.validations is None:
        steps = ", ".join(str(one["progress"]["steps"]) for one in outstanding)
        warn(
            f"Asynchronous validations, of step {steps}, had not ended when the checkpoint was"
            " saved. Without async_validation they are lost."
        )
    elif run.validations is not None:
        run.validations.go_on(outstanding)
    if run.job.rescale_plan is not None:
        run.resume.counted_before = run.job.rescale_plan.go_on(
            run.progress, run.trainer.accumulate_grad_batches, own.get("ranks") or []
        )
    resume = run.resume
    resume.resumed = True
    resume.lineage = [*own.get("lineage", [])[-KEPT_NAMES:], *resume.lineage]
    resume.own = exact.state_of_rank(run, checkpoint)
    # Empty, not None: loaders still begin at the right batch, which is exact for data in order
    resume.loaders = []
    # Lightning's files hold no logged values: that one is missing is then no fault of the user's
    # All ranks or none: what one of them takes for a fault ends the fit, and the others would wait
    resume.has_values = own.get("ranks") is not None and not exact.is_of_one_alone(run, checkpoint)
    if resume.own is not None:
        resume.loaders = resume.own["loaders"]
        resume.loader_epochs = dict(resume.own.get("loader_epochs", {}))
        resume.has_gradients = "output" in resume.own
        exact.restore(run, resume.own)
    if run.progress.at in WITH_GRADIENTS.values() and not resume.has_gradients:
        run.progress.at = BATCH  # they were those of other ranks, which had other batches


def cursor_of(checkpoint: CheckpointDict) -> StateDict:
    """Return the state of the Progress that a checkpoint holds, whoever wrote it."""
    own = checkpoint.get("raylit", {}).get("progress")
    if own is None:
        return progress_of(checkpoint["loops"], checkpoint["global_step"])
    if "at" not in own:
        return progress_of_counters(own, checkpoint["raylit"]["stage"])
    return own  # type: ignore[no-any-return]


def check_limits(run: Run) -> None:
    """Check that the fit, where it goes on, is not beyond the Trainer's limits.

    Raises:
        ConfigError: it is.
    """
    progress = run.progress
    most = run.trainer.max_epochs
    begun = progress.epoch + progress.in_epoch
    if most not in (None, -1) and begun > most:
        raise ConfigError(
            f"{run.job.ckpt_path} is of a fit in its epoch {begun - 1}, counted from 0, but"
            f" Trainer(max_epochs={most}) ends after {most}. Give a max_epochs of at least {begun},"
            " or an earlier checkpoint."
        )


@contextlib.contextmanager
def explaining_mismatch(run: Run, what: str) -> Iterator[None]:
    """Context in which a stored state that does not fit raises a CheckpointError.

    Raises:
        CheckpointError: it does not.
    """
    try:
        yield
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{run.job.ckpt_path} was saved with another than {what} of this fit, or with other"
            f" parameters ({type(error).__name__}: {error}). Return from configure_optimizers what"
            " the fit had that saved it; or start anew from its weights, with"
            f" {type(run.module).__name__}.load_from_checkpoint(path) and without ckpt_path."
        ) from error


@contextlib.contextmanager
def explaining_damage(run: Run, what: str) -> Iterator[None]:
    """Say of a checkpoint that it is damaged where a part of raylit's own is not as it was written.

    Raises:
        CheckpointError: it is not.
    """
    try:
        yield
    except RaylitError:
        # Some are a ValueError or a TypeError too, and say by themselves what is wrong
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{run.job.ckpt_path} is damaged, or of another version: {what} in it is not as it is"
            f" written ({type(error).__name__}: {error}). Give an earlier checkpoint; or start anew"
            f" from its weights, with {type(run.module).__name__}.load_from_checkpoint(path) and"
            " without ckpt_path."
        ) from error


def settings_of_groups(optimizer: UserOptimizer) -> list[set[str]]:
    """Return, for each group of an optimizer, the names of its own settings.

    Asked before a state is loaded: that puts the groups of the checkpoint in their place, and
    adds to `defaults` names which optimizers without such a setting (LBFGS) do not have.
    """
    own = getattr(optimizer, "defaults", {})
    return [{name for name in own if name in group} for group in optimizer.param_groups]


def check_groups(optimizer: UserOptimizer, needed: list[set[str]]) -> None:
    """Check that the groups of an optimizer have all settings that a step needs.

    Args:
        optimizer: with its state loaded.
        needed: `settings_of_groups`, of before.

    Raises:
        KeyError: it does not.
    """
    for group, names in zip(optimizer.param_groups, needed, strict=True):
        missing = sorted(name for name in names if name not in group)
        if missing:
            raise KeyError(f"its groups have no {', '.join(missing)}")


def scheduler_state(scheduler: UserScheduler) -> StateDict:
    """Return the state of a scheduler, but for functions, which its constructor makes anew.

    SWALR of torch 2.6 has one there, as schedulers have that keep a function they were given.
    """
    return cast(StateDict, _without_functions(scheduler.state_dict()))


def _without_functions(state: object) -> object:
    if isinstance(state, dict):
        kept = {key: one for key, one in state.items() if not inspect.isroutine(one)}
        return {key: _without_functions(one) for key, one in kept.items()}
    if isinstance(state, list):  # of the schedulers in a SequentialLR
        return [_without_functions(one) for one in state]
    return state


def load_scheduler(scheduler: UserScheduler, state: StateDict) -> None:
    """Give a scheduler back its state.

    A checkpoint holds a Counter, such as the milestones of MultiStepLR, as a dict.
    """
    parts = [scheduler, *getattr(scheduler, "_schedulers", ())]
    counters = [
        (part, name)
        for part in parts
        for name, value in vars(part).items()
        if isinstance(value, Counter)
    ]
    scheduler.load_state_dict(state)
    for part, name in counters:
        setattr(part, name, Counter(getattr(part, name)))


def load_optimizer(optimizer: UserOptimizer, state: StateDict) -> None:
    """Give an optimizer back its state, which may come from another device."""
    optimizer.load_state_dict(state)
    for parameter, values in getattr(optimizer, "state", {}).items():
        if isinstance(values, dict) and isinstance(parameter, torch.Tensor):
            optimizer.state[parameter] = {
                # Stays where torch puts it: on the CPU, read there without waiting for a GPU
                key: value if key == "step" else move_to(value, parameter.device, False)
                for key, value in values.items()
            }
