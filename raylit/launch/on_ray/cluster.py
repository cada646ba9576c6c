"""Which Ray cluster a job runs on.

The one that is connected, the one RAY_ADDRESS names, or a new one on this machine.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import ray

from raylit.errors import LaunchError
from raylit.launch.on_ray import nodes
from raylit.runtime.messages import info

_is_ours = False  # whether the connection of this process was made here, quietly


def is_verbose() -> bool:
    """Tell whether RAYLIT_VERBOSE (`--verbose`) asks for what Ray has to say."""
    return bool(os.environ.get("RAYLIT_VERBOSE"))


def resources_of(trainer: Any) -> dict[str, float]:
    """Return what each worker of a Trainer reserves."""
    return {
        "CPU": 1.0,
        **({"GPU": 1.0} if trainer.use_gpu else {}),
        **(trainer.resources_per_worker or {}),
    }


def connect(
    num_workers: int = 1, resources: dict[str, float] | None = None, least: int | None = None
) -> bool:
    """Make sure that this process is connected to a Ray cluster.

    Args:
        num_workers: how many workers are wanted; a cluster started here is made large enough for
            them.
        resources: what each worker reserves.
        least: how many are enough to begin with; None: all of them.

    Returns:
        Whether raylit made the connection and so decides what of the workers' output is shown: Ray
        shows all of it otherwise, and if verbose.

    Raises:
        LaunchError: RAY_ADDRESS names a cluster that cannot be reached.
    """
    global _is_ours
    wanted = {name: amount * num_workers for name, amount in (resources or {"CPU": 1}).items()}
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS")
        quiet: dict[str, Any] = {
            "logging_level": logging.INFO if is_verbose() else logging.WARNING,
            "log_to_driver": is_verbose(),
        }
        # which tells every user of tokens how to switch them off
        logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(
            logging.ERROR
        )
        if address:
            _send_token()
            try:
                ray.init(address=address, **quiet)
            except ConnectionError as error:
                raise LaunchError(
                    f"No Ray cluster answers at {address} (RAY_ADDRESS, --ray.address):"
                    f" {_why(error)}"
                ) from error
            missing = nodes.without_code()
            if missing:
                info(
                    f"Sending {os.getcwd()} to the nodes of the Ray cluster: {', '.join(missing)}"
                    " cannot see it."
                )
                nodes.connect_with_code(address, quiet)
        else:
            # "local" rather than no address, which would join whatever cluster an earlier process
            # left a note of, be it dead
            ray.init(
                address="local",
                num_cpus=max(os.cpu_count() or 1, int(wanted.get("CPU", 1))),
                include_dashboard=True,
                **quiet,
            )
            info("Started a Ray cluster on this machine.")
        _is_ours = not is_verbose()
    has = ray.cluster_resources()
    if least is not None:
        num_workers, wanted = (
            least,
            {name: amount * least / num_workers for name, amount in wanted.items()},
        )
    lacking = {name: amount for name, amount in wanted.items() if has.get(name, 0) < amount}
    if lacking:
        asked = ", ".join(f"{amount:g} {name}" for name, amount in wanted.items())
        there = ", ".join(f"{has.get(name, 0):g} {name}" for name in wanted)
        info(f"Waiting for the Ray cluster: {num_workers} workers ask for {asked}, it has {there}.")
    return _is_ours


def say_dashboard() -> None:
    """Say where the connected cluster's dashboard is, if it has one."""
    url = getattr(ray._private.worker, "get_dashboard_url", lambda: None)()
    if url:
        info(f"Ray dashboard: http://{url}")


def _why(error: ConnectionError) -> str:
    if "AuthToken" in str(error.__cause__):
        return (
            "it asks for a token that this machine does not have. Copy ~/.ray/auth_token of the"
            " head node to here."
        )
    return (
        f"{error}. Start one with `ray start --head`; other nodes join with `RAY_AUTH_MODE=token"
        " ray start --address=...`."
    )


def _send_token() -> None:
    """Have Ray send the token that `ray start --head` asks for once a token file exists.

    It does so by itself only where it starts a cluster.
    """
    from ray._private.authentication.authentication_token_setup import (
        maybe_enable_token_auth_if_token_available,
    )

    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
