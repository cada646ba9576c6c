"""BaseFinetuning and BackboneFinetuning.

Train with parts of the module frozen, and unfreeze them as epochs go by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from torch.nn import Module, ModuleDict, Parameter
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from raylit.core.callback import Callback
from raylit.errors import ConfigError
from raylit.runtime.aliases import ParamGroup, StateDict
from raylit.runtime.messages import info, warn

if TYPE_CHECKING:
    from raylit.core.module import LightningModule
    from raylit.core.trainer import RunningTrainer

Groups = list[ParamGroup]
Modules = Module | Iterable[Any]  # a module, or modules nested in lists and dicts


class BaseFinetuning(Callback):
    """Base of callbacks that freeze parts of the module before training and unfreeze them later.

    Override the two methods that say so.

    `freeze_before_training` runs before `configure_optimizers`, which has to leave frozen
    parameters out of the optimizer. `finetune_function` runs at the start of every epoch and adds
    the parameters that it unfreezes to the optimizer. A fit that goes on from a checkpoint has the
    same parameters unfrozen, in the same parameter groups.

    Example:
        >>> class Unfreeze(BaseFinetuning):
        ...     def freeze_before_training(self, pl_module):
        ...         self.freeze(pl_module.encoder)
        ...
        ...     def finetune_function(self, pl_module, epoch, optimizer):
        ...         if epoch == 10:
        ...             self.unfreeze_and_add_param_group(pl_module.encoder, optimizer)
    """

    def __init__(self) -> None:
        self._internal_optimizer_metadata: dict[int, Groups] = {}
        self._requires_grad: dict[str, bool] = {}
        self._tracks_statistics: dict[str, bool] = {}  # of batch norms
        self._restarting = False

    # ---- to override ----

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        """Freeze modules when training starts."""
        raise NotImplementedError

    def finetune_function(
        self, pl_module: LightningModule, epoch: int, optimizer: Optimizer
    ) -> None:
        """Unfreeze the modules that are due in this epoch; called for each optimizer."""
        raise NotImplementedError

    # ---- to call ----

    @staticmethod
    def flatten_modules(modules: Modules) -> list[Module]:
        """Return all modules within that have parameters of their own or no children.

        Args:
            modules: a module, or modules nested in lists and dicts.
        """
        if isinstance(modules, ModuleDict):
            modules = modules.values()
        if isinstance(modules, Iterable):
            found = [leaf for one in modules for leaf in BaseFinetuning.flatten_modules(one)]
        else:
            found = list(modules.modules())
        return [module for module in found if module._parameters or not list(module.children())]

    @staticmethod
    def filter_params(
        modules: Modules, train_bn: bool = True, requires_grad: bool = True
    ) -> Iterator[Parameter]:
        """Yield the parameters that require a gradient, or those that do not.

        Args:
            modules: as for `flatten_modules`.
            train_bn: whether those of batch norms are among them.
            requires_grad: which ones.
        """
        for module in BaseFinetuning.flatten_modules(modules):
            if train_bn or not isinstance(module, _BatchNorm):
                yield from (
                    one
                    for one in module.parameters(recurse=False)
                    if one.requires_grad == requires_grad
                )

    @staticmethod
    def make_trainable(modules: Modules) -> None:
        """Unfreeze all parameters within; batch norms go on with their running statistics."""
        for module in BaseFinetuning.flatten_modules(modules):
            _set_trainable(module, True)

    @staticmethod
    def freeze_module(module: Module) -> None:
        """Freeze the module's own parameters, not those of its children.

        A batch norm no longer follows the data.
        """
        _set_trainable(module, False)

    @staticmethod
    def freeze(modules: Modules, train_bn: bool = True) -> None:
        """Freeze all parameters within.

        Args:
            modules: as for `flatten_modules`.
            train_bn: whether batch norms are left trainable.
        """
        for module in BaseFinetuning.flatten_modules(modules):
            _set_trainable(module, train_bn and isinstance(module, _BatchNorm))

    @staticmethod
    def filter_on_optimizer(optimizer: Optimizer, params: Iterable[Parameter]) -> list[Parameter]:
        """Return the parameters that the optimizer does not have yet; warn of the others."""
        params = list(params)
        # By identity, since == compares the values of tensors
        held = {id(one) for group in optimizer.param_groups for one in group["params"]}
        new = [one for one in params if id(one) not in held]
        if len(new) < len(params):
            warn(
                f"{len(params) - len(new)} of the {len(params)} parameters to add are in the"
                " optimizer already, and stay in their group. Give only what is not frozen to the"
                f" optimizer: {type(optimizer).__name__}(filter(lambda p: p.requires_grad,"
                " self.parameters()), ...)."
            )
        return new

    @staticmethod
    def unfreeze_and_add_param_group(
        modules: Modules,
        optimizer: Optimizer,
        lr: float | None = None,
        initial_denom_lr: float = 10.0,
        train_bn: bool = True,
    ) -> None:
        """Unfreeze all parameters within and give them to the optimizer as a new group.

        Args:
            modules: as for `flatten_modules`.
            optimizer: gets the group.
            lr: learning rate of the group. None: that of the first group, divided by
                `initial_denom_lr`.
            initial_denom_lr: see `lr`.
            train_bn: whether parameters of batch norms are in the group.
        """
        BaseFinetuning.make_trainable(modules)
        params = BaseFinetuning.filter_on_optimizer(
            optimizer, BaseFinetuning.filter_params(modules, train_bn=train_bn)
        )
        if params:
            rate = optimizer.param_groups[0]["lr"] / initial_denom_lr if lr is None else float(lr)
            optimizer.add_param_group({"params": params, "lr": rate})

    # ---- events ----

    def setup(self, trainer: RunningTrainer, pl_module: LightningModule, stage: str) -> None:
        self._restarting = False
        if stage == "fit":
            self._internal_optimizer_metadata = {}
        self.freeze_before_training(pl_module)

    def on_fit_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        """Bring back the groups of the checkpoint, and unfreeze the parameters that were."""
        if not self._restarting:
            return
        self._restarting = False
        parameters = dict(pl_module.named_parameters())
        for index, groups in self._internal_optimizer_metadata.items():
            optimizer = trainer.optimizers[index]
            num_first = len(optimizer.param_groups)
            # Before the optimizer's state is loaded, which needs as many groups and parameters
            optimizer.param_groups = [
                {**group, "params": [parameters[name] for name in group["params"]]}
                for group in groups
            ]
            # A checkpoint of Lightning does not say what was unfrozen, but that is what was added
            if not self._requires_grad:
                for group in optimizer.param_groups[num_first:]:
                    for parameter in group["params"]:
                        parameter.requires_grad = True
        for name, required in self._requires_grad.items():
            parameters[name].requires_grad = required
        for name, tracks in self._tracks_statistics.items():
            batch_norm = pl_module.get_submodule(name)
            assert isinstance(batch_norm, _BatchNorm)
            batch_norm.track_running_stats = tracks

    def on_train_epoch_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        names = {parameter: name for name, parameter in pl_module.named_parameters()}
        for index, optimizer in enumerate(trainer.optimizers):
            num_before = len(optimizer.param_groups)
            self.finetune_function(pl_module, trainer.current_epoch, optimizer)
            kept = self._internal_optimizer_metadata.setdefault(index, [])
            # At first also those of `configure_optimizers`: `on_fit_start` replaces all groups
            added = optimizer.param_groups[num_before if kept else 0 :]
            kept.extend(
                {**group, "params": [names[one] for one in group["params"]]} for group in added
            )
        self._requires_grad = {name: parameter.requires_grad for parameter, name in names.items()}
        batch_norms = (
            (name, one) for name, one in pl_module.named_modules() if isinstance(one, _BatchNorm)
        )
        self._tracks_statistics = {name: one.track_running_stats for name, one in batch_norms}

    def state_dict(self) -> StateDict:
        return {
            "internal_optimizer_metadata": self._internal_optimizer_metadata,
            "requires_grad": self._requires_grad,
            "tracks_statistics": self._tracks_statistics,
        }

    def load_state_dict(self, state_dict: StateDict) -> None:
        self._restarting = True
        self._internal_optimizer_metadata = state_dict["internal_optimizer_metadata"]
        self._requires_grad = state_dict.get("requires_grad", {})
        self._tracks_statistics = state_dict.get("tracks_statistics", {})


def _set_trainable(module: Module, trainable: bool) -> None:
    """Freeze or unfreeze a module's own parameters."""
    if isinstance(module, _BatchNorm):
        module.track_running_stats = trainable
    for parameter in module.parameters(recurse=False):
        parameter.requires_grad = trainable


