"""Checks of a model before it is trained.

They find faults that a fit would not report, or would report late.

    check
        copies of model and datamodule, one at a time; random states are put back afterwards
        one batch through training, the optimizers and validation           probe.FirstStep
        reading a few batches of the training data
        several batches, as a fit would; the memory that they need          probe.SeveralBatches
        some tens of steps on one batch                                     probe.OneBatch
        if the loss did not fall: again with Adam, to tell which is to blame    probe.OneBatch
        findings from the notes                                             judge.py

Source: Karpathy, "A Recipe for Training Neural Networks", 2019,
http://karpathy.github.io/2019/04/25/recipe/
"""

from __future__ import annotations

import copy
import gc
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch.optim.lr_scheduler import ConstantLR
from torch.utils._pytree import tree_leaves

from raylit.callbacks import ModelCheckpoint
from raylit.check import judge
from raylit.check.judge import ADAM_LR, NO_STEP, ModelFacts
from raylit.check.probe import (
    MAX_STEPS,
    WATCHED_STEPS,
    FirstStep,
    OneBatch,
    Repeated,
    SeveralBatches,
    has_fallen,
    still_falls,
    watch,
)
from raylit.check.report import CheckReport as CheckReport
from raylit.check.report import Finding as Finding
from raylit.core.callback import Callback
from raylit.data import CombinedLoader
from raylit.engine.run import Run
from raylit.engine.worker import NO_GRADIENT
from raylit.errors import ConfigError, DataError
from raylit.loggers.dummy import DummyLogger
from raylit.runtime.aliases import Batch
from raylit.runtime.rng import isolated

if TYPE_CHECKING:
    from raylit.core.datamodule import LightningDataModule
    from raylit.core.module import LightningModule
    from raylit.core.optimizer import LRSchedulerConfig
    from raylit.core.trainer import JobTrainer

READ_BATCHES = 8
READ_TIME_S = 5.0
FAR_EPOCH = 1000  # as late as any, of a fit that has no last one
LARGE_BYTES = 2**26  # of a model, for whose copies it is worth a while to look
MOST_CALLS = 2000  # of a scheduler, to see where it leads


def check(
    trainer: JobTrainer,
    model: LightningModule,
    data: dict[str, object],
    datamodule: LightningDataModule | None,
) -> CheckReport:
    """Check a model; see `Trainer.check`.

    Args:
        trainer: its settings hold; its callbacks and loggers are left out.
        model: left as it is.
        data: loaders by stage, `train` and `val`.
        datamodule: left as it is.

    Raises:
        ConfigError: the model cannot be copied, or this is one of several processes.
        DataError: there is no training data, or only an iterator, which can be read once.
        Exception: whatever the user's code raised.
    """
    _refuse_what_cannot_be_checked(data)
    data = {
        stage: copy.copy(given) if isinstance(given, CombinedLoader) else given
        for stage, given in data.items()
    }
    if datamodule is not None:
        datamodule = _copy_of_data(datamodule)
    with (
        isolated(),
        generators_kept(data),
        torch.compiler.set_stance("force_eager"),  # compiled parts could not be watched
        tempfile.TemporaryDirectory(prefix="raylit-check-") as folder,
    ):
        probed = _settings(trainer)
        savers = [
            _resting(one, folder)
            for one in trainer.checkpoint_callbacks
            if isinstance(one, ModelCheckpoint)
        ]
        first = FirstStep()
        module = _copy(model)
        about = ModelFacts(
            [name for name, one in module.named_parameters() if one.requires_grad],
            module.automatic_optimization,
            trainer.strategy.find_unused_parameters,
        )
        watch(module, first.notes)
        watcher = probed.replaced(
            callbacks=[first, *savers],
            limit_val_batches=trainer.limit_val_batches and 1,
            val_check_interval=1,
        )
        try:
            watcher.fit(module, data.get("train"), data.get("val"), datamodule)
        except RuntimeError as error:
            if NO_GRADIENT not in str(error):
                raise
            return CheckReport((judge.of_detached_loss(),))
        if first.batch is None:
            raise DataError("There is no batch of training data to check the model with.")
        is_gpu = watcher.run is not None and watcher.run.world.device.type == "cuda"
        batches, read_s, has_workers = _read(watcher)
        del module, watcher
        _let_go(model)
        has_end = trainer.max_epochs not in (None, -1)
        last_epoch = int(trainer.max_epochs or 0) - 1 if has_end else FAR_EPOCH
        several = SeveralBatches(last_epoch, first.logged)
        _train_on_several(several, probed, savers, _copy(model), data, datamodule)
        _let_go(model)
        one = _train_on(first.batch, probed, savers, _copy(model), datamodule)
        odd = _odd_schedule(one.schedulers, trainer, batches)
        num_schedulers = len(one.schedulers)
        one.schedulers = []  # they hold the copy
        _let_go(model)
        with_adam = None
        if (
            one.losses
            and not has_fallen(one.losses)
            and not still_falls(one.losses)
            and model.automatic_optimization
        ):
            copied = _with_adam(_copy(model), num_schedulers)
            with_adam = _train_on(first.batch, probed, savers, copied, datamodule)
    return CheckReport(
        (
            judge.of_steps(first),
            judge.of_gradients(about, first, several, one),
            *judge.of_inputs(first.inputs),
            judge.of_optimizers(first, several, one, about, odd),
            judge.of_finite(first, several),
            judge.of_samples(first),
            judge.of_loss(first.loss, first.notes, one.notes),
            judge.of_one_batch(one, with_adam, about.is_automatic),
            judge.of_time(one.time_per_step_s, batches, read_s, has_workers),
            judge.of_memory(several, is_gpu),
        )
    )


