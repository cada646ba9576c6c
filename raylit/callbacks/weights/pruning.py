"""ModelPruning.

Sets the least important weights to 0 as epochs go by, with torch.nn.utils.prune.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch import bool as torch_bool
from torch.nn.utils import prune

from raylit.checkpoint import to_plain
from raylit.core.callback import Callback
from raylit.core.module import LightningModule
from raylit.errors import ConfigError, did_you_mean
from raylit.runtime.aliases import CheckpointDict, StateDict
from raylit.runtime.messages import info

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from raylit.core.trainer import RunningTrainer

Parameters = Sequence[tuple[nn.Module, str]]

METHODS: dict[str, tuple[type[prune.BasePruningMethod], Callable[..., object]]] = {
    "ln_structured": (prune.LnStructured, prune.ln_structured),
    "l1_unstructured": (prune.L1Unstructured, prune.l1_unstructured),
    "random_structured": (prune.RandomStructured, prune.random_structured),
    "random_unstructured": (prune.RandomUnstructured, prune.random_unstructured),
}
# As in Lightning, parameters that these have themselves are not pruned
CONTAINERS = (LightningModule, nn.Sequential, nn.ModuleList, nn.ModuleDict)


class ModelPruning(Callback):
    """Prunes weights at the end of epochs.

    Pruned weights stay 0 from then on, and each time `amount` of the remaining ones is pruned too.

    With the lottery ticket hypothesis the remaining weights begin again from their values before
    training. On several ranks, the weights that rank 0 prunes are pruned on all. A checkpoint holds
    the masks, so that a fit that goes on has the same weights pruned.

    Args:
        pruning_fn: "l1_unstructured", "random_unstructured", "ln_structured", "random_structured",
            or a class of `BasePruningMethod`.
        parameters_to_prune: modules and the names of their parameters. Empty: all of the module
            that have one of `parameter_names`.
        parameter_names: "weight", "bias" or both; None for both.
        use_global_unstructured: whether the least important of all parameters are pruned, or those
            of each parameter on its own.
        amount: a float from 0.0 to 1.0 is a part, an int a number; or a function from the epoch to
            one of them, None or 0 for nothing.
        apply_pruning: whether to prune; or a function from the epoch.
        make_pruning_permanent: whether the module and its checkpoints end with plain weights,
            rather than with masks and what they cover.
        use_lottery_ticket_hypothesis: whether to begin again after pruning; or a function from the
            epoch.
        resample_parameters: whether to begin again from new random weights.
        pruning_dim: along which dimension structured methods prune.
        pruning_norm: which norm "ln_structured" goes by.
        verbose: 1 says how much is pruned, 2 for each parameter.
        prune_on_train_epoch_end: False prunes at the end of each validation.

    Raises:
        ConfigError: an argument is none of these, a structured method lacks its dimension or norm,
            a method cannot prune globally; or, before training starts, `parameters_to_prune` are
            not the module's.

    Source: Frankle and Carbin, "The Lottery Ticket Hypothesis", 2019,
        https://arxiv.org/abs/1803.03635

    Example:
        >>> trainer = Trainer(
        ...     max_epochs=10,
        ...     callbacks=[
        ...         ModelPruning("l1_unstructured", amount=0.2, use_lottery_ticket_hypothesis=False)
        ...     ],
        ... )
    """

    PARAMETER_NAMES = ("weight", "bias")

    def __init__(
        self,
        pruning_fn: Callable[..., Any] | str,
        parameters_to_prune: Parameters = (),
        parameter_names: list[str] | None = None,
        use_global_unstructured: bool = True,
        amount: int | float | Callable[[int], int | float] = 0.5,
        apply_pruning: bool | Callable[[int], bool] = True,
        make_pruning_permanent: bool = True,
        use_lottery_ticket_hypothesis: bool | Callable[[int], bool] = True,
        resample_parameters: bool = False,
        pruning_dim: int | None = None,
        pruning_norm: int | None = None,
        verbose: int = 0,
        prune_on_train_epoch_end: bool = True,
    ) -> None:
        for name in parameter_names or ():
            if name not in self.PARAMETER_NAMES:
                raise ConfigError(
                    f"parameter_names has {name!r}; there are 'weight' and"
                    f" 'bias'.{did_you_mean(name, self.PARAMETER_NAMES)}"
                )
        if not (isinstance(amount, (int, float)) or callable(amount)):
            raise ConfigError(
                f"amount={amount!r} is no amount. Give a part such as 0.5, a number such as 100, or"
                " a function from the epoch."
            )
        if verbose not in (0, 1, 2):
            raise ConfigError(f"verbose={verbose!r} is not known. Use 0, 1 or 2.")
        self.pruning_fn, self._method_kwargs = find_method(
            pruning_fn, use_global_unstructured, pruning_dim, pruning_norm
        )
        self.amount = amount
        self._given: Sequence[tuple[nn.Module | str, str]] = parameters_to_prune
        self._parameter_names = parameter_names or self.PARAMETER_NAMES
        self._use_global_unstructured = use_global_unstructured
        self._apply_pruning = apply_pruning
        self._make_pruning_permanent = make_pruning_permanent
        self._use_lottery_ticket_hypothesis = use_lottery_ticket_hypothesis
        self._resample_parameters = resample_parameters
        self._verbose = verbose
        self._prune_on_train_epoch_end = prune_on_train_epoch_end
        self._parameters_to_prune: Parameters = ()
        self._names: dict[int, str] = {}  # of modules, by id
        self._originals: dict[str, Tensor] = {}
        # By id of the module, to be given new random weights
        self._copies: dict[int, nn.Module] = {}
        # Masks, and what they cover, of the checkpoint to go on from
        self._loaded: dict[str, Tensor] = {}
        self._state: StateDict | None = None  # while no fit runs: of the last one
        self._hook: RemovableHandle | None = None

    @property
    def state_key(self) -> str:
        method = getattr(self.pruning_fn, "__name__", str(self.pruning_fn))
        amount = "function" if callable(self.amount) else self.amount
        return self._generate_state_key(pruning_fn=method, amount=amount)

    # ---- to override, to call ----

    def filter_parameters_to_prune(self, parameters_to_prune: Parameters = ()) -> Parameters:
        """Return those of the parameters that are to be pruned. To override."""
        return parameters_to_prune

    @staticmethod
    def sanitize_parameters_to_prune(
        pl_module: LightningModule,
        parameters_to_prune: Sequence[tuple[nn.Module | str, str]] = (),
        parameter_names: Sequence[str] = (),
    ) -> Parameters:
        """Return the parameters to prune: those given, or all with one of the names.

        Raises:
            ConfigError: what is given is not the module's.
        """
        given = parameters_to_prune
        names = parameter_names or ModelPruning.PARAMETER_NAMES
        parts = [module for module in pl_module.modules() if not isinstance(module, CONTAINERS)]
        if not given:
            return [
                (module, name)
                for name in names
                for module in parts
                if isinstance(_unmasked(module, name), nn.Parameter)
            ]
        if not (
            isinstance(given, (list, tuple))
            and all(len(one) == 2 and isinstance(one[1], str) for one in given)
        ):
            raise ConfigError(
                "parameters_to_prune is no list of modules and names. Write [(model.layer,"
                " 'weight')]."
            )
        known = dict(pl_module.named_modules())
        found: list[tuple[nn.Module, str]] = []
        for module, name in given:
            one = known.get(module) if isinstance(module, str) else module
            if not any(one is part for part in parts) or not isinstance(
                _unmasked(one, name), nn.Parameter
            ):
                raise ConfigError(
                    f"parameters_to_prune has ({module}, {name!r}), which is no parameter of"
                    f" {type(pl_module).__name__}. Give modules of the model that is trained, and"
                    " names of their parameters."
                )
            found.append((one, name))  # type: ignore[arg-type]
        return found

    def apply_pruning(self, amount: int | float) -> None:
        """Prune `amount` of the weights that are left."""
        before = [_count(*one) for one in self._parameters_to_prune] if self._verbose else []
        if self._use_global_unstructured:
            # `global_unstructured` hands all its arguments to the method, whatever that takes
            wanted = {
                name for name in inspect.signature(self.pruning_fn).parameters if name != "self"
            }
            kwargs = {
                name: value
                for name, value in {**self._method_kwargs, "amount": amount}.items()
                if name in wanted
            }
            prune.global_unstructured(
                self._parameters_to_prune, pruning_method=self.pruning_fn, **kwargs
            )
        else:
            for module, name in self._parameters_to_prune:
                self.pruning_fn(module, name=name, amount=amount, **self._method_kwargs)
        if self._verbose:
            self._tell(before, amount)

    def apply_lottery_ticket_hypothesis(self) -> None:
        """Set the weights back to those before training, or to new random ones."""
        fresh = {key: deepcopy(copy) for key, copy in self._copies.items()}
        for copy in fresh.values():
            copy.reset_parameters()  # type: ignore[operator]
        for module, name in self._parameters_to_prune:
            source = (
                getattr(fresh[id(module)], name)
                if id(module) in fresh
                else self._originals[self._name(module, name)]
            )
            target = _unmasked(module, name)
            target.data = source.detach().clone().to(target.device)

    def make_pruning_permanent(self, module: nn.Module) -> None:
        """Give a module and its parts plain weights, 0 where they were pruned."""
        for part in module.modules():
            for key, hook in list(part._forward_pre_hooks.items()):
                if isinstance(hook, prune.BasePruningMethod):
                    hook.remove(part)
                    del part._forward_pre_hooks[key]

    # ---- events ----

    def setup(self, trainer: RunningTrainer, pl_module: LightningModule, stage: str) -> None:
        trainer.strategy.refuse_if_sharded("ModelPruning compares the weights of the whole model")
        self._names = {id(module): name for name, module in pl_module.named_modules()}
        self._parameters_to_prune = self.filter_parameters_to_prune(
            self.sanitize_parameters_to_prune(pl_module, self._given, self._parameter_names)
        )
        # By name, to find them again in a module that has come back from another process
        if self._given:
            self._given = [
                (self._names[id(module)], name) for module, name in self._parameters_to_prune
            ]
        self._hook = nn.Module.register_load_state_dict_pre_hook(pl_module, _without_masks)
        if stage != "fit":
            return
        self._state = None
        self._loaded = {}
        self._originals = {}
        self._copies = {}
        if self._use_lottery_ticket_hypothesis:
            for module, name in self._parameters_to_prune:
                self._originals[self._name(module, name)] = _unmasked(module, name).detach().clone()
                if self._resample_parameters and callable(
                    getattr(module, "reset_parameters", None)
                ):
                    self._copies.setdefault(id(module), deepcopy(module))

    def on_fit_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        """Mask the weights again that were pruned in the checkpoint.

        The optimizer, made before, has the parameters in the order it had them at first.
        """
        for module, name in self._parameters_to_prune:
            key = self._name(module, name)
            if f"{key}_mask" in self._loaded and not hasattr(module, f"{name}_mask"):
                prune.custom_from_mask(
                    module, name, self._loaded[f"{key}_mask"].to(getattr(module, name))
                )
            if f"{key}_orig" in self._loaded:
                _unmasked(module, name).data.copy_(self._loaded[f"{key}_orig"])
        self._loaded = {}

    def on_train_epoch_end(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        if self._prune_on_train_epoch_end:
            self._run_pruning(trainer)

    def on_validation_epoch_end(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        if (
            not self._prune_on_train_epoch_end
            and trainer.state.fn == "fit"
            and not trainer.sanity_checking
        ):
            self._run_pruning(trainer)

    def on_train_end(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        # Before the masks are gone: a checkpoint that is saved later has to tell of them
        self._state = to_plain(self.state_dict())
        if self._make_pruning_permanent:
            self.make_pruning_permanent(pl_module)

    def teardown(self, trainer: RunningTrainer, pl_module: LightningModule, stage: str) -> None:
        self._let_go()

    def on_exception(
        self, trainer: RunningTrainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        # The rest stays: callbacks that save at an exception come later, and ask for the masks
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def on_save_checkpoint(
        self, trainer: RunningTrainer, pl_module: LightningModule, checkpoint: CheckpointDict
    ) -> None:
        if self._make_pruning_permanent:
            checkpoint["state_dict"] = without_masks(checkpoint["state_dict"])

    def on_load_checkpoint(
        self, trainer: RunningTrainer, pl_module: LightningModule, checkpoint: CheckpointDict
    ) -> None:
        if trainer.state.fn == "fit":
            self._loaded = {
                key: value
                for key, value in checkpoint["state_dict"].items()
                if key.endswith(("_mask", "_orig"))
            }

    def state_dict(self) -> StateDict:
        if self._state is not None:
            return self._state
        masks = {
            self._name(*one): getattr(one[0], f"{one[1]}_mask", None)
            for one in self._parameters_to_prune
        }
        return {
            "masks": {
                name: mask.to(torch_bool) for name, mask in masks.items() if mask is not None
            },
            "originals": self._originals,
        }

    def load_state_dict(self, state_dict: StateDict) -> None:
        self._loaded |= {f"{name}_mask": mask for name, mask in state_dict["masks"].items()}
        self._originals |= {
            name: value
            for name, value in state_dict["originals"].items()
            if name in self._originals
        }

    # ---- parts ----

    def _run_pruning(self, trainer: RunningTrainer) -> None:
        epoch = trainer.current_epoch
        amount = self.amount(epoch) if callable(self.amount) else self.amount
        if not amount or not _ask(self._apply_pruning, epoch):
            return
        self.apply_pruning(amount)
        if _ask(self._use_lottery_ticket_hypothesis, epoch):
            self.apply_lottery_ticket_hypothesis()
        # Random methods prune other weights on each rank, and new random weights differ too
        if trainer.world.size > 1:
            names = [f"{name}_mask" for _, name in self._parameters_to_prune]
            own = [
                getattr(module, name)
                for (module, _), name in zip(self._parameters_to_prune, names, strict=True)
            ]
            own += (
                [_unmasked(*one).data for one in self._parameters_to_prune]
                if self._resample_parameters
                else []
            )
            for tensor, of_rank_0 in zip(
                own, trainer.world.broadcast_object([one.cpu() for one in own]), strict=True
            ):
                tensor.copy_(of_rank_0)

    def _name(self, module: nn.Module, name: str) -> str:
        """Return the name of a parameter within the whole module."""
        prefix = self._names[id(module)]
        return f"{prefix}.{name}" if prefix else name

    def _tell(self, before: list[tuple[int, int]], amount: int | float) -> None:
        after = [_count(*one) for one in self._parameters_to_prune]
        method = getattr(self.pruning_fn, "__name__", str(self.pruning_fn))
        total = sum(size for _, size in after)
        was, now = (sum(zeros for zeros, _ in counts) for counts in (before, after))
        info(
            f"Applied `{method}`. Pruned: {was}/{total} ({was / total:.2%}) -> {now}/{total}"
            f" ({now / total:.2%})"
        )
        for one, (was, _), (now, size) in (
            zip(self._parameters_to_prune, before, after, strict=True) if self._verbose == 2 else ()
        ):
            info(
                f"Applied `{method}` to `{self._name(*one)}` with amount={amount}. Pruned: {was}"
                f" ({was / size:.2%}) -> {now} ({now / size:.2%})"
            )

    def _let_go(self) -> None:
        """Hold nothing of the module any longer."""
        if self._hook is not None:
            self._hook.remove()
        self._hook = None
        self._parameters_to_prune = ()
        self._names = {}
        self._originals = {}
        self._copies = {}


def find_method(
    pruning_fn: Callable[..., object] | str, is_global: bool, dim: int | None, norm: int | None
) -> tuple[Callable[..., object], dict[str, object]]:
    """Return the pruning method, a class for global pruning or a function, and its arguments.

    Raises:
        ConfigError: there is no such method, an argument is missing, or it cannot do what is asked.
    """
    kwargs: dict[str, object] = {}
    if isinstance(pruning_fn, str):
        name = pruning_fn.lower()
        if name not in METHODS:
            raise ConfigError(
                f"pruning_fn={pruning_fn!r} is not known; there are:"
                f" {', '.join(METHODS)}.{did_you_mean(name, METHODS)}"
            )
        if name.endswith("_structured"):
            if dim is None:
                raise ConfigError(
                    f"pruning_fn={pruning_fn!r} prunes along a dimension. Give pruning_dim, such"
                    " as 0."
                )
            kwargs["dim"] = dim
        if name == "ln_structured":
            if norm is None:
                raise ConfigError(
                    f"pruning_fn={pruning_fn!r} goes by a norm. Give pruning_norm, such as 2."
                )
            kwargs["n"] = norm
        method = METHODS[name][0]
        chosen: Callable[..., object] = method if is_global else METHODS[name][1]
    elif inspect.isclass(pruning_fn) and issubclass(pruning_fn, prune.BasePruningMethod):
        if not is_global:
            raise ConfigError(
                f"The method {pruning_fn.__name__} can only prune globally. Set"
                " use_global_unstructured=True."
            )
        chosen = method = pruning_fn
    else:
        raise ConfigError(
            f"pruning_fn={pruning_fn!r} is no method. Give one of {', '.join(METHODS)}, or a class"
            " of torch.nn.utils.prune.BasePruningMethod, not an object."
        )
    if is_global and getattr(method, "PRUNING_TYPE", None) != "unstructured":
        raise ConfigError(
            f"{method.__name__} prunes structures, each parameter on its own. Set"
            " use_global_unstructured=False."
        )
    return chosen, kwargs


def without_masks(state: StateDict) -> dict[str, object]:
    """Return the state of a module with plain weights in the place of masked ones."""
    plain = dict(state)
    for name in [key.removesuffix("_mask") for key in state if key.endswith("_mask")]:
        if f"{name}_orig" in state:
            mask = plain.pop(f"{name}_mask")
            covered = plain.pop(f"{name}_orig")
            plain[name] = mask.to(covered.dtype) * covered
    return plain


def _without_masks(module: nn.Module, state: StateDict, *_: object) -> None:
    """Before a state with masks is loaded: make it fit a module without."""
    if any(
        key.endswith("_orig") and key not in own for own in [module.state_dict()] for key in state
    ):
        plain = without_masks(state)
        state.clear()
        state.update(plain)


def _unmasked(module: object, name: str) -> Any:
    """Return a parameter; of a pruned one, the weights below its mask."""
    return getattr(module, f"{name}_orig", getattr(module, name, None))


def _count(module: nn.Module, name: str) -> tuple[int, int]:
    """Return how many of a parameter's weights are pruned, and how many there are."""
    mask = getattr(module, f"{name}_mask", None)
    return (
        (0, _unmasked(module, name).numel())
        if mask is None
        else (int((mask == 0).sum()), mask.numel())
    )


def _ask(answer: bool | Callable[[int], bool], epoch: int) -> bool:
    return answer(epoch) if callable(answer) else answer
