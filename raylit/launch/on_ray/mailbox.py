"""Code that runs in the processes that Ray starts beside training.

They are sent this code itself, not its name: importing raylit would bring torch along, and make
every start of a run wait for it. So nothing here takes from raylit at the top, or keeps anything in
a global.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, TypeGuard

import ray
from ray.train.backend import Backend, BackendConfig

if TYPE_CHECKING:
    from raylit.launch.on_ray.private import ActorHandle, BaseWorkerGroup

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
TERMINATED = "RAYLIT_TERMINATED"
LOW_MEMORY = "running low on memory"  # in Ray's words
ANSWER_S = 1.0  # how long a node may take to accept a connection

Message: TypeAlias = tuple[str, Any]  # its kind, which says what the other is


class Node(TypedDict):
    """One of those that `ray.nodes` lists, as far as it is asked."""

    NodeID: str
    Alive: bool
    NodeManagerAddress: str
    NodeManagerPort: int


class Mailbox:
    """An actor that holds messages until they are taken.

    The newest picture of a stage replaces an older one that nobody took.

    It is no asynchronous actor: those do not keep the order of calls.
    """

    def __init__(self) -> None:
        self.items: list[Message] = []
        self.ends = self.makes_room = False
        self.number = 0
        self.job: object = None
        self.results: dict[int, object] = {}

    def end(self) -> None:
        """The driver wants the workers to save the run and leave."""
        self.ends = True

    def make_room(self, wanted: bool) -> None:
        """Whether they are to do so for the sake of more workers."""
        self.makes_room = wanted

    def why_end(self) -> str:
        """Tell why the workers are to leave: `ends`, `grows`, or nothing if they are not."""
        if self.ends:
            return "ends"
        return "grows" if self.makes_room else ""

    def give(self, number: int, job: object) -> None:
        """The next job of workers that are kept; numbers go up from 1."""
        self.number = number
        self.job = job
        self.results = {}

    def next_job(self, after: int) -> tuple[int, object]:
        """Return number and job, which is None until there is one that follows number `after`.

        A worker that has just started asks with 0.
        """
        if after == 0:
            self.results = {}  # of workers that are no more
        return self.number, self.job if self.number > after else None

    def did(self, number: int, rank: int, size: int, result: object) -> None:
        """A rank is through with a job; the driver is told once all are."""
        if number != self.number:
            return
        self.results[rank] = result
        if len(self.results) == size:
            self.send("did", (number, self.results[0]))
            self.job = None
            self.results = {}

    def send(self, kind: str, content: Any) -> None:
        """Hold one more."""
        last = self.items[-1] if self.items else None
        if (
            last
            and kind == "show" == last[0]
            and not last[1]["is_last"]
            and last[1]["stage"] == content["stage"]
        ):
            self.items.pop()
        self.items.append((kind, content))

    def take(self) -> list[Message]:
        """Return the messages held, and forget them."""
        items = self.items
        self.items = []
        return items

    def wait(self) -> None:
        """Answers once all that the caller sent before has arrived."""


class WorkerFailure(Exception):
    """Carries an exception of user code from a worker to the driver.

    It does not matter which arguments the exception's class wants when it is made.

    Attributes:
        at: seconds since the epoch when it was raised.
        text: its traceback, since tracebacks do not travel.
        parts: the exception, as `carried_error.packed` gives it.
        is_consequence: whether it only says that another rank could not be reached.
    """

    def __init__(self, at: float, text: str, parts: bytes, is_consequence: bool) -> None:
        super().__init__(at, text, parts, is_consequence)
        self.at = at
        self.text = text
        self.parts = parts
        self.is_consequence = is_consequence

    def original(self) -> BaseException:
        """Return the exception, or one that says the same if it cannot be pickled."""
        from raylit.launch.carried_error import unpacked

        return unpacked(self.parts)

    def __str__(self) -> str:
        return self.text


class Left(Exception):
    """The workers of an elastic job have saved it and left.

    Attributes:
        why: `grows`: there is room for more; `ends`: the driver wants it to end; else a node is
            about to be taken away.
    """

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


def is_leave(failure: object) -> TypeGuard[Left]:
    """Tell whether a failure is none, but that the workers have left.

    See `is_ours` for how it is told.
    """
    return type(failure).__name__ == Left.__name__


def is_ours(failure: object) -> TypeGuard[WorkerFailure]:
    """Tell whether a failure is a WorkerFailure.

    Having come from another process, it is of a class of the same name.
    """
    return type(failure).__name__ == WorkerFailure.__name__


def is_consequence(failure: BaseException) -> bool:
    """Tell whether a failure only says that another rank could not be reached."""
    return is_ours(failure) and bool(failure.is_consequence)


def reasons_of(failures: dict[int, Exception]) -> list[str]:
    """Return why ranks failed, in a line each.

    Nothing of those that only lost another rank, if it is known why that one went.
    """
    telling = {
        rank: failure for rank, failure in sorted(failures.items()) if not is_consequence(failure)
    } or failures
    return [f"rank {rank}: {reason(failure)}" for rank, failure in telling.items()]


def last_line(text: str) -> str:
    """Return the last line of a traceback that is no note: class and text of the exception."""
    lines = [
        line
        for line in text.strip().splitlines()
        if line and not line.startswith((" ", "(raylit)"))
    ]
    return lines[-1] if lines else text.strip()


def reason(failure: BaseException) -> str:
    """Return the line of a failure that tells its reason.

    That is the last line of an exception of the run; of an error of Ray's, the line that names a
    dead actor or too little memory, else the first, without Ray's list of common causes.
    """
    if is_ours(failure):
        return last_line(failure.text)
    text = str(getattr(failure, "health_check_failure", failure)).strip() or type(failure).__name__
    lines = text.splitlines()
    found = next(
        (
            line.strip()
            for line in lines
            if line.strip().startswith("The actor is dead") or LOW_MEMORY in line
        ),
        lines[0],
    )
    return found.partition(" Some common causes")[0].rstrip(".")


class Restarts:
    """Says, from where Ray Train watches the workers, that it starts them anew.

    Args:
        mailbox: where to say it.
        max_failures: how often it does; -1: always.
        num_failures: how often it did before.
        origin: from where it goes on, such as "from the start".
    """

    def __init__(
        self, mailbox: ActorHandle, max_failures: int, num_failures: int, origin: str
    ) -> None:
        self.mailbox = mailbox
        self.max_failures = max_failures
        self.num_failures = num_failures
        self.origin = origin

    def failed(self, failures: dict[int, Exception]) -> None:
        """Workers failed, and are started anew."""
        self.num_failures += 1
        of = "" if self.max_failures == -1 else f" of {self.max_failures}"
        why = "; ".join(reasons_of(failures)) or "workers failed"
        self.mailbox.send.remote(
            "failed", f"Restart {self.num_failures}{of}, {self.origin}: {why}."
        )

    def say(self, why: str) -> None:
        """The workers are started anew, which counts for no failure."""
        self.mailbox.send.remote("restart", why)

    def blames_user(self, failures: dict[int, Exception]) -> bool:
        """Tell whether user code failed, rather than that a worker or a connection was lost."""
        return any(
            is_ours(failure) and not is_consequence(failure) for failure in failures.values()
        )


def interface_of(address: str) -> str | None:
    """Return the name of this machine's network interface that owns an IP address, or None."""
    import psutil

    owners = (
        name
        for name, owned in psutil.net_if_addrs().items()
        if any(one.address.partition("%")[0] == address for one in owned)
    )
    return next(owners, None)


