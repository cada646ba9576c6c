"""How ranks that are processes of one machine come to be a process group.

They find each other through a file. A store that listens on a port has a thread, which would not
be there in a process that is forked, and whose end that would wait for when it lets go of the
store.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist

LOOPBACK = "/sys/class/net/lo"  # where Linux has the interface that never leaves this machine


@contextlib.contextmanager
def joined(
    place: str, rank: int, size: int, device: torch.device, backend: str | None, timeout_s: float
) -> Iterator[None]:
    """Be one rank of a group in a `with` block.

    Args:
        place: path of a file of theirs alone, in a folder that is there.
        rank: of this process.
        size: number of ranks.
        device: where this rank computes.
        backend: torch's name of what carries the collectives; None: what the device wants.
        timeout_s: how long ranks wait for one that hangs.
    """
    if os.path.exists(LOOPBACK):
        # else gloo looks up this machine's name, which is nowhere to be found in some networks
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # what is in host memory, such as what the ranks agree on, goes by gloo in any case
    usual = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store = dist.FileStore(place, size)  # type: ignore[attr-defined]  # torch exports it unnamed
    dist.init_process_group(
        backend or usual,
        store=store,
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout_s),
    )
    try:
        yield
    finally:
        leave_group()


def leave_group() -> None:
    """End the process group while Python still runs.

    Its threads let go of tensors, and would abort a process that is being torn down.
    """
    gc.collect()
    if dist.is_initialized():
        dist.destroy_process_group()
