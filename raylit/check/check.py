"""Checks of a model before it is trained.

What is wrong that a fit would not tell, or would tell late.

    check
        copies of model and datamodule; random states are put back afterwards
        one batch through training, the optimizers and validation               probe.FirstStep
        some tens of steps on that batch                                        probe.OneBatch
        if the loss did not fall: again with Adam, to tell which is to blame    probe.OneBatch
        reading a few batches of the training data

Source: Karpathy, "A Recipe for Training Neural Networks", 2019,
http://karpathy.github.io/2019/04/25/recipe/
"""

from __future__ import annotations

import copy
import math
import os
import resource
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.utils._pytree import tree_leaves

from raylit.check.probe import (
    MAX_STEPS,
    FirstStep,
    LossCall,
    OneBatch,
    Repeated,
    has_fallen,
    still_falls,
)
from raylit.core.aliases import Batch
from raylit.data import CombinedLoader
from raylit.engine.run import Run
from raylit.errors import ConfigError, DataError
from raylit.runtime.rng import isolated

if TYPE_CHECKING:
    from rich.table import Table

    from raylit.core.datamodule import LightningDataModule
    from raylit.core.module import LightningModule
    from raylit.core.trainer import JobTrainer

Status = Literal["ok", "unknown", "warning", "problem"]
COLOURS: dict[Status, str] = {
    "ok": "green",
    "unknown": "dim",
    "warning": "yellow",
    "problem": "bold red",
}
NAMES_SHOWN = 5
ADAM_LR = 3e-3
READ_BATCHES = 8
READ_TIME_S = 5.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        check: what was checked.
        status: `ok`, `unknown` (it could not be told), `warning` or `problem`.
        found: what was found, in words.
        advice: what to do about it.
        values: the same as plain data.
    """

    check: str
    status: Status
    found: str
    advice: str = ""
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What the checks of a model found, one finding for each check.

    Example:
        >>> report = trainer.check(model, loader)
        >>> report.ok, report["gradients"].status, report["time"].values["epoch_s"]
    """

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    @property
    def problems(self) -> list[Finding]:
        """The findings that are problems."""
        return [finding for finding in self.findings if finding.status == "problem"]

    def __getitem__(self, check: str) -> Finding:
        """Return the finding of a check by its name."""
        for finding in self.findings:
            if finding.check == check:
                return finding
        raise KeyError(
            f"{check!r} was not checked; there are:"
            f" {', '.join(finding.check for finding in self.findings)}"
        )

    def table(self) -> Table:
        """Return the findings as a table for `rich`."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table("check", "", "found", box=box.SIMPLE_HEAD, pad_edge=False)
        for finding in self.findings:
            found = Text(finding.found)
            if finding.advice:
                found.append(f"\n-> {finding.advice}", "cyan")
            table.add_row(finding.check, Text(finding.status, COLOURS[finding.status]), found)
        return table


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
    data = {
        stage: copy.copy(given) if isinstance(given, CombinedLoader) else given
        for stage, given in data.items()
    }
    if datamodule is not None:
        datamodule = _copy_of_data(datamodule)
    with isolated(), generators_kept(data):
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        first = FirstStep()
        probed = _settings(trainer)
        module = _copy(model)
        first.watch(module)
        watcher = probed.replaced(
            callbacks=first, limit_val_batches=trainer.limit_val_batches and 1, val_check_interval=1
        )
        watcher.fit(module, data.get("train"), data.get("val"), datamodule)
        if first.batch is None:
            raise DataError("There is no batch of training data to check the model with.")
        batches, read_s, has_workers = _read(watcher)
        one = _train_on(first.batch, probed, _copy(model), datamodule)
        with_adam = None
        if (
            one.losses
            and not has_fallen(one.losses)
            and not still_falls(one.losses)
            and model.automatic_optimization
        ):
            with_adam = _train_on(first.batch, probed, _with_adam(_copy(model)), datamodule)
    return CheckReport(
        (
            _steps(first),
            _gradients(
                module, first.gradients, one.gradients, trainer.strategy.find_unused_parameters
            ),
            *_inputs(first.inputs),
            _optimizers(first),
            _finite(first),
            _samples(first),
            _loss(first.loss, first.losses),
            _one_batch(one, with_adam),
            _time(one.time_per_step_s, batches, read_s, has_workers),
            _memory(),
        )
    )


# ---- what is run ----


def _settings(trainer: JobTrainer) -> JobTrainer:
    """Return a Trainer for the same work in this process, without files and limits of its own."""
    max_epochs = -1 if trainer.max_epochs in (None, -1) else max(int(trainer.max_epochs or 0), 2)
    max_steps = max(trainer.max_steps, 100 * MAX_STEPS) if trainer.max_steps != -1 else -1
    has_device = (
        not trainer.num_workers or torch.cuda.is_available()
    )  # the workers may have one that this process lacks
    return trainer.replaced(
        num_workers=0,
        devices=None,
        num_nodes=1,
        use_gpu=None,
        accelerator=trainer.accelerator if has_device else "cpu",
        logger=False,
        callbacks=None,
        enable_checkpointing=False,
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


def _copy_of_data(datamodule: LightningDataModule) -> LightningDataModule:
    try:
        return copy.deepcopy(datamodule)
    except (
        Exception
    ):  # it holds what cannot be copied, such as an open file; then what it holds is shared
        return copy.copy(datamodule)


def _with_adam(module: LightningModule) -> LightningModule:
    module.configure_optimizers = lambda: torch.optim.Adam(  # type: ignore[method-assign]
        [p for p in module.parameters() if p.requires_grad], lr=ADAM_LR
    )
    return module


def _train_on(
    batch: Batch,
    trainer: JobTrainer,
    module: LightningModule,
    datamodule: LightningDataModule | None,
) -> OneBatch:
    """Train a copy on one batch.

    The datamodule, a copy that was set up before, is there for its hooks around the transfer to the
    device.
    """
    one = OneBatch()
    repeated = Repeated(batch)
    if datamodule is not None:
        datamodule.train_dataloader = lambda: repeated  # type: ignore[method-assign]
        datamodule.prepare_data = lambda: None  # type: ignore[method-assign]
        datamodule.setup = lambda stage: None  # type: ignore[method-assign]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what there is to say was said in the first step
        trainer = trainer.replaced(callbacks=one, limit_train_batches=None, limit_val_batches=0)
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
def generators_kept(data: dict[str, object]) -> Iterator[None]:
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


# ---- what to think of it ----


def _steps(first: FirstStep) -> Finding:
    ran = list(dict.fromkeys(first.stages))
    return Finding(
        "steps",
        "ok",
        f"{' and '.join(ran)} ran with one batch, and the optimizers",
        values={"steps": ran},
    )


def _inputs(counts: dict[str, bool]) -> list[Finding]:
    """Return a finding about the modalities, if a batch has several."""
    if not counts:
        return []
    ignored = [name for name, counts_here in counts.items() if not counts_here]
    if not ignored:
        return [Finding("inputs", "ok", f"the loss depends on {_names(list(counts))}")]
    return [
        Finding(
            "inputs",
            "warning",
            f"the loss does not depend on {_names(ignored)}: no gradient comes of it",
            "is its encoder used, or is there a detach(), no_grad or a mask that is 0 on the way?",
            {"ignored": ignored},
        )
    ]


def _gradients(
    module: LightningModule, first: dict[str, bool], later: dict[str, bool], allows_unused: bool
) -> Finding:
    wanted = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    missing = [name for name in wanted if name not in first and name not in later]
    zero = [
        name
        for name in wanted
        if name not in missing and not first.get(name) and not later.get(name)
    ]
    values = {"without_gradient": missing, "zero_gradient": zero}
    if missing:
        return Finding(
            "gradients",
            "warning" if allows_unused else "problem",
            f"no gradient reaches {_names(missing)}",
            "use them for the loss (is there a detach(), .data, argmax or no_grad on the way?),"
            " remove them, or requires_grad_(False)",
            values,
        )
    if zero:
        advice = (
            "look for dead units (a ReLU that is never positive), a factor of 0 and losses that do"
            " not depend on them"
        )
        return Finding(
            "gradients",
            "warning",
            f"the gradient of {_names(zero)} is 0 in all steps",
            advice,
            values,
        )
    return Finding("gradients", "ok", f"all of {len(wanted)} parameters get one", values=values)


def _optimizers(first: FirstStep) -> Finding:
    left_out = first.without_optimizer
    if not left_out:
        return Finding(
            "optimizers",
            "ok",
            "hold all parameters that require a gradient",
            values={"left_out": []},
        )
    advice = (
        "hand them to the optimizer in configure_optimizers, or freeze them: requires_grad_(False)"
    )
    return Finding(
        "optimizers",
        "problem",
        f"{_names(left_out)} in no optimizer",
        advice,
        {"left_out": left_out},
    )


def _finite(first: FirstStep) -> Finding:
    places = [
        f"{what} {where or 'the module'}" if what.endswith("of") or where else what
        for what, where in first.not_finite
    ]
    if not places:
        return Finding(
            "finite",
            "ok",
            "no NaN or infinity in batch, outputs, loss, gradients and weights",
            values={"places": []},
        )
    spoils = any(
        what in ("the loss", "the gradient of", "the weights") for what, _ in first.not_finite
    )
    advice = (
        "look at the first place: a log, sqrt or division at 0, an exp that overflows, missing"
        " values in the data"
    )
    text = f"NaN or infinity first in {_names(places)}" + (
        "" if spoils else "; loss and gradients are finite"
    )
    return Finding(
        "finite",
        "problem" if spoils else "warning",
        text,
        advice if spoils else "if that is meant (a mask), nothing",
        {"places": places},
    )


def _samples(first: FirstStep) -> Finding:
    told = {name or "the module": (mixes, text) for name, (mixes, text) in first.mixing.items()}
    values = {"mixing": {name: mixes for name, (mixes, _) in told.items()}}
    mixing = [f"{name} ({text})" for name, (mixes, text) in told.items() if mixes]
    if mixing:
        advice = (
            "look for view, reshape, transpose or a softmax over the wrong dimension, and sums over"
            " dimension 0"
        )
        return Finding(
            "samples",
            "problem",
            f"in eval mode samples influence each other in {_names(mixing)}",
            advice,
            values,
        )
    independent = [name for name, (mixes, _) in told.items() if mixes is False]
    if independent:
        return Finding(
            "samples", "ok", f"do not influence each other in {_names(independent)}", values=values
        )
    reason = next(
        (f": {name}: {text}" for name, (_, text) in told.items()), ": training_step calls no module"
    )
    return Finding(
        "samples",
        "unknown",
        f"whether they influence each other could not be told{reason}",
        values=values,
    )


def _loss(loss: float | None, calls: list[LossCall]) -> Finding:
    values: dict[str, object] = {
        "loss": loss,
        "functions": [(call.function, call.value, call.expected) for call in calls],
    }
    told = [call for call in calls if call.value is not None and call.expected is not None]
    mistaken = next((call for call in calls if call.mistake), None)
    if mistaken is not None:
        return Finding("loss", "problem", str(mistaken.mistake), mistaken.fix, values)
    if loss is None and not told:
        return Finding(
            "loss",
            "unknown",
            "training_step returns none, so what it is at first could not be told",
            values=values,
        )
    if not told:
        return Finding(
            "loss", "ok", f"{loss:.4g} at first; what it should be could not be told", values=values
        )
    texts = [
        f"{call.function} is {call.value:.4g} at first; a model that knows nothing has"
        f" {call.expected:.4g} ({call.why})"
        for call in told
    ]
    factors = {"mse_loss": 3.0}  # before training, predictions vary too
    high = [
        call
        for call in told
        if not float(call.value or 0)
        <= factors.get(call.function, 1.5) * float(call.expected or 0) + 0.1
    ]
    if high:
        advice = (
            "scale inputs and targets to mean 0 and variance 1, make the weights of the last layer"
            " smaller, set its bias to the mean target"
        )
        return Finding("loss", "warning", "; ".join(texts), advice, values)
    return Finding("loss", "ok", "; ".join(texts), values=values)


def _one_batch(own: OneBatch, with_adam: OneBatch | None) -> Finding:
    values = {"losses": own.losses, "losses_with_adam": with_adam.losses if with_adam else None}
    if not own.losses:
        return Finding(
            "one batch",
            "unknown",
            "training_step returns no loss, so whether it falls could not be told",
            values=values,
        )
    text = (
        f"loss {own.losses[0]:.4g} to {own.losses[-1]:.4g} in {len(own.losses)} steps on one batch"
    )
    if has_fallen(own.losses):
        return Finding("one batch", "ok", text, values=values)
    if still_falls(own.losses):
        return Finding("one batch", "ok", f"{text}, and still falls", values=values)
    first = own.losses[0]
    last = own.losses[-1]
    other = with_adam.losses[-1] if with_adam is not None else math.inf
    if with_adam is not None:
        text += f"; with Adam(lr={ADAM_LR}) to {other:.4g}"
    if other < first and not last <= max(2 * other, other + 0.1 * abs(first)):
        is_too_high = not last <= first
        advice = f"{'lower' if is_too_high else 'raise'} the learning rate, or take Adam"
        return Finding(
            "one batch", "warning" if math.isfinite(last) else "problem", text, advice, values
        )
    if not min(last, other) < first - 0.05 * abs(first):
        advice = (
            "the model does not learn: look at the sign of the loss, at the targets and at what"
            " detaches the loss from the model"
        )
        return Finding("one batch", "problem", text, advice, values)
    return Finding(
        "one batch",
        "warning",
        text,
        "a model large enough gets near 0: less regularization, more capacity, another learning"
        " rate",
        values,
    )


def _time(step_s: float | None, batches: float, read_s: float, has_workers: bool) -> Finding:
    values = {"step_s": step_s, "read_s": read_s, "batches": batches, "epoch_s": None}
    if step_s is None:
        return Finding("time", "unknown", "the steps were too slow to be timed", values=values)
    batch_s = max(step_s, read_s) if has_workers else step_s + read_s
    text = f"{_duration(step_s)} for a step, {_duration(read_s)} to read a batch"
    if batches != float("inf"):
        values["epoch_s"] = batch_s * batches
        text = f"about {_duration(batch_s * batches)} per epoch of {int(batches)} batches: {text}"
    else:
        text += "; how many an epoch has is not known"
    if read_s > step_s and read_s > 1e-3:
        more = "more workers" if has_workers else "DataLoader(num_workers=...)"
        return Finding(
            "time",
            "warning",
            text,
            f"reading takes longer than training: {more}, or less work per sample",
            values,
        )
    return Finding("time", "ok", text, values=values)


def _memory() -> Finding:
    on_gpu = torch.cuda.is_available()
    peak = (
        torch.cuda.max_memory_allocated()
        if on_gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    where = "on the GPU" if on_gpu else "of this process, ever"
    return Finding(
        "memory", "ok", f"{peak / 2**20:,.0f} MiB at most {where}", values={"peak_bytes": peak}
    )


def _names(names: Iterable[str]) -> str:
    names = list(names)
    shown = ", ".join(names[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown} and {len(names) - NAMES_SHOWN} more"


def _duration(time_s: float) -> str:
    if time_s < 0.1:  # of 100 ms and more, two digits would be 1e+02
        return f"{time_s * 1e3:.2g} ms"
    if time_s < 120:
        return f"{time_s:.2g} s" if time_s < 100 else f"{time_s:.0f} s"
    return f"{time_s / 60:.0f} min" if time_s < 7200 else f"{time_s / 3600:.1f} h"