def answers(node: Node) -> bool:
    """Tell whether a node, of those that `ray.nodes` lists, is still there.

    Ray itself takes some time to notice.
    """
    import socket

    try:
        socket.create_connection(
            (node["NodeManagerAddress"], node["NodeManagerPort"]), ANSWER_S
        ).close()
    except OSError:
        return False
    return True


def prepare(place: dict[str, str]) -> None:
    """Make a worker ready to join the process group, in its main thread.

    Ray Train trains in another thread.

    gloo is told to use this node's own interface, unless the user said which: by itself it takes
    that of the host name, often the loopback. A SIGTERM becomes a notice (see `preemption.py`); by
    itself it would end the process at once.
    """
    os.environ.update(place)
    context = ray.train.get_context()
    os.environ["RANK"] = str(context.get_world_rank())
    os.environ["WORLD_SIZE"] = str(context.get_world_size())
    os.environ["LOCAL_RANK"] = str(context.get_local_rank())
    os.environ["LOCAL_WORLD_SIZE"] = str(context.get_local_world_size())
    os.environ["NODE_RANK"] = str(context.get_node_rank())
    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault(GLOO_INTERFACE, name)

    def handle(number: int, frame: object) -> None:
        # Not in a global: this code is sent by value, so that `preemption.py` would see another one
        os.environ[TERMINATED] = "1"

    signal.signal(signal.SIGTERM, handle)


def meeting_place() -> dict[str, str]:
    """Return where the ranks find each other, as `torchrun` would tell them.

    Rank 0's address and a free port there.
    """
    import socket

    address = ray.util.get_node_ip_address()
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as listener:
        listener.bind(("", 0))
        port = listener.getsockname()[1]
    return {"MASTER_ADDR": address, "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "ray"}


class Environment(Backend):
    """Tells each worker its rank and where to meet.

    There they make torch's process group themselves, as under `torchrun`.
    """

    share_cuda_visible_devices = True

    def on_start(self, worker_group: BaseWorkerGroup, backend_config: Any) -> None:
        """The workers are there."""
        worker_group.execute(
            prepare, {**backend_config.env, **worker_group.execute_single(0, meeting_place)}
        )

    def on_shutdown(self, worker_group: Any, backend_config: object) -> None:
        """The workers are to end.

        Those on nodes that do not answer are given up, which Ray would wait for.
        """
        workers = worker_group.get_workers()
        where = {worker.metadata.node_id for worker in workers}
        there = {
            node["NodeID"]
            for node in ray.nodes()
            if node["NodeID"] in where and node["Alive"] and answers(node)
        }
        for worker in workers:
            if worker.metadata.node_id not in there:
                ray.kill(worker.actor)


class ProcessGroup(BackendConfig):
    """Stands in the place of Ray's TorchConfig, which imports torch wherever it goes.

    Attributes:
        env: variables that the workers are to have.
        backend: a name, which TorchTrainer would choose otherwise; which backend it is, the workers
            know.
    """

    backend = "as under torchrun"

    def __init__(self, env: dict[str, str]) -> None:
        self.env = env

    @property
    def backend_cls(self) -> type[Environment]:
        """The class that prepares the workers."""
        return Environment
