"""The environment variables that go along with a job.

A worker has the environment in which Ray was started on its node. Variables that the driver's code
has set since its own process began go along with each job, and MLflow's passwords with those that
log to MLflow. All of it travels in the call and is set in the worker's process alone: a runtime
environment would be shown in Ray's dashboard and written into its logs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

# Of one process or one machine, or set by whatever starts the ranks.
STAYS = (
    "RAY_",
    "CUDA_",
    "NVIDIA_",
    "HIP_",
    "ROCR_",
    "MASTER_",
    "TORCHELASTIC_",
    "LOCAL_",
    "GROUP_",
    "SLURM_",
    "PYTEST_",
    "LD_",
    "PYTHON",
)
STAY = {
    *("RANK", "WORLD_SIZE", "NODE_RANK", "PL_GLOBAL_SEED"),
    *("PATH", "HOME", "PWD", "OLDPWD", "SHLVL", "_", "TMPDIR", "VIRTUAL_ENV", "HOSTNAME"),
    *("LINES", "COLUMNS", "TERM", "DISPLAY", "USER", "LOGNAME"),
}
TRACKING = "MLFLOW_TRACKING_"  # address, user, password and token of MLflow's server


@dataclass(frozen=True)
class Variables:
    """The variables to be set in a worker.

    Attributes:
        changed: variables that the driver's code has set.
        removed: those it has taken away since it started the cluster.
        tracking: those of MLflow's server, for the processes that log to it.
    """

    changed: Mapping[str, str] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    tracking: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def here(cls, inherited: Mapping[str, str]) -> Variables:
        """Return those of this process.

        Args:
            inherited: the variables that the workers have from this process, as it was when it
                started their cluster.
        """
        now = {name: value for name, value in os.environ.items() if _travels(name)}
        began = {**_at_start(), **inherited}
        return cls(
            {name: value for name, value in now.items() if began.get(name) != value},
            # A password for a server of before is not to reach the next one
            tuple(
                name
                for name in inherited
                if (_travels(name) or name.startswith(TRACKING)) and name not in os.environ
            ),
            {name: value for name, value in os.environ.items() if name.startswith(TRACKING)},
        )

    def set(self, tracking: bool) -> None:
        """Set them in this process.

        Args:
            tracking: whether it is one that logs to MLflow.
        """
        os.environ.update(self.changed)
        for name in self.removed:
            os.environ.pop(name, None)
        if tracking:
            os.environ.update(self.tracking)

    @contextlib.contextmanager
    def applied(self, tracking: bool) -> Iterator[None]:
        """Set them in this process until the block ends; it may do another job then."""
        before = dict(os.environ)
        self.set(tracking)
        try:
            yield
        finally:
            for name in {*self.changed, *self.removed, *self.tracking}:
                os.environ.pop(name, None)
                if name in before:
                    os.environ[name] = before[name]


def _travels(name: str) -> bool:
    return not name.startswith((*STAYS, TRACKING)) and name not in STAY


def _at_start() -> dict[str, str]:
    """Return the environment that this process was given; that of now where nobody says."""
    try:
        block = Path("/proc/self/environ").read_bytes()
    except OSError:
        return dict(os.environ)
    entries = (entry.partition(b"=") for entry in block.split(b"\0") if entry)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in entries}
