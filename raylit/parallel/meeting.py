"""How ranks that are processes of one machine come to be a process group.

They find each other through a file. A store that listens on a port has a thread, which would not
be there in a process that is forked, and whose end that would wait for when it lets go of the
store.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
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
    before_group()
    store = dist.FileStore(place, size)  # type: ignore[attr-defined]  # torch exports it unnamed
    dist.init_process_group(
        backend or usual,
        store=store,
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout_s),
    )
    yield
    # Not if that failed: the group waits for collectives that others may never join, and the error
    # is to be told.
    leave_group()


def before_group() -> None:
    """Import a module that would keep a process group forever, before there is one.

    Imported later, as by DistributedDataParallel (torch 2.13), torch's collectives with gradients
    have the group as the default of an argument, so that its threads never end.
    """
    importlib.import_module("torch.distributed.nn.functional")


def leave_group() -> None:
    """End the process group, and with it its threads, while Python still runs.

    One of them that lets go of a tensor when Python has ended aborts the process: "terminate called
    without an active exception", on a busy machine once in some 200 fits.
    """
    gc.collect()
    if dist.is_initialized():
        dist.destroy_process_group()
