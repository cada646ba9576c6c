"""Where the ranks of one machine find each other, without a port that others reach."""

from __future__ import annotations

import functools
import os
import socket
from datetime import timedelta

import torch.distributed as dist

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def loopback_store(timeout: timedelta) -> dict[str, object]:
    """Return the arguments of `init_process_group` for ranks that meet on the loopback alone.

    The ranks then listen there alone. Empty where they meet elsewhere, or where `torchrun` has the
    store. torch's own store listens on all interfaces, and whoever reaches it can read and write
    the values that the ranks agree on.

    Args:
        timeout: how long ranks are waited for.
    """
    address = os.environ.get("MASTER_ADDR", "")
    if address not in LOOPBACK or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return {}
    rank = int(os.environ["RANK"])
    size = int(os.environ["WORLD_SIZE"])
    port = int(os.environ["MASTER_PORT"])
    make = functools.partial(
        dist.TCPStore,  # type: ignore[attr-defined]  # its types leave it out
        address,
        port,
        size,
        is_master=rank == 0,
        timeout=timeout,
        master_listen_fd=_listen(address, port).detach() if rank == 0 else None,
    )
    try:
        store = make()
    except NotImplementedError:  # torch 2.6, whose usual server does not take a socket
        store = make(use_libuv=False)
    return {"store": store, "rank": rank, "world_size": size}


def _listen(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen()
    return listener
