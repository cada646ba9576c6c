"""Lightning's plugins: objects that stand for a word in an argument of the Trainer.

They set a number format (`precision=`), batch norm over all ranks (`sync_batchnorm=True`), or how
ranks find each other, which raylit takes from the environment.
"""

from __future__ import annotations

from typing import Any

import torch

from raylit.errors import ConfigError


class PrecisionPlugin:
    """A number format; `Trainer(precision=...)` says it with a word.

    Attributes:
        precision: that word.
    """

    precision: str = "32-true"


class MixedPrecision(PrecisionPlugin):
    """Parameters in float32, steps under autocast.

    Args:
        precision: `16-mixed` or `bf16-mixed`.
        device: not used: it is the rank's.
        scaler: none of one's own can be given.

    Raises:
        ConfigError: another precision, or a scaler.

    Example:
        >>> Trainer(plugins=MixedPrecision("bf16-mixed", "cpu"))
    """

    def __init__(self, precision: str, device: str = "cpu", scaler: Any = None) -> None:
        _check(self, precision, ("16-mixed", "bf16-mixed"))
        if scaler is not None:
            raise ConfigError(
                f"MixedPrecision(scaler={scaler!r}): the scaler is raylit's own, made on each rank;"
                " read it as trainer.scaler. Leave it out."
            )
        self.precision = precision
        self.device = device


class HalfPrecision(PrecisionPlugin):
    """Parameters and steps in half the bits: `bf16-true` or `16-true`."""

    def __init__(self, precision: str = "16-true") -> None:
        _check(self, precision, ("16-true", "bf16-true"))
        self.precision = precision


class DoublePrecision(PrecisionPlugin):
    """Parameters and steps in float64."""

    precision = "64-true"


class FSDPPrecision(PrecisionPlugin):
    """The number format of a model that FSDP shards."""

    def __init__(self, precision: str, scaler: Any = None) -> None:
        _check(self, precision, ("32-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed"))
        self.precision = precision


def _check(plugin: PrecisionPlugin, precision: str, known: tuple[str, ...]) -> None:
    if precision not in known:
        raise ConfigError(
            f"Passed {type(plugin).__name__}(precision={precision!r}): Precision must be one of"
            f" {', '.join(map(repr, known))}."
        )


class LayerSync:
    """Layers that act on the batches of all ranks together."""

    def apply(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model with such layers."""
        raise NotImplementedError

    def revert(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model without them."""
        raise NotImplementedError


class TorchSyncBatchNorm(LayerSync):
    """Batch norm over all ranks; `Trainer(sync_batchnorm=True)` says it with a word."""

    def apply(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model with torch's SyncBatchNorm in the place of batch norm."""
        return torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-any-return]

    def revert(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model with batch norm again."""
        from raylit.parallel.batch_norm import unsync_batch_norm

        unsync_batch_norm(model)
        return model


class ClusterEnvironment:
    """How ranks that something else has started find each other."""


class LightningEnvironment(ClusterEnvironment):
    """Ranks that the Trainer starts: `num_workers=n` on Ray, or `launcher="local"`."""


class TorchElasticEnvironment(ClusterEnvironment):
    """Ranks that `torchrun` has started, which is seen from its variables."""


class SLURMEnvironment(ClusterEnvironment):
    """Ranks that `srun` has started. raylit starts its own, on Ray within the allocation.

    Args:
        auto_requeue: whether a job that is preempted is queued again.
        requeue_signal: the signal that says so.

    Raises:
        ConfigError: by the Trainer that it is given to.
    """

    instead = (
        "start one Ray node on each machine of the allocation (cluster/slurm/fit.sbatch does), give"
        " num_workers=..., and let `#SBATCH --signal=TERM@120 --requeue` end and requeue the job:"
        " all ranks save on SIGTERM, and ckpt_path='last' goes on"
    )

    def __init__(self, auto_requeue: bool = True, requeue_signal: Any = None) -> None:
        self.auto_requeue = auto_requeue
        self.requeue_signal = requeue_signal


class MPIEnvironment(ClusterEnvironment):
    """Ranks that `mpirun` has started; see SLURMEnvironment."""

    instead = "start a Ray node on each machine (`ray start`), and give num_workers=..."


class LSFEnvironment(MPIEnvironment):
    """Ranks that LSF has started; see SLURMEnvironment."""


class KubeflowEnvironment(MPIEnvironment):
    """Ranks that Kubeflow has started; cluster/kuberay/ has Ray's own files for Kubernetes."""


class XLAEnvironment(MPIEnvironment):
    """Ranks on TPUs, which raylit does not train on."""

    instead = "raylit has no XLA: use accelerator='gpu' or 'cpu'"
