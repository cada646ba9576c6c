"""Random programs on two ranks, in two processes that are kept for all of them.

They log, read, validate and stop in random hooks, each rank what it likes. None may hang, and what
is reduced is the same on both.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import raylit as pl
from raylit.callbacks import Callback, Checkpoint, EarlyStopping, ModelCheckpoint
from tests.deadlines import stretched
from tests.lazy import torchmetrics

NAMES = ["a", "b", "c", "d"]
IN_STEPS = ["training_step", "on_train_batch_start", "on_train_batch_end"]
IN_EVALUATION = ["validation_step", "on_validation_batch_start", "on_validation_batch_end"]
AROUND = [
    "on_train_start",
    "on_train_epoch_start",
    "on_train_epoch_end",
    "on_validation_start",
    "on_validation_epoch_start",
    "on_validation_epoch_end",
]
LOOK_ONLY = ["on_validation_end", "on_before_optimizer_step"]
HANG_S = 30


@dataclass(frozen=True)
class Key:
    """How a name is logged, wherever it is."""

    on_step: bool
    on_epoch: bool
    sync_dist: bool | None
    rank_zero_only: bool
    reduce_fx: str


@dataclass(frozen=True)
class Action:
    """What some ranks do in a hook, each time or only at the first batches."""

    kind: Literal["log", "metric", "read", "stop"]
    owner: Literal["module", "callback", "monitor"]
    hook: str
    name: str
    ranks: tuple[int, ...]
    once: bool


@dataclass(frozen=True)
class Program:
    keys: tuple[Key, ...]
    actions: tuple[Action, ...]
    epochs: int
    interval: int | float
    log_every: int
    samples: int  # of validation: of an odd number one rank has one fewer
    plateau: Literal[None, "step", "epoch"]
    strict: bool
    stopping: bool
    saves: bool


def keys() -> st.SearchStrategy[Key]:
    steps = st.sampled_from([(True, False), (False, True), (True, True)])
    return st.builds(
        lambda both, *rest: Key(*both, *rest),
        steps,
        st.sampled_from([None, True, False]),
        st.sampled_from([False, False, True]),
        st.sampled_from(["mean", "sum", "min", "max"]),
    )


ACTIONS = st.builds(
    Action,
    kind=st.sampled_from(["log", "log", "log", "metric", "read", "read", "stop"]),
    owner=st.sampled_from(["module", "callback", "monitor"]),
    hook=st.sampled_from(IN_STEPS + IN_EVALUATION + AROUND + LOOK_ONLY),
    name=st.sampled_from(NAMES),
    ranks=st.sampled_from([(0,), (1,), (0, 1), (0, 1)]),
    once=st.booleans(),
)
PROGRAMS = st.builds(
    Program,
    keys=st.tuples(*(keys() for _ in NAMES)),
    actions=st.lists(ACTIONS, min_size=1, max_size=10).map(tuple),
    epochs=st.integers(1, 2),
    interval=st.sampled_from([1.0, 1, 2]),
    log_every=st.integers(1, 3),
    samples=st.sampled_from([0, 1, 3, 4]),
    plateau=st.sampled_from([None, None, "step", "epoch"]),
    strict=st.booleans(),
    stopping=st.booleans(),
    saves=st.booleans(),
)


# ---- in the ranks ----


class Actor:
    """Does on this rank what a program says.

    Attributes:
        snapshots: what was seen where all ranks are to see the same.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.rank = int(os.environ["RANK"])
        self.done: set[int] = set()
        self.snapshots: list[Any] = []

    def act(self, owner: str, hook: str, module: Any) -> None:
        for number, action in enumerate(self.program.actions):
            if (action.owner, action.hook) != (owner, hook) or self.rank not in action.ranks:
                continue
            if action.once and number in self.done:
                continue
            self.done.add(number)
            if action.kind == "stop":
                module.trainer.should_stop = True
            elif action.kind == "read":
                dict(module.trainer.callback_metrics)
                dict(module.trainer.logged_metrics)
            elif action.kind == "metric" and hook == "training_step":
                module.metric.update(float(self.rank + 1))
                module.log("metric", module.metric, on_step=False, on_epoch=True)
            elif action.kind == "log" and hook not in LOOK_ONLY:
                self.log(action, hook, module)

    def log(self, action: Action, hook: str, module: Any) -> None:
        key = self.program.keys[NAMES.index(action.name)]
        in_steps = hook in IN_STEPS + IN_EVALUATION
        module.log(
            action.name,
            torch.tensor(float(module.trainer.global_step + 10 * self.rank)),
            on_step=in_steps and key.on_step,
            on_epoch=key.on_epoch or not in_steps,
            sync_dist=key.sync_dist,
            rank_zero_only=key.rank_zero_only,
            reduce_fx=key.reduce_fx,
            batch_size=self.rank + 1,
        )

    def look(self, trainer: Any) -> None:
        seen = {name: float(value) for name, value in trainer.callback_metrics.items()}
        sent = {name: float(value) for name, value in trainer.logged_metrics.items()}
        rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
        self.snapshots.append((trainer.global_step, seen, sent, rates))