# ---- what is run ----


def _refuse_what_cannot_be_checked(data: dict[str, object]) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "A check runs in one process, but WORLD_SIZE says that there are several. Call it"
            " without torchrun."
        )
    for stage, given in data.items():
        if any(hasattr(leaf, "__next__") for leaf in tree_leaves(given)):
            raise DataError(
                f"The {stage} data is an iterator, whose batches can be read once: a check would"
                " take them from the training. Give a DataLoader or an iterable."
            )


def _settings(trainer: JobTrainer) -> JobTrainer:
    """Return a Trainer for the same work in this process, without files and limits of its own."""
    max_epochs = -1 if trainer.max_epochs in (None, -1) else max(int(trainer.max_epochs or 0), 2)
    max_steps = max(trainer.max_steps, 100 * MAX_STEPS) if trainer.max_steps != -1 else -1
    # the workers may have one that this process lacks
    has_device = not trainer.num_workers or torch.cuda.is_available()
    return trainer.replaced(
        num_workers=0,
        devices=None,
        num_nodes=1,
        use_gpu=None,
        accelerator=trainer.accelerator if has_device else "cpu",
        logger=[DummyLogger() for _ in trainer.loggers] or False,
        callbacks=None,
        enable_checkpointing=any(
            isinstance(one, ModelCheckpoint) for one in trainer.checkpoint_callbacks
        ),
        enable_progress_bar=False,
        enable_model_summary=False,
        fast_dev_run=False,
        max_epochs=max_epochs,
        max_steps=max_steps,
        min_epochs=None,
        min_steps=None,
        max_time=None,
        compile=False,
        profiler=None,
        overfit_batches=0.0,
        num_sanity_val_steps=0,
        log_every_n_steps=0,
        check_val_every_n_epoch=1,
        val_check_interval=None,
        accumulate_grad_batches=1,
        reload_dataloaders_every_n_epochs=0,
        enable_autolog_hparams=False,
        async_validation=False,
    )


def _copy(model: LightningModule) -> LightningModule:
    try:
        made = copy.deepcopy(model)
    except Exception as error:
        raise ConfigError(
            f"A check works on a copy of the model, but {type(model).__name__} cannot be copied by"
            f" copy.deepcopy: {type(error).__name__}: {error}"
        ) from error
    made.configure_callbacks = lambda: []  # type: ignore[method-assign]
    return made