def multiplicative(epoch: int) -> float:
    """Return the factor by which the backbone's learning rate grows with each epoch."""
    return 2.0


class BackboneFinetuning(BaseFinetuning):
    """Trains with `module.backbone` frozen at first, then with a learning rate that grows.

    Args:
        unfreeze_backbone_at_epoch: the epoch, counted from 0, from which on the backbone is
            trained.
        lambda_func: from the number of the next epoch to the factor by which the backbone's
            learning rate grows.
        backbone_initial_ratio_lr: the backbone's first learning rate, as a part of the module's.
        backbone_initial_lr: the backbone's first learning rate itself.
        should_align: whether it grows no further than the module's.
        initial_denom_lr: unused here, as the learning rate is given; kept for subclasses.
        train_bn: whether the backbone's batch norms are trained too.
        verbose: whether to say the learning rates.
        rounding: digits of the learning rates said.

    Raises:
        ConfigError: before training starts, if the module has no module `backbone`.

    Example:
        >>> trainer = Trainer(max_epochs=20, callbacks=[BackboneFinetuning(10, lambda epoch: 1.5)])
    """

    def __init__(
        self,
        unfreeze_backbone_at_epoch: int = 10,
        lambda_func: Callable[[int], float] = multiplicative,
        backbone_initial_ratio_lr: float = 10e-2,
        backbone_initial_lr: float | None = None,
        should_align: bool = True,
        initial_denom_lr: float = 10.0,
        train_bn: bool = True,
        verbose: bool = False,
        rounding: int = 12,
    ) -> None:
        super().__init__()
        self.unfreeze_backbone_at_epoch = unfreeze_backbone_at_epoch
        self.lambda_func = lambda_func
        self.backbone_initial_ratio_lr = backbone_initial_ratio_lr
        self.backbone_initial_lr = backbone_initial_lr
        self.should_align = should_align
        self.initial_denom_lr = initial_denom_lr
        self.train_bn = train_bn
        self.verbose = verbose
        self.rounding = rounding
        self.previous_backbone_lr: float | None = None

    def setup(self, trainer: RunningTrainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(getattr(pl_module, "backbone", None), Module):
            raise ConfigError(
                f"BackboneFinetuning needs a torch module as {type(pl_module).__name__}.backbone."
                " Give the part to be frozen that name: self.backbone = ... in __init__."
            )
        if stage == "fit":
            self.previous_backbone_lr = None
        super().setup(trainer, pl_module, stage)

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        self.freeze(_backbone(pl_module))

    def finetune_function(
        self, pl_module: LightningModule, epoch: int, optimizer: Optimizer
    ) -> None:
        if epoch < self.unfreeze_backbone_at_epoch:
            return
        current = optimizer.param_groups[0]["lr"]
        # None: this fit began later
        if epoch == self.unfreeze_backbone_at_epoch or self.previous_backbone_lr is None:
            rate = (
                current * self.backbone_initial_ratio_lr
                if self.backbone_initial_lr is None
                else self.backbone_initial_lr
            )
            self.unfreeze_and_add_param_group(
                _backbone(pl_module), optimizer, rate, self.initial_denom_lr, self.train_bn
            )
        else:
            rate = self.lambda_func(epoch + 1) * self.previous_backbone_lr
            if self.should_align and rate > current:
                rate = current
            optimizer.param_groups[-1]["lr"] = rate
        self.previous_backbone_lr = rate
        if self.verbose:
            info(
                f"Current lr: {round(current, self.rounding)}, Backbone lr:"
                f" {round(rate, self.rounding)}"
            )

    def state_dict(self) -> StateDict:
        return {**super().state_dict(), "previous_backbone_lr": self.previous_backbone_lr}

    def load_state_dict(self, state_dict: StateDict) -> None:
        super().load_state_dict(state_dict)
        self.previous_backbone_lr = state_dict["previous_backbone_lr"]


def _backbone(module: LightningModule) -> Module:
    backbone = module.backbone
    assert isinstance(backbone, Module)
    return backbone
