"""Which Ray cluster a job runs on.

The one that is connected, the one RAY_ADDRESS names, or a new one on this machine.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
from collections.abc import Mapping

import ray

from raylit.errors import ConfigError
from raylit.launch.on_ray import nodes, private
from raylit.launch.on_ray.address import START, check_address, is_on_loopback
from raylit.launch.on_ray.by_value import Code
from raylit.runtime.messages import info, is_verbose

# Of workers that share a CPU: each holds some 0.5 GB, and one more helps none
PROCESSES_PER_CPU = 32

# Written by `connect`, one thread at a time: two fits may begin at once.
_connecting = threading.Lock()
_is_quiet = False  # whether the connection of this process was made here, quietly
_started: str | None = None  # the address of the cluster that this process has started
_inherited: Mapping[str, str] = {}  # the environment that it has from this process


def connect(num_cpus: float = 1) -> bool:
    """Make sure that this process is connected to a Ray cluster.

    Args:
        num_cpus: how many a cluster that is started here has at least.

    Returns:
        Whether raylit made the connection and so decides what of the workers' output is shown: Ray
        shows all of it otherwise, and if verbose.

    Raises:
        ConfigError: RAY_ADDRESS names no cluster, or one that cannot be reached.
        LaunchError: Ray could not be started, or the code cannot be sent to the nodes.
    """
    with _connecting:
        if not ray.is_initialized():
            _connect(num_cpus)
    return _is_quiet


def _connect(num_cpus: float) -> None:
    global _is_quiet, _started, _inherited
    address = os.environ.get("RAY_ADDRESS")
    quiet: nodes.Output = {
        "logging_level": logging.INFO if is_verbose() else logging.WARNING,
        "log_to_driver": is_verbose(),
    }
    logging.getLogger(private.TOKEN_LOGGER).setLevel(logging.ERROR)
    if address and address != "local":
        join(check_address(address), quiet)
    else:
        # "local" rather than no address, which would join whatever cluster an earlier process
        # left a note of, be it dead
        most = PROCESSES_PER_CPU * (os.cpu_count() or 1)
        if num_cpus > most:
            raise ConfigError(
                f"The workers ask for {num_cpus:g} CPUs, and this machine has {os.cpu_count()}: the"
                f" Ray cluster that is started here takes {most} workers at most. Give a smaller"
                " num_workers, or join a cluster: RAY_ADDRESS=HOST:6379 (--ray.address)."
            )
        with private.on_loopback():
            ray.init(
                address="local",
                num_cpus=max(os.cpu_count() or 1, math.ceil(num_cpus)),
                include_dashboard=True,
                **quiet,
            )
        _inherited = dict(os.environ)
        _started = ray.get_runtime_context().gcs_address
        info("Started a Ray cluster on this machine.")
    _is_quiet = not is_verbose()


def join(address: str, arguments: nodes.Output) -> None:
    """Connect to the cluster at an address, with the code where its nodes do not see it.

    Raises:
        ConfigError: it cannot be reached.
    """
    private.send_token()
    with private.on_loopback() if is_on_loopback(address) else contextlib.nullcontext():
        try:
            ray.init(address=address, **arguments)
        except (ConnectionError, RuntimeError) as error:
            raise ConfigError(
                f"The Ray cluster at {address} (RAY_ADDRESS, --ray.address) cannot be joined:"
                f" {_why(error)}"
            ) from error
        missing = nodes.without_code()
        if missing:
            folders = " and ".join(Code.here().folders)
            info(
                f"Sending {folders} to the nodes of the Ray cluster: {', '.join(missing)} cannot"
                " see it."
            )
            nodes.connect_with_code(address, arguments)


def started_here() -> bool:
    """Tell whether this process has started the cluster that it is connected to."""
    return ray.is_initialized() and ray.get_runtime_context().gcs_address == _started


def inherited() -> Mapping[str, str]:
    """Return the environment variables that the workers have from this process."""
    return _inherited if started_here() else {}


def say_dashboard() -> None:
    """Say where the connected cluster's dashboard is, if it has one."""
    url = private.dashboard_url()
    if url:
        info(f"Ray dashboard: http://{url}")


def _why(error: Exception) -> str:
    if "AuthToken" in f"{error.__cause__} {error}":
        return (
            "it asks for a token that this machine does not have. Copy ~/.ray/auth_token of the"
            " head node to here."
        )
    return f"{error}. {START}"