def acting(owner: str, base: type, actor: Actor) -> Any:
    """Return an instance of `base` that acts in all hooks."""

    def make(hook: str) -> Any:
        def call(self: Any, *args: Any) -> None:
            actor.act(owner, hook, self if owner == "module" else args[1])

        return call

    names = IN_STEPS[1:] + IN_EVALUATION[1:] + AROUND + LOOK_ONLY
    return type(owner, (base,), {hook: make(hook) for hook in names})()


class Steps(pl.LightningModule):
    actor: Actor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.metric = torchmetrics.MeanMetric()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.actor.act("module", "training_step", self)
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.actor.act("module", "validation_step", self)

    def configure_optimizers(self) -> Any:
        program = self.actor.program
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        if program.plateau is None:
            return optimizer
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        config = {"interval": program.plateau, "strict": program.strict, "monitor": "a"}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, **config}}


class Looks(Callback):
    def __init__(self, actor: Actor) -> None:
        self.actor = actor

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.actor.look(trainer)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        self.actor.look(trainer)


def serve(rank: int, port: int, connection: Connection) -> None:
    """Run programs as they come."""
    faulthandler.register(signal.SIGUSR1)
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        WORLD_SIZE="2",
        LOCAL_WORLD_SIZE="2",
        RANK=str(rank),
        LOCAL_RANK=str(rank),
    )
    warnings.simplefilter("ignore")
    logging.getLogger("raylit").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    connection.send("ready")
    while True:
        try:
            program = connection.recv()
        except EOFError:
            os._exit(0)
        connection.send(perform(program))


def perform(program: Program) -> dict[str, Any]:
    """Fit as the program says; return what this rank has seen, and how it ended."""
    actor = Actor(program)
    ended: Any
    with tempfile.TemporaryDirectory() as folder:
        saver = ModelCheckpoint(folder, save_top_k=1)
        stopping = EarlyStopping("b", patience=1, strict=program.strict)
        trainer = pl.Trainer(
            max_epochs=program.epochs,
            val_check_interval=program.interval,
            log_every_n_steps=program.log_every,
            num_sanity_val_steps=0,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=program.saves,
            default_root_dir=folder,
            callbacks=[
                acting("callback", Callback, actor),
                Looks(actor),
                *([stopping] if program.stopping else []),
                *([acting("monitor", Checkpoint, actor), saver] if program.saves else []),
            ],
        )
        torch.manual_seed(0)
        train = DataLoader(TensorDataset(torch.ones(6, 2)), 1)
        val = DataLoader(TensorDataset(torch.ones(program.samples, 2)), 1)
        module = acting("module", Steps, actor)
        module.actor = actor
        try:
            trainer.fit(module, train, val if program.samples else None)
            ended = trainer.global_step
        except Exception as error:
            # which names a rank has logged itself is its own
            ended = f"{type(error).__name__}: {str(error).partition(' Logged so far')[0]}"
        torch.distributed.barrier()  # rank 0's folder is where both save
    return {"ended": ended, "snapshots": actor.snapshots}


# ---- here ----


class Pair:
    """The two processes; made anew after a hang."""

    def __init__(self) -> None:
        self.processes: list[Any] = []
        self.connections: list[Connection] = []

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        for rank in range(2):
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(rank, port, there), daemon=True)
            process.start()
            there.close()
            self.processes.append(process)
            self.connections.append(here)
        assert self.receive(120) == ["ready", "ready"]

    def run(self, program: Program) -> list[Any]:
        if not self.processes:
            self.start()
        for connection in self.connections:
            connection.send(program)
        return self.receive(HANG_S)

    def receive(self, within_s: float) -> list[Any]:
        deadline = time.monotonic() + stretched(within_s)
        found = []
        try:
            for rank, connection in enumerate(self.connections):
                assert connection.poll(max(0.0, deadline - time.monotonic())), f"rank {rank} hangs"
                found.append(connection.recv())
        except BaseException:
            self.close()
            raise
        return found

    def close(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGUSR1)  # says where it hangs
            time.sleep(0.2)
            process.kill()
            process.join()
        self.processes, self.connections = [], []


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    for connection in made.connections:
        connection.close()
    for process in made.processes:
        process.join(5)
    made.close()


