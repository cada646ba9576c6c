"""The network that the ranks talk over: on each node, the interface that owns the address by which the cluster knows it."""

from __future__ import annotations

import os
from typing import Any

import ray
from ray.train.torch import TorchConfig

from raylit.launch.notice import catch_sigterm

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"


def interface_of(address: str) -> str | None:
    """Return the name of this machine's network interface that owns an IP address, or None."""
    import psutil  # Ray brings its own

    return next(
        (name for name, owned in psutil.net_if_addrs().items() if any(one.address.partition("%")[0] == address for one in owned)), None
    )


def choose_interface() -> None:
    """Have gloo use this node's interface, unless the user said which. By itself it takes that of the host name, often the loopback."""
    if GLOO_INTERFACE not in os.environ:
        name = interface_of(ray.util.get_node_ip_address())
        if name is not None:
            os.environ[GLOO_INTERFACE] = name


def prepare() -> None:
    """Make a worker ready for its rank."""
    choose_interface()
    catch_sigterm()


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]  # what it is, Ray decides
    """Makes torch's process group, once every worker has chosen its interface. What is executed runs in the main thread of each."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(prepare)
        super().on_start(worker_group, backend_config)


class ProcessGroup(TorchConfig):
    """How Ray Train makes the process group."""

    @property
    def backend_cls(self) -> Any:
        """What does it."""
        return _Backend
