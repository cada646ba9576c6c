"""Gradients.

Their norms, to be logged in `on_before_optimizer_step`, and how they may be clipped.
"""

from __future__ import annotations

import torch
from torch import nn

from raylit.core.states import LightningEnum
from raylit.errors import ConfigError

__all__ = ["grad_norm"]


class GradClipAlgorithmType(LightningEnum):
    """The values of `Trainer(gradient_clip_algorithm=...)`."""

    VALUE = "value"
    NORM = "norm"

    @staticmethod
    def supported_type(val: str) -> bool:
        """Tell whether it is one of them."""
        return any(member.value == val for member in GradClipAlgorithmType)

    @staticmethod
    def supported_types() -> list[str]:
        """Return them."""
        return [member.value for member in GradClipAlgorithmType]


def _whole(norm: torch.Tensor) -> torch.Tensor:
    """Return a norm as it is, or of parts spread over the ranks, that of all together."""
    whole: torch.Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return whole


def grad_norm(
    module: nn.Module, norm_type: float | int | str, group_separator: str = "/"
) -> dict[str, float]:
    """Return the norm of each parameter's gradient and of all together, as numbers.

    On a GPU this waits for the device, with FSDP for the other ranks.

    Args:
        module: its parameters without a gradient are left out.
        norm_type: the p of the p-norm; "inf" for the largest absolute value.
        group_separator: stands between `grad_2.0_norm` and the parameter's name.

    Raises:
        ConfigError: the norm is not positive.

    Example:
        >>> def on_before_optimizer_step(self, optimizer):
        ...     self.log_dict(grad_norm(self, norm_type=2))
    """
    p = float(norm_type)
    if p <= 0:
        raise ConfigError(f"grad_norm(norm_type={norm_type!r}): give a positive number, or 'inf'.")
    norms = {
        f"grad_{p}_norm{group_separator}{name}": _whole(torch.linalg.vector_norm(parameter.grad, p))
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }
    if norms:
        norms[f"grad_{p}_norm_total"] = torch.linalg.vector_norm(
            torch.stack(list(norms.values())), p
        )
    return {name: norm.item() for name, norm in norms.items()}