def _let_go(model: LightningModule) -> None:
    """Free the last copy of a large model before the next is made: it lies in reference cycles."""
    if sum(one.nbytes for one in model.parameters()) >= LARGE_BYTES:
        gc.collect()


def _resting(callback: ModelCheckpoint, folder: str) -> ModelCheckpoint:
    """Return a copy of the callback for the user's code to read; it saves nothing."""
    made = copy.deepcopy(callback)
    made.dirpath = made._given_dirpath = folder
    made.save_top_k = 0
    made.save_last = None
    made.save_on_exception = False
    return made


def _copy_of_data(datamodule: LightningDataModule) -> LightningDataModule:
    try:
        return copy.deepcopy(datamodule)
    # it holds something that cannot be copied, such as an open file: then its contents are shared
    except Exception:
        return copy.copy(datamodule)


def _with_adam(module: LightningModule, num_schedulers: int) -> LightningModule:
    """Give a copy Adam, with as many schedulers as its steps may ask for, which change nothing."""

    def configure() -> tuple[list[torch.optim.Optimizer], list[ConstantLR]]:
        wanted = [one for one in module.parameters() if one.requires_grad]
        adam = torch.optim.Adam(wanted, lr=ADAM_LR)
        return [adam], [ConstantLR(adam, factor=1.0) for _ in range(num_schedulers)]

    module.configure_optimizers = configure  # type: ignore[method-assign]
    return module


