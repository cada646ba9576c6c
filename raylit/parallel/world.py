"""World: this process's place among the ranks of a run, and their collectives.

Every method that communicates must be called by all ranks, and does nothing when alone.
"""

from __future__ import annotations

import atexit
import os
import pickle
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from raylit.errors import ConfigError
from raylit.parallel import rendezvous
from raylit.parallel.fork import make_forks_safe
from raylit.parallel.meeting import before_group, leave_group
from raylit.runtime import messages

T = TypeVar("T")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")


class Accelerator:
    """The kind of device a rank computes on; `Trainer(accelerator=...)` takes its name.

    Attributes:
        name: one of `ACCELERATORS`.
    """

    name: str = "auto"


class World:
    """Rank, size, device and collectives of this process.

    Nobody writes its attributes, once it is made.

    Attributes:
        rank: number among all ranks.
        size: how many ranks there are.
        local_rank: number among the ranks of this node.
        node_rank: number of this node.
        num_nodes: how many nodes there are.
        device: where this rank's model and batches live.
    """

    def __init__(self, device: torch.device, timeout_s: float = 1800.0) -> None:
        together = dist.is_available() and dist.is_initialized()
        if together:
            make_forks_safe()
        self.device = device
        self.rank = dist.get_rank() if together else 0
        self.size = dist.get_world_size() if together else 1
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0")) if together else 0
        self.node_rank = (
            int(os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))) if together else 0
        )
        self.num_nodes = 1  # `join` asks the others
        self._timeout = timedelta(seconds=timeout_s)  # of groups that are made later
        self._cpu_group: dist.ProcessGroup | None = None
        self._files_group: dist.ProcessGroup | None = None
        messages.rank_zero_only.rank = self.rank  # type: ignore[attr-defined]

    @classmethod
    def join(
        cls,
        accelerator: str,
        backend: str | None = None,
        timeout_s: float = 1800.0,
        gpus: Sequence[int] | None = None,
    ) -> World:
        """Find this process's place.

        In the process group that exists, in the one that `torchrun`'s variables describe, or alone.

        Args:
            accelerator: one of `auto`, `cpu`, `gpu`, `cuda`, `mps`.
            backend: torch's name of what carries collectives; None: what the device wants.
            timeout_s: seconds to wait for a rank that hangs.
            gpus: the numbers of the GPUs for the ranks of this node; None: the first ones.
        """
        device = choose_device(accelerator, int(os.environ.get("LOCAL_RANK", "0")), gpus)
        if (
            not dist.is_initialized()
            and "TORCHELASTIC_RUN_ID" in os.environ
            and int(os.environ.get("WORLD_SIZE", "1")) > 1
        ):
            # what is in host memory, such as what the ranks agree on, goes by gloo, so that the
            # accelerator is not waited for
            usual = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            timeout = timedelta(seconds=timeout_s)
            before_group()
            dist.init_process_group(
                backend or usual,
                timeout=timeout,
                **rendezvous.loopback_store(timeout),  # type: ignore[arg-type]
            )
            # kept until the process ends: a rank that is through must not take the group's store
            # from one that still leaves
            atexit.register(leave_group)
        world = cls(device, timeout_s)
        # Not by the number of ranks of this node: the next may have more or fewer
        world.num_nodes = len(set(world.gather_numbers(world.node_rank)))
        return world

    @property
    def is_zero(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier()

    def broadcast_object(self, value: object, src: int = 0) -> Any:
        """Return the `value` of rank `src` on every rank; it is pickled."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=src, group=self.cpu_group)
        return box[0]

    def all_gather_object(self, value: object) -> list[Any]:
        """Return every rank's `value`, in the order of ranks; they are pickled."""
        if self.size == 1:
            return [value]
        gathered: list[object] = [None] * self.size
        dist.all_gather_object(gathered, value, group=self.cpu_group)
        return gathered

    def gather_object(self, value: object) -> list[Any] | None:
        """Return every rank's `value` on rank 0, None on the others; they are pickled."""
        if self.size == 1:
            return [value]
        gathered: list[object] | None = [None] * self.size if self.is_zero else None
        dist.gather_object(value, gathered, group=self.cpu_group)
        return gathered

    def from_zero(self, action: Callable[[], T], failure: type[Exception]) -> T:
        """Return on all ranks the result of `action`, which rank 0 alone calls.

        Raises:
            BaseException: what `action` raised, on all ranks, for they would wait for rank 0; a
                `failure` as it is, and of another kind as it is if it can be pickled.
        """
        if self.size == 1:
            return action()
        found: Any = None
        raised: BaseException | None = None
        if self.is_zero:
            try:
                found = action()
                pickle.dumps(found)  # before the others wait for it
            except BaseException as error:
                raised = error
        found, told = self.broadcast_object(
            (None, _to_tell(raised)) if raised is not None else (found, None)
        )
        if raised is not None:
            raise raised
        if isinstance(told, failure):
            raise told
        if told is not None:
            told.add_note("(raylit) raised on rank 0, which the other ranks waited for")
            raise told
        return found  # type: ignore[no-any-return]

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is true on any rank."""
        return any(self.all_gather_object(flag)) if self.size > 1 else flag

    def gather_numbers(self, number: int) -> list[int]:
        """Return every rank's small whole number, in the order of ranks.

        It goes through host memory, so that the accelerator is not waited for.
        """
        if self.size == 1:
            return [number]
        own = torch.tensor([int(number)])
        gathered = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(gathered, own, group=self.cpu_group)
        return [int(one) for one in gathered]

    @property
    def files_group(self) -> dist.ProcessGroup:
        """The ranks as a group of its own for those who write files, perhaps in the background.

        Made on first use, which is to be on all ranks.
        """
        if self._files_group is None:
            # In the default group, collectives of a background write would meet those of the loop
            self._files_group = dist.new_group(backend="gloo", timeout=self._timeout)
        return self._files_group

    @property
    def cpu_group(self) -> dist.ProcessGroup | None:
        """The ranks as a group that sends host memory; None if the default group does.

        Made on first use, which is to be on all ranks.
        """
        if self._cpu_group is None and "gloo" not in str(dist.get_backend_config()):
            self._cpu_group = dist.new_group(backend="gloo", timeout=self._timeout)
        return self._cpu_group

    def all_gather(self, tensor: Tensor, sync_grads: bool = False) -> Tensor:
        """Return the ranks' tensors stacked, shape (size, *tensor.shape).

        `tensor` itself when alone.
        """
        if self.size == 1:
            return tensor
        tensor = tensor.contiguous().to(self.device)
        if sync_grads:
            from torch.distributed.nn.functional import all_gather

            return torch.stack(list(all_gather(tensor)))
        gathered = [torch.zeros_like(tensor) for _ in range(self.size)]
        with torch.no_grad():
            dist.all_gather(gathered, tensor)
        return torch.stack(gathered)

    def leave(self) -> None:
        """Undo `join`, but for the process group, which others of this process may use."""
        self._cpu_group = self._files_group = None
        messages.rank_zero_only.rank = None  # type: ignore[attr-defined]


def _to_tell(error: BaseException) -> BaseException:
    """Return an exception as it can be sent to other ranks."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # some cannot be made again from their arguments
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def choose_device(
    accelerator: str, local_rank: int, gpus: Sequence[int] | None = None
) -> torch.device:
    """Return the device a rank computes on.

    Args:
        accelerator: one of `ACCELERATORS`.
        local_rank: number among the ranks of this node.
        gpus: the numbers of the GPUs for those ranks; None: the first ones.

    Raises:
        ConfigError: the accelerator is unknown, or this machine does not have it.
    """
    if accelerator not in ACCELERATORS:
        raise ConfigError(
            f"accelerator={accelerator!r} is not known. Use one of: {', '.join(ACCELERATORS)}."
        )
    if accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available():
        there = torch.cuda.device_count()
        if gpus is None:
            # Ray Train may show a worker only its own GPU, torchrun shows all.
            index = local_rank if local_rank < there else 0
        elif local_rank < len(gpus) and gpus[local_rank] in range(there):
            index = gpus[local_rank]
        else:
            raise ConfigError(
                f"devices={list(gpus)} names no GPU for rank {local_rank} of this machine, on which"
                f" PyTorch finds {there}. Name one of them for each rank, by its number from 0."
            )
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    if accelerator in ("gpu", "mps", "auto") and torch.backends.mps.is_available():
        return torch.device("mps")
    if accelerator in ("gpu", "cuda", "mps"):
        raise ConfigError(
            f"accelerator={accelerator!r} was asked for, but PyTorch finds no such device here. Use"
            " accelerator='cpu' or 'auto'."
        )
    return torch.device("cpu")


def is_lost_peer(error: Exception) -> bool:
    """Tell whether `error` says that another rank could not be reached.

    It is the consequence of that rank's end, not the reason.
    """
    # gloo raises a bare RuntimeError, told only by the path of its source file in the text
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )
