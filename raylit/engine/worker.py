"""run_job: the life of one rank, top to bottom.

Launchers call it on every rank; it does not know how the processes were started.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import torch

from raylit.checkpoint import sharded
from raylit.checkpoint.plain import plain_items
from raylit.core.callback import Callback, Checkpoint, SavedCheckpoints, check_callbacks, in_order
from raylit.core.hooks import is_overridden, resolve
from raylit.core.hparams import CLASS_PATH
from raylit.core.job import Job, Result
from raylit.core.logger import as_loggers
from raylit.core.module import LightningModule
from raylit.core.returned import returned
from raylit.core.states import TrainerStatus
from raylit.core.trainer import JobTrainer
from raylit.engine import compile as compiled
from raylit.engine import evaluation, loop, optimizers, state
from raylit.engine.described import describe
from raylit.engine.profiled_run import make_run
from raylit.engine.run import STEP_OF, Calls, Run
from raylit.engine.signals import catching_signals
from raylit.errors import ConfigError, SearchDone, Stopped, WrongStateError, WrongTypeError
from raylit.metrics.metrics import to_numbers
from raylit.parallel import World, sync_batch_norm, unsync_batch_norm
from raylit.runtime import determinism
from raylit.runtime.batch import move_to
from raylit.runtime.messages import warn
from raylit.runtime.secrets import without_secret_values

NO_GRADIENT = "does not require grad and does not have a grad_fn"  # torch, of a loss
MANUAL = {"gradient_clip_val": "clipping", "accumulate_grad_batches": "accumulation"}


def run_job(job: Job) -> Result:
    """Do the work of one rank.

    Args:
        job: the work; its objects are used, and changed, as they are.

    Returns:
        What the rank has to say; rank 0's is the run's.

    Raises:
        BaseException: whatever the user's code raised, with rank, epoch and step added as a note.
    """
    # also in a process in which the Trainer was not made: a Ray worker, a trial, a validation
    undo_determinism = determinism.apply(job.trainer.deterministic, job.trainer.benchmark)
    strategy = job.trainer.strategy
    world = World.join(
        job.accelerator or job.trainer.accelerator,
        strategy.process_group_backend,
        strategy.timeout_s(),
        job.trainer.gpus,
    )
    run = make_run(job, world)
    run.loop = job.task or (loop.fit if job.fn == "fit" else evaluate)
    trainer = run.trainer
    module = run.module
    value: object = None
    try:
        attach(run)
        if job.fn == "fit" and trainer.async_validation is not None and run.validates:
            run.validations = trainer.async_validation.attach(run, job.validation_starter)
        prepare_data(run)
        set_up(run)
        # one for all: "last" may be another file by the time another rank looks
        trainer.ckpt_path = job.ckpt_path = world.broadcast_object(job.ckpt_path)
        loaded = state.read(run, job.ckpt_path) if job.ckpt_path else None
        if loaded is not None:
            state.restore_module(run, loaded)
            # Before anything is logged: a logger that begins has to know what comes again
            if job.fn == "fit":
                state.restore_loggers(run, loaded)
        place(run)
        try:
            if job.fn == "fit":
                run.fire("on_fit_start")
            log_hyperparameters(run)
            # as Lightning does, but before `restore_training`, which may put back gradients
            module.zero_grad()
            if job.fn == "fit" and loaded is not None:
                state.restore_training(run, loaded)
            # Else weights and optimizer states would stand in memory twice for the whole fit
            del loaded
            run.meet()
            # Only now: until there are batches, SIGTERM and Ctrl-C end the run at once
            with (
                catching_signals(run),
                torch.autograd.set_detect_anomaly(
                    trainer.detect_anomaly, check_nan=trainer.detect_anomaly
                ),
            ):
                value = run.loop(run)
            bring_home(run)
            if job.fn == "fit":
                run.fire("on_fit_end")
        except SearchDone:
            bring_home(run)
        tear_down(run)
        # Behind `bring_home`: under FSDP the module is whole only there
        keep_model(run)
        if job.fn == "fit" and world.is_zero:
            for logger in as_loggers(trainer.loggers):
                logger.log_curves(run.outcome.history.rows)
        finalize(run, "success")
        trainer.state.status = TrainerStatus.FINISHED
        return collect(run, value)
    except BaseException as error:
        fail(run, error)
        raise
    finally:
        if run.validations is not None:
            run.validations.close()
        detach(run)
        try:
            if job.trainer.checkpoint_io is not None:
                job.trainer.checkpoint_io.teardown()
        finally:
            # Whatever the user's teardown raises: the next job of this process needs both
            world.leave()
            undo_determinism()


def evaluate(run: Run) -> object:
    """Run validation, test or prediction; return its result for the user."""
    run.stage = fn = run.job.fn
    if fn == "predict":
        return evaluation.predict(run)
    return [
        to_numbers(values) for values in evaluation.evaluate(run, "test" if fn == "test" else "val")
    ]


def attach(run: Run) -> None:
    """Introduce trainer, module, datamodule and callbacks to each other."""
    trainer = run.trainer
    module = run.module
    trainer.begin(run)
    module.trainer = trainer
    if run.datamodule is not None:
        run.datamodule.trainer = trainer
    module.attach_log(None if trainer.barebones else run.metrics)
    own = run.call(module, "configure_callbacks")
    if own:
        own = list(own) if isinstance(own, (list, tuple)) else [own]
        check_callbacks(own, "configure_callbacks returned")
        # As in Lightning, the module's stand in for the Trainer's of their class or its parents
        kinds = {type(callback) for callback in own}
        trainer.callbacks = [
            callback
            for callback in trainer.callbacks
            if not any(issubclass(kind, type(callback)) for kind in kinds)
        ] + own
    trainer.callbacks = in_order(trainer.callbacks)
    for callback in trainer.callbacks:
        callback.attach_log(module.log)
    check(run)
    # Already now, and again in `place`: `on_exception` is to fire whatever fails before that
    run.hooks = resolve(trainer, module, trainer.callbacks, LightningModule, run.watch)


def check(run: Run) -> None:
    """Refuse a job that cannot work, before anything is started.

    Raises:
        ConfigError: with the missing method or the argument to change.
    """
    if run.job.fn == "fit":
        _check_fit(run)
    else:
        _check_evaluation(run)
    _check_state_keys(run.trainer)


def _check_fit(run: Run) -> None:
    trainer = run.trainer
    module = run.module
    name = type(module).__name__
    for method in ("training_step", "configure_optimizers"):
        if not is_overridden(method, module, LightningModule):
            raise ConfigError(
                f"No `{method}()` method defined: "
                f"{name} has no {method}(), which Trainer.fit needs. Define it in the module."
            )
    has_step = is_overridden("validation_step", module, LightningModule)
    if run.has_data("val") and not has_step:
        warn(f"There is validation data, but {name} has no validation_step: validation is skipped.")
    if not run.has_data("train") and trainer.limit_train_batches != 0:
        raise WrongTypeError(_no_data("fit", "train", "train_dataloaders"))
    if has_step and not run.has_data("val") and trainer.limit_val_batches != 0:
        warn(
            f"{name} has a validation_step, but no val_dataloader was given: validation is skipped."
        )
    if module.automatic_optimization:
        return
    for argument, given, instead in (
        (
            "gradient_clip_val",
            trainer.gradient_clip_val,
            "call self.clip_gradients(optimizer, ...).",
        ),
        (
            "accumulate_grad_batches",
            trainer.accumulate_grad_batches != 1,
            "step the optimizer every n batches.",
        ),
    ):
        if given:
            raise ConfigError(
                f"Automatic gradient {MANUAL[argument]} is not supported for manual"
                f" optimization: Trainer({argument}=...) has no effect there, where"
                f" training_step does it. Leave it out and {instead}"
            )


def _check_evaluation(run: Run) -> None:
    module = run.module
    fn = run.job.fn
    stage = {"validate": "val", "test": "test", "predict": "predict"}[fn]
    step = STEP_OF[stage]
    is_missing = (
        getattr(module, step) is None
        if fn == "predict"  # the base class has one
        else not is_overridden(step, module, LightningModule)
    )
    if is_missing and run.job.task is None:
        raise ConfigError(
            f"No `{step}()` method defined to run `Trainer.{fn}`. "
            f"{type(module).__name__} has no {step}(), which Trainer.{fn} needs. Define it in the"
            " module."
        )
    if not run.has_data(stage):
        called = run.job.task.name if run.job.task is not None else fn
        raise WrongTypeError(_no_data(called, stage, "dataloaders"))


def _check_state_keys(trainer: JobTrainer) -> None:
    # Those without a state of their own may be many: nothing of theirs could be mixed up
    keys = [
        callback.state_key
        for callback in trainer.callbacks
        if is_overridden("state_dict", callback, Callback)
    ]
    for key in keys:
        if keys.count(key) > 1:
            raise WrongStateError(
                "Found more than one stateful callback of a type: two of one key. "
                f"Two callbacks store their state under the same name {key!r}. Override state_key"
                " in one of them, or give it other arguments."
            )


def _no_data(fn: str, stage: str, argument: str) -> str:
    return (
        f"Trainer.{fn} has no data: An invalid dataloader was passed to"
        f" `Trainer.{fn}({argument}=...)`, None. Give it one of these: trainer.{fn}(model,"
        f" {argument}=DataLoader(...)); trainer.{fn}(model, datamodule=...) with"
        f" {stage}_dataloader() in the LightningDataModule; {stage}_dataloader() in the"
        " LightningModule."
    )


def prepare_data(run: Run) -> None:
    """Call `prepare_data` where it is to run: once per node, or once at all."""
    world = run.world
    for owner in (run.datamodule, run.module):
        if owner is not None and (
            world.local_rank == 0 if owner.prepare_data_per_node else world.rank == 0
        ):
            run.call(owner, "prepare_data")
    run.meet()


def set_up(run: Run) -> None:
    """Make the loggers ready, then fire `setup` and `configure_model`."""
    trainer = run.trainer
    module = run.module
    stage = run.job.fn
    if stage == "fit" and run.world.local_rank == 0:
        for logger in as_loggers(trainer.loggers):
            logger.watch_node(run.world.node_rank)
    for logger in as_loggers(trainer.loggers) if run.world.is_zero and stage != "predict" else ():
        # makes its files and connections before the workers of loaders are forked
        _ = logger.experiment
    if run.datamodule is not None:
        run.call(run.datamodule, "setup", stage=stage)
    for callback in trainer.callbacks:
        run.call(callback, "setup", trainer, module, stage=stage)
    run.call(module, "setup", stage=stage)
    run.meet()
    with module_dtype(run):
        run.call(module, "configure_model")


@contextlib.contextmanager
def module_dtype(run: Run) -> Iterator[None]:
    """Context in which new parameters get the format of `true` precisions."""
    if not run.precision.converts:
        yield
        return
    with run.precision.context():
        yield


def place(run: Run) -> None:
    """Bring the model to the device and into its precision, and make the optimizers.

    Also wrap it for data parallelism, and resolve the functions that the loop calls.
    """
    trainer = run.trainer
    module = run.module
    run.precision.convert_module(module)
    if trainer.sync_batchnorm and run.world.size > 1 and run.job.fn == "fit":
        sync_batch_norm(module, run.device)
    module.to(run.device)
    run.compiled = compiled.compile_modules(run)
    # Before the optimizers are made, which are to hold the parts and not the whole parameters
    run.strategy.shard(module, run.world, run.precision)
    if run.job.fn == "fit":
        run.metrics.hook = "configure_optimizers"
        configured, run.schedulers = optimizers.configure(module)
        run.metrics.hook = None
        run.meet()
        optimizers.use(run, configured)
    # As in Lightning, DDP wraps in a fit only: an evaluation has no gradients to bring into step
    if run.job.fn == "fit" or run.strategy.shards:
        run.wrap()
    run.resolve_calls()
    # hooks may have been set on the instances in setup
    run.hooks = resolve(trainer, module, trainer.callbacks, LightningModule, run.watch)


def log_hyperparameters(run: Run) -> None:
    """Send the hyperparameters of module and datamodule to the loggers.

    Raises:
        ConfigError: both have one of the same name with different values.
    """
    if not run.world.is_zero or run.job.fn == "predict":
        return
    hparams: dict[str, object] = {}
    for owner in (run.datamodule, run.module):
        if owner is None or not owner._log_hyperparams:
            continue
        secret = owner.secret_hparams
        for key, value in plain_items(dict(owner.hparams_initial))[0].items():
            if key in secret:
                continue
            if key in hparams and key != CLASS_PATH and not _same(hparams[key], value):
                raise WrongStateError(
                    f"Error while merging hparams: the keys [{key!r}] are present in both the"
                    " LightningModule's and LightningDataModule's hparams but have different"
                    f" values. The hyperparameter {key!r} is {hparams[key]!r} in the datamodule and"
                    f" {value!r} in the module. Make them equal, rename one, or keep one from the"
                    " loggers with save_hyperparameters(logger=False)."
                )
            hparams[key] = value
    if not run.trainer.loggers:
        return
    settings = without_secret_values(describe(run)) if run.job.fn == "fit" else {}
    for logger in as_loggers(run.trainer.loggers):
        if hparams:
            logger.log_hyperparams(without_secret_values(hparams))
        if settings:
            logger.log_settings(settings)
        if run.job.config:
            logger.log_config(run.job.config)
        logger.log_graph(run.module)
        logger.save()


def _same(one: object, other: object) -> bool:
    equal = one == other
    return bool(equal.all()) if isinstance(equal, torch.Tensor) else bool(equal)


def bring_home(run: Run) -> None:
    """Unwrap the model and bring it to the CPU."""
    run.step_module = None
    if run.strategy.saves_folders:
        sharded.wait(run.world)
    run.strategy.bring_home(run.module, run.optimizers)
    if run.device.type != "cpu":
        run.module.to("cpu")


def tear_down(run: Run) -> None:
    """Fire `teardown`."""
    module = run.module
    stage = run.job.fn
    if run.datamodule is not None:
        run.call(run.datamodule, "teardown", stage=stage)
    for callback in run.trainer.callbacks:
        run.call(callback, "teardown", run.trainer, module, stage=stage)
    run.call(module, "teardown", stage=stage)


def keep_model(run: Run) -> None:
    """Give the trained model to the loggers that want it; without it the fit is as good."""
    example = run.data.example
    if run.job.fn != "fit" or example is None:
        return
    if "train" not in run.data.noted and not run.job.ckpt_path:
        return  # nothing was trained
    module = run.module
    module.attach_log(None)  # a value logged in forward has no meaning here
    for logger in as_loggers(run.trainer.loggers):
        if logger.wants_model:
            try:
                with torch.no_grad():
                    inputs = module.forward_inputs(move_to(example, "cpu"))
                    logger.keep_model(module, inputs, run.progress.steps)
            except Exception as error:
                first = str(error).strip().partition("\n")[0]
                warn(f"The final model is not kept with the run: {type(error).__name__}: {first}")


def finalize(run: Run, status: str) -> None:
    """Finalize the loggers, so that they write their pending values."""
    if run.job.fn == "fit" and run.world.local_rank == 0:
        for logger in as_loggers(run.trainer.loggers):
            logger.leave_node()
    if run.world.is_zero:
        for logger in as_loggers(run.trainer.loggers):
            logger.finalize(status)


def fail(run: Run, error: BaseException) -> None:
    """Tell callbacks, datamodule and loggers of an exception, and say in it where it happened.

    The cursor tells whether the weights are between two steps: see `Progress.is_half_done`.
    """
    trainer = run.trainer
    progress = run.progress
    trainer.state.status = TrainerStatus.INTERRUPTED
    error.add_note(
        f"(raylit) rank {run.world.rank} of {run.world.size}, epoch {progress.epoch},"
        f" batch_idx {progress.batch_idx}, step {progress.steps}, in {run.stage or 'setup'}"
    )
    hints = (run.strategy.hint(run.module, error), _hint_of_no_batch(run), _hint_of_loss(error))
    for hint in hints:
        if hint is not None:
            error.add_note(f"(raylit) {hint}")
    try:
        if run.hooks:
            run.fire("on_exception", error)
        if run.datamodule is not None:
            run.call(run.datamodule, "on_exception", error)
    finally:
        # Also where a hook fails as well: the run of the loggers is not to be left open
        finalize(run, status_of(error))


def _hint_of_no_batch(run: Run) -> str | None:
    """Say it where an evaluation has no batch for this rank, which hooks may not expect."""
    stage = "val" if run.stage in ("validate", "sanity_check") else run.stage
    loader = run.data.loaders.get(stage or "")
    if stage == "train" or run.world.size == 1 or loader is None or loader.num_batches() > 0:
        return None
    return (
        f"Rank {run.world.rank} has no batch in this {stage} epoch: the data is dealt out to"
        f" {run.world.size} ranks, and no sample is read twice. Give more data, or let hooks that"
        " put together what the steps kept expect nothing."
    )


def _hint_of_loss(error: BaseException) -> str | None:
    if NO_GRADIENT not in str(error):
        return None
    return (
        "The loss depends on no parameter that learns. Look for a detach(), item() or"
        " torch.no_grad() on the way to it, or for a model that is frozen as a whole."
    )


def status_of(error: BaseException) -> str:
    """Return the end state that loggers are told for a run that `error` ended."""
    if isinstance(error, Stopped):
        return "success"
    return "killed" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "failed"


def collect(run: Run, value: object) -> Result:
    """Return the result of the run."""
    trainer = run.trainer
    progress = run.progress
    metrics = run.metrics
    metrics.refresh()
    for values in (metrics.callback, metrics.logged, metrics.progress_bar):
        # The process that gets the result may have no GPU, and could not read tensors on one
        values.update((name, tensor.cpu()) for name, tensor in values.items())
    accounts = (
        callback.saved_checkpoints()
        for callback in trainer.callbacks
        if isinstance(callback, Checkpoint)
    )
    saved = next((one for one in accounts if one is not None), SavedCheckpoints())
    is_logged = run.job.fn != "predict"  # to ask for a run would begin one
    loggers = as_loggers(trainer.loggers) if is_logged else ()
    result = Result(
        metrics=to_numbers(metrics.callback),
        best_model_path=saved.best_path,
        best_model_score=saved.best_score,
        last_model_path=saved.last_path,
        run_id=next((one.run_id for one in loggers if one.run_id), None),
        history=run.outcome.history.rows,
        epochs=progress.epoch,
        steps=progress.steps,
        data_wait=run.data.wait.share,
        value=_gather_predictions(run, value) if run.job.fn == "predict" else value,
    )
    if run.job.returns_state:
        result.state = {
            "module": {
                name: tensor.detach().cpu() for name, tensor in run.module.state_dict().items()
            },
            "callbacks": returned(trainer.callbacks),
            "progress": progress.state_dict(),
            "metrics": (metrics.callback, metrics.logged, metrics.progress_bar),
            "should_stop": trainer.should_stop,
            "num_training_batches": trainer.num_training_batches,
        }
    return result


def _gather_predictions(run: Run, value: object) -> object:
    """Put the ranks' predictions, each of a consecutive piece of the data, one after the other."""
    if run.world.size == 1 or value is None:
        return value
    # workers started for the job have no user code that would read what they return
    ranks = (
        run.world.gather_object(value)
        if run.job.returns_state
        else run.world.all_gather_object(value)
    )
    if ranks is None:
        return None
    if len(run.data.loaders["predict"].flattened) == 1:
        return [output for rank in ranks for output in rank]
    return [[output for rank in ranks for output in rank[index]] for index in range(len(ranks[0]))]


def detach(run: Run) -> None:
    """Cut the ties that would keep the run alive."""
    compiled.restore(run.compiled)
    for loader in run.data.loaders.values():
        loader.close()
    unsync_batch_norm(run.module)
    run.module.attach_log(None)
    for callback in run.trainer.callbacks:
        callback.attach_log(None)
    run.trainer.end(run)
    run.hooks = {}
    run.calls = Calls()
    run.wrapped_optimizers = []
    run.close()
    sys.stdout.flush()
