"""`Trainer(async_validation=...)`: how validation runs that training does not wait for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from raylit.engine.run import Run
from raylit.errors import ConfigError

if TYPE_CHECKING:
    from raylit.core.job import ValidationStarter
    from raylit.core.trainer import RunHandle
    from raylit.validation.pending import AsyncValidation


@dataclass
class ValidationConfig:
    """Says how `Trainer(async_validation=...)` validates; True means this without arguments.

    Args:
        num_cpus: CPUs that each validation reserves, beside those of the workers. 0 reserves none,
            and shares theirs.
        num_gpus: likewise GPUs; with one, validation runs on it.
        resources: other resources, by name.
        max_pending: how many validations may wait or run; training waits for the oldest before
            there is one more.

    Raises:
        ConfigError: a number is out of range.

    Example:
        >>> trainer = Trainer(
        ...     num_workers=4, use_gpu=True, async_validation=ValidationConfig(num_gpus=1)
        ... )
    """

    num_cpus: float = 1
    num_gpus: float = 0
    resources: dict[str, float] = field(default_factory=dict)
    max_pending: int = 4

    def __post_init__(self) -> None:
        for name, least in (("num_cpus", 0), ("num_gpus", 0), ("max_pending", 1)):
            value = getattr(self, name)
            # To Python True is a number; NaN is neither below the least nor above it
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number or not value >= least:
                raise ConfigError(
                    f"ValidationConfig({name}={value!r}): give a number of at least {least}."
                )

    def attach(self, run: RunHandle, starter: ValidationStarter | None) -> AsyncValidation:
        """Return the validations, none yet, of a fit; `starter` starts them, on rank 0."""
        assert isinstance(run, Run)  # the engine's, of which a handle shows a part
        from raylit.validation.pending import AsyncValidation

        return AsyncValidation(run, starter, self.max_pending)


def config_of(given: bool | ValidationConfig, is_dev_run: bool) -> ValidationConfig | None:
    """Return the config that `Trainer(async_validation=...)` means.

    None means that validation runs where training does, as it does in a fast dev run.

    Raises:
        ConfigError: it is something else.
    """
    if not isinstance(given, (bool, ValidationConfig)):
        raise ConfigError(
            f"async_validation={given!r}: give True, False or a raylit.ValidationConfig."
        )
    config = ValidationConfig() if given is True else given
    return config if config and not is_dev_run else None