def shared_names(program: Program) -> set[str]:
    """The names whose values are those of all ranks wherever snapshots are taken."""
    shared = {"metric"}
    for name, key in zip(NAMES, program.keys, strict=True):
        if key.sync_dist is not False:
            shared.add(f"{name}_epoch")
        if key.sync_dist is True or (key.sync_dist is None and not key.on_step):
            shared.update((name, f"{name}_step"))
    for action in program.actions:  # a batch of evaluation is one rank's own
        key = program.keys[NAMES.index(action.name)]
        if action.kind == "log" and action.hook in IN_EVALUATION and key.on_step:
            shared -= {action.name, f"{action.name}_step"}
    return shared


def check(pair: Pair, program: Program) -> None:
    zero, one = pair.run(program)
    assert zero["ended"] == one["ended"]
    assert len(zero["snapshots"]) == len(one["snapshots"])
    names = shared_names(program)
    for (step, *theirs, rates), (other_step, *others, other_rates) in zip(
        zero["snapshots"], one["snapshots"], strict=True
    ):
        assert step == other_step
        assert rates == other_rates
        for mine, its in zip(theirs, others, strict=True):
            kept = [{k: v for k, v in found.items() if k in names} for found in (mine, its)]
            assert kept[0] == kept[1]


SETTINGS: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "database": None,
    "phases": [Phase.generate],  # each hang costs half a minute: no shrinking
}


@settings(max_examples=25, derandomize=True, **SETTINGS)
@given(program=PROGRAMS)
def test_random_programs(pair: Pair, program: Program) -> None:
    check(pair, program)


def test_a_stop_before_the_first_epoch(pair: Pair) -> None:
    """What hooks have logged until then is reduced none the less."""
    key = Key(False, True, None, True, "max")
    both = (0, 1)
    program = Program(
        keys=(key,) * len(NAMES),
        actions=(
            Action("log", "callback", "on_train_start", "d", both, True),
            Action("stop", "module", "on_train_start", "c", both, True),
        ),
        epochs=2,
        interval=1.0,
        log_every=2,
        samples=1,
        plateau=None,
        strict=False,
        stopping=False,
        saves=False,
    )
    check(pair, program)
    assert pair.run(program)[1]["snapshots"][-1][1] == {"d": 0.0}


def test_who_reads_a_value_before_it_is_reduced_changes_nothing(pair: Pair) -> None:
    """What one rank has logged is its own until then, also after it was looked at."""
    key = Key(False, True, None, False, "mean")
    program = Program(
        keys=(key,) * len(NAMES),
        actions=(
            Action("log", "module", "on_train_start", "d", (1,), False),
            Action("read", "callback", "on_train_epoch_start", "a", (0, 1), False),
        ),
        epochs=1,
        interval=1,
        log_every=2,
        samples=1,
        plateau=None,
        strict=False,
        stopping=False,
        saves=False,
    )
    check(pair, program)
    seen = [values for _, values, *_ in pair.run(program)[1]["snapshots"]]
    assert seen == [{}, {}, {}, {"d": 10.0}]


@pytest.mark.parametrize("plateau", [None, "step"])
def test_what_counts_on_rank_0_alone_is_no_other_value_elsewhere(
    pair: Pair, plateau: Literal[None, "step"]
) -> None:
    key = Key(True, True, True, True, "max")
    program = Program(
        keys=(key,) * len(NAMES),
        actions=(
            Action("log", "module", "on_train_batch_end", "d", (1,), False),
            Action("log", "module", "training_step", "a", (0, 1), False),
        ),
        epochs=2,
        interval=1.0,
        log_every=3,
        samples=4,
        plateau=plateau,
        strict=True,
        stopping=False,
        saves=False,
    )
    check(pair, program)


@pytest.mark.long
@pytest.mark.timeout(1800)
@settings(max_examples=500, **SETTINGS)
@given(program=PROGRAMS)
def test_many_random_programs(pair: Pair, program: Program) -> None:
    check(pair, program)


def test_a_hang_is_found(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch itself: a rank that gets no program leaves the other waiting."""
    monkeypatch.setattr(sys.modules[__name__], "HANG_S", 2)
    program = Program(
        keys=(Key(True, True, None, False, "mean"),) * len(NAMES),
        actions=(),
        epochs=1,
        interval=1.0,
        log_every=1,
        samples=0,
        plateau=None,
        strict=False,
        stopping=False,
        saves=False,
    )
    if not pair.processes:
        pair.start()
    pair.connections[0].send(program)
    with pytest.raises(AssertionError, match="rank 0 hangs"):
        pair.receive(HANG_S)
    assert not pair.processes
