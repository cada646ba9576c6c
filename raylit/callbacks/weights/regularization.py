"""Regularization: L1 and L2 penalties on the weights, without a change of the module."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from raylit.core.callback import Callback
from raylit.errors import ConfigError, did_you_mean
from raylit.runtime.aliases import StateDict

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from raylit.core.module import LightningModule
    from raylit.core.trainer import RunningTrainer

Strength = tuple[float, float]  # l1, l2
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class Regularization(Callback):
    """Adds the gradient of `l1 * sum(|w|) + l2 / 2 * sum(w ** 2)`, as if that stood in the loss.

    It does so once for each optimizer step, when the gradients are complete (accumulated, averaged
    over the ranks, unscaled) and before they are clipped in automatic optimization; in manual
    optimization, when the optimizer steps. For SGD without clipping `l2` is `weight_decay`. For
    Adam it is L2 in the gradient, which is not the decoupled weight decay of AdamW. A step of fewer
    batches than `accumulate_grad_batches` gets the whole penalty too. Weights that got no gradient
    in a step are left as they are.

    Biases, the parameters of norms and all others with fewer than two dimensions are left out
    unless `biases_and_norms` or `groups` asks for them.

    Args:
        l1: strength of the L1 penalty, which makes weights 0. Default 0.
        l2: strength of the L2 penalty, which makes weights small. Default 0.
        biases_and_norms: whether they are penalized too.
        groups: other strengths for some parameters, by a pattern of their names: `{"encoder.*":
            {"l2": 0.01}, "head.weight": {"l1": 0.0}}`. The first pattern that fits counts, for
            biases and norms too; what it does not give is as for the others.
        log_penalty: whether the penalty is logged as `penalty`, with the other step values; it
            costs a pass over the weights then.

    Raises:
        ConfigError: a strength is negative; once training starts, if a pattern fits no parameter, a
            gradient is sparse, or the optimizer is LBFGS.

    Source: Tibshirani, "Regression Shrinkage and Selection via the Lasso", 1996; Krogh and Hertz,
        "A Simple Weight Decay Can Improve
    Generalization", 1991.

    Example:
        >>> trainer = Trainer(callbacks=[Regularization(l1=1e-5, l2=1e-4)])
    """

    def __init__(
        self,
        l1: float = 0.0,
        l2: float = 0.0,
        biases_and_norms: bool = False,
        groups: dict[str, dict[str, float]] | None = None,
        log_penalty: bool = False,
    ) -> None:
        self.l1, self.l2 = _strength("", {"l1": l1, "l2": l2}, (0.0, 0.0))
        self.biases_and_norms = biases_and_norms
        self.groups = {
            pattern: _strength(f"groups[{pattern!r}]: ", given, (self.l1, self.l2))
            for pattern, given in (groups or {}).items()
        }
        self.log_penalty = log_penalty
        self._strengths: dict[Tensor, Strength] = {}

    def on_train_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in trainer.optimizers):
            raise ConfigError(
                "Regularization changes gradients, but LBFGS also looks at the loss. Add the"
                " penalty to the loss, or take another optimizer."
            )
        self._strengths = {
            parameter: strength
            for parameter, strength in self._choose(pl_module).items()
            if any(strength)
        }
        for name, child in pl_module.named_modules():
            if (
                isinstance(child, (nn.Embedding, nn.EmbeddingBag))
                and child.sparse
                and child.weight in self._strengths
            ):
                raise ConfigError(
                    f"Regularization cannot penalize {name}.weight, whose gradient is sparse. Leave"
                    " it out with"
                    f' groups={{"{name}.weight": {{"l1": 0.0, "l2": 0.0}}}}, or make it with'
                    " sparse=False."
                )

    def _choose(self, module: nn.Module) -> dict[Tensor, Strength]:
        """Return the strength for every parameter."""
        named = dict(module.named_parameters())
        for pattern in self.groups:
            if not any(fnmatchcase(name, pattern) for name in named):
                raise ConfigError(
                    f"Regularization(groups={{{pattern!r}: ...}}) fits no"
                    f" parameter.{did_you_mean(pattern, named)}"
                )
        in_norms = {
            parameter
            for child in module.modules()
            if isinstance(child, NORMS)
            for parameter in child.parameters(recurse=False)
        }
        chosen: dict[Tensor, Strength] = {}
        for name, parameter in named.items():
            is_left_out = (
                parameter.ndim < 2
                or parameter in in_norms
                or name.rpartition(".")[2].startswith("bias")
            )
            default = (
                (0.0, 0.0) if is_left_out and not self.biases_and_norms else (self.l1, self.l2)
            )
            chosen[parameter] = next(
                (
                    strength
                    for pattern, strength in self.groups.items()
                    if fnmatchcase(name, pattern)
                ),
                default,
            )
        return chosen

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: RunningTrainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        weights: defaultdict[Strength, list[Tensor]] = defaultdict(list)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter in self._strengths:
                    weights[self._strengths[parameter]].append(parameter)
        for (l1, l2), parameters in weights.items():
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            if l2:
                torch._foreach_add_(gradients, parameters, alpha=l2)
            if l1:
                torch._foreach_add_(gradients, torch._foreach_sign(parameters), alpha=l1)
        if self.log_penalty and trainer.should_log_step and weights:
            self.log(
                "penalty",
                torch.stack(
                    [_penalty(strength, parameters) for strength, parameters in weights.items()]
                ).sum(),
            )

    def teardown(self, trainer: RunningTrainer, pl_module: LightningModule, stage: str) -> None:
        self._strengths = {}

    def __getstate__(self) -> StateDict:
        return {**super().__getstate__(), "_strengths": {}}


def _penalty(strength: Strength, parameters: list[Tensor]) -> Tensor:
    """Return `l1 * sum(|w|) + l2 / 2 * sum(w ** 2)`, on the device."""
    l1, l2 = strength
    total = torch.zeros((), device=parameters[0].device)
    if l1:
        total = (
            total
            + l1 * torch.stack([norm.float() for norm in torch._foreach_norm(parameters, 1)]).sum()
        )
    if l2:
        total = (
            total
            + l2
            / 2
            * torch.stack([norm.float() for norm in torch._foreach_norm(parameters, 2)])
            .square()
            .sum()
        )
    return total


def _strength(where: str, given: Mapping[str, float], default: Strength) -> Strength:
    """Return the strengths (l1, l2) of one group.

    Raises:
        ConfigError: there is no such strength, or it is negative.
    """
    for name, value in given.items():
        if name not in ("l1", "l2"):
            raise ConfigError(
                f"Regularization({where}{name}={value!r}): there is no such penalty. Give l1, l2 or"
                " both."
            )
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not 0 <= value < float("inf")
        ):
            raise ConfigError(
                f"Regularization({where}{name}={value!r}): give a number of at least 0."
            )
    return float(given.get("l1", default[0])), float(given.get("l2", default[1]))
