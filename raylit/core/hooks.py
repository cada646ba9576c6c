"""Every hook, once: who may override it, when it fires, whether values may be logged in it.

A run resolves this table once (`resolve`) into flat lists that hold only overridden hooks, so an
event nobody listens to costs the loop one test of an empty list. Within an event the callbacks come
first, in the order of `Trainer.callbacks` (checkpoints last), then the LightningModule; the order
of `on_train_epoch_end` alone is: other callbacks, module, callbacks that monitor a metric.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from raylit.runtime.aliases import Batch, CheckpointDict, Loaders, StepOutput

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from raylit.core.callback import Callback

# What `self.log` may do in a hook: (default on_step, default on_epoch, on_step allowed). None:
# logging there is an error.
PER_STEP = (True, False, True)  # inside a training batch
PER_EVAL_STEP = (False, True, True)  # inside an evaluation batch
PER_EPOCH = (False, True, False)  # around the batches


@dataclass(frozen=True, slots=True)
class Hook:
    """One event of a run.

    Attributes:
        owners: who may override it: C a Callback, M the LightningModule, D the LightningDataModule.
        when: when it fires.
        log: what `self.log` may do in it.
    """

    owners: str
    when: str
    log: tuple[bool, bool, bool] | None = None


def _stage(name: str, verb: str, log: bool) -> dict[str, Hook]:
    """The events that training, validation, test and predict have in common."""
    batch = None
    if log:
        batch = PER_STEP if name == "train" else PER_EVAL_STEP
    epoch = PER_EPOCH if log else None
    return {
        f"on_{name}_start": Hook("CM", f"before {verb} starts", epoch),
        f"on_{name}_epoch_start": Hook(
            "CM", f"before the first batch of an epoch of {verb}", epoch
        ),
        f"on_{name}_batch_start": Hook(
            "CM",
            f"before each batch of {verb}; in training the module may return -1 to skip the epoch's"
            " rest",
            batch,
        ),
        f"on_{name}_batch_end": Hook("CM", f"after each batch of {verb}", batch),
        f"on_{name}_epoch_end": Hook("CM", f"after the last batch of an epoch of {verb}", epoch),
        f"on_{name}_end": Hook("CM", f"after {verb} has ended"),
    }


HOOKS: dict[str, Hook] = {
    # around everything
    "prepare_data": Hook("MD", "first, on one process per node: download, convert"),
    "setup": Hook("CMD", "on every rank, before any data is loaded"),
    "configure_model": Hook(
        "M", "on every rank, after setup: create the parts that are to be sharded"
    ),
    "on_fit_start": Hook("CM", "after the optimizers were made"),
    "on_fit_end": Hook("CM", "after on_train_end"),
    "on_sanity_check_start": Hook("C", "before the validation batches run ahead of training"),
    "on_sanity_check_end": Hook("C", "after them"),
    "on_exception": Hook("CD", "when an exception ends the run; it is raised again afterwards"),
    "teardown": Hook("CMD", "last, on every rank"),
    # the four stages
    **_stage("train", "training", log=True),
    **_stage("validation", "validation", log=True),
    **_stage("test", "test", log=True),
    **_stage("predict", "prediction", log=False),
    "training_step": Hook("M", "the forward pass and the loss of one batch", PER_STEP),
    "validation_step": Hook("M", "one batch of validation", PER_EVAL_STEP),
    "test_step": Hook("M", "one batch of test", PER_EVAL_STEP),
    "predict_step": Hook("M", "one batch of prediction"),
    "on_validation_model_zero_grad": Hook(
        "M", "before validation in the middle of training: frees the gradients"
    ),
    "on_validation_model_eval": Hook("M", "puts the model into eval mode for validation"),
    "on_validation_model_train": Hook("M", "puts the model back after validation"),
    "on_test_model_eval": Hook("M", "puts the model into eval mode for test"),
    "on_test_model_train": Hook("M", "puts the model back after test"),
    "on_predict_model_eval": Hook("M", "puts the model into eval mode for prediction"),
    # within a training batch
    "on_before_batch_transfer": Hook("MD", "before the batch moves to the device, on CPU"),
    "transfer_batch_to_device": Hook("MD", "moves the batch to the device"),
    "on_after_batch_transfer": Hook("MD", "after the batch moved to the device"),
    "on_before_zero_grad": Hook("CM", "before the gradients are cleared", PER_STEP),
    "optimizer_zero_grad": Hook("M", "clears the gradients", PER_STEP),
    "on_before_backward": Hook("CM", "before the backward pass", PER_STEP),
    "backward": Hook("M", "the backward pass", PER_STEP),
    "on_after_backward": Hook("CM", "after the backward pass", PER_STEP),
    "optimizer_step": Hook("M", "runs the closure and the optimizer", PER_STEP),
    "on_before_optimizer_step": Hook(
        "CM", "when gradients are complete and unscaled, parameters not yet changed", PER_STEP
    ),
    "configure_gradient_clipping": Hook("M", "clips the gradients", PER_STEP),
    "clip_gradients": Hook("M", "clips the gradients", PER_STEP),
    "lr_scheduler_step": Hook("M", "steps one learning-rate scheduler"),
    # configuration, data and checkpoints
    "configure_callbacks": Hook("M", "returns callbacks that go with the model"),
    "configure_optimizers": Hook("M", "returns optimizers and schedulers"),
    "train_dataloader": Hook("MD", "returns the data of training"),
    "val_dataloader": Hook("MD", "returns the data of validation"),
    "test_dataloader": Hook("MD", "returns the data of test"),
    "predict_dataloader": Hook("MD", "returns the data of prediction"),
    "state_dict": Hook("CMD", "what to store in a checkpoint"),
    "load_state_dict": Hook("CMD", "takes it back"),
    "on_save_checkpoint": Hook("CM", "may add to a checkpoint before it is written"),
    "on_load_checkpoint": Hook("CM", "sees a checkpoint before it is applied"),
}


def describe(cls: type) -> None:
    """Give the hooks that a class has the docstrings that `HOOKS` makes, for `help`."""
    for name, hook in HOOKS.items():
        method = vars(cls).get(name)
        if not inspect.isfunction(method) or method.__doc__ is not None:
            continue
        is_moment = hook.when.split()[0].rstrip(",") in MOMENTS
        when = f"called {hook.when}" if is_moment else hook.when
        method.__doc__ = f"{when[0].upper()}{when[1:]}.{LOGGING[hook.log]}"


MOMENTS = ("before", "after", "first", "last", "when", "on")
LOGGING = {
    None: "",
    PER_STEP: " What is logged in it counts by step, with `on_epoch=True` by epoch too.",
    PER_EVAL_STEP: " What is logged in it is averaged over the epoch.",
    PER_EPOCH: " What is logged in it counts for the epoch.",
}


class ModuleHooks:
    """Hooks that a LightningModule may override.

    `HOOKS` says when each fires; nearly all do nothing unless overridden.
    """

    def on_fit_start(self) -> None: ...
    def on_fit_end(self) -> None: ...
    def on_train_start(self) -> None: ...
    def on_train_end(self) -> None: ...
    def on_train_epoch_start(self) -> None: ...
    def on_train_epoch_end(self) -> None: ...
    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> int | None: ...
    def on_train_batch_end(self, outputs: StepOutput, batch: Batch, batch_idx: int) -> None: ...
    def on_validation_start(self) -> None: ...
    def on_validation_end(self) -> None: ...
    def on_validation_epoch_start(self) -> None: ...
    def on_validation_epoch_end(self) -> None: ...
    def on_validation_batch_start(
        self, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None: ...
    def on_validation_batch_end(
        self, outputs: StepOutput, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None: ...
    def on_test_start(self) -> None: ...
    def on_test_end(self) -> None: ...
    def on_test_epoch_start(self) -> None: ...
    def on_test_epoch_end(self) -> None: ...
    def on_test_batch_start(
        self, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None: ...
    def on_test_batch_end(
        self, outputs: StepOutput, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None: ...
    def on_predict_start(self) -> None: ...
    def on_predict_end(self) -> None: ...
    def on_predict_epoch_start(self) -> None: ...
    def on_predict_epoch_end(self) -> None: ...
    def on_predict_batch_start(
        self, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None: ...
    def on_predict_batch_end(
        self, outputs: StepOutput, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None: ...
    def on_before_zero_grad(self, optimizer: Optimizer) -> None: ...
    def on_before_backward(self, loss: Tensor) -> None: ...
    def on_after_backward(self) -> None: ...
    def on_before_optimizer_step(self, optimizer: Optimizer) -> None: ...
    def on_save_checkpoint(self, checkpoint: CheckpointDict) -> None: ...
    def on_load_checkpoint(self, checkpoint: CheckpointDict) -> None: ...
    def prepare_data(self) -> None: ...
    def setup(self, stage: str) -> None: ...
    def teardown(self, stage: str) -> None: ...
    def configure_model(self) -> None: ...
    def configure_callbacks(self) -> Sequence[Callback] | Callback:
        return []

    def train_dataloader(self) -> Loaders: ...
    def val_dataloader(self) -> Loaders: ...
    def test_dataloader(self) -> Loaders: ...
    def predict_dataloader(self) -> Loaders: ...
    def on_validation_model_train(self) -> None:
        self.train()  # type: ignore[attr-defined]

    def on_test_model_train(self) -> None:
        self.train()  # type: ignore[attr-defined]


describe(ModuleHooks)
ModelHooks = ModuleHooks  # Lightning's name


Hooks = dict[str, list[Callable[..., object]]]
AFTER_MODULE = "on_train_epoch_end, after the module"  # of callbacks that judge metrics

_FIRED = tuple(name for name, hook in HOOKS.items() if hook.owners in ("C", "CM", "CD"))


def is_overridden(name: str, obj: object, base: type) -> bool:
    """Tell whether `obj`, an instance of a subclass of `base`, brings its own method `name`."""
    method = getattr(obj, name, None)
    if method is None:
        return False
    # A function that was set on the object itself has no `__func__`
    return getattr(method, "__func__", method) is not getattr(base, name, None)


def takes_argument(function: Callable[..., object], name: str) -> bool:
    """Tell whether a function has an argument of that name."""
    # The code of a decorator says *args: `inspect` looks through it at the function within
    code = getattr(function, "__code__", None)
    if code is not None and not hasattr(function, "__wrapped__"):  # a fifth of the time below
        return name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return name in inspect.signature(function).parameters


def resolve(
    trainer: object,
    module: object,
    callbacks: Sequence[Callback],
    module_base: type,
    watch: Callable[[object, str, Callable[..., object]], Callable[..., object]] | None = None,
) -> Hooks:
    """Bind every event that callbacks and the module share to the functions somebody overrode.

    Args:
        trainer: handed to the callbacks as their first argument.
        module: the LightningModule.
        callbacks: in the order they are to be called; each says what it listens to.
        module_base: a method that is this class's own counts as not overridden.
        watch: given an owner, the name of a hook and the function, returns the function to call
            instead.

    Returns:
        A list for each event, called in order with the event's own arguments: trainer and module
        are already bound. Callbacks that judge metrics have their `on_train_epoch_end` in a list of
        its own, `AFTER_MODULE`.
    """
    hooks: Hooks = {AFTER_MODULE: []}
    for name in _FIRED:
        own = hooks[name] = []
        for callback in callbacks:
            if callback.listens_to(name):
                is_late = name == "on_train_epoch_end" and callback.watches_metrics
                function: Callable[..., object] = partial(getattr(callback, name), trainer, module)
                function = watch(callback, name, function) if watch else function
                (hooks[AFTER_MODULE] if is_late else own).append(function)
        if "M" in HOOKS[name].owners and is_overridden(name, module, module_base):
            own.append(
                watch(module, name, getattr(module, name)) if watch else getattr(module, name)
            )
    return hooks
