"""Batch norm over all ranks.

Torch's SyncBatchNorm on a GPU, and on the CPU, for which torch has none, the same in plain
operations.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class CPUSyncBatchNorm(_BatchNorm):
    """Normalizes by mean and variance over the batches of all ranks.

    Source: Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", 2015.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(
                "Batch norm wants at least 2 dimensions (batch, channels, ...), but the input has"
                f" the shape {tuple(input.shape)}."
            )

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalized input, of the same shape (batch, channels, ...)."""
        self._check_input_dim(input)
        if not self.training and self.running_mean is not None:
            return super().forward(input)
        others = [0, *range(2, input.dim())]
        shape = (1, -1, *[1] * (input.dim() - 2))
        # sums of many values in 16 bits are wrong in the second digit
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        number = torch.tensor(input.numel() // input.shape[1], dtype=torch.int64)
        if self.training:
            dist.all_reduce(number)
        count = max(int(number), 1)
        mean = self._over_ranks(values.sum(others)) / count
        centered = values - mean.view(shape)
        # A second collective, since E[x^2] - E[x]^2 loses its digits where the mean is large
        variance = self._over_ranks(centered.square().sum(others)) / count
        if (
            self.running_mean is not None
            and self.running_var is not None
            and self.num_batches_tracked is not None
        ):
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                weight = (
                    1.0 / float(self.num_batches_tracked)
                    if self.momentum is None
                    else self.momentum
                )
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
                if count > 1:  # one value has no variance
                    unbiased = variance * (count / (count - 1))
                    self.running_var.lerp_(unbiased.to(self.running_var.dtype), weight)
        normalized: Tensor = centered * torch.rsqrt(variance + self.eps).view(shape)
        if self.weight is not None:
            normalized = normalized * self.weight.view(shape) + self.bias.view(shape)
        return normalized.to(input.dtype)

    def _over_ranks(self, sums: Tensor) -> Tensor:
        if not self.training:  # ranks may have different numbers of batches
            return sums
        from torch.distributed.nn.functional import all_reduce

        summed: Tensor = all_reduce(sums)
        return summed


def sync_batch_norm(module: nn.Module, device: torch.device) -> None:
    """Let batch norm layers take their statistics over all ranks, until `unsync_batch_norm`."""
    for layer in module.modules():
        if isinstance(layer, _BatchNorm) and not isinstance(
            layer, (nn.SyncBatchNorm, CPUSyncBatchNorm)
        ):
            # The class alone is exchanged: hooks and references to the layer stay, and it can be
            # undone
            layer._own_class = type(layer)  # type: ignore[assignment]
            layer.__class__ = CPUSyncBatchNorm if device.type == "cpu" else nn.SyncBatchNorm
            layer.process_group = None  # type: ignore[assignment]


def unsync_batch_norm(module: nn.Module) -> None:
    """Undo `sync_batch_norm`."""
    for layer in module.modules():
        own = vars(layer).pop("_own_class", None)
        if own is not None:
            layer.__class__ = own
            del layer.process_group
