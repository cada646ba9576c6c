"""Running the loop of a job on trial.

For the finders, which observe some steps and leave no trace of them.

These are put back: weights and buffers, gradients, the state that the module and the datamodule put
into checkpoints, train or eval mode, optimizers, torchmetrics, all that the Run and the Trainer
hold (settings, counters, callbacks, loggers, logged values), and the random states. The copy is
kept in host memory; no file is written. Callbacks and loggers of the user are not called at all.
Plain attributes of a module are not put back; checkpoints do not hold them either.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from raylit.core.callback import Callback
from raylit.engine.run import restore_modes, submodule_modes
from raylit.engine.state import load_optimizer, put_hparams
from raylit.loggers.dummy import DummyLogger
from raylit.metrics import torchmetric
from raylit.runtime import rng
from raylit.runtime.aliases import CheckpointDict, StateDict

if TYPE_CHECKING:
    from raylit.core.optimizer import LRSchedulerConfig
    from raylit.engine.run import Run


@contextmanager
def dry_run(run: Run, callbacks: Sequence[Callback], **limits: Any) -> Iterator[Callable[..., Run]]:
    """Give a function that runs the loop of the job on trial, from where it is now.

    It may be called several times, each with a Run of its own, which it returns. Its argument are
    schedulers in place of those of the run. When the `with` block ends, all is as it was before.

    Args:
        run: the run, in `on_fit_start`, `on_train_epoch_start` or the start of an evaluation.
        callbacks: the only ones that are called meanwhile.
        limits: what is in effect meanwhile, such as `max_steps`; see `Limits`.
    """
    trainer = run.trainer
    module = run.module
    progress = run.progress
    with rng.isolated():
        theirs = dict(vars(trainer))
        counters = progress.state_dict()
        modes = submodule_modes(module)
        gradients = [
            (parameter, parameter.grad, parameter.requires_grad)
            for parameter in module.parameters()
        ]
        saved = _save(run)

        def perform(schedulers: list[LRSchedulerConfig] | None = None) -> Run:
            restore_modes(module, modes)
            progress.load_state_dict(counters)
            for parameter in module.parameters():
                parameter.grad = None
            trainer.should_stop = False
            trial = run.dry_run(callbacks)
            if schedulers is not None:
                trial.schedulers = schedulers
            vars(trainer)["_run"] = trial
            module.attach_log(None if trainer.barebones else trial.metrics)
            assert trial.loop is not None
            try:
                trial.loop(trial)
            finally:
                trial.loss = None
                # signals are for the whole job
                for name in ("received_sigterm", "received_sigint", "pauses"):
                    if getattr(trial.agreement, name):
                        setattr(run.agreement, name, True)
            return trial

        trainer.callbacks = list(callbacks)
        trainer.loggers = [DummyLogger()] if trainer.loggers else []
        trainer.limits = replace(trainer.limits, **{"num_sanity_val_steps": 0, **limits})
        try:
            yield perform
        finally:
            vars(trainer).update(theirs)
            module.attach_log(None if trainer.barebones else run.metrics)
            progress.load_state_dict(counters)
            _restore(run, saved)
            restore_modes(module, modes)
            for parameter, gradient, requires_grad in gradients:
                parameter.grad = gradient
                parameter.requires_grad = requires_grad


def _on_host(state: object) -> object:
    """Return a copy whose tensors are in host memory."""
    return tree_map(
        lambda value: (
            value.detach().to("cpu", copy=True)
            if isinstance(value, Tensor)
            else copy.deepcopy(value)
        ),
        state,
    )


def _save(run: Run) -> CheckpointDict:
    """Return the state of module, datamodule and optimizers that is to be put back."""
    module = run.module
    progress = run.progress
    state = module.state_dict()
    others = {
        name: value
        for name, value in chain(module.named_parameters(), module.named_buffers())
        if name not in state
    }
    states = [optimizer.state_dict() for optimizer in run.optimizers]
    checkpoint = {
        "epoch": progress.epoch,
        "global_step": progress.steps,
        "state_dict": _on_host(state),
        # the groups hold settings, which stay where they are: a learning rate may be a tensor on
        # the device
        "optimizer_states": [
            {
                key: copy.deepcopy(value) if key == "param_groups" else _on_host(value)
                for key, value in one.items()
            }
            for one in states
        ],
        "lr_schedulers": [
            copy.deepcopy(config.scheduler.state_dict()) for config in run.schedulers
        ],
    }
    for owner in (module, run.datamodule):
        if owner is not None:  # some read them in the hook
            put_hparams(checkpoint, owner)
    run.call(module, "on_save_checkpoint", checkpoint)
    return {
        "checkpoint": checkpoint,
        "others": _on_host(others),
        "metrics": {
            name: _on_host(torchmetric.state_of(metric))
            for name, metric in torchmetric.metrics_in(module)
        },
        "data": copy.deepcopy(run.datamodule.state_dict()) if run.datamodule is not None else {},
    }


def _restore(run: Run, saved: StateDict) -> None:
    """Put back the state from `_save`."""
    module = run.module
    checkpoint = saved["checkpoint"]
    run.call(module, "on_load_checkpoint", checkpoint)
    module.load_state_dict(checkpoint["state_dict"], strict=module.strict_loading)
    with torch.no_grad():
        for name, value in chain(module.named_parameters(), module.named_buffers()):
            if name in saved["others"]:
                value.copy_(saved["others"][name])
    for optimizer, state in zip(run.optimizers, checkpoint["optimizer_states"], strict=True):
        load_optimizer(optimizer, state)
    for config, state in zip(run.schedulers, checkpoint["lr_schedulers"], strict=True):
        config.scheduler.load_state_dict(state)
    for name, metric in torchmetric.metrics_in(module):
        torchmetric.restore(metric, saved["metrics"][name], run.device)
    if saved["data"] and run.datamodule is not None:
        run.datamodule.load_state_dict(saved["data"])
