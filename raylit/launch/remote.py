"""What runs in processes that Ray starts beside training.

They are sent this code itself, not its name: importing raylit would bring torch along, and make every start of a run wait for it. So nothing here
takes from raylit at the top, or keeps anything in a global.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import ray
from ray.train import UserCallback
from ray.train.backend import Backend, BackendConfig

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
TERMINATED = "RAYLIT_TERMINATED"


class Mailbox:
    """An actor that holds what was sent until it is taken; the newest picture of a stage replaces an older one that nobody took.

    It is no asynchronous actor: those do not keep the order of calls.
    """

    def __init__(self) -> None:
        self.items: list[tuple[str, Any]] = []
        self.ends = False

    def end(self) -> None:
        """The driver wants the workers to save the run and leave."""
        self.ends = True

    def is_ending(self) -> bool:
        """Tell whether it does."""
        return self.ends

    def send(self, kind: str, content: Any) -> None:
        """Hold one more."""
        last = self.items[-1] if self.items else None
        if last and kind == "show" == last[0] and not last[1]["is_last"] and last[1]["stage"] == content["stage"]:
            self.items.pop()
        self.items.append((kind, content))

    def take(self) -> list[tuple[str, Any]]:
        """Return what is held."""
        items, self.items = self.items, []
        return items

    def wait(self) -> None:
        """Answers once all that the caller sent before has arrived."""


class Restarts(UserCallback):
    """Says, from where Ray Train watches the workers, that it starts them anew.

    Args:
        mailbox: where to say it.
        max_failures: how often it does; -1: always.
        num_failures: how often it did before.
    """

    def __init__(self, mailbox: Any, max_failures: int, num_failures: int) -> None:
        self.mailbox, self.max_failures, self.num_failures = mailbox, max_failures, num_failures

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Workers failed. Ray Train does not say yet whether it goes on; the budget tells."""
        from raylit.launch.failure import reasons_of

        self.num_failures += 1
        if self.max_failures == -1 or self.num_failures <= self.max_failures:
            of = "" if self.max_failures == -1 else f" of {self.max_failures}"
            why = "; ".join(reasons_of(worker_exceptions)) or "workers failed"
            self.mailbox.send.remote("failed", f"Restart {self.num_failures}{of}, from the newest checkpoint: {why}.")


def interface_of(address: str) -> str | None:
    """Return the name of this machine's network interface that owns an IP address, or None."""
    import psutil  # Ray brings its own

    owners = (name for name, owned in psutil.net_if_addrs().items() if any(one.address.partition("%")[0] == address for one in owned))
    return next(owners, None)


def prepare(place: dict[str, str]) -> None:
    """Make a worker ready to join the process group, in its main thread, where Ray Train does not train.

    gloo is told to use this node's own interface, unless the user said which: by itself it takes that of the host name, often the loopback.
    A SIGTERM becomes a notice (see `notice.py`); by itself it would end the process at once.
    """
    os.environ.update(place)
    context = ray.train.get_context()
    os.environ["RANK"], os.environ["WORLD_SIZE"] = str(context.get_world_rank()), str(context.get_world_size())
    os.environ["LOCAL_RANK"], os.environ["LOCAL_WORLD_SIZE"] = str(context.get_local_rank()), str(context.get_local_world_size())
    os.environ["NODE_RANK"] = str(context.get_node_rank())
    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault(GLOO_INTERFACE, name)

    def handle(number: int, frame: Any) -> None:
        os.environ[TERMINATED] = "1"

    signal.signal(signal.SIGTERM, handle)


def meeting_place() -> dict[str, str]:
    """Return where the ranks find each other, as `torchrun` would tell them: rank 0's address and a free port there."""
    import socket

    address = ray.util.get_node_ip_address()
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as listener:
        listener.bind(("", 0))
        port = listener.getsockname()[1]
    return {"MASTER_ADDR": address, "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "ray"}


class Environment(Backend):
    """Tells each worker its rank and where to meet; there they make torch's process group themselves, as under `torchrun`."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """The workers are there."""
        worker_group.execute(prepare, {**backend_config.env, **worker_group.execute_single(0, meeting_place)})


class ProcessGroup(BackendConfig):
    """Stands in the place of Ray's TorchConfig, which imports torch wherever it goes.

    Attributes:
        env: variables that the workers are to have.
        backend: a name, which TorchTrainer would choose otherwise; which backend it is, the workers know.
    """

    backend = "as under torchrun"

    def __init__(self, env: dict[str, str]) -> None:
        self.env = env

    @property
    def backend_cls(self) -> Any:
        """What prepares the workers."""
        return Environment