def _train_on_several(
    several: SeveralBatches,
    trainer: JobTrainer,
    savers: list[ModelCheckpoint],
    module: LightningModule,
    data: dict[str, object],
    datamodule: LightningDataModule | None,
) -> None:
    """Train a copy on a few batches, after one of validation."""
    watch(module, several.notes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = trainer.replaced(
            callbacks=[several, *savers],
            limit_val_batches=trainer.limit_val_batches and 1,
            num_sanity_val_steps=1,
            check_val_every_n_epoch=10**6,
            max_epochs=2,
        )
        trainer.fit(module, data.get("train"), data.get("val"), datamodule)


def _odd_schedule(
    schedulers: list[LRSchedulerConfig], trainer: JobTrainer, num_batches: float
) -> str | None:
    """Describe in words an oddity of a learning rate over the fit; None if there is none.

    An example is a scheduler that steps by epoch and was made for steps, or the other way round.
    The schedulers are called as in the fit, at most `MOST_CALLS` times; their optimizers must be
    copies.
    """
    for config in schedulers:
        calls = None if config.reduce_on_plateau else _num_calls(config, trainer, num_batches)
        if calls is not None and calls >= 4:
            told = _odd_rates(_rates(config, calls), calls, config.interval)
            # The other way round they may be made for the epochs or steps of this check
            made_for = getattr(config.scheduler, "total_steps", None)  # OneCycleLR
            period = getattr(config.scheduler, "T_max", None)  # CosineAnnealingLR
            if config.interval == "epoch" and made_for and made_for > 2 * calls:
                told = f"is made for {made_for} steps and gets {calls}"
            elif config.interval == "step" and period and calls >= 3 * period:
                turns = calls / period
                told = f"turns {turns:.0f} times between high and low in {calls} steps"
            if told is not None:
                return f"{type(config.scheduler).__name__} {told}"
    return None


def _rates(config: LRSchedulerConfig, calls: int) -> list[float]:
    """Return the learning rate before each call of a scheduler."""
    rates = list[float]()
    groups = config.scheduler.optimizer.param_groups
    first: list[float] = getattr(config.scheduler, "get_last_lr", list)()  # a user's may lack it
    for group, rate in zip(groups, first, strict=False):
        group["lr"] = rate  # with which the fit begins; the steps of this check had the full one
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(min(calls, MOST_CALLS)):
            rates.append(max(group["lr"] for group in groups))
            try:
                config.scheduler.step()
            except ValueError:  # it was made for fewer, and says so in the fit
                break
    return rates


def _odd_rates(rates: list[float], calls: int, interval: str) -> str | None:
    peak = max(rates)
    if peak <= 0:
        return None
    end = next((n for n, _ in enumerate(rates) if max(rates[n:]) <= NO_STEP * peak), len(rates))
    # Where not all calls were made, the last of them may be the foot of a cycle, unless it is long
    seen = len(rates) if len(rates) == MOST_CALLS else calls
    if end < seen / 2 and end < len(rates):
        rest = f"{max(rates[end:]):.2g} after {end} of {calls} {interval}s"
        return f"brings the learning rate to {rest}"
    if interval == "epoch" and rates[0] <= NO_STEP * peak:
        return f"leaves the learning rate at {rates[0]:.2g} for the whole first epoch"
    return None


def _num_calls(config: LRSchedulerConfig, trainer: JobTrainer, num_batches: float) -> int | None:
    """Return how often a scheduler is called in the fit, None if that is not known."""
    total = float("inf")
    steps = num_batches / max(1, trainer.accumulate_grad_batches)
    if trainer.max_epochs not in (None, -1):
        total = float(trainer.max_epochs or 0) * (1.0 if config.interval == "epoch" else steps)
    if trainer.max_steps != -1:
        per_call = 1.0 if config.interval == "step" else max(steps, 1.0)
        total = min(total, trainer.max_steps / per_call)
    return None if total == float("inf") else int(total / max(1, config.frequency))


def _train_on(
    batch: Batch,
    trainer: JobTrainer,
    savers: list[ModelCheckpoint],
    module: LightningModule,
    datamodule: LightningDataModule | None,
) -> OneBatch:
    """Train a copy on one batch.

    The datamodule, a copy that was set up before, is there for its hooks around the transfer to the
    device.
    """
    one = OneBatch()
    # those at whose ends the loss is looked at
    watch(module, one.notes, lambda number: number % WATCHED_STEPS == WATCHED_STEPS - 1)
    repeated = Repeated(batch)
    if datamodule is not None:
        datamodule.train_dataloader = lambda: repeated  # type: ignore[method-assign]
        datamodule.prepare_data = lambda: None  # type: ignore[method-assign]
        datamodule.setup = lambda stage: None  # type: ignore[method-assign]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what there is to say was said in the first step
        callbacks: list[Callback] = [one, *savers]
        trainer = trainer.replaced(
            callbacks=callbacks, limit_train_batches=None, limit_val_batches=0
        )
        trainer.fit(module, None if datamodule is not None else repeated, datamodule=datamodule)
    return one


def _read(trainer: JobTrainer) -> tuple[float, float, bool]:
    """Read a few training batches.

    Returns how many an epoch has, the mean seconds to read one, and whether the loader has worker
    processes.
    """
    run = trainer.run
    assert isinstance(run, Run)
    loader = run.data.loaders["train"]
    batches = iter(loader)
    started = time.perf_counter()
    times = list[float]()
    for _ in range(READ_BATCHES + 1):
        before = time.perf_counter()
        if next(batches, None) is None:
            break
        times.append(time.perf_counter() - before)
        if time.perf_counter() - started > READ_TIME_S:
            break
    times = times[1:] or times  # the first waits for the workers to start
    has_workers = any(getattr(one, "num_workers", 0) > 0 for one in loader.flattened)
    return loader.num_batches(), sum(times) / max(1, len(times)), has_workers


@contextmanager
def generators_kept(data: Mapping[str, object]) -> Iterator[None]:
    """Let loaders draw from generators of their own, for a `with` block.

    Afterwards those are as they were.
    """
    loaders = [
        leaf
        for given in data.values()
        for leaf in (given.flattened if isinstance(given, CombinedLoader) else tree_leaves(given))
    ]
    parts = [
        part
        for loader in loaders
        for part in (
            loader,
            getattr(loader, "sampler", None),
            getattr(loader, "batch_sampler", None),
        )
    ]
    parts += [getattr(part, "sampler", None) for part in parts]
    drawn_from = [getattr(part, "generator", None) for part in parts]
    generators = [generator for generator in drawn_from if isinstance(generator, torch.Generator)]
    states = [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
