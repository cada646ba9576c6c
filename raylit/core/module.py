"""LightningModule.

A `torch.nn.Module` that also says how it is trained, evaluated and optimized.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from typing import IO, TYPE_CHECKING, Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from raylit import checkpoint as checkpoints
from raylit.checkpoint import foreign
from raylit.core import objects
from raylit.core.export import Exportable
from raylit.core.hooks import ModuleHooks
from raylit.core.hparams import HasHyperparameters, class_only, construct
from raylit.errors import ConfigError
from raylit.runtime.aliases import (
    Batch,
    ForwardInput,
    OptimizerLRScheduler,
    Prediction,
    StateDict,
    StepOutput,
    UserOptimizer,
    UserScheduler,
)
from raylit.runtime.batch import transfer_to
from raylit.runtime.messages import warn, warn_once

if TYPE_CHECKING:
    from os import PathLike

    from raylit.core.logger import Logger
    from raylit.core.trainer import RunningTrainer


# What `LightningModule.log` was told: prog_bar, logger, on_step, on_epoch, reduce_fx, sync_dist,
# add_dataloader_idx, rank_zero_only. A plain tuple, read by index, since every call of `log` makes
# one: in Python 3.11 that takes 0.07 us, and a NamedTuple 0.43 us.
LogSettings = tuple[
    bool,
    bool | None,
    bool | None,
    bool | None,
    str | Callable[..., object],
    bool | None,
    bool,
    bool,
]


class Log(Protocol):
    """Where `LightningModule.log` puts a value; `raylit.metrics.Metrics` does it."""

    def log(
        self,
        name: str,
        value: object,
        settings: LogSettings,
        enable_graph: bool,
        batch_size: int | None,
    ) -> None:
        """Record one value; see `LightningModule.log`."""


OF_COMPILED = "_orig_mod."  # what torch.compile(part) puts into the names of what is in the part


_is_traced: ContextVar[bool] = ContextVar("a module is traced", default=False)


@contextmanager
def being_traced() -> Iterator[None]:
    """Context in which a module without a Trainer has None for one: torch.jit reads them all."""
    token = _is_traced.set(True)
    try:
        yield
    finally:
        _is_traced.reset(token)


class LightningModule(ModuleHooks, HasHyperparameters, Exportable):
    """A model with its training, validation, test and predict steps and its optimizers.

    Override `training_step` and `configure_optimizers` to train; the other steps as needed. All of
    `torch.nn.Module` works as usual.

    Attributes:
        automatic_optimization: False if `training_step` itself calls `manual_backward` and `step`
            of `self.optimizers()`.
        example_input_array: an input of `forward`, for summaries and exports.
        strict_loading: whether the keys of a loaded `state_dict` must match exactly.

    Example:
        >>> class Line(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = nn.Linear(1, 1)
        ...
        ...     def training_step(self, batch, batch_idx):
        ...         x, y = batch
        ...         loss = nn.functional.mse_loss(self.layer(x), y)
        ...         self.log("loss", loss)
        ...         return loss
        ...
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), lr=0.1)
    """

    CHECKPOINT_HYPER_PARAMS_KEY = "hyper_parameters"
    CHECKPOINT_HYPER_PARAMS_NAME = "hparams_name"
    CHECKPOINT_HYPER_PARAMS_TYPE = "hparams_type"

    allow_zero_length_dataloader_with_multiple_devices: bool = False
    prepare_data_per_node: bool = True
    automatic_optimization: bool = True
    example_input_array: ForwardInput = None
    device_mesh = fabric = (
        None  # of strategies that split a model over devices; of Lightning Fabric
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._strict_loading: bool | None = None
        self._trainer: weakref.ref[RunningTrainer] | None = None
        self._metrics: Log | None = None
        self._toggled: dict[Tensor, bool] = {}

    # ---- what users write ----

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor | Mapping[str, object] | None:
        """Return the loss of one batch.

        A scalar tensor, a dict with the key `loss`, or None to skip the batch.
        """
        raise NotImplementedError(f"{type(self).__name__} has no training_step.")

    def validation_step(self, *args: Any, **kwargs: Any) -> Tensor | Mapping[str, object] | None:
        """Evaluate one validation batch, and log its metrics."""

    def test_step(self, *args: Any, **kwargs: Any) -> Tensor | Mapping[str, object] | None:
        """Evaluate one test batch, and log its metrics."""

    def predict_step(self, *args: Any, **kwargs: Any) -> Prediction:
        """Return the prediction for one batch; by default `self(batch)`."""
        return self(args[0] if args else next(iter(kwargs.values())))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return an optimizer; or a list of them; or ([optimizers], [schedulers]).

        Or a dict, or a list of some, with the keys `optimizer`, `lr_scheduler` and `monitor` (the
        metric of ReduceLROnPlateau). A scheduler steps after each epoch. A dict in its place says
        otherwise: `scheduler`, `interval` ("epoch" or "step"), `frequency` (every how many),
        `monitor`, `strict` (whether it is an error if that metric is missing), `name` (for
        LearningRateMonitor). None: nothing is optimized.

        Example:
            >>> class Net(LightningModule):
            ...     def configure_optimizers(self):
            ...         optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
            ...         scheduler = torch.optim.lr_scheduler.OneCycleLR(
            ...             optimizer, 1e-2, total_steps=self.trainer.estimated_stepping_batches
            ...         )
            ...         return {
            ...             "optimizer": optimizer,
            ...             "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
            ...         }
        """

    # ---- hooks that do something by default ----

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass."""
        loss.backward(*args, **kwargs)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: UserOptimizer,
        optimizer_closure: Callable[[], StepOutput] | None = None,
    ) -> None:
        """Step `optimizer`.

        The closure runs `training_step`, zero_grad and backward and must be called exactly as the
        optimizer wants.
        """
        optimizer.step(closure=optimizer_closure)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Clear the gradients."""
        optimizer.zero_grad()

    def lr_scheduler_step(self, scheduler: UserScheduler, metric: Any) -> None:
        """Step one scheduler; `metric` is the monitored value or None."""
        scheduler.step() if metric is None else scheduler.step(metric)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients before the optimizer steps.

        By default as the Trainer's arguments say.
        """
        self.clip_gradients(
            optimizer,
            gradient_clip_val=gradient_clip_val,
            gradient_clip_algorithm=gradient_clip_algorithm,
        )

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Move a batch to `device`.

        Tensors and whatever has `.to`, inside lists, tuples, dicts and dataclasses.
        """
        return transfer_to(batch, device)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Change a batch while it is still on the CPU."""
        return batch

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Change a batch once it is on the device."""
        return batch

    def on_validation_model_zero_grad(self) -> None:
        """Free the gradients before a validation in the middle of training."""
        self.zero_grad()

    def on_validation_model_eval(self) -> None:
        """Put the model into eval mode.

        Afterwards every submodule gets the mode back that it had.
        """
        self.eval()

    def on_test_model_eval(self) -> None:
        """As `on_validation_model_eval`."""
        self.eval()

    on_predict_model_eval = on_test_model_eval

    # ---- logging ----

    def log(
        self,
        name: str,
        value: object,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: str | Callable[..., object] = "mean",
        enable_graph: bool = False,
        sync_dist: bool | None = None,
        sync_dist_group: object = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        metric_attribute: str | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """Record one value under `name`.

        Args:
            name: key in the loggers and in `trainer.callback_metrics`.
            value: a number, a tensor with one element, or a `torchmetrics.Metric`.
            prog_bar: show it in the progress bar.
            logger: send it to the loggers; None is True.
            on_step: record the value of every batch (at the loggers every `log_every_n_steps`).
                Default by hook: True in training.
            on_epoch: record the value reduced over the epoch. Default by hook: True in evaluation.
            reduce_fx: `mean` (weighted by batch size), `sum`, `min` or `max`; how an epoch's values
                become one.
            enable_graph: keep the value's graph.
            sync_dist: reduce over the ranks. None: epoch values are, step values are not.
            sync_dist_group: not used; values are reduced over all ranks.
            add_dataloader_idx: with several evaluation loaders, append `/dataloader_idx_i` to the
                name.
            batch_size: weight of the value in a mean; found in the batch if None.
            metric_attribute: attribute of the module that holds a logged Metric, where it cannot be
                found.
            rank_zero_only: the value counts on rank 0 only.

        Raises:
            ConfigError: logging is not possible in the running hook, or not with these arguments.
        """
        if (metrics := self._metrics) is None:
            reason = (
                "with Trainer(barebones=True)"
                if self._attached and self._attached.barebones
                else "outside a running Trainer"
            )
            warn(f"self.log({name!r}, ...) was called {reason}; the value is not recorded.")
            return
        settings = (
            prog_bar,
            logger,
            on_step,
            on_epoch,
            reduce_fx,
            sync_dist,
            add_dataloader_idx,
            rank_zero_only,
        )
        metrics.log(name, value, settings, enable_graph, batch_size)

    def log_dict(self, dictionary: Mapping[str, object], *args: Any, **kwargs: Any) -> None:
        """Record several values with the same arguments; see `log`.

        A `torchmetrics.MetricCollection` is a mapping too.
        """
        with_prefix: dict[str, bool] = (
            {"keep_base": False} if type(dictionary).__name__ == "MetricCollection" else {}
        )
        for name, value in dictionary.items(**with_prefix):
            self.log(name, value, *args, **kwargs)

    def log_figure(self, name: str, figure: object) -> None:
        """Keep a matplotlib figure with the run, at the step that runs.

        Rank 0 only, by the loggers that can (those of raylit); others leave it out, and that is
        said once. The figure is drawn at once, about 0.1 s, and to MLflow sent in the background:
        it may be closed or drawn over afterwards.

        Args:
            name: such as `confusion`; a `/` makes folders.
            figure: a `matplotlib.figure.Figure`.

        Example:
            >>> def on_validation_epoch_end(self):
            ...     figure, axes = plt.subplots()
            ...     axes.plot(self.errors)
            ...     self.log_figure("errors", figure)
        """
        self._hand_on("log_figure", name, figure)

    def log_image(self, name: str, image: object) -> None:
        """Keep an image with the run, at the step that runs; see `log_figure`.

        Args:
            name: MLflow shows the images of one name in a row, by their steps.
            image: a PIL image, or an array or tensor of shape (H, W), (H, W, C) or (C, H, W), with
                C of 1, 3 or 4: integers from 0 to 255, or floats from 0 to 1.
        """
        self._hand_on("log_image", name, image)

    def log_table(self, name: str, table: object) -> None:
        """Keep a table with the run, at the step that runs; see `log_figure`.

        Args:
            name: such as `mistakes`.
            table: a pandas DataFrame, or a mapping of columns to lists of equal length.
        """
        self._hand_on("log_table", name, table)

    def log_text(self, name: str, text: str) -> None:
        """Keep a text with the run; see `log_figure`.

        Args:
            name: its path, such as `notes/errors.txt`.
            text: what stands in it.
        """
        for logger in self._loggers_with("log_text"):
            getattr(logger, "log_text")(text, name)  # noqa: B009

    def _hand_on(self, method: str, name: str, value: object) -> None:
        step = self.trainer.global_step
        for logger in self._loggers_with(method):
            getattr(logger, method)(name, value, step)

    def _loggers_with(self, method: str) -> list[Logger]:
        """Return the loggers of rank 0 that have a method; say once which have not."""
        trainer = self.trainer
        if not trainer.is_global_zero or trainer.sanity_checking:
            return []
        able = [logger for logger in trainer.loggers if hasattr(logger, method)]
        for logger in trainer.loggers:
            if logger not in able:
                kind = type(logger).__name__
                warn_once(f"{kind} has no {method}: what self.{method} is given is not kept by it.")
        return able

    def print(self, *args: object, **kwargs: Any) -> None:
        """Print on rank 0, above the progress bar."""
        self.trainer.print(*args, **kwargs)

    def attach_log(self, metrics: Log | None) -> None:
        """Let `self.log`, here and in modules within this one, fill `metrics`; None: it is off."""
        for child in self.modules():
            if isinstance(child, LightningModule):
                child._metrics = metrics

    # ---- the running trainer ----

    @property
    def trainer(self) -> RunningTrainer:
        """The Trainer that runs this module.

        Raises:
            RuntimeError: none does.
        """
        trainer = self._trainer() if self._trainer is not None else None
        if trainer is None and not _is_traced.get():
            raise RuntimeError(f"{type(self).__qualname__} is not attached to a `Trainer`.")
        return trainer  # type: ignore[return-value]  # None while it is traced

    @trainer.setter
    def trainer(self, trainer: RunningTrainer | None) -> None:
        # Weak, so that a module that is kept does not keep the Trainer and its run alive
        self._trainer = None if trainer is None else weakref.ref(trainer)
        for child in self.children():
            if isinstance(child, LightningModule):
                child.trainer = trainer

    @property
    def _attached(self) -> RunningTrainer | None:
        return self._trainer() if self._trainer is not None else None

    @property
    def current_epoch(self) -> int:
        """Epochs completed; 0 if unattached."""
        return self._attached.current_epoch if self._attached else 0

    @property
    def global_step(self) -> int:
        """Optimizer steps taken; 0 if unattached."""
        return self._attached.global_step if self._attached else 0

    @property
    def global_rank(self) -> int:
        """Rank among all processes; 0 if unattached."""
        return self._attached.global_rank if self._attached else 0

    @property
    def local_rank(self) -> int:
        """Rank among the processes of this node; 0 if unattached."""
        return self._attached.local_rank if self._attached else 0

    @property
    def logger(self) -> Logger | None:
        """The first logger, or None."""
        return self._attached.logger if self._attached else None

    @property
    def loggers(self) -> list[Logger]:
        """All loggers."""
        return self._attached.loggers if self._attached else []

    @property
    def device(self) -> torch.device:
        """Device of the first parameter or buffer; the CPU if there is none."""
        return next(
            (tensor.device for tensor in chain(self.parameters(), self.buffers())),
            torch.device("cpu"),
        )

    @property
    def dtype(self) -> torch.dtype:
        """Type of the first floating-point parameter or buffer."""
        dtypes = (tensor.dtype for tensor in chain(self.parameters(), self.buffers()))
        return next(
            (dtype for dtype in dtypes if dtype.is_floating_point), torch.get_default_dtype()
        )

    @property
    def on_gpu(self) -> bool:
        """Whether `device` is a CUDA device."""
        return self.device.type == "cuda"

    @property
    def strict_loading(self) -> bool:
        """Whether the keys of a loaded `state_dict` must match exactly; True unless set."""
        return True if self._strict_loading is None else self._strict_loading

    @strict_loading.setter
    def strict_loading(self, value: bool) -> None:
        self._strict_loading = value

    # ---- manual optimization and helpers ----

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        """Return the optimizer, or the list of them.

        Wrapped so that `step` counts and hooks fire, unless `use_pl_optimizer` is False.
        """
        found = self.trainer.wrapped_optimizers if use_pl_optimizer else self.trainer.optimizers
        return found[0] if len(found) == 1 else found

    def lr_schedulers(self) -> Any:
        """Return the scheduler, the list of them, or None."""
        schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        if not schedulers:
            return None
        return schedulers[0] if len(schedulers) == 1 else schedulers

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass in manual optimization.

        With the hooks around it and the loss scaled where precision asks for it.
        """
        if self.automatic_optimization:
            raise ConfigError(
                "to use manual_backward, please disable automatic optimization: "
                "manual_backward needs manual optimization: set self.automatic_optimization = False"
                " in __init__."
            )
        self.trainer.backward(loss, *args, **kwargs)

    def clip_gradients(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients of the optimizer's parameters; None: as the Trainer's arguments say.

        Raises:
            ConfigError: the values differ from those given to the Trainer, or the algorithm is not
                `norm` or `value`.
        """
        trainer = self.trainer
        for name, own, given in (
            ("gradient_clip_val", gradient_clip_val, trainer.gradient_clip_val),
            ("gradient_clip_algorithm", gradient_clip_algorithm, trainer.gradient_clip_algorithm),
        ):
            if own is not None and given is not None and own != given:
                raise ConfigError(
                    f"You have set `Trainer({name}={given!r})` and have passed"
                    f" `clip_gradients({name}={own!r})`. Please use only one of them: "
                    f"Trainer({name}={given!r}) and clip_gradients({name}={own!r}) disagree. Set it"
                    " in one of the two only."
                )
        value = trainer.gradient_clip_val if gradient_clip_val is None else gradient_clip_val
        algorithm = (gradient_clip_algorithm or trainer.gradient_clip_algorithm or "norm").lower()
        if algorithm not in ("norm", "value"):
            raise ConfigError(
                f"gradient_clip_algorithm={algorithm!r} is not known. Use 'norm' or 'value'."
            )
        clip = nn.utils.clip_grad_value_ if algorithm == "value" else nn.utils.clip_grad_norm_
        if value is not None and value > 0:
            clip(_parameters_of(optimizer), value)

    def toggle_optimizer(self, optimizer: UserOptimizer) -> None:
        """Let only the parameters of `optimizer` require gradients, until `untoggle_optimizer`."""
        remembered: dict[Tensor, bool] = {}
        for other in self.trainer.optimizers:
            for parameter in _parameters_of(other):
                # The first answer counts: a parameter of two optimizers is frozen the second time
                remembered.setdefault(parameter, parameter.requires_grad)
                parameter.requires_grad = False
        for parameter in _parameters_of(optimizer):
            parameter.requires_grad = remembered.get(parameter, True)
        self._toggled = remembered

    def untoggle_optimizer(self, optimizer: UserOptimizer) -> None:
        """Undo `toggle_optimizer`."""
        own = set(_parameters_of(optimizer))
        for parameter, requires_grad in self._toggled.items():
            if parameter not in own:
                parameter.requires_grad = requires_grad
        self._toggled = {}

    @contextmanager
    def toggled_optimizer(self, optimizer: UserOptimizer) -> Iterator[None]:
        """Let only the parameters of `optimizer` require gradients, for a `with` block."""
        self.toggle_optimizer(optimizer)
        try:
            yield
        finally:
            self.untoggle_optimizer(optimizer)

    def all_gather(self, data: object, group: object = None, sync_grads: bool = False) -> Any:
        """Return `data` with every tensor stacked over the ranks, shape (world_size, *shape).

        Unchanged on one rank.
        """
        return self.trainer.all_gather(data, sync_grads=sync_grads)

    def freeze(self) -> Self:
        """Stop training all parameters and switch to eval mode."""
        return self.requires_grad_(False).eval()

    def unfreeze(self) -> Self:
        """Train all parameters and switch to train mode."""
        return self.requires_grad_(True).train()

    # ---- storing ----

    @class_only
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | PathLike[str] | IO[bytes],
        map_location: Any = None,
        hparams_file: str | None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: object,
    ) -> Self:
        """Make a module with the stored hyperparameters and weights.

        Args:
            checkpoint_path: path or URL of a checkpoint of raylit or Lightning, or a binary file
                that is open.
            map_location: device of the result; see `torch.load`. Default: the CPU.
            hparams_file: YAML file with hyperparameters, for checkpoints that have none.
            strict: whether keys must match exactly; default `strict_loading`.
            weights_only: False lets the file run code; see `raylit.checkpoint.load`.
            kwargs: arguments of `__init__` that win over the stored ones.

        Raises:
            CheckpointError: the file is missing (which is a FileNotFoundError too), torn or unsafe.
            TypeError: it was called on an object: it makes a new one, and would leave that as it
                is.
        """
        checkpoint = checkpoints.load(
            checkpoint_path, map_location=map_location or "cpu", weights_only=weights_only
        )
        module = construct(cls, checkpoint, hparams_file, kwargs)
        if (
            strict is not None
            and module._strict_loading is not None
            and strict != module.strict_loading
        ):
            raise ConfigError(
                f"load_from_checkpoint(strict={strict}) and"
                f" {cls.__name__}.strict_loading={module.strict_loading} disagree. Set one of them."
            )
        # Parts that it makes have to be there when the weights come
        module.configure_model()
        objects.put_back(checkpoint, cls)
        with foreign.explaining(checkpoint):
            module.on_load_checkpoint(checkpoint)
        module.load_state_dict(
            checkpoint["state_dict"], strict=module.strict_loading if strict is None else strict
        )
        # The device that `map_location` has put the weights on
        first = next(iter(checkpoint["state_dict"].values()), None)
        return module.to(first.device) if isinstance(first, Tensor) else module

    def state_dict(self, *args: Any, **kwargs: Any) -> StateDict:  # type: ignore[override]
        """Return the weights and buffers by name, as `nn.Module.state_dict` does.

        A part that is a `torch.compile(part)` has the names of the part itself, so that a
        checkpoint is the same whether or not parts were compiled.
        """
        state: StateDict = super().state_dict(*args, **kwargs)
        if any(OF_COMPILED in name for name in state):
            # In place: it may be the dict that a parent hands down, and carries `_metadata`
            entries = list(state.items())
            state.clear()
            state.update((name.replace(OF_COMPILED, ""), value) for name, value in entries)
        return state

    def _load_from_state_dict(
        self, state_dict: StateDict, prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Give the parts compiled here, or compiled where the state comes from, their names."""
        compiled = [
            f"{prefix}{name}."
            for name, _ in self.named_modules()
            if f"{name}.".endswith(OF_COMPILED)
        ]
        own = {name.replace(OF_COMPILED, ""): name for name in compiled}
        if own or any(OF_COMPILED in name for name in state_dict):
            for name in [name for name in state_dict if name.startswith(prefix)]:
                state_dict[_name_here(name, own)] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def __getstate__(self) -> StateDict:
        return {
            **super().__getstate__(),  # type: ignore[no-untyped-call]
            "_trainer": None,
            "_metrics": None,
            "_torch_compile": None,
        }


def _parameters_of(optimizer: UserOptimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _name_here(name: str, compiled: dict[str, str]) -> str:
    """Return the name of an entry of a state, where the parts that begin so are `compiled`."""
    name = name.replace(OF_COMPILED, "")
    within = max((plain for plain in compiled if name.startswith(plain)), key=len, default="")
    return compiled.get(within, "") + name.removeprefix(within)
